"""Commands with a cache that cannot be written: a filled one is used, and without one the work is done anyway."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CAT = Path(__file__).parents[2] / "examples" / "cat.jpg"
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
FULL = 'mount -t tmpfs -o size=16k tmpfs "$0" && exec "$@"'


def tessella(
    cache: Path | str, temporary: Path, *arguments: str, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command line with this cache and this folder of temporary files. before: a command that starts it."""
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TESSELLA_CACHE": str(cache), "TMPDIR": str(temporary)}
    command = [*before, sys.executable, "-m", "tessella", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not list(temporary.iterdir())
    return done


def classify(cache: Path | str, temporary: Path, *options: str, before: Sequence[str] = ()) -> tuple[str, str]:
    """Return standard output and error of `tessella classify`."""
    done = tessella(cache, temporary, "classify", str(CAT), "--no-calibration", *options, before=before)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def mounted(script: str, folder: Path) -> list[str]:
    """Return a command that runs another one with a real file system mounted at `folder`, for that process only."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system does not let processes mount file systems of their own")
    return ["unshare", "-rm", "sh", "-c", script, str(folder)]


@pytest.mark.parametrize("precision", ["int8", "fast"])
def test_a_place_that_cannot_hold_a_cache(precision: str, tmp_path: Path) -> None:
    out, err = classify("/proc/cache", tmp_path / "temporary", "--precision", precision)
    assert err.count("WARNING") == 1
    assert "the cache folder /proc/cache cannot be written" in err
    assert "cat" in out


def test_a_filled_cache_is_used_without_writing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    out, err = classify(cache, tmp_path / "temporary", "--precision", "int8")
    assert "only the first time" in err
    for lock in cache.rglob("*.lock"):
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in (cache, *cache.rglob("*"))}
    assert classify(cache, tmp_path / "temporary", "--precision", "int8") == (out, "")
    assert {path: path.stat().st_mtime_ns for path in (cache, *cache.rglob("*"))} == before


@pytest.mark.parametrize("script", [READ_ONLY, FULL], ids=["read-only", "full"])
def test_an_empty_cache_on_a_real_file_system_that_cannot_be_written(script: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    before = mounted(script, cache)
    out, err = classify(cache, tmp_path / "temporary", "--precision", "int8", before=before)
    assert err.count("WARNING") == 1
    assert f"the cache folder {cache} cannot be written" in err
    assert "cat" in out
    done = tessella(cache, tmp_path / "temporary", "tune", before=before)
    assert (done.returncode, done.stdout) == (5, "")
    assert "opening candidate" not in done.stderr
    assert "the measurements cannot be saved" in done.stderr


def test_a_filled_cache_that_is_mounted_read_only(tmp_path: Path) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    assert tessella(cache, temporary, "tune", "--precision", "bfloat16", "--seconds", "4").returncode == 0
    expected = [classify(cache, temporary, *options)[0] for options in ((), ("--precision", "int8"))]
    before = mounted(READ_ONLY, cache)
    for options, out in zip(((), ("--precision", "int8")), expected, strict=True):
        assert classify(cache, temporary, *options, before=before) == (out, "")
