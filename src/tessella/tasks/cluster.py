"""The shards of a bulk run made by Ray, on one machine or many: an actor a device, and one driver with the ledger.

Actors get numbers of shards and answer with what the ledger is told, some hundred bytes each; images and rows never
travel through Ray. An actor writes its shard itself, as a local run does, into the folder of the run, which all nodes
share. So whatever dies, a shard is there whole or not at all, and the driver alone says which ones count: an actor that
outlives its driver can only write the bytes that the next one would write.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RunError, UsageError
from ..predictor import Predictor
from .actor import AGAIN, SHARE, Actor, Job, decisive
from .ledger import Shard
from .manifest import RUN, Manifest, file_hash
from .shards import SHARDS

LOCAL = "local"
_JOIN = "is it up, is this machine a node of it, and is its token in RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH?"
_OBJECTS = 100_000_000  # bytes for Ray's object store on this machine: numbers of shards are all that goes through it
_LEAVE_SECONDS = 3.0  # for the thread that reads answers to end, before Ray does


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
        self._job, self._address, self._cores = job, address, cores
        self._connected = False
        self._leaving = threading.Event()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> ClusterMaker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected:
            import ray

            self._leaving.set()
            if self._reader:
                # who uses Ray after its end has this process ended at once, without a word
                self._reader.join(_LEAVE_SECONDS)
            ray.shutdown()  # the actors are this driver's, and end with it
            self._connected = False

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
        count, needs = self._connect()
        answers: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        waiting = (self._scheduled(sorted(left), count, needs), answers, self._leaving)
        self._reader = threading.Thread(target=_wait, args=waiting, name="tessella-ray", daemon=True)
        self._reader.start()
        while left:
            if stop():
                return
            try:
                answer = answers.get(timeout=0.2)
            except queue.Empty:
                continue
            if answer is None:
                raise RunError("cluster_failed", f"Ray ended without {len(left):,} shards", hint=AGAIN)
            if isinstance(answer, BaseException):
                raise _failed("the run was given up by Ray", answer, AGAIN) from answer
            shard = self._checked(json.loads(answer))
            if shard.id not in left:  # a task that Ray did twice: the same file again
                continue
            left.remove(shard.id)
            for status, rows in {"ok": shard.ok, **shard.errors}.items():
                seen(status, rows)
            yield shard

    def _connect(self) -> tuple[int, dict[str, Any]]:
        """Number of actors, and what Ray is to give each."""
        ray = _ray(local := self._address == LOCAL)
        how = dict(log_to_driver=False, logging_level=logging.ERROR)
        before = signal.getsignal(signal.SIGTERM)
        try:
            if local:
                cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
                ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_OBJECTS, **how)
            else:
                ray.init(self._address, **how)
        except Exception as error:
            raise _failed(f"the Ray cluster {self._address} cannot be used", error, _JOIN) from error
        finally:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which ends the process at once
        self._connected = True
        nodes = [node["Resources"] | dict(at=node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
        if local and any(not node["at"].startswith("127.") for node in nodes):
            raise RunError("cluster_failed", "Ray, imported before, does not keep to this machine's own network",
                           hint="let tessella import it, or start a cluster and give its address")  # fmt: skip
        return slots(nodes, self._job.decisive["device"], self._cores, self._job.cores)

    def _scheduled(self, todo: list[int], count: int, needs: dict[str, Any]) -> Any:
        """A dataset of answers, one a shard, that begins when it is read."""
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        # a block a shard: it is what Ray hands out, and what it does again
        shards = ray.data.from_items([dict(shard=shard) for shard in todo], override_num_blocks=len(todo))
        # An actor whose node is gone waits for another place; at the end idle ones give theirs up, as the pool may
        # shrink. One task at a time, so that no shard waits behind a slow actor while others have nothing to do.
        size: dict[str, Any] = dict(min_size=1, max_size=count, initial_size=count)
        pool = ray.data.ActorPoolStrategy(**size, max_tasks_in_flight_per_actor=1)
        job = replace(self._job, cores=int(needs["num_cpus"]) or 1)
        # Ray tries again without end: of a node that has died it uses up any number of tries before it knows
        return shards.map_batches(Actor, fn_constructor_args=(job,), batch_size=1, compute=pool, **needs)

    def _checked(self, answer: dict[str, Any]) -> Shard:
        if "code" in answer:
            raise RunError(answer["code"], f"{answer['node']}: {answer['message']}", hint=answer["hint"])
        shard = Shard(**answer)
        path = self._job.out / SHARDS / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise RunError("not_shared", f"an actor wrote {path}, and it is not here", hint=SHARE)
        return shard


def slots(
    nodes: Iterable[Mapping[str, Any]], device: str, pinned: int | None, cores: int
) -> tuple[int, dict[str, Any]]:
    """How many actors fit on nodes with these resources, and the cores and GPUs of each.

    All are of one size, which is what Ray Data has pools of; on a CPU as many on a node as have `cores` each.
    UsageError `bad_argument` where none fits.
    """
    if device.startswith("cuda"):
        found = [(int(node["GPU"]), node.get("CPU", 0)) for node in nodes if node.get("GPU", 0) >= 1]
        share = pinned or min((int(cpus // gpus) for gpus, cpus in found), default=0)
        needs = dict(num_cpus=share, num_gpus=1)
        count = sum(min(gpus, int(cpus // share)) if share else gpus for gpus, cpus in found)
    else:
        needs, count = dict(num_cpus=cores), sum(int(node.get("CPU", 0) // cores) for node in nodes)
    if not count:
        asked = "a GPU" if "num_gpus" in needs else f"{cores} cores"
        raise UsageError("bad_argument", f"no node of the cluster has {asked} for an actor",
                         hint="give --device cpu, or --actor-cores N that a node has")  # fmt: skip
    return count, needs


def _wait(dataset: Any, answers: queue.SimpleQueue[Any], leaving: threading.Event) -> None:
    """In a thread of its own, so that the driver hears a signal at once."""
    try:
        for row in dataset.iter_rows():
            answers.put(row["told"])
            if leaving.is_set():
                return
        answers.put(None)
    except BaseException as error:
        answers.put(error)


def _ray(local: bool) -> Any:
    """Ray, with what must be set before it is imported; UsageError `missing_dependency` where it is not installed.

    A cluster of others decides by itself what it listens on; for one of our own Ray has one way to keep to loopback,
    which is named after the systems where it is the default.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a thread that finds the cluster gone must not look for another one
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # or it reports dead nodes among our results, on stdout
    if local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("missing_dependency", "Ray is not installed", hint='pip install "tessella[ray]"') from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is told by an error of ours
    return ray


def _failed(what: str, error: BaseException, hint: str) -> RunError:
    if type(error).__name__ == "AuthenticationError":  # its own words are a page
        return RunError("cluster_failed", f"{what}: no token was found, and every cluster has one", hint=hint)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = f": {lines[-1]}" if lines else ""
    return RunError("cluster_failed", f"{what}: {type(error).__name__}{why}", hint=hint)
