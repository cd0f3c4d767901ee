"""Weight files: find one in a folder, say what its bytes are, read it into tensors or refuse it with a code.

A file is judged by its first bytes, never by its name alone. safetensors is the format; a pickle is read only through
`torch.load(weights_only=True)`, only under a name that says it is one. Nothing in a file is ever executed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor

from ..errors import WeightsError
from ..regular import open_regular
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
PICKLE_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin")
STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where training checkpoints keep the weights
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
AGAIN = "download or copy it again"


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


def read_state_dict(path: str | Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Name -> CPU tensor, all finite, of a safetensors or PyTorch file.

    sha256: hex digest, or its first characters, that the file must have. Training checkpoints are looked through for
    their weights (averaged ones first), and the prefixes of compiled or replicated modules are stripped.
    Raises WeightsError: weights_not_found, truncated, bad_format, not_weights, unsafe_format, hash_mismatch or
    non_finite.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            kind = _sniff(path, file)
            if sha256:
                _check_hash(path, file, sha256)
            state = _read_safetensors(path, file) if kind == "safetensors" else _read_pickle(path)
    except OSError as err:
        raise WeightsError("weights_not_found", f"{path} cannot be read: {err.strerror}") from err
    stripped = {re.sub(r"^(?:_orig_mod\.|module\.)+", "", key): value for key, value in state.items()}
    if len(stripped) != len(state):
        _refuse("bad_format", path, "holds the same tensor with and without a `module.` prefix")
    check_finite(stripped.items(), path)
    return stripped


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


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # timm's own training checkpoints carry their arguments; a Namespace only holds attributes
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        _refuse(
            "unsafe_format", path, "is a pickle of more than tensors, and was not run", "get a safetensors file", err
        )
    except Exception as err:  # whatever a parser of foreign bytes may raise
        if isinstance(err, EOFError | IndexError | struct.error) or "unexpected EOF" in str(err):
            _refuse("truncated", path, "is cut off", AGAIN, err)
        _refuse("bad_format", path, f"is not a valid PyTorch file: {type(err).__name__}", AGAIN, err)
    state = _pick_weights(loaded)
    if state is None:
        _refuse("not_weights", path, "is a PyTorch file without a state dict")
    size = path.stat().st_size
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            _refuse("bad_format", path, f"holds {key} in a layout that is not a plain tensor")
        if value.numel() * value.element_size() > size:
            _refuse("bad_format", path, f"claims {value.numel()} numbers for {key}, more than the file has bytes for")
    return {key: value.detach() for key, value in state.items()}


def _pick_weights(loaded: Any) -> Mapping[str, Tensor] | None:
    """The state dict inside a checkpoint, or None."""
    if not isinstance(loaded, Mapping):
        return None
    state = next((loaded[key] for key in STATE_KEYS if key in loaded), loaded)
    named = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    return state if named and state else None
