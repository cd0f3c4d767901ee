"""What the card of a checkpoint of the catalog says: published figures, origin, licenses, and known errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..text import escape_line
from ..weights.card_text import (
    CardFacts,
    Section,
    citation,
    markdown_table,
    paper_lines,
    preprocessing,
    stats,
    usage,
)
from ..weights.catalogue import BUILTIN_FOLDER, OWN_ARCHITECTURES, Checkpoint, published_accuracy
from ..weights.costs import in_units, read_costs
from ..weights.origins import FAMILIES, Origin, known_errors, origin_of
from .calibrated import calibration_text, read_calibration_beside
from .comparison import MACHINES, SETS, Machine, ModelRow, compare_models

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_RESULTS_URL = "https://github.com/huggingface/pytorch-image-models/tree/main/results"
_HUB_SETS = {  # test set: (name of the data set on the Hub, split)
    "imagenet": ("imagenet-1k", "validation"),
    "imagenetv2-matched-frequency": ("imagenetv2", "matched-frequency"),
    "sketch": ("imagenet_sketch", "train"),
    "imagenet-a": ("imagenet-a", "test"),
    "imagenet-r": ("imagenet-r", "test"),
    "cifar10": ("cifar10", "test"),
}
_SET_NAMES = {
    **{key: f"ImageNet-{name}" for key, name in SETS.items()},
    "imagenet": "ImageNet-1k",
    "imagenet-real": "ImageNet ReaL",
    "imagenetv2-matched-frequency": "ImageNetV2 matched frequency",
    "cifar10": "CIFAR-10",
}
_DATA_NAMES = {
    "imagenet-1k": "ImageNet-1k",
    "imagenet-21k": "ImageNet-21k",
    "imagenet-21k-p": "ImageNet-21K-P",
    "imagenet-22k": "ImageNet-22k",
    "cifar10": "CIFAR-10",
}
_DATA_TERMS = {  # by the start of a data set's name
    "imagenet": "The terms of ImageNet allow non-commercial research and education; whether they extend to weights "
    "that were trained on it is not settled.",
    "cifar10": "CIFAR-10 states no license.",
}


def published_facts(checkpoint: Checkpoint) -> CardFacts:
    """Return what the card of a checkpoint says."""
    arch, name = checkpoint.architecture, checkpoint.name
    family, papers = FAMILIES[arch.partition("_")[0]]
    origin, facts, row = origin_of(checkpoint), read_costs()[name], checkpoint.to_dict()
    in_timm = arch not in OWN_ARCHITECTURES
    classifies = not checkpoint.class_warning
    return CardFacts(
        title=name,
        summary=f"{_with_article(family)} image classification model, {origin.trained}."
        if checkpoint.has_weights
        else f"{_with_article(family)} architecture; no weights are published for it, so it starts from random ones.",
        license=checkpoint.license,
        datasets=origin.data,
        results=list(_results(name, in_timm)),
        details=[
            ("Model type", "image classification / feature backbone"),
            ("Model stats", stats(facts)),
            ("Embedding", f"{facts['embedding_width']} dimensions"),
            ("Classes", _classes(checkpoint)),
            ("Preprocessing", preprocessing(row)),
            ("Papers", paper_lines((*papers, *origin.methods))),
            *([("Original", origin.source.url)] if origin.source else []),
            *([("Training data", ", ".join(_DATA_NAMES[name] for name in origin.data))] if origin.data else []),
            ("Weights", _weights(checkpoint)),
        ],
        sections=[
            *_sections(checkpoint, origin, classifies=classifies),
            citation((*papers, *origin.methods), timm=in_timm),
        ],
        timm=in_timm,
        classifies=classifies,
    )


def _sections(checkpoint: Checkpoint, origin: Origin, *, classifies: bool) -> Iterator[Section]:
    name = checkpoint.name
    if checkpoint.has_weights:
        in_timm = checkpoint.architecture not in OWN_ARCHITECTURES
        yield usage(name, timm=name if in_timm else None, classifies=classifies, labels=checkpoint.num_classes)
    else:
        yield Section(
            heading="Model usage",
            text=f'```python\nimport tessella\n\nmodel = tessella.create_model("{name}")  # random weights\n```\n\n'
            "`tessella train DATA -m NAME --scratch` trains it.",
        )
    if accuracy := _accuracy(checkpoint):
        yield Section(heading="Accuracy", text=accuracy)
    if not checkpoint.file or published_accuracy(name):
        yield Section(heading="Comparison", text=_comparison(checkpoint))
    if checkpoint.has_weights:
        yield Section(heading="Calibration and limits", text=_limits(checkpoint))
    if errors := known_errors(checkpoint):
        yield Section(heading="Known errors", text="\n".join(f"- {escape_line(error)}" for error in errors))
    yield Section(heading="Licenses", text=_licenses(checkpoint, origin))
    if record := _record(name):
        yield Section(heading="Measured by this project", text=record)


def _with_article(family: str) -> str:
    return f"An {family}" if family.startswith("M") else f"A {family}"  # an em-el-pee


def _classes(checkpoint: Checkpoint) -> str:
    labels = checkpoint.label_names
    names = f": {', '.join(map(escape_line, labels))}" if labels and len(labels) <= 20 else ""
    known = {1000: " of ImageNet-1k", 21843: " of ImageNet-21k", 11221: " of ImageNet-21K-P"}
    return f"{checkpoint.num_classes:,}{names or known.get(checkpoint.num_classes, '')}"


def _weights(checkpoint: Checkpoint) -> str:
    if checkpoint.file:
        return "part of the Tessella package"
    return f"https://huggingface.co/{checkpoint.hf_hub_id}" if checkpoint.hf_hub_id else "none published"


def _results(name: str, in_timm: bool) -> Iterator[EvalResult]:
    """Yield the accuracies in the form of the Hub's own table, the published ones with their source."""
    from huggingface_hub import EvalResult

    for key, accuracy in published_accuracy(name).items():
        if key not in _HUB_SETS:
            continue  # ReaL has the images of ImageNet-1k, and the Hub knows one result per data set
        dataset, split = _HUB_SETS[key]
        for metric, value in (("Top-1 accuracy (%)", accuracy.top1), ("Top-5 accuracy (%)", accuracy.top5)):
            yield EvalResult(
                task_type="image-classification",
                dataset_type=dataset,
                dataset_name=_SET_NAMES[key],
                dataset_split=split,
                metric_type="accuracy",
                metric_name=metric,
                metric_value=value,
                source_name="results of timm" if in_timm else None,
                source_url=_RESULTS_URL if in_timm else None,
            )


