"""Models that were changed by hand: how they are recognized, refused and identified. Needs PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable

import torch
from torch import nn

from ..errors import UsageError
from ..models.base import ImageModel
from ..models.configs import image_size

_INTERNAL = frozenset(vars(nn.Module()))  # attributes of every module: parameters, hooks, the mode
# attributes that say nothing about the outputs at inference
_OF_MODELS = (
    *("arch", "config", "pretrained_cfg", "source"),
    *("feature_info", "default_out_indices", "grad_checkpointing"),
)
_WITHOUT_EFFECT = frozenset((*_OF_MODELS, "p", "rate", "attn_drop", "momentum", "inplace"))


def is_standard(model: ImageModel) -> bool:
    """Return whether `model` computes what its config describes: the same modules, settings and methods, no hooks."""
    config = dataclasses.replace(model.config, num_classes=model.num_classes, global_pool=model.global_pool)
    family: Callable[..., ImageModel] = type(model)
    with torch.device("meta"):
        expected = family(config)
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (model, expected)]
    modules, others = dict(model.named_modules()), dict(expected.named_modules())
    if shapes[0] != shapes[1] or list(modules) != list(others):
        return False
    return not any(_has_hooks(module) or _differs(module, others[name]) for name, module in modules.items())


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _differs(module: nn.Module, expected: nn.Module) -> bool:
    """Return whether the type or a setting of a module is another one, or one of its methods was replaced."""
    if type(module) is not type(expected):
        return True
    actual, usual = (
        {name: value for name, value in vars(one).items() if name not in _INTERNAL | _WITHOUT_EFFECT}
        for one in (module, expected)
    )
    if any(name not in actual or not _is_equal(actual[name], value) for name, value in usual.items()):
        return True
    return any(hasattr(type(module), name) for name in actual.keys() - usual.keys())


def _is_equal(a: object, b: object) -> bool:
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors
        return False


def check_forward(model: ImageModel) -> None:
    """Raise UsageError `bad_argument` for changes that only a call of the whole model would see.

    Engines call `forward_features` and `forward_head`, since they need the embedding as well as the logits.
    """
    if "forward" in vars(model) or _has_hooks(model):
        raise UsageError(
            "bad_argument",
            f"the {type(model).__name__} has a hook, or a `forward` of its own, which engines do not call",
            hint="change forward_features or forward_head, or register the hook on one of the model's modules",
        )


def computation_hash(model: ImageModel) -> str:
    """Return a hash of what a model computes in evaluation mode: its exported operations, without its weights.

    A model that torch.export cannot read has another hash at each call, so that nothing is taken from a cache.
    """
    channels, *usual = model.pretrained_cfg.get("input_size") or (model.config.in_chans, 224, 224)
    size = image_size(model.config) or tuple(usual)
    parameter = next(model.parameters())
    images = torch.zeros(1, channels, *size, dtype=parameter.dtype, device=parameter.device)
    was_training = model.training
    try:
        with torch.no_grad():
            program = torch.export.export(model.eval(), (images,))
    except Exception:  # of many types
        return secrets.token_hex(32)
    finally:
        model.train(was_training)
    digest = hashlib.sha256(str(program.graph).encode())
    for name, value in program.constants.items():
        if isinstance(value, torch.Tensor):
            digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
