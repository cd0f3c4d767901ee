"""Maps of runs: exact principal components, the same bytes each time, and tied to the rows of the index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save

from tessella.bulk import verify
from tessella.bulk.run_folder import read_rows
from tessella.cli.program import cli
from tessella.errors import UsageError
from tessella.search import Index, build_index
from tessella.search import index as index_module
from tessella.search.projection import METHODS, Projection, principal_components, project, read_map, reduce, write_map

from ..bulk.runs import drop_shard, numbered, random_vectors, unit, write_run, write_shard

pytest.importorskip("lancedb")


def in_batches(rows: Any, size: int) -> Any:
    return lambda: iter([rows[start : start + size] for start in range(0, len(rows), size)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """250 rows in three shards, one of which is an error."""
    images = numbered(random_vectors(250, 0) * np.linspace(3, 1, 16, dtype=np.float32))
    images[120].error = "corrupt_image"
    return write_run(tmp_path / "run", images)


def stored_vectors(run: Path) -> Any:
    rows = [row for table in read_rows(run) for row in table.to_pylist() if row["status"] == "ok"]
    return unit(np.array([row["embedding"] for row in rows], np.float32))


def map_files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "index").glob("map*"))


def index_damage(run: Path) -> list[str]:
    return [damage.file for damage in verify(run).damage if damage.file.startswith("index/")]


# --- principal components ---------------------------------------------------------------------------------------------


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    rows = unit(random_vectors(500, 3, width=24) * np.linspace(4, 1, 24, dtype=np.float32) + 1)
    found = principal_components(in_batches(rows, 64)(), 24, 5)
    centered = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
    _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(found.fractions, sizes[:5] ** 2 / (sizes**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(np.abs((found.directions * directions[:5].T).sum(0)), 1, rtol=1e-9)
    coordinates = reduce(in_batches(rows, 64)(), found)
    np.testing.assert_allclose(coordinates, centered @ found.directions, atol=1e-6)
    largest = np.abs(found.directions).argmax(0)
    assert (found.directions[largest, range(5)] > 0).all()


def test_the_size_of_the_batches_does_not_matter() -> None:
    rows = unit(random_vectors(300, 5))
    maps = [project(in_batches(rows, size), 16, "pca").points for size in (7, 100, 300)]
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-6)
    np.testing.assert_allclose(maps[0], maps[2], atol=1e-6)
    assert project(in_batches(rows, 100), 16, "pca").points.tobytes() == maps[1].tobytes()


def test_a_map_fills_the_square_and_keeps_proportions() -> None:
    rows = unit(random_vectors(300, 5) * np.linspace(3, 1, 16, dtype=np.float32))
    points = project(in_batches(rows, 100), 16, "pca").points
    assert points.dtype == np.float32
    assert points.min() == pytest.approx(-1)
    assert points.max() == pytest.approx(1)
    coordinates = reduce(in_batches(rows, 100)(), principal_components(in_batches(rows, 100)(), 16, 2))
    distances = np.linalg.norm(coordinates[:50, None] - coordinates[None, :50], axis=2)
    on_map = np.linalg.norm(points[:50, None] - points[None, :50], axis=2)
    pairs = distances > 0
    ratio = on_map[pairs] / distances[pairs]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3])
@pytest.mark.parametrize("width", [1, 2, 16])
def test_few_rows_and_narrow_embeddings(method: Any, rows: int, width: int) -> None:
    points = project(in_batches(unit(random_vectors(rows, 0, width)), 2), width, method).points
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()
    assert (np.abs(points) <= 1).all()


def test_equal_rows_are_one_point() -> None:
    rows = unit(np.repeat(random_vectors(1, 0), 20, 0))
    found = project(in_batches(rows, 8), 16, "pca")
    assert not found.points.any()
    assert found.explained == (0, 0)


# --- UMAP -------------------------------------------------------------------------------------------------------------


def test_umap_keeps_groups_together_and_gives_the_same_bytes() -> None:
    pytest.importorskip("umap")
    centers = np.repeat(random_vectors(3, 1), 40, 0)
    rows = unit(centers + 0.2 * random_vectors(120, 2))
    first, second = (project(in_batches(rows, 50), 16, "umap").points for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert np.abs(first).max() == pytest.approx(1)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2) + 9 * np.eye(120)
    assert (distances.argmin(1) // 40 == np.arange(120) // 40).all()


def test_umap_is_an_option(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.extras.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        build_index(run, map="umap")
    assert caught.value.code == "missing_dependency"
    assert caught.value.hint == "pip install umap-learn"
    assert not (run / "index").exists()


def test_an_update_without_umap_removes_the_map(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.search.projection._umap", lambda reduced: reduced[:, :2])
    monkeypatch.setattr("tessella.search.projection.check_method", lambda method: None)
    assert build_index(run, map="umap").map == "umap"
    monkeypatch.undo()
    monkeypatch.setattr("tessella.extras.util.find_spec", lambda name: None)
    messages: list[str] = []
    drop_shard(run, 2)
    assert build_index(run, log=messages.append).map == ""
    assert any("pip install umap-learn" in message for message in messages)
    assert Index(run).map() is None
    assert map_files(run) == []


# --- as part of an index ----------------------------------------------------------------------------------------------


def test_a_map_has_a_point_per_row_in_the_order_of_the_listing(run: Path) -> None:
    report = build_index(run, map="pca")
    assert report.map == "pca"
    found = Index(run).map()
    assert found is not None
    expected = project(in_batches(stored_vectors(run), 100), 16, "pca")
    np.testing.assert_allclose(found.points, expected.points, atol=1e-6)
    assert found.explained == pytest.approx(expected.explained, rel=1e-6)
    assert 0 < found.explained[1] <= found.explained[0] < 1


def test_there_is_no_map_unless_it_is_requested(run: Path) -> None:
    assert build_index(run).map == ""
    assert Index(run).map() is None


def test_a_map_follows_the_rows(run: Path) -> None:
    build_index(run, map="pca")
    (before,) = map_files(run)
    build_index(run)
    assert map_files(run) == [before]
    write_shard(run, 1, numbered(random_vectors(100, 9), 100))
    report = build_index(run)
    assert (report.map, report.added, report.removed) == ("pca", 100, 99)
    (after,) = map_files(run)
    assert after != before
    fresh = project(in_batches(stored_vectors(run), 100), 16, "pca")
    found = Index(run).map()
    assert found is not None
    np.testing.assert_allclose(found.points, fresh.points, atol=1e-6)
    assert index_damage(run) == []


def test_an_updated_index_has_the_bytes_of_a_new_one(run: Path, tmp_path: Path) -> None:
    build_index(run, map="pca")
    shard = numbered(random_vectors(100, 9), 0)
    write_shard(run, 0, shard)
    build_index(run)
    images = shard + numbered(random_vectors(250, 0) * np.linspace(3, 1, 16, dtype=np.float32))[100:]
    images[120].error = "corrupt_image"
    other = write_run(tmp_path / "other", images)
    build_index(other, map="pca")
    assert map_files(run) == map_files(other)  # their names have the hash


def test_a_map_can_be_added_and_removed_later(run: Path) -> None:
    build_index(run)
    version = json.loads((run / "index" / "index.json").read_text())["version"]
    assert build_index(run, map="pca").map == "pca"
    assert build_index(run, map="none").map == ""
    assert map_files(run) == []
    assert Index(run).map() is None
    assert json.loads((run / "index" / "index.json").read_text())["version"] == version  # the table is as it was


def test_a_damaged_map_is_found_and_made_again(run: Path) -> None:
    build_index(run, map="pca")
    (name,) = map_files(run)
    path = run / "index" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert index_damage(run) == [f"index/{name}"]
    with pytest.raises(UsageError) as caught:
        Index(run)
    assert caught.value.code == "damaged_run"
    messages: list[str] = []
    report = build_index(run, log=messages.append)
    assert report.rebuilt
    assert report.map == "pca"
    assert Index(run).map() is not None


def test_an_index_that_is_open_keeps_its_map_or_says_that_it_is_gone(run: Path) -> None:
    build_index(run, map="pca")
    index = Index(run)
    drop_shard(run, 2)
    build_index(run)
    with pytest.raises(UsageError) as caught:
        index.map()
    assert caught.value.code == "damaged_run"


def test_a_killed_builder_leaves_the_index_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(run, map="pca")
    before = Index(run).map()
    drop_shard(run, 2)

    def killed(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt

    for step in ("choose_plan", "_write_seal"):
        with monkeypatch.context() as patch:
            patch.setattr(index_module, step, killed)
            with pytest.raises(KeyboardInterrupt):
                build_index(run)
        if step == "choose_plan":
            found = Index(run).map()
            assert before is not None
            assert found is not None
            assert found.points.tobytes() == before.points.tobytes()
    build_index(run)
    assert len(map_files(run)) == 1
    found = Index(run).map()
    assert found is not None
    assert len(found.points) == 199


def test_files_that_are_no_maps(tmp_path: Path) -> None:
    path = tmp_path / "map-0.safetensors"
    for data in (b"", b"\0" * 100, b"\xff" * 8, save({"points": np.zeros((3, 2), np.float32)})):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a map"):
            read_map(path, 3)
    name = write_map(tmp_path, Projection("pca", np.zeros((2, 2), np.float32)))
    assert read_map(tmp_path / name, 2).method == "pca"
    with pytest.raises(ValueError, match="other rows"):
        read_map(tmp_path / name, 3)


def test_the_command(run: Path) -> None:
    result = CliRunner().invoke(cli, ["index", str(run), "--map"])
    assert result.exit_code == 0, result.output
    assert "249 rows" in result.output
    assert "map: pca" in result.output
    result = CliRunner().invoke(cli, ["index", str(run), "--map", "none", "--json"])
    assert json.loads(result.stdout)["map"] == ""
    assert CliRunner().invoke(cli, ["index", str(run), "--map", "tsne"]).exit_code == 2
