"""Build the transform that timm's arguments describe, for evaluation or for training."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import refuse
from ..checks import checked
from ..extras import check_installed
from .augment import Augmentation, TrainTransform
from .constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from .decode import Mode, Policy
from .mix import Erasing
from .spec import read_spec, require
from .transforms import Transform

_ALTERNATIVES = {  # arguments of timm that are not supported, and what to use instead
    "re_num_splits": "use re_prob and re_count; AugMix and split batches are not covered",
    "tf_preprocessing": "the transform is timm's Pillow one; leave it out",
    "separate": "use the steps in transform.transforms one by one",
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
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
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
    """Return timm's transform, by timm's arguments and defaults: an image of any kind to a (C,H,W) float32 tensor.

    The signature is timm's, so that calls written for timm also work here. The transform takes a Pillow image, an
    array, the bytes of a file or a path.

    input_size: a side, (height, width) or (channels, height, width), in pixels. policy="timm" decodes as timm does,
    with Pillow's `convert("RGB")`; the default also applies orientation, transparency and the 16-bit range.
    normalize=False and use_prefetcher=True give uint8 tensors.

    For evaluation, input_size, interpolation, mean, std, crop_pct, crop_mode, crop_border_pixels, policy and mode are
    used; for training, all but crop_pct, crop_mode, crop_border_pixels and mode. interpolation="random" (bilinear or
    bicubic, drawn for each image) is for training. `augment.Augmentation` and `mix.Erasing` describe the others. A
    training transform draws from torch's random numbers.

    Raises UsageError `bad_argument` for values that cannot be used, and if re_num_splits, tf_preprocessing, separate,
    naflex or patchify is set; patch_size, max_seq_len and the other patchify arguments belong to naflex and have no
    effect; `missing_dependency` without PyTorch.
    """
    check_installed("torch", "create_transform")
    unsupported = dict(re_num_splits=re_num_splits, tf_preprocessing=tf_preprocessing, separate=separate)
    refuse("create_transform", {**unsupported, "naflex": naflex, "patchify": patchify}, _ALTERNATIVES)
    normalized = normalize and not use_prefetcher
    if not is_training:
        border = crop_border_pixels or 0
        require(isinstance(border, int) and border >= 0, f"crop_border_pixels is {border!r}, expected 0 or more")
        spec = read_spec(input_size, interpolation, mean, std, crop_pct, crop_mode)
        return Transform(spec, policy, mode, border, normalized)

    spec = read_spec(input_size, "bicubic", mean, std, None, None)
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
    require(isinstance(values, Sequence) and len(values) == 2, f"{name} is {values!r}, expected two numbers")
    return values[0], values[1]
