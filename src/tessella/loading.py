"""Open models: from a name or folder to a running engine, with input spec and labels.

An OpenedModel holds the finished parts that a Predictor is made of. How images are read is a setting of the Predictor,
not of the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .arguments import suggestion
from .data.labels import labels_for_classes
from .data.names import is_archive
from .data.source import Source
from .data.sources import iter_sources
from .data.spec import InputSpec
from .engine import Plan, make_plan
from .engine.agreement import BOUNDS
from .engine.base import Engine
from .engine.exported import Card, is_exported, open_exported
from .engine.gate import open_gated
from .engine.plan import FAST, check_settings
from .engine.plan import Mode as RunMode
from .errors import UsageError
from .inputs import AnyImage
from .models.configs import CONFIGS
from .pipeline import ImageReader
from .results import ClassNames
from .weights.catalogue import DEPRECATED, full_name, no_weights, resolve
from .weights.names import local_folder
from .weights.network import AnyModel, Network, as_network
from .weights.open import open_network

MAX_SAMPLES = 500  # images on which a precision is compared with float32


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to run: its engine, and its card with input spec and labels."""

    engine: Engine
    card: Card
    labels_reason: str  # where the labels come from


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """The arguments of `tessella.load` that choose the model and its engine, with the same meaning."""

    name: str
    pretrained: bool = True
    checkpoint_path: str | Path | None = None
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    batch_size: int | None = None
    mode: RunMode = "throughput"
    images: Sequence[AnyImage] | None = None
    cache_dir: str | Path | None = None
    model_args: Mapping[str, Any]  # fields of the architecture's config, and other arguments of `create_model`

    @property
    def folder(self) -> Path | None:
        """The folder that a `local-dir:` name refers to; None for other names."""
        return local_folder(self.name) if self.name.startswith("local-dir:") else None

    @property
    def has_own_weights(self) -> bool:
        """Whether the weights are not those that the name refers to."""
        return self.checkpoint_path is not None or "pretrained_cfg" in self.model_args

    @property
    def recorded_name(self) -> str:
        """The name of the model in results: with its tag if the published weights of that tag are loaded."""
        return full_name(self.name) if self.pretrained and not self.has_own_weights else self.name


def spec_of(model: AnyModel, name: str = "") -> InputSpec:
    """Return the input spec of a model of `create_model`; UsageError `bad_argument` for anything else."""
    if not hasattr(model, "pretrained_cfg"):
        raise UsageError(
            "bad_argument",
            f"a Predictor needs a model of create_model, got {type(model).__name__}",
            hint="for the name of a model use tessella.load(name)",
        )
    spec = InputSpec.from_cfg(model.pretrained_cfg)
    if spec.channels != 3:
        raise UsageError("bad_argument", f"{name or model.arch} reads {spec.channels} channels, images have 3 (RGB)")
    return spec


def open_model(
    model: AnyModel,
    reader: ImageReader,
    *,
    name: str = "",
    plan: Plan | None = None,
    images: Sequence[AnyImage] | None = None,
) -> OpenedModel:
    """Open an engine for a model of `create_model`, and find the labels of its classes.

    plan: None: one is made for this machine. A lossy precision of the plan is compared with float32, and not used if
    the results differ too much: on `images`, a few hundred representative ones that `reader` reads, or on photographs
    in this package. Raises UsageError, WeightsError.
    """
    size = (reader.spec.height, reader.spec.width)
    network = as_network(model if isinstance(model, Network) else model.eval())
    plan = plan or make_plan(model=network, size=size)
    samples = None if images is None or plan.precision not in (*BOUNDS, FAST) else reader.load_readable(images)
    engine = open_gated(network, plan, size, reader.spec, samples)
    classes, reason = find_labels(network)
    card = Card(
        name=name or network.arch,
        arch=network.arch,
        engine=engine.plan.engine,
        precision=engine.plan.precision,
        num_classes=network.num_classes,
        width=network.width,
        spec=reader.spec,
        labels=classes.labels,
        synsets=classes.synsets,
        identity={},
    )
    return OpenedModel(engine, card, reason)


def open_exported_model(folder: Path, *, batch_size: int | None = None, mode: RunMode = "throughput") -> OpenedModel:
    """Open a folder that `tessella export` wrote, without PyTorch. Raises WeightsError, UsageError."""
    card, engine = open_exported(folder, batch_size, mode)
    return OpenedModel(engine, card, "exported with the model")


