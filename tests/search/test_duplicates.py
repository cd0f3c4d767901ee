"""Planted duplicates are result, clustered and kept by the documented rules."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella import bulk
from tessella.bulk.run_folder import read_run
from tessella.errors import UsageError
from tessella.search import duplicates
from tessella.search.duplicates import (
    MEASURED_THRESHOLDS,
    OUTPUTS,
    THRESHOLD,
    Duplicates,
    SimilarityThreshold,
    dedup,
    draw_duplicates,
    join,
    write_duplicates,
)
from tessella.weights.catalogue import default_model

from ..bulk.runs import Image, unit, write_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
D = 32


def rotate(vector: Any, cosine: float, seed: int) -> Any:
    """Return a unit vector with the given cosine to another row."""
    other = np.random.default_rng(seed).standard_normal(len(vector))
    other -= (other @ vector) * vector
    return (cosine * vector + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    r"""Similar: a0 a1 \(same bytes\) b0 b1, and a2 through b1 only; a3 b2 only at 0.9; a5 is an error."""
    a = unit(np.random.default_rng(0).standard_normal((6, D)))
    b = unit(np.random.default_rng(1).standard_normal((3, D)))
    a[1] = a[0]
    b[0] = rotate(a[0], 0.97, 2)
    b[1] = rotate(b[0], 0.97, 3)
    a[2] = rotate(b[1], 0.97, 4)
    b[2] = rotate(a[3], 0.9, 5)
    images = [
        Image("a0", a[0], sha256="A", size=(100, 40, 30)),
        Image("a1", a[1], sha256="A", size=(100, 40, 30)),
        Image("a2", a[2], size=(90, 40, 30)),
        Image("a3", a[3], size=(1, 1, 1)),
        Image("a4", a[4]),
        Image("a5", a[4], error="corrupt_image"),
        Image("b0", b[0], size=(80, 40, 31)),
        Image("b1", b[1], size=(9, 8, 7)),
        Image("b2", b[2], size=(9, 8, 7)),
    ]
    return write_run(tmp_path / "run", images)


def groups(duplicates: Duplicates) -> list[list[str]]:
    return [[row.key for row in duplicates.rows if row.cluster == i] for i in range(duplicates.clusters)]


def test_clusters_and_which_row_is_kept(run: Path) -> None:
    result = dedup(run)
    assert groups(result) == [["b0", "a0", "a1", "a2", "b1"]]  # by pixels, bytes, key
    assert [row.kind for row in result.rows] == ["kept", *["near"] * 4]
    assert [row.row for row in result.rows] == [6, 0, 1, 2, 7]
    similarity = {row.key: row.similarity for row in result.rows}
    assert similarity["b0"] == 1
    assert similarity["a0"] == similarity["a1"] == pytest.approx(0.97, abs=2e-3)
    assert similarity["a2"] < 0.95  # joined through b1
    assert (result.images, result.clusters) == (8, 1)
    pairs = {pair.keys: pair for pair in result.pairs}
    assert not pairs["a3", "b2"].joined
    assert pairs["a3", "b2"].similarity == pytest.approx(0.9, abs=2e-3)
    reached = {keys for keys, pair in pairs.items() if pair.joined and pair.similarity >= 0.95}
    assert reached == {("a0", "b0"), ("b0", "b1"), ("a2", "b1")}
    assert [pair.similarity for pair in result.pairs] == sorted(
        (pair.similarity for pair in result.pairs), reverse=True
    )


def test_the_threshold_decides(run: Path) -> None:
    assert groups(dedup(run, threshold=0.88)) == [["b0", "a0", "a1", "a2", "b1"], ["b2", "a3"]]
    for threshold in (0.99, None):
        result = dedup(run, threshold=threshold)
        assert groups(result) == [["a0", "a1"]]
        assert [(row.kind, row.similarity) for row in result.rows] == [("kept", 1), ("same", 1)]
    for wrong in (0, -1, 3, float("nan"), "0.9", True):
        with pytest.raises(UsageError) as caught:
            dedup(run, threshold=wrong)  # type: ignore[arg-type]  # some are
        assert caught.value.code == "bad_argument"


def test_the_threshold_is_that_of_the_model_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_run(run)["model"]
    chosen = dedup(run).threshold
    assert chosen is not None
    assert chosen.value == THRESHOLD
    assert chosen.reason.startswith(f"not measured for {model}")
    monkeypatch.setitem(MEASURED_THRESHOLDS, model, 0.88)
    measured = dedup(run)
    assert measured.threshold == (0.88, f"measured for {model}")
    assert groups(measured) == groups(dedup(run, threshold=0.88)) != groups(dedup(run, threshold=THRESHOLD))
    assert dedup(run, threshold=0.9).threshold == (0.9, "given")
    assert dedup(run, threshold=None).threshold is None
    assert default_model() in MEASURED_THRESHOLDS
    short = default_model().partition(".")[0]  # as earlier versions recorded it
    assert SimilarityThreshold.of(short) == SimilarityThreshold.of(default_model())


def plain_clusters(vectors: Any, threshold: float) -> set[frozenset[int]]:
    """Return the clusters by depth-first search, without blocks."""
    is_similar = vectors @ vectors.T >= threshold
    remaining, clusters = set(range(len(vectors))), set()
    while remaining:
        reached: set[int] = set()
        todo = [min(remaining)]
        while todo:
            i = todo.pop()
            if i not in reached:
                reached.add(i)
                todo += np.flatnonzero(is_similar[i]).tolist()
        remaining -= reached
        clusters.add(frozenset(reached))
    return clusters


def test_blocks_and_the_whole_matrix_give_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 64)
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((40, D))[rng.integers(0, 40, 700)] + 0.25 * rng.standard_normal((700, D)))
    cosines = np.sort((vectors @ vectors.T)[np.triu_indices(700, 1)])
    position = np.searchsorted(cosines, 0.9)
    threshold = float(cosines[position] + cosines[position - 1]) / 2
    root, pairs = duplicates._similar(vectors, threshold)
    expected = plain_clusters(vectors, threshold)
    assert 5 < len(expected) < 600
    assert {frozenset(np.flatnonzero(root == first).tolist()) for first in root} == expected
    np.testing.assert_allclose(pairs["similarity"], cosines[position - 10 : position + 10][::-1], atol=1e-6)


def test_a_long_chain_and_a_crowd_are_one_cluster_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst cases for union-find: links in a bad order, and blocks in which all pairs are similar."""
    order = np.random.default_rng(0).permutation(2999)
    assert not join(np.arange(3000), order, order + 1).any()
    monkeypatch.setattr(duplicates, "BLOCK", 512)
    assert not duplicates._similar(np.ones((1200, 4), np.float16), 0.95)[0].any()


