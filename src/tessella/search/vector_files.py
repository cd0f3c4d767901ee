"""Query vectors in .npy and .npz files, read as untrusted input.

Letters for shapes: N rows of a file, D width of the embedding.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

MAX_BYTES = 1 << 30  # of a file, unpacked
SUFFIXES = (".npy", ".npz")


def read_vector(path: Path, check_fingerprint: Callable[[str, str], None]) -> NDArray[np.generic]:
    """Return the array in a .npy file, or the mean (D,) of the embeddings in a .npz file of `tessella embed`.

    check_fingerprint: called with the fingerprint and the model in a .npz file; raises if they do not fit.
    Raises UsageError: `not_found`, `special_file`, or `bad_argument` for a file that has no embeddings or is too large.
    """
    message = f"{str(path)!r} contains no embeddings"
    hint = "give a vector as .npy, or what `tessella embed --out FILE.npz` writes"
    if not path.is_file():
        if not os.path.lexists(path):
            raise UsageError("not_found", f"there is no file {str(path)!r}")
        raise UsageError("special_file", f"{str(path)!r} is not a regular file", hint=hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mean of no rows is refused later; headers of Python 2
            if path.suffix.lower() == ".npy":
                _check_size(path, path.stat().st_size)
                return read_array(io.BytesIO(path.read_bytes()), path.stat().st_size)
            fingerprint, model, vectors_ND = _read_embeddings(path)
            check_fingerprint(fingerprint, f"{path}, {model}")
            if vectors_ND.ndim != 2 or vectors_ND.dtype.kind != "f":
                raise UsageError("bad_argument", message, hint=hint)
            floats_ND = cast("NDArray[np.floating]", vectors_ND)
            mean_D: NDArray[np.floating] = np.nanmean(floats_ND, 0, dtype=np.float64)  # rows of bad inputs are NaN
            return mean_D
    except UsageError:
        raise
    except Exception:  # a damaged header raises whatever NumPy, zipfile and Python's own tokenizer do
        raise UsageError("bad_argument", message, hint=hint) from None


def _read_embeddings(path: Path) -> tuple[str, str, NDArray[np.generic]]:
    """Return the fingerprint, the model and the embeddings (N,D) in a .npz file."""
    with ZipFile(path) as file:
        _check_size(path, sum(member.file_size for member in file.infolist()))
        fingerprint, model, vectors_ND = (
            read_array(io.BytesIO(file.read(f"{name}.npy")), file.getinfo(f"{name}.npy").file_size)
            for name in ("fingerprint", "model", "embeddings")
        )
    return str(fingerprint), str(model), vectors_ND


def _check_size(path: Path, size: int) -> None:
    """Refuse a file that would fill the memory, such as an archive of zeros."""
    if size > MAX_BYTES:
        raise UsageError(
            "bad_argument",
            f"{str(path)!r} has {size:,} bytes, the limit of a query is {MAX_BYTES:,}",
            hint="give the embeddings of fewer images, or their mean as .npy",
        )


def read_array(file: IO[bytes], size: int) -> NDArray[np.generic]:
    """Read an array of numbers or text, of any shape, from a .npy file of `size` bytes.

    Raises ValueError if the header describes more data than the file has, or Python objects.
    """
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > size:
        raise ValueError("not an array of numbers, or truncated")
    file.seek(0)
    array: NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
    return array
