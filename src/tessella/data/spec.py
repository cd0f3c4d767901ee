"""Describe what a model reads: `InputSpec`, and timm's rules for finding it in the configuration of a checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import TypedDict, TypeVar, cast

from ..checks import check_fields, checked
from ..errors import UsageError, WeightsError
from .constants import DEFAULT_CROP_MODE, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from .limits import DEFAULT_LIMITS

T = TypeVar("T")

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
MIN_CROP = 1e-9  # with a smaller fraction, no image fits the limits after it is resized
MAX_SIZE = 1_000_000  # of a side in pixels, and of the number of channels
_log = logging.getLogger(__name__)


class DataConfig(TypedDict):
    """timm's description of a model's input: entries of `pretrained_cfg`, arguments of `create_transform`."""

    input_size: tuple[int, ...]  # (channels, height, width)
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes the input of a model.

    Sizes are in pixels; mean and std have one entry per channel, for values in 0..1. Raises UsageError `bad_argument`
    for values that do not describe an input.
    """

    height: int = 224
    width: int = 224
    channels: int = 3
    interpolation: str = "bicubic"  # one of INTERPOLATIONS
    crop_pct: float = 0.875  # fraction of the resized image's side that the crop keeps
    crop_mode: str = "center"  # scale the short side, then crop; "squash" ignores the aspect ratio, "border" pads
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            all(_is_size(n) for n in (self.height, self.width, self.channels)),
            f"input size is {self.channels}x{self.height}x{self.width}, expected positive integers",
        )
        require(
            self.height * self.width <= DEFAULT_LIMITS.intermediate,
            f"input size is {self.width}x{self.height} px, the limit is {DEFAULT_LIMITS.intermediate:,} pixels",
        )
        require(
            self.interpolation in INTERPOLATIONS,
            f"interpolation is {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}",
        )
        require(
            self.crop_mode in CROP_MODES, f"crop_mode is {self.crop_mode!r}, expected one of {', '.join(CROP_MODES)}"
        )
        require(
            MIN_CROP <= self.crop_pct < math.inf,
            f"crop_pct is {self.crop_pct}, expected a positive number, such as 0.875",
        )
        require(
            len(self.mean) == len(self.std) == self.channels
            and all(map(math.isfinite, (*self.mean, *self.std)))
            and all(s > 0 for s in self.std),
            f"mean {self.mean} and std {self.std} do not give {self.channels} channels a finite mean and a positive, "
            "finite std",
        )

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, object]) -> InputSpec:
        """Return the spec of timm's `pretrained_cfg`, with timm's defaults for missing entries.

        Raises WeightsError `bad_config` if the entries do not describe an input.
        """
        try:
            return read_spec(**resolve_data_config(pretrained_cfg=cfg))
        except UsageError as error:
            raise WeightsError("bad_config", f"the input configuration is not usable: {error.message}") from None

    def to_cfg(self) -> DataConfig:
        """Return the spec as entries of timm's `pretrained_cfg`, which are also arguments of `create_transform`."""
        return DataConfig(
            input_size=(self.channels, self.height, self.width),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )

    def require_rgb(self) -> None:
        """Raise UsageError `bad_argument` unless the model reads three channels."""
        require(self.channels == 3, f"the model reads {self.channels} channels, images have 3 (RGB)")

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean color as integers in 0..255, used to fill what is outside of an image."""
        return tuple(min(max(round(255 * mean), 0), 255) for mean in self.mean)


def require(condition: bool, message: str) -> None:
    """Raise UsageError `bad_argument` with `message` unless `condition` holds."""
    if not condition:
        raise UsageError("bad_argument", message)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 < value <= MAX_SIZE


def read_spec(
    input_size: int | Sequence[int],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float | None,
    crop_mode: str | None,
) -> InputSpec:
    """Return the spec that timm's arguments describe; UsageError `bad_argument` if they do not describe one."""
    try:
        sides = (
            (input_size, input_size) if isinstance(input_size, Integral) else tuple(cast("Sequence[int]", input_size))
        )
        channels, height, width = sides if len(sides) == 3 else (len(tuple(mean)), *sides)
        channels, height, width = index(channels), index(height), index(width)
        channel_mean, channel_std = tuple(map(float, mean)), tuple(map(float, std))
        crop_fraction = DEFAULT_CROP_PCT if crop_pct is None else float(crop_pct)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(
            "bad_argument",
            f"input_size={input_size!r}, mean={mean!r}, std={std!r}, crop_pct={crop_pct!r} do not describe an input",
            hint="such as input_size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.875",
        ) from None
    return InputSpec(
        height=height,
        width=width,
        channels=channels,
        interpolation=interpolation,
        crop_pct=crop_fraction,
        crop_mode=crop_mode or DEFAULT_CROP_MODE,
        mean=channel_mean,
        std=channel_std,
    )