def find_exported(settings: LoadSettings) -> Path | None:
    """Return the folder of an exported model, or None if the name does not refer to one.

    Raises UsageError `bad_argument` for settings that were fixed when the model was exported.
    """
    folder = settings.folder
    if folder is None or not is_exported(folder):
        return None
    pinned = settings.device not in ("auto", "cpu") or (settings.precision, settings.engine) != ("auto", "auto")
    if pinned or settings.checkpoint_path or settings.model_args or settings.images is not None:
        raise UsageError(
            "bad_argument",
            f"{settings.name} is an exported model: its engine, precision and weights were chosen when it was exported",
            hint="leave these out, or load the model by its name",
        )
    return folder


def open_planned(settings: LoadSettings) -> tuple[Network, Plan]:
    """Read the weights of a model, and plan how to run it. Raises UsageError, WeightsError.

    Unsupported settings are refused before weights are downloaded, most of them before PyTorch is imported.
    """
    if settings.pretrained and settings.folder is None and not settings.has_own_weights:
        _check_weights(settings.name)
    choices = (settings.device, settings.precision, settings.engine, settings.batch_size, settings.mode)
    check_settings(*choices)
    network = open_network(
        settings.name,
        pretrained=settings.pretrained,
        checkpoint_path=settings.checkpoint_path,
        cache_dir=settings.cache_dir,
        model_args=settings.model_args,
    )
    spec = InputSpec.from_cfg(network.pretrained_cfg)
    return network, make_plan(*choices, network, (spec.height, spec.width))


def find_labels(model: Network) -> tuple[ClassNames, str]:
    """Return the labels of a model's classes, and where they come from."""
    if names := model.pretrained_cfg.get("label_names"):
        return ClassNames(tuple(names)), "from the checkpoint"
    if known := labels_for_classes(model.num_classes):
        reason = f"{known.dataset}, the published set with {model.num_classes} classes"
        return ClassNames(known.names, known.synsets), reason
    indices = tuple(map(str, range(model.num_classes)))
    return ClassNames(indices), "no class names are known, so classes are named by index"


def choose_mode(inputs: Sequence[str]) -> RunMode:
    """Return "latency" for one image file, "throughput" for everything else: folders, archives, lists, globs, URLs."""
    # os.path: Path.is_file raises for names that are too long
    is_one_image = len(inputs) == 1 and os.path.isfile(inputs[0]) and not is_archive(inputs[0])  # noqa: PTH113
    return "latency" if is_one_image else "throughput"


def find_samples(name: str, stdin: Iterable[str] | None = None) -> list[Source]:
    """List the images of a folder, glob or archive for the argument `images` of `load`, at most MAX_SAMPLES.

    stdin: lines of the list that the name "-" refers to. Raises UsageError `bad_argument` if there is none.
    """
    sources = list(islice(iter_sources([name], stdin=stdin), MAX_SAMPLES))  # the rest is not listed
    if not sources:
        raise UsageError("bad_argument", f"images {name!r} contains no images")
    return sources


def _check_weights(name: str) -> None:
    """Refuse an unknown name, and one without weights."""
    if ":" in name or name in DEPRECATED:  # every old name has weights
        return
    arch, row = resolve(name)
    if row is None or not row.has_weights:
        raise no_weights(row.name if row else arch)


_NOT_FOR_LOAD = {  # arguments of `create_model` that a Predictor does not support
    "features_only": "use tessella.create_model, or Predictor.features",
    "out_indices": "use Predictor.features(images, indices)",
    "dtype": "use precision=",
}


def check_model_args(model_args: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuse arguments that `load` cannot pass on to the model; UsageError `bad_argument`.

    known: the names of `load`'s own arguments. A name that resembles one of them is taken for a spelling mistake,
    unless an architecture has a field of that name.
    """
    for name in model_args:
        if name in _NOT_FOR_LOAD:
            raise UsageError("bad_argument", f"load takes no argument {name!r}", hint=_NOT_FOR_LOAD[name])
        near = suggestion([name], known, cutoff=0.8)
        if near and not _is_model_arg(name):
            raise UsageError("bad_argument", f"load takes no argument {name!r}", hint=near)


def _is_model_arg(name: str) -> bool:
    """Return whether the config of any architecture has a field of that name."""
    return any(hasattr(config, name) for config in CONFIGS.values())
