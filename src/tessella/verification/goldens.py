"""Golden outputs: what the built-in models give for the photographs in this package, and what the transform gives.

They were computed by `scripts/bench golden`: the outputs by the unchanged models in PyTorch in float64, and the pixels
by Pillow alone. So neither the engines nor the transform of this package made the numbers that they are compared with.
"""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import NamedTuple, TypedDict

from ..data.decode import Pixels
from ..data.samples import NAMES
from ..data.spec import InputSpec
from .findings import PhotographAnswer

FILE = "golden.json"
SIGNIFICANT_DIGITS = 7  # of stored outputs: float32 has between 6 and 9


class GoldenModel(TypedDict):
    """The golden outputs of a model: its name, and for each photograph the fields of a PhotographAnswer."""

    name: str
    answers: list[dict[str, list[float]]]


class Goldens(NamedTuple):
    """models: by fingerprint, for the default policy and transform in float32. pixels: SHA-256 by input, see `key_of`.

    The pixels are those of the photographs, in the order of `data.samples.NAMES`.
    """

    models: dict[str, GoldenModel]
    pixels: dict[str, list[str]]


@functools.cache
def read_goldens() -> Goldens:
    """Return the golden outputs in this package."""
    values = json.loads((resources.files("tessella.verification") / FILE).read_text("utf-8"))
    return Goldens(values["models"], values["pixels"])


def golden_answers(fingerprint: str) -> list[PhotographAnswer]:
    """Return the answers that a model with this fingerprint must give, in the order of NAMES; [] if none are known."""
    model = read_goldens().models.get(fingerprint)
    rows = zip(NAMES, model["answers"], strict=True) if model else ()
    return [PhotographAnswer(name, "", tuple(row["logits"]), tuple(row["embedding"])) for name, row in rows]


def key_of(spec: InputSpec) -> str:
    """Return the part of a spec that determines pixels, as text: "96x96 bicubic 1 center"."""
    return f"{spec.width}x{spec.height} {spec.interpolation} {spec.crop_pct:g} {spec.crop_mode}"


def pixel_hash(pixels_HWC: Pixels) -> str:
    """Return the SHA-256 of (H,W,3) uint8 pixels and their shape."""
    return hashlib.sha256(f"{pixels_HWC.shape}".encode() + pixels_HWC.tobytes()).hexdigest()


def photograph_paths() -> list[Path]:
    """Return the paths of the photographs in this package, in the order of NAMES."""
    folder = Path(str(resources.files("tessella.data") / "photographs"))
    return [folder / name for name in NAMES]
