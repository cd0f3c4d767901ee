"""Write a comparison to a folder: the page, the changed images as CSV, and all figures as JSON."""

from __future__ import annotations

from pathlib import Path

from ..checks import check_count, checked
from ..evaluation.markdown import json_bytes
from ..records import csv_table
from ..storage import create_output_folder, folder_lock, write_bytes
from ..text import escape
from .answers import ChangedAnswer
from .page import page_bytes
from .results import Comparison
from .settings import MAX_PICTURES, ComparisonSettings

PAGE, TABLE, FIGURES = "comparison.html", "changed.csv", "comparison.json"
COLUMNS = tuple(name for name in ChangedAnswer._fields if name != "row")


@checked
def write_comparison(
    folder: str | Path, comparison: Comparison, *, pictures: int = ComparisonSettings.pictures, command: str = ""
) -> Path:
    """Write comparison.html, changed.csv and comparison.json to a folder, and return the path of the page.

    pictures: images on the page of each kind of change. command: the command line that reproduces the result.
    Raises UsageError `bad_argument`, and `busy` if another process uses the folder, OutputError `output_failed`.
    """
    check_count("pictures", pictures, MAX_PICTURES, least=0)
    folder = create_output_folder(folder)
    rows = (
        answer._asdict() | dict(key=escape(answer.key), source=escape(answer.source)) for answer in comparison.changed
    )
    with folder_lock(folder):
        write_bytes(folder / TABLE, csv_table(COLUMNS, ({name: row[name] for name in COLUMNS} for row in rows)))
        write_bytes(folder / FIGURES, json_bytes(dict(command=command) | comparison.as_dict()))
        write_bytes(folder / PAGE, page_bytes(comparison, pictures))
    return folder / PAGE
