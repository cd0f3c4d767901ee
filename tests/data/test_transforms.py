"""Geometry against arithmetic written out here, the spec's checks, tensors, and timm's configuration rules."""

from __future__ import annotations

import io
import math
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessella.data.augment import Augmentation, TrainTransform
from tessella.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from tessella.data.factory import create_transform
from tessella.data.limits import DEFAULT_LIMITS, Limits
from tessella.data.mix import Erasing
from tessella.data.resize import geometry, prepare
from tessella.data.spec import InputSpec, resolve_data_config, resolve_model_data_config
from tessella.data.transforms import load_pixels, normalise
from tessella.errors import ImageError, UsageError, WeightsError

RNG = np.random.default_rng(3)


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colour with hard edges and a little noise: what resizing filters disagree about."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 255 * ((x // 9 + y // 7) % 2)], -1)
    return np.clip(base + RNG.normal(0, 8, base.shape), 0, 255).astype(np.uint8)


def by_hand(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """timm's evaluation steps, one after the other, on Pillow images."""
    image, resample = Image.fromarray(pixels), Image.Resampling[spec.interpolation.upper()]
    scale_w, scale_h = (math.floor(side / spec.crop_pct) for side in (spec.width, spec.height))
    width, height = image.size
    if spec.crop_mode == "squash":
        image = image.resize((scale_w, scale_h), resample)
    elif spec.crop_mode == "center" and scale_w == scale_h:
        if width <= height:
            image = image.resize((scale_w, int(scale_w * height / width)), resample)
        else:
            image = image.resize((int(scale_w * width / height), scale_w), resample)
    else:
        ratios = (height / scale_h, width / scale_w)
        ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
        image = image.resize((round(width / ratio), round(height / ratio)), resample)
    fill = tuple(round(255 * m) for m in spec.mean) if spec.crop_mode == "border" else (0, 0, 0)
    width, height = image.size
    padded_w, padded_h = max(width, spec.width), max(height, spec.height)
    canvas = Image.new("RGB", (padded_w, padded_h), fill)
    canvas.paste(image, ((padded_w - width) // 2, (padded_h - height) // 2))
    left, top = round((padded_w - spec.width) / 2), round((padded_h - spec.height) / 2)
    return np.asarray(canvas.crop((left, top, left + spec.width, top + spec.height)))


SIZES = [(40, 60), (61, 40), (33, 33), (20, 90), (90, 20), (7, 5), (1, 1), (1, 3), (64, 64), (200, 131)]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (50, 30)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.96, 1.0, 1.2, 0.5])
def test_geometry_is_timms(crop_mode: str, height: int, width: int, crop_pct: float) -> None:
    for interpolation in ("bicubic", "bilinear", "nearest", "lanczos"):
        spec = InputSpec(
            height=height, width=width, crop_mode=crop_mode, crop_pct=crop_pct, interpolation=interpolation
        )
        for size in SIZES:
            pixels = picture(*size)
            exact = prepare(pixels, spec)
            assert exact.shape == (height, width, 3)
            np.testing.assert_array_equal(exact, by_hand(pixels, spec), err_msg=f"{size} {spec}")
            fast = prepare(pixels, spec, "fast")
            assert np.abs(fast.astype(int) - exact).max() <= 2, (size, spec)


def test_the_published_recipes_resize_to_these_sides() -> None:
    for size, crop_pct, side in ((224, 0.96, 233), (224, 0.875, 256), (240, 0.875, 274), (408, 1.0, 408)):
        plan = geometry(500, 700, InputSpec(height=size, width=size, crop_pct=crop_pct))
        assert (plan.height, plan.width) == (side, int(side * 700 / 500))
        assert (plan.top, plan.left) == (round((side - size) / 2), round((plan.width - size) / 2))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 500), st.integers(1, 500),
    st.floats(0.1, 2), st.sampled_from(["center", "squash", "border"]),
)  # fmt: skip
def test_the_window_always_meets_the_image(h: int, w: int, height: int, width: int, pct: float, mode: str) -> None:
    plan = geometry(h, w, InputSpec(height=height, width=width, crop_pct=pct, crop_mode=mode))
    for offset, size, window in ((plan.top, plan.height, height), (plan.left, plan.width, width)):
        assert size >= 1
        assert abs(offset - (size - window) / 2) < 1  # centred
        assert (offset <= 0) if size <= window else (offset >= 0 and offset + window <= size)


