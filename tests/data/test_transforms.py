"""Test normalisation, the public names of `tessella.data`, and what importing them loads."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import tessella.data
from tessella.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from tessella.data.spec import InputSpec
from tessella.data.transforms import normalise
from tessella.errors import UsageError

RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    "wrong",
    [
        "photo.jpg",
        None,
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((1, 2, 2, 4), np.uint8),
        np.zeros((1, 2, 2, 3), object),
        torch.zeros(1, 2, 2, 3).to_sparse(),
        torch.zeros(1, 2, 2, 3, device="meta"),
    ],
)
def test_normalise_refuses_anything_but_batches_of_images(wrong: Any) -> None:
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


def test_importing_is_cheap() -> None:
    code = "import tessella.data, tessella.data.labels, sys; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    light = "import tessella.data.sources, tessella.data.decode, sys; assert 'torch' not in sys.modules"
    for program in (code, light):
        subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names() -> None:
    for name in tessella.data.__all__:
        assert getattr(tessella.data, name) is not None
        assert name in dir(tessella.data)
    with pytest.raises(AttributeError):
        _ = tessella.data.nothing
