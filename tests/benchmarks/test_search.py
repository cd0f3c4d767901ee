"""`scripts/bench search`: its run with synthetic vectors can be indexed and searched."""

from __future__ import annotations

from .test_photographs import load

search = load("search")


def test_all_ways_to_search_are_measured() -> None:
    rows = search.index(1100, 3)  # more than a shard
    assert [row["way"] for row in rows] == ["exact", "lancedb_scan"]
    for row in rows:
        assert (row["rows"], row["queries"]) == (1100, 3)
        assert 0 < row["fastest_ms"] <= row["ms"] <= row["slowest_ms"]
