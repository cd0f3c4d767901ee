"""Classes of the data are matched with those of the model by name, WordNet id or index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessella.data.datasets import open_labelled
from tessella.engine import make_plan
from tessella.errors import UsageError
from tessella.evaluation.classes import match_classes
from tessella.evaluation.evaluator import measure
from tessella.predictor import Predictor

from ..models.tiny import tiny
from .small_data import NAMES, SYNSETS, folder_of, logits_of, predictor_of


def test_the_same_names_in_another_order_are_mapped(folder: Path) -> None:
    images = open_labelled(folder)
    ordered, shuffled = predictor_of(), predictor_of(NAMES[::-1])  # the same outputs with other names
    predicted = logits_of(ordered, images).argmax(1)
    names = np.array(NAMES)
    row = measure(shuffled, images)
    assert row.metrics
    assert row.metrics.top1 == (names[::-1][predicted] == names[images.labels]).mean()
    assert row.metrics.classes == NAMES[::-1]
    assert row.metrics.confusion.sum(1).tolist() == [6] * 5


def test_predictions_of_classes_outside_the_data_count_as_wrong(tmp_path: Path) -> None:
    images = open_labelled(folder_of(tmp_path, ("cat", "dog"), each=15))
    predictor = predictor_of()
    logits = logits_of(predictor, images)
    truth = images.labels + 2
    row = measure(predictor, images)
    assert row.metrics
    assert row.metrics.top1 == (logits.argmax(1) == truth).mean()
    assert len(row.metrics.classes) == 5
    assert row.classes == "2 of the model's 5, matched by name; predictions of other classes count as wrong"
    row = measure(predictor, images, restrict=True)
    assert row.metrics
    assert row.metrics.top1 == (logits[:, 2:4].argmax(1) == images.labels).mean()
    assert row.metrics.classes == ("cat", "dog")


def test_synsets_are_matched_and_others_cannot_be_predicted(tmp_path: Path, imagenet: Predictor) -> None:
    wanted = [SYNSETS[i] for i in (980, 7, 300)]
    images = open_labelled(folder_of(tmp_path, wanted))
    columns = [7, 300, 980]
    assert images.classes == tuple(SYNSETS[i] for i in columns)  # ids are in the order of the indices
    logits = logits_of(imagenet, images)
    row = measure(imagenet, images)
    assert row.metrics
    assert row.metrics.top1 == (logits[:, columns].argmax(1) == images.labels).mean()
    assert row.metrics.top1 > (logits.argmax(1) == np.array(columns)[images.labels]).mean()
    assert row.metrics.classes == tuple(imagenet.labels[i] for i in columns)
    assert row.metrics.top5 is None
    assert row.classes == "3 of the model's 1,000, matched by WordNet id; only these can be predicted"
    all_of_them = measure(imagenet, images, restrict=False).metrics
    assert all_of_them
    assert all_of_them.top1 == (logits.argmax(1) == np.array(columns)[images.labels]).mean()
    assert len(all_of_them.classes) == 1000


def test_indices_as_folder_names_are_numbers(imagenet: Predictor) -> None:
    names = sorted(map(str, range(1000)))  # 0, 1, 10, 100, ...
    match = match_classes(names, imagenet)
    assert match.positions.tolist() == [int(name) for name in names]
    assert match.columns.tolist() == list(range(1000))
    assert match.naming == "indices"


def test_a_model_whose_labels_are_synsets() -> None:
    predictor = predictor_of(SYNSETS[10:15])
    match = match_classes([SYNSETS[13], SYNSETS[11]], predictor)
    assert match.columns.tolist() == [1, 3]
    assert match.positions.tolist() == [1, 0]


def test_ambiguous_class_names_are_not_matched(imagenet: Predictor) -> None:
    with pytest.raises(UsageError, match="'crane'"):
        match_classes(["crane", imagenet.labels[0]], imagenet)
    assert match_classes(imagenet.labels, imagenet).positions.tolist() == list(range(1000))  # all of them, in order


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (
            ["ant", "yak", "zebra"],
            "2 of the 3 classes in the data, such as 'yak', 'zebra'; its 5 classes include 'ant'",
        ),
        (["0", "1"], "'0', '1'"),  # not all of its indices
        (list(SYNSETS[:6]), "6 of the 6 classes"),
    ],
)
def test_the_error_for_a_missing_class_names_the_classes_of_data_and_model(classes: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        match_classes(classes, predictor_of())
    assert caught.value.code == "bad_argument"
    assert says in caught.value.message
    assert "'eel'" in caught.value.message or ", ..." in caught.value.message


def test_a_model_without_classifier_is_refused() -> None:
    model = tiny("mixer", num_classes=0)
    model.pretrained_cfg = dict(input_size=(3, 32, 32))
    with pytest.raises(UsageError, match="no classifier"):
        match_classes(NAMES, Predictor(model, plan=make_plan("cpu", engine="eager")))
