"""A saved model with a new head gives the logits of the probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tessella
from tessella.data.datasets import open_labelled
from tessella.evaluation.head import LinearHead, attach
from tessella.evaluation.linear_probe import probe
from tessella.predictor import Output, Predictor
from tessella.results import softmax

from ..models.tiny import TINY
from .coloured_images import NO_SHOTS, predictor_of


@pytest.mark.parametrize("case", TINY)
def test_the_attached_model_gives_the_outputs_of_the_probe(case: str, data: Path, tmp_path: Path) -> None:
    predictor = predictor_of(case)
    before = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    result = probe(data, predictor, NO_SHOTS, attach_to=tmp_path / "model")
    assert result.attached == tmp_path / "model"
    again = tessella.load(f"local-dir:{tmp_path / 'model'}", engine="eager")
    assert again.labels == ("blue", "green", "red")
    assert again.spec == predictor.spec
    val = open_labelled(data, "val")
    outputs = list(again.outputs([val.source(int(i)) for i in result.answers.index]))
    logits = np.stack([item.logits for item in outputs if isinstance(item, Output)])
    vectors = np.stack([item.embedding for item in outputs if isinstance(item, Output)])
    assert np.abs(logits - result.head(vectors)).max() < 1e-4 * max(np.abs(logits).max(), 1)
    assert logits.argmax(1).tolist() == result.answers.predicted.tolist()
    assert softmax(logits).max(1) == pytest.approx(result.answers.confidence, abs=1e-3)
    tops = again.classify([val.read(int(i)) for i in result.answers.index], top=1)
    assert [top[0].index for top in tops] == result.answers.predicted.tolist()
    # the names of the old head are removed, and the old model is unchanged
    assert "tag" not in again.model.pretrained_cfg
    after = predictor.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_head_with_as_many_classes_has_its_own_names(predictor: Predictor, tmp_path: Path) -> None:
    width = predictor.width
    head = LinearHead(np.ones((5, width), np.float32), np.arange(5, dtype=np.float32))
    attach(predictor, head, tuple("vwxyz"), tmp_path / "model")
    again = tessella.load(f"local-dir:{tmp_path / 'model'}", engine="eager")
    assert again.labels == tuple("vwxyz")
    assert again.classify(np.zeros((32, 32, 3), np.uint8), top=1)[0].label == "z"
