"""Artifacts to verify: small stored ones of every kind, and ones that are made from the built-in model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tessella
from tessella.bulk import RunSettings, run
from tessella.export import export
from tessella.search.index import build_index
from tessella.weights.catalogue import BUILTIN_FOLDER

from ..test_builtin import CIFAR10_MODEL

TESTS = Path(__file__).resolve().parents[1]
EXAMPLES, STORED = TESTS.parent / "examples", TESTS / "stored"
WEIGHTS = f"{CIFAR10_MODEL}.safetensors"


def copy_artifacts(folder: Path) -> dict[str, Path]:
    """Return a copy of one small artifact of each kind by name."""
    shutil.copy(BUILTIN_FOLDER / WEIGHTS, folder / WEIGHTS)
    shutil.copytree(STORED / "saved" / "mixer", folder / "saved")
    shutil.copytree(STORED / "exported" / "openvino", folder / "exported")
    shutil.copytree(STORED / "run-finished", folder / "run")
    shutil.copytree(STORED / "train-interrupted", folder / "trained")
    paths = dict(weights=folder / WEIGHTS, saved=folder / "saved", exported=folder / "exported", run=folder / "run")
    return paths | dict(index=folder / "run" / "index", trained=folder / "trained")


def make_artifacts(folder: Path) -> dict[str, Path]:
    """Return an export of the built-in model for CIFAR-10, and a run on the example photographs with its index."""
    predictor = tessella.load(CIFAR10_MODEL, engine="openvino")
    export(predictor, folder / "exported")
    run([EXAMPLES], folder / "run", predictor, RunSettings(processes=1))
    build_index(folder / "run")
    return dict(exported=folder / "exported", run=folder / "run", index=folder / "run" / "index")


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    """Replace the content of a file while the block runs; its time is changed, too."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def copied(source: Path, target: Path) -> Path:
    """Copy a file or a folder, and return the copy."""
    return shutil.copytree(source, target) if source.is_dir() else Path(shutil.copy(source, target))


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    """Return the data with one bit changed."""
    result = bytearray(data)
    result[position % len(data)] ^= 1 << bit
    return bytes(result)


def files_of(path: Path) -> list[Path]:
    """Return the files below a folder that have a content, except locks; of a file, itself."""
    if path.is_file():
        return [path]
    return sorted(
        found for found in path.rglob("*") if found.is_file() and found.stat().st_size and found.name != ".lock"
    )
