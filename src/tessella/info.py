"""What a model is, what it costs and where its weights come from, without reading a single weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .checks import checked
from .data.spec import resolve_data_config
from .weights.catalogue import DEPRECATED, REMAPPED, get_arch_pretrained_cfgs, published_accuracy, resolve
from .weights.costs import Cost, read_costs


@dataclass(frozen=True)
class Paper:
    title: str
    year: int
    arxiv: str  # id


MIXER_PAPER = Paper("MLP-Mixer: An all-MLP Architecture for Vision", 2021, "2105.01601")
FAMILIES: dict[str, tuple[str, tuple[Paper, ...]]] = {  # by the first word of an architecture
    "convmixer": ("ConvMixer", (Paper("Patches Are All You Need?", 2022, "2201.09792"),)),
    "convit": (
        "ConViT",
        (Paper("ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases", 2021, "2103.10697"),),
    ),
    "mixer": ("MLP-Mixer", (MIXER_PAPER,)),
    # no paper of its own: the first paper's model with the second's gates
    "gmixer": ("gMixer", (MIXER_PAPER, Paper("GLU Variants Improve Transformer", 2020, "2002.05202"))),
    "resmlp": (
        "ResMLP",
        (
            Paper(
                "ResMLP: Feedforward networks for image classification with data-efficient training", 2021, "2105.03404"
            ),
        ),
    ),
    "gmlp": ("gMLP", (Paper("Pay Attention to MLPs", 2021, "2105.08050"),)),
    "crossvit": (
        "CrossViT",
        (
            Paper(
                "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification", 2021, "2103.14899"
            ),
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    name: str  # with its tag; a `hf-hub:` or `local-dir:` name as it was given
    architecture: str
    tag: str | None
    tag_is_default: bool  # the name had no tag, so the architecture's default was taken
    family: str
    papers: tuple[Paper, ...]
    cost: Cost  # at input_size
    input_size: tuple[int, int, int]  # channels, height, width
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    embedding_width: int
    sources: tuple[str, ...]  # where the weights come from; empty: none were published
    licence: str | None  # None: not stated
    accuracy: dict[str, dict[str, float]]  # published, by evaluation set: top1 and top5 in per cent, img_size in pixels
    other_tags: tuple[str, ...]  # of the architecture
    notes: tuple[str, ...]  # what is known to be wrong or surprising


@checked
def info(name: str) -> ModelInfo:
    """All that is known about a model by its name, in any of the forms that `create_model` takes.

    No weights are read or made. Raises as `create_model(name)` does: UsageError `unknown_model` or `unknown_tag`, and
    WeightsError for a folder or repository that cannot be used.
    """
    if ":" in name:
        return _info_of_own(name)
    arch, row = resolve(name)
    full = row.name if row else arch
    notes = []
    if name in DEPRECATED:
        other = f"; timm loads {REMAPPED[name]} for it, which are other weights" if name in REMAPPED else ""
        notes.append(f"{name} is an old name for {full}{other}")
    sources = []
    if row and row.file:
        sources.append(f"built in: {row.file}")
    if row and row.hf_hub_id:
        sources.append(f"hf-hub:{row.hf_hub_id}")
    return _collect(
        read_costs()[full],
        row.to_dict() if row else {},
        arch,
        name=full,
        tag_is_default=name == arch and row is not None,
        sources=tuple(sources),
        accuracy={key: figures._asdict() for key, figures in published_accuracy(full).items()},
        other_tags=tuple(other.tag for other in get_arch_pretrained_cfgs(arch).values() if other is not row),
        notes=tuple(notes),
    )


def _info_of_own(name: str) -> ModelInfo:
    """Of a model that is not in the catalogue: it is built, without memory, to count."""
    import torch

    from .models.base import ImageModel
    from .weights.counting import model_facts
    from .weights.factory import create_model

    with torch.device("meta"):
        model = create_model(name)
    assert isinstance(model, ImageModel)  # only features_only gives anything else
    return _collect(model_facts(model), model.pretrained_cfg, model.arch, name=name, sources=(name,))


def _collect(
    facts: Mapping[str, Any],
    cfg: Mapping[str, Any],
    arch: str,
    *,
    name: str,
    sources: tuple[str, ...],
    tag_is_default: bool = False,
    accuracy: dict[str, dict[str, float]] | None = None,
    other_tags: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> ModelInfo:
    """facts: a row of the table of costs; cfg: the checkpoint's config."""
    family, papers = FAMILIES[arch.partition("_")[0]]
    recipe = resolve_data_config(pretrained_cfg=cfg) | dict(input_size=tuple(facts["input_size"]))
    return ModelInfo(
        name=name,
        architecture=arch,
        tag=cfg.get("tag"),
        tag_is_default=tag_is_default,
        family=family,
        papers=papers,
        cost=Cost(**{field: facts[field] for field in Cost.__dataclass_fields__}),
        **recipe,
        num_classes=facts["num_classes"],
        embedding_width=facts["embedding_width"],
        sources=sources,
        licence=cfg.get("license"),
        accuracy=accuracy or {},
        other_tags=other_tags,
        notes=notes + ((cfg["note"],) if cfg.get("note") else ()),
    )


def describe(found: ModelInfo) -> Iterator[tuple[str, str]]:
    """`found` as (label, text) rows for a person to read."""
    cost, (channels, height, width) = found.cost, found.input_size
    default = f" (the default of {found.architecture})" if found.tag_is_default else ""
    yield "model", found.name + default
    yield "family", found.family
    for paper in found.papers:
        yield "paper", f"{paper.title} ({paper.year}), arXiv:{paper.arxiv}"
    yield "parameters", f"{_in_units(cost.params, 1e6)} M"
    yield "cost of an image", _figures(cost.macs, cost.activations)
    yield (
        "as model cards count",
        f"{_figures(cost.card_macs, cost.card_activations)}; with norms, without padding='same' convolutions",
    )
    yield "input", f"{channels} x {height} x {width} (channels, height, width)"
    yield "resize and crop", f"{found.interpolation}, {found.crop_pct:g}, {found.crop_mode}"
    yield "mean", ", ".join(f"{value:g}" for value in found.mean)
    yield "std", ", ".join(f"{value:g}" for value in found.std)
    yield "classes", str(found.num_classes)
    yield "embedding", f"{found.embedding_width} numbers"
    yield "weights", ", ".join(found.sources) or "none published"
    yield "licence", found.licence or "not stated"
    for dataset, figures in found.accuracy.items():
        yield (
            f"accuracy, {dataset}",
            f"{figures['top1']:.2f} % top-1, {figures['top5']:.2f} % top-5 at {figures['img_size']:g} px",
        )
    if found.other_tags:
        yield "other tags", ", ".join(found.other_tags)
    for note in found.notes:
        yield "note", note


def _figures(macs: int, activations: int) -> str:
    return f"{_in_units(macs, 1e9)} GMACs, {_in_units(activations, 1e6)} M activations"


def _in_units(count: int, unit: float) -> str:
    """One decimal, as model cards have it; two digits below 1."""
    return f"{count / unit:.1f}" if count >= unit else f"{count / unit:.2g}"
