"""The process that explains: start, answers, priority, and how it ends."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tessella.serve.explain_process import (
    EXPLAIN_NICE,
    ExplainOrder,
    ExplainProcess,
    ProcessLostError,
)

from .fake_explainer import start_fake
from .processes import descendants
from .servers import wait_for


def order_for(wanted: int | str | None = None, size: int = 8) -> bytes:
    pixels = np.full((size, size, 3), 7, np.uint8)
    order = ExplainOrder(
        source="model",
        fingerprint="0" * 16,
        device="cpu",
        policy="tessella",
        transform="exact",
        confidence=None,
        pixels=pixels,
        picture=pixels,
        wanted=wanted,
        versus=None,
        method="auto",
    )
    return pickle.dumps(order)


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def process() -> Iterator[ExplainProcess]:
    started = start_fake()
    started.wait_until_ready(soon())
    yield started
    started.end()
    assert not started.is_alive()


def test_orders_are_answered(process: ExplainProcess) -> None:
    for wanted in ("cat", 3, None):
        answer = process.ask(order_for(wanted), soon())
        assert answer.explained is not None
        assert answer.explained.values[0] == [7.0, 7.0, 7.0]
        assert answer.explained.reason.endswith(str(wanted))
    failure = process.ask(order_for("refuse"), soon()).failure
    assert failure is not None
    assert (failure.code, failure.reason, failure.is_image) == ("unprocessable", "class", False)


def test_large_orders_are_answered(process: ExplainProcess) -> None:
    answer = process.ask(order_for(size=1500), soon())
    assert answer.explained is not None
    assert process.ask(order_for(), soon()).explained is not None


def test_it_has_a_lower_priority_and_is_the_first_that_the_kernel_ends(process: ExplainProcess) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, own + EXPLAIN_NICE)
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "500\n"


def test_a_deadline_leaves_the_process_busy_until_it_is_ended(process: ExplainProcess) -> None:
    with pytest.raises(TimeoutError):
        process.ask(order_for("hang"), soon(0.2))
    assert process.is_alive()
    begun = time.monotonic()
    process.end()
    assert time.monotonic() - begun < 60  # it would have been busy for 600 seconds


def test_a_process_that_ends_is_noticed(process: ExplainProcess) -> None:
    with pytest.raises(ProcessLostError, match="5"):
        process.ask(order_for("die"), soon())
    assert not process.is_alive()


def test_a_process_that_is_killed_is_noticed(process: ExplainProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ProcessLostError, match="signal 9"):
        process.ask(order_for("hang"), soon())


def test_signals_of_a_terminal_or_supervisor_do_not_end_it(process: ExplainProcess) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    assert process.ask(order_for(), soon()).explained is not None


def test_a_process_that_does_not_start_is_noticed(tmp_path: Path) -> None:
    process = ExplainProcess("sys.exit(4)", threads=1)
    with pytest.raises(ProcessLostError, match="4"):
        process.wait_until_ready(soon())


def test_the_reason_why_a_process_does_not_start_reaches_the_log() -> None:
    code = "from tessella.serve.explain_loop import run_worker; import json; run_worker(lambda: json.loads('no torch'))"
    process = ExplainProcess(code, threads=1)
    with pytest.raises(ProcessLostError, match="JSONDecodeError"):
        process.wait_until_ready(soon())
    assert not process.is_alive()


@pytest.mark.parametrize("answer", [b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 8])
def test_an_answer_that_makes_no_sense_ends_the_process(answer: bytes) -> None:
    code = f"import os, time; os.write(int(sys.argv[1]), {answer!r}); time.sleep(600)"
    process = ExplainProcess(code, threads=1)
    with pytest.raises(ProcessLostError):
        process.wait_until_ready(soon())
    assert not process.is_alive()


def test_an_answer_in_pieces_is_put_together() -> None:
    body = b'{"explained":null,"failure":null}'
    code = (
        "import os, time\n"
        f"for byte in {len(body).to_bytes(8, 'little') + body!r}:\n"
        "    os.write(int(sys.argv[1]), bytes([byte])); time.sleep(0.005)\n"
        "time.sleep(600)"
    )
    process = ExplainProcess(f"exec({code!r})", threads=1)
    with pytest.raises(TimeoutError):
        process.wait_until_ready(soon(0.01))
    process.wait_until_ready(soon())
    assert process.is_ready
    process.end()


def test_it_ends_with_the_server_even_while_it_computes() -> None:
    code = (
        "import pickle, sys, time; from tests.serve.test_explain_process import *\n"
        "process = start_fake(); process.wait_until_ready(soon())\n"
        "print(process.pid, flush=True)\n"
        "process.ask(order_for('hang'), soon())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert pid in descendants(server.pid)
        server.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())
