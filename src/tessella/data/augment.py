"""Training augmentation of one image, with timm's meaning: a pure function of (image, generator).

The order is crop, flips, RandAugment or 3-Augment, colour jitter, grey, blur; normalising and random erasing
(`mix.py`) come after. What is done to an image is first drawn, as a list of `Step`s, and then done: where nothing is
drawn, nothing is converted. Pillow gets decoded pixels only; files are read by `decode.py`.

The blur is Pillow's, three box blurs that stand for a Gaussian; the 23 taps that timm uses give half a grey level more
or less on average, and up to nine at the border of a photograph.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..checks import check_fields
from ..errors import ImageError, UsageError
from .decode import DEFAULT_LIMITS, ImageSource, Limits, PillowImage, Pixels, Policy, open_image
from .mix import Erasing, erase
from .transforms import INTERPOLATIONS, InputSpec, geometry, tensor_steps

if TYPE_CHECKING:
    from torch import Tensor

Range = tuple[float, float]

CROPS = ("rrc", "rkrc", "rkrr", "pad", "none")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to an image; UsageError `bad_argument` for values that cannot be read.

    crop: "rrc" resizes a random box; "rkrc" and "rkrr" resize the image, at times a little larger or distorted, and
    take the middle or a random place, with a reflected border where it is too small; "pad" puts a reflected border
    around an image of the input's size (another is resized to cover it) and takes a random place; "none" takes the
    middle, as evaluation with crop_pct 1.
    """

    crop: Literal["rrc", "rkrc", "rkrr", "pad", "none"] = "rrc"
    scale: Range | None = None  # share of the image's area that is seen; None: 0.08 to 1, of rkrc and rkrr 0.8 to 1
    ratio: Range | None = None  # width over height, evenly on a logarithmic scale; None: 3/4 to 4/3, or 0.9 to 1/0.9
    padding: int = 4  # pixels; of "pad"
    interpolation: str = "random"  # bilinear or bicubic, drawn anew each time; or one of INTERPOLATIONS
    hflip: float = 0.5  # probabilities
    vflip: float = 0.0
    auto_augment: str = ""  # such as "rand-m9-mstd0.5-inc1" or "3a"; see `read_policy`
    color_jitter: float | tuple[float, ...] = 0.0  # of brightness, contrast, saturation and, only if given, hue
    color_jitter_prob: float = 1.0
    force_color_jitter: bool = False  # also beside auto_augment, which else takes its place, save where it has "3a"
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check(self.crop in CROPS, "crop", self.crop, f"one of {', '.join(CROPS)}")
        for name in ("scale", "ratio"):
            given = getattr(self, name)
            ok = given is None or (len(given) == 2 and 0 < given[0] <= given[1] < math.inf)
            _check(ok, name, given, "two positive numbers, the smaller first")
        _check(self.padding >= 0, "padding", self.padding, "0 or more pixels")
        names = ("random", *INTERPOLATIONS)
        _check(self.interpolation in names, "interpolation", self.interpolation, f"one of {', '.join(names)}")
        for name in ("hflip", "vflip", "color_jitter_prob", "grayscale_prob", "blur_prob"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability, 0 to 1")
        strengths = _strengths(self.color_jitter)
        ok = len(strengths) == 3 or (len(strengths) == 4 and strengths[3] <= 0.5)
        ok = ok and all(0 <= strength < math.inf for strength in strengths)
        _check(ok, "color_jitter", self.color_jitter, "a number from 0, or three, or three and a hue of 0 to 0.5")
        if self.auto_augment:
            read_policy(self.auto_augment)

    @property
    def ranges(self) -> tuple[Range, Range]:
        """scale and ratio, or what the crop usually has."""
        scale, ratio = ((0.08, 1.0), (3 / 4, 4 / 3)) if self.crop == "rrc" else ((0.8, 1.0), (0.9, 1 / 0.9))
        return self.scale or scale, self.ratio or ratio

    @property
    def jitters(self) -> bool:
        """Whether images can get colour jitter."""
        wanted = not self.auto_augment or self.force_color_jitter or "3a" in self.auto_augment
        return bool(self.color_jitter) and wanted


def as_pillow(pixels: Pixels) -> PillowImage:
    return Image.fromarray(pixels)


def _check(ok: bool, name: str, value: Any, expected: str) -> None:
    if not ok:
        raise UsageError("bad_argument", f"{name} is {value!r}, expected {expected}")


def _strengths(color_jitter: float | tuple[float, ...]) -> tuple[float, ...]:
    return color_jitter if isinstance(color_jitter, tuple) else (color_jitter,) * 3


@dataclass(frozen=True)
class TrainTransform:
    """One image of any kind -> what a model learns from; `create_transform(is_training=True)` returns it."""

    spec: InputSpec
    config: Augmentation = Augmentation()
    policy: Policy = "tessella"
    limits: Limits = DEFAULT_LIMITS
    erasing: Erasing = field(default_factory=Erasing)  # of normalised tensors only: `pixels` knows nothing of it
    normalized: bool = True  # False: uint8 tensors

    def __post_init__(self) -> None:
        if self.spec.channels != 3:
            raise UsageError("bad_argument", f"the model reads {self.spec.channels} channels, images have 3 (RGB)")

    def pixels(self, source: ImageSource, rng: Generator) -> Pixels:
        """(spec.height, spec.width, 3) uint8, augmented. Raises ImageError as `decode` does, and `too_elongated`."""
        spec, config = self.spec, self.config
        whole = open_image(source, policy=self.policy, mode="fast", limits=self.limits).pixels()
        cut = draw_cut(whole.shape[0], whole.shape[1], spec, config, rng)
        if cut.height * cut.width > self.limits.intermediate:
            raise ImageError(
                "too_elongated",
                f"the image has {whole.shape[1]:,} x {whole.shape[0]:,} pixels (width x height) and would be resized "
                f"to {cut.width:,} x {cut.height:,}, the limit is {self.limits.intermediate:,} pixels",
                hint="crop it first",
            )
        image = cut_out(whole, cut, spec, _resampling(config, rng))
        if steps := draw_steps(config, rng):
            fill = tuple(min(round(255 * mean), 255) for mean in spec.mean)
            image = image if isinstance(image, PillowImage) else Image.fromarray(image)
            for name, argument in steps:
                warp = dict(resample=_resampling(config, rng, warp=True), fillcolor=fill)
                image = OPERATIONS[name].apply(image, argument, warp)
        return image if isinstance(image, np.ndarray) else np.array(image)

    def __call__(self, source: ImageSource) -> Tensor:
        """(C,H,W) float32, normalised and in parts erased.

        Draws from torch's random numbers, which `torch.manual_seed` sets and which differ in each DataLoader worker.
        """
        x: Any = source
        for step in self.transforms:
            x = step(x)
        return x

    @property
    def transforms(self) -> list[Callable[[Any], Any]]:
        """The steps of the transform, to be called in order; a copy, so changing it has no effect."""
        steps: list[Callable[[Any], Any]] = [_Augment(self), *tensor_steps(self.spec, self.normalized)]
        return [*steps, RandomErasing(self.erasing)] if self.erasing.prob and self.normalized else steps


@dataclass(frozen=True)
class _Augment:
    """An image of any kind -> (spec.height, spec.width, 3) uint8, augmented with torch's random numbers."""

    whole: TrainTransform

    def __call__(self, source: ImageSource) -> Pixels:
        return np.ascontiguousarray(self.whole.pixels(source, _generator()))


@dataclass(frozen=True)
class RandomErasing:
    """(C,H,W) -> the same tensor, in parts erased with torch's random numbers."""

    config: Erasing

    def __call__(self, x: Tensor) -> Tensor:
        return erase(x, _generator(), self.config)


def _generator() -> Generator:
    import torch

    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


def _resampling(config: Augmentation, rng: Generator, *, warp: bool = False) -> Image.Resampling:
    """warp: of rotations and shears, for which Pillow has three filters."""
    name = config.interpolation
    if name == "random":
        if config.crop == "none" and not warp:
            return Image.Resampling.BILINEAR
        return Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC
    if warp and name not in ("nearest", "bilinear"):
        return Image.Resampling.BICUBIC
    return Image.Resampling[name.upper()]


# --- crop -------------------------------------------------------------------------------------------------------------

TRIES = 10


class Cut(NamedTuple):
    """Rows and columns of the image, the size that they are resized to, and where in that the window begins.

    The window has the input's size. What of it is outside is a reflected border; at last it can be mirrored.
    """

    rows: slice
    columns: slice
    height: int
    width: int
    top: int = 0
    left: int = 0
    hflip: bool = False
    vflip: bool = False


def draw_cut(height: int, width: int, spec: InputSpec, config: Augmentation, rng: Generator) -> Cut:
    """The crop and the flips of an image of height x width pixels."""
    cut = _draw_crop(height, width, spec, config, rng)
    return cut._replace(hflip=rng.random() < config.hflip, vflip=rng.random() < config.vflip)


def _draw_crop(height: int, width: int, spec: InputSpec, config: Augmentation, rng: Generator) -> Cut:
    if config.crop == "rrc":
        return Cut(*draw_box(height, width, *config.ranges, rng), spec.height, spec.width)
    everything = slice(0, height), slice(0, width)
    if config.crop == "none":
        return Cut(*everything, *geometry(height, width, dataclasses.replace(spec, crop_pct=1.0, crop_mode="center")))
    zoom, stretch = max(spec.height / height, spec.width / width), 1.0
    if config.crop != "pad":
        scale, ratio = config.ranges
        if rng.random() < 0.5:
            zoom /= math.sqrt(_uniform(scale, rng))
        if rng.random() < 0.5:
            stretch = math.sqrt(_log_uniform(ratio, rng))
    new_height, new_width = max(round(height * zoom / stretch), 1), max(round(width * zoom * stretch), 1)
    spare = new_height - spec.height, new_width - spec.width
    if config.crop == "rkrc":
        top, left = (round(n / 2) if n > 0 else -(-n // 2) for n in spare)
    else:
        border = config.padding if config.crop == "pad" else 0
        top, left = (int(rng.integers(min(n, 0) - border, max(n, 0) + border + 1)) for n in spare)
    return Cut(*everything, new_height, new_width, top, left)


def draw_box(height: int, width: int, scale: Range, ratio: Range, rng: Generator) -> tuple[slice, slice]:
    """Rows and columns of a random box with `scale` of the image's area and a width of `ratio` times its height.

    Where none of ten fits, the largest box in the middle whose ratio is allowed.
    """
    for _ in range(TRIES):
        area, aspect = height * width * _uniform(scale, rng), _log_uniform(ratio, rng)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return slice(top, top + h), slice(left, left + w)
    h, w = min(height, max(round(width / ratio[0]), 1)), min(width, max(round(height * ratio[1]), 1))
    top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)


def _uniform(bounds: Range, rng: Generator) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()  # a quarter of the time that rng.uniform takes


def _log_uniform(bounds: Range, rng: Generator) -> float:
    return math.exp(_uniform((math.log(bounds[0]), math.log(bounds[1])), rng))


def cut_out(pixels: Pixels, cut: Cut, spec: InputSpec, resample: Image.Resampling) -> Pixels | PillowImage:
    """The window of (spec.height, spec.width), in the form it comes in; never the memory of `pixels`."""
    part = pixels[cut.rows, cut.columns]
    bottom, right = cut.top + spec.height, cut.left + spec.width
    if part.shape[:2] != (cut.height, cut.width):
        image = Image.fromarray(part).resize((cut.width, cut.height), resample)
        if cut.top >= 0 and cut.left >= 0 and bottom <= cut.height and right <= cut.width:
            if image.size != (spec.width, spec.height):
                image = image.crop((cut.left, cut.top, right, bottom))
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.hflip else image
            return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if cut.vflip else image
        part = np.asarray(image)
    rows = _reflected(cut.top, bottom, cut.height, cut.vflip)
    columns = _reflected(cut.left, right, cut.width, cut.hflip)
    return part.take(rows, axis=0).take(columns, axis=1)


@functools.lru_cache(maxsize=1024)  # few differ, and making one takes as long as using it
def _reflected(start: int, stop: int, size: int, flip: bool) -> NDArray[np.intp]:
    """Positions start..stop on an axis that goes on mirrored beyond its ends, as often as needed."""
    period = max(2 * (size - 1), 1)  # the ends are not repeated
    at = np.arange(start, stop) % period
    at = np.minimum(at, period - at)
    return at[::-1].copy() if flip else at


# --- operations -------------------------------------------------------------------------------------------------------

Warp = dict[str, Any]  # how geometric operations resample and fill
Apply = Callable[[PillowImage, float, Warp], PillowImage]
Argument = Callable[[float, Generator], float]  # of a level, given as a share of ten


class Operation(NamedTuple):
    apply: Apply
    argument: Argument = lambda share, rng: 0.0


class Step(NamedTuple):
    """An operation as it was drawn: a key of OPERATIONS, and its argument."""

    name: str
    argument: float = 0.0


def _either_way(most: float) -> Argument:
    return lambda share, rng: most * share if rng.random() < 0.5 else -most * share


def _factor(share: float, _: Generator) -> float:
    return 0.1 + 1.8 * share


def _factor_increasing(share: float, rng: Generator) -> float:
    return max(0.1, 1 + _either_way(0.9)(share, rng))


def _enhanced(enhancer: Any) -> Apply:
    return lambda image, factor, _: enhancer(image).enhance(factor)


def _affine(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Apply:
    """matrix: of argument, width and height; it leads from a place in the result to one in the source."""
    return lambda image, v, warp: image.transform(
        image.size, Image.Transform.AFFINE, matrix(v, image.width, image.height), **warp
    )


def _posterize(image: PillowImage, bits: float, _: Warp) -> PillowImage:
    mask = 256 - 2 ** (8 - min(max(int(bits), 0), 8))  # ImageOps.posterize refuses 0 bits, which recipes reach
    return image.point([v & mask for v in range(256)] * 3)


def _solarize(image: PillowImage, threshold: float, _: Warp) -> PillowImage:
    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: PillowImage, addend: float, _: Warp) -> PillowImage:
    return image.point([min(v + int(addend), 255) if v < 128 else v for v in range(256)] * 3)


def _blur(image: PillowImage, sigma: float, _: Warp) -> PillowImage:
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _turn_hue(image: PillowImage, turn: float, _: Warp) -> PillowImage:
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(v + int(255 * turn)) % 256 for v in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_color, _contrast = _enhanced(ImageEnhance.Color), _enhanced(ImageEnhance.Contrast)
_brightness, _sharpness = _enhanced(ImageEnhance.Brightness), _enhanced(ImageEnhance.Sharpness)

OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(lambda image, *_: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, *_: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, *_: ImageOps.invert(image)),
    # how much of the image moves
    "Rotate": Operation(lambda image, degrees, warp: image.rotate(degrees, **warp), _either_way(30.0)),
    "ShearX": Operation(_affine(lambda v, w, h: (1, v, 0, 0, 1, 0)), _either_way(0.3)),
    "ShearY": Operation(_affine(lambda v, w, h: (1, 0, 0, v, 1, 0)), _either_way(0.3)),
    "TranslateXRel": Operation(_affine(lambda v, w, h: (1, 0, v * w, 0, 1, 0)), _either_way(0.45)),
    "TranslateYRel": Operation(_affine(lambda v, w, h: (1, 0, 0, 0, 1, v * h)), _either_way(0.45)),
    # bits kept
    "Posterize": Operation(_posterize, lambda share, rng: int(4 * share)),
    "PosterizeIncreasing": Operation(_posterize, lambda share, rng: 4 - int(4 * share)),
    # the value from which on colours are inverted; what is added to values under 128
    "Solarize": Operation(_solarize, lambda share, rng: min(256, int(256 * share))),
    "SolarizeIncreasing": Operation(_solarize, lambda share, rng: 256 - min(256, int(256 * share))),
    "SolarizeAdd": Operation(_solarize_add, lambda share, rng: min(128, int(110 * share))),
    # factors: 1 changes nothing
    "Color": Operation(_color, _factor),
    "ColorIncreasing": Operation(_color, _factor_increasing),
    "Contrast": Operation(_contrast, _factor),
    "ContrastIncreasing": Operation(_contrast, _factor_increasing),
    "Brightness": Operation(_brightness, _factor),
    "BrightnessIncreasing": Operation(_brightness, _factor_increasing),
    "Sharpness": Operation(_sharpness, _factor),
    "SharpnessIncreasing": Operation(_sharpness, _factor_increasing),
    "Desaturate": Operation(_color, lambda share, rng: 1 - (0.5 + 0.5 * share)),
    # standard deviation, in pixels
    "GaussianBlur": Operation(_blur, lambda share, rng: 0.1 + 1.9 * share),
    "GaussianBlurRand": Operation(_blur, lambda share, rng: _uniform((0.1, 2 * share), rng)),
    # turns; only of colour jitter
    "Hue": Operation(_turn_hue),
}


def draw_steps(config: Augmentation, rng: Generator) -> list[Step]:
    """What happens to an image after crop and flips, in order."""
    steps = []
    if config.auto_augment:
        steps += read_policy(config.auto_augment).draw(rng)
    if config.jitters and rng.random() < config.color_jitter_prob:
        steps += _draw_jitter(_strengths(config.color_jitter), rng)
    if rng.random() < config.grayscale_prob:
        steps.append(Step("Color", 0.0))
    if rng.random() < config.blur_prob:
        steps.append(Step("GaussianBlur", _uniform((0.1, 2.0), rng)))
    return steps


def _draw_jitter(strengths: tuple[float, ...], rng: Generator) -> list[Step]:
    """Factors around 1 and a turn of the hue (in whole turns) around 0, in random order."""
    names = ("Brightness", "Contrast", "Color", "Hue")
    steps = [
        Step(name, _uniform((-most, most) if name == "Hue" else (max(0.0, 1 - most), 1 + most), rng))
        for name, most in zip(names, strengths, strict=False)
        if most
    ]
    return [steps[i] for i in rng.permutation(len(steps))]


# --- RandAugment and 3-Augment ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RandomPolicy:
    """`count` operations are picked, each is done with probability `prob` at a level of 0 (least) to `ceiling`."""

    ops: tuple[str, ...]
    levels: tuple[float, ...]  # one an operation
    weights: tuple[float, ...] | None = None  # how likely the operations are; with them, none is picked twice
    count: int = 2
    prob: float = 0.5
    spread: float = 0.0  # standard deviation of the level; over 100, it is drawn evenly from 0 to the given one
    ceiling: float = 10.0

    def draw(self, rng: Generator) -> list[Step]:
        steps = []
        for pick in self._picks(rng):
            if rng.random() < self.prob:
                share = min(max(self._level(self.levels[pick], rng), 0.0), self.ceiling) / 10
                steps.append(Step(self.ops[pick], OPERATIONS[self.ops[pick]].argument(share, rng)))
        return steps

    def _picks(self, rng: Generator) -> list[int]:
        if self.weights is None:
            return rng.integers(len(self.ops), size=self.count).tolist()
        # the first of waiting times with these rates: the same as picking one after the other, without choice's 100 us
        return np.argsort(rng.standard_exponential(len(self.ops)) / self.weights)[: self.count].tolist()

    def _level(self, mean: float, rng: Generator) -> float:
        if self.spread > 100:
            return _uniform((0.0, mean), rng)
        return rng.normal(mean, self.spread) if self.spread else mean


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
_OPTIONS = {  # of each kind of policy: names, and what may follow them
    "rand": dict(m=_NUMBER, mstd=_NUMBER, mmax=r"[1-9]\d*", n=r"[1-9]\d*", p=_NUMBER, inc="[01]", t="weights|3aw?"),
    "3a": dict(mstd=_NUMBER),
}
_KNOWN = "rand-m9-mstd0.5-inc1, with any of -n2 -p0.5 -mmax10 -tweights -t3a -t3aw; 3a or 3a-mstd0.5"


@functools.cache
def read_policy(text: str) -> RandomPolicy:
    """The policy that one of timm's strings describes. Raises UsageError `bad_argument` for others.

    Options of "rand": m level (10), mstd its standard deviation (0), mmax the highest (10), n operations (2), p the
    probability of each (0.5), inc1 operations that grow stronger with the level, t another set of operations with
    weights. "3a" picks one of solarize, grey and blur.
    """
    kind, *parts = text.split("-")
    if kind not in _OPTIONS:
        left_out = kind in ("original", "originalr", "v0", "v0r", "augmix")
        raise _unreadable(text, "AutoAugment's tables and AugMix are left out" if left_out else "no such policy")
    given: dict[str, str] = {}
    for part in parts:
        found = [key for key, value in _OPTIONS[kind].items() if re.fullmatch(f"{key}(?:{value})", part)]
        if not found or found[0] in given:
            raise _unreadable(text, f"{part!r} cannot be read" if not found else f"{found[0]} is given twice")
        given[found[0]] = part.removeprefix(found[0])
    spread = float(given.get("mstd", 0))
    if kind == "3a":
        three = ("Solarize", "Desaturate", "GaussianBlurRand")
        return RandomPolicy(ops=three, levels=(5.0, 10.0, 10.0), count=1, prob=1.0, spread=spread)
    weights = WEIGHTS.get(given.get("t", ""))
    ops: tuple[str, ...] = INCREASING_OPS if given.get("inc") == "1" else RAND_OPS
    if "t" in given:
        ops = tuple(weights) if weights else THREE_OPS
    policy = RandomPolicy(
        ops=ops,
        levels=(float(given.get("m", 10)),) * len(ops),
        weights=tuple(weights.values()) if weights else None,
        count=int(given.get("n", 2)),
        prob=float(given.get("p", 0.5)),
        spread=spread,
        ceiling=float(given.get("mmax", 10)),
    )
    if policy.prob > 1:
        raise _unreadable(text, "p is a probability, 0 to 1")
    if weights and policy.count > len(ops):
        raise _unreadable(text, f"{policy.count} of {len(ops)} different operations cannot be picked")
    return policy


def _unreadable(text: str, why: str) -> UsageError:
    return UsageError("bad_argument", f"auto_augment is {text!r}: {why}", hint=f"known are {_KNOWN}")