def _plain(value: object) -> object:
    """Return a number or an array of NumPy as Python's; anything else is returned unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


@checked
def resolve_data_config(
    args: Mapping[str, object] | None = None,
    pretrained_cfg: Mapping[str, object] | None = None,
    model: object = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> DataConfig:
    """Return the arguments of `create_transform`: from args, else from the checkpoint's cfg, else timm's defaults.

    args may hold input_size, or img_size and in_chans, and any other key of the result; None, 0 and "" count as absent.
    use_test_size prefers the cfg's test_input_size and test_crop_pct. model: any object with a `pretrained_cfg`, read
    if no pretrained_cfg is given. verbose: log the result.
    A single mean or std is used for every channel, and so is the average of the cfg's three if the images do not have
    three channels. Raises UsageError `bad_argument` if input_size, mean or std cannot be read.
    """
    cfg: Mapping[str, object] = pretrained_cfg or getattr(model, "pretrained_cfg", None) or {}
    args = args or {}

    def pick(name: str, default: T) -> T:
        test = cfg.get(f"test_{name}") if use_test_size else None
        candidates = (_plain(args.get(name)), test, cfg.get(name))
        picked = next((value for value in candidates if not (value is None or value == 0 or value == "")), default)
        return cast("T", picked)  # types are checked by InputSpec

    channels, side = _plain(args.get("in_chans") or args.get("chans") or 3), _plain(args.get("img_size"))
    size: object
    if args.get("input_size") is not None or side is None:
        size = pick("input_size", (channels, 224, 224))
    elif isinstance(side, Iterable):
        size = (channels, *side)
    else:
        size = (channels, side, side)
    if not isinstance(size, Sequence) or len(size) != 3 or not all(map(_is_size, size)):
        raise UsageError("bad_argument", f"input_size is {size!r}, expected (channels, height, width)")

    def per_channel(name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value: object = pick(name, default)
        values = (value,) if isinstance(value, int | float) else tuple(value) if isinstance(value, Iterable) else ()
        require(len(values) > 0 and not isinstance(value, str), f"{name} is {value!r}, expected a number per channel")
        if args.get(name) is None and len(values) == 3 != size[0]:  # values for RGB, but not an RGB model
            values = (sum(values) / len(values),)
        return values * size[0] if len(values) == 1 else values

    resolved = DataConfig(
        input_size=tuple(size),
        interpolation=pick("interpolation", "bicubic"),
        mean=per_channel("mean", IMAGENET_DEFAULT_MEAN),
        std=per_channel("std", IMAGENET_DEFAULT_STD),
        crop_pct=pick("crop_pct", DEFAULT_CROP_PCT),
        crop_mode=pick("crop_mode", DEFAULT_CROP_MODE),
    )
    if verbose:
        _log.info("input of the model: %s", ", ".join(f"{key} {value}" for key, value in resolved.items()))
    return resolved


@checked
def resolve_model_data_config(
    model: object,
    args: Mapping[str, object] | None = None,
    pretrained_cfg: Mapping[str, object] | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> DataConfig:
    """Return `resolve_data_config` for a model; only its `pretrained_cfg` is read.

    Raises UsageError `bad_argument` as that function does.
    """
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)
