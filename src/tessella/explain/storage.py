"""Files of explanations: names that are safe and unique, and .npz archives, which are read as untrusted input."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, UsageError
from ..records import npz_bytes
from ..search.vector_files import read_array
from ..storage import check_writable, read_regular, write_bytes

Arrays = Mapping[str, NDArray[np.generic]]

FILES = (".png", ".npz", ".html")  # suffixes of results; no folder that is created has one of these, or one of OTHERS
OTHERS = (".csv", ".gif", ".htm", ".jpeg", ".jpg", ".json", ".jsonl", ".parquet", ".pdf", ".svg", ".txt", ".webp")
MAX_BYTES = 1 << 26  # of an archive, unpacked: an image and a map of 3000 x 3000 pixels; most have less than a megabyte
_LONGEST, _LONGEST_PART = 210, 100  # bytes of a name before its number and suffix, and of one of its parts
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices on Windows


def check_folder(path: str, hint: str = "give a folder") -> Path:
    """Return the folder for results after writing a small file to it; it is created if it is missing.

    hint: for a path that cannot be a folder. Raises UsageError `bad_argument` for the name of a file, a link without
    target, or a folder whose parent is missing, OutputError `output_failed` for a folder that cannot be written.
    """
    folder = Path(path)
    if not path:
        raise UsageError("bad_argument", "the name of the output is empty", hint=hint)
    try:
        if folder.suffix.lower() in (*FILES, *OTHERS) and not folder.is_dir():
            raise UsageError("bad_argument", f"cannot write {folder.name!r}", hint=hint)
        if folder.is_symlink() and not folder.exists():
            raise UsageError("bad_argument", f"{path!r} is a symbolic link whose target does not exist", hint=hint)
        if not folder.parent.is_dir():
            raise UsageError("bad_argument", f"there is no folder {str(folder.parent)!r}", hint="create it first")
        check_writable(folder)
    except OSError as error:
        message = f"the folder {path!r} could not be written: {error.strerror or error}"
        raise OutputError("output_failed", message, hint="choose another folder") from None
    return folder


class FileNames:
    """Names for files in one folder: made from keys, safe on every system, each different from all before it.

    Two names that differ in case only are taken for the same, as some file systems do.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, key: str, *parts: str) -> str:
        """Return a name for the input `key`: its last component without suffix, and `parts`, joined by dots.

        Letters and digits of every script remain; all other characters become underscores. Long names are cut. A number
        is added to a name that was returned before.
        """
        base = re.split(r"[/\\]", key.rstrip("/\\"))[-1]
        stem = ".".join(filter(None, (safe_name(text) for text in (os.path.splitext(base)[0], *parts))))  # noqa: PTH122
        stem = _cut(stem, _LONGEST)
        name, number = stem, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name


def safe_name(text: str) -> str:
    """Return text as a part of a file name: letters, digits, hyphens and underscores, at most a hundred bytes."""
    normal = unicodedata.normalize("NFC", text)
    safe = re.sub(r"[^\w-]+", "_", normal).strip("_-")
    safe = "".join(character for character in safe if not unicodedata.category(character).startswith("C"))
    safe = _cut(safe, _LONGEST_PART) or "image"
    return f"_{safe}" if _RESERVED.fullmatch(safe) else safe


def _cut(text: str, size: int) -> str:
    """Return the beginning of a text that has at most `size` bytes as UTF-8."""
    return text.encode("utf-8", "ignore")[:size].decode("utf-8", "ignore")


def write_arrays(path: str | Path, arrays: Arrays) -> None:
    """Write arrays of numbers or text, of any shape, to a .npz file, atomically. Raises OutputError `output_failed`."""
    write_bytes(Path(path), npz_bytes(arrays))


def read_arrays(path: str | Path) -> dict[str, NDArray[np.generic]]:
    """Read the arrays, of any shape, of a .npz file; nothing in it is executed.

    Raises UsageError: `not_found`, or `bad_argument` for a file that is no .npz archive, is damaged or is too large.
    """
    path = Path(path)
    try:
        data = read_regular(path)
        with ZipFile(io.BytesIO(data)) as file:
            members = {member.filename.removesuffix(".npy"): member for member in file.infolist()}
            if sum(member.file_size for member in members.values()) > MAX_BYTES:
                raise ValueError("too large")
            return {
                name: read_array(io.BytesIO(file.read(member)), member.file_size) for name, member in members.items()
            }
    except FileNotFoundError:
        raise UsageError("not_found", f"there is no file {str(path)!r}") from None
    except Exception:  # a damaged archive raises whatever NumPy, zipfile and Python's own tokenizer do
        hint = "give a .npz file of `tessella explain --out FOLDER`"
        raise UsageError("bad_argument", f"{str(path)!r} is not an explanation file", hint=hint) from None
