"""Describe a model by its name: architecture, cost and source of the weights, without reading the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from .checks import checked
from .data.spec import resolve_data_config
from .models.configs import configure
from .weights.catalogue import (
    DEPRECATED,
    REMAPPED,
    PretrainedCfg,
    get_arch_pretrained_cfgs,
    published_accuracy,
    resolve,
)
from .weights.costs import Cost, ModelFacts, in_units, read_costs
from .weights.estimate import estimate
from .weights.origins import FAMILIES, Paper
from .weights.sources import default_args, describe_checkpoint, find_checkpoint


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Facts about a model. The fields with defaults are known for models of the catalog only."""

    name: str  # with its tag; `hf-hub:` and `local-dir:` names are unchanged
    architecture: str
    tag: str | None
    tag_is_default: bool = False  # the given name had no tag, so this is the architecture's default
    family: str
    papers: tuple[Paper, ...]
    cost: Cost  # of one image of input_size
    input_size: tuple[int, int, int]  # channels, height, width
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    embedding_width: int
    sources: tuple[str, ...]  # of the weights; empty if none were published
    licence: str | None  # None if not stated
    # published, by evaluation set: top1 and top5 in per cent, img_size in pixels
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    other_tags: tuple[str, ...] = ()  # of the architecture
    notes: tuple[str, ...] = ()  # known errors and surprises


@checked
def info(name: str) -> ModelInfo:
    """Return the facts about a model, by its name in any form that `create_model` accepts.

    No weights are read or allocated. Raises the errors of `create_model(name)`: UsageError `unknown_model` or
    `unknown_tag`, and WeightsError for a folder or repository that cannot be used.
    """
    if ":" in name:
        return _inspect(name)
    arch, row = resolve(name)
    full = row.name if row else arch
    notes = []
    if name in DEPRECATED:
        other = f"; timm loads {REMAPPED[name]} instead, which has different weights" if name in REMAPPED else ""
        notes.append(f"{name} is an old name for {full}{other}")
    sources = []
    if row and row.file:
        sources.append(f"built in: {row.file}")
    if row and row.hf_hub_id:
        sources.append(f"hf-hub:{row.hf_hub_id}")
    facts = _combine(full, arch, read_costs()[full], row.to_dict() if row else {}, tuple(sources))
    return dataclasses.replace(
        facts,
        tag_is_default=name == arch and row is not None,
        accuracy={key: figures._asdict() for key, figures in published_accuracy(full).items()},
        other_tags=tuple(other.tag for other in get_arch_pretrained_cfgs(arch).values() if other is not row),
        notes=(*notes, *facts.notes),
    )


def _inspect(name: str) -> ModelInfo:
    """Describe a model that is not in the catalog by its config."""
    cfg, args = find_checkpoint(name)
    arch = cfg["architecture"]
    config = configure(arch, **{**default_args(cfg), **args})
    height, width = cfg.get("input_size", (3, 224, 224))[1:]
    return _combine(name, arch, estimate(config, (height, width)), describe_checkpoint(cfg, config), (name,))


def _combine(name: str, arch: str, facts: ModelFacts, cfg: PretrainedCfg, sources: tuple[str, ...]) -> ModelInfo:
    """Return the ModelInfo from a row of the table of costs and the checkpoint's config."""
    family, papers = FAMILIES[arch.partition("_")[0]]
    channels, height, width = facts["input_size"]
    recipe: PretrainedCfg = {**resolve_data_config(pretrained_cfg=cfg), "input_size": (channels, height, width)}
    return ModelInfo(
        name=name,
        architecture=arch,
        tag=cfg.get("tag"),
        family=family,
        papers=papers,
        cost=Cost(
            params=facts["params"],
            macs=facts["macs"],
            activations=facts["activations"],
            card_macs=facts["card_macs"],
            card_activations=facts["card_activations"],
        ),
        **recipe,
        num_classes=facts["num_classes"],
        embedding_width=facts["embedding_width"],
        sources=sources,
        licence=cfg.get("license"),
        notes=tuple(text for key in ("note", "class_warning") if (text := cfg.get(key))),
    )


def describe(model: ModelInfo) -> Iterator[tuple[str, str]]:
    """Yield the facts as (label, text) rows for display."""
    cost, (channels, height, width) = model.cost, model.input_size
    default = f" (the default of {model.architecture})" if model.tag_is_default else ""
    yield "model", model.name + default
    yield "family", model.family
    for paper in model.papers:
        yield "paper", f"{paper.title} ({paper.year}), arXiv:{paper.arxiv}"
    yield "parameters", f"{in_units(cost.params, 1e6)} M"
    yield "cost per image", _figures(cost.macs, cost.activations)
    yield (
        "cost on model cards",
        f"{_figures(cost.card_macs, cost.card_activations)}; with norms, without padding='same' convolutions",
    )
    yield "input", f"{channels} x {height} x {width} (channels, height, width)"
    yield "resize and crop", f"{model.interpolation}, {model.crop_pct:g}, {model.crop_mode}"
    yield "mean", ", ".join(f"{value:g}" for value in model.mean)
    yield "std", ", ".join(f"{value:g}" for value in model.std)
    yield "classes", str(model.num_classes)
    yield "embedding", f"{model.embedding_width} dimensions"
    yield "weights", ", ".join(model.sources) or "none published"
    yield "license", model.licence or "not stated"
    for dataset, figures in model.accuracy.items():
        yield (
            f"accuracy, {dataset}",
            f"{figures['top1']:.2f} % top-1, {figures['top5']:.2f} % top-5 at {figures['img_size']:g} px",
        )
    if model.other_tags:
        yield "other tags", ", ".join(model.other_tags)
    for note in model.notes:
        yield "note", note


def _figures(macs: int, activations: int) -> str:
    return f"{in_units(macs, 1e9)} GMACs, {in_units(activations, 1e6)} M activations"
