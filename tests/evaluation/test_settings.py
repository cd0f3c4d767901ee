"""Settings are checked when they are created."""

from __future__ import annotations

from typing import Any

import pytest

from tessella.errors import UsageError
from tessella.evaluation.settings import EvaluationSettings, ProbeSettings


@pytest.mark.parametrize(
    "wrong",
    [
        dict(dataset="imagenet-q"),
        dict(batch_size="8"),
        dict(transform="slow"),
        dict(engine=8),
        dict(engine=[]),
        dict(precision=()),
    ],
)
def test_invalid_evaluation_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))) as caught:
        EvaluationSettings(**wrong)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("wrong", [dict(shots=(0,)), dict(accuracy=95.0), dict(seed=-1), dict(val_fraction="half")])
def test_invalid_probe_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))) as caught:
        ProbeSettings(**wrong)
    assert caught.value.code == "bad_argument"


def test_data_sets_can_be_named() -> None:
    assert EvaluationSettings(dataset="none").dataset == "none"
    assert EvaluationSettings(dataset="imagenet-real").dataset == "imagenet-real"
