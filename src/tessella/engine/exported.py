"""Exported folders: the graph, input specification, labels and identity of a model; read without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from ..data.limits import DEFAULT_LIMITS
from ..data.spec import InputSpec
from ..errors import UsageError, WeightsError
from ..extras import install_command
from ..machine import thread_count
from ..signals import raise_interrupt_behind
from ..text import count_of
from .artefacts import GRAPH_FILES, GRAPHS, find_damaged, seal
from .base import Engine
from .open import open_graph
from .plan import (
    DEFAULT_BATCH,
    MODES,
    Choice,
    Mode,
    Plan,
    check_batch,
    describe_threads,
    missing_packages,
    mode_choice,
    streams_for,
)

FILE = "tessella.json"
FORMAT = 1  # version of the card's format; newer ones are refused
MAX_PIXELS = DEFAULT_LIMITS.intermediate  # in an input image
MAX_BYTES = 32 << 20  # size of the card; 21,843 labels take 1 MB


@dataclass(frozen=True)
class Card:
    """The metadata of an exported model that a Predictor needs besides the graph: the contents of FILE."""

    name: str
    arch: str
    engine: str  # that runs the graph, a key of GRAPHS
    precision: str
    num_classes: int
    width: int  # of the embedding
    spec: InputSpec
    labels: tuple[str, ...]
    synsets: tuple[str, ...]
    identity: Mapping[str, object]  # everything that determines the outputs, except for the settings of a Predictor
    format: int = FORMAT


class _CardFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of FILE with the types and bounds that other code relies on."""

    name: str
    arch: str
    engine: Literal["openvino", "onnxruntime"]
    precision: Literal["float32", "bfloat16", "int8"]
    num_classes: Annotated[int, msgspec.Meta(ge=0)]
    width: Annotated[int, msgspec.Meta(gt=0)]
    spec: dict[str, object]  # read by InputSpec
    labels: tuple[str, ...]
    synsets: tuple[str, ...]
    identity: dict[str, object]
    format: int

    def to_card(self) -> Card:
        """Return the card; raises ValueError if its fields do not fit together."""
        card = Card(**msgspec.structs.asdict(self) | {"spec": InputSpec.from_cfg(self.spec)})
        if len(card.labels) != card.num_classes or len(card.synsets) not in (0, card.num_classes):
            raise ValueError(f"it has {len(card.labels)} labels for {card.num_classes} classes")
        if card.spec.channels != 3 or card.spec.height * card.spec.width > MAX_PIXELS:
            raise ValueError(f"it reads {card.spec.channels} channels of {card.spec.height}x{card.spec.width} px")
        return card


def write_card(folder: Path, card: Card) -> None:
    """Write the card and the hashes of all files into the folder of the graph."""
    rows = dataclasses.asdict(card) | {"spec": card.spec.to_cfg()}
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    (folder / FILE).write_bytes(text.encode("utf-8", "backslashreplace"))  # \\udcNN is JSON's own escape
    seal(folder, {"card": FILE})


def is_exported(folder: Path) -> bool:
    """Return whether `folder` was written by `tessella export`."""
    return (folder / FILE).is_file()


def read_card(folder: Path) -> Card:
    """Return the card of an exported folder after verifying the hashes of its files.

    Raises WeightsError: `hash_mismatch` for a file that was changed, `bad_config` for an unusable card.
    """
    try:
        if (folder / FILE).stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MB")
        rows = json.loads((folder / FILE).read_bytes())
        if isinstance(rows, dict) and type(rows.get("format")) is int and rows["format"] > FORMAT:
            raise WeightsError(
                "bad_config",
                f"{str(folder)!r} was written by a newer Tessella (format {rows['format']}, this one reads {FORMAT})",
                hint="update Tessella, or export the model again with this version",
            )
        card = msgspec.convert(rows, _CardFile, strict=True).to_card()
    except WeightsError as error:
        raise WeightsError("bad_config", error.message, hint=error.hint or "export the model again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            "bad_config", f"{FILE} in {str(folder)!r} cannot be read: {error}", hint="export the model again"
        ) from None
    if damaged := find_damaged(folder, (FILE, *GRAPH_FILES[card.engine])):
        raise WeightsError(
            "hash_mismatch",
            f"{damaged} in {str(folder)!r} is missing or has changed since the export",
            hint="export the model again",
        )
    return card


def open_exported(folder: Path, batch_size: int | None = None, mode: Mode = "throughput") -> tuple[Card, Engine]:
    """Return the card and an engine that is ready to run; mode: as in `make_plan`.

    Raises WeightsError as `read_card` does, UsageError `bad_argument`, or `missing_dependency` if the runtime is not
    installed.
    """
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
    threads = thread_count()
    streams = 1 if mode == "latency" else streams_for(threads)
    batch = batch_size or (1 if mode == "latency" else DEFAULT_BATCH["cpu"])
    rows = (
        Choice("device", "cpu", "exported models run on CPUs"),
        Choice("precision", card.precision, "fixed when the model was exported"),
        Choice("engine", card.engine, "exported for this engine; PyTorch is not needed"),
        mode_choice(mode),
        Choice(
            "batch",
            count_of(batch, "image"),
            "requested" if batch_size else "one image at a time" if mode == "latency" else "default on cpu",
        ),
        Choice("threads", describe_threads(threads, streams), f"on {os.cpu_count()} cores"),
    )
    plan = Plan("cpu", card.precision, card.engine, batch, threads, rows, streams)
    return card, _start(folder, card, plan)


def _start(folder: Path, card: Card, plan: Plan) -> Engine:
    """Open the engine, and run one forward pass to check that the outputs have the shapes that the card states."""
    graph, size = folder / GRAPHS[card.engine], (card.spec.height, card.spec.width)
    try:
        engine = open_graph(graph, plan, size, card.spec)
        shapes = [np.shape(part) for part in engine(np.zeros((1, *size, 3), np.uint8))]
        if shapes != [(1, card.num_classes or card.width), (1, card.width)]:
            raise ValueError(f"it gives {shapes}, the card says {card.num_classes} classes and width {card.width}")
    except WeightsError:
        raise  # such as `unstable_engine`, which another export would not help
    except Exception as error:  # each runtime has its own exceptions for graphs that it cannot read
        raise_interrupt_behind(error)
        raise WeightsError(
            "bad_config", f"{graph} cannot be used with {FILE}: {error}", hint="export the model again"
        ) from None
    return engine
