"""An exported folder: graph, input specification, labels and identity of a model; read without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from ..data.limits import DEFAULT_LIMITS
from ..data.spec import InputSpec
from ..errors import UsageError, WeightsError
from ..extras import install_command
from ..machine import available_cores
from .artefacts import GRAPHS, find_damaged, seal
from .base import Engine
from .open import open_graph
from .plan import DEFAULT_BATCH, MODES, Choice, Mode, Plan, check_batch, missing_packages, mode_choice, streams_for

FILE = "tessella.json"
FORMAT = 1  # of the card; newer formats are refused
MAX_PIXELS = DEFAULT_LIMITS.intermediate  # of the model's input
MAX_BYTES = 32 << 20  # of the card: 21,843 labels take 1 MB


@dataclass(frozen=True)
class Card:
    """What a Predictor needs to know about a model besides its graph; the contents of FILE."""

    name: str
    arch: str
    engine: str  # the one that reads the graph, a key of GRAPHS
    precision: str
    num_classes: int
    width: int  # of the embedding
    spec: InputSpec
    labels: tuple[str, ...]
    synsets: tuple[str, ...]
    identity: Mapping[str, Any]  # everything that decides the numbers, except for the settings of a Predictor
    format: int = FORMAT


class _CardFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of FILE with the types and bounds that the rest of the program relies on."""

    name: str
    arch: str
    engine: Literal["openvino", "onnxruntime"]
    precision: Literal["float32", "bfloat16", "int8"]
    num_classes: Annotated[int, msgspec.Meta(ge=0)]
    width: Annotated[int, msgspec.Meta(gt=0)]
    spec: dict[str, Any]  # read by InputSpec
    labels: tuple[str, ...]
    synsets: tuple[str, ...]
    identity: dict[str, Any]
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
    """Write the card into the folder of the graph, and the hashes of all its files."""
    rows = dataclasses.asdict(card) | {"spec": card.spec.to_cfg()}
    (folder / FILE).write_text(json.dumps(rows, indent=1, ensure_ascii=False))
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
                hint="pip install --upgrade tessella",
            )
        card = msgspec.convert(rows, _CardFile, strict=True).to_card()
    except WeightsError as error:
        raise WeightsError("bad_config", error.message, hint=error.hint or "export the model again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            "bad_config", f"{FILE} in {str(folder)!r} cannot be read: {error}", hint="export the model again"
        ) from None
    if damaged := find_damaged(folder, (FILE, GRAPHS[card.engine])):
        raise WeightsError(
            "hash_mismatch", f"{damaged} in {str(folder)!r} is not as it was written", hint="export the model again"
        )
    return card


def open_exported(folder: Path, batch_size: int | None = None, mode: Mode = "throughput") -> tuple[Card, Engine]:
    """Return the card and a running engine; mode as in `make_plan`.

    Raises WeightsError as `read_card`, UsageError `missing_dependency` if the runtime is not installed.
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
    threads = available_cores()
    streams = 1 if mode == "latency" else streams_for(threads)
    batch = batch_size or (1 if mode == "latency" else DEFAULT_BATCH["cpu"])
    rows = (
        Choice("device", "cpu", "exported models run on CPUs"),
        Choice("precision", card.precision, "exported so"),
        Choice("engine", card.engine, "exported for it; PyTorch is not needed"),
        mode_choice(mode),
        Choice("batch", f"{batch} images", "requested" if batch_size else "default on cpu"),
        Choice("threads", f"{threads} threads, {streams} at a time", f"of {os.cpu_count()} cores"),
    )
    plan = Plan("cpu", card.precision, card.engine, batch, threads, rows, streams)
    return card, _start(folder, card, plan)


def _start(folder: Path, card: Card, plan: Plan) -> Engine:
    """Open the engine, and run one pass to check that the graph is the one that the card describes."""
    graph, size = folder / GRAPHS[card.engine], (card.spec.height, card.spec.width)
    try:
        engine = open_graph(graph, plan, size, card.spec)
        shapes = [np.shape(part) for part in engine(np.zeros((1, *size, 3), np.uint8))]
        if shapes != [(1, card.num_classes or card.width), (1, card.width)]:
            raise ValueError(f"it gives {shapes}, the card says {card.num_classes} classes and width {card.width}")
    except Exception as error:  # each runtime has its own errors for graphs that it cannot read
        raise WeightsError(
            "bad_config", f"{graph} cannot be used with {FILE}: {error}", hint="export the model again"
        ) from None
    return engine