def test_a_run_with_only_errors_has_no_duplicates(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [Image(str(i), np.ones(D), error="empty") for i in range(3)])
    assert dedup(run, threshold=None) == Duplicates(0, None, 0, (), ())


def test_a_damaged_shard_is_refused(run: Path, tmp_path: Path) -> None:
    shard = run / "shards" / "shard-00000000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UsageError) as caught:
        dedup(run)
    assert caught.value.code == "damaged_run"
    with pytest.raises(UsageError, match="holds no run"):
        dedup(tmp_path)


def test_copies_of_real_images_and_a_sheet_of_the_pairs(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(EXAMPLES / "cat.jpg", folder / "cat.jpg")
    shutil.copy(EXAMPLES / "cat.jpg", folder / "copy.jpg")
    shutil.copy(EXAMPLES / "coffee.jpg", folder / "coffee.jpg")
    with Pillow.open(EXAMPLES / "cat.jpg") as image:
        image.resize((image.width // 2, image.height // 2)).save(folder / "small.png")
    predictor = tessella.load(engine="eager", device="cpu", batch_size=4)
    bulk.run([str(folder)], tmp_path / "run", predictor, bulk.RunSettings(processes=1))
    result = dedup(tmp_path / "run")
    assert [(Path(row.key).name, row.kind) for row in result.rows] == [
        ("cat.jpg", "kept"),
        ("copy.jpg", "same"),
        ("small.png", "near"),
    ]
    for name in ("pairs.png", "pairs.html"):
        assert draw_duplicates(tmp_path / "run", result, tmp_path / name)
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "pairs.html").read_text()
    assert page.count("<figure>") == 2 * len(result.pairs) + len(result.rows) > 0
    boxes = page.split("<section>")[1:]
    assert [box.count("<figure>") for box in boxes] == [2] * len(result.pairs) + [len(result.rows)]
    first = result.pairs[0]
    assert f"pair 1: {first.similarity:.4f}, in one cluster" in boxes[0]
    assert all(key in boxes[0] for key in first.keys)
    assert draw_duplicates(tmp_path / "run", dedup(tmp_path / "run", threshold=None), tmp_path / "exact.html")
    assert (tmp_path / "exact.html").read_text().count("<figure>") == 2


def test_no_sheet_is_written_without_duplicates(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [Image(str(i), np.eye(D)[i]) for i in range(3)])
    result = dedup(run)
    assert (result.rows, result.pairs) == ((), ())
    assert not draw_duplicates(run, result, tmp_path / "pairs.html")
    assert not (tmp_path / "pairs.html").exists()


def test_rows_as_files(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    result = dedup(run)
    rows = [vars(row) for row in result.rows]
    for name in OUTPUTS:
        write_duplicates(tmp_path / f"rows{name}", result)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in rows]
    with pytest.raises(UsageError, match=r"rows\.txt") as caught:
        write_duplicates(tmp_path / "rows.txt", result)
    assert ".json" in caught.value.hint


@pytest.mark.parametrize("threshold", [0, 1.5, float("nan"), "0.9", True])
def test_invalid_thresholds_are_refused(run: Path, threshold: Any) -> None:
    with pytest.raises(UsageError, match="threshold") as caught:
        dedup(run, threshold=threshold)
    assert caught.value.code == "bad_argument"