def test_fast_where_an_axis_keeps_its_size_or_the_window_has_the_images_size() -> None:
    """Sizes at which a kernel could take "nothing to do" for an axis that has to be scaled."""
    for size in ((32, 50), (50, 32), (32, 32), (45, 41), (41, 37), (38, 64)):
        for crop_pct in (1.0, 0.875, 0.8, 0.7):
            spec = InputSpec(height=32, width=32, crop_pct=crop_pct)
            pixels = picture(*size)
            exact, fast = prepare(pixels, spec), prepare(pixels, spec, "fast")
            assert np.abs(fast.astype(int) - exact).max() <= 2, (size, crop_pct)


def test_fast_within_its_bound_on_many_sizes() -> None:
    """Tall images too, which Pillow resizes rows first; at most about one value in a million is 2 off."""
    off_by_two = values = 0
    for _ in range(60):
        height, width = (int(n) for n in RNG.integers(20, 500, 2))
        spec = InputSpec(height=96, width=96, interpolation=("bicubic", "bilinear")[_ % 2])
        pixels = picture(height, width)
        difference = np.abs(prepare(pixels, spec).astype(int) - prepare(pixels, spec, "fast"))
        assert difference.max() <= 2, (height, width)
        off_by_two += int((difference > 1).sum())
        values += difference.size
    assert off_by_two <= 2e-5 * values


def test_input_arrays_are_left_alone() -> None:
    pixels = picture(40, 50)
    pixels.setflags(write=False)
    copy = pixels.copy()
    for mode in ("exact", "fast"):
        result = prepare(pixels, InputSpec(height=32, width=32), mode)
        assert result.flags.writeable
        assert result.flags.c_contiguous
    np.testing.assert_array_equal(pixels, copy)


def test_elongated_arrays_are_refused_by_prepare_too() -> None:
    for source in (np.zeros((20_000, 1, 3), np.uint8), np.zeros((1, 20_000, 3), np.uint8)):
        for call in (prepare, load_pixels):
            with pytest.raises(ImageError) as error:
                call(source, InputSpec())
            assert error.value.code == "too_elongated"
    assert load_pixels(np.zeros((1000, 10, 3), np.uint8), InputSpec(), limits=DEFAULT_LIMITS).shape == (224, 224, 3)
    with pytest.raises(ImageError):
        load_pixels(np.zeros((1000, 10, 3), np.uint8), InputSpec(), limits=Limits(intermediate=256 * 25_599))


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="channels"):
        prepare(picture(4, 4), InputSpec(channels=1, mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize(
    "wrong",
    ["photo.jpg", None, np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 2, 4), np.uint8), np.zeros((1, 2, 2, 3), object),
     torch.zeros(1, 2, 2, 3).to_sparse(), torch.zeros(1, 2, 2, 3, device="meta")],
)  # fmt: skip
def test_normalise_refuses_what_is_no_batch_of_images(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"expected images \(B,H,W,3\)"):
        normalise(wrong, InputSpec())
    with pytest.raises(UsageError, match="expected an InputSpec"):
        normalise(np.zeros((1, 2, 2, 3), np.uint8), wrong)


def test_normalise() -> None:
    batch = RNG.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    got = normalise(batch, InputSpec(height=5, width=4))
    assert got.shape == (2, 3, 5, 4)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    want = ((batch.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)) - mean) / std
    np.testing.assert_array_equal(got.numpy(), want)
    assert torch.equal(normalise(torch.from_numpy(batch), InputSpec()), got)


