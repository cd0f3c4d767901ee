"""Where the config and the weights of a model name come from, without PyTorch and without reading the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from ..arguments import suggestion, unknown_argument
from ..errors import UsageError, WeightsError
from ..models.configs import CONFIGS, FamilyConfig, image_size
from .catalogue import BUILTIN_FOLDER, Checkpoint, PretrainedCfg, no_weights, resolve
from .config import SOURCE_FIELDS, ModelArgs, check_cfg, read_config
from .fetch import CONFIG, SAFETENSORS, fetch_config, fetch_model
from .formats import find_weights
from .names import local_folder

CheckpointConfig = tuple[PretrainedCfg, ModelArgs]  # the config of a checkpoint, and its constructor arguments


def architecture_of(model_name: str, cache_dir: str | Path | None = None) -> str:
    """Return the architecture of a model name in any form that `create_model` accepts; raises the same errors."""
    return str(find_checkpoint(model_name, cache_dir=cache_dir)[0]["architecture"])


def find_checkpoint(
    name: str,
    override: str | Mapping[str, object] | Checkpoint | None = None,
    read_pretrained: bool = False,
    cache_dir: str | Path | None = None,
) -> CheckpointConfig:
    """Return the config of a checkpoint, with the location of its weights, and the constructor arguments in its file.

    override: a tag or a config instead of the catalog's. read_pretrained: the weights will be read next, so those of a
    Hub repository are downloaded. Raises UsageError, WeightsError, HubError.
    """
    if not isinstance(name, str):
        raise UsageError("bad_argument", f"a model name is a string like 'mixer_b16_224', not {type(name).__name__}")
    scheme, colon, rest = name.partition(":")
    if colon and scheme in ("hf-hub", "hf_hub", "local-dir"):
        if not rest:
            raise UsageError("bad_argument", f"{name!r} has no name after {scheme}:")
        if override is not None:
            raise UsageError("bad_argument", f"{name!r} already has a config", hint="use pretrained_cfg_overlay")
        if scheme == "local-dir":
            return _from_folder(Path(rest), read_pretrained)
        return _from_hub(rest, read_pretrained, cache_dir)
    if isinstance(override, str):
        name = f"{resolve(name)[0]}.{override}"
    arch, row = resolve(name)
    if override is not None and not isinstance(override, str | Checkpoint | Mapping):
        raise UsageError("bad_argument", f"pretrained_cfg is a {type(override).__name__}, expected a tag or a dict")
    if isinstance(override, Checkpoint):
        row = override
    elif isinstance(override, Mapping):
        return {**_check_fields(override), "architecture": arch}, {}
    if row is None:
        return {"architecture": arch}, {}
    cfg = check_cfg(row.to_dict())
    return {**cfg, "architecture": arch, **({"file": BUILTIN_FOLDER / row.file} if row.file else {})}, {}


def _from_hub(rest: str, read_pretrained: bool, cache_dir: str | Path | None) -> CheckpointConfig:
    repo, _, revision = rest.partition("@")
    files = fetch_model(repo, revision or None, cache_dir, with_calibration=True) if read_pretrained else None
    path = files.config_path if files else fetch_config(repo, revision or None, cache_dir)
    if path is None:
        raise WeightsError("bad_config", f"the repository {repo} has no {CONFIG}", hint="is it a timm model?")
    config = read_config(path)
    cfg = {**config.pretrained_cfg, "hf_hub_id": rest}
    if files:
        cfg |= {"file": files.weights_path, "sha256": files.sha256 or config.weights_sha256}
    return cfg, config.model_args


def _from_folder(folder: Path, read_pretrained: bool) -> CheckpointConfig:
    folder = local_folder(f"local-dir:{folder}")
    if not (folder / CONFIG).exists():
        raise WeightsError(
            "bad_config",
            f"{str(folder)!r} has no {CONFIG}, so it is not the folder of a model that can be built",
            hint="give one that `tessella train` or `save_pretrained` wrote; of an exported model, give the original",
        )
    config = read_config(folder / CONFIG)
    if not read_pretrained:
        return config.pretrained_cfg, config.model_args
    path = find_weights(folder)
    sha256 = config.weights_sha256 if path.name == SAFETENSORS else None
    return {**config.pretrained_cfg, "file": path, "sha256": sha256}, config.model_args


def _check_fields(cfg: Mapping[str, object]) -> PretrainedCfg:
    """Check the config that a caller passes; unlike in a file, unknown fields are an error."""
    checked = check_cfg(cfg)
    if unknown := sorted(key for key, value in cfg.items() if value is not None and key not in checked):
        raise UsageError(
            "bad_argument",
            f"pretrained_cfg has no field {', '.join(map(repr, unknown))}",
            hint="weights come from file (a path) or hf_hub_id (organization/name)",
        )
    return checked


def overlay(cfg: PretrainedCfg, changes: Mapping[str, object]) -> PretrainedCfg:
    """Replace fields of a config; a new source of weights also removes the old source and its hash.

    Raises UsageError `bad_argument`.
    """
    fields = _check_fields(changes)
    if any(key in fields for key in SOURCE_FIELDS):
        cfg = {key: value for key, value in cfg.items() if key not in SOURCE_FIELDS}
    return check_cfg({**cfg, **fields, "architecture": cfg["architecture"]})


def locate(cfg: PretrainedCfg, name: str, cache_dir: str | Path | None) -> tuple[Path, str | None]:
    """Return the local weight file and the SHA-256 that it must have, if one is known.

    Weights of the catalog are downloaded. Raises UsageError `no_weights`, HubError.
    """
    if file := cfg.get("file"):
        return Path(file), cfg.get("sha256")
    if repo := cfg.get("hf_hub_id"):
        repo, _, revision = repo.partition("@")
        files = fetch_model(repo, revision or None, cache_dir)
        return files.weights_path, cfg.get("sha256") or files.sha256
    raise no_weights(name)


def source_of(cfg: PretrainedCfg, replaced: object = None, changes: Mapping[str, object] | None = None) -> Path | None:
    """Return the model folder, or the weight file of a built-in model, that a name refers to; None for other weights.

    The calibration of the model is in this folder, or beside this file. cfg: of `find_checkpoint`, with the location of
    the weights. replaced: a config or weights that the caller gave instead. changes: fields that it replaced.
    """
    file = cfg.get("file")
    if not file or replaced or any(key in (changes or {}) for key in SOURCE_FIELDS):
        return None
    file = Path(file)
    return file if file.parent == BUILTIN_FOLDER else file.parent


def default_args(cfg: PretrainedCfg) -> ModelArgs:
    """Return the constructor arguments that follow from the checkpoint."""
    args = {}
    if cfg.get("num_classes", -1) >= 0:
        args["num_classes"] = cfg["num_classes"]
    if "input_size" in cfg:
        args["in_chans"] = cfg["input_size"][0]
        fields = {field.name for field in dataclasses.fields(CONFIGS[cfg["architecture"]])}
        if cfg.get("fixed_input_size") and "img_size" in fields:
            args["img_size"] = tuple(cfg["input_size"][1:])
    return args


def describe_checkpoint(cfg: PretrainedCfg, config: FamilyConfig) -> PretrainedCfg:
    """Return the `pretrained_cfg` of a model: the checkpoint's, with the image size and labels of this config."""
    described = {key: value for key, value in cfg.items() if value is not None and key != "file"}
    if "input_size" in cfg:
        described["input_size"] = (config.in_chans, *(image_size(config) or cfg["input_size"][1:]))
    if config.num_classes != cfg.get("num_classes"):
        described.pop("label_names", None)
        described.pop("label_descriptions", None)
    return described


