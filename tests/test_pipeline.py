"""The steps of the image pipeline: keys stay with their values, however a step reads ahead, fails or batches."""

from __future__ import annotations

import gc
import itertools
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.data.source import Source
from tessella.data.spec import InputSpec
from tessella.engine import Plan
from tessella.engine.base import Engine
from tessella.errors import ImageError, UsageError
from tessella.pipeline import (
    ImageReader,
    decode_images,
    decoded_outputs,
    defer_failure,
    error_records,
    image_outputs,
    make_batches,
    map_values,
    pair_with_keys,
    raise_first_error,
)
from tessella.records import as_dict
from tessella.results import Output

SPEC = InputSpec(height=8, width=8, crop_pct=1.0)
READER = ImageReader(SPEC)
CAT = Path(__file__).resolve().parent.parent / "examples" / "cat.jpg"


class MeanEngine(Engine):
    """Return the mean of an image as logits (1,), and twice that as embedding (1,)."""

    def __init__(self, batch_size: int, streams: int = 2):
        super().__init__(None, Plan("cpu", "float32", "eager", batch_size, 2, (), streams), (8, 8), SPEC)
        self.batches: list[int] = []

    def __call__(self, images_BHWC: Any) -> Any:
        self.batches.append(len(images_BHWC))
        means = images_BHWC.mean((1, 2, 3), dtype=np.float32)[:, None]
        return means, 2 * means

    def run(self, x: Any) -> Any:
        raise AssertionError("arrays in, arrays out")


