"""A model as data: architecture, config and weights as NumPy arrays. PyTorch is needed only to make a module of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from ..extras import require
from ..fingerprint import arrays_hash, weights_hash

if TYPE_CHECKING:  # the command line reads this module, and starts without NumPy
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..models.base import ImageModel
    from ..models.configs import FamilyConfig
    from .catalogue import PretrainedCfg

# by the published names, in the order of the model's state dict
Weights: TypeAlias = "Mapping[str, NDArray[np.generic]]"


@dataclass(frozen=True, eq=False)
class Network:
    """A model that engines can run: what it computes, and with which weights.

    arch: the name of the architecture. config: the frozen dataclass of its settings, as the model was built with it.
    num_classes, global_pool: those in effect, which may differ from the config's after `reset_classifier`. width: of
    the embedding. pretrained_cfg: timm's dict. tensors: the weights by name. module: the PyTorch model that this was
    made from; None if it was read from a file without PyTorch. source: the model folder, or the weight file of a
    built-in model, that it was read from; None for other weights. is_standard: whether the model computes exactly what
    its config says, so that a graph can be built from config and weights; a model that was changed by hand may not.
    """

    arch: str
    config: FamilyConfig
    num_classes: int
    global_pool: str
    width: int
    pretrained_cfg: PretrainedCfg
    tensors: Weights
    module: ImageModel | None = None
    source: Path | None = None
    is_standard: bool = True

    @classmethod
    def of(cls, model: ImageModel) -> Network:
        """Return the network of a model of `create_model`. Arrays are copies of its current weights.

        Raises UsageError `bad_argument` for a model whose `forward` was replaced, see `modules.check_forward`.
        """
        from .modules import check_forward, is_standard

        check_forward(model)
        return cls(
            arch=model.arch,
            config=model.config,
            num_classes=model.num_classes,
            global_pool=model.global_pool,
            width=model.head_hidden_size,
            pretrained_cfg=model.pretrained_cfg,
            tensors=_ModuleTensors(model.state_dict()),
            module=model,
            source=model.source,
            is_standard=is_standard(model),
        )

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the names, types, shapes and values of the weights, as 64 hex digits."""
        if self.module is not None:
            return weights_hash(self.module)
        from .tensors import FileTensors

        if not isinstance(self.tensors, FileTensors):
            return arrays_hash(self.tensors)
        facts, layout = self.tensors.facts, "\n".join(f"{key} {v.dtype} {v.shape}" for key, v in self.tensors.items())
        digest = facts.tensors_hash(layout)
        if digest is None:
            digest = arrays_hash(self.tensors)
            facts.remember_tensors(layout, digest)
        return digest

    @cached_property
    def changes(self) -> str:
        """A hash of what a model that was changed by hand computes; "" for one that computes what its config says."""
        if self.is_standard or self.module is None:
            return ""
        from .modules import computation_hash

        return computation_hash(self.module)

    def to_module(self) -> ImageModel:
        """Return the PyTorch model in evaluation mode, with a copy of the weights.

        It is built at the first call. Raises UsageError `missing_dependency` without PyTorch.
        """
        return self._built if self.module is None else self.module

    @cached_property
    def _built(self) -> ImageModel:
        torch = require("torch", f"the PyTorch model of {self.arch}")
        from .factory import build_with

        # copies, because a graph in memory may read the arrays of this network
        state = {key: torch.from_numpy(value.copy()) for key, value in self.tensors.items()}
        model = build_with(self.arch, self.config, state).eval()
        model.pretrained_cfg = dict(self.pretrained_cfg)
        model.source = self.source
        return model


AnyModel: TypeAlias = "Network | ImageModel"


def as_network(model: AnyModel) -> Network:
    """Return a network unchanged, and the network of a PyTorch model."""
    return model if isinstance(model, Network) else Network.of(model)


class _ModuleTensors(Mapping[str, "NDArray[np.generic]"]):
    """The weights of a PyTorch model as arrays: in float32 if they have a fraction, else in their own type.

    Each access makes a copy, so a graph that is built from the arrays does not change with the model.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        value = self.state[name].detach()
        array: NDArray[np.generic] = (value.float() if value.is_floating_point() else value).cpu().numpy().copy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)
