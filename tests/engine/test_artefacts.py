"""The cache of converted models: complete or absent, built by one process at a time, damage is detected."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import multiprocessing.process
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from tessella.engine import artefacts
from tessella.engine.artefacts import MANIFEST, cache_folder, cached, is_intact
from tessella.errors import WeightsError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(text: str = "converted") -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "model.bin").write_text(text)

    return build


def never(folder: Path) -> None:
    pytest.fail("a complete folder was built again")


def test_a_folder_is_built_once_per_facts() -> None:
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "model.bin").write_text("converted")

    first = cached("kind", {"weights": "a"}, build)
    assert cached("kind", {"weights": "a"}, build) == first
    assert cached("kind", {"weights": "b"}, build) != first
    assert len(calls) == 2
    assert (first / "model.bin").read_text() == "converted"


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "manifest"])
def test_damage_is_detected_and_the_folder_rebuilt(damage: str) -> None:
    folder = cached("kind", {}, write())
    file = folder / "model.bin"
    if damage == "changed":
        file.write_text("c0nverted")
    elif damage == "cut":
        file.write_text("conv")
    elif damage == "gone":
        file.unlink()
    else:
        (folder / MANIFEST).write_text("{")
    assert not is_intact(folder)
    assert (cached("kind", {}, write()) / "model.bin").read_text() == "converted"
    assert is_intact(folder)


def test_a_failed_build_leaves_no_folder(own_cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "model.bin").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached("kind", {}, build)
    assert [path for path in (own_cache / "kind").iterdir() if path.suffix != ".lock"] == []


def make_slowly(root: str, done: str) -> None:
    os.environ["TESSELLA_CACHE"] = root

    def build(folder: Path) -> None:
        with Path(done).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        (folder / "model.bin").write_text("converted")

    cached("kind", {}, build)


def test_concurrent_processes_build_once(own_cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    done = tmp_path / "builds"
    workers = [context.Process(target=make_slowly, args=(str(own_cache), str(done))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(done.read_text().split()) == 1


# --- a cache that cannot be written -----------------------------------------------------------------------------------


def refuse_writes(monkeypatch: pytest.MonkeyPatch, below: Path, number: int = errno.EROFS) -> None:
    """Fail what creates files and folders below a path, as on a file system that is mounted read-only."""

    def guarded(original: Any) -> Any:
        def call(path: Any, flags: int = os.O_CREAT, *rest: Any, **named: Any) -> Any:
            text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
            if text.startswith(str(below)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(number, os.strerror(number), text)
            return original(path, flags, *rest, **named)

        return call

    for name in ("open", "mkdir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of temporary files; nothing is in this process's private cache yet."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(artefacts, "_PRIVATE", artefacts._PrivateCache())
    return folder


def test_a_complete_folder_is_read_without_writing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached("kind", {}, write())
    refuse_writes(monkeypatch, own_cache)
    with pytest.raises(OSError, match="Read-only"):
        (own_cache / "kind" / "new").mkdir()
    assert cached("kind", {}, never) == folder


def test_a_complete_folder_needs_no_lock(own_cache: Path) -> None:
    folder = cached("kind", {}, write())
    (own_cache / "kind" / f"{folder.name}.lock").unlink()
    assert cached("kind", {}, never) == folder
    assert not (own_cache / "kind" / f"{folder.name}.lock").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_replaced_for_this_process(
    own_cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    own_cache.mkdir()
    refuse_writes(monkeypatch, own_cache, number)
    folder = cached("kind", {}, write())
    assert folder.is_relative_to(temporary)
    assert (folder / "model.bin").read_text() == "converted"
    assert cached("kind", {}, never) == folder
    assert cached("other", {}, write()).is_relative_to(temporary)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(own_cache) in warning.getMessage()
    assert os.strerror(number) in warning.getMessage()
    assert not list(own_cache.iterdir())


@pytest.mark.parametrize("place", ["below a file", "a file", "/proc", "the kind is a file", "the lock is a folder"])
def test_places_that_cannot_hold_a_cache(
    place: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    if place == "/proc":
        monkeypatch.setenv("TESSELLA_CACHE", "/proc/cache")
    elif place == "the kind is a file":
        cache.mkdir()
        (cache / "kind").write_text("")
    elif place == "the lock is a folder":
        key = cached("kind", {}, write()).name
        shutil.rmtree(cache / "kind" / key)
        (cache / "kind" / f"{key}.lock").unlink()
        (cache / "kind" / f"{key}.lock").mkdir()
    else:
        cache.write_text("")
        monkeypatch.setenv("TESSELLA_CACHE", str(cache / "below" if place == "below a file" else cache))
    assert cached("kind", {}, write()).is_relative_to(temporary)


def test_a_damaged_folder_in_a_read_only_cache_is_not_used(
    own_cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cached("kind", {}, write()) / "model.bin").write_text("damaged")
    refuse_writes(monkeypatch, own_cache)
    folder = cached("kind", {}, write())
    assert folder.is_relative_to(temporary)
    assert (folder / "model.bin").read_text() == "converted"


def test_a_disk_that_fills_up_during_the_work(own_cache: Path, temporary: Path) -> None:
    def build(folder: Path) -> None:
        if folder.is_relative_to(own_cache):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (folder / "model.bin").write_text("converted")

    assert cached("kind", {}, build).is_relative_to(temporary)
    assert [path.suffix for path in (own_cache / "kind").iterdir()] == [".lock"]


def test_without_any_writable_folder_it_is_a_coded_error(
    own_cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.write_text("a file where the folder should be")
    monkeypatch.setattr(tempfile, "tempdir", str(own_cache / "temporary"))
    with pytest.raises(WeightsError) as caught:
        cached("kind", {}, never)
    assert caught.value.code == "cache_failed"
    assert str(own_cache) in caught.value.message
    assert "TESSELLA_CACHE" in str(caught.value.hint)


def test_the_private_cache_is_gone_with_the_process(tmp_path: Path) -> None:
    code = "from tessella.engine.artefacts import cached\n"
    code += "print(cached('kind', {}, lambda folder: (folder / 'model.bin').write_text('converted')), end='')"
    environment = {**os.environ, "TESSELLA_CACHE": "/proc/cache", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout).is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


# --- remains and waiting ----------------------------------------------------------------------------------------------


def build_and_hang(root: str, started: str) -> None:
    os.environ["TESSELLA_CACHE"] = root

    def build(folder: Path) -> None:
        (folder / "model.bin").write_text("half")
        Path(started).touch()
        time.sleep(60)

    cached("kind", {}, build)


def start_and_hang(own_cache: Path, tmp_path: Path) -> multiprocessing.process.BaseProcess:
    """Return a process that holds the lock of cached("kind", {}) while it builds."""
    started = tmp_path / "started"
    worker = multiprocessing.get_context("spawn").Process(target=build_and_hang, args=(str(own_cache), str(started)))
    worker.start()
    while not started.exists():
        assert worker.is_alive()
        time.sleep(0.01)
    return worker


def test_drafts_of_a_killed_process_are_removed(own_cache: Path, tmp_path: Path) -> None:
    worker = start_and_hang(own_cache, tmp_path)
    other = own_cache / "kind" / ".another-key.x1"  # may be in use by another process
    other.mkdir()
    worker.kill()
    worker.join()
    assert len(list((own_cache / "kind").glob(".*"))) == 2
    folder = cached("kind", {}, write())
    assert {path.name for path in (own_cache / "kind").iterdir()} == {folder.name, f"{folder.name}.lock", other.name}


def test_a_long_wait_is_logged(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert artefacts.LOGGED_WAIT == 5
    monkeypatch.setattr(artefacts, "LOGGED_WAIT", 0.1)
    caplog.set_level(logging.INFO, logger="tessella.engine")
    worker = start_and_hang(own_cache, tmp_path)
    Timer(0.5, worker.kill).start()
    cached("kind", {}, write())
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("waiting for another process that prepares the same model")
    worker.join()


def test_a_wait_without_end_is_given_up(
    own_cache: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that is suspended keeps its lock; others go on without the cache."""
    for name, seconds in (("LOGGED_WAIT", 0.1), ("REMINDER", 0.2), ("LONGEST_WAIT", 0.5)):
        assert getattr(artefacts, name) > 1
        monkeypatch.setattr(artefacts, name, seconds)
    worker = start_and_hang(own_cache, tmp_path)
    assert cached("kind", {}, write()).is_relative_to(temporary)
    worker.kill()
    worker.join()
    reminder, given_up = (row.getMessage() for row in caplog.records if row.levelno == logging.WARNING)
    assert reminder.startswith("still waiting for another process that prepares the same model")
    assert "not unlocked within" in given_up


