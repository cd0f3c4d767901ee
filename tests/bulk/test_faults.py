"""Failing disks and kills at any call with which a bulk run changes its folder: it reports an error, and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..search import index_faults
from .bulk_kills import contents, make_rows, run_tiny
from .faults import KINDS, names_of, trial


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(tmp_path_factory.mktemp("data") / "rows.parquet", 40)  # two shards


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_survives_a_fault_at_any_call(kind: str, data: Path, tmp_path: Path) -> None:
    """A few calls per kind here, spread over the run; all of them in `scripts/soak faults`."""
    run_tiny(data, tmp_path / "uninterrupted")
    expected = contents(tmp_path / "uninterrupted")
    names = names_of(data, tmp_path, kind)
    assert len(set(names)) >= 25
    points = [at for at, name in enumerate(names) if kind != "short" or name.startswith("write")]
    (tmp_path / "trials").mkdir()
    spread = points[KINDS.index(kind) :: max(1, len(points) // 5)]
    for at in {*spread, *(at for at in points if names[at].startswith("commit before"))}:
        trial(data, tmp_path / "trials", at, kind, expected)


def test_an_index_survives_a_kill_at_any_call(tmp_path: Path) -> None:
    """At two calls here; at one call of each name, in all states, in `scripts/soak index`."""
    states = index_faults.prepare(tmp_path, 500)
    calls = index_faults.names_of(states["changed shards"], tmp_path)
    assert len(calls) >= 25
    assert index_faults.trial(states["changed shards"], tmp_path, "after add", calls["after add"]) == ""
    reason = index_faults.trial(states["killed after rows were added"], tmp_path, "fsync *.txn", 1)
    assert "is missing" in reason  # files of the version before are gone by then
