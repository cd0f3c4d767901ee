"""A model as a folder that classifies by itself, without PyTorch: its graph, input recipe, labels and identity."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

from .checks import checked
from .engine.artefacts import GRAPHS
from .engine.exported import write_card
from .errors import OutputError, UsageError
from .predictor import Predictor


@checked
def export(predictor: Predictor, folder: str | Path) -> Path:
    """Write what `tessella.load("local-dir:FOLDER")` and any other user of OpenVINO or ONNX can read.

    predictor: of `tessella.load(..., engine="openvino")` or `engine="onnxruntime"`, in the precision wanted. The graph
    reads (B,H,W,3) uint8 images, already resized and cropped, and gives logits (B,classes) and embedding (B,width).
    The folder is written completely or not at all. Raises UsageError `bad_argument`, OutputError `output_failed`.
    """
    folder = Path(folder)
    engine = predictor.engine
    if engine.graph is None:
        raise UsageError(
            "bad_argument",
            f"{predictor.name} runs on the engine {engine.plan.engine!r}, which has no file to export",
            hint=f"load it with engine={' or '.join(map(repr, GRAPHS))}",
        )
    check_new(folder)
    stem = engine.graph.stem
    card = dataclasses.replace(predictor.card, identity=predictor.identity)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            for path in engine.graph.parent.glob(f"{stem}.*"):
                shutil.copyfile(path, made / path.name)
            write_card(made, card)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    except OSError as error:
        raise OutputError("output_failed", f"{str(folder)!r} could not be written: {error.strerror or error}") from None
    return folder


def check_new(folder: Path) -> None:
    """Refuse a folder that holds something; a command asks before it loads and converts a model."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise OutputError("output_failed", f"{str(folder)!r} could not be written: {error.strerror}") from None
    if taken:
        raise UsageError("bad_argument", f"{str(folder)!r} exists already", hint="name a new folder, or remove it")
