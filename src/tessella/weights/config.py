"""`config.json` of a model folder, in timm's layout: read, checked, written.

Only known fields are read and every value is checked; nothing in the file can name code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import TessellaError, UsageError, WeightsError
from ..models import ARCHITECTURES, build
from ..models.base import ImageModel
from ..models.layers import to_pair
from ..storage import read_regular
from .catalogue import resolve

MAX_NUMBER = 1e12  # in a config; larger ones would overflow where they are used
MAX_BYTES = 32 << 20  # a 21k-class set with descriptions takes 3 MB
SOURCE_FIELDS = ("file", "hf_hub_id", "sha256")


@dataclass(frozen=True)
class ModelConfig:
    """architecture: a known name; pretrained_cfg, model_args: checked; weights_sha256: of the weights beside it."""

    architecture: str
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]
    weights_sha256: str | None


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < MAX_NUMBER


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER  # NaN is neither


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not _is_text(value) and all(map(_is_text, value))


def _names_modules(value: Any) -> bool:
    return _is_text(value) or _is_texts(value)


def _is_statistic(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(map(_is_number, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architecture": (_is_text, "a name"),
    "tag": (_is_text, "a name"),
    "input_size": (
        lambda v: isinstance(v, Sequence) and len(v) == 3 and all(_is_count(n, 1) for n in v),
        "three positive integers: channels, height, width",
    ),
    "fixed_input_size": (lambda v: isinstance(v, bool), "true or false"),
    "interpolation": (
        lambda v: v in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
        "nearest, bilinear, bicubic, box, hamming or lanczos",
    ),
    "crop_pct": (lambda v: _is_number(v) and v > 0, "a positive number"),
    "crop_mode": (lambda v: v in ("center", "squash", "border"), "center, squash or border"),
    "mean": (_is_statistic, "one number per channel"),
    "std": (lambda v: _is_statistic(v) and all(n > 0 for n in v), "one positive number per channel"),
    "num_classes": (lambda v: _is_count(v, -1), "a count, or -1 for unknown"),
    "label_offset": (_is_count, "a count"),
    "label_names": (_is_texts, "one name per class"),
    "label_descriptions": (lambda v: isinstance(v, Mapping) and all(map(_is_text, v.values())), "a text per name"),
    "first_conv": (_names_modules, "names of modules"),
    "classifier": (_names_modules, "names of modules"),
    "license": (_is_text, "a name"),
    "description": (_is_text, "text"),
    "note": (_is_text, "text"),
    "file": (lambda v: isinstance(v, str | Path), "a path"),
    "hf_hub_id": (_is_text, "organisation/name"),
    "sha256": (_is_text, "hexadecimal digits"),
}


def check_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The known fields that are set, lists made tuples. Raises UsageError naming the field that is wrong."""
    checked: dict[str, Any] = {}
    for key, value in cfg.items():
        if key not in _FIELDS or value is None:
            continue
        fits, expected = _FIELDS[key]
        if not fits(value):
            raise UsageError("bad_argument", f"{key} is {_short(value)}, expected {expected}")
        checked[key] = tuple(value) if isinstance(value, list) else value
    channels = checked.get("input_size", (3,))[0]
    lengths = {len(checked[key]) for key in ("mean", "std") if key in checked}
    # timm leaves the three RGB values in place when it makes a model for other channels
    if len(lengths) > 1 or not lengths <= {1, 3, channels}:
        given = " and ".join(map(str, sorted(lengths)))
        raise UsageError("bad_argument", f"mean and std have {given} values, expected one per channel ({channels})")
    names, classes = checked.get("label_names"), checked.get("num_classes")
    if names is not None and classes not in (None, -1, len(names)):
        raise UsageError("bad_argument", f"label_names has {len(names)} names, the model {classes} classes")
    return checked


def read_config(path: Path) -> ModelConfig:
    """Also the older form, one flat object. Raises WeightsError `bad_config` for anything unusable."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError("bad_argument", f"it is larger than {MAX_BYTES >> 20} MB")
        root = json.loads(read_regular(path))
        if not isinstance(root, dict):
            raise UsageError("bad_argument", "it is not an object")
        return _parse(root)
    except OSError as err:
        raise WeightsError("bad_config", f"{path} cannot be read: {err.strerror}") from err
    except (ValueError, RecursionError, UsageError) as err:
        reason = str(err) if isinstance(err, TessellaError) else f"not valid JSON: {err}"
        raise WeightsError("bad_config", f"{path}: {reason}") from err


def _parse(root: dict[str, Any]) -> ModelConfig:
    cfg = root.get("pretrained_cfg", root)
    args = root.get("model_args") or {}
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise UsageError("bad_argument", "pretrained_cfg and model_args must be objects")
    name = root.get("architecture", cfg.get("architecture"))
    if not isinstance(name, str):
        raise UsageError("bad_argument", "it names no architecture")
    arch, _ = resolve(name)
    cfg = {**cfg, "architecture": arch}
    for key in ("num_classes", "label_names", "label_descriptions"):
        cfg[key] = root.get(key, cfg.get(key))
    cfg = {key: value for key, value in cfg.items() if key not in SOURCE_FIELDS}
    args = _check_args(arch, args)
    if cfg["num_classes"] is None:
        cfg["num_classes"] = args.get("num_classes", ARCHITECTURES[arch][1].num_classes)
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


def _check_args(arch: str, args: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments that the architecture takes: it is built with them once, without memory."""
    args = {key: _as_tuple(value) for key, value in args.items() if value is not None}
    try:
        with torch.device("meta"):
            build(arch, **args)
    except TessellaError:
        raise
    except Exception as err:  # a wrong type fails wherever the constructor first uses it
        raise UsageError("bad_argument", f"model_args {_short(args)} do not make a {arch}") from err
    return args


def _name_list(names: Any, classes: Any) -> Any:
    """{index: name}, which may leave some out, as a list; a class without a name is called by its number."""
    if not isinstance(names, dict):
        return names
    if not _is_count(classes) or not all(str(key).isdecimal() and int(key) < classes for key in names):
        raise UsageError("bad_argument", f"label_names has an index that is not one of the {classes} classes")
    by_index = {int(key): name for key, name in names.items()}
    return [by_index.get(i, str(i)) for i in range(classes)]


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def model_args(model: ImageModel) -> dict[str, Any]:
    """What `build` needs besides the name to make this model again; rates that only training uses are left out."""
    default = ARCHITECTURES[model.arch][1]
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
