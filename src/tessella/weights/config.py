"""Read and check the `config.json` of a model folder, which is in timm's layout.

Only known fields are read, every value is checked, and no field is interpreted as the name of code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..errors import TessellaError, UsageError, WeightsError
from ..models.configs import CONFIGS, configure
from ..models.configs.shared import MAX_CLASSES, to_pair
from ..storage import read_regular
from .catalogue import PretrainedCfg, resolve

if TYPE_CHECKING:
    from ..models.base import ImageModel

MAX_NUMBER = 10**12  # larger numbers in a config would overflow when they are used
MAX_BYTES = 32 << 20  # size of a config; 21k classes with descriptions take 3 MB
SOURCE_FIELDS = ("file", "hf_hub_id", "sha256")

ModelArgs = dict[str, Any]  # constructor arguments of a model

Count = Annotated[int, Meta(ge=0, lt=MAX_NUMBER)]
PositiveCount = Annotated[int, Meta(ge=1, lt=MAX_NUMBER)]
Number = Annotated[int, Meta(gt=-MAX_NUMBER, lt=MAX_NUMBER)] | Annotated[float, Meta(gt=-MAX_NUMBER, lt=MAX_NUMBER)]
PositiveNumber = Annotated[int, Meta(gt=0, lt=MAX_NUMBER)] | Annotated[float, Meta(gt=0, lt=MAX_NUMBER)]
ModuleNames = str | tuple[str, ...]

# field of timm's `pretrained_cfg` -> its type for msgspec, and a description of the type for messages
_FIELDS: dict[str, tuple[object, str]] = {
    "architecture": (str, "a name"),
    "tag": (str, "a name"),
    "input_size": (
        tuple[PositiveCount, PositiveCount, PositiveCount],
        "three positive integers: channels, height, width",
    ),
    "fixed_input_size": (bool, "true or false"),
    "interpolation": (
        Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"],
        "nearest, bilinear, bicubic, box, hamming or lanczos",
    ),
    "crop_pct": (PositiveNumber, "a positive number"),
    "crop_mode": (Literal["center", "squash", "border"], "center, squash or border"),
    "mean": (Annotated[tuple[Number, ...], Meta(min_length=1)], "one number per channel"),
    "std": (Annotated[tuple[PositiveNumber, ...], Meta(min_length=1)], "one positive number per channel"),
    "num_classes": (Annotated[int, Meta(ge=-1, lt=MAX_NUMBER)], "a count, or -1 for unknown"),
    "label_offset": (Count, "a count"),
    "label_names": (tuple[str, ...], "one name per class"),
    "label_descriptions": (dict[object, str], "one text per name"),
    "first_conv": (ModuleNames, "names of modules"),
    "classifier": (ModuleNames, "names of modules"),
    "license": (str, "a name"),
    "description": (str, "text"),
    "note": (str, "text"),
    "class_warning": (str, "text"),
    "file": (str, "a path"),
    "hf_hub_id": (str, "organization/name"),
    "sha256": (str, "hexadecimal digits"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The checked contents of a config.json.

    weights_sha256: hash of the weights in the same folder, if the file states it.
    """

    architecture: str  # a known name
    pretrained_cfg: PretrainedCfg
    model_args: ModelArgs
    weights_sha256: str | None


def check_cfg(cfg: Mapping[str, object]) -> PretrainedCfg:
    """Return the known fields that are not None, with lists as tuples and paths as strings.

    Raises UsageError `bad_argument`, which names the wrong field.
    """
    checked: PretrainedCfg = {
        key: _check_field(key, value) for key, value in cfg.items() if key in _FIELDS and value is not None
    }
    channels = checked.get("input_size", (3,))[0]
    lengths = {len(checked[key]) for key in ("mean", "std") if key in checked}
    # timm keeps the three RGB values if a model has another number of channels
    if len(lengths) > 1 or not lengths <= {1, 3, channels}:
        counts = " and ".join(map(str, sorted(lengths)))
        raise UsageError("bad_argument", f"mean and std have {counts} values, expected one per channel ({channels})")
    names, classes = checked.get("label_names"), checked.get("num_classes")
    if names is not None and classes not in (None, -1, len(names)):
        raise UsageError("bad_argument", f"label_names has {len(names)} names, the model {classes} classes")
    return checked


def _check_field(key: str, value: object) -> object:
    """Return the value with the type of the field; only sequences and paths are converted."""
    kind, expected = _FIELDS[key]
    plain = str(value) if isinstance(value, Path) else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        plain = tuple(value)
    try:
        if isinstance(value, Set):  # msgspec would convert it in arbitrary order
            raise msgspec.ValidationError
        return msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError:
        raise UsageError("bad_argument", f"{key} is {_short(value)}, expected {expected}") from None


