"""`create_model`: a name -> a model, with or without trained weights, by timm's rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.overrides import TorchFunctionMode

from ..arguments import suggestion, unknown_argument
from ..checks import checked
from ..errors import UsageError, WeightsError
from ..models import ARCHITECTURES, build
from ..models.base import ImageModel
from ..models.features import FeatureExtractor
from .catalogue import BUILTIN_FOLDER, DEPRECATED, Checkpoint, list_models, no_weights, resolve
from .config import SOURCE_FIELDS, check_cfg, read_config
from .fetch import CONFIG, SAFETENSORS, fetch_config, fetch_model
from .files import check_finite, find_weights, read_state_dict, without_prefix
from .load import image_size, load_weights, verify


@overload
def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: str | Mapping[str, Any] | Checkpoint | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
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
    **kwargs: Any,
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
    pretrained_cfg: str | Mapping[str, Any] | Checkpoint | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
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
    **kwargs: Any,
) -> ImageModel | FeatureExtractor:
    """A model in evaluation-ready form (timm's: training mode, on the CPU, float32, unless asked otherwise).

    model_name: `arch` (its default checkpoint), `arch.tag`, `hf-hub:org/repo[@revision]` or `local-dir:path`.
    pretrained: load the weights that the name stands for, after verifying them completely.
    pretrained_cfg: another tag of the architecture, or a whole config in place of the catalogue's;
    pretrained_cfg_overlay: single fields of it, such as `dict(file="best.safetensors", num_classes=-1)`.
    checkpoint_path: weights for exactly this model, loaded strictly; the pretrained ones are then not read.
    cache_dir: for the Hub, in place of its own. kwargs: fields of the architecture's config; None means not given.
    scriptable, exportable, no_jit: timm's; accepted without effect, as every model here is scriptable and exportable.
    features_only: the maps of some blocks (out_indices, as `forward_intermediates`) instead of logits.

    num_classes, in_chans and, for models of a fixed size, img_size follow the checkpoint where they are not given. The
    model's `pretrained_cfg` says how its images are prepared, with `label_names` where the checkpoint brings its own,
    and `sha256` of the weights where they were checked against one.
    Raises UsageError (unknown_model, unknown_tag, no_weights, bad_argument) or WeightsError; see `read_state_dict`,
    `load_weights` and `fetch_model` for its codes.
    """
    if out_indices is not None and not features_only:
        raise UsageError("bad_argument", "out_indices is for features_only=True")
    checkpoint_path, cache_dir = checkpoint_path or None, cache_dir or None  # "" means not given
    load_pretrained = bool(pretrained) and checkpoint_path is None
    cfg, args = _find(model_name, pretrained_cfg or None, load_pretrained, cache_dir)
    if pretrained_cfg_overlay:
        cfg = _overlay(cfg, pretrained_cfg_overlay)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    check_names(cfg["architecture"], kwargs)
    if load_pretrained:
        path, sha256 = _locate(cfg, model_name, cache_dir)
        state = read_state_dict(path, sha256=sha256)
    elif checkpoint_path is not None:
        path, sha256, state = Path(checkpoint_path), None, read_state_dict(checkpoint_path)

    args = {**_defaults(cfg), **args, **kwargs}
    loads_all = checkpoint_path is not None or (pretrained and args.get("num_classes") == cfg.get("num_classes"))
    with _Unfilled() if loads_all else nullcontext():
        model = build(cfg["architecture"], **args)
    if loads_all:
        try:
            _give_memory(model)
        except RuntimeError as error:  # torch's for memory that there is not
            what = f"{cfg['architecture']} with these arguments does not fit into the memory: {error}"
            raise UsageError("bad_argument", what) from None
    if load_pretrained or checkpoint_path is not None:
        load_weights(model, state, source_cfg=cfg if load_pretrained else {}, source=path)
        if load_pretrained and sha256:
            cfg["sha256"] = sha256
    model.pretrained_cfg = _describe(cfg, model)
    result = FeatureExtractor(model, out_indices=out_indices) if features_only else model
    return _placed(result, device, dtype)


def _placed(
    model: ImageModel | FeatureExtractor, device: torch.device | str | None, dtype: torch.dtype | None
) -> ImageModel | FeatureExtractor:
    try:
        return model.to(device=device, dtype=dtype)
    except (RuntimeError, TypeError, AssertionError) as error:  # torch: no such device, not built with it, no such type
        what = f"the model cannot be put on device={device!r}, dtype={dtype!r}: {error}"
        raise UsageError("bad_argument", what) from None


_OWN_ARGUMENTS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("features_only", "out_indices", "device", "dtype"),
)
_LOAD_ARGUMENTS = ("precision", "engine", "batch_size", "mode", "transform", "policy", "images")
_NOT_COVERED = {  # timm's, which name code
    **dict.fromkeys(("norm_layer", "block_layer", "mlp_layer"), "the layers are those of the published models"),
    "hybrid_backbone": "the models read images, not the features of another network",
}


def check_names(arch: str, arguments: Collection[str]) -> None:
    """Refuse arguments that the architecture does not have, saying which are near; raises UsageError `bad_argument`."""
    fields = [field.name for field in dataclasses.fields(ARCHITECTURES[arch][1])]
    for name in arguments:
        if name in _NOT_COVERED and name not in fields:
            raise UsageError("bad_argument", f"{arch} takes no argument {name!r}", hint=_NOT_COVERED[name])
        if name in _LOAD_ARGUMENTS:
            raise UsageError("bad_argument", f"{name} is an argument of tessella.load, not of create_model")
    if unknown := [name for name in arguments if name not in fields]:
        known = [*fields, *_OWN_ARGUMENTS]
        if not suggestion(unknown, known) and (near := suggestion(unknown, _LOAD_ARGUMENTS)):
            raise UsageError("bad_argument", f"unknown argument {', '.join(map(repr, unknown))}", hint=near)
        raise unknown_argument(arch, unknown, known)


@checked
def model_entrypoint(model_name: str, module_filter: str | None = None) -> Callable[..., Any]:
    """What builds an architecture: a function of `create_model`'s other arguments, named like the architecture.

    module_filter: one of `list_modules()` that must have it. A tag in the name is not looked at, as in timm.
    """
    arch = resolve(model_name)[0] if model_name in DEPRECATED else model_name.partition(".")[0]
    resolve(arch)
    if module_filter and arch not in list_models(module=module_filter):
        raise UsageError("unknown_model", f"{arch} is not in the module {module_filter}")

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
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
    """Same as `read_state_dict`, under timm's name: name -> tensor on `device`, all finite.

    weights_only=False, which would run code from the file, is refused. Raises WeightsError and UsageError.
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
) -> Any:
    """Load a checkpoint into a model that exists; returns its missing and unexpected keys, as `load_state_dict` does.

    strict=False leaves out keys that only one side has; shapes must fit in any case. remap: match tensors by their
    order instead of their names. filter_fn: called with (state, model) before anything is compared; not with remap.
    Raises what `load_state_dict` above raises, and WeightsError as `load_weights`; the model is then unchanged.
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
    """The tensors of `state` under the names, and in the shapes, of those at the same places in `live`."""
    if [value.numel() for value in state.values()] != [value.numel() for value in live.values()]:
        raise WeightsError("wrong_shape", f"{source}: in their order, its tensors do not have the model's sizes")
    return {key: value.reshape(live[key].shape) for key, value in zip(live, state.values(), strict=True)}


def architecture_of(model_name: str, cache_dir: str | Path | None = None) -> str:
    """The architecture behind a name that `create_model` takes; raises what it raises."""
    return str(_find(model_name, None, False, cache_dir)[0]["architecture"])


def _find(
    name: str,
    override: str | Mapping[str, Any] | Checkpoint | None,
    load_pretrained: bool,
    cache_dir: str | Path | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checkpoint's config, with the place of its weights, and the constructor arguments it comes with."""
    if not isinstance(name, str):
        raise UsageError("bad_argument", f"a model name is text, such as 'mixer_b16_224', not {type(name).__name__}")
    scheme, colon, rest = name.partition(":")
    if colon and scheme in ("hf-hub", "hf_hub", "local-dir"):
        if not rest:
            raise UsageError("bad_argument", f"{name!r} names nothing after {scheme}:")
        if override is not None:
            raise UsageError("bad_argument", f"{name!r} brings its own config", hint="use pretrained_cfg_overlay")
        if scheme == "local-dir":
            return _from_folder(Path(rest), load_pretrained)
        return _from_hub(rest, load_pretrained, cache_dir)
    if isinstance(override, str):
        name = f"{resolve(name)[0]}.{override}"
    arch, row = resolve(name)
    if override is not None and not isinstance(override, str | Checkpoint | Mapping):
        raise UsageError("bad_argument", f"pretrained_cfg is a {type(override).__name__}, expected a tag or a dict")
    if isinstance(override, Checkpoint):
        row = override
    elif isinstance(override, Mapping):
        return {**_known(override), "architecture": arch}, {}
    if row is None:
        return {"architecture": arch}, {}
    cfg = check_cfg(row.to_dict())
    return {**cfg, "architecture": arch, **({"file": BUILTIN_FOLDER / row.file} if row.file else {})}, {}


