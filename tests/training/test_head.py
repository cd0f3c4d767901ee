"""The linear probe that fine-tuning starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tessella.data.datasets import open_labelled
from tessella.training import checkpoint, loop
from tessella.training.config import TrainConfig
from tessella.training.events import EmbeddingEvent, EpochEvent, ProbeEvent
from tessella.training.validation import Validation

from .small_runs import FAMILIES, remarks_of, run, small


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("model", FAMILIES)
def test_fine_tuning_starts_from_a_linear_probe(data: Path, tmp_path: Path, model: str) -> None:
    events = run(data, tmp_path / "run", small(model, probe=True, freeze_batch_norm_stats=True, lr=1e-9))
    probed, *epochs = [event for event in events if isinstance(event, ProbeEvent | EpochEvent)]
    assert isinstance(probed, ProbeEvent)
    assert probed.val_top1 > 0.9
    for epoch in epochs:  # nothing changes at such a learning rate
        assert epoch.val_loss == pytest.approx(probed.val_loss, abs=2e-3)
    assert (probed.step, probed.epoch) == (0, -1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [-1, 0, 1, 2]
    embedded = [event for event in events if isinstance(event, EmbeddingEvent)]
    assert embedded[-1].done == embedded[-1].images == len(open_labelled(data, "train"))
    assert [event.done for event in embedded[:-1]] == [16 * n for n in range(1, len(embedded))]
    assert events.index(embedded[-1]) < events.index(probed)


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    ("top1", "loss", "checkpoint_id", "text"),
    [
        ((0.5, 0.25, 0.5, 0.25), (0.3, 0.1, 0.4, 0.1), 0, "did not beat the linear probe (50.00 %): the weights of"),
        ((0.5, 0.25, 0.75, 0.5), (0.3, 0.1, 0.4, 0.1), 8, "beat the linear probe (75.00 % against 50.00 %)"),
        ((0.5, 0.25, 0.5, 0.5), (0.3, 0.1, 0.4, 0.1), 12, "equals the linear probe in accuracy and has a lower loss"),
    ],
)
def test_the_better_of_probe_and_fine_tuning_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top1: Any, loss: Any, checkpoint_id: int, text: str
) -> None:
    results = [Validation(a, b, 24, 0) for a, b in zip(top1, loss, strict=True)]
    monkeypatch.setattr(loop, "validate", lambda *_: results.pop(0))
    events = run(data, tmp_path / "run", small(probe=True))
    assert text in remarks_of(events)
    weights = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    for name, value in checkpoint.read(tmp_path / "run", checkpoint_id).tensors["model"].items():
        assert torch.equal(value, weights[name])


@pytest.mark.usefixtures("without_report")
def test_a_classifier_for_the_same_classes_is_not_replaced(data: Path, finished_run: Path, tmp_path: Path) -> None:
    config = TrainConfig(model=f"local-dir:{finished_run}", init_from="pretrained", probe=True, epochs=1, batch_size=16)
    assert not any(isinstance(event, ProbeEvent) for event in run(data, tmp_path / "run", config))