def test_a_short_wait_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tessella.engine")
    cached("kind", {}, write())
    assert not caplog.records


@pytest.mark.parametrize("stray", ["file", "link", "dangling link", "empty folder"])
def test_anything_else_at_the_path_of_a_folder_is_replaced(own_cache: Path, tmp_path: Path, stray: str) -> None:
    folder = cached("kind", {}, write())
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    if stray == "file":
        folder.write_text("stray")
    elif stray == "empty folder":
        folder.mkdir()
    else:
        folder.symlink_to(tmp_path / ("elsewhere" if stray == "link" else "nowhere"))
    assert cached("kind", {}, write()) == folder
    assert (folder / "model.bin").read_text() == "converted"
    assert not folder.is_symlink()
    assert (tmp_path / "elsewhere" / "file").exists()


def test_the_cache_folder_of_each_setting(monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path) -> None:
    assert cache_folder() == own_cache
    monkeypatch.delenv("TESSELLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tessella"


def test_the_cache_folder_of_earlier_versions_is_still_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Versions without platformdirs used ~/.cache/tessella on every system."""
    monkeypatch.delenv("TESSELLA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: tmp_path / "Library" / "Caches" / name)
    assert cache_folder() == tmp_path / "Library" / "Caches" / "tessella"
    (tmp_path / ".cache" / "tessella").mkdir(parents=True)
    assert cache_folder() == tmp_path / ".cache" / "tessella"
