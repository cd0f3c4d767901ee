"""A saved model with a new head gives the logits of the probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tessella
from tessella.data.datasets import open_labelled
from tessella.evaluation.head import Head, attach
from tessella.evaluation.linear_probe import probe
from tessella.predictor import Output, Predictor
from tessella.results import softmax

from ..models.tiny import TINY
from .coloured_images import NO_SHOTS, predictor_of


@pytest.mark.parametrize("case", TINY)
def test_the_attached_model_answers_as_the_probe(case: str, data: Path, tmp_path: Path) -> None:
    predictor = predictor_of(case)
    before = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    found = probe(data, predictor, NO_SHOTS, attach_to=tmp_path / "model")
    assert found.attached == tmp_path / "model"
    again = tessella.load(f"local-dir:{tmp_path / 'model'}", engine="eager")
    assert again.labels == ("blue", "green", "red")
    assert again.spec == predictor.spec
    val = open_labelled(data, "val")
    outputs = list(again.outputs([val.source(int(i)) for i in found.answers.index]))
    logits = np.stack([one.logits for one in outputs if isinstance(one, Output)])
    vectors = np.stack([one.embedding for one in outputs if isinstance(one, Output)])
    assert np.abs(logits - found.head(vectors)).max() < 1e-4 * max(np.abs(logits).max(), 1)
    assert logits.argmax(1).tolist() == found.answers.predicted.tolist()
    assert softmax(logits).max(1) == pytest.approx(found.answers.confidence, abs=1e-3)
    tops = again.classify([val.read(int(i)) for i in found.answers.index], top=1)
    assert [top[0].index for top in tops] == found.answers.predicted.tolist()
    # nothing of the old head's names is left, and the old model is as it was
    assert "tag" not in again.model.pretrained_cfg
    after = predictor.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_head_with_as_many_classes_has_its_own_names(predictor: Predictor, tmp_path: Path) -> None:
    width = predictor.width
    head = Head(np.ones((5, width), np.float32), np.arange(5, dtype=np.float32))
    attach(predictor, head, tuple("vwxyz"), tmp_path / "model")
    again = tessella.load(f"local-dir:{tmp_path / 'model'}", engine="eager")
    assert again.labels == tuple("vwxyz")
    assert again.classify(np.zeros((32, 32, 3), np.uint8), top=1)[0].label == "z"
