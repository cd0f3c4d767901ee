"""What runs in the process that explains: orders arrive on a socket, and are carried out one after another."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from .explain_process import HEAD_BYTES, MAX_TEXT, ExplainFailure, ExplainOrder, WorkerAnswer

_OOM_SCORE = "500"  # out of 1000


def run_explainer() -> None:
    """Explain what is ordered on the descriptor `sys.argv[1]`, at the priority `sys.argv[2]`."""
    run_worker(_load)


def _load() -> Callable[[ExplainOrder], WorkerAnswer]:
    from .explain_worker import OrderRunner  # imports PyTorch

    return OrderRunner().answer


def run_worker(load: Callable[[], Callable[[ExplainOrder], WorkerAnswer]]) -> None:
    """Answer orders until the server closes its end, which ends this process at once, whatever it is doing.

    load: returns the function that answers an order; it must not raise.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a supervisor: the server ends this process
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, AttributeError):
        os.nice(int(sys.argv[2]))
    with suppress(OSError):  # if memory runs out, the kernel ends this process and not the server (Linux)
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    channel = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_read, args=(channel, orders), daemon=True).start()
    try:
        answer = load()
    except BaseException:  # such as an incomplete installation of PyTorch
        failure = ExplainFailure("internal_error", traceback.format_exc()[-MAX_TEXT:], is_image=False)
        _send(channel, WorkerAnswer(failure=failure))
        raise
    _send(channel, WorkerAnswer())
    while True:
        _send(channel, answer(pickle.loads(orders.get())))


def _read(channel: socket.socket, orders: queue.SimpleQueue[bytes]) -> None:
    with suppress(OSError), channel.makefile("rb") as file:
        while len(head := file.read(HEAD_BYTES)) == HEAD_BYTES:
            orders.put(file.read(int.from_bytes(head, "little")))
    os._exit(0)


def _send(channel: socket.socket, answer: WorkerAnswer) -> None:
    body = msgspec.json.encode(answer)
    channel.sendall(len(body).to_bytes(HEAD_BYTES, "little") + body)
