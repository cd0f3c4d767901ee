"""The test that a model must pass before it answers requests, which is its warm-up as well."""

from __future__ import annotations

import numpy as np

from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..engine.base import Engine
from ..errors import WeightsError
from ..results import NON_FINITE, FloatArray, is_finite

IMAGES = 4  # crops of photographs in this package
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.1}  # of the spread of the outputs


def self_test(engine: Engine, spec: InputSpec) -> None:
    """Run photographs one at a time, then as a batch on every stream at once, and compare the outputs.

    A damaged engine gives NaN, depends on the neighbors of an image, or returns the outputs of another one.
    Raises WeightsError `non_finite` or `conversion_failed`.
    """
    images = sample_images(spec, IMAGES)
    single = [_joined(engine.run_stream(images[i : i + 1])) for i in range(IMAGES)]
    expected = np.concatenate(single)
    for outputs in engine.imap([images] * engine.plan.streams, split_batch=False):
        found = _joined(outputs)
        if not is_finite(found) or not is_finite(expected):
            raise WeightsError("non_finite", NON_FINITE)
        if found.shape != expected.shape:
            raise WeightsError("conversion_failed", f"a batch gives {found.shape}, single images {expected.shape}")
        error = float(np.abs(found - expected).max())
        bound = TOLERANCE[engine.plan.precision] * float(expected.std())
        if error > bound:
            raise WeightsError(
                "conversion_failed",
                f"the outputs of a batch differ from those of its images by {error:.3g}, at most {bound:.3g} is normal",
            )


def _joined(outputs: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Return logits (N,classes) and embeddings (N,...) side by side, (N,values)."""
    return np.concatenate([part.reshape(len(part), -1) for part in outputs], axis=1)
