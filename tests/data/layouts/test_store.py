"""Stores and encoded labels, and the helpers of messages."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tessella.data.layouts.store import EncodedLabels, FileStore, PackedStrings, join_names, join_path
from tessella.text import count_of

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_labels_are_encoded_in_order_of_appearance() -> None:
    labels = EncodedLabels.from_labels(["dog", "cat", "dog", "bee"])
    assert labels.values == ["dog", "cat", "bee"]
    assert labels.codes.tolist() == [0, 1, 0, 2]
    assert labels.codes.dtype == np.int64
    assert labels.classes is None


def test_unicode_forms_of_one_label_get_one_code() -> None:
    labels = EncodedLabels.from_labels([COMPOSED, "dog", DECOMPOSED], classes=["dog", DECOMPOSED])
    assert labels.values == [COMPOSED, "dog"]
    assert labels.codes.tolist() == [0, 1, 0]
    assert labels.classes == ["dog", COMPOSED]
    codes = np.array([2, 1, 0, 2])
    assert EncodedLabels.from_codes([COMPOSED, "dog", DECOMPOSED], codes).codes.tolist() == [0, 1, 0, 0]


def test_no_labels() -> None:
    labels = EncodedLabels.from_labels([])
    assert (labels.values, labels.codes.tolist()) == ([], [])


def test_packed_strings_return_every_string() -> None:
    strings = ["", "a.jpg", os.fsdecode(b"b\xe9.jpg"), "日本", ""]
    packed = PackedStrings(strings)
    for copy in (packed, pickle.loads(pickle.dumps(packed))):
        assert [copy[i] for i in range(len(strings))] == strings
    with pytest.raises(IndexError):
        packed[len(strings)]


def test_a_store_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"one")
    store = FileStore(str(tmp_path), ["a/1.jpg", "a/2.jpg"], [3, -1])
    assert [store.key(0), store.key(1)] == ["a/1.jpg", "a/2.jpg"]
    assert store.sizes().tolist() == [3, -1]
    source = store.source(0)
    assert (source.key, source.path, source.read()) == ("a/1.jpg", str(tmp_path / "a" / "1.jpg"), b"one")


def test_helpers_of_messages() -> None:
    assert [count_of(n, "image") for n in (0, 1, 2, 12345)] == ["0 images", "1 image", "2 images", "12,345 images"]
    assert join_names("ab") == "'a', 'b'"
    assert join_names("abcdefg") == "'a', 'b', 'c', 'd', 'e' and 2 more"
    assert (join_path("root", "a/b"), join_path("root", ""), join_path("root", "/abs")) == ("root/a/b", "root", "/abs")
