"""Converted models on disk, named by what decides them: written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import WeightsError

MANIFEST = "manifest.json"  # {"facts": what it was made of, "files": {name: sha256}}


def cache_folder() -> Path:
    """$TESSELLA_CACHE, or `tessella` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("TESSELLA_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessella"


def cached(kind: str, facts: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills for `facts`, made on first use; processes that want the same one wait for one.

    A folder whose files are not as they were written is made anew. Raises WeightsError `cache_failed` where the disk
    refuses.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    parent = cache_folder() / kind
    folder = parent / key
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f"{key}.lock"):
            if not is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=parent) as temporary:
                    made = Path(temporary) / key
                    made.mkdir()
                    build(made)
                    seal(made, facts)
                    made.rename(folder)
    except OSError as error:
        raise WeightsError(
            "cache_failed",
            f"the folder for converted models, {parent}, could not be used: {error.strerror or error}",
            hint="set TESSELLA_CACHE to a folder with free space that you can write to",
        ) from error
    return folder


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down the hashes of the folder's files, and what they were made of."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(dict(facts=dict(facts), files=files), indent=1))


def weights_file_hash(folder: Path) -> str:
    """SHA-256 of the numbers of a sealed graph; the names in an .xml beside them count up within a process."""
    files: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
    return next((digest for name, digest in files.items() if name.endswith(".bin")), "") or files["model.onnx"]


def is_whole(folder: Path) -> bool:
    """Whether the folder's files are those that its manifest names, byte for byte."""
    return first_damaged(folder) is None


def first_damaged(folder: Path, needed: Iterable[str] = ()) -> str | None:
    """Name of a file that is missing or not as it was sealed; None where all are whole, the `needed` ones included."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        if not files or not all(Path(name).name == name for name in files):  # of this folder only
            return MANIFEST
        for name, digest in files.items():
            if not (folder / name).is_file() or _sha256(folder / name) != digest:
                return str(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return MANIFEST
    return next((name for name in needed if name not in files), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
