"""Make the shards of a bulk run with Ray, on one machine or many: one driver with the ledger, one actor per device.

An actor gets the number of a shard and answers with its entry in the ledger, a few hundred bytes; images and rows never
travel through Ray. It writes the shard itself, as a local run does, into the folder of the run, which all nodes share.
So whatever fails, a shard is complete or absent, and only the driver decides which shards count: an actor that outlives
its driver can only write the bytes that the next one would write.

The driver does not use Ray itself, but through a separate process (scheduler.py): if a thread uses Ray after it was
shut down, Ray ends the process at once and without a message, and Ray starts such threads itself.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from ...checks import check_count
from ...errors import RunError, UsageError
from ...extras import require
from ...predictor import Predictor
from ...storage import file_hash
from ...text import count_of
from ..ledger import Shard
from ..manifest import Manifest
from ..run_folder import RUN, RunFacts
from ..shards import SHARDS
from .actor import RESUME_HINT, SHARED_FOLDER_HINT, Job, decisive_settings

LOCAL = "local"
MAX_CORES = 4096
_SHUTDOWN_SECONDS = 10.0  # then Ray is killed; the processes of a local cluster end by themselves
_Answers: TypeAlias = "queue.SimpleQueue[bytes | None]"

# sys.path first: the package, and the function that loads the model, may only be found with the caller's
_BOOTSTRAP = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tessella.bulk.ray.scheduler import main; main()"
)


@dataclass(frozen=True)
class Cluster:
    """Where the shards of a run are computed.

    load: a function that loads the model, called in each actor; it must be picklable. address: HOST:PORT of a cluster
    of which this machine is a node, or "local" for a cluster that ends with the run. cores: CPU cores per actor, used
    as threads of its model and as decoders; None takes the number of threads of the driver's model, so that an actor
    computes the same bits as a local run. Each GPU has one actor with an equal share of the node's cores.
    """

    load: Callable[[], Predictor]
    address: str = LOCAL
    cores: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError `bad_argument`; Ray would take any word for the name of a host."""
        if self.cores is not None:
            check_count("cores", self.cores, MAX_CORES)
        if self.address != LOCAL and not re.fullmatch(r"[^/\s]+:\d+", self.address):
            raise UsageError(
                "bad_argument",
                f"--ray {self.address!r} is not HOST:PORT",
                hint="to start a cluster on this machine, put --ray after the inputs",
            )

    def maker(
        self,
        out: Path,
        facts: RunFacts,
        manifest: Manifest,
        predictor: Predictor,
        *,
        processes: int | None = None,
        timeout: float = 30.0,
    ) -> ClusterMaker:
        """Return what makes the shards of a run; takes the arguments of ShardMaker."""
        job = Job(
            load=self.load,
            out=out.absolute(),
            run_hash=file_hash(out / RUN),
            decisive=decisive_settings(predictor),
            cores=self.cores or predictor.plan.threads,
            processes=processes,
            timeout=timeout,
            folder=Path.cwd(),
        )
        return ClusterMaker(job, self.address, self.cores)


class ClusterMaker:
    """Makes the shards of a run with actors. A context manager that leaves the cluster, or ends a local one."""

    def __init__(self, job: Job, address: str, cores: int | None):
        self._job, self._cores = job, cores
        self._command = [sys.executable, "-P", "-c", _BOOTSTRAP, address]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ClusterMaker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            _end(self._process)

    def make(
        self,
        todo: Iterable[int],
        on_rows: Callable[[str, int], object] = lambda status, rows: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Shard]:
        """Yield the shards `todo` in the order in which they are finished; each is durable when it is yielded.

        on_rows: gets each status in a finished shard and its number of rows. stop: ends the work when it returns True.
        Raises UsageError: missing_dependency, bad_argument; RunError: cluster_failed if Ray does not start, refuses
        the driver or loses the actors of a shard MAX_TRIES times, not_shared, changed_run, and the errors of actors.
        """
        remaining = set(todo)
        if not remaining:
            return
        process, answers = self._start(sorted(remaining))
        while remaining:
            if stop():
                return
            try:
                answer = answers.get(timeout=0.2)  # so that a signal is noticed quickly
            except queue.Empty:
                continue
            if answer is None:
                unfinished = count_of(len(remaining), "shard")
                message = f"Ray ended with {unfinished} unfinished, with exit status {_end(process)}"
                raise RunError("cluster_failed", message, hint=RESUME_HINT)
            shard = self._read_answer(json.loads(answer))
            if shard.id not in remaining:  # Ray ran a task twice, which gives the same file
                continue
            remaining.remove(shard.id)
            for status, rows in {"ok": shard.ok, **shard.errors}.items():
                on_rows(status, rows)
            yield shard

    def _start(self, todo: list[int]) -> tuple[subprocess.Popen[bytes], _Answers]:
        """Start the process that uses Ray; return it and the queue of its answers, which ends with None."""
        cloudpickle = require("ray.cloudpickle", "a run on a cluster")
        instructions = cloudpickle.dumps((self._job, todo, self._cores))  # it can pickle functions of __main__, too
        # in its own session: Ctrl-C in a terminal reaches only the driver, which ends this process when it is ready
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._process = process
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the queue will tell
            process.stdin.write(pickle.dumps(sys.path) + instructions)
            process.stdin.flush()
        answers: _Answers = queue.SimpleQueue()
        arguments = (process.stdout, answers)
        threading.Thread(target=_read_lines, args=arguments, name="tessella-cluster", daemon=True).start()
        return process, answers

    def _read_answer(self, answer: dict[str, Any]) -> Shard:
        """Return the shard of an answer, after a check that its file can be seen here; raise the error of an actor."""
        if "code" in answer:
            node = f"{answer['node']}: " if "node" in answer else ""
            error_type = UsageError if answer["code"] == "bad_argument" else RunError
            raise error_type(answer["code"], node + answer["message"], hint=answer["hint"])
        shard = Shard(**answer)
        path = self._job.out / SHARDS / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise RunError("not_shared", f"an actor wrote {path}, but it is missing here", hint=SHARED_FOLDER_HINT)
        return shard


def _end(process: subprocess.Popen[bytes]) -> int:
    """End the process and return its exit status, -N for signal N."""
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # asks it to end
    try:
        return process.wait(_SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _read_lines(lines: IO[bytes], answers: _Answers) -> None:
    with lines:
        for line in lines:
            if line.endswith(b"\n"):  # otherwise it is incomplete
                answers.put(line)
    answers.put(None)