def _from_hub(rest: str, load_pretrained: bool, cache_dir: str | Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    repo, _, revision = rest.partition("@")
    files = fetch_model(repo, revision or None, cache_dir) if load_pretrained else None
    path = files.config_path if files else fetch_config(repo, revision or None, cache_dir)
    if path is None:
        raise WeightsError("bad_config", f"the repository {repo} has no {CONFIG}", hint="is it a timm model?")
    config = read_config(path)
    cfg = {**config.pretrained_cfg, "hf_hub_id": rest}
    if files:
        cfg |= {"file": files.weights_path, "sha256": files.sha256 or config.weights_sha256}
    return cfg, config.model_args


def _from_folder(folder: Path, load_pretrained: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    from .names import local_folder

    folder = local_folder(f"local-dir:{folder}")
    config = read_config(folder / CONFIG)
    if not load_pretrained:
        return config.pretrained_cfg, config.model_args
    path = find_weights(folder)
    sha256 = config.weights_sha256 if path.name == SAFETENSORS else None
    return {**config.pretrained_cfg, "file": path, "sha256": sha256}, config.model_args


def _known(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A config given by the caller: unlike one from a file, what it cannot say is an error."""
    checked = check_cfg(cfg)
    if unread := sorted(key for key, value in cfg.items() if value is not None and key not in checked):
        raise UsageError(
            "bad_argument",
            f"pretrained_cfg has no field {', '.join(map(repr, unread))}",
            hint="weights come from file (a path) or hf_hub_id (organisation/name)",
        )
    return checked


def _overlay(cfg: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """A source in the overlay replaces the checkpoint's own, with its hash."""
    fields = _known(overlay)
    if any(key in fields for key in SOURCE_FIELDS):
        cfg = {key: value for key, value in cfg.items() if key not in SOURCE_FIELDS}
    return check_cfg({**cfg, **fields, "architecture": cfg["architecture"]})


def _locate(cfg: dict[str, Any], name: str, cache_dir: str | Path | None) -> tuple[Path, str | None]:
    """The weight file on this machine and the SHA-256 it must have, where one is known."""
    if file := cfg.get("file"):
        return Path(file), cfg.get("sha256")
    if repo := cfg.get("hf_hub_id"):
        repo, _, revision = repo.partition("@")
        files = fetch_model(repo, revision or None, cache_dir)
        return files.weights_path, cfg.get("sha256") or files.sha256
    raise no_weights(name)


def _defaults(cfg: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments that follow from the checkpoint."""
    args = {}
    if cfg.get("num_classes", -1) >= 0:
        args["num_classes"] = cfg["num_classes"]
    if "input_size" in cfg:
        args["in_chans"] = cfg["input_size"][0]
        fields = {field.name for field in dataclasses.fields(ARCHITECTURES[cfg["architecture"]][1])}
        if cfg.get("fixed_input_size") and "img_size" in fields:
            args["img_size"] = tuple(cfg["input_size"][1:])
    return args


def _describe(cfg: dict[str, Any], model: ImageModel) -> dict[str, Any]:
    """`model.pretrained_cfg`: the checkpoint's, with the images and labels of this very model."""
    described = {key: value for key, value in cfg.items() if value is not None and key != "file"}
    if "input_size" in cfg:
        described["input_size"] = (model.config.in_chans, *(image_size(model) or cfg["input_size"][1:]))
    if model.num_classes != cfg.get("num_classes"):
        described.pop("label_names", None)
        described.pop("label_descriptions", None)
    return described


class _Unfilled(TorchFunctionMode):
    """Modules made inside have parameters without memory, so that no time goes into numbers that are overwritten.

    Filling the largest model at random takes seconds. Buffers, also those that no checkpoint holds, are made as ever.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        if func is torch.Tensor.to and args[0].is_meta:  # a layer made to be where another is: there is nothing to move
            return args[0]
        return func(*args, **kwargs)


def _give_memory(model: nn.Module) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
