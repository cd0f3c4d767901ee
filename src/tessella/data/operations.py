"""The operations of training augmentation on Pillow images, and the policies that draw them: RandAugment, 3-Augment.

Pillow receives decoded pixels only; `decode.py` opens files. The blur is Pillow's, three box blurs that approximate a
Gaussian; the 23 taps that timm uses differ by half a grey level on average, and by up to nine at the border of a
photograph.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..errors import UsageError
from .decode import PillowImage

Range = tuple[float, float]


def uniform(bounds: Range, rng: Generator) -> float:
    """Draw a number evenly between two bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()  # takes a quarter of the time of rng.uniform


class Warp(NamedTuple):
    """How geometric operations resample, and the RGB colour with which they fill what lies outside of the image."""

    resample: Image.Resampling
    fillcolor: tuple[int, ...]


Apply = Callable[[PillowImage, float, Warp], PillowImage]
DrawArgument = Callable[[float, Generator], float]  # of a level as a fraction of 10


class Operation(NamedTuple):
    """A change of an image by one argument, and how a policy draws that argument."""

    apply: Apply
    draw_argument: DrawArgument = lambda level, rng: 0.0


class AugmentStep(NamedTuple):
    """A drawn operation: a key of OPERATIONS, and its argument."""

    name: str
    argument: float = 0.0


def apply_steps(image: PillowImage, steps: list[AugmentStep], draw_warp: Callable[[], Warp]) -> PillowImage:
    """Return the image after all steps, in order; `draw_warp` is called before each."""
    for name, argument in steps:
        image = OPERATIONS[name].apply(image, argument, draw_warp())
    return image


def _either_sign(most: float) -> DrawArgument:
    return lambda level, rng: most * level if rng.random() < 0.5 else -most * level


def _factor(level: float, _: Generator) -> float:
    return 0.1 + 1.8 * level


def _factor_increasing(level: float, rng: Generator) -> float:
    return max(0.1, 1 + _either_sign(0.9)(level, rng))


class _Enhancer(Protocol):
    def enhance(self, factor: float) -> PillowImage: ...


def _enhance(enhancer: Callable[[PillowImage], _Enhancer]) -> Apply:
    return lambda image, factor, _: enhancer(image).enhance(factor)


def _affine(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Apply:
    """Return an affine operation.

    matrix: maps (argument, width, height) to the coefficients that take a position in the result to the source.
    """
    return lambda image, v, warp: image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix(v, image.width, image.height),
        resample=warp.resample,
        fillcolor=warp.fillcolor,
    )


def _rotate(image: PillowImage, degrees: float, warp: Warp) -> PillowImage:
    return image.rotate(degrees, resample=warp.resample, fillcolor=warp.fillcolor)


def _posterize(image: PillowImage, bits: float, _: Warp) -> PillowImage:
    mask = 256 - 2 ** (8 - min(max(int(bits), 0), 8))  # ImageOps.posterize refuses 0 bits, which recipes reach
    return image.point([v & mask for v in range(256)] * 3)


def _solarize(image: PillowImage, threshold: float, _: Warp) -> PillowImage:
    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: PillowImage, addend: float, _: Warp) -> PillowImage:
    return image.point([min(v + int(addend), 255) if v < 128 else v for v in range(256)] * 3)


def _blur(image: PillowImage, sigma: float, _: Warp) -> PillowImage:
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _shift_hue(image: PillowImage, turns: float, _: Warp) -> PillowImage:
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(v + int(255 * turns)) % 256 for v in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_color, _contrast = _enhance(ImageEnhance.Color), _enhance(ImageEnhance.Contrast)
_brightness, _sharpness = _enhance(ImageEnhance.Brightness), _enhance(ImageEnhance.Sharpness)

OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(lambda image, *_: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, *_: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, *_: ImageOps.invert(image)),
    # argument: degrees, or the shift as a fraction of the image
    "Rotate": Operation(_rotate, _either_sign(30.0)),
    "ShearX": Operation(_affine(lambda v, w, h: (1, v, 0, 0, 1, 0)), _either_sign(0.3)),
    "ShearY": Operation(_affine(lambda v, w, h: (1, 0, 0, v, 1, 0)), _either_sign(0.3)),
    "TranslateXRel": Operation(_affine(lambda v, w, h: (1, 0, v * w, 0, 1, 0)), _either_sign(0.45)),
    "TranslateYRel": Operation(_affine(lambda v, w, h: (1, 0, 0, 0, 1, v * h)), _either_sign(0.45)),
    # argument: bits kept
    "Posterize": Operation(_posterize, lambda level, rng: int(4 * level)),
    "PosterizeIncreasing": Operation(_posterize, lambda level, rng: 4 - int(4 * level)),
    # argument: the value from which colours are inverted, or the number added to values under 128
    "Solarize": Operation(_solarize, lambda level, rng: min(256, int(256 * level))),
    "SolarizeIncreasing": Operation(_solarize, lambda level, rng: 256 - min(256, int(256 * level))),
    "SolarizeAdd": Operation(_solarize_add, lambda level, rng: min(128, int(110 * level))),
    # argument: a factor; 1 changes nothing
    "Color": Operation(_color, _factor),
    "ColorIncreasing": Operation(_color, _factor_increasing),
    "Contrast": Operation(_contrast, _factor),
    "ContrastIncreasing": Operation(_contrast, _factor_increasing),
    "Brightness": Operation(_brightness, _factor),
    "BrightnessIncreasing": Operation(_brightness, _factor_increasing),
    "Sharpness": Operation(_sharpness, _factor),
    "SharpnessIncreasing": Operation(_sharpness, _factor_increasing),
    "Desaturate": Operation(_color, lambda level, rng: 1 - (0.5 + 0.5 * level)),
    # argument: standard deviation in pixels
    "GaussianBlur": Operation(_blur, lambda level, rng: 0.1 + 1.9 * level),
    "GaussianBlurRand": Operation(_blur, lambda level, rng: uniform((0.1, 2 * level), rng)),
    # argument: turns of the colour circle; used by colour jitter only
    "Hue": Operation(_shift_hue),
}


# --- RandAugment and 3-Augment ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RandomPolicy:
    """Pick `count` operations and apply each with probability `prob`, at a level between 0 (weakest) and `max_level`.

    With `weights`, the probabilities of the operations are proportional to them, and none is picked twice.
    """

    ops: tuple[str, ...]
    levels: tuple[float, ...]  # one per operation
    weights: tuple[float, ...] | None = None
    count: int = 2
    prob: float = 0.5
    level_std: float = 0.0  # standard deviation of the level; over 100, the level is drawn evenly from 0 to its mean
    max_level: float = 10.0

    def draw(self, rng: Generator) -> list[AugmentStep]:
        """Draw the operations for one image, with their arguments."""
        steps = []
        for pick in self._picks(rng):
            if rng.random() < self.prob:
                level = min(max(self._level(self.levels[pick], rng), 0.0), self.max_level) / 10
                steps.append(AugmentStep(self.ops[pick], OPERATIONS[self.ops[pick]].draw_argument(level, rng)))
        return steps

    def _picks(self, rng: Generator) -> list[int]:
        if self.weights is None:
            return rng.integers(len(self.ops), size=self.count).tolist()
        # the shortest of exponential waiting times at these rates: same distribution as rng.choice, 100 us faster
        return np.argsort(rng.standard_exponential(len(self.ops)) / self.weights)[: self.count].tolist()

    def _level(self, mean: float, rng: Generator) -> float:
        if self.level_std > 100:
            return uniform((0.0, mean), rng)
        return rng.normal(mean, self.level_std) if self.level_std else mean


_GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
_UNCHANGED = ("AutoContrast", "Equalize", "Invert", "SolarizeAdd", *_GEOMETRIC)
_CAN_INCREASE = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
RAND_OPS = (*_UNCHANGED, *_CAN_INCREASE)
INCREASING_OPS = (*_UNCHANGED, *(f"{op}Increasing" for op in _CAN_INCREASE))
THREE_OPS = ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
WEIGHTS = {
    "weights": {
        **dict(Rotate=3.0, ShearX=2.0, ShearY=2.0, TranslateXRel=1.0, TranslateYRel=1.0),
        **dict(ColorIncreasing=0.25, SharpnessIncreasing=0.25, AutoContrast=0.25),
        **dict(SolarizeIncreasing=0.05, SolarizeAdd=0.05, ContrastIncreasing=0.05, BrightnessIncreasing=0.05),
        **dict(Equalize=0.05, PosterizeIncreasing=0.05, Invert=0.05),
    },
    "3aw": {
        **dict(SolarizeIncreasing=6.0, Desaturate=6.0, GaussianBlur=6.0, Rotate=3.0, ShearX=2.0, ShearY=2.0),
        **dict(PosterizeIncreasing=1.0, AutoContrast=1.0, ColorIncreasing=1.0, SharpnessIncreasing=1.0),
        **dict(ContrastIncreasing=1.0, BrightnessIncreasing=1.0, Equalize=1.0, Invert=1.0),
    },
}

_NUMBER = r"\d+(?:\.\d+)?"
_OPTIONS = {  # for each kind of policy: the names of its options, and the values that may follow them
    "rand": dict(m=_NUMBER, mstd=_NUMBER, mmax=r"[1-9]\d*", n=r"[1-9]\d*", p=_NUMBER, inc="[01]", t="weights|3aw?"),
    "3a": dict(mstd=_NUMBER),
}
_KNOWN = "rand-m9-mstd0.5-inc1, with any of -n2 -p0.5 -mmax10 -tweights -t3a -t3aw; 3a or 3a-mstd0.5"


@functools.cache
def read_policy(text: str) -> RandomPolicy:
    """Return the policy that a string of timm describes. Raises UsageError `bad_argument` for unknown strings.

    Options of "rand": m level (default 10), mstd its standard deviation (0), mmax the highest level (10), n number of
    operations (2), p the probability of each (0.5), inc1 operations whose effect increases with the level, t another
    set of operations with weights. "3a" picks one of solarize, grayscale and blur.
    """
    kind, *parts = text.split("-")
    if kind not in _OPTIONS:
        unsupported = kind in ("original", "originalr", "v0", "v0r", "augmix")
        raise _invalid_policy(
            text, "AutoAugment and AugMix are not supported" if unsupported else "there is no such policy"
        )
    options = _read_options(text, kind, parts)
    level_std = float(options.get("mstd", 0))
    if kind == "3a":
        three = ("Solarize", "Desaturate", "GaussianBlurRand")
        return RandomPolicy(ops=three, levels=(5.0, 10.0, 10.0), count=1, prob=1.0, level_std=level_std)
    weights = WEIGHTS.get(options.get("t", ""))
    ops: tuple[str, ...] = INCREASING_OPS if options.get("inc") == "1" else RAND_OPS
    if "t" in options:
        ops = tuple(weights) if weights else THREE_OPS
    policy = RandomPolicy(
        ops=ops,
        levels=(float(options.get("m", 10)),) * len(ops),
        weights=tuple(weights.values()) if weights else None,
        count=int(options.get("n", 2)),
        prob=float(options.get("p", 0.5)),
        level_std=level_std,
        max_level=float(options.get("mmax", 10)),
    )
    if policy.prob > 1:
        raise _invalid_policy(text, "p is a probability, from 0 to 1")
    if weights and policy.count > len(ops):
        raise _invalid_policy(text, f"cannot pick {policy.count} of {len(ops)} different operations")
    return policy


def _read_options(text: str, kind: str, parts: list[str]) -> dict[str, str]:
    """Return the value of each option that `parts` set, such as {"m": "9"}."""
    options: dict[str, str] = {}
    for part in parts:
        names = [name for name, value in _OPTIONS[kind].items() if re.fullmatch(f"{name}(?:{value})", part)]
        if not names:
            raise _invalid_policy(text, f"{part!r} cannot be read")
        if names[0] in options:
            raise _invalid_policy(text, f"{names[0]} is given twice")
        options[names[0]] = part.removeprefix(names[0])
    return options


def _invalid_policy(text: str, reason: str) -> UsageError:
    return UsageError("bad_argument", f"auto_augment is {text!r}: {reason}", hint=f"supported: {_KNOWN}")
