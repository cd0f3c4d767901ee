"""The model of a run, its input specification, and which of its parameters are trained at which rate."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, TypedDict

import torch
from torch import nn

from ..data.resize import check_geometry
from ..data.spec import InputSpec, resolve_model_data_config
from ..errors import ImageError, TessellaError, UsageError
from ..models import ARCHITECTURES
from ..models.base import ImageModel
from ..weights.factory import architecture_of, create_model
from ..weights.load import image_size
from .config import TrainConfig
from .muon import is_matrix

MAX_TRIAL_SIZE = 256  # pixels per side of an image that a model is tried on, as it takes no time
_WITH_PREVIOUS = 99999  # in `group_matcher`: the layer before


def build_model(config: TrainConfig, classes: tuple[str, ...]) -> tuple[ImageModel, InputSpec]:
    """Return the model with a classifier for `classes`, and how its images are prepared.

    Raises UsageError (bad_argument, wrong_input_size) and WeightsError.
    """
    arch = architecture_of(config.model)
    has_size = "img_size" in (field.name for field in dataclasses.fields(ARCHITECTURES[arch][1]))
    args: dict[str, Any] = dict(config.model_args)
    if config.img_size and has_size:  # a ConvMixer reads any size
        args["img_size"] = config.img_size
    if config.drop_path_rate:
        args["drop_path_rate"] = config.drop_path_rate
    pretrained = config.init_from == "pretrained"
    try:
        model = create_model(
            config.model,
            pretrained=pretrained,
            checkpoint_path=None if pretrained or config.init_from == "scratch" else config.init_from,
            num_classes=len(classes),
            **args,
        )
    except TessellaError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError, AssertionError) as error:
        raise UsageError(
            "bad_argument",
            f"{arch} cannot be built with {', '.join(f'{k}={v!r}' for k, v in args.items())}: {error}"[:500],
            hint="see model_args in the config, and --img-size",
        ) from error
    overrides = dict(
        img_size=config.img_size or image_size(model), mean=config.mean, std=config.std, crop_pct=config.crop_pct
    )
    spec = InputSpec.from_cfg(resolve_model_data_config(model, overrides))
    if config.img_size:
        _check_size(model, spec)
    model.pretrained_cfg = {**model.pretrained_cfg, **spec.to_cfg()}
    return model, spec


def _check_size(model: ImageModel, spec: InputSpec) -> None:
    """Refuse an image size that the model cannot read, or to which no image may be resized."""
    try:
        check_geometry(spec.height, spec.width, spec)
    except ImageError as error:
        raise UsageError("wrong_input_size", f"images of {spec.width}x{spec.height} px: {error.message}") from None
    if max(spec.height, spec.width) <= MAX_TRIAL_SIZE:
        was_training = model.training
        with torch.no_grad():
            model.eval()(torch.zeros(1, spec.channels, spec.height, spec.width))
        model.train(was_training)


def has_classifier_for(model: ImageModel, classes: tuple[str, ...]) -> bool:
    """Return whether the model's own classifier is for these classes, and so need not be fitted."""
    return tuple(model.pretrained_cfg.get("label_names") or ()) == classes


class ParameterGroup(TypedDict):
    """Parameters of an optimizer. scale: factor of their learning rate. orthogonalize: their updates, by Muon."""

    params: list[nn.Parameter]
    weight_decay: float
    scale: float
    lr: float
    orthogonalize: bool


def parameter_groups(model: ImageModel, config: TrainConfig) -> list[ParameterGroup]:
    """Return the parameters to train, grouped by weight decay and learning rate; the others are frozen.

    There is no decay for vectors, biases, and parameters that the model excludes. Layer k of n, counted from the stem,
    has the scale layer_decay ** (n - k). With Muon, matrices with a decay are orthogonalized, except those of the stem
    and the head.
    """
    excluded = model.no_weight_decay()
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    layers = layer_indices(model)
    last = max(layers.values())
    groups: dict[tuple[float, float, bool], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if config.trainable == "head" and id(parameter) not in head:
            parameter.requires_grad_(False)
            continue
        undecayed = parameter.ndim <= 1 or name.endswith(".bias") or name in excluded
        decay, scale = 0.0 if undecayed else config.weight_decay, config.layer_decay ** (last - layers[name])
        hidden = not undecayed and layers[name] > 0 and id(parameter) not in head
        matrix = config.optimizer == "muon" and hidden and is_matrix(parameter.shape)
        new = ParameterGroup(params=[], weight_decay=decay, scale=scale, lr=config.lr, orthogonalize=matrix)
        groups.setdefault((decay, scale, matrix), new)["params"].append(parameter)
    return list(groups.values())


def layer_indices(model: ImageModel) -> dict[str, int]:
    """Return the layer of each parameter, by the model's `group_matcher`: 0 for the stem, the highest for the head."""
    matcher = model.group_matcher()
    patterns: list[tuple[int, str, tuple[int, ...] | None]] = [(0, matcher["stem"], (0,))]
    blocks = matcher["blocks"]
    patterns += [(1, pattern, fixed) for pattern, fixed in ([(blocks, None)] if isinstance(blocks, str) else blocks)]
    places: dict[str, tuple[float, ...]] = {}
    for name, _ in model.named_parameters():
        for order, pattern, fixed in patterns:
            if match := re.match(pattern, name):
                places[name] = (order, *(fixed if fixed is not None else map(int, match.groups())))
                break
        else:
            places[name] = (math.inf,)
    numbered = [place for place in sorted(set(places.values())) if place[-1] != _WITH_PREVIOUS]
    index = {place: i for i, place in enumerate(numbered)}
    last_block = max(i for place, i in index.items() if place[0] <= 1)
    return {name: index.get(place, last_block) for name, place in places.items()}
