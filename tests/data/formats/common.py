"""Images and helpers of the tests of formats."""

from __future__ import annotations

import numpy as np
import pytest

from tessella.data.decode import Mode, Policy, decode
from tessella.errors import ImageError

from ..generated import smooth

RNG = np.random.default_rng(11)


PHOTO = smooth(RNG, 40, 60, 3)


NOISE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def error_code(data: bytes, policy: Policy = "tessella", mode: Mode = "exact") -> str:
    try:
        decode(data, policy=policy, mode=mode)
    except ImageError as error:
        return error.code
    return "ok"


def refusal_message(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        decode(data)
    assert error.value.code == "unsupported_format"
    return error.value.message
