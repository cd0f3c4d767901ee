"""The process between the driver of a run and its actors: all that uses Ray.

It is told a job on stdin, answers a line of JSON a shard on stdout, and ends when its stdin does.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import secrets
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ...errors import RunError, TessellaError, UsageError
from .actor import AGAIN, Actor, Job
from .driver import LOCAL

_JOIN = "is it up, is this machine a node of it, and is its token in RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH?"
_OBJECTS = 100_000_000  # bytes for Ray's object store on this machine: numbers of shards are all that goes through it


def main() -> None:
    """What ClusterMaker starts: address in sys.argv; on stdin (job, todo, cores of an actor), pickled."""
    address = sys.argv[1]
    # libraries that print must not answer in our place
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _set_environment(address == LOCAL)
    job, todo, cores = pickle.load(sys.stdin.buffer)
    try:
        nodes = connect(address)
        count, needs = slots(nodes, job.decisive["device"], cores, job.cores)
    except TessellaError as error:
        print(_refusal(error), file=answers)
        return
    # what goes wrong from here on is an answer; Ray's threads find it shut down, and print where they were
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    asked = (job, todo, count, needs, answers)
    threading.Thread(target=_answer, args=asked, name="tessella-ray", daemon=True).start()
    sys.stdin.buffer.read()  # until the driver is done, or is no more
    import ray

    ray.shutdown()  # the actors are this process's, and end with it


def connect(address: str) -> list[dict[str, Any]]:
    """Join the cluster, or start it; resources of its nodes. RunError `cluster_failed`."""
    import ray

    how: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    try:
        if address == LOCAL:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_OBJECTS, **how)
        else:
            ray.init(address, **how)
    except Exception as error:
        raise _failed(f"the Ray cluster {address} cannot be used", error, _JOIN) from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if address == LOCAL and any(not node["NodeManagerAddress"].startswith("127.") for node in nodes):
        raise RunError("cluster_failed", "Ray does not keep to this machine's own network",
                       hint="start a cluster in a network of its own, and give its address")  # fmt: skip
    return [node["Resources"] for node in nodes]


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


def _scheduled(job: Job, todo: list[int], count: int, needs: dict[str, Any]) -> Any:
    """A dataset of answers, one a shard, that begins when it is read."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # a block a shard: it is what Ray hands out, and what it does again
    shards = ray.data.from_items([dict(shard=shard) for shard in todo], override_num_blocks=len(todo))
    # An actor whose node is gone waits for another place; at the end idle ones give theirs up, as the pool may
    # shrink. One task at a time, so that no shard waits behind a slow actor while others have nothing to do.
    size: dict[str, Any] = dict(min_size=1, max_size=count, initial_size=count)
    pool = ray.data.ActorPoolStrategy(**size, max_tasks_in_flight_per_actor=1)
    job = replace(job, cores=int(needs["num_cpus"]) or 1)
    # Ray tries again without end: of a node that has died it uses up any number of tries before it knows
    return shards.map_batches(Actor, fn_constructor_args=(job,), batch_size=1, compute=pool, **needs)


def _answer(job: Job, todo: list[int], count: int, needs: dict[str, Any], answers: IO[str]) -> None:
    """In a thread of its own, so that the end of the driver is heard."""
    with answers:  # where the dataset ends before its time, the driver must not wait for more
        try:
            for row in _scheduled(job, todo, count, needs).iter_rows():
                print(row["told"], file=answers)
        except BaseException as error:
            print(_refusal(_failed("the run was given up by Ray", error, AGAIN)), file=answers)


def _refusal(error: TessellaError) -> str:
    return json.dumps(dict(code=error.code, message=error.message, hint=error.hint))


def _set_environment(local: bool) -> None:
    """What must be set before Ray is imported.

    A cluster of others decides by itself what it listens on; for one of our own Ray has one way to keep to loopback,
    which is named after the systems where it is the default.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a thread that finds the cluster gone must not look for another one
    if local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder


def _failed(what: str, error: BaseException, hint: str) -> RunError:
    if type(error).__name__ == "AuthenticationError":  # its own words are a page
        return RunError("cluster_failed", f"{what}: no token was found, and every cluster has one", hint=hint)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = f": {lines[-1]}" if lines else ""
    return RunError("cluster_failed", f"{what}: {type(error).__name__}{why}", hint=hint)
