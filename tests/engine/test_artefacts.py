"""The cache of converted models: complete or absent, built by one process at a time, damage is detected."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tessella.engine.artefacts import MANIFEST, cache_folder, cached, is_intact
from tessella.errors import WeightsError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(text: str = "converted") -> object:
    def build(folder: Path) -> None:
        (folder / "model.bin").write_text(text)

    return build


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
    folder = cached("kind", {}, write())  # type: ignore[arg-type]
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
    assert (cached("kind", {}, write()) / "model.bin").read_text() == "converted"  # type: ignore[arg-type]
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


def test_a_cache_that_cannot_be_written_is_a_coded_error(own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError) as caught:
        cached("kind", {}, write())  # type: ignore[arg-type]
    assert caught.value.code == "cache_failed"
    assert "TESSELLA_CACHE" in str(caught.value.hint)


def test_the_cache_folder_of_each_setting(monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path) -> None:
    assert cache_folder() == own_cache
    monkeypatch.delenv("TESSELLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tessella"


def test_the_cache_folder_of_earlier_versions_is_still_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Versions without platformdirs used ~/.cache/tessella on every system."""
    monkeypatch.delenv("TESSELLA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: tmp_path / "Library" / "Caches" / name)
    assert cache_folder() == tmp_path / "Library" / "Caches" / "tessella"
    (tmp_path / ".cache" / "tessella").mkdir(parents=True)
    assert cache_folder() == tmp_path / ".cache" / "tessella"
