"""metrics.jsonl and skipped.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessella.errors import ImageError

from .small_runs import make_images, remarks_of, run


@pytest.mark.usefixtures("without_report")
def test_damaged_lines_of_metrics_jsonl_are_skipped(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    log = tmp_path / "metrics.jsonl"
    rows = log.read_text()
    log.write_text('{"kind": "epoch"}\nnonsense\n' + rows + '{"kind": "st')
    events = run(data, tmp_path)
    assert log.read_text() == rows
    assert "2 damaged lines" in remarks_of(events)


@pytest.mark.usefixtures("without_report")
def test_unreadable_images_are_counted_and_listed(data: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "data")
    for name in ("train/dark/3.png", "train/bright/7.png", "val/dark/0.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    run(folder, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {(row["images"], row["skipped"]) for row in rows} == {(46, 2)}
    assert {(row["val_images"], row["val_errors"]) for row in rows} == {(23, 1)}
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 6
    assert {Path(row["key"]).name for row in skipped} == {"3.png", "7.png"}
    assert {row["code"] for row in skipped} == {"corrupt_image"}
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(ImageError, match="none of the validation images"):
        run(folder, tmp_path / "blind")
