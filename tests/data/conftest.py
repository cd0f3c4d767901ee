"""Fixtures for tests of labelled data."""

from __future__ import annotations

from pathlib import Path

import pytest

from .labelled import write


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of three classes, one of them with subfolders, and of files that are skipped."""
    return write(
        tmp_path / "photos", "a10/1.jpg", "a10/2.PNG", "a2/x/y/3.webp", "a2/10.jpg", "a2/9.jpg", "b/4.jpg",
        "b/notes.txt", "b/.5.jpg", ".cache/6.jpg", "__MACOSX/7.jpg", "labels.csv",
    )  # fmt: skip
