"""Write the results of a finished run: the model with a card, and a report on the validation images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from ..calibration.finding import beside
from ..calibration.fitting import MIN_IMAGES, CalibrationSettings
from ..calibration.storage import read_calibration, write_calibration
from ..cards.writer import card
from ..data.unlabelled import TrainingImages
from ..engine import make_plan
from ..errors import TessellaError, UsageError
from ..evaluation.calibrator import measure_calibration
from ..evaluation.evaluator import Evaluation, measure
from ..evaluation.markdown import percent
from ..evaluation.report import ReportHeader, write_report
from ..fingerprint import hash_identity
from ..machine import hardware
from ..models.base import ImageModel
from ..predictor import Predictor
from ..storage import remove_file, write_bytes
from ..text import count_of, encode_text, escape
from ..weights.save import model_card, save_pretrained
from . import checkpoint
from .config import TrainConfig
from .distillation import Distillation
from .distributed import DistributedContext
from .events import PROBE_EPOCH
from .head import HeadSettings, fit_head
from .metrics_log import ParsedRow
from .model import build_model


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run whose last epoch is done.

    classes: the classes of the model. distillation: the teacher, if there was one. initial: the model that training
    started from. checkpoint_id, epoch: the selected weights, epoch -1 for the linear
    probe. epochs: the rows of metrics.jsonl about epochs. probe_top1: accuracy of the probe, from 0 to 1, if there was
    one. command: the command line that repeats the run.
    """

    folder: Path
    config: TrainConfig
    images: TrainingImages
    classes: tuple[str, ...]
    distillation: Distillation | None
    initial: ImageModel
    checkpoint_id: int
    epoch: int
    epochs: list[ParsedRow]
    probe_top1: float | None
    command: str


def write_results(run: FinishedRun) -> str:
    """Write the selected weights as a model folder, with a calibration, a card and a report.

    Returns a sentence about the calibration. One that the user made of these weights is kept. There is no report on a
    student with the classes of its teacher, because the images have no labels for them. Raises OutputError
    `output_failed`.
    """
    model = _selected_model(run)
    plan = make_plan(engine="eager", precision="float32")
    predictor = Predictor(model, name=f"local-dir:{run.folder}", plan=plan)
    kept = _kept_calibration(run, predictor)
    if not kept:
        remove_file(beside(run.folder))  # of weights that are replaced now
    save_pretrained(model, run.folder)
    if run.classes != run.images.train.classes:
        _write_card(run, model, _agreement(run), hardware("cpu"))
        return kept or "not calibrated: the images have no labels for the classes of the teacher"
    evaluation = measure(predictor, run.images.val)
    assert evaluation.metrics is not None
    calibration = kept or _calibrate(run, predictor)
    figures = f"{_figures(run, evaluation)}\n{escape(calibration[0].upper() + calibration[1:])}."
    _write_card(run, model, figures, evaluation.conditions["hardware"])
    header = ReportHeader(
        title=f"{run.folder.name}: {run.config.model}, {len(run.epochs)} epochs",
        command=run.command,
        conditions=evaluation.conditions,
        notes=[*_notes(run), f"The figures are for the plain softmax; {calibration}."],
    )
    write_report(
        run.folder / "report",
        evaluation.metrics,
        header,
        answers=evaluation.answers,
        images=run.images.val,
        failed=evaluation.failed,
        history=run.epochs,
    )
    write_bytes(run.folder / "README.md", encode_text(card(run.folder)))  # now with the figures of the report
    return calibration


def _kept_calibration(run: FinishedRun, predictor: Predictor) -> str:
    """Return a sentence about the user's own calibration of the weights that are written, "" if there is none.

    A calibration with the validation images of the run may be that of the run itself, and is made again.
    """
    path = beside(run.folder)
    if not path.is_file():
        return ""
    try:
        own = read_calibration(path)
    except TessellaError:  # a damaged file is replaced
        return ""
    settings = dict(policy=own.policy, transform=own.transform, precision=own.precision)
    is_of_these_weights = own.fingerprint == hash_identity(predictor.identity, **settings)
    if not is_of_these_weights or own.data.fingerprint == run.images.val.fingerprint:
        return ""
    return f"the calibration of these weights with {count_of(own.data.images, 'image')} is kept"


def _calibrate(run: FinishedRun, predictor: Predictor) -> str:
    """Calibrate the model on the validation images, and return a sentence about it.

    These images have chosen the epoch, so its figures may be slightly too good. Raises OutputError `output_failed`.
    """
    if not run.config.calibrate:
        return "not calibrated, because calibrate is false in the config"
    if len(run.images.val) < MIN_IMAGES:
        return (
            f"not calibrated: there are {len(run.images.val)} validation images, and at least {MIN_IMAGES} are needed"
        )
    try:
        report = measure_calibration(predictor, run.images.val, CalibrationSettings(seed=run.config.seed))
    except UsageError as error:  # too many images could not be read
        return f"not calibrated: {error.message}"
    write_calibration(beside(run.folder), report.calibration)
    figures = report.figures
    selected = "" if run.config.select == "last" else ", which also chose the epoch"
    errors = f"calibration error {percent(figures.ece_before)} before, {percent(figures.ece_after)} after"
    return f"calibrated on {figures.images:,} validation images{selected}: {errors}"


