"""Which epoch is the best, and how it is compared with the linear probe."""

from __future__ import annotations

import json

import pytest

from tessella.training.validation import BestEpoch, ProbeBaseline, Validation

BEST = BestEpoch(top1=0.5, loss=0.4, epoch=2, checkpoint_id=9)


@pytest.mark.parametrize(
    ("top1", "loss", "is_better"),
    [(0.6, 0.9, True), (0.5, 0.3, True), (0.5, 0.4, False), (0.5, 0.5, False), (0.4, 0.1, False)],
)
def test_accuracy_counts_before_loss_and_the_earlier_of_equal_epochs_stays(
    top1: float, loss: float, is_better: bool
) -> None:
    best = BEST.better(Validation(top1, loss, 8, 0), epoch=3, checkpoint_id=12)
    assert best == (BestEpoch(top1, loss, 3, 12) if is_better else BEST)


def test_any_epoch_is_better_than_none() -> None:
    assert BestEpoch().better(Validation(0.0, 5.0, 8, 0), 0, 4) == BestEpoch(0.0, 5.0, 0, 4)


def test_the_state_in_a_checkpoint_has_the_keys_of_earlier_versions() -> None:
    state = json.loads(json.dumps(BEST.as_state()))
    assert state == dict(top1=0.5, loss=0.4, epoch=2, moment=9)
    assert BestEpoch.from_state(state) == BEST


def test_the_last_epoch_is_named_if_it_is_kept() -> None:
    text = ProbeBaseline(top1=0.25, loss=1.0).comparison(BEST, selects_last=True)
    assert text == "fine-tuning beat the linear probe (50.00 % against 25.00 %): the weights of the last epoch are kept"
