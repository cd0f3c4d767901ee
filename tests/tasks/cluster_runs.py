"""What the tests of clusters start as processes: nodes of Ray, and drivers of a run on them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tessella.errors import TessellaError
from tessella.predictor import Predictor
from tessella.tasks.bulk import run
from tessella.tasks.cluster import Cluster

from .bulk_kills import tiny_predictor

SHARD_ROWS = 16  # a batch: fewer cannot be
ROW_SECONDS = 0.02  # so that a run lasts long enough to be killed in


def slow() -> Predictor:
    """The tiny model, with the same numbers at leisure."""
    predictor = tiny_predictor()
    outputs_of = predictor.outputs_of

    def slowly(prepared: Iterable[Any], **how: Any) -> Iterator[Any]:
        for outcome in outputs_of(prepared, **how):
            time.sleep(ROW_SECONDS)
            yield outcome

    setattr(predictor, "outputs_of", slowly)  # noqa: B010 - mypy would not have it otherwise
    return predictor


def other() -> Predictor:
    """A model of the same shape that decodes as timm does."""
    predictor = tiny_predictor()
    return Predictor(predictor.model, name="tiny", plan=predictor.plan, policy="timm")


def drive(data: str, out: str, address: str, load: str = "slow") -> None:
    """A driver; ends as the command would."""
    loads = dict(slow=slow, other=other)
    try:
        run([data], out, tiny_predictor(), shard_rows=SHARD_ROWS, processes=1, cluster=Cluster(loads[load], address))
    except TessellaError as error:
        print(json.dumps(dict(code=error.code, message=error.message)), flush=True)
        sys.exit(error.exit_code)


def nodes() -> None:
    """Two nodes of one core each; says address and the second one's process, and ends them when its input ends."""
    from ray.cluster_utils import Cluster as Nodes

    settings: dict[str, Any] = dict(num_cpus=1, object_store_memory=80_000_000)
    cluster = Nodes(initialize_head=True, head_node_args=dict(include_dashboard=False, **settings))
    second = cluster.add_node(**settings)
    raylet = second.all_processes["raylet"][0].process.pid
    print(json.dumps(dict(address=cluster.address, raylet=raylet)), flush=True)
    sys.stdin.read()
    cluster.shutdown()


def finished(out: Path) -> list[int]:
    """Numbers of shards as they were entered."""
    try:
        return [json.loads(line)["id"] for line in (out / "log.jsonl").read_text().splitlines()]
    except OSError:
        return []


if __name__ == "__main__":
    (drive if sys.argv[1:] else nodes)(*sys.argv[1:])
