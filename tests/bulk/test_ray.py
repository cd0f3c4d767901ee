"""Runs on Ray: after kills of nodes, actors and drivers, the rows are those of a local run."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tessella.bulk.ledger import Ledger, Shard
from tessella.bulk.manifest import Manifest
from tessella.bulk.ray.actor import Actor
from tessella.bulk.ray.driver import LOCAL, Cluster, ClusterMaker
from tessella.bulk.ray.scheduler import ActorPool, connect, plan_actors
from tessella.bulk.run_folder import read_run
from tessella.bulk.shards import ShardMaker
from tessella.errors import RunError, UsageError
from tessella.predictor import Predictor

from .bulk_kills import contents, make_rows, tiny_predictor
from .cluster_runs import (
    ROWS,
    SHARD_ROWS,
    WAIT,
    finished,
    other,
    run_locally,
    running,
    start_driver,
    start_nodes,
    wait_until,
)

SHARDS = ROWS // SHARD_ROWS


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Restore the number of threads, which the tiny model and actors set."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(before)))  # restored, or removed
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("data") / "rows.parquet", ROWS)


@pytest.fixture(scope="module")
def local_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "local_run"
    run_locally(data, out)
    return out


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Any]]:
    process, cluster = start_nodes()
    yield cluster
    process.communicate(timeout=WAIT)
    wait_until(lambda: not running())


@pytest.mark.slow
def test_after_any_kill_the_rows_are_those_of_a_local_run(
    data: Path, local_run: Path, nodes: dict[str, Any], tmp_path: Path
) -> None:
    out, settings = tmp_path / "run", dict(RAY_AUTH_TOKEN=nodes["token"])
    driver = start_driver(data, out, nodes["address"], **settings)
    wait_until(lambda: len(finished(out)) >= 5, driver)
    actors = running("MapWorker")
    assert len(actors) == 2  # one per node
    driver.kill()
    driver.communicate()
    wait_until(lambda: not actors & running())
    driver = start_driver(data, out, nodes["address"], **settings)
    wait_until(lambda: running("MapWorker"), driver)
    os.kill(min(running("tessella.bulk.ray.scheduler")), signal.SIGKILL)
    output, _ = driver.communicate(timeout=WAIT)
    assert driver.returncode == 8
    message = json.loads(output)["message"]
    assert message.startswith("Ray ended with ")
    assert message.endswith(f"exit status {-signal.SIGKILL}")
    wait_until(lambda: not running("MapWorker"))
    before = len(finished(out))
    assert before < SHARDS / 2

    driver = start_driver(data, out, nodes["address"], **settings)
    wait_until(lambda: len(finished(out)) >= before + 4, driver)
    with pytest.raises(UsageError) as caught:
        run_locally(data, out)
    assert caught.value.code == "busy"
    os.kill(min(running("MapWorker")), signal.SIGKILL)
    wait_until(lambda: len(finished(out)) >= before + 10, driver)
    os.kill(nodes["raylet"], signal.SIGKILL)
    driver.communicate(timeout=WAIT)
    assert driver.returncode == 0
    assert sorted(finished(out)) == [*range(SHARDS)]  # none lost, none twice
    assert contents(out) == contents(local_run)
    with Ledger(out) as ours, Ledger(local_run) as theirs:
        assert ours.finished() == theirs.finished()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, local_run)]
    counts = [(summary["rows"], summary["errors"]) for summary in summaries]
    assert counts == [(ROWS, dict(corrupt_image=ROWS // 20))] * 2


@pytest.mark.slow
def test_wrong_tokens_and_models_are_refused(
    data: Path, local_run: Path, nodes: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Drivers without a token or with a wrong one, and actors that load another model than the driver."""
    right, wrong = (dict(RAY_AUTH_TOKEN=token) for token in (nodes["token"], "0" * 64))
    attempts = [("slow", {}), ("slow", wrong | dict(RAY_NUM_REDIS_GET_RETRIES="2")), ("other", right)]
    drivers = [
        start_driver(data, tmp_path / str(number), nodes["address"], load, HOME=str(tmp_path), **token)
        for number, (load, token) in enumerate(attempts)
    ]
    none, refused, changed = (json.loads(driver.communicate(timeout=WAIT)[0]) for driver in drivers)
    failed = f"the Ray cluster {nodes['address']} cannot be used: "
    assert (none["code"], refused["code"], changed["code"]) == ("cluster_failed", "cluster_failed", "changed_run")
    assert none["message"] == failed + "no token was found, and every cluster has one"
    assert refused["message"].startswith(failed + "ConnectionError")
    assert "InvalidAuthToken" in capfd.readouterr().err  # Ray's own words
    assert f"fingerprint '{read_run(local_run)['fingerprint']}', here '" in changed["message"]
    assert [driver.returncode for driver in drivers] == [8, 8, 2]
    assert not any(contents(tmp_path / str(number)) for number in range(3))


