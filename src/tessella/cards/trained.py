"""What the card of a model folder says beyond its config: how the model was trained, measured and calibrated.

Everything comes from files of the folder: report/report.json, README.md, whose section about training `tessella
train` wrote, and calibration.safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..bulk.run_folder import INDEX_SEAL, RUN, model_of
from ..engine.exported import is_exported
from ..errors import UsageError
from ..models.configs import configure
from ..storage import read_regular
from ..text import escape_line, printable, without_folders
from ..weights.card_text import THIS_FOLDER, CardFacts, Section, markdown_table, saved_facts
from ..weights.fetch import CONFIG
from ..weights.sources import default_args, find_checkpoint
from .calibrated import calibration_text, read_calibration_beside

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ..calibration.calibration import Calibration

REPORT, CARD, SETTINGS = "report/report.json", "README.md", "train.json"
_TRAINING = re.compile(r"^## Training\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_FIGURES = {  # of report.json: (label, the figure is a fraction)
    "top1": ("top-1 accuracy", True),
    "top5": ("top-5 accuracy", True),
    "ece": ("expected calibration error, 15 bins", True),
    "loss": ("negative log-likelihood", False),
    "f1": ("F1, macro average", True),
}


def folder_facts(folder: Path) -> CardFacts:
    """Return what the card of a model folder says.

    Raises WeightsError `bad_config` and the other errors of a config that cannot be read, UsageError `bad_argument` for
    a folder of Tessella that is not a model folder: an export, a run, an index, or a training run without a model.
    """
    _refuse_other_folders(folder)
    facts, report = config_facts(f"local-dir:{folder}"), read_report(folder)
    calibration = read_calibration_beside(folder)
    link = f"; [report]({REPORT.replace('json', 'md')})"
    more = [*_training(folder), *_evaluation(report, calibration is not None, link)]
    return _completed(facts, folder.resolve().name, more, report, calibration)


def _refuse_other_folders(folder: Path) -> None:
    """Raise UsageError `bad_argument` for a folder of Tessella that has no card, with what has one."""
    if is_exported(folder):
        found, hint = "an exported model", "write the card of the model that it was exported from"
    elif (folder / CONFIG).exists():
        return
    elif (folder / RUN).exists():
        found, hint = "the output of `tessella run`", "write the card of the model of the run"
        if model := model_of(folder):
            hint += f": tessella card {shlex.quote(model)}"
    elif (folder / INDEX_SEAL).exists():
        found, hint = "an index", "give the name or the folder of a model"
    elif (folder / SETTINGS).exists():
        found, hint = "a training run without a model", "finish the training: it writes the card at its end"
    else:
        return
    raise UsageError("bad_argument", f"{str(folder)!r} is {found}, which has no card", hint=hint)


def uploaded_facts(folder: Path, repository: str, shown: str, report: Mapping[str, object]) -> CardFacts:
    """Return what the card says about a folder that is uploaded to a repository on the Hub.

    shown: the name of the model in the examples. report: of exactly this model, as `read_report`. The card has the
    figures of the report and no links to its files, which are not uploaded. Raises the errors of `folder_facts`.
    """
    facts = _config_facts(f"local-dir:{folder}", shown)
    conditions = {key: without_folders(str(value)) for key, value in _conditions(report).items()}
    report = {**report, "conditions": conditions} if report else {}
    name, calibration = repository.rpartition("/")[2], read_calibration_beside(folder)
    return _completed(facts, name, list(_evaluation(report, calibration is not None)), report, calibration)


def _completed(
    facts: CardFacts,
    name: str,
    more: Sequence[Section],
    report: Mapping[str, object],
    calibration: Calibration | None,
) -> CardFacts:
    """Return the facts of a config with more sections, limits and measured results; name: of a model without a tag."""
    usage, *others = facts.sections
    return dataclasses.replace(
        facts,
        title=name if not facts.title.partition(".")[2] and report else facts.title,
        sections=[usage, *more, *_limits(facts, report, calibration), *others],
        results=list(_results(report)),
    )


def config_facts(name: str) -> CardFacts:
    """Return what the config of a `local-dir:` or `hf-hub:` model says; raises the errors of `create_model`."""
    return _config_facts(name, THIS_FOLDER if name.startswith("local-dir:") else name)


def _config_facts(name: str, shown: str) -> CardFacts:
    """Return what the config of a model says. shown: its name in the examples."""
    cfg, args = find_checkpoint(name)
    arch = cfg["architecture"]
    return saved_facts(arch, configure(arch, **{**default_args(cfg), **args}), cfg, shown)


def read_report(folder: Path) -> Mapping[str, object]:
    """Return the report of a trained model; empty if there is none, or none that can be read."""
    try:
        report = json.loads(read_regular(folder / REPORT))
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) and isinstance(report.get("metrics"), dict) else {}


def _metrics(report: Mapping[str, object]) -> Mapping[str, object]:
    metrics = report.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _conditions(report: Mapping[str, object]) -> Mapping[str, object]:
    conditions = report.get("conditions")
    return conditions if isinstance(conditions, dict) else {}


def _training(folder: Path) -> Iterator[Section]:
    """Yield the section that `tessella train` wrote; a short one if the card of a trained model was removed."""
    if not (folder / SETTINGS).is_file():
        return
    try:
        found = _TRAINING.search(read_regular(folder / CARD).decode("utf-8", "replace"))
    except OSError:
        found = None
    text = found[1] if found else "Trained by `tessella train`; every setting is in [train.json](train.json)."
    # people also read cards in a terminal; tab stops of Markdown are 4 columns apart
    text = "\n".join(printable(line.expandtabs(4)) for line in text.split("\n"))
    yield Section(heading="Training", text=text)


def _evaluation(report: Mapping[str, object], calibrated: bool, link: str = "") -> Iterator[Section]:
    """Yield the measured figures and their conditions.

    calibrated: whether the model has a calibration, which is made after the report. link: Markdown that refers to the
    report.
    """
    metrics, conditions = _metrics(report), _conditions(report)
    rows = []
    for key, (label, is_fraction) in _FIGURES.items():
        value = metrics.get(key)
        if isinstance(value, int | float):
            label += ", before calibration" if calibrated and key == "ece" else ""
            rows.append((label, f"{100 * value:.2f} %" if is_fraction else f"{value:.4f}"))
    if not rows:
        return
    count = metrics.get("count")
    images = f"{count:,} images" if isinstance(count, int) else "the images"
    lines = [
        f"Measured on {images} of {escape_line(conditions.get('data', 'the validation split'))}, which were not used "
        f"for training{link}.",
        "",
        markdown_table(("figure", "value"), rows),
    ]
    if worst := _worst_classes(metrics):
        lines += ["", f"The classes that are recognized worst: {worst}."]
    shown = ("engine", "precision", "hardware", "threads", "versions", "date", "fingerprint", "data fingerprint")
    facts = "; ".join(f"{key} {escape_line(conditions[key])}" for key in shown if key in conditions)
    yield Section(heading="Evaluation", text="\n".join([*lines, "", f"Conditions: {facts}."] if facts else lines))


def _worst_classes(metrics: Mapping[str, object], most: int = 5) -> str:
    """Return the classes with the lowest recall, those below the average only; "" if there are none."""
    classes = metrics.get("per_class")
    rows: list[tuple[float, str]] = []
    for row in classes if isinstance(classes, list) else ():
        recall = row.get("recall") if isinstance(row, dict) else None
        if isinstance(recall, int | float) and row.get("count"):
            rows.append((float(recall), f"{escape_line(row.get('label'))} ({100 * recall:.1f} % of its images)"))
    average = sum(recall for recall, _ in rows) / max(len(rows), 1)
    return ", ".join(text for recall, text in sorted(rows)[:most] if recall < average)


def _limits(facts: CardFacts, report: Mapping[str, object], calibration: Calibration | None) -> Iterator[Section]:
    error = _metrics(report).get("ece")
    measured = (
        f" The expected calibration error was {100 * error:.1f} % when it was measured."
        if isinstance(error, int | float)
        else ""
    )
    lines = [calibration_text(calibration) if calibration else f"The probabilities are not calibrated.{measured}"]
    if facts.classifies:
        subject = "Without the calibration, the model" if calibration else "The model"
        lines.append(f"{subject} answers with one of its classes for every image, whatever the image shows.")
    lines.append("Figures hold for images like those that were measured; other cameras and places may differ.")
    yield Section(heading="Calibration and limits", text="\n\n".join(lines))


def _results(report: Mapping[str, object]) -> Iterator[EvalResult]:
    """Yield the measured accuracies in the form of the Hub's own table."""
    from huggingface_hub import EvalResult

    metrics, conditions = _metrics(report), _conditions(report)
    data = " ".join(str(conditions.get("data", "validation images")).split())
    for key, name in (("top1", "Top-1 accuracy (%)"), ("top5", "Top-5 accuracy (%)")):
        value = metrics.get(key)
        if isinstance(value, int | float):
            yield EvalResult(
                task_type="image-classification",
                dataset_type="imagefolder",
                dataset_name=data,
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(100 * value, 3),
            )
