"""Load a checkpoint into a model. Everything is verified and computed before the model is changed.

The checkpoint is first compared with the model that it was saved from (its number of classes, channels and image size),
built on torch's meta device. Then its tensors are adapted to the given model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from math import ceil

import torch
from torch import Tensor

from ..errors import UsageError, WeightsError
from ..models import configs
from ..models.base import ImageModel
from ..models.configs.shared import Pair
from ..models.layout import TensorKind
from .catalogue import PretrainedCfg
from .files import check_finite
from .keys import MAX_SHOWN as MAX_SHOWN
from .keys import verify_kinds, without_prefix

_log = logging.getLogger(__name__)


def load_weights(
    model: ImageModel,
    state: Mapping[str, Tensor],
    *,
    source_cfg: Mapping[str, object] | None = None,
    source: object = "the checkpoint",
) -> None:
    """Copy a checkpoint into `model`, adapting tensors if the two have different input sizes or classes.

    source_cfg: timm's `pretrained_cfg` of the checkpoint, of which the following fields are used. Missing fields
    default to those of the model.
      num_classes: if it differs from the model's (or is -1, unknown), the model keeps its own classifier; all other
        tensors must still be present. label_offset: number of leading classes to skip.
      input_size: (channels, height, width) in pixels. The first convolutions are summed or repeated to the model's
        channels as in timm, and weights that depend on the patch grid are resampled.
    source: the name of the checkpoint in messages.

    A prefix that all keys of the checkpoint share and the model does not have is removed and logged. Tensors must be
    floating-point if the model's are (batch counters may be) and are converted to its precision; rounding of float64 is
    logged. Raises WeightsError `wrong_keys`, `wrong_shape`, `wrong_dtype`, `non_finite` or `bad_config`; the model is
    then unchanged.
    """
    cfg: PretrainedCfg = dict(source_cfg or {})
    live = model.state_dict()
    head = tuple(f"{name}." for name, module in model.named_modules() if module is model.get_classifier())
    classes = cfg.get("num_classes", model.num_classes)
    offset = cfg.get("label_offset") or 0
    keep_head = classes != model.num_classes
    state = without_prefix(state, live, source)
    fitted = {key: value for key, value in state.items() if not (keep_head and key.startswith(head))}

    trained = _state_as_trained(model, classes + offset, cfg.get("input_size"), source)
    if keep_head:
        trained = {key: value for key, value in trained.items() if not key.startswith(head)}
    verify(fitted, trained, source=source, arch=model.arch)
    if offset and not keep_head:
        fitted.update({key: fitted[key][offset:] for key in fitted if key.startswith(head)})
    for key, value in fitted.items():  # only the first convolutions have four dimensions and depend on the input
        if value.ndim == 4 and value.shape != live[key].shape:
            fitted[key] = adapt_channels(value, live[key].shape[1])
    if "input_size" in cfg:
        fitted = model.resample_state_dict(fitted, tuple(cfg["input_size"][1:]))
    if rounded := sum(value.dtype == torch.float64 != live[key].dtype for key, value in fitted.items()):
        _log.warning("%s: %d tensors are float64 and are rounded to the model's precision", source, rounded)
    fitted = {key: value.to(live[key].dtype) for key, value in fitted.items()}
    verify(fitted, {key: live[key] for key in trained}, source=source, arch=model.arch)
    check_finite(fitted.items(), source)  # a narrower type may have overflowed
    model.load_state_dict({**live, **fitted})


def _state_as_trained(
    model: ImageModel, classes: int, input_size: tuple[int, int, int] | None, source: object
) -> dict[str, Tensor]:
    """Return the state dict of the model that the checkpoint was saved from, with shapes and types only."""
    changed: dict[str, object] = {}
    if classes != model.num_classes:
        changed["num_classes"] = max(classes, 0)
    if input_size and input_size[0] != model.config.in_chans:
        changed["in_chans"] = input_size[0]
    if input_size and image_size(model) not in (None, tuple(input_size[1:])):
        changed["img_size"] = tuple(input_size[1:])
    if not changed:
        return model.state_dict()
    try:
        with torch.device("meta"):
            family: Callable[..., ImageModel] = type(model)
            return family(dataclasses.replace(model.config, **changed)).state_dict()
    except UsageError as err:
        raise WeightsError("bad_config", f"{source}: its config does not fit {model.arch}: {err.message}") from err


def image_size(model: ImageModel) -> Pair | None:
    """Return the (height, width) in pixels that the model requires; None if it accepts any size."""
    return configs.image_size(model.config)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the first convolution (D,C,k,k) for another number of channels: summed for one, else repeated and scaled.

    Both preserve the response to images whose channels are all equal.
    """
    original = weight.shape[1]
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, ceil(channels / original), 1, 1)[:, :channels]
    return (repeated * (original / channels)).to(weight.dtype)


def verify(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: object, arch: str) -> None:
    """Check that two state dicts have the same keys, shapes and kinds of types.

    source, arch: names for the message. Raises WeightsError `wrong_keys`, `wrong_shape` or `wrong_dtype` with the first
    differences.
    """
    ours, theirs = ({key: _kind(value) for key, value in side.items()} for side in (expected, state))
    verify_kinds(theirs, ours, source=source, arch=arch)


def _kind(value: Tensor) -> TensorKind:
    return TensorKind(tuple(value.shape), str(value.dtype).removeprefix("torch."))
