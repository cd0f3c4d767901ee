"""Weight files: find one in a folder, say what its bytes are, read it into tensors or refuse it with a code.

A file is judged by its first bytes, never by its name alone. safetensors is the format; a pickle is read only through
`torch.load(weights_only=True)`, only under a name that says it is one. Nothing in a file is ever executed.
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
from collections.abc import Container, Iterable, Iterator, Mapping
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

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
# where training checkpoints keep the weights: averaged ones first, in timm's order, then the names others use
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
STATE_KEYS = (
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "net_state_dict"),
    *("backbone", "weights", "params", "checkpoint"),
)
MAX_NESTING = 4  # of containers around the weights
MAX_NAMED = 5  # entries in a message
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U64": 8, "U32": 4, "U16": 2,
}  # fmt: skip
AGAIN = "download or copy it again"
# Packages whose objects training code leaves beside the weights. None of their code runs: see `Inert`.
RECORD_PACKAGES = (
    *("numpy", "pathlib", "argparse", "datetime", "decimal", "fractions", "uuid", "enum", "types", "collections"),
    *("omegaconf", "yacs", "easydict", "addict", "ml_collections", "pytorch_lightning", "lightning"),
    *("lightning_fabric", "torch.torch_version", "torch.optim", "timm", "builtins.frozenset", "builtins.slice"),
    *("builtins.range", "builtins.list", "builtins.dict", "builtins.tuple", "builtins.int", "builtins.float"),
    *("builtins.str", "builtins.bool"),
)
_log = logging.getLogger(__name__)


def find_weights(folder: Path) -> Path:
    """The weight file of a model folder: safetensors before any pickle, well-known names before others."""
    for name in PREFERRED:
        if (folder / name).is_file() and (name.endswith(".safetensors") or not any(folder.glob("*.safetensors"))):
            return folder / name
    for suffix in (".safetensors", *PICKLE_SUFFIXES):
        if found := sorted(folder.glob(f"*{suffix}")):
            return found[0]
    raise WeightsError(
        "weights_not_found", f"no weight file in {folder}", hint=f"expected {SAFETENSORS}, or a .bin or .pth file"
    )


def read_state_dict(path: str | Path, *, sha256: str | None = None, use_ema: bool = True) -> dict[str, Tensor]:
    """Name -> CPU tensor, all finite, of a safetensors or PyTorch file.

    sha256: hex digest, or its first characters, that the file must have. The weights may be inside a training
    checkpoint; with use_ema, averaged weights are preferred. What else the checkpoint holds is ignored, and prefixes of
    compiled or replicated modules are removed. float8 tensors come as float32.
    Raises WeightsError: weights_not_found, truncated, bad_format, not_weights, unsafe_format, hash_mismatch or
    non_finite.
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
        _refuse("bad_format", path, "holds the same tensor with and without a `module.` prefix")
    check_finite(stripped.items(), path)
    return stripped


def without_prefix(state: Mapping[str, Tensor], known: Container[str], source: object) -> dict[str, Tensor]:
    """Remove leading words (`model.`, `net.`) that all keys share, where that leads to a key in `known`.

    What was removed is logged as a warning. A state dict of which some key is known already is returned as it is.
    """
    removed, found = "", dict(state)
    while found and not any(key in known for key in found):
        prefix = next(iter(found)).partition(".")[0] + "."
        if not all(key.startswith(prefix) for key in found):
            return dict(state)
        removed += prefix
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    if removed:
        _log.warning("%s: the prefix %r, which all %d keys have, is removed", source, removed, len(found))
    return found


def _widened(value: Tensor, key: str, path: Path) -> Tensor:
    """float8 as float32: every value of it is exact there, and few operations take float8."""
    if not value.is_floating_point() or value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return value
    try:
        return value.to(torch.float32)
    except (RuntimeError, NotImplementedError) as err:  # packed types, such as two 4-bit numbers per byte
        _refuse("wrong_dtype", path, f"holds {key} as {value.dtype}, which cannot be converted to float32", "", err)


def check_finite(tensors: Iterable[tuple[str, Tensor]], source: object) -> None:
    """Raises WeightsError `non_finite`, naming the first tensor with a NaN or an infinity."""
    for name, value in tensors:
        # the two extremes tell: NaN wins both, and this takes a tenth of the time of asking every element
        if value.is_floating_point() and value.numel() and not all(end.isfinite() for end in torch.aminmax(value)):
            raise WeightsError(
                "non_finite",
                f"{source}: {name} contains NaN or infinity",
                hint="the training run that wrote it diverged",
            )


def _refuse(code: str, path: Path, what: str, hint: str = "", cause: BaseException | None = None) -> NoReturn:
    if hint == AGAIN and path.parent.parent.name == "snapshots":  # the Hub's cache, which its client trusts for good
        hint = f"delete {path.resolve()} and try again: the Hub's client does not replace a file that it has"
    raise WeightsError(code, f"{path} {what}", hint=hint) from cause


