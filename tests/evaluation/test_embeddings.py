"""Embeddings keep the order of the images, and are read from a file if model and data are the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.data.datasets import LabelledImages, open_labelled
from tessella.data.source import Source
from tessella.errors import OutputError
from tessella.evaluation.embeddings import embed
from tessella.predictor import Output, Predictor
from tessella.results import l2_normalize

from ..data.test_isolated import FaultySource
from .coloured_images import predictor_of


def test_rows_stay_with_their_images(data: Path, predictor: Predictor) -> None:
    images = open_labelled(data, "train")
    result = embed(images, predictor)
    bad = [i for i in range(72) if images.key(i) == "train/green/7.png"]
    assert np.flatnonzero(~result.ok).tolist() == bad
    assert result.errors == {"unsupported_format": 1}
    assert not result.vectors[bad].any()
    good = np.flatnonzero(result.ok)[::5]
    expected = predictor.embed([images.read(int(i)) for i in good])
    assert np.allclose(l2_normalize(result.vectors[good]), expected, atol=1e-6)
    assert not np.allclose(result.vectors[good], expected, atol=1e-3)  # not normalized


def test_an_image_that_crashes_the_decoder_is_one_error(data: Path, predictor: Predictor) -> None:
    class Deadly(LabelledImages):
        def source(self, index: int) -> Source:
            return FaultySource("deadly", "", fault="segv") if index == 5 else super().source(index)

    images = open_labelled(data, "val")
    complete = embed(images, predictor)
    images.__class__ = Deadly
    result = embed(images, predictor)
    assert result.errors == {"decoder_crashed": 1} | complete.errors
    assert np.flatnonzero(result.ok != complete.ok).tolist() == [5]
    assert np.array_equal(result.vectors[result.ok], complete.vectors[result.ok])


def test_embeddings_are_cached(
    data: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "e.npz"
    images = open_labelled(data, "val")
    first = embed(images, predictor, cache)
    assert not first.cached
    passes = 0

    def outputs(self: Predictor, decoded: Iterable[Any], **settings: Any) -> Iterator[Any]:
        nonlocal passes
        passes += 1
        return original(self, decoded, **settings)

    original = Predictor.decoded_outputs
    monkeypatch.setattr(Predictor, "decoded_outputs", outputs)
    again = embed(images, predictor, cache)
    assert (passes, again.cached) == (0, True)
    assert np.array_equal(again.vectors, first.vectors)
    assert np.array_equal(again.status, first.status)
    # another model, other data or a damaged file: computed again, and cached
    other = predictor_of("mixer", num_blocks=1)
    for count, (set_, model) in enumerate([(images, other), (images.subset(range(9)), other)], 1):
        assert not embed(set_, model, cache).cached
        assert embed(set_, model, cache).cached
        assert passes == count
    complete = cache.read_bytes()
    for data_ in (complete[:-40], b"", complete.replace(b"vectors", b"victors")):
        cache.write_bytes(data_)
        assert not embed(images.subset(range(9)), other, cache).cached
    assert embed(images.subset(range(9)), other, cache).cached


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_the_cache_is_not_waited_for(data: Path, tmp_path: Path, predictor: Predictor) -> None:
    os.mkfifo(tmp_path / "e.npz")
    with pytest.raises(OutputError, match=r"e\.npz' could not be written"):
        embed(open_labelled(data, "val"), predictor, tmp_path / "e.npz")


def test_vectors_that_are_not_finite_are_errors(
    data: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(self: Predictor, decoded: Iterable[Any], **settings: Any) -> Iterator[Any]:
        for i, (key, outcome) in enumerate(original(self, decoded, **settings)):
            if isinstance(outcome, Output) and i < 2:
                yield key, Output(outcome.logits, outcome.embedding * np.float32("nan"))
            else:
                yield key, outcome

    original = Predictor.decoded_outputs
    monkeypatch.setattr(Predictor, "decoded_outputs", outputs)
    result = embed(open_labelled(data, "train"), predictor)
    assert result.errors == {"non_finite": 2, "unsupported_format": 1}
    assert np.isfinite(result.vectors).all()