_OWN_ARGUMENTS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("features_only", "out_indices", "device", "dtype"),
)
_LOAD_ARGUMENTS = ("precision", "engine", "batch_size", "mode", "transform", "policy", "images")
_NOT_SUPPORTED = {  # arguments of timm that expect code
    **dict.fromkeys(("norm_layer", "block_layer", "mlp_layer"), "the layers are those of the published models"),
    "hybrid_backbone": "the models read images, not the features of another network",
}


def check_names(arch: str, arguments: Collection[str]) -> None:
    """Raise UsageError `bad_argument`, with similar names, for arguments that the architecture does not have."""
    fields = [field.name for field in dataclasses.fields(CONFIGS[arch])]
    for name in arguments:
        if name in _NOT_SUPPORTED and name not in fields:
            raise UsageError("bad_argument", f"{arch} has no argument {name!r}", hint=_NOT_SUPPORTED[name])
        if name in _LOAD_ARGUMENTS:
            raise UsageError("bad_argument", f"{name} is an argument of tessella.load, not of create_model")
    if unknown := [name for name in arguments if name not in fields]:
        known = [*fields, *_OWN_ARGUMENTS]
        if not suggestion(unknown, known) and (similar := suggestion(unknown, _LOAD_ARGUMENTS)):
            raise UsageError("bad_argument", f"unknown argument {', '.join(map(repr, unknown))}", hint=similar)
        raise unknown_argument(arch, unknown, known)
