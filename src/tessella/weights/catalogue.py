"""The catalog of published checkpoints, and the resolution of model names.

A name is `architecture` or `architecture.tag`. This module does not import torch, so listing models is fast. The rows
are in `tables/pretrained.json` (checkpoints published by timm) and `builtin/builtin.json` (checkpoints in this
package).
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import functools
import json
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from ..arguments import suggestion
from ..checks import checked
from ..errors import UsageError

Task: TypeAlias = Literal["classify", "embed"]
# Names of built-in models, the present default first. Runs that were started with a former default are resumed with it.
DEFAULT_MODELS: dict[Task, tuple[str, ...]] = {
    "classify": ("convmixer_256_8_ks3_p4.cifar10",),
    "embed": ("convmixer_384_8_ks5_p8.photographs", "convmixer_256_8_ks3_p4.cifar10"),
}
_HERE = Path(__file__).parent
BUILTIN_FOLDER = _HERE / "builtin"
PretrainedCfg = dict[str, Any]  # timm's `pretrained_cfg`, checked by `config.check_cfg`
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A set of weights and the preprocessing of its images; the fields have timm's names."""

    architecture: str
    tag: str  # "untrained" if no weights were published
    num_classes: int
    input_size: tuple[int, int, int]  # channels, height, width
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed_input_size: bool
    first_conv: str | tuple[str, ...]
    classifier: str | tuple[str, ...]
    license: str
    hf_hub_id: str | None = None
    file: str | None = None  # in weights/builtin/
    sha256: str | None = None  # of that file
    label_names: tuple[str, ...] | None = None  # None: a public label set, which follows from num_classes
    note: str = ""  # a known problem
    class_warning: str = ""  # why its predicted classes should not be relied on

    @property
    def name(self) -> str:
        """The name as `architecture.tag`."""
        return f"{self.architecture}.{self.tag}"

    @property
    def has_weights(self) -> bool:
        """True if the weights are on the Hub or in this package."""
        return self.hf_hub_id is not None or self.file is not None

    def to_dict(self) -> PretrainedCfg:
        """Return timm's `pretrained_cfg`: the fields that are set."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, "")}


class Accuracy(NamedTuple):
    """Published accuracy in per cent for images of `img_size` pixels per side."""

    top1: float
    top5: float
    img_size: int


_MISTAGGED = (
    "despite its tag these are the weights trained on ImageNet-1k alone; "
    "the ones pre-trained on ImageNet-21k and fine-tuned were never published"
)
_CONVIT_LICENCE = (
    "the authors changed the license of their repository from CC-BY-NC to Apache-2.0 in May 2021; the header of their "
    "source file still names CC-BY-NC"
)
NOTES = {
    "mixer_b16_224.goog_in21k_ft_in1k": f"{_MISTAGGED}; for those use mixer_b16_224.miil_in21k_ft_in1k",
    "mixer_l16_224.goog_in21k_ft_in1k": f"{_MISTAGGED}; it is less accurate than the smaller mixer_b16_224",
    **{f"convit_{size}.fb_in1k": _CONVIT_LICENCE for size in ("tiny", "small", "base")},
}

# Default tags that are not the first row of the table: timm's default is the first that it declares.
DEFAULT_TAGS = {
    **{f"mixer_{size}16_224": "goog_in21k_ft_in1k" for size in "bl"},
    **{f"resmlp_{size}_224": "fb_in1k" for size in ("12", "24", "36", "big_24")},
}

DEPRECATED = {
    "mixer_b16_224_in21k": "mixer_b16_224.goog_in21k",
    "mixer_l16_224_in21k": "mixer_l16_224.goog_in21k",
    "mixer_b16_224_miil": "mixer_b16_224.miil_in21k_ft_in1k",
    "mixer_b16_224_miil_in21k": "mixer_b16_224.miil_in21k",
    "resmlp_12_distilled_224": "resmlp_12_224.fb_distilled_in1k",
    "resmlp_24_distilled_224": "resmlp_24_224.fb_distilled_in1k",
    "resmlp_36_distilled_224": "resmlp_36_224.fb_distilled_in1k",
    "resmlp_big_24_distilled_224": "resmlp_big_24_224.fb_distilled_in1k",
    "resmlp_big_24_224_in22ft1k": "resmlp_big_24_224.fb_in22k_ft_in1k",
    "resmlp_12_224_dino": "resmlp_12_224.fb_dino",
    "resmlp_24_224_dino": "resmlp_24_224.fb_dino",
}
# Old names that timm now maps to other weights.
REMAPPED = {
    "mixer_b16_224_in21k": "mixer_b16_224.goog_in21k_ft_in1k",
    "mixer_l16_224_in21k": "mixer_l16_224.goog_in21k_ft_in1k",
    "resmlp_12_224_dino": "resmlp_12_224.fb_in1k",
    "resmlp_24_224_dino": "resmlp_24_224.fb_in1k",
}

OWN_ARCHITECTURES = (  # not in timm
    "convmixer_256_8_ks3_p4",
    "convmixer_256_8_ks5_p2",
    "convmixer_384_8_ks5_p8",
    "convit_ti_p4_32",
    "crossvit_ti_dagger_p4_32",
    "gmixer_ti_p4_32",
    "mixer_ti_p4_32",
)
MODULES = {  # timm's module names, by the first word of an architecture
    "convmixer": "convmixer",
    "convit": "convit",
    "crossvit": "crossvit",
    "mixer": "mlp_mixer",
    "gmixer": "mlp_mixer",
    "resmlp": "mlp_mixer",
    "gmlp": "mlp_mixer",
}


def _read_rows(path: Path) -> Iterable[Checkpoint]:
    fields = {field.name for field in dataclasses.fields(Checkpoint)}
    for row in json.loads(path.read_text(encoding="utf-8")):
        arch, _, tag = row["name"].partition(".")
        known = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items() if key in fields}
        yield Checkpoint(**{"note": NOTES.get(row["name"], ""), **known, "architecture": arch, "tag": tag})


def _natural(name: str) -> list[str | int]:
    """Return a sort key that places `mixer_s9` before `mixer_s16`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


