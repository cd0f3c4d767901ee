"""Test that mode "exact" with policy "timm" equals the evaluation transform of timm 1.0.31, bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tessella.data.decode import decode
from tessella.data.factory import create_transform
from tessella.data.resize import prepare
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels

GOLDEN = json.loads((Path(__file__).resolve().parent.parent / "golden" / "transforms.json").read_text())
CASES = sorted(GOLDEN["sha256_uint8"])


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def spec_of(case: str) -> InputSpec:
    return InputSpec.from_cfg(GOLDEN["configs"][case.split("/")[0]])


@pytest.mark.parametrize("case", CASES)
def test_pixels_and_tensors_equal_timm(case: str, golden_dir: Path) -> None:
    spec, path = spec_of(case), golden_dir / "images" / case.split("/")[1]
    assert sha256(load_pixels(path, spec, policy="timm")) == GOLDEN["sha256_uint8"][case]
    tensor = create_transform(**spec.to_cfg(), policy="timm")(path)
    assert tensor.dtype == torch.float32
    assert sha256(tensor.numpy()) == GOLDEN["float"][case]["sha256"]


def test_pixels_equal_the_stored_arrays(golden_dir: Path) -> None:
    """The hashes of the other test show that something differs; these arrays show what."""
    for case, pixels in load_file(golden_dir / "transforms.safetensors").items():
        np.testing.assert_array_equal(
            load_pixels(golden_dir / "images" / case.split("/")[1], spec_of(case), policy="timm"), pixels
        )


@pytest.mark.parametrize("case", CASES)
def test_fast_is_within_its_bound_of_exact(case: str, golden_dir: Path) -> None:
    spec, path = spec_of(case), golden_dir / "images" / case.split("/")[1]
    exact, fast = (load_pixels(path, spec, policy="timm", mode=mode).astype(int) for mode in ("exact", "fast"))
    difference = np.abs(exact - fast)
    assert difference.max() <= 2
    assert np.count_nonzero(difference > 1) <= 2e-5 * difference.size


def test_fast_decodes_the_same_pixels(golden_dir: Path) -> None:
    for path in sorted((golden_dir / "images").glob("*.jpg")):
        for policy in ("tessella", "timm"):
            exact, fast = (decode(path, policy=policy, mode=mode) for mode in ("exact", "fast"))
            np.testing.assert_array_equal(exact, fast, err_msg=f"{path.name} {policy}")


def test_prepare_of_decoded_pixels_equals_load_pixels(golden_dir: Path) -> None:
    path = golden_dir / "images" / "landscape.jpg"
    np.testing.assert_array_equal(prepare(decode(path), InputSpec()), load_pixels(path, InputSpec()))
