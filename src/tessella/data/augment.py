"""Training augmentation of one image, as in timm: a pure function of (image, generator).

The order is crop, flips, RandAugment or 3-Augment, color jitter, grayscale, blur; normalization and random erasing
(`mix.py`) follow. The operations for an image are drawn first, as a list of `AugmentStep`s, and applied afterwards:
if none is drawn, nothing is converted. Pillow receives decoded pixels only; `decode.py` opens files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ..checks import check_fields
from .decode import ImageSource, PillowImage, Pixels, Policy, decode
from .limits import DEFAULT_LIMITS, Limits
from .mix import Erasing, check_setting, erase
from .operations import AugmentStep, Range, Warp, apply_steps, read_policy, uniform
from .resize import check_intermediate, geometry
from .spec import INTERPOLATIONS, InputSpec
from .transforms import TransformStep, tensor_steps

if TYPE_CHECKING:
    from torch import Tensor

CROPS = ("rrc", "rkrc", "rkrr", "pad", "none")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings of the training augmentation. Raises UsageError `bad_argument` for values out of range.

    crop: "rrc" resizes a random box. "rkrc" and "rkrr" resize the image, sometimes a little larger or distorted, and
    crop the center ("rkrc") or a random window ("rkrr"), with a reflected border if the image is too small. "pad" adds
    a reflected border to an image of the input's size (others are resized to cover it) and crops a random window.
    "none" crops the center, as evaluation does with crop_pct 1.
    """

    crop: Literal["rrc", "rkrc", "rkrr", "pad", "none"] = "rrc"
    scale: Range | None = None  # fraction of the image's area; None: 0.08 to 1 for rrc, 0.8 to 1 for rkrc and rkrr
    ratio: Range | None = None  # width / height, log-uniform; None: 3/4 to 4/3 for rrc, 0.9 to 1/0.9 for the others
    padding: int = 4  # pixels, for crop "pad"
    interpolation: str = "random"  # bilinear or bicubic, drawn each time; or one of INTERPOLATIONS
    hflip: float = 0.5  # probability; so are vflip and the fields that end in _prob
    vflip: float = 0.0
    auto_augment: str = ""  # such as "rand-m9-mstd0.5-inc1" or "3a"; see `read_policy`
    color_jitter: float | tuple[float, ...] = 0.0  # one strength, or those of brightness, contrast, saturation[, hue]
    color_jitter_prob: float = 1.0
    force_color_jitter: bool = False  # apply color jitter in addition to auto_augment, as "3a" always does
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_setting(self.crop in CROPS, "crop", self.crop, f"one of {', '.join(CROPS)}")
        for name in ("scale", "ratio"):
            bounds = getattr(self, name)
            ok = bounds is None or (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] < math.inf)
            check_setting(ok, name, bounds, "two positive numbers, the smaller first")
        check_setting(self.padding >= 0, "padding", self.padding, "0 or more pixels")
        names = ("random", *INTERPOLATIONS)
        check_setting(self.interpolation in names, "interpolation", self.interpolation, f"one of {', '.join(names)}")
        for name in ("hflip", "vflip", "color_jitter_prob", "grayscale_prob", "blur_prob"):
            check_setting(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability, 0 to 1")
        strengths = _strengths(self.color_jitter)
        ok = len(strengths) == 3 or (len(strengths) == 4 and strengths[3] <= 0.5)
        ok = ok and all(0 <= strength < math.inf for strength in strengths)
        check_setting(
            ok, "color_jitter", self.color_jitter, "a number >= 0, or three of them, or three and a hue of 0 to 0.5"
        )
        if self.auto_augment:
            read_policy(self.auto_augment)

    @property
    def ranges(self) -> tuple[Range, Range]:
        """Return scale and ratio, with the defaults of the crop."""
        scale, ratio = ((0.08, 1.0), (3 / 4, 4 / 3)) if self.crop == "rrc" else ((0.8, 1.0), (0.9, 1 / 0.9))
        return self.scale or scale, self.ratio or ratio

    @property
    def jitters(self) -> bool:
        """Return whether images can receive color jitter."""
        allowed = not self.auto_augment or self.force_color_jitter or "3a" in self.auto_augment
        return bool(self.color_jitter) and allowed


def as_pillow(pixels: Pixels) -> PillowImage:
    """Return (H,W,3) uint8 pixels as a Pillow image."""
    return Image.fromarray(pixels)


def _strengths(color_jitter: float | tuple[float, ...]) -> tuple[float, ...]:
    return color_jitter if isinstance(color_jitter, tuple) else (color_jitter,) * 3


@dataclass(frozen=True)
class TrainTransform:
    """Training transform: one image of any kind to an augmented tensor; see `create_transform(is_training=True)`."""

    spec: InputSpec
    config: Augmentation = Augmentation()
    policy: Policy = "tessella"
    limits: Limits = DEFAULT_LIMITS
    erasing: Erasing = field(default_factory=Erasing)  # of normalized tensors; `pixels` does not apply it
    normalized: bool = True  # False: uint8 tensors, without erasing

    def __post_init__(self) -> None:
        self.spec.require_rgb()

    def pixels(self, source: ImageSource, rng: Generator) -> Pixels:
        """Return the augmented image, (H,W,3) uint8 with the height and width of the spec.

        Raises ImageError as `decode` does, and `too_elongated`.
        """
        spec, config = self.spec, self.config
        decoded = decode(source, policy=self.policy, mode="fast", limits=self.limits)
        cut = draw_cut(decoded.shape[0], decoded.shape[1], spec, config, rng)
        check_intermediate(decoded.shape[:2], (cut.height, cut.width), self.limits)
        image = cut_out(decoded, cut, spec, _resampling(config, rng))
        if steps := draw_steps(config, rng):
            image = image if isinstance(image, PillowImage) else Image.fromarray(image)
            image = apply_steps(image, steps, lambda: Warp(_resampling(config, rng, warp=True), spec.fill))
        return image if isinstance(image, np.ndarray) else np.array(image)

    def __call__(self, source: ImageSource) -> Tensor:
        """Return a (C,H,W) float32 tensor, normalized and with random erasing; uint8 if not `normalized`.

        Draws from torch's random numbers, which `torch.manual_seed` sets and which differ in each DataLoader worker.
        """
        x: object = source  # each step returns what the next one takes
        for step in self.transforms:
            x = step(x)
        return cast("Tensor", x)

    @property
    def transforms(self) -> list[TransformStep]:
        """The steps of the transform, to be called in order; a copy, so changing it has no effect."""
        steps: list[TransformStep] = [_Augment(self), *tensor_steps(self.spec, self.normalized)]
        return [*steps, RandomErasing(self.erasing)] if self.erasing.prob and self.normalized else steps


@dataclass(frozen=True)
class _Augment:
    """Augment an image of any kind to (spec.height, spec.width, 3) uint8, with torch's random numbers."""

    transform: TrainTransform

    def __call__(self, source: ImageSource) -> Pixels:
        return np.ascontiguousarray(self.transform.pixels(source, _generator()))


@dataclass(frozen=True)
class RandomErasing:
    """Erase random boxes of a (C,H,W) tensor in place, with torch's random numbers."""

    config: Erasing

    def __call__(self, x: Tensor) -> Tensor:
        return erase(x, _generator(), self.config)


def _generator() -> Generator:
    """Return a generator seeded from torch's random numbers."""
    import torch

    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


def _resampling(config: Augmentation, rng: Generator, *, warp: bool = False) -> Image.Resampling:
    """Return the filter for an image; with `warp`, for rotations and shears, which Pillow does with three filters."""
    name = config.interpolation
    if name == "random":
        if config.crop == "none" and not warp:
            return Image.Resampling.BILINEAR
        return Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC
    if warp and name not in ("nearest", "bilinear"):
        return Image.Resampling.BICUBIC
    return Image.Resampling[name.upper()]


# --- crop -------------------------------------------------------------------------------------------------------------

MAX_TRIES = 10


class Cut(NamedTuple):
    """Crop [rows, columns], resize to (height, width), take a window of the input's size at (top, left), and flip.

    Parts of the window outside of the resized image are a reflected border. All in pixels.
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
    """Draw the crop and the flips of an image of height x width pixels."""
    cut = _draw_crop(height, width, spec, config, rng)
    return cut._replace(hflip=rng.random() < config.hflip, vflip=rng.random() < config.vflip)


def _draw_crop(height: int, width: int, spec: InputSpec, config: Augmentation, rng: Generator) -> Cut:
    if config.crop == "rrc":
        return Cut(*draw_box(height, width, *config.ranges, rng), spec.height, spec.width)
    full = slice(0, height), slice(0, width)
    if config.crop == "none":
        return Cut(*full, *geometry(height, width, dataclasses.replace(spec, crop_pct=1.0, crop_mode="center")))
    zoom, stretch = max(spec.height / height, spec.width / width), 1.0
    if config.crop != "pad":
        scale, ratio = config.ranges
        if rng.random() < 0.5:
            zoom /= math.sqrt(uniform(scale, rng))
        if rng.random() < 0.5:
            stretch = math.sqrt(_log_uniform(ratio, rng))
    new_height, new_width = max(round(height * zoom / stretch), 1), max(round(width * zoom * stretch), 1)
    spare = new_height - spec.height, new_width - spec.width
    if config.crop == "rkrc":
        top, left = (round(n / 2) if n > 0 else -(-n // 2) for n in spare)
    else:
        border = config.padding if config.crop == "pad" else 0
        top, left = (int(rng.integers(min(n, 0) - border, max(n, 0) + border + 1)) for n in spare)
    return Cut(*full, new_height, new_width, top, left)


def draw_box(height: int, width: int, scale: Range, ratio: Range, rng: Generator) -> tuple[slice, slice]:
    """Draw the rows and columns of a random box: `scale` is its fraction of the image's area, `ratio` width / height.

    If none of MAX_TRIES boxes fits, return the largest centered box with an allowed ratio.
    """
    for _ in range(MAX_TRIES):
        area, aspect = height * width * uniform(scale, rng), _log_uniform(ratio, rng)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return slice(top, top + h), slice(left, left + w)
    h, w = min(height, max(round(width / ratio[0]), 1)), min(width, max(round(height * ratio[1]), 1))
    top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)


def _log_uniform(bounds: Range, rng: Generator) -> float:
    return math.exp(uniform((math.log(bounds[0]), math.log(bounds[1])), rng))


def cut_out(pixels: Pixels, cut: Cut, spec: InputSpec, resample: Image.Resampling) -> Pixels | PillowImage:
    """Return the window of `cut` in (H,W,3) uint8 pixels, with the height and width of the spec.

    It is an array or a Pillow image, whichever needs no conversion, and shares memory with `pixels`.
    """
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


@functools.lru_cache(maxsize=1024)  # few arguments differ, and making the positions takes as long as using them
def _reflected(start: int, stop: int, size: int, flip: bool) -> NDArray[np.intp]:
    """Return the positions start..stop on an axis that is reflected beyond its ends, as often as needed."""
    period = max(2 * (size - 1), 1)  # the ends are not repeated
    positions = np.arange(start, stop) % period
    positions = np.minimum(positions, period - positions)
    return positions[::-1].copy() if flip else positions


# --- operations -------------------------------------------------------------------------------------------------------


def draw_steps(config: Augmentation, rng: Generator) -> list[AugmentStep]:
    """Draw the operations applied to an image after crop and flips, in order."""
    steps = []
    if config.auto_augment:
        steps += read_policy(config.auto_augment).draw(rng)
    if config.jitters and rng.random() < config.color_jitter_prob:
        steps += _draw_jitter(_strengths(config.color_jitter), rng)
    if rng.random() < config.grayscale_prob:
        steps.append(AugmentStep("Color", 0.0))
    if rng.random() < config.blur_prob:
        steps.append(AugmentStep("GaussianBlur", uniform((0.1, 2.0), rng)))
    return steps


def _draw_jitter(strengths: tuple[float, ...], rng: Generator) -> list[AugmentStep]:
    """Draw factors around 1 and a shift of the hue around 0 (in turns of the color circle), in random order."""
    names = ("Brightness", "Contrast", "Color", "Hue")
    steps = [
        AugmentStep(name, uniform((-most, most) if name == "Hue" else (max(0.0, 1 - most), 1 + most), rng))
        for name, most in zip(names, strengths, strict=False)
        if most
    ]
    return [steps[i] for i in rng.permutation(len(steps))]
