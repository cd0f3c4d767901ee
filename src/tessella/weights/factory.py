"""Create models by name, with or without trained weights, by timm's rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.overrides import TorchFunctionMode

from ..checks import checked
from ..errors import UsageError, WeightsError
from ..models import build
from ..models.base import ImageModel
from ..models.configs import FamilyConfig
from ..models.features import FeatureExtractor
from ..models.registry import FAMILIES
from .catalogue import DEPRECATED, Checkpoint, PretrainedCfg, list_models, resolve
from .config import ModelArgs
from .files import check_finite, read_state_dict, without_prefix
from .load import load_weights, verify
from .sources import architecture_of as architecture_of
from .sources import check_names, default_args, describe_checkpoint, find_checkpoint, locate, overlay, source_of


@overload
def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: str | Mapping[str, object] | Checkpoint | None = None,
    pretrained_cfg_overlay: Mapping[str, object] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,
    no_jit: bool | None = None,
    *,
    features_only: Literal[False] | None = False,
    out_indices: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: object,
) -> ImageModel: ...


@overload
def create_model(
    model_name: str, pretrained: bool = False, *, features_only: Literal[True], **kwargs: Any
) -> FeatureExtractor: ...


@overload
def create_model(
    model_name: str, pretrained: bool = False, *, features_only: bool, **kwargs: Any
) -> ImageModel | FeatureExtractor: ...


@checked
def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: str | Mapping[str, object] | Checkpoint | None = None,
    pretrained_cfg_overlay: Mapping[str, object] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,
    no_jit: bool | None = None,
    *,
    features_only: bool | None = False,
    out_indices: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: object,
) -> ImageModel | FeatureExtractor:
    """Create a model by name, by default in training mode, on the CPU and in float32, as in timm.

    model_name: `arch` (its default checkpoint), `arch.tag`, `hf-hub:org/repo[@revision]` or `local-dir:path`.
    pretrained: load the weights of that name, after verifying them completely.
    pretrained_cfg: another tag of the architecture, or a complete config that replaces the catalog's.
    pretrained_cfg_overlay: fields to replace, such as `dict(file="best.safetensors", num_classes=-1)`.
    checkpoint_path: weight file for exactly this model, loaded strictly; pretrained weights are then not read.
    cache_dir: folder to use instead of the cache of huggingface_hub.
    scriptable, exportable, no_jit: accepted for compatibility with timm; every model is scriptable and exportable.
    features_only: return a model whose outputs are the maps of the blocks `out_indices` (see `FeatureExtractor`).
    kwargs: fields of the architecture's config; None uses the default. num_classes, in_chans and, for models of a
        fixed size, img_size default to the checkpoint's.

    The model's `pretrained_cfg` states how images are preprocessed; it has `label_names` if the checkpoint defines
    them, and `sha256` if the hash of the weights was verified. Raises UsageError (unknown_model, unknown_tag,
    no_weights, bad_argument) and WeightsError as `read_state_dict`, `load_weights` and `fetch_model` do.
    """
    if out_indices is not None and not features_only:
        raise UsageError("bad_argument", "out_indices requires features_only=True")
    read_pretrained = bool(pretrained) and not checkpoint_path
    cfg, args = find_checkpoint(model_name, pretrained_cfg or None, read_pretrained, cache_dir or None)
    source = source_of(cfg, pretrained_cfg, pretrained_cfg_overlay) if read_pretrained else None
    if pretrained_cfg_overlay:
        cfg = overlay(cfg, pretrained_cfg_overlay)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    check_names(cfg["architecture"], kwargs)
    weights = None
    if checkpoint_path:
        weights = _Weights(read_state_dict(checkpoint_path), Path(checkpoint_path))
    elif read_pretrained:
        weights = _read_pretrained(cfg, model_name, cache_dir or None)
    model = _assemble(cfg, {**default_args(cfg), **args, **kwargs}, weights)
    model.source = source
    return _move(FeatureExtractor(model, out_indices=out_indices) if features_only else model, device, dtype)


@dataclass(frozen=True)
class _Weights:
    """The contents of a weight file; sha256 and cfg are known for pretrained weights only."""

    state: dict[str, Tensor]
    path: Path
    sha256: str | None = None
    cfg: PretrainedCfg = field(default_factory=dict)


def _read_pretrained(cfg: PretrainedCfg, name: str, cache_dir: str | Path | None) -> _Weights:
    path, sha256 = locate(cfg, name, cache_dir)
    return _Weights(read_state_dict(path, sha256=sha256), path, sha256, cfg)


def _assemble(cfg: PretrainedCfg, args: ModelArgs, weights: _Weights | None) -> ImageModel:
    """Build the model and load its weights; parameters that the weights replace completely are not initialized."""
    arch = cfg["architecture"]
    if weights is None:
        model = build(arch, **args)
    else:
        is_complete = not weights.cfg or args.get("num_classes") == cfg.get("num_classes")
        model = _build_uninitialized(arch, args) if is_complete else build(arch, **args)
        load_weights(model, weights.state, source_cfg=weights.cfg, source=weights.path)
        if weights.sha256:
            cfg = {**cfg, "sha256": weights.sha256}
    model.pretrained_cfg = describe_checkpoint(cfg, model.config)
    return model


def _build_uninitialized(arch: str, args: ModelArgs) -> ImageModel:
    with _SkipInitialization():
        model: ImageModel = build(arch, **args)
    try:
        _allocate_parameters(model)
    except RuntimeError as error:  # raised by torch if the memory is not sufficient
        what = f"{arch} with these arguments does not fit into the memory: {error}"
        raise UsageError("bad_argument", what) from None
    return model


def build_with(arch: str, config: FamilyConfig, state: Mapping[str, Tensor]) -> ImageModel:
    """Build the model with this config, whose parameters are the tensors of its complete state dict, not copies."""
    with _SkipInitialization():
        model = FAMILIES[type(config)](config)
    model.load_state_dict(state, strict=True, assign=True)
    model.arch = arch
    return model


def _move(
    model: ImageModel | FeatureExtractor, device: torch.device | str | None, dtype: torch.dtype | None
) -> ImageModel | FeatureExtractor:
    try:
        return model.to(device=device, dtype=dtype)
    except (RuntimeError, TypeError, AssertionError) as error:  # no such device or dtype, or torch built without it
        what = f"the model cannot be moved to device={device!r}, dtype={dtype!r}: {error}"
        raise UsageError("bad_argument", what) from None


@checked
def model_entrypoint(model_name: str, module_filter: str | None = None) -> Callable[..., ImageModel | FeatureExtractor]:
    """Return a function that creates an architecture; it accepts the other arguments of `create_model`.

    module_filter: one of `list_modules()` that must contain the architecture. A tag in the name is ignored, as in timm.
    Raises UsageError `unknown_model`.
    """
    arch = resolve(model_name)[0] if model_name in DEPRECATED else model_name.partition(".")[0]
    resolve(arch)
    if module_filter and arch not in list_models(module=module_filter):
        raise UsageError("unknown_model", f"{arch} is not in the module {module_filter}")

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> ImageModel | FeatureExtractor:
        return create_model(arch, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = arch
    return entrypoint


@checked
def load_state_dict(
    checkpoint_path: str | Path,
    use_ema: bool = True,
    device: torch.device | str = "cpu",
    weights_only: bool = True,
) -> dict[str, Tensor]:
    """Read a weight file, as `read_state_dict` does, under timm's name: parameter name -> finite tensor on `device`.

    weights_only=False, which would run code from the file, is refused. Raises UsageError `bad_argument`, and
    WeightsError as `read_state_dict` does.
    """
    if not weights_only:
        raise UsageError("bad_argument", "weights_only=False would run code from the file", hint="leave it out")
    state = read_state_dict(checkpoint_path, use_ema=use_ema)
    return {key: value.to(device) for key, value in state.items()}


@checked
def load_checkpoint(
    model: nn.Module,
    checkpoint_path: str | Path,
    use_ema: bool = True,
    device: torch.device | str = "cpu",
    strict: bool = True,
    remap: bool = False,
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
    weights_only: bool = True,
) -> _IncompatibleKeys:
    """Load a checkpoint into an existing model and return the missing and unexpected keys.

    strict=False ignores keys that only the model or only the file has; shapes must always match. remap: match tensors
    by order instead of name. filter_fn: called with (state, model) before the comparison; ignored with remap.
    Raises the errors of `load_state_dict` above, and WeightsError as `load_weights` does; the model is then unchanged.
    """
    state = load_state_dict(checkpoint_path, use_ema, device, weights_only)
    live = model.state_dict()
    if remap:
        state = _by_order(state, live, checkpoint_path)
    elif filter_fn:
        state = filter_fn(state, model)
    state = without_prefix(state, live, checkpoint_path)
    shared = {key: value for key, value in state.items() if key in live}
    arch = getattr(model, "arch", "") or type(model).__name__
    expected = live if strict else {key: live[key] for key in shared}
    verify(state if strict else shared, expected, source=checkpoint_path, arch=arch)
    check_finite(((key, value.to(live[key].dtype)) for key, value in shared.items()), checkpoint_path)
    model.load_state_dict(shared, strict=False)
    return _IncompatibleKeys([key for key in live if key not in state], [key for key in state if key not in live])


def _by_order(state: dict[str, Tensor], live: dict[str, Tensor], source: object) -> dict[str, Tensor]:
    """Return the tensors of `state` with the names and shapes of those at the same positions in `live`."""
    if [value.numel() for value in state.values()] != [value.numel() for value in live.values()]:
        raise WeightsError("wrong_shape", f"{source}: the sizes of its tensors, in order, are not those of the model")
    return {key: value.reshape(live[key].shape) for key, value in zip(live, state.values(), strict=True)}


class _SkipInitialization(TorchFunctionMode):
    """Creates parameters on the meta device, because the weights of a checkpoint replace them.

    Initializing the largest model takes seconds. Buffers, which a checkpoint may not contain, are created as usual.
    """

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        options = dict(kwargs) if isinstance(kwargs, dict) else {}
        if func is torch.empty:
            options["device"] = "meta"
        if func is torch.Tensor.to and isinstance(tensor := args[0], Tensor) and tensor.is_meta:  # it has no data yet
            return tensor
        return func(*args, **options)


def _allocate_parameters(model: nn.Module) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
