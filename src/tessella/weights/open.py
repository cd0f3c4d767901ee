"""Open models by name with their weights: without PyTorch if these are safetensors of exactly this model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import check_type, checked
from ..extras import check_installed, is_installed, require
from ..models.configs import FamilyConfig, configure, embedding_width, image_size
from ..models.layout import state_layout
from .catalogue import Checkpoint, PretrainedCfg
from .network import Network
from .sources import check_names, default_args, describe_checkpoint, find_checkpoint, locate, overlay, source_of
from .tensors import read_tensors

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
        purpose = _need_for_pytorch(*_configure(name, arguments, False, cache_dir))
        if purpose:
            check_installed("torch", purpose)
    cfg, config = _configure(name, arguments, not checkpoint_path, cache_dir)
    replaced = checkpoint_path or arguments.get("pretrained_cfg")
    path, sha256 = Path(checkpoint_path or ""), None
    if not checkpoint_path:
        if purpose := _need_for_pytorch(cfg, config):
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
        source=source_of(cfg, replaced, arguments.get("pretrained_cfg_overlay")),
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


def _need_for_pytorch(cfg: PretrainedCfg, config: FamilyConfig) -> str:
    """Return why PyTorch is needed to open or run the model of a checkpoint, for a message; "" if it is not.

    It adapts weights to another model than the checkpoint's, and computes what graphs do not support.
    """
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
    if not config.global_pool:
        return "global_pool='', which gives maps instead of one vector per image,"
    return ""