CATALOGUE: dict[str, Checkpoint] = {
    row.name: row
    for path in (_HERE / "tables" / "pretrained.json", BUILTIN_FOLDER / "builtin.json")
    for row in _read_rows(path)
}
ARCHITECTURE_NAMES: tuple[str, ...] = tuple(
    sorted({row.architecture for row in CATALOGUE.values()} | set(OWN_ARCHITECTURES), key=_natural)
)


def default_model(task: Task = "embed", started_with: str | None = None) -> str:
    """Return the name of the model that is used if none is given.

    task: "classify" if predicted classes are the result; "embed" for everything else. started_with: the model of a run
    that is resumed; it is kept, under its full name, if it is or was the default.
    """
    names = DEFAULT_MODELS[task]
    started_with = full_name(started_with or "")
    return started_with if started_with in names else names[0]


def full_name(name: str) -> str:
    """Return the name of a checkpoint as `arch.tag`; a name that does not refer to published weights is returned as is.

    An architecture without a tag has the tag of its default checkpoint. Earlier versions recorded such names as they
    were given, so recorded names are compared in this form.
    """
    name = DEPRECATED.get(name, name)
    rows = get_arch_pretrained_cfgs(name) if name in ARCHITECTURE_NAMES else {}
    default = next(iter(rows.values()), None)
    return default.name if default is not None and default.has_weights else name


def class_warning(name: str) -> str:
    """Return why the predicted classes of a published model should not be relied on; "" if nothing is known."""
    row = CATALOGUE.get(full_name(name))
    return row.class_warning if row else ""