def _sniff(path: Path, file: BufferedReader) -> str:
    """ "safetensors" or "pickle"; anything else is refused by name."""
    head = file.read(512)
    size = path.stat().st_size
    if size < 8:
        _refuse("truncated", path, f"has {size} bytes, a weight file has at least 8", AGAIN)
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] in (b"{", b"") and header_bytes <= MAX_HEADER:
        return "safetensors"
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        _refuse("not_weights", path, "is a git-LFS pointer, not the file it points to", "run `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        _refuse("not_weights", path, "is a web page, probably an error page of the download", AGAIN)
    if text.startswith((b'{"', b"{'")):
        _refuse("not_weights", path, "is a JSON document, not weights", AGAIN)
    if head.startswith(b"\x93NUMPY"):
        _refuse("not_weights", path, "is a NumPy array", "the original .npz files go through `tessella convert`")
    if head.startswith(b"\x89HDF"):
        _refuse("not_weights", path, "is an HDF5 (Keras) file", "only PyTorch weights can be read")
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        _refuse("not_weights", path, "is a gzip or tar archive", "unpack it and name the weight file inside")
    is_zip = head.startswith(b"PK")
    if is_zip:
        _check_torch_zip(path, file)
    if is_zip or re.match(rb"\x80[\x02-\x05]", head):
        by_torch = is_zip or head[1] == 2  # the only protocol in its files from before the zip format
        if by_torch and path.name.lower().endswith(PICKLE_SUFFIXES):
            return "pickle"
        _refuse(
            "unsafe_format",
            path,
            "is a Python pickle, which can run code, and not a PyTorch file under a name of one",
            f"get the safetensors file; PyTorch's own files are read when they end in {', '.join(PICKLE_SUFFIXES)}",
        )
    if path.name.lower().endswith(".safetensors") and header_bytes > MAX_HEADER:
        _refuse("bad_format", path, f"announces a header of {header_bytes} bytes, the limit is {MAX_HEADER}", AGAIN)
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
    """Tensors must fill the data one after another, without hole, overlap or rest."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(keys := dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return keys

    try:
        header = json.loads(raw, object_pairs_hook=unique)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        spans = sorted(_check_entry(name, entry) for name, entry in header.items() if name != "__metadata__")
        if not spans:
            raise ValueError("it holds no tensor")
        for (_, end, name), (start, _, following) in pairwise([(0, 0, "the start"), *spans]):
            if start != end:
                raise ValueError(f"{following!r} starts at byte {start}, but {name!r} ends at {end}")
    except (ValueError, RecursionError) as err:
        _refuse("bad_format", path, f"has a damaged safetensors header: {err}", AGAIN, err)
    if spans[-1][1] != data_bytes:
        what = "is cut off" if data_bytes < spans[-1][1] else "has bytes left over"
        _refuse("truncated", path, f"{what}: {data_bytes} bytes of tensors, the header says {spans[-1][1]}", AGAIN)


def _check_entry(name: str, entry: Any) -> tuple[int, int, str]:
    """One tensor of the header -> (first byte, end, name)."""
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{name!r} is of an unknown type {dtype!r}")
    if not isinstance(shape, list) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in (*shape, start, end)):
        raise ValueError(f"{name!r} has a shape or offsets that are not counts")
    if end - start != prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name!r} of shape {shape} in {dtype} does not take {end - start} bytes")
    return start, end, name


def _check_torch_zip(path: Path, file: BufferedReader) -> None:
    """PyTorch's zip archives hold one `<name>/data.pkl` and store everything uncompressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as err:
        _refuse("truncated", path, "is a damaged or cut-off zip archive", AGAIN, err)
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if any(name.endswith(".npy") for name in names):
        _refuse("not_weights", path, "is a NumPy .npz archive", "convert it with `tessella convert`")
    if "data.pkl" not in names:
        _refuse("not_weights", path, "is a zip archive without PyTorch weights", "unpack it if the weights are inside")
    if "constants.pkl" in names:
        _refuse("unsafe_format", path, "is a TorchScript program, not weights", "get the safetensors file")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        _refuse("bad_format", path, "is a compressed zip archive, PyTorch never compresses", AGAIN)


class Inert:
    """Takes the place of any object of a pickle that is not a tensor: accepts all arguments, keeps and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _inert(name: str) -> tuple[Any, str]:
    """A stand-in for the global `name`, in the form that torch's `safe_globals` takes."""
    return (_plain_dict if name == "collections.defaultdict" else type(name, (Inert,), {}), name)


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}  # torch then fills it; it would refuse to fill any other type


