"""What the configs of several families share: sizes of images and patch grids, and checks of values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

from ...errors import UsageError

Pair = tuple[int, int]
MAX_CLASSES = 1_000_000
MAX_BLOCKS = 1000  # in a model


def to_pair(size: int | Sequence[int], name: str = "img_size") -> Pair:
    """Return (height, width) in pixels from `224`, `(224, 320)` or a list, as in JSON files.

    name: the argument in the message. Raises UsageError `bad_argument` for other values.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UsageError("bad_argument", f"{name} is {size!r}, expected a positive integer or (height, width)")
    return pair[0], pair[1]


def to_grid(img_size: Pair, patch_size: int, name: str = "img_size") -> Pair:
    """Return (rows, columns) of patches for (height, width) in pixels.

    name: the argument in the message. Raises UsageError `bad_argument` if patches do not divide the size.
    """
    if img_size[0] % patch_size or img_size[1] % patch_size:
        raise UsageError(
            "bad_argument",
            f"{name} {img_size[0]}x{img_size[1]} px is not a multiple of patch_size {patch_size} px",
            hint=f"use a height and width divisible by {patch_size}",
        )
    return img_size[0] // patch_size, img_size[1] // patch_size


def linear_rates(rate: float, depth: int) -> list[float]:
    """Return drop-path rates that grow linearly from 0 at the first block to `rate` at the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def check_classes(num_classes: int) -> None:
    """Raise UsageError `bad_argument` unless the number of classes is an integer from 0 to MAX_CLASSES."""
    if not isinstance(num_classes, Integral) or not 0 <= num_classes <= MAX_CLASSES:
        raise UsageError("bad_argument", f"num_classes is {num_classes!r}, expected 0 to {MAX_CLASSES:,}")


def check_pool(global_pool: str, allowed: Sequence[str]) -> str:
    """Return `global_pool`; raise UsageError `bad_argument` unless it is one of `allowed`."""
    if global_pool not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise UsageError("bad_argument", f"global_pool is {global_pool!r}, expected one of {names}")
    return global_pool


def check_least(config: object, least: int, *names: str) -> None:
    """Raise UsageError `bad_argument` unless the named fields, or all values in them, are at least `least`."""
    for name in names:
        value = getattr(config, name)
        if not all(item >= least for item in (value if isinstance(value, Iterable) else (value,))):
            raise UsageError("bad_argument", f"{name} is {value!r}, expected {least} or more")


def check_rates(config: object, *names: str) -> None:
    """Raise UsageError `bad_argument` unless the named fields are probabilities."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UsageError("bad_argument", f"{name} is {getattr(config, name)!r}, expected 0 to 1")


def hidden_units(width: int, ratio: float) -> int:
    """Return the number of hidden units of an MLP for tokens of `width`.

    Raises UsageError `bad_argument` if there are none.
    """
    units = int(width * ratio)
    if units < 1:
        raise UsageError("bad_argument", f"mlp_ratio {ratio!r} of width {width} gives {units} hidden units")
    return units
