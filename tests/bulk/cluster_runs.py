"""Processes for the tests of clusters: Ray nodes, and drivers of a run on them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tessella.bulk import Cluster, RunSettings, run
from tessella.errors import TessellaError
from tessella.predictor import Predictor

from .bulk_kills import tiny_predictor

ROWS = 640
SHARD_ROWS = 16  # a batch: fewer cannot be
ROW_SECONDS = 0.02  # so that a run lasts long enough to be killed in
MARK = secrets.token_hex(8)  # in the environment of all that is started here
WAIT = 120.0  # seconds, for what takes five on an idle machine
ROOT = Path(__file__).parents[2]


def slow() -> Predictor:
    """Return the tiny model, slowed down; its numbers are the same."""
    predictor = tiny_predictor()
    decoded_outputs = predictor.decoded_outputs

    def slowly(decoded: Iterable[Any], **settings: Any) -> Iterator[Any]:
        for pair in decoded_outputs(decoded, **settings):
            time.sleep(ROW_SECONDS)
            yield pair

    setattr(predictor, "decoded_outputs", slowly)  # noqa: B010 - mypy would not have it otherwise
    return predictor


def other() -> Predictor:
    """Return a predictor with another fingerprint: it decodes as timm does."""
    predictor = tiny_predictor()
    return Predictor(predictor.model, name="tiny", plan=predictor.plan, policy="timm")


def run_locally(data: Path, out: Path) -> None:
    """Run in this process, without Ray."""
    run([str(data)], out, tiny_predictor(), RunSettings(shard_rows=SHARD_ROWS, processes=1))


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    inherited |= dict(TESSELLA_MARK=MARK, OMP_NUM_THREADS="1", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    inherited["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, *arguments], env=inherited | environment, cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip


def running(name: str = "") -> set[int]:
    """Return the live processes that these tests started, at any depth. name: part of the command."""
    pids = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"TESSELLA_MARK={MARK}".encode() in (place / "environ").read_bytes()
            if ours and name.encode() in (place / "cmdline").read_bytes():
                pids.add(int(place.name))
        except OSError:  # gone, or another user's
            continue
    return pids


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    start_time = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() - start_time < WAIT
        time.sleep(0.02)


def start_driver(data: Path, out: Path, address: str, *load: str, **environment: str) -> subprocess.Popen[str]:
    return start("-m", "tests.bulk.cluster_runs", str(data), str(out), address, *load, **environment)


def start_nodes() -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start two nodes, which end with the process; return it, and their address, token and second process."""
    token = secrets.token_hex(32)
    # a node counts as dead after 3 seconds without an answer instead of 15
    quick = dict(RAY_health_check_period_ms="1000", RAY_health_check_failure_threshold="3")
    process = start("-m", "tests.bulk.cluster_runs", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, **quick)
    assert process.stdout
    return process, json.loads(process.stdout.readline()) | dict(token=token)


# --- in those processes -----------------------------------------------------------------------------------------------


def drive(data: str, out: str, address: str, load: str = "slow") -> None:
    """Be a driver; end with the exit status of the command line."""
    loads = dict(slow=slow, other=other)
    try:
        run(
            [data],
            out,
            tiny_predictor(),
            RunSettings(shard_rows=SHARD_ROWS, processes=1),
            cluster=Cluster(loads[load], address),
        )
    except TessellaError as error:
        print(json.dumps(dict(code=error.code, message=error.message)), flush=True)
        sys.exit(error.exit_code)


def nodes() -> None:
    """Run two nodes of one core each until stdin ends; print their address and the process of the second."""
    from ray.cluster_utils import Cluster as Nodes

    settings: dict[str, Any] = dict(num_cpus=1, object_store_memory=80_000_000)
    cluster = Nodes(initialize_head=True, head_node_args=dict(include_dashboard=False, **settings))
    second = cluster.add_node(**settings)
    raylet = second.all_processes["raylet"][0].process.pid
    print(json.dumps(dict(address=cluster.address, raylet=raylet)), flush=True)
    sys.stdin.read()
    cluster.shutdown()


def finished(out: Path) -> list[int]:
    """Return the numbers of the shards in the order in which they were recorded."""
    try:
        return [json.loads(line)["id"] for line in (out / "log.jsonl").read_text().splitlines()]
    except OSError:
        return []


if __name__ == "__main__":
    (drive if sys.argv[1:] else nodes)(*sys.argv[1:])
