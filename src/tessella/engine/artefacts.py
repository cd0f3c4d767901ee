"""A cache of converted models on disk: written atomically, verified when read, named by a hash of their inputs."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
from filelock import FileLock

from ..errors import WeightsError
from ..storage import cache_folder as cache_folder

GRAPHS = {"openvino": "model.xml", "onnxruntime": "model.onnx"}  # file name of a converted model, by engine
MANIFEST = "manifest.json"


class ArtefactManifest(msgspec.Struct, forbid_unknown_fields=True):
    """The contents of MANIFEST: the inputs of a conversion, and the SHA-256 of each file by name."""

    facts: dict[str, object]
    files: dict[str, str]


def cached(kind: str, facts: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """Return the cached folder for `facts`, which `build` fills on first use; other processes wait meanwhile.

    kind: name of the parent folder in the cache. facts: everything that determines the contents; its hash is the name
    of the folder. A folder with a damaged file is built again.
    Raises WeightsError `cache_failed` if the folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    parent = cache_folder() / kind
    folder = parent / key
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f"{key}.lock"):
            if not is_intact(folder):
                shutil.rmtree(folder, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=parent) as temporary:
                    draft = Path(temporary) / key
                    draft.mkdir()
                    build(draft)
                    seal(draft, facts)
                    draft.rename(folder)
    except OSError as error:
        raise WeightsError(
            "cache_failed",
            f"the folder for converted models, {parent}, could not be used: {error.strerror or error}",
            hint="set TESSELLA_CACHE to a writable folder with free space",
        ) from error
    return folder


def seal(folder: Path, facts: Mapping[str, object]) -> None:
    """Write the manifest of a folder: `facts`, and the hashes of its files."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(dict(facts=dict(facts), files=files), indent=1))


def weights_file_hash(folder: Path) -> str:
    """Return the SHA-256 of the weights of a converted model, as its manifest states it.

    For OpenVINO this is the hash of the .bin file, as the names in the .xml file contain a counter of the process.
    """
    files = _read_manifest(folder).files
    return next((digest for name, digest in files.items() if name.endswith(".bin")), "") or files["model.onnx"]


def is_intact(folder: Path) -> bool:
    """Return whether all files that the manifest lists exist and are unchanged."""
    return find_damaged(folder) is None


def find_damaged(folder: Path, needed: Iterable[str] = ()) -> str | None:
    """Return the name of a file that is missing or differs from its hash, or None.

    needed: names of files that the manifest must list.
    """
    try:
        files = _read_manifest(folder).files
        if not files or not all(Path(name).name == name for name in files):  # no file outside this folder
            return MANIFEST
        for name, digest in files.items():
            if not (folder / name).is_file() or _sha256(folder / name) != digest:
                return name
    except (OSError, ValueError, RecursionError):
        return MANIFEST
    return next((name for name in needed if name not in files), None)


def _read_manifest(folder: Path) -> ArtefactManifest:
    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=ArtefactManifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