@pytest.mark.slow
def test_a_local_cluster_listens_on_loopback_and_stops_on_a_signal(data: Path, local_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = running()
    driver = start_driver(data, out, "local", HOME=str(tmp_path))
    wait_until(lambda: len(finished(out)) >= 2, driver)
    processes = [psutil.Process(pid) for pid in running() - before]
    sockets = [socket for process in processes for socket in process.net_connections("tcp")]
    assert {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == "LISTEN"} == {"127.0.0.1"}
    assert 8265 not in {socket.laddr.port for socket in sockets}  # the dashboard's
    driver.terminate()
    output, _ = driver.communicate(timeout=WAIT)
    assert (driver.returncode, json.loads(output.splitlines()[-1])["code"]) == (130, "interrupted")
    wait_until(lambda: not running() - before)
    assert not (tmp_path / ".ray").exists()  # no token is left in the home folder
    kept = finished(out)
    assert 2 <= len(kept) < SHARDS
    run_locally(data, out)  # a run started on Ray is finished without it
    assert sorted(finished(out)) == [*range(SHARDS)]
    assert contents(out) == contents(local_run)


# --- an actor and a driver, without Ray -------------------------------------------------------------------------------


def maker(out: Path, load: Callable[[], Predictor] = tiny_predictor) -> ClusterMaker:
    manifest = Manifest(out / "manifest.parquet", read_run(out)["manifest"])
    return Cluster(load).maker(out, read_run(out), manifest, tiny_predictor(), processes=1)


def answer(out: Path, shard: int, load: Callable[[], Predictor] = tiny_predictor) -> dict[str, Any]:
    actor = Actor(maker(out, load)._job)
    try:
        (reply,) = actor(dict(shard=[shard]))["answer"]
        return dict(json.loads(reply))
    finally:
        if not isinstance(actor._maker, Exception):
            actor._maker.__exit__()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    run_locally(make_rows(tmp_path / "rows.parquet", 24), tmp_path / "run")
    return tmp_path / "run"


def tries(out: Path) -> Path:
    return out / "shards" / ".shard-00000001.tries.tmp"


def test_an_actor_repeats_a_shard_with_the_same_bytes(small: Path) -> None:
    """As an actor does that outlives its driver."""
    before = contents(small)
    tries(small).write_bytes(b"...")
    reply = answer(small, 1)
    with Ledger(small) as ledger:
        assert Shard(**reply) == ledger.finished()[1]
    assert contents(small) == before  # the file with its tries is gone too


def test_a_shard_that_kills_its_actors_is_given_up(small: Path) -> None:
    tries(small).write_bytes(b"....")
    reply = answer(small, 1)
    assert (reply["code"], reply["message"]) == ("cluster_failed", "shard 1 has killed 4 actors in a row")
    run_locally(small.parent / "rows.parquet", small)
    assert not tries(small).exists()


def test_an_actor_refuses_another_model_or_folder(small: Path) -> None:
    assert answer(small, 0, other)["code"] == "changed_run"
    job = maker(small)._job
    (small / "run.json").write_text((small / "run.json").read_text() + " ")
    assert json.loads(Actor(job)(dict(shard=[0]))["answer"][0])["code"] == "not_shared"
    (small / "run.json").unlink()
    assert json.loads(Actor(job)(dict(shard=[0]))["answer"][0])["code"] == "not_shared"


def test_an_actor_reports_a_full_disk(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardMaker, "make", full)
    reply = answer(small, 0)
    assert reply["code"] == "output_failed"
    assert "No space left" in reply["message"]
    assert reply["node"]


def shards(out: Path, *replies: dict[str, Any], todo: tuple[int, ...] = (0, 1), more: str = "") -> list[int]:
    """Return the shards that a driver counts for these answers, followed by more output."""
    cluster_maker = maker(out)
    answers = "".join(json.dumps(reply) + "\n" for reply in replies) + more
    cluster_maker._command = [sys.executable, "-c", "import sys; print(sys.argv[1], end='')", answers]
    with cluster_maker:
        return [shard.id for shard in cluster_maker.make(todo)]


def test_the_driver_counts_every_shard_once(small: Path) -> None:
    first, second = answer(small, 0), answer(small, 1)
    assert shards(small, second, second, first) == [1, 0]
    assert shards(small, todo=()) == []
    with pytest.raises(RunError, match="Ray ended with 1 shard unfinished") as caught:
        shards(small, first)
    assert caught.value.code == "cluster_failed"
    with pytest.raises(RunError, match="a7: disk error") as caught:
        shards(small, dict(code="output_failed", message="disk error", hint="run", node="a7"))
    assert (caught.value.code, caught.value.exit_code) == ("output_failed", 6)
    with pytest.raises(RunError, match="Ray ended with 1 shard unfinished"):
        shards(small, first, more=json.dumps(second)[:-9])  # killed while it output so
    with pytest.raises(UsageError, match="no room"):
        shards(small, dict(code="bad_argument", message="no room", hint=""))
    (small / "shards" / first["file"]).unlink()
    with pytest.raises(RunError, match="it is missing here") as caught:
        shards(small, first)
    assert caught.value.code == "not_shared"


EARLY = """
import pickle, sys, types
sys.path[:] = pickle.load(sys.stdin.buffer)
from tessella.bulk.ray import scheduler
scheduler.connect = lambda address: [dict(CPU=64.0)]
rows = [dict(answer=sys.argv[2])]
scheduler._schedule = lambda *_: types.SimpleNamespace(iter_rows=lambda: iter(rows))
scheduler.main()
"""


def test_the_driver_does_not_wait_for_a_dataset_that_ended_early(small: Path) -> None:
    cluster_maker = maker(small)
    cluster_maker._command = [sys.executable, "-c", EARLY, "local", json.dumps(answer(small, 1))]
    with cluster_maker, pytest.raises(RunError, match="Ray ended with 1 shard unfinished, with exit status 0"):
        assert [shard.id for shard in cluster_maker.make([0, 1])] == [1]


def test_a_local_cluster_that_others_can_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    nodes = [dict(Alive=True, NodeManagerAddress="192.168.0.7", Resources=dict(CPU=2.0))]
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(RunError, match="can be reached from other machines") as caught:
        connect(LOCAL)
    assert caught.value.code == "cluster_failed"
    assert connect("192.168.0.7:6379") == [dict(CPU=2.0)]


GPU = dict(CPU=32.0, GPU=4.0)


@pytest.mark.parametrize(
    ("nodes", "device", "pinned", "expected"),
    [
        ([dict(CPU=8.0)], "cpu", None, (2, 4)),
        ([dict(CPU=8.0), dict(CPU=7.0), dict(CPU=2.0), {}], "cpu", None, (3, 4)),
        ([GPU, GPU, dict(CPU=64.0)], "cuda", None, (8, 8, 1)),
        ([GPU, dict(CPU=4.0, GPU=1.0)], "cuda:0", None, (5, 4, 1)),
        ([GPU], "cuda", 2, (4, 2, 1)),
        ([GPU], "cuda", 16, (2, 16, 1)),
        ([dict(CPU=2.0, GPU=4.0)], "cuda", None, (4, 0, 1)),
    ],
)
def test_number_and_size_of_actors(nodes: Any, device: str, pinned: int | None, expected: Any) -> None:
    assert plan_actors(nodes, device, pinned, 4) == ActorPool(*expected)


@pytest.mark.parametrize(("device", "missing"), [("cpu", "4 cores"), ("cuda", "a GPU")])
def test_a_cluster_with_too_few_resources_is_refused(device: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"no node of the cluster has {missing}"):
        plan_actors([dict(CPU=2.0)], device, None, 4)


def test_a_missing_ray_is_reported_with_an_install_command(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="needs ray, which") as caught:
        list(maker(small).make([0]))
    assert (caught.value.code, caught.value.hint) == ("missing_dependency", "pip install ray")