def grey(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


@pytest.mark.parametrize("ahead", [1, 2, 7, 100])
def test_keys_follow_the_values_through_a_step_that_reads_ahead(ahead: int) -> None:
    def squares(values: Iterator[int]) -> Iterator[int]:
        while chunk := list(itertools.islice(values, ahead)):
            yield from [value**2 for value in chunk]

    pairs = [(f"key {i}", i) for i in range(20)]
    assert list(map_values(squares, pairs)) == [(key, value**2) for key, value in pairs]


def test_finished_values_are_not_kept() -> None:
    """Memory is bounded by what a step reads ahead: pixels of finished batches are freed."""

    class Value:
        pass

    alive: list[weakref.ref[Value]] = []

    def values() -> Iterator[tuple[int, Value]]:
        for i in range(12):
            value = Value()
            alive.append(weakref.ref(value))
            yield i, value

    def forget(values: Iterator[Value]) -> Iterator[None]:
        for _ in values:
            yield None

    for key, _ in map_values(forget, values()):
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 2, key


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_every_image_has_one_result_under_its_own_key(size: int) -> None:
    bad = {0, 4, 5, 11, 16, 17, 18, 19}
    images: list[tuple[str, Any]] = [(f"image {i}", b"junk" if i in bad else grey(i)) for i in range(20)]
    engine = MeanEngine(size)
    outcomes = dict(image_outputs(images, READER, engine))
    assert list(outcomes) == [key for key, _ in images]
    for i, outcome in enumerate(outcomes.values()):
        if i in bad:
            assert isinstance(outcome, ImageError)
        else:
            assert isinstance(outcome, Output)
            assert (outcome.logits[0], outcome.embedding[0]) == (i, 2 * i)
    assert sum(engine.batches) == len(images) - len(bad)
    assert max(engine.batches) <= size


def test_batches_count_images_that_could_not_be_read() -> None:
    error = ImageError("empty", "no bytes")
    decoded = [(i, error if i in (1, 3, 4, 5) else grey(i)) for i in range(8)]
    batches = list(make_batches(decoded, 3, (8, 8, 3)))
    assert [[(key, code is not None) for key, code in entries] for entries, _ in batches] == [
        [(0, False), (1, True), (2, False)],
        [(3, True), (4, True), (5, True)],
        [(6, False), (7, False)],
    ]
    assert [pixels.shape for _, pixels in batches] == [(2, 8, 8, 3), (0, 8, 8, 3), (2, 8, 8, 3)]


def test_a_single_batch_is_split_only_if_that_is_allowed() -> None:
    decoded = [(i, grey(i)) for i in range(4)]
    for split, sizes in ((True, [2, 2]), (False, [4])):
        engine = MeanEngine(8)
        assert [key for key, _ in decoded_outputs(decoded, engine, split_batch=split)] == [0, 1, 2, 3]
        assert engine.batches == sizes


def test_decoding_reads_a_bounded_number_of_images_ahead() -> None:
    taken = 0

    def endless() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal taken
        while True:
            taken += 1
            yield taken, grey(1)

    ahead = 10 + 2 * (os.cpu_count() or 1)
    decoded = decode_images(endless(), READER, ahead)
    next(decoded)
    assert taken == ahead
    next(decoded)
    assert taken == ahead + 1


def test_the_first_error_is_raised_with_its_position() -> None:
    decoded: list[tuple[int, Any]] = [
        (0, grey(0)),
        (1, ImageError("empty", "no bytes", hint="look")),
        (2, ImageError("empty", "other")),
    ]
    for numbered, message in ((True, "image 1: no bytes"), (False, "no bytes")):
        strict = raise_first_error(decoded, numbered=numbered)
        assert next(strict)[0] == 0
        with pytest.raises(ImageError) as caught:
            next(strict)
        assert (caught.value.code, caught.value.message, caught.value.hint) == ("empty", message, "look")


def test_an_exception_of_the_iterable_comes_last() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ConnectionError("the caller's own")

    results = defer_failure(items(), lambda values: iter([list(values)]))  # a step that takes all values at once
    assert next(results) == [0, 1, 2, 3, 4]
    with pytest.raises(ConnectionError, match="the caller's own"):
        next(results)


@pytest.mark.parametrize(("images", "keys"), [(2, 1), (2, 3), (0, 1), (1, 0)])
def test_another_number_of_keys_is_refused(images: int, keys: int) -> None:
    with pytest.raises(UsageError, match="keys") as caught:
        list(pair_with_keys(range(images), map(str, range(keys))))
    assert caught.value.code == "bad_argument"


def test_one_key_is_counted_as_one() -> None:
    with pytest.raises(UsageError, match="keys has 1 name for more images"):
        list(pair_with_keys(range(2), ["a"]))


def test_keys_are_strings() -> None:
    assert list(pair_with_keys("ab", [1, 2])) == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize("settings", [dict(transform="sloppy"), dict(policy="none")])
def test_a_reader_has_known_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected '") as caught:
        ImageReader(SPEC, **settings)
    assert caught.value.code == "bad_argument"


def test_a_reader_gives_the_pixels_of_the_models_size_or_the_reason() -> None:
    pixels = READER.read(CAT)
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    for image, code in ((b"", "empty"), (None, "bad_argument"), ("nowhere.jpg", "not_found")):
        outcome = READER.read(image)
        assert isinstance(outcome, ImageError)
        assert outcome.code == code
        with pytest.raises(ImageError):
            READER.load(image)


def test_unreadable_images_are_left_out_of_samples() -> None:
    assert READER.load_readable([CAT, b"junk", grey(3)]).shape == (2, 8, 8, 3)
    with pytest.raises(UsageError, match="none of the images"):
        READER.load_readable([b"junk"])


def test_errors_are_known_before_a_model_is_loaded(tmp_path: Path) -> None:
    missing = Source("a", str(tmp_path / "a.jpg"))
    broken = Source("b", str(tmp_path), error=ImageError("empty", "no bytes"))
    records = error_records([missing, broken])
    assert [(record.key, record.status) for record in records] == [("a", "not_found"), ("b", "empty")]
    assert error_records([missing, Source("c", str(CAT))]) == []
    assert error_records([missing, Source("d", "s3://bucket/d.jpg")]) == []  # only a download would show it
    assert error_records([]) == []


def test_bulk_and_single_images_give_the_same_record() -> None:
    """`decoded_outputs` with another decoder and `records` with its own give the same records."""
    predictor = tessella.load(batch_size=4)
    images: list[Any] = [CAT, b"junk", grey(9), grey(200), None]
    expected = list(predictor.records(images, top=3, keys=list("01234")))
    reader = ImageReader(predictor.spec)
    decoded = [(str(i), reader.read(image)) for i, image in enumerate(images)]
    records = [predictor.record(key, outcome, top=3) for key, outcome in predictor.decoded_outputs(decoded)]
    for actual, other in zip(records, expected, strict=True):
        assert as_dict(actual) == as_dict(other)
