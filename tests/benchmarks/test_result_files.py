"""Benchmarks add files of results and never replace one."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from .test_photographs import load

before_after, bulk, cpu, end_to_end, input_path, table = map(
    load, ("before_after", "bulk", "cpu", "end_to_end", "input_path", "table")
)
MODEL = "convmixer_256_8_ks3_p4"


def make_photos(path: Path, count: int = 4) -> Path:
    """Write an archive of JPEG files."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            pixels = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120))
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90)
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def call(monkeypatch: pytest.MonkeyPatch, program: object, *arguments: object) -> None:
    """Run the main function of a benchmark with arguments."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    program.main()  # type: ignore[attr-defined]


def test_a_second_measurement_gets_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = make_photos(tmp_path / "photos.tar"), tmp_path / "out"
    out.mkdir()
    for _ in range(2):
        table.write_table("what", [dict(value=1)], out)
        call(monkeypatch, input_path, photos, "--rounds", 1, "--limit", 1, "--out", out)
        call(monkeypatch, end_to_end, photos, "--models", MODEL, "--rounds", 1, "--seconds", 0.01, "--out", out)
    names = sorted(path.name for path in out.iterdir())
    assert [name.endswith("_2.csv") for name in names] == [False, True] * 3


def test_an_existing_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu.csv"
    file.write_text("kept")
    with pytest.raises(SystemExit):
        call(monkeypatch, cpu, "--out", file)
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--parts", "odd"], "the part odd needs --odd FILE"), (["--parts", "memory,disk"], "--parts has disk")],
)
def test_parts_of_bulk_are_checked_before_the_measurement(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, bulk, tmp_path / "photos.tar", *arguments, "--out", tmp_path)
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_checkouts_of_the_same_name_do_not_share_files(tmp_path: Path) -> None:
    trees = [tmp_path / name / "tessella" for name in ("a", "b")]
    first, second = (before_after.own_folder(tree, tmp_path) for tree in trees)
    assert first != second
    assert before_after.own_folder(trees[0], tmp_path) == first
