"""The shards of a bulk run made by Ray, on one machine or many: an actor a device, and one driver with the ledger.

Actors get numbers of shards and answer with what the ledger is told, some hundred bytes each; images and rows never
travel through Ray. An actor writes its shard itself, as a local run does, into the folder of the run, which all nodes
share. So whatever dies, a shard is there whole or not at all, and the driver alone says which ones count: an actor that
outlives its driver can only write the bytes that the next one would write.

The driver does not use Ray itself, but by a process of its own (`scheduler.py`): Ray ends a process in which a thread
uses it after it was shut down, at once and without a word, and has threads that do.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...checks import check_count
from ...errors import RunError, UsageError
from ...extras import require
from ...predictor import Predictor
from ...storage import file_hash
from ..ledger import Shard
from ..manifest import RUN, Manifest
from ..shards import SHARDS
from .actor import AGAIN, SHARE, Job, decisive

LOCAL = "local"
MOST_CORES = 4096
_LEAVE_SECONDS = 10.0  # for Ray to be shut down; then it is killed, and what it has begun of a cluster ends by itself

# sys.path first: the package, and what gives the model, may be where only the caller looks
_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tessella.bulk.ray.scheduler import main; main()"
)


@dataclass(frozen=True)
class Cluster:
    """Where a run is made. load: what gives the model, in each actor too, so it must survive pickling.

    address: HOST:PORT of a cluster of which this machine is a node, or "local" for one that ends with the run. cores:
    of an actor, which are its model's threads and its decoders; None is as many as the model of the driver has threads,
    so that an actor computes as the local run would, to the last bit. A GPU has one actor, with its share of the cores.
    """

    load: Callable[[], Predictor]
    address: str = LOCAL
    cores: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError `bad_argument`; Ray would take any word for a host, and look for it."""
        if self.cores is not None:
            check_count("cores", self.cores, MOST_CORES)
        if self.address != LOCAL and not re.fullmatch(r"[^/\s]+:\d+", self.address):
            raise UsageError("bad_argument", f"--ray {self.address!r} is not HOST:PORT",
                             hint="for a cluster on this machine alone, put --ray after the inputs")  # fmt: skip

    def maker(
        self, out: Path, facts: Mapping[str, Any], manifest: Manifest, predictor: Predictor, *,
        processes: int | None = None, timeout: float = 30.0,
    ) -> ClusterMaker:  # fmt: skip
        """In place of a ShardMaker."""
        job = Job(
            self.load, out.absolute(), file_hash(out / RUN), decisive(predictor),
            self.cores or predictor.plan.threads, processes, timeout, Path.cwd(),
        )  # fmt: skip
        return ClusterMaker(job, self.address, self.cores)


class ClusterMaker:
    """Has the shards of one run made by actors; a context manager that leaves the cluster, or ends it if it is ours."""

    def __init__(self, job: Job, address: str, cores: int | None):
        self._job, self._cores = job, cores
        self._command = [sys.executable, "-P", "-c", _BOOT, address]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ClusterMaker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            _end(self._process)

    def make(
        self, todo: Iterable[int], seen: Callable[..., None] = lambda status, rows=1: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Shard]:  # fmt: skip
        """The shards `todo` in the order they are finished, each durable when it comes.

        seen: hears a status and its number of rows, once a shard. Raises UsageError: missing_dependency, bad_argument;
        RunError: cluster_failed where Ray does not start, refuses or loses a shard's actor TRIES times, not_shared,
        changed_run, or what went wrong in an actor.
        """
        left = set(todo)
        if not left:
            return
        process, answers = self._start(sorted(left))
        while left:
            if stop():
                return
            try:
                answer = answers.get(timeout=0.2)  # a signal is heard at once
            except queue.Empty:
                continue
            if answer is None:
                how = f"Ray ended without {len(left):,} shards, with exit status {_end(process)}"
                raise RunError("cluster_failed", how, hint=AGAIN)
            shard = self._checked(json.loads(answer))
            if shard.id not in left:  # a task that Ray did twice: the same file again
                continue
            left.remove(shard.id)
            for status, rows in {"ok": shard.ok, **shard.errors}.items():
                seen(status, rows)
            yield shard

    def _start(self, todo: list[int]) -> tuple[subprocess.Popen[bytes], queue.SimpleQueue[bytes | None]]:
        """The process that uses Ray; its answers, and None when it has ended."""
        cloudpickle = require("ray.cloudpickle", "a run on a cluster")
        told = cloudpickle.dumps((self._job, todo, self._cores))  # also a function of the caller's __main__
        # a session of its own: Ctrl-C in a terminal is for the driver, which ends this one when it is ready
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._process = process
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its answers will tell
            process.stdin.write(pickle.dumps(sys.path) + told)
            process.stdin.flush()
        answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        reading = (process.stdout, answers)
        threading.Thread(target=_read, args=reading, name="tessella-cluster", daemon=True).start()
        return process, answers

    def _checked(self, answer: dict[str, Any]) -> Shard:
        if "code" in answer:
            where = f"{answer['node']}: " if "node" in answer else ""
            kind = UsageError if answer["code"] == "bad_argument" else RunError
            raise kind(answer["code"], where + answer["message"], hint=answer["hint"])
        shard = Shard(**answer)
        path = self._job.out / SHARDS / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise RunError("not_shared", f"an actor wrote {path}, and it is not here", hint=SHARE)
        return shard


def _end(process: subprocess.Popen[bytes]) -> int:
    """Its exit status, of a signal -N."""
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # which says that it may end
    try:
        return process.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _read(lines: IO[bytes], answers: queue.SimpleQueue[bytes | None]) -> None:
    with lines:
        for line in lines:
            if line.endswith(b"\n"):  # else cut off
                answers.put(line)
    answers.put(None)
