"""Test the normalisation of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

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
    actual = normalise(batch, InputSpec(height=5, width=4))
    assert actual.shape == (2, 3, 5, 4)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    expected = ((batch.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)) - mean) / std
    np.testing.assert_array_equal(actual.numpy(), expected)
    assert torch.equal(normalise(torch.from_numpy(batch), InputSpec()), actual)