def test_create_transform_takes_every_kind_of_source(tmp_path: Path) -> None:
    image = Image.fromarray(picture(50, 70))
    image.save(tmp_path / "a.png")
    transform = create_transform((3, 32, 40), interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tensors = [
        transform(source)
        for source in (image, np.asarray(image), tmp_path / "a.png", (tmp_path / "a.png").read_bytes())
    ]
    assert tensors[0].shape == (3, 32, 40)
    assert all(torch.equal(tensors[0], tensor) for tensor in tensors)
    assert -1 <= tensors[0].min() < tensors[0].max() <= 1
    assert create_transform(32)(image).shape == (3, 32, 32)
    assert create_transform((20, 30))(image).shape == (3, 20, 30)
    assert "bilinear" in repr(transform)


def test_training_transforms_take_timms_arguments() -> None:
    image = picture(50, 70)
    config: dict[str, Any] = dict(input_size=(3, 32, 40), crop_pct=0.9, crop_mode="squash", mean=(0.5,) * 3)
    transform = create_transform(
        **config,
        is_training=True,
        scale=[0.5, 1],
        ratio=[1, 1.5],
        train_crop_mode="rkrr",
        hflip=0.25,
        vflip=0.125,
        color_jitter=[0.1, 0.2, 0.3, 0.4],
        color_jitter_prob=0.75,
        force_color_jitter=True,
        grayscale_prob=0.1,
        gaussian_blur_prob=0.2,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        re_prob=0.3,
        re_mode="pixel",
        re_count=3,
        policy="timm",
    )
    assert transform == TrainTransform(
        InputSpec(height=32, width=40, mean=(0.5,) * 3),
        Augmentation(
            crop="rkrr",
            scale=(0.5, 1),
            ratio=(1, 1.5),
            hflip=0.25,
            vflip=0.125,
            color_jitter=(0.1, 0.2, 0.3, 0.4),
            color_jitter_prob=0.75,
            force_color_jitter=True,
            grayscale_prob=0.1,
            blur_prob=0.2,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="random",
        ),
        policy="timm",
        erasing=Erasing(prob=0.3, mode="pixel", count=3),
    )
    torch.manual_seed(3)
    first, second = transform(image), transform(image)
    assert first.shape == (3, 32, 40)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(transform(image), first)


def test_training_transforms_have_timms_defaults() -> None:
    def config(**arguments: Any) -> Augmentation:
        made = create_transform(32, is_training=True, **arguments)
        assert isinstance(made, TrainTransform)
        return made.config

    assert config() == Augmentation(color_jitter=0.4, interpolation="bilinear")
    assert config(color_jitter=None, auto_augment=None, scale=None).color_jitter == 0
    assert config(train_crop_mode="rkrc").ranges == ((0.8, 1.0), (0.9, 1 / 0.9))
    bare = create_transform(32, is_training=True, no_aug=True, re_prob=1.0, auto_augment="3a")
    spec = InputSpec(height=32, width=32, crop_pct=1.0, interpolation="bilinear")
    image = picture(50, 70)
    assert torch.equal(bare(image), normalise(prepare(image, spec)[None], spec)[0])
    with pytest.raises(UsageError, match="crop is 'random'"):
        config(train_crop_mode="random")
    with pytest.raises(UsageError, match="interpolation is 'random'"):
        create_transform(32, interpolation="random")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(normalize=False),
        dict(use_prefetcher=True),
        dict(crop_border_pixels=3),
        dict(mode="fast"),
        dict(is_training=True, auto_augment="rand-m9", re_prob=1.0),
        dict(is_training=True, no_aug=True),
        dict(is_training=True, normalize=False, re_prob=1.0),
    ],
)
def test_the_steps_of_a_transform_give_what_the_whole_gives(arguments: dict[str, Any]) -> None:
    transform = create_transform((3, 32, 40), **arguments)
    image = picture(50, 70)
    torch.manual_seed(1)
    whole = transform(image)
    torch.manual_seed(1)
    x: Any = image
    for step in transform.transforms:
        x = step(x)
    assert torch.equal(x, whole)
    uint8 = arguments.get("use_prefetcher") or not arguments.get("normalize", True)
    assert whole.dtype == (torch.uint8 if uint8 else torch.float32)
    assert pickle.loads(pickle.dumps(transform)) == transform


def test_a_border_is_cut_before_resizing() -> None:
    image = picture(50, 70)
    cut = create_transform(32, crop_border_pixels=5)(image)
    assert torch.equal(cut, create_transform(32)(image[5:-5, 5:-5]))
    with pytest.raises(ImageError, match="nothing is left"):
        create_transform(32, crop_border_pixels=25)(image)


def test_training_arguments_do_not_change_the_evaluation_transform() -> None:
    config: dict[str, Any] = dict(input_size=(3, 32, 32), crop_pct=0.9)
    plain = create_transform(**config)
    assert create_transform(**config, scale=(0.5, 1), auto_augment="rand-m9", re_prob=1.0, vflip=1.0) == plain


