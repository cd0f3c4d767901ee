"""A process that explains without PyTorch: the class that an order asks for says what happens.

"hang" never answers, "die" ends the process, "die once" does so only in the first one, "refuse" and "break" are errors
of the request and of the server, "no result" is an error of the image. All else is answered with a map that contains
the first pixel of the image.
"""

from __future__ import annotations

import base64
import os
import sys
import time
from pathlib import Path

import numpy as np

from tessella.data.decode import encode_png
from tessella.serve.explain_loop import run_worker
from tessella.serve.explain_process import (
    ClassScore,
    ExplainedImage,
    ExplainFailure,
    ExplainOrder,
    ExplainProcess,
    MapScore,
    WorkerAnswer,
)

COMMAND = "from tests.serve.fake_explainer import main; main()"
FOLDER = "TESSELLA_FAKE_EXPLAINER"  # with the files "died", and "slow start" and "no start", which tests make
SECONDS = 0.25  # that every explanation claims to take


def main() -> None:
    run_worker(_start)


def _start():  # type: ignore[no-untyped-def]
    folder = Path(os.environ.get(FOLDER, os.devnull))
    if (folder / "slow start").exists():
        time.sleep(1.5)
    if (folder / "no start").exists():
        os._exit(3)
    assert "torch" not in sys.modules
    return lambda order: _answer(order, folder)


def _answer(order: ExplainOrder, folder: Path) -> WorkerAnswer:
    wanted = order.wanted
    if wanted == "hang":
        time.sleep(600)
    if wanted == "die" or (wanted == "die once" and not (folder / "died").exists()):
        if wanted == "die once":
            (folder / "died").touch()
        os._exit(5)
    if wanted == "slow":
        with (folder / "slow").open("a") as file:  # a character per order, which tests count
            file.write(".")
        time.sleep(0.5)
    if wanted == "refuse":
        return WorkerAnswer(failure=ExplainFailure("unprocessable", "/home/user/secret", False, "class"))
    if wanted == "break":
        return WorkerAnswer(failure=ExplainFailure("internal_error", "Traceback: /home/user/secret", False))
    if wanted == "no result":
        return WorkerAnswer(failure=ExplainFailure("non_finite", "/home/user/secret", True))
    return WorkerAnswer(explained(order))


def explained(order: ExplainOrder) -> ExplainedImage:
    """An answer whose map has the first pixel of the image, and which says what was ordered."""
    target = ClassScore(3, "cat", 0.75)
    return ExplainedImage(
        top=[target, ClassScore(5, "dog", 0.2)],
        target=target,
        versus=None if order.versus is None else ClassScore(5, str(order.versus), 0.2),
        method="exact",
        methods=["exact", "occlusion"],
        reason=f"{order.source} {order.fingerprint} {order.method} {order.wanted}",
        layer="",
        total=6.0,
        values=[[float(value) for value in order.pixels[0, 0]], [1.0, 2.0, 3.0]],
        scores=[MapScore("deletion", "lower", 0.5, 1.0, 2.0, True)],
        faithful=True,
        verdict="faithful",
        verdict_reason="better than random maps",
        overlay=base64.b64encode(encode_png(np.ascontiguousarray(order.picture))).decode(),
        load_seconds=0.0,
        seconds=SECONDS,
    )


def start_fake(*, threads: int = 1) -> ExplainProcess:
    """Start such a process, in place of `ExplainProcess`."""
    return ExplainProcess(COMMAND, threads=threads)
