"""Write the results of a finished run: the model with a card, and a report on the validation images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from ..data.datasets import LabelledImages
from ..engine import make_plan
from ..errors import OutputError
from ..evaluation.evaluator import Evaluation, measure
from ..evaluation.markdown import percent
from ..evaluation.report import ReportHeader, write_report
from ..models.base import ImageModel
from ..predictor import Predictor
from ..storage import write_atomic
from ..text import escape
from ..weights.save import model_card, save_pretrained
from . import checkpoint
from .config import TrainConfig
from .events import PROBE_EPOCH
from .metrics_log import ParsedRow
from .model import build_model


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run whose last epoch is done.

    initial: the model that training started from. checkpoint_id, epoch: the selected weights, epoch -1 for the linear
    probe. epochs: the rows of metrics.jsonl about epochs. probe_top1: accuracy of the probe, from 0 to 1, if there was
    one. command: the command line that repeats the run.
    """

    folder: Path
    config: TrainConfig
    images: LabelledImages
    initial: ImageModel
    checkpoint_id: int
    epoch: int
    epochs: list[ParsedRow]
    probe_top1: float | None
    command: str


def write_results(run: FinishedRun) -> None:
    """Write the selected weights as a model folder, with a card and a report; raises OutputError `output_failed`."""
    model = _selected_model(run)
    save_pretrained(model, run.folder)
    plan = make_plan(engine="eager", precision="float32")
    evaluation = measure(Predictor(model, name=f"local-dir:{run.folder}", plan=plan), run.images)
    assert evaluation.metrics is not None
    config = json.loads((run.folder / "config.json").read_text())
    card = model_card(model, config) + _training_section(run, evaluation)
    path = run.folder / "README.md"
    try:
        write_atomic(path, card.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError("output_failed", f"{path} could not be written: {error.strerror}") from error
    header = ReportHeader(
        title=f"{run.folder.name}: {run.config.model}, {len(run.epochs)} epochs",
        command=run.command,
        conditions=evaluation.conditions,
        notes=_notes(run),
    )
    write_report(
        run.folder / "report",
        evaluation.metrics,
        header,
        answers=evaluation.answers,
        images=run.images,
        failed=evaluation.failed,
        history=run.epochs,
    )


def _selected_model(run: FinishedRun) -> ImageModel:
    """Return the model with the weights of the selected checkpoint, the averaged ones if there are any."""
    saved = checkpoint.read(run.folder, run.checkpoint_id)
    model, spec = build_model(dataclasses.replace(run.config, init_from="scratch"), run.images.classes)
    model.load_state_dict(saved.tensors.get("ema", saved.tensors["model"]))
    classes = dict(label_names=run.images.classes, num_classes=len(run.images.classes))
    model.pretrained_cfg = {**run.initial.pretrained_cfg, **spec.to_cfg(), **classes}
    for name in ("tag", "label_descriptions"):  # these describe the weights that training started from
        model.pretrained_cfg.pop(name, None)
    return model.eval()


def _notes(run: FinishedRun) -> list[str]:
    source = f"epoch {run.epoch + 1} of {len(run.epochs)}"
    if run.config.ema_decay:
        source += ", averaged"
    if run.epoch == PROBE_EPOCH:
        source = "the linear probe"
    notes = [f"Weights: {source}. The images of this report were not used for training."]
    if run.probe_top1 is not None:
        notes.append(f"Linear probe before fine-tuning: {percent(run.probe_top1)}.")
    return notes


def _training_section(run: FinishedRun, evaluation: Evaluation) -> str:
    """Return the section of the model card about training."""
    metrics = evaluation.metrics
    assert metrics is not None
    top5 = "" if metrics.top5 is None else f", top-5 {percent(metrics.top5)}"
    figures = f"top-1 {percent(metrics.top1)}{top5} on {metrics.count:,} images of {escape(run.images.origin)}"
    hours = sum(row["seconds"] for row in run.epochs) / 3600
    return f"""
## Training

Measured at the end of the run: {figures}; [report](report/report.md).

    {escape(run.command)}

{len(run.epochs)} epochs in {hours:.2f} hours on {evaluation.conditions["hardware"]}, PyTorch {torch.__version__}; every
setting is in [train.json](train.json), every epoch in [metrics.jsonl](metrics.jsonl).
"""
