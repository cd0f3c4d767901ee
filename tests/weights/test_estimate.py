"""The cost that follows from a config is what counting the operations of the model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tessella.errors import UsageError
from tessella.models import ARCHITECTURES, build
from tessella.models.configs import configure
from tessella.weights.costs import read_costs
from tessella.weights.counting import model_facts
from tessella.weights.estimate import estimate

from ..models.test_layout import FAMILIES
from ..models.tiny import TINY

SIZE = (224, 224)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(arch: str) -> None:
    for row in (row for name, row in read_costs().items() if name.partition(".")[0] == arch):
        height, width = row["input_size"][1:]
        assert estimate(configure(arch, num_classes=row["num_classes"]), (height, width)) == row


def check(arch: str, overrides: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = build(arch, **overrides)
    assert estimate(configure(arch, **overrides), SIZE) == model_facts(model)


@pytest.mark.parametrize("case", TINY)
def test_every_kind(case: str) -> None:
    arch, small = TINY[case]
    check(arch, small)
    check(arch, {**small, "num_classes": 0})


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("arch", FAMILIES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_config(arch: str, data: st.DataObject) -> None:
    overrides = data.draw(FAMILIES[arch])
    try:
        configure(arch, **overrides)
    except UsageError:
        reject()
    check(arch, overrides)


def test_an_image_that_is_smaller_than_a_patch() -> None:
    with pytest.raises(UsageError) as caught:
        estimate(configure("convmixer_768_32"), (6, 100))
    assert caught.value.code == "wrong_input_size"
