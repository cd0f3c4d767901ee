"""Write a model as a folder that timm and Tessella can load: weights, config and model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..checks import checked
from ..errors import OutputError, UsageError, WeightsError
from ..models import build
from ..models.base import ImageModel
from ..models.configs import configure
from ..storage import make_folders, write_atomic
from .card_text import render, saved_facts
from .catalogue import PretrainedCfg, get_arch_pretrained_cfgs
from .config import SOURCE_FIELDS, check_cfg, model_args
from .fetch import CONFIG, SAFETENSORS
from .files import check_finite
from .load import image_size, verify

CARD = "README.md"


@checked
def save_pretrained(
    model: ImageModel, folder: str | Path, *, config_overrides: Mapping[str, object] | None = None
) -> Path:
    """Write model.safetensors, config.json and, if there is none, a model card README.md; return the folder.

    config_overrides: fields that replace those of `model.pretrained_cfg`, such as label_names, tag, license or mean.
    The weights keep their precision. The tag and the labels of the original checkpoint are dropped if the number of
    classes has changed. After a crash, each file is either the old one or the complete new one; a crash between two
    files is detected when the folder is loaded, because the config contains the SHA-256 of the weights.
    Raises UsageError `bad_argument` for a model that could not be built again from its name and arguments, WeightsError
    `non_finite`, and OutputError `output_failed`.
    """
    state = _checked_state(model)
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    config = _config(model, config_overrides or {})
    config["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    folder = Path(folder)
    try:
        make_folders(folder)
        write_atomic(folder / SAFETENSORS, weights)
        write_atomic(folder / CONFIG, (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())
        if not (folder / CARD).exists():
            write_atomic(folder / CARD, model_card(model, config).encode())
    except OSError as err:
        raise OutputError(
            "output_failed",
            f"{folder} could not be written: {err.strerror}",
            hint="check the free space and the permissions of the folder",
        ) from err
    return folder


def _checked_state(model: ImageModel) -> dict[str, Tensor]:
    """Return the weights, after checking that a model with this name and these arguments has the same tensors."""
    if not isinstance(model, ImageModel) or not model.arch:
        raise UsageError(
            "bad_argument",
            f"a {type(model).__name__} that was not created by name cannot be saved",
            hint="create the model with tessella.create_model(name, ...)",
        )
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with torch.device("meta"):
        rebuilt = build(model.arch, **model_args(model)).state_dict()
    try:
        verify(state, rebuilt, source="the model", arch=f"the {model.arch} of its arguments")
    except WeightsError as err:
        raise UsageError(
            "bad_argument",
            err.message,
            hint="its layers were changed since it was created; save the state dict",
        ) from err
    check_finite(state.items(), "the model")
    return state


def _config(model: ImageModel, overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the contents of config.json in timm's layout, without the source of the original weights."""
    cfg = {**default_cfg(model.arch), **model.pretrained_cfg}
    if cfg.get("num_classes") != model.num_classes:
        for key in ("tag", "label_names", "label_descriptions"):
            cfg.pop(key, None)
    cfg.pop("label_offset", None)  # already applied
    args = model_args(model)
    cfg["num_classes"] = model.num_classes
    if size := image_size(model) or cfg.get("input_size", ())[1:]:
        cfg["input_size"] = (args["in_chans"], *size)
    if unknown := sorted(set(overrides) - set(check_cfg(overrides))):
        raise UsageError("bad_argument", f"config_overrides has no field {', '.join(map(repr, unknown))}")
    cfg = check_cfg({**cfg, **overrides})
    for key in ("architecture", "note", "class_warning", *SOURCE_FIELDS):  # timm refuses unknown fields
        cfg.pop(key, None)
    labels: dict[str, object] = {key: cfg.pop(key) for key in ("label_names", "label_descriptions") if key in cfg}
    return {
        "architecture": model.arch,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        **labels,
        "model_args": args,
        "pretrained_cfg": {**cfg, "custom_load": False, "pool_size": None},
    }


def default_cfg(arch: str) -> PretrainedCfg:
    """Return the input and layer fields of an architecture's default checkpoint, for a model without a checkpoint."""
    rows = get_arch_pretrained_cfgs(arch).values()
    inputs = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    layers = ("first_conv", "classifier")
    return {key: getattr(row, key) for row in list(rows)[:1] for key in inputs + layers}


def model_card(model: ImageModel, config: Mapping[str, Any]) -> str:
    """Return the text of README.md: metadata for the Hub, a description and examples. config: config.json."""
    cfg = {**config["pretrained_cfg"], **{key: config[key] for key in ("label_names",) if key in config}}
    return render(saved_facts(model.arch, configure(model.arch, **config["model_args"]), cfg))
