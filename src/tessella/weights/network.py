"""A model as data: architecture, config and weights as NumPy arrays. PyTorch is needed only to make a module of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .catalogue import PretrainedCfg

if TYPE_CHECKING:
    from ..models.base import ImageModel
    from ..models.configs import FamilyConfig

Weights = Mapping[str, NDArray[np.generic]]  # by the published names, in the order of the model's state dict


@dataclass(frozen=True, eq=False)
class Network:
    """A model that engines can run: what it computes, and with which weights.

    arch: the name of the architecture. config: the frozen dataclass of its settings, as the model was built with it.
    num_classes, global_pool: those in effect, which may differ from the config's after `reset_classifier`. width: of
    the embedding. pretrained_cfg: timm's dict. tensors: the weights by name. module: the PyTorch model that this was
    made from; None if it was read from a file without PyTorch. is_standard: whether the model computes exactly what its
    config says, so that a graph can be built from config and weights; a model that was changed by hand may not.
    """

    arch: str
    config: FamilyConfig
    num_classes: int
    global_pool: str
    width: int
    pretrained_cfg: PretrainedCfg
    tensors: Weights
    module: ImageModel | None = None
    is_standard: bool = True

    @classmethod
    def of(cls, model: ImageModel) -> Network:
        """Return the network of a model of `create_model`; its weights are shared, not copied."""
        return cls(
            arch=model.arch,
            config=model.config,
            num_classes=model.num_classes,
            global_pool=model.global_pool,
            width=model.head_hidden_size,
            pretrained_cfg=model.pretrained_cfg,
            tensors={key: value.detach().cpu().float().numpy() for key, value in model.state_dict().items()},
            module=model,
            is_standard=_is_standard(model),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """The (height, width) in pixels that the model requires; None if it accepts any size."""
        size = getattr(self.config, "img_size", None)
        return None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the names, types, shapes and values of the weights, as 64 hex digits."""
        from ..fingerprint import arrays_hash, weights_hash

        return arrays_hash(self.tensors) if self.module is None else weights_hash(self.module)

    def to_module(self) -> ImageModel:
        """Return the PyTorch model in evaluation mode. Raises UsageError `missing_dependency` without PyTorch."""
        if self.module is not None:
            return self.module
        raise NotImplementedError


AnyModel: TypeAlias = "Network | ImageModel"


def as_network(model: AnyModel) -> Network:
    """Return a network unchanged, and the network of a PyTorch model."""
    return model if isinstance(model, Network) else Network.of(model)


def _is_standard(model: ImageModel) -> bool:
    """Return whether the modules of `model` are those that its config describes, without hooks."""
    import torch

    config = dataclasses.replace(model.config, num_classes=model.num_classes, global_pool=model.global_pool)
    family: Callable[..., ImageModel] = type(model)
    with torch.device("meta"):
        expected = family(copy.copy(config))
    kinds = [[(name, type(module)) for name, module in net.named_modules()] for net in (model, expected)]
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (model, expected)]
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return kinds[0] == kinds[1] and shapes[0] == shapes[1] and not hooked
