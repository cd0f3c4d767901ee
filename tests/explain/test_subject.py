"""The model that is explained: the same numbers as the Predictor, images as the model sees them, classes by name."""

from __future__ import annotations

import numpy as np
import pytest

import tessella
from tessella.errors import ImageError, UsageError
from tessella.explain.subject import Subject, find_class

CIFAR = "convmixer_256_8_ks3_p4.cifar10"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tessella.load(CIFAR))


def test_logits_are_those_of_the_predictor(subject: Subject) -> None:
    images = ["examples/cat.jpg", "examples/coffee.jpg"]
    prepared = [image for _, image in subject.prepare(images)]
    outputs = list(subject.predictor.outputs(images))
    for image, output in zip(prepared, outputs, strict=True):
        assert not isinstance(image, ImageError)
        assert not isinstance(output, ImageError)
        assert np.abs(subject.logits(image.x)[0] - output.logits).max() < 1e-4 * output.logits.std()


def test_the_model_is_a_copy(subject: Subject) -> None:
    assert subject.model is not subject.predictor.model
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())


def test_bad_images_keep_their_place(subject: Subject) -> None:
    outcomes = list(subject.prepare(["examples/cat.jpg", "missing.jpg", b"no image", "examples/coffee.jpg"]))
    codes = [outcome.code if isinstance(outcome, ImageError) else "ok" for _, outcome in outcomes]
    assert codes[0] == codes[3] == "ok"
    assert codes[1] == "not_found"
    assert "ok" not in codes[1:3]
    assert [key for key, _ in outcomes] == ["examples/cat.jpg", "missing.jpg", "2", "examples/coffee.jpg"]


@pytest.mark.parametrize(
    ("wanted", "index"), [(1, 1), ("1", 1), ("Tabby", 0), ("tabby, tabby cat", 0), ("dog", 1), (np.int64(2), 2)]
)
def test_classes_by_name_and_index(wanted: int | str, index: int) -> None:
    assert find_class(("tabby, tabby cat", "dog", "crane", "crane"), wanted) == index


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("1", 0), (" 3 ", 2), ("0", 0), (1, 1), (np.int64(2), 2), ("04", 3), ("Ten", 4), ("ten", 4), ("10", 3)],
)
def test_a_name_wins_over_an_index_in_text_and_whole_numbers_are_indices(wanted: int | str, index: int) -> None:
    assert find_class(("1", "2", "3", "ten, 10, 04", "Ten"), wanted) == index


HUGE = {"nines": "9" * 5000, "arabic": "\u0663" * 5000, "int": 10**5000, "negative": -(10**5000)}
UNKNOWN = [-1, 4, "4", "cot", "", True, *(pytest.param(value, id=name) for name, value in HUGE.items())]


@pytest.mark.parametrize("wanted", UNKNOWN)
def test_unknown_classes(wanted: int | str) -> None:
    with pytest.raises(UsageError) as caught:
        find_class(("tabby, tabby cat", "cat", "dog"), wanted)
    assert caught.value.code == "bad_argument"
    assert "has no class" in str(caught.value) or "there is no class" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_model_without_classes_has_no_class() -> None:
    for wanted in (0, "0", "cat"):
        with pytest.raises(UsageError, match="no classes"):
            find_class((), wanted)


def test_each_similar_name_is_suggested_once_as_it_is_written() -> None:
    with pytest.raises(UsageError) as caught:
        find_class(("Dog", "cat", "dog"), "cat,dog")
    assert caught.value.hint == "similar names: Dog, cat"


def test_similar_names_are_suggested() -> None:
    with pytest.raises(UsageError, match="tabby cat"):
        find_class(("tabby, tabby cat", "dog"), "tabi cat")


def test_ambiguous_names_of_whole_labels_take_the_first() -> None:
    assert find_class(("crane", "crane"), "crane") == 0
