"""A model as data: architecture, config and weights as NumPy arrays. PyTorch is needed only to make a module of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..checks import check_type, checked
from ..extras import check_installed, is_installed, require
from ..fingerprint import arrays_hash, weights_hash
from ..models.configs import FamilyConfig, configure, embedding_width, image_size
from ..models.layout import state_layout
from .catalogue import Checkpoint, PretrainedCfg
from .sources import check_names, default_args, describe_checkpoint, find_checkpoint, locate, overlay
from .tensors import FileTensors, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

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
        """Return the network of a model of `create_model`. Arrays are copies of its current weights."""
        return cls(
            arch=model.arch,
            config=model.config,
            num_classes=model.num_classes,
            global_pool=model.global_pool,
            width=model.head_hidden_size,
            pretrained_cfg=model.pretrained_cfg,
            tensors=_ModuleTensors(model.state_dict()),
            module=model,
            is_standard=_is_standard(model),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """The (height, width) in pixels that the model requires; None if it accepts any size."""
        return image_size(self.config)

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the names, types, shapes and values of the weights, as 64 hex digits."""
        if self.module is not None:
            return weights_hash(self.module)
        if not isinstance(self.tensors, FileTensors):
            return arrays_hash(self.tensors)
        facts, layout = self.tensors.facts, "\n".join(f"{key} {v.dtype} {v.shape}" for key, v in self.tensors.items())
        digest = facts.tensors_hash(layout)
        if digest is None:
            digest = arrays_hash(self.tensors)
            facts.remember_tensors(layout, digest)
        return digest

    def to_module(self) -> ImageModel:
        """Return the PyTorch model in evaluation mode, which shares its weights with this network.

        It is built at the first call. Raises UsageError `missing_dependency` without PyTorch.
        """
        return self._built if self.module is None else self.module

    @cached_property
    def _built(self) -> ImageModel:
        torch = require("torch", f"the PyTorch model of {self.arch}")
        from .factory import build_with

        state = {key: torch.from_numpy(value) for key, value in self.tensors.items()}
        model = build_with(self.arch, self.config, state).eval()
        model.pretrained_cfg = dict(self.pretrained_cfg)
        return model


AnyModel: TypeAlias = "Network | ImageModel"


def as_network(model: AnyModel) -> Network:
    """Return a network unchanged, and the network of a PyTorch model."""
    return model if isinstance(model, Network) else Network.of(model)


class _ModuleTensors(Mapping[str, NDArray[np.generic]]):
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


# --- opening ----------------------------------------------------------------------------------------------------------

_IGNORED = ("scriptable", "exportable", "no_jit")  # arguments of `create_model` for compatibility with timm
_OF_CHECKPOINTS = ("pretrained_cfg", "pretrained_cfg_overlay")
_OF_MODULES = ("features_only", "out_indices", "device", "dtype")  # those that only a PyTorch model has


@checked
def open_network(
    name: str,
    *,
    pretrained: bool = True,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Network:
    """Open a model by name with its weights, without PyTorch if these are safetensors of exactly this model.

    name: in any form that `create_model` accepts. pretrained, checkpoint_path, cache_dir: as in `create_model`.
    model_args: its other arguments, such as fields of the architecture's config. The result equals the network of the
    model that `create_model` returns, whose errors it raises: UsageError, WeightsError, HubError.
    PyTorch is used for files that it wrote, for weights that have to be adapted (to other images or classes than the
    checkpoint's), and for random weights. Without it, that is a UsageError `missing_dependency`, which is raised before
    anything is downloaded unless only the file shows that PyTorch is needed.
    """
    arguments = {key: value for key, value in (model_args or {}).items() if value is not None}

    def through_pytorch(purpose: str) -> Network:
        require("torch", purpose)
        from ..models.base import ImageModel
        from .factory import create_model

        model: object = create_model(
            name, pretrained, checkpoint_path=checkpoint_path, cache_dir=cache_dir, **arguments
        )
        assert isinstance(model, ImageModel)
        return Network.of(model.eval())

    if not (pretrained or checkpoint_path):
        return through_pytorch("a model with random weights")
    if unsupported := [key for key in _OF_MODULES if arguments.get(key)]:
        return through_pytorch(f"the argument {unsupported[0]}")
    is_remote = not checkpoint_path and name.startswith(("hf-hub:", "hf_hub:"))
    if is_remote and not is_installed("torch"):  # look at the config before weights are downloaded with it
        purpose = _adaptation(*_configure(name, arguments, False, cache_dir))
        if purpose:
            check_installed("torch", purpose)
    cfg, config = _configure(name, arguments, not checkpoint_path, cache_dir)
    path, sha256 = Path(checkpoint_path or ""), None
    if not checkpoint_path:
        if purpose := _adaptation(cfg, config):
            return through_pytorch(purpose)
        path, sha256 = locate(cfg, name, cache_dir or None)
    arch = cfg["architecture"]
    tensors = read_tensors(path, state_layout(config), sha256=sha256, arch=arch)
    if tensors is None:
        return through_pytorch(f"reading {path.name}, a file of PyTorch,")
    return Network(
        arch=arch,
        config=config,
        num_classes=config.num_classes,
        global_pool=config.global_pool,
        width=embedding_width(config),
        pretrained_cfg=describe_checkpoint({**cfg, "sha256": sha256} if sha256 else cfg, config),
        tensors=tensors,
    )


def _configure(
    name: str, arguments: Mapping[str, Any], read_pretrained: bool, cache_dir: str | Path | None
) -> tuple[PretrainedCfg, FamilyConfig]:
    """Return the config of the checkpoint and that of the model, as `create_model` does."""
    override, changes = arguments.get("pretrained_cfg"), arguments.get("pretrained_cfg_overlay")
    check_type("pretrained_cfg", override, str | Mapping[str, object] | Checkpoint | None)
    check_type("pretrained_cfg_overlay", changes, Mapping[str, object] | None)
    cfg, args = find_checkpoint(name, override or None, read_pretrained, cache_dir or None)
    if changes:
        cfg = overlay(cfg, changes)
    fields = {key: value for key, value in arguments.items() if key not in (*_IGNORED, *_OF_MODULES, *_OF_CHECKPOINTS)}
    check_names(cfg["architecture"], fields)
    return cfg, configure(cfg["architecture"], **{**default_args(cfg), **args, **fields})


def _adaptation(cfg: PretrainedCfg, config: FamilyConfig) -> str:
    """Return how a checkpoint has to be adapted to the model, for a message; "" if it is exactly this model's."""
    classes = cfg.get("num_classes", config.num_classes)
    if classes == -1:
        return "a checkpoint with an unknown number of classes"
    if classes != config.num_classes:
        return f"another number of classes than the checkpoint's {classes}"
    if cfg.get("label_offset"):
        return "a checkpoint with a label_offset"
    channels, *size = cfg.get("input_size", (config.in_chans,))
    if channels != config.in_chans:
        return f"another number of channels than the checkpoint's {channels}"
    if size and image_size(config) not in (None, tuple(size)):
        return f"another image size than the checkpoint's {size[0]}x{size[1]} px"
    return ""
