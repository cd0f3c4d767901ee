"""A folder as people have it, given to each command: every entry is a row, or a line says what was left out."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from .test_cli import run


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Four good images (one in an archive, one in a linked folder), three bad entries, and what is no image."""
    photos, disk = tmp_path / "photos", tmp_path / "disk2"
    disk.mkdir()
    photos.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "PNG")
    for path in (photos / "a.png", photos / "b.png", disk / "c.png"):
        path.write_bytes(picture.getvalue())
    with tarfile.open(photos / "all.tar", "w") as archive:
        archive.add(photos / "a.png", "d.png")
    (photos / "disk2").symlink_to("../disk2")
    (photos / "self.jpg").symlink_to("self.jpg")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "@eaDir").mkdir()
    (photos / "@eaDir" / "a.png").write_bytes(picture.getvalue())
    (photos / "notes.txt").touch()
    return tmp_path


LINES = [
    "skipped 1 system file or folder, such as photos/@eaDir",
    "skipped 1 file without an image suffix (.txt), such as photos/notes.txt",
]
STATUS = {
    "photos/a.png": "ok", "photos/all.tar::d.png": "ok", "photos/b.png": "ok", "photos/disk2/c.png": "ok",
    "photos/gone.jpg": "not_found", "photos/pipe.jpg": "special_file", "photos/self.jpg": "unreadable",
}  # fmt: skip


@pytest.mark.parametrize("command", ["classify", "embed"])
@pytest.mark.parametrize("source", ["photos", "-"])
def test_records(messy: Path, command: str, source: str) -> None:
    out, err = run(command, "--json", source, cwd=messy, stdin="photos\n")
    assert {row["key"]: row["status"] for row in map(json.loads, out.splitlines())} == STATUS
    assert [line for line in err.splitlines() if "skipped" in line] == LINES


def test_features(messy: Path) -> None:
    _, err = run("features", "photos", "--out", "f.npz", cwd=messy)
    assert [line for line in err.splitlines() if "skipped" in line] == LINES
    for key, status in STATUS.items():
        assert status == "ok" or f"{key}: {status}" in err


def test_a_bulk_run(messy: Path) -> None:
    _, err = run("run", "photos", "--out", "photos/run", "--processes", "1", cwd=messy)
    assert [line in err for line in LINES] == [True, True]
    (shard,) = (messy / "photos" / "run" / "shards").glob("*.parquet")
    rows = pq.read_table(shard, columns=["key", "status"]).to_pylist()
    assert {row["key"]: row["status"] for row in rows} == STATUS
    _, err = run("classify", "photos", cwd=messy)  # the run is not read as data
    assert "skipped 1 output of Tessella, such as photos/run" in err


def test_a_list_without_its_sign_is_explained(messy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(messy)
    Path("list.csv").write_text("photos/a.png\nphotos/b.png\n")
    for command in (["classify"], ["run", "--out", "run"]):
        _, err = run(*command, "list.csv", status=3)
        assert "if it lists inputs, one per line, give '@list.csv' instead" in err
    _, err = run("run", "@list.csv", "--out", "other")
    assert "2 inputs, 2 rows" in err
    assert "instead" not in err


@pytest.mark.parametrize(
    "command",
    [
        ["classify", "a.parquet", "--out", "a.parquet"],
        ["embed", "photos/a.png", "a.parquet", "--out", "./photos/../a.parquet"],
        ["explain", "photos/a.png", "--out", "photos/a.png"],
        ["run", "@list.csv", "--out", "run", "--bad-inputs", "list.csv"],
        ["search", "run", "photos/a.png", "--sheet", "photos/a.png"],
        ["calibrate", "a.parquet", "--out", "link.parquet"],
        ["inspect", "list.csv", "--out", "report", "--write-list", "list.csv"],
    ],
    ids=lambda command: command[0],
)
def test_an_input_is_not_replaced_by_the_result(
    messy: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(messy)
    Path("list.csv").write_text("photos/a.png\nphotos/b.png\n")
    pq.write_table(pa.table(dict(image=[Path("photos/a.png").read_bytes()])), "a.parquet")
    Path("link.parquet").symlink_to("a.parquet")
    Path("run").mkdir()
    before = {path: path.read_bytes() for path in (Path("list.csv"), Path("a.parquet"), Path("photos/a.png"))}
    _, err = run(*command, status=2)
    assert "is an input, and would be replaced by the result" in err
    assert {path: path.read_bytes() for path in before} == before