def read_config(path: Path) -> ModelConfig:
    """Read a config.json, also in the older form of a flat object; raises WeightsError `bad_config`."""
    try:
        return _parse(_read_object(path))
    except OSError as err:
        raise WeightsError("bad_config", f"{path} cannot be read: {err.strerror}") from err
    except (ValueError, RecursionError, UsageError) as err:
        reason = str(err) if isinstance(err, TessellaError) else f"not valid JSON: {err}"
        raise WeightsError("bad_config", f"{path}: {reason}") from err


def _read_object(path: Path) -> dict[str, object]:
    if path.stat().st_size > MAX_BYTES:
        raise UsageError("bad_argument", f"it is larger than {MAX_BYTES >> 20} MB")
    root = json.loads(read_regular(path))
    if not isinstance(root, dict):
        raise UsageError("bad_argument", "it is not an object")
    return root


def _parse(root: dict[str, object]) -> ModelConfig:
    cfg = root.get("pretrained_cfg", root)
    args = root.get("model_args") or {}
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise UsageError("bad_argument", "pretrained_cfg and model_args must be objects")
    name = root.get("architecture", cfg.get("architecture"))
    if not isinstance(name, str):
        raise UsageError("bad_argument", "it has no architecture")
    arch, _ = resolve(name)
    cfg = {**cfg, "architecture": arch}
    for key in ("num_classes", "label_names", "label_descriptions"):
        cfg[key] = root.get(key, cfg.get(key))
    cfg = {key: value for key, value in cfg.items() if key not in SOURCE_FIELDS}
    args = _check_args(arch, args)
    if cfg["num_classes"] is None:
        cfg["num_classes"] = args.get("num_classes", CONFIGS[arch].num_classes)
    cfg["label_names"] = _name_list(cfg["label_names"] or cfg.get("labels"), cfg["num_classes"])
    cfg = check_cfg(cfg)
    if args.get("num_classes", cfg["num_classes"]) != cfg["num_classes"]:
        raise UsageError(
            "bad_argument", f"num_classes is {cfg['num_classes']}, but {args['num_classes']} in model_args"
        )
    if "input_size" in cfg:
        size = args.get("img_size") if cfg.get("fixed_input_size") else None
        height_width = (size, size) if isinstance(size, int) else size or cfg["input_size"][1:]
        cfg["input_size"] = (args.get("in_chans", cfg["input_size"][0]), *height_width)
    sha256 = root.get("weights_sha256")
    if not (sha256 is None or isinstance(sha256, str)):
        raise UsageError("bad_argument", f"weights_sha256 is {_short(sha256)}, expected hexadecimal digits")
    return ModelConfig(arch, cfg, args, sha256)


def _check_args(arch: str, args: ModelArgs) -> ModelArgs:
    """Return the constructor arguments, after checking that the architecture can be built with them."""
    args = {key: _as_tuple(value) for key, value in args.items() if value is not None}
    try:
        configure(arch, **args)
    except TessellaError:
        raise
    except Exception as err:  # a wrong type fails at its first use in the constructor
        raise UsageError("bad_argument", f"model_args {_short(args)} do not make a {arch}") from err
    return args


def _name_list(names: object, classes: object) -> object:
    """Return {index: name} as a list; a class without a name gets its number as the name."""
    if not isinstance(names, dict):
        return names
    if type(classes) is not int or not 0 <= classes <= MAX_CLASSES:  # before a list of that length is made
        raise UsageError("bad_argument", f"num_classes is {_short(classes)}, expected 0 to {MAX_CLASSES:,}")
    if not all(str(key).isdecimal() and int(key) < classes for key in names):
        raise UsageError("bad_argument", f"label_names has an index that is not one of the {classes} classes")
    by_index = {int(key): name for key, name in names.items()}
    return [by_index.get(i, str(i)) for i in range(classes)]


def _as_tuple(value: object) -> object:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def model_args(model: ImageModel) -> ModelArgs:
    """Return the arguments with which `build` creates this model again, without rates that only training uses."""
    default = CONFIGS[model.arch]
    current = dataclasses.replace(model.config, num_classes=model.num_classes, global_pool=model.global_pool)
    always = ("in_chans", "num_classes", "global_pool", "img_size")
    if hasattr(current, "img_size"):
        current = dataclasses.replace(current, img_size=to_pair(current.img_size))
    return {
        field.name: value
        for field in dataclasses.fields(current)
        if (value := getattr(current, field.name)) != getattr(default, field.name) or field.name in always
        if not field.name.endswith("_rate")
    }