def _write_card(run: FinishedRun, model: ImageModel, figures: str, hardware_name: str) -> None:
    """Write README.md. figures: a paragraph about what was measured."""
    config = json.loads((run.folder / "config.json").read_text())
    text = model_card(model, config) + _training_section(run, figures, hardware_name)
    write_bytes(run.folder / "README.md", encode_text(text))


def _selected_model(run: FinishedRun) -> ImageModel:
    """Return the model with the weights of the selected checkpoint, the averaged ones if there are any."""
    saved = checkpoint.read(run.folder, run.checkpoint_id)
    model, spec = build_model(dataclasses.replace(run.config, init_from="scratch"), run.classes)
    model.load_state_dict(saved.tensors.get("ema", saved.tensors["model"]))
    if fits_classifier(run.config):
        settings = HeadSettings(run.config.batch_size, 0, run.config.seed)
        fit_head(model.eval(), spec, run.images.train, DistributedContext(), settings)
    classes = dict(label_names=run.classes, num_classes=len(run.classes))
    model.pretrained_cfg = {**run.initial.pretrained_cfg, **spec.to_cfg(), **classes}
    for name in ("tag", "label_descriptions"):  # these describe the weights that training started from
        model.pretrained_cfg.pop(name, None)
    return model.eval()


def fits_classifier(config: TrainConfig) -> bool:
    """Return whether only the embedding is trained, so that the classifier is fitted on it at the end."""
    return not config.uses_labels and not config.distills_logits


def _notes(run: FinishedRun) -> list[str]:
    source = f"epoch {run.epoch} of epochs 0 to {run.config.epochs - 1}"  # counted as in metrics.jsonl
    if run.config.ema_decay:
        source += ", averaged"
    if run.epoch == PROBE_EPOCH:
        source = "the linear probe"
    notes = [f"Weights: {source}. The images of this report were not used for training."]
    if fits_classifier(run.config):
        notes.append("The classifier is a linear probe, fitted on the embedding of the trained model.")
    if run.probe_top1 is not None:
        notes.append(f"Linear probe before fine-tuning: {percent(run.probe_top1)}.")
    return notes


def _figures(run: FinishedRun, evaluation: Evaluation) -> str:
    """Return the measured accuracy as a paragraph of the model card."""
    metrics = evaluation.metrics
    assert metrics is not None
    top5 = "" if metrics.top5 is None else f", top-5 {percent(metrics.top5)}"
    figures = f"top-1 {percent(metrics.top1)}{top5} on {metrics.count:,} images of {escape(run.images.val.origin)}"
    return f"Measured at the end of the run: {figures}; [report](report/report.md)."


def _agreement(run: FinishedRun) -> str:
    """Return how well a student predicts the classes of its teacher as a paragraph of the model card."""
    unmeasured = "Its accuracy was not measured."
    row = next((row for row in run.epochs if row["epoch"] == run.epoch), None)
    if row is None:  # metrics.jsonl was damaged
        return unmeasured
    return (
        f"Its top class is that of its teacher for {percent(row['val_top1'])} of {row['val_images']:,} images of "
        f"{escape(run.images.val.origin)}. {unmeasured}"
    )


def _distillation_paragraph(run: FinishedRun) -> str:
    """Return what the model learned from as a paragraph of the model card, with an empty line; "" without a teacher."""
    if run.distillation is None:
        return ""
    config, unlabelled = run.config, run.images.unlabelled
    learned = {"logits": "its predictions", "embedding": "its embeddings", "both": "its predictions and embeddings"}
    images = f"{len(run.images.train):,} images of {escape(run.images.train.origin)}"
    if unlabelled is not None:
        images += f" and {len(unlabelled):,} of {escape(unlabelled.origin)}"
    labels = f", and the labels (weight {1 - config.distill_weight:g})" if config.uses_labels else "; no labels"
    probe = "The classifier is a linear probe, fitted on its embeddings and the labels.\n" * fits_classifier(config)
    return (
        f"Distilled from the teacher {escape(config.teacher)}, {learned[config.distill_target]}{labels}, on {images}.\n"
        f"{probe}\n"
    )


def _training_section(run: FinishedRun, figures: str, hardware_name: str) -> str:
    """Return the section of the model card about training. figures: a paragraph about what was measured."""
    hours = sum(row["seconds"] for row in run.epochs) / 3600
    return f"""
## Training

{_distillation_paragraph(run)}{figures}

    {escape(run.command)}

{len(run.epochs)} epochs in {hours:.2f} hours on {hardware_name}, PyTorch {torch.__version__}; every
setting is in [train.json](train.json), every epoch in [metrics.jsonl](metrics.jsonl).
"""
