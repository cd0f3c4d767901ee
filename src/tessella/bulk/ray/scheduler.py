"""The process between the driver of a run and its actors, the only one that uses Ray directly.

It reads a job from stdin, writes one line of JSON per shard to stdout, and ends when its stdin is closed.
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
from typing import IO, TYPE_CHECKING, NamedTuple

from ...errors import RunError, TessellaError, UsageError
from .actor import RESUME_HINT, Actor, Job
from .driver import LOCAL

if TYPE_CHECKING:
    import ray.data

CONNECT_HINT = "check that it runs, that this machine is a node, and RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH"
OBJECT_STORE_BYTES = 100_000_000  # on this machine: only numbers of shards go through the store


class ActorPool(NamedTuple):
    """The number of actors, and the CPU cores and GPUs of each."""

    actors: int
    cpus: int
    gpus: int = 0


def main() -> None:
    """Run as a process: sys.argv has the address, stdin the pickled (job, shards, cores per actor)."""
    address = sys.argv[1]
    # answers go to a copy of stdout, because libraries may print to stdout
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _set_environment(address == LOCAL)
    job, todo, cores = pickle.load(sys.stdin.buffer)
    try:
        nodes = connect(address)
        pool = plan_actors(nodes, job.decisive["device"], cores, job.cores)
    except TessellaError as error:
        print(_error_answer(error), file=answers)
        return
    # from here on errors are answers; after the shutdown, Ray's threads print stack traces
    with Path(os.devnull).open("w") as null_device:
        os.dup2(null_device.fileno(), sys.stderr.fileno())
        os.dup2(null_device.fileno(), sys.stdout.fileno())
    arguments = (job, todo, pool, answers)
    threading.Thread(target=_write_answers, args=arguments, name="tessella-ray", daemon=True).start()
    sys.stdin.buffer.read()  # returns when the driver is done or has died
    import ray

    ray.shutdown()  # the actors belong to this process and end with it


def connect(address: str) -> list[Mapping[str, float]]:
    """Join the cluster, or start a local one; return the resources of its nodes. Raises RunError `cluster_failed`."""
    import ray

    try:
        if address == LOCAL:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            ray.init(
                "local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise _cluster_error(f"the Ray cluster {address} cannot be used", error, CONNECT_HINT) from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if address == LOCAL and any(not node["NodeManagerAddress"].startswith("127.") for node in nodes):
        raise RunError(
            "cluster_failed",
            "the local Ray cluster can be reached from other machines",
            hint="start a cluster in a private network and give its address",
        )
    return [node["Resources"] for node in nodes]


def plan_actors(nodes: Iterable[Mapping[str, float]], device: str, pinned_cores: int | None, cores: int) -> ActorPool:
    """Return how many actors fit on nodes with these resources, and the cores and GPUs of each.

    All actors have the same size, as the pools of Ray Data require. On CPUs each has `cores` cores; on GPUs
    `pinned_cores`, or the smallest share of a node's cores per GPU. Raises UsageError `bad_argument` if none fits.
    """
    if device.startswith("cuda"):
        gpu_nodes = [(int(node["GPU"]), node.get("CPU", 0)) for node in nodes if node.get("GPU", 0) >= 1]
        cpus = pinned_cores or min((int(cpus // gpus) for gpus, cpus in gpu_nodes), default=0)
        actors = sum(min(gpus, int(node_cpus // cpus)) if cpus else gpus for gpus, node_cpus in gpu_nodes)
        pool = ActorPool(actors, cpus, gpus=1)
    else:
        pool = ActorPool(sum(int(node.get("CPU", 0) // cores) for node in nodes), cores)
    if not pool.actors:
        needed = "a GPU" if pool.gpus else f"{cores} cores"
        raise UsageError(
            "bad_argument",
            f"no node of the cluster has {needed} for an actor",
            hint="use --device cpu, or --actor-cores N with as many cores as a node has",
        )
    return pool


def _schedule(job: Job, todo: list[int], pool: ActorPool) -> ray.data.Dataset:
    """Return a dataset with one answer per shard; the work starts when it is read."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # one block per shard: blocks are what Ray distributes and repeats
    shards = ray.data.from_items([dict(shard=shard) for shard in todo], override_num_blocks=len(todo))
    # The actor of a lost node waits for another place; idle actors free theirs at the end, because the pool may shrink.
    # One task at a time, so that no shard waits behind a slow actor while others are idle.
    strategy = ray.data.ActorPoolStrategy(
        min_size=1, max_size=pool.actors, initial_size=pool.actors, max_tasks_in_flight_per_actor=1
    )
    job = replace(job, cores=pool.cpus or 1)
    # Ray repeats tasks without limit, because a dead node uses up any number of tries before it is noticed
    return shards.map_batches(
        Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=strategy,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )


def _write_answers(job: Job, todo: list[int], pool: ActorPool, answers: IO[str]) -> None:
    """Runs in a thread, so that the main thread notices the end of the driver."""
    with answers:  # closed even if the dataset ends too early, so that the driver does not wait
        try:
            for row in _schedule(job, todo, pool).iter_rows():
                print(row["answer"], file=answers)
        except BaseException as error:
            print(_error_answer(_cluster_error("Ray gave up", error, RESUME_HINT)), file=answers)


def _error_answer(error: TessellaError) -> str:
    return json.dumps(dict(code=error.code, message=error.message, hint=error.hint))


def _set_environment(local: bool) -> None:
    """Set what must be set before Ray is imported.

    An existing cluster has decided where it listens. For a local one, the only way to make Ray listen on loopback is a
    variable named after the systems on which it is the default.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a thread that has lost its cluster must not look for another one
    if local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray writes one to the home folder


def _cluster_error(message: str, error: BaseException, hint: str) -> RunError:
    if type(error).__name__ == "AuthenticationError":  # its own message fills a page
        return RunError("cluster_failed", f"{message}: no token was found, and every cluster has one", hint=hint)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f": {lines[-1]}" if lines else ""
    return RunError("cluster_failed", f"{message}: {type(error).__name__}{reason}", hint=hint)
