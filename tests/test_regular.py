"""Only regular files are opened for reading; other files are refused at once with a code."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessella.data.datasets import open_labelled
from tessella.data.decode import decode
from tessella.data.sources import iter_sources
from tessella.errors import TessellaError, UsageError
from tessella.evaluation.imagenet import read_real_labels
from tessella.storage import SpecialFileError, absolute, open_regular, read_regular
from tessella.training.config import read_config as read_settings
from tessella.weights.config import read_config
from tessella.weights.files import read_state_dict


@pytest.fixture(params=["pipe", "socket", "device"])
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("special.json")
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path = Path("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        if request.param == "socket":
            server.bind(str(path))
        yield path


def test_special_files_are_not_opened(special: Path) -> None:
    with pytest.raises(SpecialFileError, match="not a regular file"):
        open_regular(special)


@pytest.mark.parametrize("read", [decode, read_state_dict, read_config, read_settings, read_real_labels])
def test_every_reader_refuses_them_with_a_code(special: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(TessellaError, match="not a regular file"):
        read(special)


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "a") == read_regular(str(tmp_path / "link")) == b"abc"
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "b")
    with pytest.raises(ValueError, match="null"):
        open_regular("a\0b")


def test_a_pipe_that_replaces_a_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe appears between the check and the opening, which does not wait for a writer."""
    file, pipe = tmp_path / "a", tmp_path / "pipe"
    file.write_bytes(b"abc")
    os.mkfifo(pipe)
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path: stat(file))
    with pytest.raises(SpecialFileError):
        open_regular(pipe)


def test_a_relative_path_in_a_deleted_folder_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    with pytest.raises(UsageError) as caught:
        absolute("photos")
    assert caught.value.code == "not_found"
    assert absolute("/photos") == "/photos"
    with pytest.raises(UsageError) as caught:
        open_labelled(".")
    assert caught.value.code == "not_found"
    (source,) = iter_sources(["."])
    assert source.error is not None
