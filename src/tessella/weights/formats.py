"""Find weight files in a folder and recognize their format, by the first bytes and never by the name alone.

safetensors is preferred; a pickle is only read by PyTorch, and only if its name has a suffix of PyTorch files.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Literal, NoReturn

from ..errors import WeightsError
from .fetch import CALIBRATION, SAFETENSORS

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
AGAIN = "download or copy it again"


def find_weights(folder: Path) -> Path:
    """Return the weight file of a model folder: safetensors before pickles, well-known names before others.

    Raises WeightsError `weights_not_found`.
    """
    safetensors = sorted(path for path in folder.glob("*.safetensors") if path.name != CALIBRATION)
    for name in PREFERRED:
        if (folder / name).is_file() and (name.endswith(".safetensors") or not safetensors):
            return folder / name
    for matches in (safetensors, *(sorted(folder.glob(f"*{suffix}")) for suffix in PICKLE_SUFFIXES)):
        if matches:
            return matches[0]
    raise WeightsError(
        "weights_not_found", f"no weight file in {folder}", hint=f"expected {SAFETENSORS}, or a .bin or .pth file"
    )


def refuse(code: str, path: Path, what: str, hint: str = "", cause: BaseException | None = None) -> NoReturn:
    """Raise WeightsError about the file, with a better hint for files in the Hub's cache."""
    if (
        hint == AGAIN and path.parent.parent.name == "snapshots"
    ):  # in the Hub's cache, whose client does not check files again
        hint = f"delete {path.resolve()} and try again: the Hub's client does not replace cached files"
    raise WeightsError(code, f"{path} {what}", hint=hint) from cause


def sniff(path: Path, file: BufferedReader) -> Literal["safetensors", "pickle"]:
    """Return "safetensors" or "pickle". Raises WeightsError that names any other format."""
    head = file.read(512)
    size = path.stat().st_size
    if size < 8:
        refuse("truncated", path, f"has {size} bytes, a weight file has at least 8", AGAIN)
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] in (b"{", b"") and header_bytes <= MAX_HEADER:
        return "safetensors"
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        refuse("not_weights", path, "is a git-LFS pointer, not the file itself", "run `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        refuse("not_weights", path, "is a web page, probably an error page of the download", AGAIN)
    if text.startswith((b'{"', b"{'")):
        refuse("not_weights", path, "is a JSON document, not weights", AGAIN)
    if head.startswith(b"\x93NUMPY"):
        refuse("not_weights", path, "is a NumPy array", "convert the original .npz files with `tessella convert`")
    if head.startswith(b"\x89HDF"):
        refuse("not_weights", path, "is an HDF5 (Keras) file", "only PyTorch weights can be read")
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        refuse("not_weights", path, "is a gzip or tar archive", "unpack it and pass the weight file inside")
    is_zip = head.startswith(b"PK")
    if is_zip:
        _check_torch_zip(path, file)
    if is_zip or re.match(rb"\x80[\x02-\x05]", head):
        by_torch = is_zip or head[1] == 2  # the only protocol of its files before the zip format
        if by_torch and path.name.lower().endswith(PICKLE_SUFFIXES):
            return "pickle"
        refuse(
            "unsafe_format",
            path,
            "is a Python pickle, which can run code, and not a PyTorch file with a matching name",
            f"get the safetensors file; PyTorch files are read if their names end in {', '.join(PICKLE_SUFFIXES)}",
        )
    if path.name.lower().endswith(".safetensors") and header_bytes > MAX_HEADER:
        refuse("bad_format", path, f"declares a header of {header_bytes} bytes, the limit is {MAX_HEADER}", AGAIN)
    refuse("bad_format", path, "is neither a safetensors nor a PyTorch file", AGAIN)


def check_hash(path: Path, file: BufferedReader, sha256: str, known: str | None = None) -> str:
    """Return the SHA-256 of a file; raise WeightsError `hash_mismatch` unless it begins with `sha256`.

    known: the hash, if the file need not be hashed again.
    """
    actual = known
    if actual is None:
        file.seek(0)
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(sha256.lower()):
        refuse("hash_mismatch", path, f"has SHA-256 {actual}, the published file has {sha256}", AGAIN)
    return actual


def _check_torch_zip(path: Path, file: BufferedReader) -> None:
    """Refuse zip archives that PyTorch did not write: its archives have one `<name>/data.pkl` and no compression."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as err:
        refuse("truncated", path, "is a damaged or truncated zip archive", AGAIN, err)
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if any(name.endswith(".npy") for name in names):
        refuse("not_weights", path, "is a NumPy .npz archive", "convert it with `tessella convert`")
    if "data.pkl" not in names:
        refuse("not_weights", path, "is a zip archive without PyTorch weights", "unpack it if it contains the weights")
    if "constants.pkl" in names:
        refuse("unsafe_format", path, "is a TorchScript program, not weights", "get the safetensors file")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        refuse("bad_format", path, "is a compressed zip archive; PyTorch never compresses", AGAIN)
