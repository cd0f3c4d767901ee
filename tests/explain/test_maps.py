"""Attribution maps: resampling to pixels and back."""

from __future__ import annotations

import numpy as np
import pytest

from tessella.explain.maps import cell_means, upsample


def test_blocks_repeat_each_cell() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(upsample(values, 4, 9, smooth=False), values.repeat(2, 0).repeat(3, 1))


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"), [(2, 3, 4, 9), (1, 1, 5, 7), (7, 5, 33, 41), (4, 4, 4, 4)]
)
def test_cell_means_undo_blocks(rows: int, columns: int, height: int, width: int) -> None:
    values = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    assert np.allclose(cell_means(upsample(values, height, width, smooth=False), rows, columns), values, atol=1e-6)


def test_smooth_maps_interpolate_between_centers() -> None:
    values = np.array([[0.0, 1.0]], np.float32)
    row = upsample(values, 3, 8)
    # centers of the two cells are at pixels 1.5 and 5.5
    assert np.allclose(row[0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
    assert (row == row[0]).all()


def test_smooth_maps_keep_linear_functions_between_the_outermost_centers() -> None:
    ramp = np.add.outer(np.arange(5.0), 2 * np.arange(6.0)).astype(np.float32)
    pixels = upsample(ramp, 50, 60)
    y, x = (np.arange(50) + 0.5) / 10 - 0.5, (np.arange(60) + 0.5) / 10 - 0.5
    inside = np.ix_((y >= 0) & (y <= 4), (x >= 0) & (x <= 5))
    assert np.allclose(pixels[inside], np.add.outer(y, 2 * x)[inside], atol=1e-5)