def _read_pickle(path: Path, use_ema: bool) -> dict[str, Tensor]:
    names = _globals_in(path)
    records = [name for name in names if f"{name}.".startswith(tuple(f"{package}." for package in RECORD_PACKAGES))]
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
    except Exception as err:  # whatever a parser of foreign bytes may raise
        if isinstance(err, EOFError | IndexError | struct.error) or "unexpected EOF" in str(err):
            _refuse("truncated", path, "is cut off", AGAIN, err)
        _refuse("bad_format", path, f"is not a valid PyTorch file: {type(err).__name__}", AGAIN, err)
    state = _weights_in(loaded, path, use_ema)
    size = path.stat().st_size
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            _refuse("bad_format", path, f"holds {key} in a layout that is not a plain tensor")
        if value.numel() * value.element_size() > size:
            _refuse("bad_format", path, f"claims {value.numel()} numbers for {key}, more than the file has bytes for")
    return {key: value.detach() for key, value in state.items()}


def _load_with(path: Path, names: Iterable[str]) -> Any:
    """What torch reads from the file without running code, with `Inert` objects where the pickle names `names`."""
    with torch.serialization.safe_globals([_inert(name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _globals_in(path: Path) -> list[str]:
    """Classes and functions that the pickles in the file name; nothing is looked up. Damage ends the list."""
    names: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            for op, argument, _ in _operations(file):
                if op.name == "GLOBAL":
                    module, name = argument.split(" ", 1)
                    module, name = _compat_pickle.NAME_MAPPING.get(
                        (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
                    )
                    names[f"{module}.{name}"] = None
    except Exception:  # the loader, which reads the same bytes, says what is wrong with them
        return list(names)
    return list(names)


def _operations(file: BufferedReader) -> Iterator[tuple[Any, Any, Any]]:
    if file.read(2) == b"PK":
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.rpartition("/")[2] == "data.pkl":
                    yield from pickletools.genops(archive.read(entry))
        return
    file.seek(0)
    for _ in range(4):  # the older format: magic number, version, system, and the object
        yield from pickletools.genops(file)


def _culprits(path: Path, names: list[str], records: list[str]) -> str:
    """Where in a refused file its foreign objects are, and of which types; the types alone where that is unknown."""
    foreign = [name for name in names if name not in records]
    try:
        found = list(_inert_in(_load_with(path, names)))
    except Exception:  # torch refuses some modules in any case
        found = []
    places = [f"{key or 'the whole file'} ({name})" for key, name in found if name in foreign]
    shown = places or [name for name in foreign if not name.startswith(("torch._utils", "collections", "torch.Float"))]
    return f": {', '.join(shown[:MAX_NAMED])}{', ...' if len(shown) > MAX_NAMED else ''}" if shown else ""


def _inert_in(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(dotted key, type) of every stand-in among the values."""
    if isinstance(value, Inert):
        yield key, type(value).__name__
    elif depth < 20 and isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _inert_in(item, f"{key}.{name}" if key else str(name), depth + 1)


def _weights_in(loaded: Any, path: Path, use_ema: bool) -> Mapping[str, Tensor]:
    """The state dict of a checkpoint; what lies beside the tensors is named in a warning."""
    place, state = _find_weights(loaded, (*EMA_KEYS, *STATE_KEYS) if use_ema else (*STATE_KEYS, *EMA_KEYS), 0)
    if state is None:
        kept = ", ".join(map(repr, list(loaded)[:5])) if isinstance(loaded, Mapping) else type(loaded).__name__
        _refuse(
            "not_weights",
            path,
            f"is a PyTorch file without a state dict: it holds {kept or 'nothing'}",
            "save the weights alone: torch.save(model.state_dict(), path)",
        )
    if any(name not in (*EMA_KEYS, *STATE_KEYS) for name in place):
        _log.warning("%s: the weights are taken from %r", path, ".".join(place))
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if others := [f"{key} ({type(value).__name__})" for key, value in state.items() if key not in tensors]:
        more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        _log.warning("%s: ignored entries that are not tensors: %s%s", path, ", ".join(others[:MAX_NAMED]), more)
    return tensors


def _find_weights(loaded: Any, keys: tuple[str, ...], depth: int) -> tuple[tuple[str, ...], Mapping[Any, Any] | None]:
    """Where in a checkpoint its weights are, and the mapping that holds them; None where there is none.

    A container of a name that is not in `keys` counts where it is the only one, and on the outermost level.
    """
    if not isinstance(loaded, Mapping) or depth > MAX_NESTING:
        return (), None
    containers = [key for key in keys if isinstance(loaded.get(key), Mapping)]
    if not containers and any(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        return (), loaded
    found = [((str(key), *place), state) for key in containers
             for place, state in [_find_weights(loaded[key], keys, depth + 1)] if state is not None]  # fmt: skip
    if not found and depth == 0:
        others = [(key, *_find_weights(value, keys, 1)) for key, value in loaded.items() if key not in containers]
        found = [((str(key), *place), state) for key, place, state in others if state is not None]
        found = found if len(found) == 1 else []
    return found[0] if found else ((), None)
