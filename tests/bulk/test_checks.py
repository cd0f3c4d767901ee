"""Invalid folders and inputs are refused with an error code by every function that takes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.bulk import RunSettings, repair, run, verify
from tessella.checks import as_inputs
from tessella.errors import TessellaError, UsageError
from tessella.predictor import Predictor
from tessella.search.duplicates import dedup
from tessella.search.index import build_index, check_index
from tessella.search.query import Index
from tessella.search.retrieval_metrics import retrieval

READERS: list[Callable[[Any], Any]] = [verify, repair, dedup, build_index, check_index, Index]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tessella.load(engine="eager", batch_size=4, device="cpu")


@pytest.mark.parametrize(
    "folder", [None, 5, 1.5, [], "a\0b", "x" * 300, "\udcff", b"bytes", "file", "fifo", "loop", ""]
)
def test_invalid_folders_are_refused(
    predictor: Predictor, tmp_path: Path, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    for read in READERS:
        with pytest.raises(TessellaError):
            read(folder)
    if folder not in ("\udcff", b"bytes"):  # these can be created
        with pytest.raises(TessellaError):
            run([str(tmp_path / "file")], folder, predictor, RunSettings(processes=1))


def test_a_folder_name_may_be_other_bytes_than_utf8(predictor: Predictor, tmp_path: Path) -> None:
    out = tmp_path / "\udcff"
    (tmp_path / "file.png").write_text("no image")
    assert run(tmp_path / "file.png", out, predictor, RunSettings(processes=1)).rows == 1
    assert not verify(out).damage
    assert dedup(out).images == 0


@pytest.mark.parametrize("value", [None, 5, [None], [b"a", 5], [["a"]]])
def test_invalid_inputs_are_refused(predictor: Predictor, tmp_path: Path, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        run(value, tmp_path / "run", predictor)
    assert caught.value.code == "bad_argument"


def test_a_single_input_needs_no_list() -> None:
    assert as_inputs("photo.jpg") == as_inputs(Path("photo.jpg")) == as_inputs([b"photo.jpg"]) == ["photo.jpg"]


@pytest.mark.parametrize("name", ["predictor", "cluster", "on_event", "settings", "stdin"])
def test_arguments_of_wrong_types_are_refused(predictor: Predictor, tmp_path: Path, name: str) -> None:
    value: dict[str, Any] = dict(predictor=predictor) | {name: 5}
    with pytest.raises(UsageError) as caught:
        run([str(tmp_path)], tmp_path / "run", **value)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    ("vectors", "labels", "k"),
    [
        (None, None, (1,)), ("x", "y", (1,)), ([[1], [2, 3]], [1, 2], (1,)),
        (np.ones((3, 2), complex), [1, 1, 2], (1,)),
        (np.ones((3, 2)), [1, 1, None], (1,)), (np.ones((3, 2)), [1, 1, 2], 1), (np.ones((3, 2)), [1, 1, 2], (1.5,)),
        (np.ones((3, 2)), [1, 1, 2], (10**20,)), (np.ones((3, 2)), [1, 1, 2], (True,)),
    ],
)  # fmt: skip
def test_invalid_arguments_of_retrieval_are_refused(vectors: Any, labels: Any, k: Any) -> None:
    with pytest.raises(UsageError) as caught:
        retrieval(vectors, labels, k)
    assert caught.value.code == "bad_argument"
