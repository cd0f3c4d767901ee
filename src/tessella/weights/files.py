"""Find weight files in a folder, recognize their format, and read tensors from them.

The format is recognized by the first bytes, never by the name alone. safetensors is preferred; a pickle is only read
with `torch.load(weights_only=True)`, and only if its name has a suffix of PyTorch files. No code in a file is executed.
"""

from __future__ import annotations

import _compat_pickle
import hashlib
import json
import logging
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import safetensors.torch
import torch
from torch import Tensor

from ..errors import WeightsError
from ..storage import open_regular
from .fetch import SAFETENSORS

MAX_HEADER = 4 << 20  # bytes; the largest model here needs 60 kB
PREFERRED = (  # timm's order for a local folder
    SAFETENSORS,
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
PICKLE_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
# keys of the weights in training checkpoints: averaged ones first, in timm's order, then those of other projects
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
STATE_KEYS = (
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "net_state_dict"),
    *("backbone", "weights", "params", "checkpoint"),
)
MAX_NESTING = 4  # levels of containers around the weights
MAX_NAMED = 5  # entries listed in a message
ITEM_BYTES = {  # by type of safetensors files
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
AGAIN = "download or copy it again"
# Packages whose objects training code stores next to the weights. None of their code is executed: see `Inert`.
METADATA_PACKAGES = (
    *("numpy", "pathlib", "argparse", "datetime", "decimal", "fractions", "uuid", "enum", "types", "collections"),
    *("omegaconf", "yacs", "easydict", "addict", "ml_collections", "pytorch_lightning", "lightning"),
    *("lightning_fabric", "torch.torch_version", "torch.optim", "timm", "builtins.frozenset", "builtins.slice"),
    *("builtins.range", "builtins.list", "builtins.dict", "builtins.tuple", "builtins.int", "builtins.float"),
    *("builtins.str", "builtins.bool"),
)
_log = logging.getLogger(__name__)


def find_weights(folder: Path) -> Path:
    """Return the weight file of a model folder: safetensors before pickles, well-known names before others.

    Raises WeightsError `weights_not_found`.
    """
    for name in PREFERRED:
        if (folder / name).is_file() and (name.endswith(".safetensors") or not any(folder.glob("*.safetensors"))):
            return folder / name
    for suffix in (".safetensors", *PICKLE_SUFFIXES):
        if matches := sorted(folder.glob(f"*{suffix}")):
            return matches[0]
    raise WeightsError(
        "weights_not_found", f"no weight file in {folder}", hint=f"expected {SAFETENSORS}, or a .bin or .pth file"
    )


def read_state_dict(path: str | Path, *, sha256: str | None = None, use_ema: bool = True) -> dict[str, Tensor]:
    """Read a safetensors or PyTorch file and return its tensors by name: on the CPU, all finite.

    sha256: the hexadecimal digest, or its first characters, that the file must have. The weights may be part of a
    training checkpoint; with use_ema, averaged weights are preferred. Other content of the checkpoint is ignored, and
    prefixes of compiled or replicated modules are removed. float8 tensors are returned as float32.
    Raises WeightsError: weights_not_found, truncated, bad_format, not_weights, unsafe_format, hash_mismatch,
    wrong_dtype or non_finite.
    """
    path = Path(path)
    if "\0" in str(path):
        raise WeightsError("weights_not_found", f"{str(path)!r} is not a path: it contains a null character")
    try:
        with open_regular(path) as file:
            kind = _sniff(path, file)
            if sha256:
                _check_hash(path, file, sha256)
            state = _read_safetensors(path, file) if kind == "safetensors" else _read_pickle(path, use_ema)
    except OSError as err:
        raise WeightsError("weights_not_found", f"{path} cannot be read: {err.strerror}") from err
    state = {key: _widened(value, key, path) for key, value in state.items()}
    stripped = {re.sub(r"^(?:_orig_mod\.|module\.)+", "", key): value for key, value in state.items()}
    if len(stripped) != len(state):
        _refuse("bad_format", path, "contains the same tensor with and without a `module.` prefix")
    check_finite(stripped.items(), path)
    return stripped


def without_prefix(state: Mapping[str, Tensor], known: Container[str], source: object) -> dict[str, Tensor]:
    """Remove prefixes (`model.`, `net.`) that all keys share, if the result contains a key in `known`.

    state: tensors of any shape. The removed prefix is logged as a warning. A state dict with a known key is returned
    unchanged.
    """
    removed, renamed = "", dict(state)
    while renamed and not any(key in known for key in renamed):
        prefix = next(iter(renamed)).partition(".")[0] + "."
        if not all(key.startswith(prefix) for key in renamed):
            return dict(state)
        removed += prefix
        renamed = {key.removeprefix(prefix): value for key, value in renamed.items()}
    if removed:
        _log.warning("%s: the prefix %r of all %d keys is removed", source, removed, len(renamed))
    return renamed


def _widened(value: Tensor, key: str, path: Path) -> Tensor:
    """Convert float8 to float32, which represents every value exactly; few operations support float8."""
    if not value.is_floating_point() or value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return value
    try:
        return value.to(torch.float32)
    except (RuntimeError, NotImplementedError) as err:  # packed types, such as two 4-bit numbers per byte
        _refuse("wrong_dtype", path, f"contains {key} as {value.dtype}, which cannot be converted to float32", "", err)


def check_finite(tensors: Iterable[tuple[str, Tensor]], source: object) -> None:
    """Raise WeightsError `non_finite` with the name of the first tensor, of any shape, with NaN or infinity."""
    for name, value in tensors:
        # both extremes are NaN if any element is; this takes a tenth of the time of isfinite on every element
        if value.is_floating_point() and value.numel() and not all(end.isfinite() for end in torch.aminmax(value)):
            raise WeightsError(
                "non_finite",
                f"{source}: {name} contains NaN or infinity",
                hint="the training run that wrote it diverged",
            )


def _refuse(code: str, path: Path, what: str, hint: str = "", cause: BaseException | None = None) -> NoReturn:
    if (
        hint == AGAIN and path.parent.parent.name == "snapshots"
    ):  # in the Hub's cache, whose client does not check files again
        hint = f"delete {path.resolve()} and try again: the Hub's client does not replace cached files"
    raise WeightsError(code, f"{path} {what}", hint=hint) from cause


def _sniff(path: Path, file: BufferedReader) -> str:
    """Return "safetensors" or "pickle"; raises WeightsError that names any other format."""
    head = file.read(512)
    size = path.stat().st_size
    if size < 8:
        _refuse("truncated", path, f"has {size} bytes, a weight file has at least 8", AGAIN)
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] in (b"{", b"") and header_bytes <= MAX_HEADER:
        return "safetensors"
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        _refuse("not_weights", path, "is a git-LFS pointer, not the file itself", "run `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        _refuse("not_weights", path, "is a web page, probably an error page of the download", AGAIN)
    if text.startswith((b'{"', b"{'")):
        _refuse("not_weights", path, "is a JSON document, not weights", AGAIN)
    if head.startswith(b"\x93NUMPY"):
        _refuse("not_weights", path, "is a NumPy array", "convert the original .npz files with `tessella convert`")
    if head.startswith(b"\x89HDF"):
        _refuse("not_weights", path, "is an HDF5 (Keras) file", "only PyTorch weights can be read")
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        _refuse("not_weights", path, "is a gzip or tar archive", "unpack it and pass the weight file inside")
    is_zip = head.startswith(b"PK")
    if is_zip:
        _check_torch_zip(path, file)
    if is_zip or re.match(rb"\x80[\x02-\x05]", head):
        by_torch = is_zip or head[1] == 2  # the only protocol of its files before the zip format
        if by_torch and path.name.lower().endswith(PICKLE_SUFFIXES):
            return "pickle"
        _refuse(
            "unsafe_format",
            path,
            "is a Python pickle, which can run code, and not a PyTorch file with a matching name",
            f"get the safetensors file; PyTorch files are read if their names end in {', '.join(PICKLE_SUFFIXES)}",
        )
    if path.name.lower().endswith(".safetensors") and header_bytes > MAX_HEADER:
        _refuse("bad_format", path, f"declares a header of {header_bytes} bytes, the limit is {MAX_HEADER}", AGAIN)
    _refuse("bad_format", path, "is neither a safetensors nor a PyTorch file", AGAIN)


def _check_hash(path: Path, file: BufferedReader, sha256: str) -> None:
    file.seek(0)
    actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(sha256.lower()):
        _refuse("hash_mismatch", path, f"has SHA-256 {actual}, the published file has {sha256}", AGAIN)


def _read_safetensors(path: Path, file: BufferedReader) -> dict[str, Tensor]:
    file.seek(0)
    header_bytes = int.from_bytes(file.read(8), "little")
    raw = file.read(header_bytes)
    if len(raw) < header_bytes:
        _refuse("truncated", path, f"ends inside its header, after {8 + len(raw)} of {8 + header_bytes} bytes", AGAIN)
    _check_header(path, raw, data_bytes=path.stat().st_size - 8 - header_bytes)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as err:
        _refuse("bad_format", path, f"is not valid safetensors: {err}", AGAIN, err)


def _check_header(path: Path, raw: bytes, data_bytes: int) -> None:
    """Refuse a header unless its tensors cover all data without gaps or overlaps."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(keys := dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return keys

    try:
        header = json.loads(raw, object_pairs_hook=unique)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        spans = sorted(_check_entry(name, entry) for name, entry in header.items() if name != "__metadata__")
        if not spans:
            raise ValueError("it contains no tensor")
        for (_, end, name), (start, _, following) in pairwise([(0, 0, "the start"), *spans]):
            if start != end:
                raise ValueError(f"{following!r} starts at byte {start}, but {name!r} ends at {end}")
    except (ValueError, RecursionError) as err:
        _refuse("bad_format", path, f"has a damaged safetensors header: {err}", AGAIN, err)
    if spans[-1][1] != data_bytes:
        what = "is truncated" if data_bytes < spans[-1][1] else "has bytes left over"
        _refuse("truncated", path, f"{what}: {data_bytes} bytes of tensors, the header says {spans[-1][1]}", AGAIN)


Count = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct):
    """The description of one tensor in the header."""

    dtype: str
    shape: Annotated[list[Count], msgspec.Meta(max_length=8)]
    data_offsets: tuple[Count, Count]  # first byte and end


def _check_entry(name: str, value: object) -> tuple[int, int, str]:
    """Return (first byte, end, name) of one tensor."""
    try:
        entry = msgspec.convert(value, _Entry, strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets: {error}") from None
    if entry.dtype not in ITEM_BYTES:
        raise ValueError(f"{name!r} has the unknown type {entry.dtype!r}")
    start, end = entry.data_offsets
    if end - start != prod(entry.shape) * ITEM_BYTES[entry.dtype]:
        raise ValueError(f"{name!r} of shape {entry.shape} in {entry.dtype} does not take {end - start} bytes")
    return start, end, name


def _check_torch_zip(path: Path, file: BufferedReader) -> None:
    """Refuse zip archives that PyTorch did not write: its archives have one `<name>/data.pkl` and no compression."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as err:
        _refuse("truncated", path, "is a damaged or truncated zip archive", AGAIN, err)
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if any(name.endswith(".npy") for name in names):
        _refuse("not_weights", path, "is a NumPy .npz archive", "convert it with `tessella convert`")
    if "data.pkl" not in names:
        _refuse("not_weights", path, "is a zip archive without PyTorch weights", "unpack it if it contains the weights")
    if "constants.pkl" in names:
        _refuse("unsafe_format", path, "is a TorchScript program, not weights", "get the safetensors file")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        _refuse("bad_format", path, "is a compressed zip archive; PyTorch never compresses", AGAIN)


class Inert:
    """A placeholder for an object of a pickle that is not a tensor; it accepts and ignores all arguments."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _inert(name: str) -> tuple[Callable[..., object], str]:
    """Return a placeholder for the global `name`, in the form that torch's `safe_globals` accepts."""
    return (_plain_dict if name == "collections.defaultdict" else type(name, (Inert,), {}), name)


def _plain_dict(*_: object) -> dict[object, object]:
    return {}  # torch fills it; it refuses to fill any other type


def _read_pickle(path: Path, use_ema: bool) -> dict[str, Tensor]:
    names = _globals_in(path)
    records = [name for name in names if f"{name}.".startswith(tuple(f"{package}." for package in METADATA_PACKAGES))]
    try:
        loaded = _load_with(path, records)
    except pickle.UnpicklingError as err:
        _refuse(
            "unsafe_format",
            path,
            f"is a pickle of more than tensors, and was not run{_culprits(path, names, records)}",
            "get a safetensors file, or save the weights alone: torch.save(model.state_dict(), path)",
            err,
        )
    except Exception as err:  # a parser may raise anything for arbitrary bytes
        if isinstance(err, EOFError | IndexError | struct.error) or "unexpected EOF" in str(err):
            _refuse("truncated", path, "is truncated", AGAIN, err)
        _refuse("bad_format", path, f"is not a valid PyTorch file: {type(err).__name__}", AGAIN, err)
    state = _weights_in(loaded, path, use_ema)
    size = path.stat().st_size
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            _refuse("bad_format", path, f"contains {key} in a layout other than that of a plain tensor")
        if value.numel() * value.element_size() > size:
            _refuse("bad_format", path, f"declares {value.numel()} numbers for {key}, more than fit into the file")
    return {key: value.detach() for key, value in state.items()}


def _load_with(path: Path, names: Iterable[str]) -> object:
    """Read the file with torch, without running code; the globals in `names` are replaced by `Inert` objects."""
    with torch.serialization.safe_globals([_inert(name) for name in names]):
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
        return loaded


def _globals_in(path: Path) -> list[str]:
    """List the classes and functions named in the file's pickles, without importing them, up to the first damage."""
    names: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            for op, argument, _ in _operations(file):
                if op.name == "GLOBAL":
                    module, name = str(argument).split(" ", 1)
                    module, name = _compat_pickle.NAME_MAPPING.get(
                        (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
                    )
                    names[f"{module}.{name}"] = None
    except Exception:  # the loader reads the same bytes and reports the error
        return list(names)
    return list(names)


def _operations(file: BufferedReader) -> Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]:
    if file.read(2) == b"PK":
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.rpartition("/")[2] == "data.pkl":
                    yield from pickletools.genops(archive.read(entry))
        return
    file.seek(0)
    for _ in range(4):  # the format before zip: magic number, version, system, and the object
        yield from pickletools.genops(file)


def _culprits(path: Path, names: list[str], records: list[str]) -> str:
    """Describe the objects for which a file is refused by key and type, or only by type if the keys are unknown."""
    foreign = [name for name in names if name not in records]
    try:
        placeholders = list(_inert_in(_load_with(path, names)))
    except Exception:  # torch always refuses some modules
        placeholders = []
    entries = [f"{key or 'the complete file'} ({name})" for key, name in placeholders if name in foreign]
    shown = entries or [name for name in foreign if not name.startswith(("torch._utils", "collections", "torch.Float"))]
    return f": {', '.join(shown[:MAX_NAMED])}{', ...' if len(shown) > MAX_NAMED else ''}" if shown else ""


def _inert_in(value: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, type) of every placeholder among the values."""
    if isinstance(value, Inert):
        yield key, type(value).__name__
    elif depth < 20 and isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _inert_in(item, f"{key}.{name}" if key else str(name), depth + 1)


def _weights_in(loaded: object, path: Path, use_ema: bool) -> Mapping[str, Tensor]:
    """Return the state dict of a checkpoint; a warning lists the entries that are not tensors."""
    location, state = _find_weights(loaded, (*EMA_KEYS, *STATE_KEYS) if use_ema else (*STATE_KEYS, *EMA_KEYS), 0)
    if state is None:
        entries = ", ".join(map(repr, list(loaded)[:5])) if isinstance(loaded, Mapping) else type(loaded).__name__
        _refuse(
            "not_weights",
            path,
            f"is a PyTorch file without a state dict: it contains {entries or 'nothing'}",
            "save the weights alone: torch.save(model.state_dict(), path)",
        )
    if any(name not in (*EMA_KEYS, *STATE_KEYS) for name in location):
        _log.warning("%s: using the weights in %r", path, ".".join(location))
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if others := [f"{key} ({type(value).__name__})" for key, value in state.items() if key not in tensors]:
        more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        _log.warning("%s: ignored entries that are not tensors: %s%s", path, ", ".join(others[:MAX_NAMED]), more)
    return tensors


def _find_weights(
    loaded: object, keys: tuple[str, ...], depth: int
) -> tuple[tuple[str, ...], Mapping[object, object] | None]:
    """Return the location of the weights in a checkpoint, and the mapping that holds them; None if there is none.

    A container whose name is not in `keys` is used if it is the only one, on the outermost level.
    """
    if not isinstance(loaded, Mapping) or depth > MAX_NESTING:
        return (), None
    containers = [key for key in keys if isinstance(loaded.get(key), Mapping)]
    if not containers and any(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        return (), loaded
    inner = [(key, *_find_weights(loaded[key], keys, depth + 1)) for key in containers]
    states = [((key, *location), state) for key, location, state in inner if state is not None]
    if not states and depth == 0:
        others = [(key, *_find_weights(value, keys, 1)) for key, value in loaded.items() if key not in containers]
        states = [((str(key), *location), state) for key, location, state in others if state is not None]
        states = states if len(states) == 1 else []
    return states[0] if states else ((), None)
