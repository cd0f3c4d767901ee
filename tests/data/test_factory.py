"""Test `create_transform`: timm's arguments, the steps of the transforms, and every kind of source."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.data.augment import Augmentation, TrainTransform
from tessella.data.factory import create_transform
from tessella.data.mix import Erasing
from tessella.data.resize import prepare
from tessella.data.spec import InputSpec
from tessella.data.transforms import normalise
from tessella.errors import ImageError, UsageError

from .distributions import picture


def test_create_transform_accepts_every_kind_of_source(tmp_path: Path) -> None:
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


def test_training_transforms_accept_timms_arguments() -> None:
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
def test_the_steps_of_a_transform_equal_the_transform(arguments: dict[str, Any]) -> None:
    transform = create_transform((3, 32, 40), **arguments)
    image = picture(50, 70)
    torch.manual_seed(1)
    expected = transform(image)
    torch.manual_seed(1)
    x: Any = image
    for step in transform.transforms:
        x = step(x)
    assert torch.equal(x, expected)
    uint8 = arguments.get("use_prefetcher") or not arguments.get("normalize", True)
    assert expected.dtype == (torch.uint8 if uint8 else torch.float32)
    assert pickle.loads(pickle.dumps(transform)) == transform


def test_borders_are_cut_before_resizing() -> None:
    image = picture(50, 70)
    cut = create_transform(32, crop_border_pixels=5)(image)
    assert torch.equal(cut, create_transform(32)(image[5:-5, 5:-5]))
    with pytest.raises(ImageError, match="nothing is left"):
        create_transform(32, crop_border_pixels=25)(image)


def test_training_arguments_do_not_change_the_evaluation_transform() -> None:
    config: dict[str, Any] = dict(input_size=(3, 32, 32), crop_pct=0.9)
    plain = create_transform(**config)
    assert create_transform(**config, scale=(0.5, 1), auto_augment="rand-m9", re_prob=1.0, vflip=1.0) == plain