def _accuracy(checkpoint: Checkpoint) -> str:
    figures = published_accuracy(checkpoint.name)
    shown = [key for key in (*SETS, "cifar10") if key in figures]
    if not shown:
        return "No accuracy is published for these weights." if checkpoint.hf_hub_id else ""
    rows = [
        (_SET_NAMES[key], f"{figures[key].top1:.2f}", f"{figures[key].top5:.2f}", f"{figures[key].img_size} px")
        for key in shown
    ]
    how = (
        "Measured by this project on all test images."
        if checkpoint.file
        else f"Published by timm ([results]({_RESULTS_URL})), not measured again by this project. "
        "`tessella evaluate` measures it on your copy of a test set."
    )
    return f"{how}\n\n{markdown_table(('test set', 'top-1 %', 'top-5 %', 'image size'), rows)}"


def _comparison(checkpoint: Checkpoint) -> str:
    """Return the checkpoints of the family; those of this project are compared with each other."""
    word, own = checkpoint.architecture.partition("_")[0], checkpoint.file is not None
    rows = compare_models(["cifar10"] if own else [f"{word}_*"], sort="accuracy")
    rows = [row for row in rows if row.name == checkpoint.name or (row.top1 and (row.weights == "built in") == own)]
    shown: Sequence[Machine] = [machine for machine in MACHINES if any(row.speed(machine) for row in rows)]
    sets = [key for key in SETS if any(key in row.accuracy for row in rows)]
    names = [SETS[key] for key in sets] or ["CIFAR-10"]
    header = ("model", "params (M)", "GMACs", "activations (M)", "px", *(f"{name} top-1 %" for name in names))
    header += tuple(f"images/s, {MACHINES[machine][0]}" for machine in shown)
    table = markdown_table(header, (_comparison_cells(row, checkpoint.name, sets, shown) for row in rows))
    conditions = "; ".join(f"{MACHINES[machine][0]}: {MACHINES[machine][1]}" for machine in shown)
    speeds = f" Speeds: {conditions}. Compare the speeds of one column only." if shown else ""
    return (
        f"{table}\n\nGMACs count all products, those of attention included.{speeds} `tessella list --compare` has all."
    )


def _comparison_cells(row: ModelRow, this: str, sets: Sequence[str], machines: Sequence[Machine]) -> tuple[str, ...]:
    accuracies = [row.accuracy.get(key) for key in sets] or [row.top1]
    speeds = [row.speed(machine) for machine in machines]
    return (
        f"**{row.name}**" if row.name == this else row.name,
        in_units(row.params, 1e6),
        in_units(row.macs, 1e9),
        in_units(row.activations, 1e6),
        str(row.size),
        *("" if value is None else f"{value:.2f}" for value in accuracies),
        *("" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in speeds),
    )


def _limits(checkpoint: Checkpoint) -> str:
    calibration = read_calibration_beside(BUILTIN_FOLDER / checkpoint.file) if checkpoint.file else None
    lines = [
        calibration_text(calibration)
        if calibration
        else "The calibration of these weights was not measured, so a probability of 90 % need not be right in nine of "
        "ten cases. Calibrate the model on images of your own before you rely on a threshold.",
        f"It knows {_classes(checkpoint)} and, {'without the calibration, ' if calibration else ''}answers with one of "
        "them for every image, whatever the image shows."
        if checkpoint.num_classes < 1000
        else "It answers with one of its classes for every image, whatever the image shows; each image is assumed to "
        "have one subject.",
        f"Images are resized and cropped to {checkpoint.input_size[2]} x {checkpoint.input_size[1]} pixels, so small "
        "subjects and those at the edge are lost.",
    ]
    return "\n\n".join(lines)


def _licenses(checkpoint: Checkpoint, origin: Origin) -> str:
    lines = ["- Code: Tessella is Apache-2.0."]
    if origin.source:
        stated = origin.source.code_license or "see its repository"
        lines[0] += f" The original code, {origin.source.url}: {stated}."
    if checkpoint.has_weights:
        lines.append(f"- Weights: {checkpoint.license}, as {'this project' if checkpoint.file else 'timm'} states.")
    terms = [text for start, text in _DATA_TERMS.items() if any(name.startswith(start) for name in origin.data)]
    if checkpoint.tag == "photographs":
        terms.append("The other images are CC0, public domain or MIT, as the table below says.")
    if terms:
        lines.append(f"- Training data: {' '.join(terms)}")
    return "\n".join(lines)


def _record(name: str) -> str:
    """Return the record of how a built-in model was trained and measured, without its title; "" for other models."""
    path = BUILTIN_FOLDER / f"{name}.md"
    if not path.is_file():
        return ""
    _, _, body = path.read_text(encoding="utf-8").partition("\n")
    return body.strip().replace("\n## ", "\n### ")
