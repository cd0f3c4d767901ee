"""Published data sets are recognized, and ReaL labels are read and applied."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.data.datasets import open_labelled
from tessella.errors import ImageError, UsageError
from tessella.evaluation import results
from tessella.evaluation.classes import match_classes
from tessella.evaluation.evaluator import measure
from tessella.evaluation.imagenet import SETS, find_published, read_real_labels, recognize
from tessella.predictor import Predictor
from tessella.weights.catalogue import _accuracies

from ..test_builtin import CIFAR10_MODEL
from .small_data import SYNSETS, folder_of, logits_of, predictor_of


class FakeImages:
    """Images without files, as the data sets are too large for tests."""

    def __init__(self, classes: Iterable[str], count: int, origin: str = "data", key: str = "n/1.JPEG"):
        self.classes, self.count, self.origin, self.name = tuple(classes), count, origin, key

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return self.name


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (FakeImages(SYNSETS, 50_000, key="n01440764/ILSVRC2012_val_00000293.JPEG"), "imagenet"),
        (FakeImages(SYNSETS, 50_000, key="n01440764/n01440764_10026.JPEG"), ""),  # 50 training images per class
        (FakeImages(SYNSETS, 49_999, key="n01440764/ILSVRC2012_val_00000293.JPEG"), ""),
        (FakeImages(SYNSETS, 50_889), "sketch"),
        (FakeImages(SYNSETS[:200], 30_000), "imagenet-r"),
        (FakeImages(SYNSETS[:200], 7_500), "imagenet-a"),
        (FakeImages(SYNSETS[:199], 7_500), ""),
        (
            FakeImages(map(str, range(1000)), 10_000, "imagenetv2-matched-frequency-format-val"),
            "imagenetv2-matched-frequency",
        ),
        (FakeImages(map(str, range(1000)), 10_000, "imagenetv2-top-images-format-val"), ""),
        (FakeImages(SYNSETS, 0), ""),
    ],
)
def test_data_sets_are_recognised_by_their_contents(images: Any, name: str, imagenet: Predictor) -> None:
    assert recognize(images, match_classes(images.classes, imagenet)) == name


def test_published_accuracy_depends_on_set_weights_and_size() -> None:
    predictor = predictor_of()

    def of(name: str, dataset: str, size: int = 224) -> Any:
        predictor.name = name
        predictor.spec = type(predictor.spec)(height=size, width=size)
        return find_published(predictor, dataset)

    assert of("convmixer_768_32.in1k", "imagenet").top1 == 80.158
    assert of("convmixer_768_32", "imagenet-r").top1 == 43.26
    assert of("convmixer_768_32.in1k", "imagenet", 256) is None
    assert of("convmixer_768_32.in1k", "") is None
    assert of("local-dir:convmixer_768_32", "imagenet") is None
    assert of(CIFAR10_MODEL, "imagenet") is None


def test_the_sets_are_those_of_the_table() -> None:
    measured_here = {"cifar10"}
    assert set(SETS) | measured_here == {name for row in _accuracies().values() for name in row}


def real_labels(tmp_path: Path, labels: dict[int, list[int]]) -> Path:
    path = tmp_path / "real.json"
    path.write_text(json.dumps([labels.get(i, [999]) for i in range(1, 50_001)]))
    return path


def test_any_real_label_is_correct_and_images_without_one_are_excluded(tmp_path: Path, imagenet: Predictor) -> None:
    images = open_labelled(folder_of(tmp_path / "val", SYNSETS[:2], each=3, name="ILSVRC2012_val_{:08}.JPEG"))
    logits = logits_of(imagenet, images)
    order = np.argsort(-logits, 1)
    labels = {
        1: [int(order[0, 0]), 5], 2: [int(order[1, 0])], 3: [], 4: [int(order[3, 3]), int(order[3, 700])],
        5: [int(order[4, 900]), int(order[4, 901])], 6: [],
    }  # fmt: skip
    real = read_real_labels(real_labels(tmp_path, labels))
    row = measure(imagenet, images, real=real)
    assert row.metrics
    assert row.answers is not None
    assert row.answers.index.tolist() == [0, 1, 3, 4]
    assert row.answers.rank.tolist() == [0, 0, 3, 900]  # of the label with the highest logit
    assert row.metrics.top1 == 0.5
    assert row.metrics.top5 == 0.75
    assert (row.unlabelled, row.images) == (2, 6)
    assert len(row.metrics.classes) == 1000
    assert row.dataset == ""  # it is not the complete set
    assert measure(imagenet, images, real=real, dataset="imagenet-real").dataset == "imagenet-real"
    assert "2 images without a ReaL label are excluded." in "\n".join(results.remarks([row]))
    (tmp_path / "val" / SYNSETS[0] / "ILSVRC2012_val_00000003.JPEG").write_bytes(b"no image")
    images = open_labelled(tmp_path / "val").subset([2, 5])  # without labels
    with pytest.raises(ImageError, match="no image has a ReaL label") as caught:
        measure(imagenet, images, real=real)
    assert caught.value.code == "not_found"
    real[3 - 1] = [5]
    with pytest.raises(ImageError, match=r"none of the 1 images could be read \(1 unsupported_format\)"):
        measure(imagenet, images, real=real)


def test_real_labels_need_the_validation_sets_names(folder: Path, tmp_path: Path, imagenet: Predictor) -> None:
    with pytest.raises(UsageError, match=r"ant/1\.png"):
        measure(imagenet, open_labelled(folder), real=read_real_labels(real_labels(tmp_path, {})))


@pytest.mark.parametrize("content", ["{}", "[[1]]", "[[1000]]", "no json", None, json.dumps([["1"]] * 50_000)])
def test_invalid_real_labels_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "real.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"real\.json") as caught:
        read_real_labels(path)
    assert caught.value.code == "bad_argument"
