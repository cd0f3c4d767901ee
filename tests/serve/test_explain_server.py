"""Explanations by `tessella serve` itself: a process with PyTorch beside a server without, its death, its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

import tessella
from tessella import Client
from tessella.client import ServedExplanation
from tessella.errors import ServeError, UsageError
from tessella.explain import Explanation, explain
from tessella.explain.methods import methods_for

from .processes import children
from .servers import ANSWER_SECONDS, ServerProcess, wait_for

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CAT = EXAMPLES / "cat.jpg"
MODEL = "mixer_ti_p4_32.cifar10"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("-m", MODEL, "-m", "convit_ti_p4_32.cifar10", "--drain-delay", "0") as process:
        yield process


def uses_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def explainers(server: ServerProcess) -> list[int]:
    """The processes of the server that use PyTorch."""
    return [pid for pid in children(server.process.pid) if uses_torch(pid)]


def metric(server: ServerProcess, line: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=ANSWER_SECONDS).text
    return next((float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line)), 0.0)


@pytest.mark.parametrize("model", [MODEL, "convit_ti_p4_32.cifar10"])
def test_explanations_are_those_of_the_package(server: ServerProcess, model: str) -> None:
    photographs = sorted(EXAMPLES.glob("*.jpg"))[:3]
    predictor = tessella.load(model, engine="eager")
    with Client(server.url, model=model) as client:
        found = client.explain(photographs)
    for served, expected in zip(found, explain(photographs, predictor), strict=True):
        assert isinstance(expected, Explanation)
        np.testing.assert_allclose(served.map, expected.map.values, rtol=1e-4, atol=1e-5)
        assert served.target.label == expected.target.label
        assert {name: score.value for name, score in served.scores.items()} == pytest.approx(
            {line.name: line.value for line in expected.scores}, rel=1e-3, abs=1e-4
        )
        assert (served.verdict, served.method) == (expected.verdict, expected.map.method)
        assert served.methods == methods_for(predictor.model)


def test_an_exact_map_sums_to_the_logit(server: ServerProcess) -> None:
    with Client(server.url) as client:
        found = client.explain(CAT, target="cat", versus="dog", method="exact")
    assert isinstance(found, ServedExplanation)
    assert found.total is not None
    assert found.map.sum() == pytest.approx(found.total, abs=1e-4)
    (output,) = tessella.load(MODEL, engine="eager").outputs([CAT])
    assert found.total == pytest.approx(float(output.logits[3] - output.logits[5]), abs=1e-3)  # type: ignore[union-attr]


def test_the_server_itself_stays_without_pytorch(server: ServerProcess) -> None:
    with Client(server.url) as client:
        client.explain(CAT)
    assert not uses_torch(server.process.pid)
    (worker,) = explainers(server)
    assert os.getpriority(os.PRIO_PROCESS, worker) > os.getpriority(os.PRIO_PROCESS, server.process.pid)


def test_what_a_model_lacks_is_said(server: ServerProcess) -> None:
    with Client(server.url) as client:
        for options, words in (
            (dict(target="unicorn"), "no class"),
            (dict(target=3, versus="cat"), "the same"),
            (dict(method="attention"), "does not apply"),
        ):
            with pytest.raises(UsageError) as refused:
                client.explain(CAT, **options)
            assert refused.value.code == "unprocessable"
            assert words in refused.value.hint


def test_a_killed_process_is_replaced_and_no_request_is_lost(server: ServerProcess) -> None:
    with Client(server.url, retries=0) as client:
        expected = client.explain(CAT).map
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(client.explain, CAT) for _ in range(4)]
            wait_for(lambda: metric(server, "tessella_explain_queue_images") > 0)
            for pid in explainers(server):
                os.kill(pid, signal.SIGKILL)
            for answer in answers:
                np.testing.assert_allclose(answer.result().map, expected, rtol=1e-4, atol=1e-5)
    assert metric(server, 'tessella_explain_process_ends_total{reason="lost"}') >= 1
    assert httpx.get(f"{server.url}/readyz", timeout=ANSWER_SECONDS).status_code == 200


def test_a_deadline_kills_the_process_and_the_next_request_works(server: ServerProcess) -> None:
    with Client(server.url) as client:
        client.explain(CAT)
        (worker,) = explainers(server)
        os.kill(worker, signal.SIGSTOP)
        response = httpx.post(
            f"{server.url}/v1/explain",
            files={"file": CAT.read_bytes()},
            headers={"X-Tessella-Deadline-Ms": "500"},
            timeout=ANSWER_SECONDS,
        )
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        wait_for(lambda: worker not in children(server.process.pid))
        assert client.explain(CAT).target.label


def test_classification_goes_on_beside_explanations(server: ServerProcess) -> None:
    with Client(server.url) as client, ThreadPoolExecutor(2) as pool:
        client.explain(CAT)
        explaining = [pool.submit(client.explain, CAT) for _ in range(2)]
        count = 0
        while not all(answer.done() for answer in explaining):
            assert client.classify(CAT, top=1)[0].label
            count += 1
        assert count > 3


def test_a_stop_waits_for_an_explanation_and_leaves_no_process() -> None:
    with ServerProcess("-m", MODEL, "--drain-delay", "0.5") as server, Client(server.url, retries=0) as client:
        client.explain(CAT)
        (worker,) = explainers(server)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.explain, CAT)
            wait_for(lambda: metric(server, "tessella_explain_queue_images") > 0)
            server.signal()
            assert answer.result().target.label
        assert server.wait() == 0
        assert not Path(f"/proc/{worker}").exists()


def test_a_server_that_is_killed_leaves_no_process() -> None:
    with ServerProcess("-m", MODEL) as server:
        with Client(server.url) as client:
            client.explain(CAT)
        (worker,) = explainers(server)
        server.signal(signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{worker}").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text())


def test_a_server_can_be_started_without_explanations() -> None:
    with ServerProcess("-m", MODEL, "--no-explain") as server, Client(server.url) as client:
        with pytest.raises(UsageError) as refused:
            client.explain(CAT)
        assert refused.value.code == "not_found"
        assert client.classify(CAT, top=1)


def test_the_deadline_is_an_option() -> None:
    with ServerProcess("-m", MODEL, "--explain-deadline", "0.2") as server, Client(server.url, timeout=60) as client:
        begun = time.monotonic()
        with Client(server.url, retries=0) as hasty, pytest.raises(ServeError) as late:
            hasty.explain(CAT)  # PyTorch takes longer to be imported
        assert late.value.code in ("not_ready", "deadline_exceeded")
        assert time.monotonic() - begun < 60  # the default is 120 seconds
        assert client.classify(CAT, top=1)
