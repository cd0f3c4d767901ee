"""Export a model to a folder that works without PyTorch: graph, preprocessing, labels and identity."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from .calibration.finding import beside
from .calibration.storage import write_calibration
from .checks import checked
from .engine.artefacts import GRAPHS
from .engine.base import GraphEngine
from .engine.consistency import Consistency, check_exported
from .engine.exported import write_card
from .errors import OutputError, UsageError
from .predictor import Predictor
from .storage import make_folders, publish_folder


@checked
def export(
    predictor: Predictor, folder: str | Path, *, on_checked: Callable[[Consistency], None] | None = None
) -> Path:
    """Write a folder for `tessella.load("local-dir:FOLDER")`, and for other programs that use OpenVINO or ONNX.

    predictor: loaded with `engine="openvino"` or `engine="onnxruntime"`, in the desired precision. The graph takes
    (B,H,W,3) uint8 images, already resized and cropped, and returns logits (B,classes) and embeddings (B,width).
    A calibration of the Predictor is written, too. Before the folder appears, its outputs are compared with the
    model's, for photographs in batches of 1, 2 and 7. on_checked: receives the result of the comparison. The folder is
    written completely or not at all.

    Raises UsageError `bad_argument`, OutputError `output_failed`, and WeightsError `conversion_failed` if the outputs
    differ by more than the tolerance.
    """
    folder = Path(folder)
    engine = predictor.engine
    if not isinstance(engine, GraphEngine):
        raise UsageError(
            "bad_argument",
            f"{predictor.name} uses the engine {engine.plan.engine!r}, which has no file to export",
            hint=f"load it with engine={' or '.join(map(repr, GRAPHS))}",
        )
    check_new(folder)
    card = dataclasses.replace(predictor.card, identity=predictor.identity)
    try:
        make_folders(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            draft = Path(temporary) / folder.name
            draft.mkdir()
            engine.save(draft)
            write_card(draft, card)
            if predictor.calibration is not None:  # not in the manifest: it has its own hash, and may be made again
                write_calibration(beside(draft), predictor.calibration)
            found = check_exported(draft, engine)
            publish_folder(draft, folder)
    except OSError as error:
        raise OutputError("output_failed", f"{str(folder)!r} could not be written: {error.strerror or error}") from None
    if on_checked is not None:
        on_checked(found)
    return folder


def check_new(folder: Path) -> None:
    """Check that a folder is empty or does not exist, before a model is loaded and converted.

    Raises UsageError `bad_argument`, OutputError `output_failed`.
    """
    try:
        occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise OutputError("output_failed", f"{str(folder)!r} could not be written: {error.strerror}") from None
    if occupied:
        raise UsageError(
            "bad_argument", f"{str(folder)!r} already exists", hint="give a new folder, or remove this one"
        )
