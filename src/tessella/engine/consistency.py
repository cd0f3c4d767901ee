"""How far the outputs of an engine are from those of a reference, on photographs and for several batch sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.decode import Pixels
from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..errors import WeightsError
from ..extras import is_installed
from ..text import count_of
from .base import ArrayOutputs, Engine
from .difference import TOLERANCE, relative_difference
from .exported import open_exported

IMAGES = 7  # crops of the photographs in this package
BATCHES = (1, 2, 7)  # one image, a batch that is not filled at the end, and all images at once


@dataclass(frozen=True)
class Consistency:
    """The comparison of an engine with a reference.

    errors: the largest difference by batch size, relative to the standard deviation of the outputs. agreement: fraction
    of the images with the same top class, 1 without classes. reference: what the engine was compared with.
    """

    errors: dict[int, float]
    agreement: float
    images: int
    precision: str
    reference: str

    @property
    def error(self) -> float:
        """The largest difference of all batch sizes."""
        return max(self.errors.values())

    @property
    def passes(self) -> bool:
        """Whether the largest difference is within the tolerance of the precision; NaN never is."""
        return all(error <= TOLERANCE[self.precision] for error in self.errors.values())

    def __str__(self) -> str:
        by_batch = ", ".join(f"{error:.1e} (batch {size})" for size, error in self.errors.items())
        return (
            f"largest difference {by_batch} of the standard deviation, "
            f"{100 * self.agreement:.0f} % same top class, {count_of(self.images, 'photograph')}, compared with "
            f"{self.reference}"
        )


def run_batches(engine: Engine, images_NHWC: Pixels, batch_size: int) -> ArrayOutputs:
    """Return logits (N,classes) and embeddings (N,width) of uint8 images, computed `batch_size` at a time."""
    parts = [engine(images_NHWC[start : start + batch_size]) for start in range(0, len(images_NHWC), batch_size)]
    logits, embeddings = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(embeddings)


def reference_outputs(source: Engine, spec: InputSpec, images_NHWC: Pixels) -> tuple[ArrayOutputs, str]:
    """Return the outputs that a model should give for uint8 images, and the name of what computed them.

    The outputs are logits (N,classes) and embeddings (N,width). The reference is the unchanged model in PyTorch, if
    `source` runs in float32 and PyTorch is installed; else it is `source` itself, one image at a time.
    """
    plan, network = source.plan, source.network
    if network is None or plan.precision != "float32" or plan.engine == "eager" or not is_installed("torch"):
        return run_batches(source, images_NHWC, 1), f"{plan.engine}, one image at a time"
    from .eager import EagerEngine

    eager = EagerEngine(network, dataclasses.replace(plan, engine="eager", device="cpu"), source.size, spec)
    return run_batches(eager, images_NHWC, 1), "the unchanged model in PyTorch"


def compare_engine(engine: Engine, spec: InputSpec, source: Engine | None = None) -> Consistency:
    """Compare `engine` with the reference of `source` (None: of the engine itself) on photographs in this package."""
    images_NHWC = sample_images(spec, IMAGES)
    expected, reference = reference_outputs(source or engine, spec, images_NHWC)
    found = {size: run_batches(engine, images_NHWC, size) for size in BATCHES}
    same = [(logits.argmax(1) == expected[0].argmax(1)).mean() for logits, _ in found.values() if logits.shape[1:]]
    return Consistency(
        errors={size: relative_difference(outputs, expected) for size, outputs in found.items()},
        agreement=float(min(same, default=1.0)),
        images=IMAGES,
        precision=engine.plan.precision,
        reference=reference,
    )


def check_exported(folder: Path, source: Engine) -> Consistency:
    """Compare the exported model in `folder` with the engine that it was exported from.

    Raises WeightsError `conversion_failed` if a difference is larger than the tolerance of the precision, and the
    errors of `open_exported`.
    """
    card, engine = open_exported(folder)
    found = compare_engine(engine, card.spec, source)
    if not found.passes:
        raise WeightsError(
            "conversion_failed",
            f"the exported model differs from {card.name}: {found}; at most {TOLERANCE[found.precision]:g} is allowed",
            hint="nothing was written; export for the other engine, or in float32",
        )
    return found
