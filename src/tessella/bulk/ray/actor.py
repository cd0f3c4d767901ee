"""An actor of a bulk run on a cluster: a model and its decoders, kept until the run ends. It does not import Ray."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from ...calibration.storage import calibration_hash
from ...errors import RunError, TessellaError
from ...predictor import Predictor
from ...storage import file_hash
from ..ledger import Shard
from ..manifest import MANIFEST, Manifest
from ..run_folder import RUN, RunFacts
from ..shards import SHARDS, ShardMaker

MAX_TRIES = 4  # per shard, so that a shard that kills every actor is not tried forever
MAX_DECODERS = 8  # processes per actor
RESUME_HINT = "every finished shard is kept; rerun the same command to resume"
SHARED_FOLDER_HINT = "use an --out on a file system that all nodes share, under the same path"


@dataclass(frozen=True)
class Job:
    """The instructions for an actor; pickled."""

    load: Callable[[], Predictor]
    out: Path  # absolute
    run_hash: str  # SHA-256 of run.json, which has everything else
    decisive: Mapping[str, str | int]
    cores: int
    processes: int | None
    timeout: float  # seconds
    folder: Path  # to which paths in the settings of `load` are relative


def decisive_settings(predictor: Predictor) -> dict[str, str | int]:
    """Return the settings that must be equal in all actors, so that they write the same bytes."""
    plan = predictor.plan
    return dict(
        fingerprint=predictor.fingerprint,
        engine=plan.engine,
        precision=plan.precision,
        batch=plan.batch_size,
        device=plan.device,
        layout=plan.layout,
        threads=plan.pass_threads,
        calibration="" if predictor.calibration is None else calibration_hash(predictor.calibration),
    )


class Actor:
    """Makes shards with its own model and decoders. Any error is returned as an answer, not raised.

    (Ray wraps exceptions in its own, which have neither code nor hint.)
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
        facts = self._read_run()
        if job.folder.is_dir():
            os.chdir(job.folder)
        _set_threads(job.cores)  # before loading, because the plan counts the threads
        predictor = job.load()
        if not facts.get("calibration"):
            predictor = predictor.with_calibration(None)
        settings = decisive_settings(predictor)
        changed = [name for name, value in settings.items() if value != job.decisive[name]]
        if changed:
            shown = "; ".join(f"{name} {job.decisive[name]!r}, here {settings[name]!r}" for name in changed)
            raise RunError(
                "changed_run",
                f"the model differs from the run's: {shown}",
                hint="install the same versions on all nodes, use the same weights, and set --engine",
            )
        manifest = Manifest(job.out / MANIFEST, facts["manifest"])
        processes = job.processes or min(job.cores, MAX_DECODERS)
        return ShardMaker(job.out, facts, manifest, predictor, processes=processes, timeout=job.timeout)

    def _read_run(self) -> RunFacts:
        """Read run.json, before each shard: an actor that outlives its driver must not write into a later run."""
        path = self._job.out / RUN
        with contextlib.suppress(OSError):
            if file_hash(path) == self._job.run_hash:
                return cast(RunFacts, json.loads(path.read_text()))
        raise RunError("not_shared", f"{path} is missing or differs from the driver's", hint=SHARED_FOLDER_HINT)

    def _make(self, maker: ShardMaker, number: int) -> Shard:
        """Make a shard, unless it has killed MAX_TRIES actors.

        Each try adds a byte to a file, which the try that succeeds removes, as does a run that resumes.
        """
        self._read_run()
        tries = self._job.out / SHARDS / f".shard-{number:08d}.tries.tmp"
        with tries.open("ab") as file:
            if file.tell() >= MAX_TRIES:
                raise RunError(
                    "cluster_failed",
                    f"shard {number} has killed {MAX_TRIES} actors in a row",
                    hint=f"check that an actor has enough memory; {RESUME_HINT}",
                )
            file.write(b".")
        (shard,) = maker.make([number])
        tries.unlink(missing_ok=True)
        return shard

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        """Make the shard of a batch of one; the answer is a JSON object: the entry of the shard, or an error."""
        answer: dict[str, object]
        try:
            if isinstance(self._maker, TessellaError):
                raise self._maker
            answer = asdict(self._make(self._maker, int(batch["shard"][0])))
        except TessellaError as error:
            answer = dict(code=error.code, message=error.message, hint=error.hint, node=socket.gethostname())
        except OSError as error:
            reason = f"{self._job.out} could not be written: {error.strerror or error}"
            answer = dict(code="output_failed", message=reason, hint=RESUME_HINT, node=socket.gethostname())
        return dict(answer=[json.dumps(answer)])


def _set_threads(count: int) -> None:
    """Set the number of threads of the models that this process loads; PyTorch reads the variable on import."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
