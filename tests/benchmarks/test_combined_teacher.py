"""A teacher with two embeddings computes those of its models, scaled to equal variance."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.results import l2_normalize

from ..test_builtin import CIFAR10_MODEL
from .test_photographs import ROOT, load, teacher_weights, write_teacher

combined_teacher, neighbors = load("combined_teacher"), load("neighbors")


def test_both_embeddings_of_the_same_pixels(tmp_path: Path) -> None:
    file = write_teacher(tmp_path / "first.xml")
    folder = combined_teacher.write_teacher(file, CIFAR10_MODEL, (0.5, 2.0), tmp_path / "teacher")
    squares = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    images = squares.repeat(7, 1).repeat(7, 2)  # their averages over 7 x 7 pixels are the squares
    logits, vectors = neighbors.outputs_of(tessella.load(f"local-dir:{folder}"), images)
    means = images.mean((1, 2))
    np.testing.assert_allclose(logits, means @ teacher_weights()[1:].T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(vectors[:, :3], 0.5 * l2_normalize(means), rtol=1e-4)
    expected = tessella.load(CIFAR10_MODEL, engine="openvino").embed(squares)
    np.testing.assert_allclose(vectors[:, 3:], 2 * expected, atol=1e-5)


def test_the_second_has_the_weight_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = write_teacher(tmp_path / "first.xml"), tmp_path / "teacher"
    images = [str(ROOT / "clothing" / "hat"), str(ROOT / "clothing" / "pants")]
    arguments = ["combined_teacher.py", str(file), str(folder), "--weight", "0.5", "--images", *images]
    monkeypatch.setattr(sys, "argv", arguments)
    combined_teacher.main()
    sources = [path for name in images for path in sorted(Path(name).glob("*.jpg"))]
    _, vectors = neighbors.outputs_of(tessella.load(f"local-dir:{folder}"), sources)
    assert combined_teacher.deviations(vectors, 3) == pytest.approx((1, 0.5), rel=1e-3)