@checked
def resolve(name: str) -> tuple[str, Checkpoint | None]:
    """Return the architecture and the checkpoint of a name: `arch`, `arch.tag` or an old name.

    Without a tag, the checkpoint is the default of the architecture, which is timm's default if that has weights. It is
    None for an architecture of this project without checkpoints. Raises UsageError `unknown_model`, `unknown_tag`, or
    `bad_argument` for a string that is not a name.
    """
    if any(character in _text(name) for character in "/\\:"):
        raise UsageError(
            "bad_argument",
            f"{name!r} is not a model name",
            hint=_folder_hint(name) or "for a Hub repository write 'hf-hub:org/repo', for a folder 'local-dir:path'",
        )
    if name in DEPRECATED:
        difference = f"; timm loads {REMAPPED[name]} instead, which has different weights" if name in REMAPPED else ""
        _log.warning("%s is an old name for %s%s", name, DEPRECATED[name], difference)
        name = DEPRECATED[name]
    arch, _, tag = name.partition(".")
    if arch not in ARCHITECTURE_NAMES:
        raise unknown_model(name, [*ARCHITECTURE_NAMES, *DEPRECATED])
    rows = get_arch_pretrained_cfgs(arch)
    if not tag:
        return arch, next(iter(rows.values()), None)
    if name not in rows:
        tags = [row.tag for row in rows.values()]
        similar = suggestion([tag], tags)
        raise UsageError(
            "unknown_tag",
            f"{arch} has no checkpoint {tag!r}",
            hint=f"{similar} known: {', '.join(tags) or 'none'}".strip(),
        )
    return arch, rows[name]


@checked
def get_arch_pretrained_cfgs(model_name: str) -> dict[str, Checkpoint]:
    """Return all checkpoints of an architecture by full name, the default first; empty for an unknown architecture."""
    arch = _text(model_name).partition(".")[0]
    rows = [row for row in CATALOGUE.values() if row.architecture == arch]
    default = DEFAULT_TAGS.get(arch)
    return {row.name: row for row in sorted(rows, key=lambda row: (not row.has_weights, row.tag != default))}


@checked
def get_pretrained_cfg(model_name: str, allow_unregistered: bool = True) -> Checkpoint | None:
    """Return the checkpoint of a name, as `resolve` does.

    allow_unregistered: return None for an unknown architecture, as timm does. Raises UsageError as `resolve` does, and
    `no_weights` for an architecture without checkpoints if allow_unregistered is False.
    """
    if allow_unregistered and not is_model(model_name):
        return None
    row = resolve(model_name)[1]
    if row is None and not allow_unregistered:
        raise UsageError("no_weights", f"{model_name} has no published checkpoint")
    return row


ALTERNATIVES = (  # to missing weights, in Python; the command line names its options instead
    "give checkpoint_path=FILE for your own weights, local-dir:FOLDER as the name of a saved model, "
    "or pretrained=False for random weights"
)


def no_weights(name: str) -> UsageError:
    """Return the error for a model without published weights, with the alternatives as the hint."""
    return UsageError(
        "no_weights",
        f"no weights are published for {name}",
        hint=f"{ALTERNATIVES}; `tessella list --pretrained` names the models that have weights",
    )


@checked
def get_pretrained_cfg_value(model_name: str, cfg_key: str) -> object:
    """Return one field of `get_pretrained_cfg`; None if there is no such field.

    Raises UsageError as `get_pretrained_cfg` does.
    """
    return getattr(get_pretrained_cfg(model_name, allow_unregistered=False), _text(cfg_key), None)


@checked
def is_model(model_name: str) -> bool:
    """Return whether the architecture exists; a tag is ignored."""
    return _text(model_name).partition(".")[0] in ARCHITECTURE_NAMES or model_name in DEPRECATED


@checked
def is_model_pretrained(model_name: str) -> bool:
    """Return whether weights are published for exactly this name, with a tag, or without one for the default."""
    name = _text(model_name)
    try:
        row = resolve(name)[1]
    except UsageError:
        return False
    return row is not None and row.has_weights


def _text(name: str) -> str:
    if not isinstance(name, str):
        raise UsageError("bad_argument", f"expected a name, such as 'mixer_b16_224', not {type(name).__name__}")
    return name


