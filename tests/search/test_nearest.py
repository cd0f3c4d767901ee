"""Exact searches match plain arithmetic, approximate ones match exact ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessella.bulk.run_folder import read_run
from tessella.errors import UsageError
from tessella.search import nearest
from tessella.search.index import HOME, TABLE, build_index, open_table
from tessella.search.nearest import Approximate, SearchPlan, exact
from tessella.search.query import Index

from ..bulk.runs import numbered, random_vectors, unit, write_run, write_shard

pytest.importorskip("lancedb")


def clustered(rows: int, seed: int) -> Any:
    centers = random_vectors(40, 0)
    return unit(centers[np.random.default_rng(seed).integers(0, 40, rows)] + random_vectors(rows, seed))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("large") / "run", numbered(clustered(6_000, 1)))


def test_exact_search_matches_plain_arithmetic(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "SCAN_ROWS", 1_700)
    build_index(large)
    table, _ = open_table(large / "index", read_run(large))
    stored = table.search().select(["row", "vector"]).with_row_id(True).to_arrow()
    vectors = np.stack(stored["vector"].to_numpy()).astype(np.float64)
    queries = unit(random_vectors(20, 3))
    expected = queries.astype(np.float64) @ unit(vectors).T.astype(np.float64)
    for k in (1, 10, 7_000):
        scores, ids = exact(table, queries, k)
        assert scores.shape == ids.shape == (20, min(k, 6_000))
        np.testing.assert_allclose(scores, -np.sort(-expected, 1)[:, :k], atol=1e-6)
        rows = stored["_rowid"].to_numpy()
        positions = np.searchsorted(rows, ids)
        np.testing.assert_allclose(np.take_along_axis(expected, positions, 1), scores, atol=1e-6)


def test_the_stated_recall_of_an_approximate_index_is_right(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "RECALL_QUERIES", 64)
    messages: list[str] = []
    plan = build_index(large, approximate_from=100_000).plan
    assert plan.probes == 0
    # the shards are unchanged, the limit is not
    report = build_index(large, approximate_from=5_000, log=messages.append)
    plan = report.plan
    assert plan.recall >= 0.99
    assert 1 <= plan.probes <= plan.partitions
    assert f"recall@10 {plan.recall:.4f}" in messages[-1]
    table, seal = open_table(large / HOME, read_run(large))
    index = Approximate(large / HOME, TABLE, seal.version)
    queries = clustered(50, 7)
    worst = exact(table, queries, 10)[0][:, -1]
    hits = [(index.search(q, 10, plan.probes)[0] >= w - 1e-6).sum() for q, w in zip(queries, worst, strict=True)]
    assert np.mean(hits) / 10 >= 0.97
    assert build_index(large, approximate_from=5_500).plan == report.plan
    # an update of a few rows goes into the partitions that are there, and is found
    write_shard(large, 60, numbered(clustered(100, 9), 6_000))
    plan = build_index(large, approximate_from=5_000).plan
    assert (plan.trained, plan.recall >= 0.99) == (6_000, True)
    table, seal = open_table(large / HOME, read_run(large))
    scores, ids = Approximate(large / HOME, TABLE, seal.version).search(clustered(100, 9)[42], 1, plan.probes)
    assert table.take_row_ids(ids.tolist()).select(["key"]).to_arrow()["key"].to_pylist() == ["006042.jpg"]
    assert scores[0] > 0.9999


def test_threads_share_an_approximate_index(large: Path) -> None:
    build_index(large, approximate_from=5_000)
    index = Index(large)
    assert index.plan.probes
    queries = list(clustered(40, 8))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(index.search, queries))
    fractions = []
    for query, neighbors in zip(queries, results, strict=True):
        expected = {neighbor.key: neighbor.score for neighbor in index.search(query, all_rows=True)}
        fractions.append(len(expected.keys() & {neighbor.key for neighbor in neighbors}) / 10)
        assert all(
            neighbor.score == pytest.approx(expected.get(neighbor.key, neighbor.score), abs=1e-5)
            for neighbor in neighbors
        )
    assert np.mean(fractions) >= 0.97
    assert build_index(large, approximate_from=100_000).plan.probes == 0
    assert open_table(large / HOME, read_run(large))[0].list_indices() == []


def test_an_approximate_index_with_low_recall_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", numbered(random_vectors(300, 0)))
    monkeypatch.setattr(Approximate, "search", lambda index, query, k, probes: (np.zeros(k), np.zeros(k, int)))
    messages: list[str] = []
    plan = build_index(run, approximate_from=200, log=messages.append).plan
    assert plan == SearchPlan("the recall@10 of an approximate index was -0.1000, less than 0.99")
    assert messages[-1].startswith("searches are exact")
    assert open_table(run / "index", read_run(run))[0].list_indices() == []


def test_every_finite_half_is_widened_exactly() -> None:
    halves = np.arange(65_536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    widened = nearest._widen(halves, np.empty(halves.shape, np.int32), np.empty(halves.shape, np.float32))
    assert widened.tobytes() == halves.astype(np.float32).tobytes()


@pytest.mark.parametrize("rows", [0, 1, 4_095, 4_097])
def test_cosines_do_not_depend_on_the_blocks(rows: int) -> None:
    stored = random_vectors(rows, 1).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), 16)
    queries = unit(random_vectors(3, 2))
    expected = queries.astype(np.float64) @ unit(stored.astype(np.float64)).T.astype(np.float64)
    np.testing.assert_allclose(nearest._cosines(queries, column), expected.reshape(3, rows), atol=1e-6)
    np.testing.assert_allclose(nearest._cosines(queries, column[rows // 2 :]), expected[:, rows // 2 :], atol=1e-6)


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("medium") / "run", numbered(clustered(700, 1)))
    build_index(run)
    return run


@pytest.mark.parametrize("memory", [0, 10**9, None])
def test_conditions_hold_in_memory_and_in_the_table(medium: Path, memory: int | None) -> None:
    index = Index(medium, memory=memory)
    among = np.arange(700) % 7 == 3
    (query,) = random_vectors(1, 8)
    found = index.search(query, top=300, among=among, label="dog")
    assert {row.row for row in found} == {i for i in range(700) if i % 7 == 3 and i % 3 == 1}
    everything = index.search(query, top=700)
    matching = [row for row in everything if row.row % 7 == 3 and row.row % 3 == 1]
    assert [row.key for row in found] == [row.key for row in matching]
    np.testing.assert_allclose([row.score for row in found], [row.score for row in matching], atol=2e-6)


def test_columns_and_vectors_are_those_of_the_shards(medium: Path) -> None:
    table, _ = open_table(medium / "index", read_run(medium))
    stored = {row["row"]: row for row in table.to_arrow().to_pylist()}
    for memory in (0, 10**9):
        index = Index(medium, memory=memory)
        columns = index.columns
        assert columns.rows.tolist() == list(range(700))
        assert columns.names == ("cat", "dog", "it's a horse")
        assert columns.labels.tolist() == [i % 3 for i in range(700)]
        assert columns.probabilities.tolist() == [stored[i]["probability"] for i in range(700)]
        wanted = [699, 3, 3, 17]
        np.testing.assert_array_equal(
            index.vectors(wanted), unit(np.array([stored[i]["vector"] for i in wanted], np.float32))
        )
        assert [row.key for row in index.neighbors(wanted)] == [stored[i]["key"] for i in wanted]
        assert index.row_query(17).name == stored[17]["key"]
        assert columns.spread(columns.labels, 9)[:4].tolist() == [0, 1, 2, 0]
        codes: dict[str, Any] = dict(not_found=([700], [-1], [2**62]), bad_argument=([10**30], [0.5], ["1"]))
        for code, wrong in ((code, rows) for code, lists in codes.items() for rows in lists):
            with pytest.raises(UsageError) as caught:
                index.vectors(wrong)
            assert caught.value.code == code


def test_an_approximate_index_with_vectors_in_memory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", numbered(clustered(3_000, 4)))
    build_index(run, approximate_from=1_000)
    disk, memory = Index(run, memory=0), Index(run, memory=10**9)
    assert disk.plan.probes
    among = np.arange(3_000) % 2 == 0
    for query in unit(random_vectors(5, 6)):
        for options in (dict[str, Any](), dict(all_rows=True), dict(label="dog"), dict(among=among)):
            found = [[row.row for row in index.search(query, top=20, **options)] for index in (disk, memory)]
            assert found[0] == found[1]
    np.testing.assert_array_equal(disk.vectors([5, 2_999]), memory.vectors([5, 2_999]))
