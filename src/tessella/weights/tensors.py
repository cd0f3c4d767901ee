"""Read tensors from safetensors files into NumPy, without PyTorch.

Nothing is read before the header is known to describe the complete file.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError
from ..models.layout import TensorKind
from ..storage import open_regular
from .formats import AGAIN, check_hash, refuse, sniff
from .keys import verify_kinds, without_prefix, without_wrappers
from .remembered import FileFacts

Array = NDArray[np.generic]
ALIGNMENT = 64  # bytes, of the data in memory; engines use arrays that are aligned without copying them
_log = logging.getLogger(__name__)


class StoredType(NamedTuple):
    """A type of numbers in safetensors files. dtype: its name in PyTorch. stored: the NumPy type of its bytes."""

    dtype: str
    stored: str

    @property
    def item_bytes(self) -> int:
        """Bytes per number."""
        return np.dtype(self.stored).itemsize


TYPES = {  # by the name in a header; NumPy has no float8 and no bfloat16, so these are read as integers
    "F64": StoredType("float64", "<f8"),
    "F32": StoredType("float32", "<f4"),
    "F16": StoredType("float16", "<f2"),
    "BF16": StoredType("bfloat16", "<u2"),
    "F8_E4M3": StoredType("float32", "u1"),  # PyTorch widens float8 when it reads a file
    "F8_E5M2": StoredType("float32", "u1"),
    "I64": StoredType("int64", "<i8"),
    "I32": StoredType("int32", "<i4"),
    "I16": StoredType("int16", "<i2"),
    "I8": StoredType("int8", "i1"),
    "U64": StoredType("uint64", "<u8"),
    "U32": StoredType("uint32", "<u4"),
    "U16": StoredType("uint16", "<u2"),
    "U8": StoredType("uint8", "u1"),
    "BOOL": StoredType("bool", "?"),
}

# --- the header -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. name: its type in the header. start: of its bytes, counted from the end of the header."""

    stored: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def kind(self) -> TensorKind:
        """The shape, and the type that PyTorch would give it."""
        return TensorKind(self.shape, TYPES[self.stored].dtype)


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file. start: of the data, in bytes. tensors: in the order of their data."""

    start: int
    tensors: dict[str, StoredTensor]


def read_header(path: Path, file: BufferedReader) -> Header:
    """Read the header of a safetensors file and check that its tensors cover the file without gaps or overlaps.

    Raises WeightsError `truncated`, `bad_format`.
    """
    file.seek(0)
    header_bytes = int.from_bytes(file.read(8), "little")
    raw = file.read(header_bytes)
    if len(raw) < header_bytes:
        refuse("truncated", path, f"ends inside its header, after {8 + len(raw)} of {8 + header_bytes} bytes", AGAIN)
    try:
        entries = sorted(_parse(raw), key=lambda item: (item[1].start, item[1].end, item[0]))
        if not entries:
            raise ValueError("it contains no tensor")
        nothing = ("the start", StoredTensor("U8", (), 0, 0))
        for (name, before), (following, entry) in pairwise([nothing, *entries]):
            if entry.start != before.end:
                raise ValueError(f"{following!r} starts at byte {entry.start}, but {name!r} ends at {before.end}")
    except (ValueError, RecursionError) as err:
        refuse("bad_format", path, f"has a damaged safetensors header: {err}", AGAIN, err)
    data_bytes, expected = path.stat().st_size - 8 - header_bytes, entries[-1][1].end
    if expected != data_bytes:
        what = "is truncated" if data_bytes < expected else "has bytes left over"
        refuse("truncated", path, f"{what}: {data_bytes} bytes of tensors, the header says {expected}", AGAIN)
    return Header(8 + header_bytes, dict(entries))


def _parse(raw: bytes) -> Iterable[tuple[str, StoredTensor]]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(keys := dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return keys

    header = json.loads(raw, object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata is not an object of strings")
    for name, value in header.items():
        name.encode()  # raises UnicodeEncodeError, a ValueError, for half of a surrogate pair
        yield name, _check_entry(name, value)


Count = Annotated[int, msgspec.Meta(ge=0)]


class _Description(msgspec.Struct):
    """The description of one tensor in the header."""

    dtype: str
    shape: Annotated[list[Count], msgspec.Meta(max_length=8)]
    data_offsets: tuple[Count, Count]  # first byte and end


def _check_entry(name: str, value: object) -> StoredTensor:
    try:
        entry = msgspec.convert(value, _Description, strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets: {error}") from None
    if entry.dtype not in TYPES:
        raise ValueError(f"{name!r} has the unknown type {entry.dtype!r}")
    start, end = entry.data_offsets
    if end - start != prod(entry.shape) * TYPES[entry.dtype].item_bytes:
        raise ValueError(f"{name!r} of shape {entry.shape} in {entry.dtype} does not take {end - start} bytes")
    return StoredTensor(entry.dtype, tuple(entry.shape), start, end)


# --- the data ---------------------------------------------------------------------------------------------------------


class FileTensors(dict[str, Array]):
    """The weights of a model by name, in the order of its state dict, and what is known about their file."""

    def __init__(self, values: Mapping[str, Array], facts: FileFacts):
        super().__init__(values)
        self.facts = facts


def read_tensors(
    path: str | Path, layout: Mapping[str, TensorKind], *, sha256: str | None = None, arch: str = ""
) -> FileTensors | None:
    """Return the tensors of a safetensors file that has exactly those of `layout`, in its order and with its types.

    Arrays of any shape. float16, bfloat16, float8 and float64 become float32, and prefixes that wrappers add to names
    are removed. sha256: the hexadecimal digest, or its first characters, that the file must have. arch: the name of the
    model in messages. None if the file was written by PyTorch.
    Raises WeightsError: weights_not_found, truncated, bad_format, not_weights, unsafe_format, hash_mismatch,
    wrong_keys, wrong_shape, wrong_dtype or non_finite.
    """
    path = Path(path)
    if "\0" in str(path):
        raise WeightsError("weights_not_found", f"{str(path)!r} is not a path: it contains a null character")
    try:
        with open_regular(path) as file:
            if sniff(path, file) != "safetensors":
                return None
            facts = FileFacts(path, file)
            if sha256:
                facts.sha256 = check_hash(path, file, sha256, facts.sha256)
            header = read_header(path, file)
            entries = without_prefix(without_wrappers(header.tensors, path), layout, path)
            verify_kinds({key: entry.kind for key, entry in entries.items()}, layout, source=path, arch=arch)
            data = _read_data(path, file, header)
    except OSError as err:
        raise WeightsError("weights_not_found", f"{path} cannot be read: {err.strerror}") from err
    tensors = {key: _converted(data, entries[key], layout[key], path, key) for key in layout}
    if not facts.is_finite:
        check_finite(tensors.items(), path)
        facts.is_finite = True
    if rounded := sum(TYPES[entry.stored].dtype == "float64" != layout[key].dtype for key, entry in entries.items()):
        _log.warning("%s: %d tensors are float64 and are rounded to the model's precision", path, rounded)
    return FileTensors(tensors, facts)


def _read_data(path: Path, file: BufferedReader, header: Header) -> NDArray[np.uint8]:
    """Return the bytes after the header, aligned in memory."""
    count = os.fstat(file.fileno()).st_size - header.start
    buffer = np.empty(count + ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % ALIGNMENT
    data = buffer[offset : offset + count]
    file.seek(header.start)
    if file.readinto(data.data) != count:
        refuse("truncated", path, "became shorter while it was read", AGAIN)
    return data


def _converted(data: NDArray[np.uint8], entry: StoredTensor, target: TensorKind, path: Path, key: str) -> Array:
    """Return a tensor of the file in the type of the model: a view of `data` if the file has that type."""
    stored: Array = data[entry.start : entry.end].view(TYPES[entry.stored].stored).reshape(entry.shape)
    stored = np.require(stored, requirements="A")
    if entry.stored == "BF16":
        stored = np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)
    elif entry.stored.startswith("F8"):
        stored = float8_values(entry.stored)[stored]
    if target.dtype == stored.dtype.name:
        return np.asarray(stored)
    if stored.dtype.kind == "f" and not target.dtype.startswith("float"):  # batch counters, as in averaged states
        check_finite([(key, stored)], path)
    with np.errstate(over="ignore", invalid="ignore"):  # found when the results are checked
        return np.asarray(stored.astype(target.dtype))  # NumPy turns some arrays without axes into scalars


@cache
def float8_values(stored: str) -> NDArray[np.float32]:
    """Return the (256,) values of a float8 type of safetensors files, by their bytes."""
    codes = np.arange(256, dtype=np.uint16)
    if stored == "F8_E5M2":  # the upper half of a float16
        return (codes << np.uint16(8)).view(np.float16).astype(np.float32)
    sign, exponent, fraction = codes >> 7, (codes >> 3 & 15).astype(int), codes & 7
    values = np.where(exponent == 0, np.ldexp(fraction, -9), np.ldexp(8 + fraction, exponent - 10))
    values[codes & 127 == 127] = np.nan  # F8_E4M3 has no infinity
    return np.where(sign == 1, -values, values).astype(np.float32)


def check_finite(tensors: Iterable[tuple[str, Array]], source: object) -> None:
    """Raise WeightsError `non_finite` with the name of the first array, of any shape, with NaN or infinity."""
    for name, values in tensors:
        if values.dtype.kind != "f" or is_finite(values):
            continue
        raise WeightsError(
            "non_finite",
            f"{source}: {name} contains NaN or infinity",
            hint="the training run that wrote it diverged",
        )


def is_finite(values: Array) -> bool:
    """Return whether an array of any shape has neither NaN nor infinity."""
    with np.errstate(all="ignore"):
        # their sum is not finite if any value is not; a sum of large values may overflow, too
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())
