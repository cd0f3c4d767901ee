"""Selections of rows: every combination of conditions equals plain Python, and hostile values are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.errors import UsageError
from tessella.search import Index, build_index
from tessella.serve.collection import OpenedIndex
from tessella.serve.selection import Selection, among, page

from ..bulk.runs import LABELS, Image, numbered, random_vectors, write_run

pytest.importorskip("lancedb")
CLASSES = frozenset(LABELS)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedIndex:
    """250 rows with a map, every tenth of them an error, of sizes from 100 to 349 pixels."""
    images = numbered(random_vectors(250, 0))
    for i, image in enumerate(images):
        image.size = (1000, 100 + i, 349 - i)
        image.error = "corrupt_image" if i % 10 == 9 else ""
    run = write_run(tmp_path_factory.mktemp("selection") / "run", images)
    build_index(run, map="pca")
    return OpenedIndex(run, 1 << 30)


def matching(opened: OpenedIndex, **conditions: Any) -> list[int]:
    return opened.columns.rows[opened.mask(Selection(**conditions))].tolist()


def test_every_row_matches_no_condition(opened: OpenedIndex) -> None:
    assert matching(opened) == [i for i in range(250) if i % 10 != 9]
    assert Selection().is_everything
    assert not Selection(min_width=0).is_everything


def test_all_conditions_must_hold(opened: OpenedIndex) -> None:
    square = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
    found = matching(
        opened,
        label=("cat", "it's a horse"),
        min_width=120,
        max_width=300,
        min_height=80,
        max_height=220,
        polygon=square,
    )
    assert opened.map is not None
    points = dict(zip(opened.columns.rows.tolist(), opened.map.points.tolist(), strict=True))
    expected = [
        i
        for i, (x, y) in points.items()
        if i % 3 != 1 and 120 <= 100 + i <= 300 and 80 <= 349 - i <= 220 and max(abs(x), abs(y)) <= 0.5
    ]
    assert found == expected
    assert 0 < len(found) < 200


@pytest.mark.parametrize("name", ["min_width", "max_width", "min_height", "max_height"])
def test_the_ends_of_a_range_are_included(opened: OpenedIndex, name: str) -> None:
    rows = matching(opened, **{name: 201})
    sizes = [100 + i if "width" in name else 349 - i for i in rows]
    assert 201 in sizes
    assert all(size >= 201 if name.startswith("min") else size <= 201 for size in sizes)


def test_no_class_and_classes_without_rows(opened: OpenedIndex) -> None:
    assert matching(opened, label=()) == []
    run = opened.index.out
    facts = opened.facts
    assert facts["labels"] == list(LABELS)
    mask = Selection(label=("zebra",)).mask(opened.columns, None, frozenset({"zebra"}))
    assert not mask.any()
    assert run.exists()


@pytest.mark.parametrize(
    "label", ["", "Cat", "cat'", "cat' OR '1'='1", "'; DROP TABLE rows; --", "\0", "cat\n", "x" * 1_000, "\u202ecat"]
)
def test_unknown_classes_are_refused_and_never_sql(opened: OpenedIndex, label: str) -> None:
    with pytest.raises(UsageError) as caught:
        matching(opened, label=(label,))
    assert caught.value.code == "bad_argument"
    assert matching(opened, label=("it's a horse",)) == [i for i in range(250) if i % 3 == 2 and i % 10 != 9]


def test_a_polygon_needs_a_map(opened: OpenedIndex) -> None:
    with pytest.raises(UsageError) as caught:
        Selection(polygon=((0, 0), (1, 0), (0, 1))).mask(opened.columns, None, CLASSES)
    assert caught.value.code == "not_found"


def test_pages_are_in_the_order_of_the_listing(opened: OpenedIndex) -> None:
    mask = opened.mask(Selection(label=("dog",)))
    everything = page(mask, opened.columns, 0, 1_000).tolist()
    assert everything == [i for i in range(250) if i % 3 == 1 and i % 10 != 9]
    parts = [page(mask, opened.columns, start, 7).tolist() for start in range(0, 100, 7)]
    assert [row for part in parts for row in part] == everything
    assert page(mask, opened.columns, 10_000, 7).tolist() == []
    assert np.flatnonzero(among(mask, opened.columns)).tolist() == everything


def test_a_run_without_classes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", numbered(random_vectors(20, 0)), top=0)
    build_index(run)
    opened = OpenedIndex(run, 0)
    assert opened.columns.names == ()
    assert matching(opened) == list(range(20))
    assert matching(opened, label=("cat",)) == []
    assert np.frombuffer(opened.label_bytes, "<u2").tolist() == [65_535] * 20


@pytest.mark.parametrize("rows", [0, 1])
def test_tiny_runs(tmp_path: Path, rows: int) -> None:
    images = [Image("a.jpg", np.ones(16, np.float32), error="" if rows else "corrupt_image")]
    run = write_run(tmp_path / "run", images)
    build_index(run, map="pca")
    for memory in (0, 1 << 20):
        opened = OpenedIndex(run, memory)
        assert opened.index.rows == rows
        assert matching(opened) == list(range(rows))
        assert matching(opened, polygon=((-1, -1), (1, -1), (0, 1))) == list(range(rows))
        assert opened.map_bytes is not None
        assert len(opened.map_bytes) == 8
        assert Index(run, memory=memory).columns.listed == 1