def unknown_model(name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown architecture, with similar names and the supported families."""
    similar = suggestion([name.partition(".")[0]], list(known), most=3, cutoff=0.5)
    return UsageError(
        "unknown_model",
        f"unknown model {name!r}",
        hint=_folder_hint(name)
        or f"{similar} the supported families are {', '.join(MODULES)}; `tessella list` shows all names".strip(),
    )


def _folder_hint(name: str) -> str:
    """Return a hint on how to write a name that is the path of a folder; "" for other names."""
    return f"for the folder write {'local-dir:' + name!r}" if os.path.isdir(name) else ""  # noqa: PTH112 - never raises


def list_modules() -> list[str]:
    """Return timm's names of the modules that define the supported architectures."""
    return sorted(set(MODULES.values()))


@checked
def list_models(
    filter: str | Iterable[str] = "",
    module: str | Iterable[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Return model names in natural order, by timm's rules.

    filter, exclude_filters: one or several shell patterns; a pattern without a tag matches all tags.
    module: one or several of `list_modules()`. pretrained: only names with weights. name_matches_cfg: only names with
    a checkpoint. include_tags: return `arch.tag` names instead of architectures (None: the value of `pretrained`).
    Raises UsageError `bad_argument`.
    """
    modules = _patterns("module", module)
    if unknown := [name for name in modules if name not in list_modules()]:
        raise UsageError("bad_argument", f"module is {unknown[0]!r}, expected one of {', '.join(list_modules())}")
    with_tags = pretrained if include_tags is None else include_tags
    names = [arch for arch in ARCHITECTURE_NAMES if not modules or MODULES[arch.partition("_")[0]] in modules]
    if with_tags:
        names = [full for arch in names for full in (get_arch_pretrained_cfgs(arch) or [arch])]

    def matching(patterns: list[str]) -> set[str]:
        wanted = [p for pattern in patterns for p in ([pattern, f"{pattern}.*"] if with_tags else [pattern])]
        return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)}

    included, excluded = _patterns("filter", filter), _patterns("exclude_filters", exclude_filters)
    selected = (matching(included) if included else set(names)) - matching(excluded)
    if pretrained:
        selected = {name for name in selected if (row := resolve(name)[1]) and row.has_weights}
    if name_matches_cfg:
        selected = {name for name in selected if resolve(name)[1]}
    return sorted(selected, key=_natural)


def _patterns(name: str, value: str | Iterable[str] | None) -> list[str]:
    """Return one or several strings as a list."""
    if not value:
        return []
    patterns = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError("bad_argument", f"{name} is {value!r}, expected one or several strings")
    return patterns


@checked
def list_pretrained(filter: str | Iterable[str] = "", exclude_filters: str | Iterable[str] = "") -> list[str]:
    """Return all `arch.tag` names that have weights; filters as in `list_models`."""
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters)


@functools.cache
def _accuracies() -> dict[str, dict[str, Accuracy]]:
    table: dict[str, dict[str, Accuracy]] = {}
    with (_HERE / "tables" / "published_accuracy.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figures = Accuracy(float(row["top1"]), float(row["top5"]), int(row["img_size"]))
            table.setdefault(row["model"], {})[row["set"]] = figures
    for row in json.loads((BUILTIN_FOLDER / "builtin.json").read_text(encoding="utf-8")):
        table[row["name"]] = {dataset: Accuracy(**figures) for dataset, figures in row.get("accuracy", {}).items()}
    return table


def published_accuracy(name: str) -> dict[str, Accuracy]:
    """Return the published accuracy of a checkpoint by evaluation set; empty if none was published.

    For timm's checkpoints these are timm's figures ("imagenet" is the validation set), for the models in this package
    figures measured on all test images of "cifar10". Raises UsageError as `resolve` does.
    """
    _, row = resolve(name)
    return dict(_accuracies().get(row.name, {})) if row else {}