@pytest.mark.parametrize(
    "fields",
    [
        dict(height=0),
        dict(width=-3),
        dict(height=22.5),
        dict(interpolation="cubic"),
        dict(crop_mode="centre"),
        dict(crop_pct=0.0),
        dict(crop_pct=math.nan),
        dict(crop_pct=math.inf),
        dict(mean=(0.5, 0.5)),
        dict(std=(0.5, 0.5, 0.0)),
    ],
)
def test_impossible_specs(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        InputSpec(**fields)
    assert error.value.code == "bad_argument"


def test_cfg_round_trip(golden_dir: Path) -> None:
    spec = InputSpec(height=240, width=200, crop_pct=0.9, crop_mode="border", interpolation="lanczos", mean=(0, 0, 0))
    assert InputSpec.from_cfg(spec.to_cfg()) == spec
    assert InputSpec.from_cfg({}) == InputSpec()
    assert InputSpec.from_cfg({"mean": [0.5], "std": [0.25], "url": "x"}).std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    "cfg",
    [
        {"input_size": 224},
        {"input_size": [224, 224]},
        {"input_size": [3, "a", 224]},
        {"interpolation": "random"},
        {"crop_pct": "much"},
        {"mean": "abc"},
        {"mean": [0.5, 0.5]},
        {"std": [0, 0, 0]},
    ],
)
def test_unusable_cfg(cfg: dict[str, Any]) -> None:
    with pytest.raises(WeightsError) as error:
        InputSpec.from_cfg(cfg)
    assert error.value.code == "bad_config"


def test_resolve_data_config() -> None:
    default = resolve_data_config()
    assert default == dict(
        input_size=(3, 224, 224),
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        crop_pct=0.875,
        crop_mode="center",
    )
    cfg = dict(input_size=[3, 240, 240], test_input_size=[3, 288, 288], crop_pct=0.9, test_crop_pct=1.0, mean=[0.5])
    assert resolve_data_config({}, cfg)["input_size"] == (3, 240, 240)
    assert resolve_data_config({}, cfg)["mean"] == (0.5, 0.5, 0.5)
    tested = resolve_data_config({}, cfg, use_test_size=True)
    assert (tested["input_size"], tested["crop_pct"]) == ((3, 288, 288), 1.0)
    given_size = dict(input_size=(1, 32, 48), img_size=64, in_chans=2, crop_pct=0.5)
    assert resolve_data_config(given_size, cfg)["input_size"] == (1, 32, 48)
    assert resolve_data_config(dict(img_size=64), cfg)["input_size"] == (3, 64, 64)
    assert resolve_data_config(dict(img_size=64, in_chans=1), cfg)["input_size"] == (1, 64, 64)
    assert resolve_data_config(dict(crop_pct=None), cfg)["crop_pct"] == 0.9
    assert resolve_data_config(dict(crop_pct=0.5), cfg, use_test_size=True)["crop_pct"] == 0.5
    model = SimpleNamespace(pretrained_cfg=cfg)
    assert resolve_model_data_config(model) == resolve_data_config({}, cfg)
    create_transform(**resolve_model_data_config(model), is_training=False)


@pytest.mark.parametrize("channels", [1, 4])
def test_three_means_for_other_channels_are_averaged(channels: int) -> None:
    cfg = dict(input_size=(channels, 32, 32), mean=(0.2, 0.4, 0.9), std=(0.1, 0.2, 0.6))
    resolved = resolve_data_config(pretrained_cfg=cfg)
    assert resolved["mean"] == pytest.approx((0.5,) * channels)
    assert resolved["std"] == pytest.approx((0.3,) * channels)
    assert InputSpec.from_cfg(cfg).channels == channels
    asked = resolve_data_config(dict(mean=(0.2, 0.4, 0.9)), cfg)
    with pytest.raises(UsageError, match="do not give"):
        create_transform(**asked)
    assert resolve_data_config(dict(in_chans=channels, img_size=32))["mean"] == pytest.approx(
        (0.449,) * channels, abs=1e-3
    )


@pytest.mark.slow
def test_fast_on_real_photographs(shared_data: Path) -> None:
    """Every 20th of the shared photographs (the benchmark takes all): at most 2 grey levels, mostly none."""
    specs = [InputSpec(), InputSpec(interpolation="bilinear"), InputSpec(height=408, width=408, crop_pct=1.0)]
    off_by_two = values = 0
    with tarfile.open(shared_data / "photos.tar") as archive:
        photos = [m for m in archive if m.name.endswith(".jpg")][::20]
        for member in photos:
            file = archive.extractfile(member)
            assert file is not None
            data = io.BytesIO(file.read()).getvalue()
            for spec in specs:
                exact = load_pixels(data, spec, policy="timm")
                difference = np.abs(exact.astype(int) - load_pixels(data, spec, policy="timm", mode="fast"))
                assert difference.max() <= 2, (member.name, spec)
                off_by_two += int((difference > 1).sum())
                values += difference.size
    assert len(photos) == 50
    assert off_by_two <= 1e-5 * values
