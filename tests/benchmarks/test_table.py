"""Result files of benchmarks: their folder is created, and none is replaced."""

from __future__ import annotations

from pathlib import Path

from .test_photographs import load

table = load("table")


def test_results_are_added_in_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "today"
    for number in (1, 2):
        table.write_table("search", [dict(rows=number)], folder)
    files = sorted(folder.iterdir())
    assert [file.read_text().splitlines()[1].split(",")[0] for file in files] == ["1", "2"]
    assert [file.name.startswith("search_") for file in files] == [True, True]
