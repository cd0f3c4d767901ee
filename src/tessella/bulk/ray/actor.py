"""One actor of a bulk run on a cluster: the model and its decoders, for as long as the run lasts. It knows no Ray."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import RunError, TessellaError
from ...predictor import Predictor
from ...storage import file_hash
from ..ledger import Shard
from ..manifest import MANIFEST, RUN, Manifest
from ..shards import SHARDS, ShardMaker

TRIES = 4  # of a shard whose actor dies: one that ends every actor must not go round for ever
AGAIN = "every finished shard is kept: run the same command again to go on"
SHARE = "give an --out that is on a file system which all nodes share, under the same path"


@dataclass(frozen=True)
class Job:
    """What an actor is told, once; it is pickled."""

    load: Callable[[], Predictor]
    out: Path  # absolute
    run_hash: str  # of run.json, which has all else
    decisive: Mapping[str, Any]
    cores: int
    processes: int | None
    timeout: float  # seconds
    folder: Path  # that paths in the settings of `load` are relative to


def decisive(predictor: Predictor) -> dict[str, Any]:
    """What must be the same in all actors for the bytes to be the same."""
    plan = predictor.plan
    return dict(fingerprint=predictor.fingerprint, engine=plan.engine, precision=plan.precision,
                batch=plan.batch_size, device=plan.device, layout=plan.layout, threads=plan.pass_threads)  # fmt: skip


class Actor:
    """Has the model and its decoders for as long as the run lasts; whatever goes wrong is an answer, not an exception.

    (Ray makes an exception in here one of its own, in which code and hint are lost.)
    """

    def __init__(self, job: Job):
        self._job = job
        self._maker: ShardMaker | TessellaError
        try:
            self._maker = self._start()
        except TessellaError as error:
            self._maker = error

    def _start(self) -> ShardMaker:
        job = self._job
        facts = self._same_run()
        if job.folder.is_dir():
            os.chdir(job.folder)
        import torch

        torch.set_num_threads(job.cores)  # before the plan, which counts them
        predictor = job.load()
        here = decisive(predictor)
        if changed := [name for name in here if here[name] != job.decisive[name]]:
            shown = "; ".join(f"{name} {job.decisive[name]!r}, here {here[name]!r}" for name in changed)
            raise RunError("changed_run", f"the model is another one than the run's: {shown}",
                           hint="have the same weights and versions on all nodes, and pin --engine")  # fmt: skip
        manifest = Manifest(job.out / MANIFEST, facts["manifest"])
        return ShardMaker(
            job.out, facts, manifest, predictor, processes=job.processes or min(job.cores, 8), timeout=job.timeout
        )

    def _same_run(self) -> dict[str, Any]:
        """run.json; read before each shard: who outlives its driver must not write into a run that came later."""
        path = self._job.out / RUN
        with contextlib.suppress(OSError):
            if file_hash(path) == self._job.run_hash:
                return dict(json.loads(path.read_text()))
        raise RunError("not_shared", f"{path} is not there, or not as the driver sees it", hint=SHARE)

    def _made(self, maker: ShardMaker, number: int) -> Shard:
        """A shard, if it has not ended TRIES actors: each leaves a byte in a file that the one who succeeds removes."""
        self._same_run()
        tries = self._job.out / SHARDS / f".shard-{number:08d}.tries.tmp"  # a run that goes on begins without
        with tries.open("ab") as file:
            if file.tell() >= TRIES:
                raise RunError("cluster_failed", f"shard {number} has ended {TRIES} actors, one after the other",
                               hint="is there enough memory for an actor? " + AGAIN)  # fmt: skip
            file.write(b".")
        (shard,) = maker.make([number])
        tries.unlink(missing_ok=True)
        return shard

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """The shard of a batch of one."""
        try:
            if isinstance(self._maker, TessellaError):
                raise self._maker
            answer = asdict(self._made(self._maker, int(batch["shard"][0])))
        except TessellaError as error:
            answer = dict(code=error.code, message=error.message, hint=error.hint, node=socket.gethostname())
        except OSError as error:
            why = f"{self._job.out} could not be written: {error.strerror or error}"
            answer = dict(code="output_failed", message=why, hint=AGAIN, node=socket.gethostname())
        return dict(told=[json.dumps(answer)])
