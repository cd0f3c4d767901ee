"""A folder that classifies by itself: graph, input recipe, labels and identity; read without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.limits import DEFAULT_LIMITS
from ..data.spec import InputSpec
from ..errors import UsageError, WeightsError
from ..extras import install_command
from .artefacts import first_damaged, seal
from .base import Engine
from .plan import DEFAULT_BATCH, MODES, PRECISIONS, Choice, Mode, Plan, check_batch, missing_packages, streams_for

FILE = "tessella.json"
GRAPHS = {"openvino": "model.xml", "onnxruntime": "model.onnx"}
FORMAT = 1  # of the card; a reader refuses what is newer
MAX_PIXELS = DEFAULT_LIMITS.intermediate  # of the model's input
MAX_BYTES = 32 << 20  # of the card: 21,843 labels take 1 MB


@dataclass(frozen=True)
class Card:
    """What a Predictor needs to know of a model besides its graph."""

    name: str
    arch: str
    engine: str  # the one that reads the graph, a key of GRAPHS
    precision: str
    num_classes: int
    width: int  # of the embedding
    spec: InputSpec
    labels: tuple[str, ...]
    synsets: tuple[str, ...]
    identity: Mapping[str, Any]  # what decides the numbers, besides the settings of a Predictor
    format: int = FORMAT


def write_card(folder: Path, card: Card) -> None:
    """The card beside the graph that is there already, and the hashes of both."""
    rows = dataclasses.asdict(card) | {"spec": card.spec.to_cfg()}
    (folder / FILE).write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    seal(folder, {"card": FILE})


def is_exported(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_card(folder: Path) -> Card:
    """Raises WeightsError: `hash_mismatch` where a file is not as it was written, `bad_config` for an unusable card."""
    try:
        if (folder / FILE).stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MB")
        rows = json.loads((folder / FILE).read_bytes())
        if type(rows["format"]) is int and rows["format"] > FORMAT:
            raise WeightsError(
                "bad_config",
                f"{str(folder)!r} was written by a newer Tessella (format {rows['format']}, this one reads {FORMAT})",
                hint="pip install --upgrade tessella",
            )
        card = _checked(rows)
    except WeightsError as error:
        raise WeightsError("bad_config", error.message, hint=error.hint or "export the model again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            "bad_config", f"{FILE} in {str(folder)!r} cannot be read: {error}", hint="export the model again"
        ) from None
    if damaged := first_damaged(folder, (FILE, GRAPHS[card.engine])):
        raise WeightsError(
            "hash_mismatch", f"{damaged} in {str(folder)!r} is not as it was written", hint="export the model again"
        )
    return card


def _checked(rows: dict[str, Any]) -> Card:
    """The card, every field of the type and size that the rest of the program relies on; ValueError for any other."""
    for key in ("labels", "synsets"):
        if not isinstance(rows[key], list) or not all(isinstance(text, str) for text in rows[key]):
            raise ValueError(f"{key} is not a list of strings")
    texts = {key: tuple(rows[key]) for key in ("labels", "synsets")}
    card = Card(**rows | texts | {"spec": InputSpec.from_cfg(rows["spec"])})
    fits = {
        "format": type(card.format) is int,
        "name": isinstance(card.name, str),
        "arch": isinstance(card.arch, str),
        "engine": isinstance(card.engine, str) and card.engine in GRAPHS,
        "precision": isinstance(card.precision, str) and card.precision in PRECISIONS,
        "num_classes": type(card.num_classes) is int and card.num_classes >= 0,
        "width": type(card.width) is int and card.width > 0,
        "labels": len(card.labels) == card.num_classes,
        "synsets": len(card.synsets) in (0, card.num_classes),
        "identity": isinstance(card.identity, dict),
        "spec": card.spec.channels == 3 and card.spec.height * card.spec.width <= MAX_PIXELS,
    }
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise ValueError(f"{', '.join(wrong)} cannot be used")
    return card


def open_exported(folder: Path, batch_size: int | None = None, mode: Mode = "throughput") -> tuple[Card, Engine]:
    """The card and a running engine. Raises WeightsError as `read_card`, UsageError where the runtime is missing."""
    if mode not in MODES:
        raise UsageError("bad_argument", f"mode is {mode!r}, expected {' or '.join(MODES)}")
    check_batch(batch_size)
    card = read_card(folder)
    if missing := [name for name in missing_packages(card.engine) if name == card.engine]:
        raise UsageError(
            "missing_dependency",
            f"{str(folder)!r} needs {' and '.join(missing)}",
            hint=install_command(missing),
        )
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    streams = 1 if mode == "latency" else streams_for(threads)
    batch = batch_size or (1 if mode == "latency" else DEFAULT_BATCH["cpu"])
    rows = (
        Choice("device", "cpu", "what exported models run on"),
        Choice("precision", card.precision, "exported so"),
        Choice("engine", card.engine, "exported for it; PyTorch is not needed"),
        Choice("mode", mode, "asked for" if mode == "latency" else "many images; latency is for one at a time"),
        Choice("batch", f"{batch} images", "asked for" if batch_size else "default on cpu"),
        Choice("threads", f"{threads} threads, {streams} at a time", f"of {os.cpu_count()} cores"),
    )
    plan = Plan("cpu", card.precision, card.engine, batch, threads, rows, streams)
    return card, _start(folder, card, plan)


def _start(folder: Path, card: Card, plan: Plan) -> Engine:
    """The engine, after one pass that shows whether the graph is what the card says."""
    graph, size = folder / GRAPHS[card.engine], (card.spec.height, card.spec.width)
    try:
        engine = _open_graph(graph, card, plan, size)
        shapes = [np.shape(part) for part in engine(np.zeros((1, *size, 3), np.uint8))]
        if shapes != [(1, card.num_classes or card.width), (1, card.width)]:
            raise ValueError(f"it gives {shapes}, the card says {card.num_classes} classes and width {card.width}")
    except Exception as error:  # each runtime has its own errors for graphs that it cannot read
        raise WeightsError(
            "bad_config", f"{graph} cannot be used with {FILE}: {error}", hint="export the model again"
        ) from None
    return engine


def _open_graph(graph: Path, card: Card, plan: Plan, size: tuple[int, int]) -> Engine:
    if card.engine == "openvino":
        from .openvino import OpenVinoEngine

        return OpenVinoEngine(graph, plan, size, card.spec)
    from .onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, plan, size, card.spec)
