"""A cache of converted models on disk: written atomically, verified when read, named by a hash of their inputs."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import BaseFileLock, FileLock, Timeout

from ..errors import WeightsError
from ..storage import cache_folder as cache_folder
from ..storage import check_writable, make_folders

log = logging.getLogger(__name__)
GRAPHS = {"openvino": "model.xml", "onnxruntime": "model.onnx"}  # file name of a converted model, by engine
GRAPH_FILES = {"openvino": ("model.xml", "model.bin"), "onnxruntime": ("model.onnx",)}  # that hold graph and weights
MANIFEST = "manifest.json"
LOGGED_WAIT = 5.0  # seconds for a lock, after which the wait is logged
REMINDER = 60.0  # seconds between warnings about a longer wait
LONGEST_WAIT = 3600.0  # seconds; longer than any conversion, search or comparison takes


class ArtefactManifest(msgspec.Struct, forbid_unknown_fields=True):
    """The contents of MANIFEST: the inputs of a conversion, and the SHA-256 of each file by name."""

    facts: dict[str, object]
    files: dict[str, str]


class _PrivateCache:
    """A cache in a temporary folder, for this process only; the folder is removed when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._explained: set[Path] = set()

    def find(self, kind: str, key: str) -> Path | None:
        """Return a complete folder of this cache, or None."""
        folder = self._folder and self._folder / kind / key
        return folder if folder and is_intact(folder) else None

    def place(self, kind: str, key: str) -> Path:
        """Return the path of a folder, which need not exist. Raises OSError if there is no space for a cache."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="tessella-"))
                atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
            return self._folder / kind / key

    def explain(self, cache: Path, error: OSError) -> None:
        """Log, once for each `cache`, that it cannot be written and what is done instead."""
        with self._lock:
            is_new = cache not in self._explained
            self._explained.add(cache)
        if is_new:
            log.warning(
                "the cache folder %s cannot be written (%s): what is prepared for a model is kept in a temporary "
                "folder, for this process only; set TESSELLA_CACHE to a writable folder with free space",
                cache,
                _cause(error),
            )


_PRIVATE = _PrivateCache()


def cached(kind: str, facts: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """Return the cached folder for `facts`, which `build` fills on first use; other processes wait meanwhile.

    kind: name of the parent folder in the cache. facts: everything that determines the contents; its hash is the name
    of the folder. A folder with a damaged file is built again. A complete folder is read without a lock, so that a
    filled cache may be read-only. If the cache cannot be written, or another process holds the folder for more than
    LONGEST_WAIT, the folder is built in a temporary one for this process, with a warning. Raises WeightsError
    `cache_failed` if that cannot be written, either.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    cache = cache_folder()
    folder = cache / kind / key
    if is_intact(folder):
        return folder
    if private := _PRIVATE.find(kind, key):
        return private
    try:
        _complete(folder, facts, build)
        return folder
    except OSError as error:
        _PRIVATE.explain(cache, error)
    try:
        private = _PRIVATE.place(kind, key)
        _complete(private, facts, build)
        return private
    except OSError as error:
        raise WeightsError(
            "cache_failed",
            f"neither the cache folder {cache} nor a temporary folder could be written: {_cause(error)}",
            hint="set TESSELLA_CACHE to a writable folder with free space",
        ) from error


def _complete(folder: Path, facts: Mapping[str, object], build: Callable[[Path], None]) -> None:
    """Build `folder`, unless another process has done so meanwhile; raises OSError."""
    make_folders(folder.parent)
    with _held(folder.with_name(f"{folder.name}.lock")):
        if is_intact(folder):
            return
        _remove(folder)
        prefix = f".{folder.name}."
        for abandoned in folder.parent.glob(f"{prefix}*"):  # by processes that were killed, as the lock is ours
            shutil.rmtree(abandoned, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            check_writable(Path(temporary))  # a full disk is found out before the work
            draft = Path(temporary) / folder.name
            draft.mkdir()
            build(draft)
            seal(draft, facts)
            draft.rename(folder)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; a long wait for it is logged.

    Raises OSError if it cannot be written, or is not free after LONGEST_WAIT (its holder may be suspended).
    """
    lock = FileLock(path)
    _acquire(lock)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock) -> None:
    """Acquire a lock, and log the wait for it. Raises OSError if it is not free after LONGEST_WAIT."""
    start, timeout = time.monotonic(), LOGGED_WAIT
    while True:
        try:
            lock.acquire(timeout=timeout)
            return
        except Timeout:
            waited = time.monotonic() - start
        if waited >= LONGEST_WAIT:
            raise OSError(errno.ETIMEDOUT, f"not unlocked within {waited / 60:.0f} minutes", lock.lock_file)
        if timeout == LOGGED_WAIT:
            log.info("waiting for another process that prepares the same model (it holds %s)", lock.lock_file)
        else:
            log.warning(
                "still waiting for another process that prepares the same model (it has held %s for %.0f seconds); "
                "if that process hangs, end it, or set TESSELLA_CACHE to another folder",
                lock.lock_file,
                waited,
            )
        timeout = REMINDER


def _remove(path: Path) -> None:
    """Remove a damaged folder, or anything else at its path. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cause(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason


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
