"""From pixels to what a model reads: resize, crop, normalise, by timm's rules.

The evaluation transform is a function of (image, InputSpec). Mode "exact" resizes with Pillow and equals timm bit for
bit on an RGB image. Mode "fast" resizes with torch's antialiased uint8 kernel, whose weights have 15 bits where
Pillow's have 22: a value differs by at most one grey level, save about one in a million, which differs by two
(`benchmarks/input_path.py` counts them).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..arguments import refuse
from ..checks import check_fields, check_type, checked
from ..errors import ImageError, UsageError, WeightsError
from .constants import DEFAULT_CROP_MODE, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from .decode import DEFAULT_LIMITS, ImageSource, Limits, Mode, Pixels, Policy, open_image, resize_exact

if TYPE_CHECKING:
    from torch import Tensor

    from .augment import TrainTransform

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MAX_SIZE = 1_000_000  # of a side, and of the number of channels
IMAGENET_MEAN, IMAGENET_STD = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
_log = logging.getLogger(__name__)
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes a model's input. Sizes in pixels; mean and std for values in 0..1, one a channel."""

    height: int = 224
    width: int = 224
    channels: int = 3
    interpolation: str = "bicubic"  # one of INTERPOLATIONS
    crop_pct: float = 0.875  # part of the resized image's side that the crop keeps
    crop_mode: str = "center"  # short side to scale, then crop; "squash" ignores the aspect; "border" pads instead
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_fields(self)
        _require(
            all(_is_size(n) for n in (self.height, self.width, self.channels)),
            f"input size is {self.channels}x{self.height}x{self.width}, expected positive integers",
        )
        _require(
            self.height * self.width <= DEFAULT_LIMITS.intermediate,
            f"input size is {self.width}x{self.height} px, the limit is {DEFAULT_LIMITS.intermediate:,} pixels",
        )
        _require(
            self.interpolation in INTERPOLATIONS,
            f"interpolation is {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}",
        )
        _require(
            self.crop_mode in CROP_MODES, f"crop_mode is {self.crop_mode!r}, expected one of {', '.join(CROP_MODES)}"
        )
        _require(
            0 < self.crop_pct < math.inf, f"crop_pct is {self.crop_pct}, expected a positive number, such as 0.875"
        )
        _require(
            len(self.mean) == len(self.std) == self.channels and all(s > 0 for s in self.std),
            f"mean {self.mean} and std {self.std} do not give {self.channels} channels a mean and a positive std",
        )

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> InputSpec:
        """From timm's `pretrained_cfg`; absent entries take timm's defaults. WeightsError `bad_config` if unusable."""
        try:
            return cls(**_spec_fields(**resolve_data_config(pretrained_cfg=cfg)))
        except UsageError as error:
            raise WeightsError("bad_config", f"the input configuration is not usable: {error.message}") from None

    def to_cfg(self) -> dict[str, Any]:
        """timm's `pretrained_cfg` entries; also the arguments of `create_transform`."""
        return dict(
            input_size=(self.channels, self.height, self.width),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 < value <= MAX_SIZE


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UsageError("bad_argument", message)


# --- geometry ---------------------------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """Resize to (height, width), then cut the spec's window at (top, left); negative offsets are padding."""

    height: int
    width: int
    top: int
    left: int


def geometry(height: int, width: int, spec: InputSpec) -> Geometry:
    """timm's evaluation geometry for an image of height x width pixels."""
    goal_h, goal_w = (max(math.floor(side / spec.crop_pct), 1) for side in (spec.height, spec.width))
    if spec.crop_mode == "squash":
        new_h, new_w = goal_h, goal_w
    elif spec.crop_mode == "border":
        new_h, new_w = _keep_ratio(height, width, max(height / goal_h, width / goal_w))
    elif goal_h == goal_w:  # the long side truncated, where _keep_ratio rounds
        new_h, new_w = (
            (goal_h, int(goal_h * width / height)) if height <= width else (int(goal_w * height / width), goal_w)
        )
    else:
        new_h, new_w = _keep_ratio(height, width, min(height / goal_h, width / goal_w))
    return Geometry(new_h, new_w, _offset(new_h, spec.height), _offset(new_w, spec.width))


def _keep_ratio(height: int, width: int, ratio: float) -> tuple[int, int]:
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


def _offset(size: int, window: int) -> int:
    """Where a centred window starts; halves go to the even number when cutting, to the top left when padding."""
    return -((window - size) // 2) if size < window else round((size - window) / 2)


def check_geometry(height: int, width: int, spec: InputSpec, limits: Limits = DEFAULT_LIMITS) -> Geometry:
    """`geometry`, or ImageError `too_elongated` where the resized image would break the limit."""
    plan = geometry(height, width, spec)
    if plan.height * plan.width > limits.intermediate:
        raise ImageError(
            "too_elongated",
            f"the image has {width:,} x {height:,} pixels (width x height) and would be resized to "
            f"{plan.width:,} x {plan.height:,}, the limit is {limits.intermediate:,} pixels",
            hint="crop it first",
        )
    return plan


# --- pixels to pixels -------------------------------------------------------------------------------------------------


def load_pixels(
    source: ImageSource,
    spec: InputSpec,
    *,
    policy: Policy = "tessella",
    mode: Mode = "exact",
    limits: Limits = DEFAULT_LIMITS,
) -> Pixels:
    """One image of any kind -> (spec.height, spec.width, 3) uint8; limits are checked before a pixel is decoded."""
    check_type("spec", spec, InputSpec)
    opened = open_image(source, policy=policy, mode=mode, limits=limits)
    check_geometry(opened.height, opened.width, spec, limits)
    return prepare(opened.pixels(), spec, mode, limits)


@checked
def prepare(pixels: Pixels, spec: InputSpec, mode: Mode = "exact", limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """(H,W,3) uint8 -> (spec.height, spec.width, 3) uint8: resized, cropped, padded where it is too small."""
    if spec.channels != 3:
        raise UsageError("bad_argument", f"the model reads {spec.channels} channels, images have 3 (RGB)")
    plan = check_geometry(pixels.shape[0], pixels.shape[1], spec, limits)
    rows = slice(max(plan.top, 0), min(plan.top + spec.height, plan.height))
    cols = slice(max(plan.left, 0), min(plan.left + spec.width, plan.width))
    if mode == "fast" and _fast_fits(pixels, spec):
        seen = _resize_fast(pixels, plan, rows, cols, spec.interpolation)
    else:
        seen = resize_exact(pixels, plan.height, plan.width, rows, cols, spec.interpolation)
    if seen.shape[:2] == (spec.height, spec.width):
        return np.ascontiguousarray(seen)
    fill = [min(round(255 * mean), 255) for mean in spec.mean] if spec.crop_mode == "border" else [0, 0, 0]
    canvas = np.full((spec.height, spec.width, 3), fill, np.uint8)
    top, left = max(-plan.top, 0), max(-plan.left, 0)
    canvas[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return canvas


_FAST = {"bilinear": "_upsample_bilinear2d_aa", "bicubic": "_upsample_bicubic2d_aa"}  # what F.interpolate calls


def _fast_fits(pixels: Pixels, spec: InputSpec) -> bool:
    """Whether torch's kernel does what Pillow does: same filters, and columns before rows.

    Pillow 13 begins with the rows when it shrinks an image more than twice as tall as wide, or changes its aspect.
    """
    tall = pixels.shape[0] > 2 * pixels.shape[1]
    return spec.interpolation in _FAST and spec.crop_mode != "squash" and not tall


def _resize_fast(pixels: Pixels, plan: Geometry, rows: slice, cols: slice, interpolation: str) -> Pixels:
    """The part [rows, cols] of the resize to (plan.height, plan.width), by torch's antialiased uint8 kernel.

    The operator is called directly because it takes scale and output size apart: nothing is computed below and to the
    right of what the crop keeps.
    """
    import torch

    height, width = pixels.shape[:2]
    image_1HW3 = torch.from_numpy(np.require(pixels, requirements=("C", "W")))[None]
    resized_13HW = getattr(torch.ops.aten, _FAST[interpolation])(
        image_1HW3.permute(0, 3, 1, 2),  # with this stride of the batch it counts as channels_last: vectorised
        [_computed(height, plan.height, rows.stop), _computed(width, plan.width, cols.stop)],
        align_corners=False,
        scales_h=plan.height / height,
        scales_w=plan.width / width,
    )
    return resized_13HW[0].permute(1, 2, 0).numpy()[rows, cols]


def _computed(size: int, new_size: int, stop: int) -> int:
    """How many outputs to ask for along an axis: `stop`, but never `size`, at which the kernel skips the axis."""
    if new_size == size:
        return size
    return stop + 1 if stop == size else stop


# --- pixels to tensors ------------------------------------------------------------------------------------------------


def normalise(images_BHWC: Pixels | Tensor, spec: InputSpec) -> Tensor:
    """(B,H,W,C) uint8 -> (B,C,H,W) float32: (x / 255 - mean) / std, in timm's order of operations and so its bits.

    Raises UsageError `bad_argument` for anything else than a dense array or tensor of that shape.
    """
    import torch

    if not isinstance(spec, InputSpec):
        raise UsageError("bad_argument", f"spec is of type {type(spec).__name__}, expected an InputSpec")
    numeric = isinstance(images_BHWC, np.ndarray) and images_BHWC.dtype.kind in "uif"
    images = torch.as_tensor(images_BHWC) if numeric else images_BHWC
    fits = isinstance(images, torch.Tensor) and images.ndim == 4 and images.shape[3] == len(spec.mean)
    if not isinstance(images, torch.Tensor) or not fits or images.layout != torch.strided or images.is_meta:
        shape = tuple(getattr(images_BHWC, "shape", ()))
        raise UsageError(
            "bad_argument",
            f"got {type(images_BHWC).__name__} of shape {shape}, expected images (B,H,W,{len(spec.mean)}) of uint8",
        )
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (spec.mean, spec.std))
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Transform:
    """One image of any kind -> (C,H,W) float32 tensor; what `create_transform` returns.

    border: pixels to cut from each side of the image first. normalized: False leaves the tensor uint8.
    """

    spec: InputSpec
    policy: Policy = "tessella"
    mode: Mode = "exact"
    border: int = 0
    normalized: bool = True

    def __call__(self, source: ImageSource) -> Tensor:
        if self.border:
            pixels = _Resize(self.spec, self.mode)(_Open(self.policy, self.mode, self.border)(source))
        else:  # refuses what is too elongated before it is decoded
            pixels = load_pixels(source, self.spec, policy=self.policy, mode=self.mode)
        return normalise(pixels[None], self.spec)[0] if self.normalized else _to_tensor(pixels)

    @property
    def transforms(self) -> list[Callable[[Any], Any]]:
        """Steps that, called one after the other, give what the whole gives; a copy, so changing it has no effect.

        Between the first steps go (H,W,3) uint8 arrays, between the last ones (C,H,W) tensors.
        """
        return [_Open(self.policy, self.mode, self.border), _Resize(self.spec, self.mode), *self._last_steps()]

    def _last_steps(self) -> list[Callable[[Any], Any]]:
        return tensor_steps(self.spec, self.normalized)


def tensor_steps(spec: InputSpec, normalized: bool) -> list[Callable[[Any], Any]]:
    return [ToTensor(), Normalize(spec.mean, spec.std)] if normalized else [_to_tensor]


def _to_tensor(pixels: Pixels) -> Tensor:
    """(H,W,C) uint8 -> (C,H,W) uint8."""
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class _Open:
    """An image of any kind -> (H,W,3) uint8, without `border` pixels on each side."""

    policy: Policy
    mode: Mode
    border: int

    def __call__(self, source: ImageSource) -> Pixels:
        pixels = open_image(source, policy=self.policy, mode=self.mode, limits=DEFAULT_LIMITS).pixels()
        if not self.border:
            return pixels
        kept = pixels[self.border : -self.border, self.border : -self.border]
        if not kept.size:
            raise ImageError("bad_array", f"nothing is left of the image without {self.border} px on each side")
        return kept


@dataclass(frozen=True)
class _Resize:
    """(H,W,3) uint8 -> (spec.height, spec.width, 3) uint8."""

    spec: InputSpec
    mode: Mode

    def __call__(self, pixels: Pixels) -> Pixels:
        return prepare(pixels, self.spec, self.mode)


@dataclass(frozen=True)
class ToTensor:
    """(H,W,C) uint8 -> (C,H,W) float32 in 0..1."""

    def __call__(self, pixels: Pixels) -> Tensor:
        return _to_tensor(pixels).float().div_(255)


@dataclass(frozen=True)
class Normalize:
    """(C,H,W) float32 in 0..1 -> (x - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (self.mean, self.std))
        return x.sub(mean).div_(std)


_ALTERNATIVES = {  # timm's arguments that are not supported, and what to use
    "re_num_splits": "use re_prob and re_count; AugMix and split batches are not covered",
    "tf_preprocessing": "the transform is timm's Pillow one; leave it out",
    "separate": "use transform.transforms: its steps can be called one by one",
    "naflex": "the models here read images of one size; leave it out",
    "patchify": "the models here cut their patches themselves; leave it out",
}


@checked
def create_transform(
    input_size: int | Sequence[int] = 224,
    is_training: bool = False,
    no_aug: bool = False,
    train_crop_mode: str | None = None,
    scale: Sequence[float] | None = None,
    ratio: Sequence[float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_num_splits: int = 0,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    tf_preprocessing: bool = False,
    use_prefetcher: bool = False,
    normalize: bool = True,
    separate: bool = False,
    naflex: bool = False,
    patch_size: int | Sequence[int] = 16,
    max_seq_len: int = 576,
    patchify: bool = False,
    patchify_channels_last: bool = True,
    patchify_flatten: bool = True,
    *,
    force_color_jitter: bool = False,
    policy: Policy = "tessella",
    mode: Mode = "exact",
) -> Transform | TrainTransform:
    """timm's transform, with its arguments and defaults: a Pillow image, array, bytes or path -> (C,H,W) float32.

    input_size: a side, (height, width) or (channels, height, width), in pixels. policy="timm" takes Pillow's
    `convert("RGB")` as timm does; the default also applies orientation, transparency and 16-bit scale.
    normalize=False and use_prefetcher=True give uint8 tensors. re_num_splits, tf_preprocessing, separate, naflex and
    patchify are refused; patch_size, max_seq_len and the other patchify arguments belong to them and have no effect.

    Evaluation reads input_size, interpolation, mean, std, crop_pct, crop_mode, crop_border_pixels, policy and mode;
    training reads all but crop_pct, crop_mode, crop_border_pixels and mode. interpolation="random" (bilinear or
    bicubic, drawn for each image) is for training. See `augment.Augmentation` and `mix.Erasing` for the rest; a
    training transform draws from torch's random numbers.
    """
    unsupported = dict(re_num_splits=re_num_splits, tf_preprocessing=tf_preprocessing, separate=separate)
    refuse("create_transform", {**unsupported, "naflex": naflex, "patchify": patchify}, _ALTERNATIVES)
    normalized = normalize and not use_prefetcher
    if not is_training:
        border = crop_border_pixels or 0
        _require(isinstance(border, int) and border >= 0, f"crop_border_pixels is {border!r}, expected 0 or more")
        fields = _spec_fields(input_size, interpolation, mean, std, crop_pct, crop_mode)
        return Transform(InputSpec(**fields), policy, mode, border, normalized)

    from .augment import Augmentation, TrainTransform
    from .mix import Erasing

    spec = InputSpec(**_spec_fields(input_size, "bicubic", mean, std, None, None))
    if no_aug:
        config = Augmentation(crop="none", hflip=0.0, interpolation=interpolation)
        return TrainTransform(spec, config, policy, normalized=normalized)
    config = Augmentation(
        crop=train_crop_mode or "rrc",  # type: ignore[arg-type]  # checked there
        scale=_pair("scale", scale),
        ratio=_pair("ratio", ratio),
        interpolation=interpolation,
        hflip=hflip,
        vflip=vflip,
        auto_augment=auto_augment or "",
        color_jitter=tuple(color_jitter) if isinstance(color_jitter, Sequence) else color_jitter or 0.0,
        color_jitter_prob=1.0 if color_jitter_prob is None else color_jitter_prob,
        force_color_jitter=force_color_jitter,
        grayscale_prob=grayscale_prob,
        blur_prob=gaussian_blur_prob,
    )
    erasing = Erasing(prob=re_prob, mode=re_mode, count=re_count)  # type: ignore[arg-type]
    return TrainTransform(spec, config, policy, erasing=erasing, normalized=normalized)


def _pair(name: str, values: Sequence[float] | None) -> tuple[float, float] | None:
    if values is None:
        return None
    _require(isinstance(values, Sequence) and len(values) == 2, f"{name} is {values!r}, expected two numbers")
    return values[0], values[1]


def _spec_fields(
    input_size: int | Sequence[int],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float | None,
    crop_mode: str | None,
) -> dict[str, Any]:
    """timm's entries -> fields of InputSpec; a UsageError where they cannot be read."""
    try:
        sides = (input_size, input_size) if isinstance(input_size, Integral) else tuple(input_size)  # type: ignore[arg-type]
        channels, height, width = sides if len(sides) == 3 else (len(tuple(mean)), *sides)
        return dict(
            channels=index(channels),
            height=index(height),
            width=index(width),
            interpolation=interpolation,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            crop_pct=0.875 if crop_pct is None else float(crop_pct),
            crop_mode=crop_mode or "center",
        )
    except (TypeError, ValueError, OverflowError):
        raise UsageError(
            "bad_argument",
            f"input_size={input_size!r}, mean={mean!r}, std={std!r}, crop_pct={crop_pct!r} do not describe an input",
            hint="such as input_size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.875",
        ) from None


@checked
def resolve_data_config(
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    model: Any = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """timm's rule for the arguments of `create_transform`: what args says, else the checkpoint's cfg, else a default.

    args may hold input_size, or img_size and in_chans, and any other key of the result; None, 0 and "" count as absent.
    use_test_size prefers the cfg's test_input_size and test_crop_pct. model: anything with a `pretrained_cfg`.
    verbose: log the result.
    A single mean or std counts for every channel, and so does the average of the cfg's three where the images have
    not three channels.
    """
    cfg = pretrained_cfg or getattr(model, "pretrained_cfg", None) or {}
    args = args or {}

    def pick(name: str, default: Any) -> Any:
        test = cfg.get(f"test_{name}") if use_test_size else None
        given = (args.get(name), test, cfg.get(name))
        return next((value for value in given if not (value is None or value == 0 or value == "")), default)

    channels = args.get("in_chans") or args.get("chans") or 3
    if args.get("input_size") is None and (side := args.get("img_size")) is not None:
        size = (channels, side, side) if isinstance(side, int) else (channels, *side)
    else:
        size = pick("input_size", (channels, 224, 224))
    if not isinstance(size, Sequence) or len(size) != 3 or not all(map(_is_size, size)):
        raise UsageError("bad_argument", f"input_size is {size!r}, expected (channels, height, width)")
    size = tuple(size)

    def per_channel(name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = pick(name, default)
        values = (value,) if isinstance(value, int | float) else tuple(value) if isinstance(value, Iterable) else ()
        _require(len(values) > 0 and not isinstance(value, str), f"{name} is {value!r}, expected a number per channel")
        if args.get(name) is None and len(values) == 3 != size[0]:  # RGB's, and the model reads something else
            values = (sum(values) / len(values),)
        return values * size[0] if len(values) == 1 else values

    resolved = dict(
        input_size=size,
        interpolation=pick("interpolation", "bicubic"),
        mean=per_channel("mean", IMAGENET_MEAN),
        std=per_channel("std", IMAGENET_STD),
        crop_pct=pick("crop_pct", DEFAULT_CROP_PCT),
        crop_mode=pick("crop_mode", DEFAULT_CROP_MODE),
    )
    if verbose:
        _log.info("input of the model: %s", ", ".join(f"{key} {value}" for key, value in resolved.items()))
    return resolved


@checked
def resolve_model_data_config(
    model: Any,
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """`resolve_data_config` with the model first; only its `pretrained_cfg` is read."""
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)
