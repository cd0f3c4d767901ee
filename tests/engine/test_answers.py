"""The answers of engines that were just opened: a short version of `scripts/soak answers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessella.performance.candidates import Case

from .answers import PASSES, open_repeatedly


@pytest.mark.parametrize("name", ["mixer_ti_p4_32.cifar10", "crossvit_ti_dagger_p4_32.cifar10"])
def test_the_first_answers_are_those_of_the_model(name: str) -> None:
    found = open_repeatedly(name, seconds=2)
    assert found.answers == 8 * PASSES * found.engines > 0
    assert not found.wrong


def test_one_wrong_image_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def expected(self: Case, pixels: np.ndarray) -> Any:
        logits = truth(self, pixels)
        logits[3] *= 1.01
        return logits

    truth = Case.expected
    monkeypatch.setattr(Case, "expected", expected)
    found = open_repeatedly("mixer_ti_p4_32.cifar10", seconds=0)
    assert len(found.wrong) == found.engines == 1
    assert [max(errors) > 1e-3 for errors in zip(*found.wrong[0]["errors"], strict=True)] == [i == 3 for i in range(8)]
