"""Read tensors from safetensors and PyTorch files into PyTorch; nothing in a file is executed.

A pickle is only read with `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import _compat_pickle
import logging
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..errors import WeightsError
from ..storage import open_regular
from .formats import AGAIN, check_hash, refuse, sniff
from .formats import MAX_HEADER as MAX_HEADER
from .formats import find_weights as find_weights
from .keys import without_prefix as without_prefix
from .keys import without_wrappers
from .remembered import FileFacts
from .tensors import read_header

# keys of the weights in training checkpoints: averaged ones first, in timm's order, then those of other projects
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
STATE_KEYS = (
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "net_state_dict"),
    *("backbone", "weights", "params", "checkpoint"),
)
MAX_NESTING = 4  # levels of containers around the weights
MAX_NAMED = 5  # entries listed in a message
# Packages whose objects training code stores next to the weights. None of their code is executed: see `Inert`.
METADATA_PACKAGES = (
    *("numpy", "pathlib", "argparse", "datetime", "decimal", "fractions", "uuid", "enum", "types", "collections"),
    *("omegaconf", "yacs", "easydict", "addict", "ml_collections", "pytorch_lightning", "lightning"),
    *("lightning_fabric", "torch.torch_version", "torch.optim", "timm", "builtins.frozenset", "builtins.slice"),
    *("builtins.range", "builtins.list", "builtins.dict", "builtins.tuple", "builtins.int", "builtins.float"),
    *("builtins.str", "builtins.bool"),
)
_log = logging.getLogger(__name__)


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
            kind = sniff(path, file)
            facts = FileFacts(path, file)
            if sha256:
                facts.sha256 = check_hash(path, file, sha256, facts.sha256)
            state = _read_safetensors(path, file) if kind == "safetensors" else _read_pickle(path, use_ema)
    except OSError as err:
        raise WeightsError("weights_not_found", f"{path} cannot be read: {err.strerror}") from err
    state = {key: _widened(value, key, path) for key, value in state.items()}
    stripped = without_wrappers(state, path)
    if not facts.is_finite:
        check_finite(stripped.items(), path)
        facts.is_finite = True
    return stripped


def _widened(value: Tensor, key: str, path: Path) -> Tensor:
    """Convert float8 to float32, which represents every value exactly; few operations support float8."""
    if not value.is_floating_point() or value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return value
    try:
        return value.to(torch.float32)
    except (RuntimeError, NotImplementedError) as err:  # packed types, such as two 4-bit numbers per byte
        refuse("wrong_dtype", path, f"contains {key} as {value.dtype}, which cannot be converted to float32", "", err)


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


def _read_safetensors(path: Path, file: BufferedReader) -> dict[str, Tensor]:
    read_header(path, file)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as err:
        refuse("bad_format", path, f"is not valid safetensors: {err}", AGAIN, err)


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
        refuse(
            "unsafe_format",
            path,
            f"is a pickle of more than tensors, and was not run{_culprits(path, names, records)}",
            "get a safetensors file, or save the weights alone: torch.save(model.state_dict(), path)",
            err,
        )
    except Exception as err:  # a parser may raise anything for arbitrary bytes
        if isinstance(err, EOFError | IndexError | struct.error) or "unexpected EOF" in str(err):
            refuse("truncated", path, "is truncated", AGAIN, err)
        refuse("bad_format", path, f"is not a valid PyTorch file: {type(err).__name__}", AGAIN, err)
    state = _weights_in(loaded, path, use_ema)
    size = path.stat().st_size
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            refuse("bad_format", path, f"contains {key} in a layout other than that of a plain tensor")
        if value.numel() * value.element_size() > size:
            refuse("bad_format", path, f"declares {value.numel()} numbers for {key}, more than fit into the file")
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
        refuse(
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
