"""What a name, file or folder refers to: a model, an export, a run, an index or a training run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..bulk.run_folder import COPY, INDEX_SEAL, LOG, RUN, has_shards
from ..engine.exported import is_exported
from ..errors import UsageError
from ..storage import file_hash
from ..training.run_folder import SETTINGS
from ..weights.catalogue import CATALOGUE, DEPRECATED, is_model
from ..weights.fetch import CONFIG
from ..weights.formats import PICKLE_SUFFIXES, find_weights
from ..weights.names import local_folder
from .findings import Kind

_HUB = ("hf-hub:", "hf_hub:")
_WEIGHTS = (".safetensors", *PICKLE_SUFFIXES)
_EXPECTED = (
    "the name of a model, a weight file, or a folder that `tessella run`, `index`, `export`, `train`, `convert` or "
    "`save_pretrained` wrote"
)


@dataclass(frozen=True)
class Artifact:
    """What is to be verified.

    given: as the caller wrote it. path: the file or folder; None for the name of a model. model: the name of the model
    for `tessella.load`; "" for runs and indexes. checkpoint: a weight file to use instead of the model's own.
    """

    given: str
    kind: Kind
    path: Path | None
    model: str = ""
    checkpoint: Path | None = None


def find_target(given: str, model: str | None = None) -> Artifact:
    """Return what a name or path refers to. model: the name of the model for a weight file.

    Raises UsageError `not_found` or `bad_argument`, WeightsError `weights_not_found`.
    """
    path = path_of(given)
    if path is None and model is None:
        return Artifact(given, "model", None, given)
    path = path or Path(given)
    if not given:
        raise UsageError("not_found", "the target has no name", hint=f"give {_EXPECTED}")
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
        if model is not None:
            raise UsageError("bad_argument", f"{given!r} is a folder, which states its model", hint="omit --model")
        return _folder(given, path)
    if not os.path.isfile(path):  # noqa: PTH113 - as above
        raise UsageError("not_found", f"there is no {given!r}", hint=f"give {_EXPECTED}")
    if not path.name.lower().endswith(_WEIGHTS):
        raise UsageError("bad_argument", f"{given!r} cannot be verified", hint=f"give {_EXPECTED}")
    return Artifact(given, "model", path, model or _model_of(path), path)


def path_of(given: str) -> Path | None:
    """Return the path that a target refers to, whether it exists or not; None for the name of a model.

    Raises UsageError `bad_argument`, WeightsError `weights_not_found`, for a `local-dir:` name.
    """
    if given.startswith(_HUB) or given in DEPRECATED or (is_model(given) and "/" not in given):
        return None
    return local_folder(given) if given.startswith("local-dir:") else Path(given)


def _folder(given: str, path: Path) -> Artifact:
    if is_exported(path):
        return Artifact(given, "export", path, f"local-dir:{path}")
    if (path / INDEX_SEAL).is_file():
        return Artifact(given, "index", path)
    if any((path / name).exists() for name in (RUN, LOG, f"{COPY}/{RUN}")) or has_shards(path):
        return Artifact(given, "run", path)
    if (path / SETTINGS).is_file():
        return Artifact(given, "training run", path, f"local-dir:{path}" if (path / CONFIG).is_file() else "")
    if (path / CONFIG).is_file():
        return Artifact(given, "model", path, f"local-dir:{path}")
    raise UsageError("not_found", f"{given!r} holds nothing that can be verified", hint=f"give {_EXPECTED}")


def _model_of(path: Path) -> str:
    """Return the name of the model that a weight file belongs to: by its folder, its name or its hash."""
    if (path.parent / CONFIG).is_file() and find_weights(path.parent) == path:
        return f"local-dir:{path.parent}"
    stem = path.name
    for suffix in _WEIGHTS:
        stem = stem.removesuffix(suffix)
    if is_model(stem):
        return stem
    digest = file_hash(path)
    known = next((name for name, row in CATALOGUE.items() if row.sha256 == digest), None)
    if known is None:
        raise UsageError("bad_argument", f"the model of {str(path)!r} is not known", hint="name it with --model NAME")
    return known
