"""Pixels out of the float32 tensors that clients of model servers send.

Such clients prepare images themselves, and each expects the server's model to read the numbers in its own scaling. Here
the scaling is never guessed from the numbers: the client's choice of a model name says it. Every scaling can be undone,
so that the model is fed as with an image file of its size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..results import FloatArray
from .problems import RequestError

DEFAULT_SCALING = "none"
_VGG_MEAN = np.array((123, 117, 104), np.float32)[:, None, None]


def _from_normalized(values: FloatArray, spec: InputSpec) -> FloatArray:
    mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (spec.mean, spec.std))
    return cast("FloatArray", 255 * (values * std + mean))


SCALINGS: dict[str, Callable[[FloatArray, InputSpec], FloatArray]] = {
    DEFAULT_SCALING: lambda values, spec: values,  # 0 to 255
    "unit": lambda values, spec: 255 * values,  # 0 to 1
    "inception": lambda values, spec: 127.5 * (values + 1),  # -1 to 1
    "vgg": lambda values, spec: cast("FloatArray", values + _VGG_MEAN),  # 0 to 255, less the mean of the channel
    "normalized": _from_normalized,  # (value / 255 - mean) / std, with the mean and std of the model
}


def pixels_from_floats(values: FloatArray, scaling: str, spec: InputSpec) -> Pixels:
    """Return the pixels that were scaled: (N,3,H,W) float32 RGB -> (N,H,W,3) uint8, rounded to the nearest level.

    scaling: a key of `SCALINGS`. Raises RequestError `bad_request` if a value is not within 0 to 255 without its
    scaling, or if an image without scaling has fractions between 0 and 1 only: then it was scaled.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are refused below
        levels = SCALINGS[scaling](values, spec)
    if not bool(((levels > -0.5) & (levels < 255.5)).all()):  # also refuses NaN
        raise RequestError(
            "bad_request",
            "The FP32 data has values outside of the range of its scaling: append '.unit', '.inception', '.vgg' or"
            " '.normalized' to the name of the model for data that does not hold pixel values from 0 to 255.",
        )
    if scaling == DEFAULT_SCALING and _looks_scaled(values):
        raise RequestError(
            "bad_request",
            "An image of the FP32 data has values between 0 and 1 only: append '.unit' to the name of the model.",
        )
    return np.ascontiguousarray(np.rint(levels).astype(np.uint8).transpose(0, 2, 3, 1))


def _looks_scaled(values: FloatArray) -> bool:
    """Return whether an image has no value above 1, but fractions, which an image with 256 levels does not have."""
    dark = values[values.max(axis=(1, 2, 3)) <= 1]
    return bool((dark != np.rint(dark)).any())
