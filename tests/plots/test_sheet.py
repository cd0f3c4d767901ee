"""Contact sheets: a failure is a warning, and an .html page needs no drawing library."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from tessella.data.decode import decode
from tessella.plots.sheet import Panel, write_sheet


def test_a_page_needs_no_drawing_library_and_a_failed_sheet_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no fonts")

    monkeypatch.setattr("tessella.plots.figures.new_figure", fail)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_sheet(tmp_path / "sheet.html", [Panel(pixels, ("noise",))], "Noise")
    data = re.search(r"base64,([^\"]+)", (tmp_path / "sheet.html").read_text())
    assert data is not None
    assert np.array_equal(decode(b64decode(data[1])), pixels)
    write_sheet(tmp_path / "sheet.png", [Panel(pixels, ("noise",))], "Noise")
    assert "sheet.png was not drawn: OSError: no fonts" in caplog.text
    assert not (tmp_path / "sheet.png").exists()


def test_no_text_of_a_page_has_hidden_characters(tmp_path: Path) -> None:
    pixels = np.zeros((5, 7, 3), np.uint8)
    name = "photo\u202egpj.exe\udcff"
    write_sheet(tmp_path / "sheet.html", [Panel(pixels, (name,), f"group {name}")], f"Nearest in {name}")
    page = (tmp_path / "sheet.html").read_text()
    assert page.count(r"photo\u202egpj.exe\xff") == 4  # title and heading of the page, of the group, caption
    assert "\u202e" not in page
