"""The evaluation transform: an image of any kind to the tensor that a model reads.

It is a function of (image, InputSpec) in three steps, each in a module of its own: `decode` turns bytes into pixels,
`resize` resizes and crops them, and the functions here convert the result to a normalized tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ..checks import check_type
from ..errors import ImageError, UsageError
from ..extras import require
from .decode import ImageSource, Mode, Pixels, Policy, decode, open_image
from .limits import DEFAULT_LIMITS, Limits
from .resize import check_geometry, fit, prepare, reduction
from .spec import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

TransformStep: TypeAlias = Callable[..., object]  # takes what the step before it returns


def load_pixels(
    source: ImageSource,
    spec: InputSpec,
    *,
    policy: Policy = "tessella",
    mode: Mode = "exact",
    limits: Limits = DEFAULT_LIMITS,
) -> Pixels:
    """Decode one image, then resize and crop it to (H,W,3) uint8 with the height and width of the spec.

    Limits are checked before any pixel is decoded. Raises ImageError with a fixed code if the image cannot be decoded
    or exceeds a limit, and UsageError `bad_argument` if `source` is not an image source.
    """
    return load_sized(source, spec, policy=policy, mode=mode, limits=limits).pixels


class Loaded(NamedTuple):
    """The pixels of an image for a model, and the size of the image itself."""

    pixels: Pixels  # (spec.height, spec.width, 3) uint8
    height: int  # of the image, upright
    width: int


def load_sized(
    source: ImageSource,
    spec: InputSpec,
    *,
    policy: Policy,
    mode: Mode,
    limits: Limits,
    out: Pixels | None = None,
) -> Loaded:
    """Return the pixels (H,W,3) of `load_pixels`, and the size of the image itself.

    out: where to write the pixels; None for a new array. Raises as `load_pixels`.
    """
    check_type("spec", spec, InputSpec)
    opened = open_image(source, policy=policy, mode=mode, limits=limits)
    plan = check_geometry(opened.height, opened.width, spec, limits)
    spec.require_rgb()
    smaller = reduction(opened.height, opened.width, plan) if opened.reduced is not None else 1
    if opened.reduced is not None and smaller > 1:
        decoded = opened.reduced(smaller)
        fitted = fit(decoded.pixels, plan, spec, mode, source=(decoded.rows, decoded.columns), out=out)
        return Loaded(fitted, opened.height, opened.width)
    pixels = opened.pixels()
    height, width = pixels.shape[:2]
    if (height, width) != (opened.height, opened.width):  # the orientation of a PNG, found after its pixels
        plan = check_geometry(height, width, spec, limits)
    return Loaded(fit(pixels, plan, spec, mode, out=out), height, width)


def normalise(images_BHWC: Pixels | Tensor, spec: InputSpec) -> Tensor:
    """Return (B,C,H,W) float32 from (B,H,W,C) uint8: (x / 255 - mean) / std, with timm's order of operations.

    The order matters: it gives the same bits. Raises UsageError `bad_argument` unless the images are a dense array or
    tensor of that shape, and `missing_dependency` without PyTorch.
    """
    require("torch", "normalise")
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
    """Evaluation transform of `create_transform`: one image of any kind to a (C,H,W) float32 tensor.

    border: number of pixels cut from each side of the image first. normalized: False leaves the tensor uint8.
    Calling it raises ImageError as `load_pixels` does.
    """

    spec: InputSpec
    policy: Policy = "tessella"
    mode: Mode = "exact"
    border: int = 0
    normalized: bool = True

    def __call__(self, source: ImageSource) -> Tensor:
        if self.border:
            pixels = _Resize(self.spec, self.mode)(_Open(self.policy, self.mode, self.border)(source))
        else:  # refuses an elongated image before it is decoded
            pixels = load_pixels(source, self.spec, policy=self.policy, mode=self.mode)
        return normalise(pixels[None], self.spec)[0] if self.normalized else _to_tensor(pixels)

    @property
    def transforms(self) -> list[TransformStep]:
        """The steps of the transform, to be called in order; a copy, so changing it has no effect.

        The first steps exchange (H,W,3) uint8 arrays, the last ones (C,H,W) tensors.
        """
        first: list[TransformStep] = [_Open(self.policy, self.mode, self.border), _Resize(self.spec, self.mode)]
        return [*first, *tensor_steps(self.spec, self.normalized)]


def tensor_steps(spec: InputSpec, normalized: bool) -> list[TransformStep]:
    """Return the steps from (H,W,C) uint8 pixels to a (C,H,W) tensor: float32 if normalized, else uint8."""
    return [ToTensor(), Normalize(spec.mean, spec.std)] if normalized else [_to_tensor]


def _to_tensor(pixels: Pixels) -> Tensor:
    """Return (C,H,W) uint8 from (H,W,C) uint8. Raises UsageError `missing_dependency` without PyTorch."""
    require("torch", "a tensor of an image")
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class _Open:
    """Decode an image of any kind to (H,W,3) uint8, without `border` pixels on each side."""

    policy: Policy
    mode: Mode
    border: int

    def __call__(self, source: ImageSource) -> Pixels:
        pixels = decode(source, policy=self.policy, mode=self.mode)
        if not self.border:
            return pixels
        kept = pixels[self.border : -self.border, self.border : -self.border]
        if not kept.size:
            raise ImageError("bad_array", f"nothing is left of the image without {self.border} px on each side")
        return kept


@dataclass(frozen=True)
class _Resize:
    """Resize and crop (H,W,3) uint8 to (spec.height, spec.width, 3) uint8."""

    spec: InputSpec
    mode: Mode

    def __call__(self, pixels: Pixels) -> Pixels:
        return prepare(pixels, self.spec, self.mode)


@dataclass(frozen=True)
class ToTensor:
    """Convert (H,W,C) uint8 pixels to a (C,H,W) float32 tensor in 0..1."""

    def __call__(self, pixels: Pixels) -> Tensor:
        return _to_tensor(pixels).float().div_(255)


@dataclass(frozen=True)
class Normalize:
    """Normalize a (C,H,W) float32 tensor in 0..1: (x - mean) / std, with one mean and std per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (self.mean, self.std))
        return x.sub(mean).div_(std)
