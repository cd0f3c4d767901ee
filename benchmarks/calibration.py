"""Calibrate the built-in models, and measure what calibrations promise: `scripts/bench calibration make|measure ...`.

    make (--train DATA | --held-out DATA [--part 1/2]) [--models NAME ...] --photos PHOTOS
        write the calibrations that ship with the package, beside the weights: of CIFAR-10 models from labeled images
        that they were not trained on, which is the tenth of --train that their training held out, or other images; of
        the model for photographs from PHOTOS, which it has not seen
    measure --cifar DATA [--part 2/2] --clothing CLOTHING --photos PHOTOS
        write three tables to benchmarks/results:
        calibration           errors, coverage and sets over 100 random divisions of the images into halves, one of
                              which gives the calibration: of the CIFAR-10 models, and of a classifier of clothing (the
                              model for photographs with a linear probe on half of the training images, judged on the
                              other half and the test images)
        calibration-unknown   how well each detector tells photographs of other things from images of the classes:
                              AUROC, false-positive rate at 95 % recall, what is called unknown at 5 % false alarms
        calibration-shipped   the shipped calibrations on images that neither model nor calibration has seen (--part)

PHOTOS are named by WordNet id, one per class of ImageNet-1k; those of a class that CIFAR-10 has as well (CIFAR_KINDS in
photographs.py) are counted apart, in columns called `related`. --part I/N takes every N-th image from the I-th on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from neighbors import CLASS_OF, name_of
from photographs import CIFAR_KINDS, Clothing
from table import RESULTS, write_table
from train_cifar10 import copy_data

from tessella.calibration import Calibration, CalibrationSettings, write_calibration
from tessella.calibration.calibration import CalibrationData
from tessella.calibration.detectors import KINDS, auroc, false_positive_rate, fit_detector
from tessella.calibration.finding import beside
from tessella.calibration.fitting import DEFAULT_DETECTOR, LabeledOutputs, fit, halves, split
from tessella.data.datasets import LabelledImages, open_labelled, open_split
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.evaluation.calibration_figures import Judged, calibrated_logits, expected_share, judge_sets
from tessella.evaluation.calibrator import make_calibration, outputs_of
from tessella.evaluation.classes import match_classes
from tessella.evaluation.linear_probe import probe
from tessella.evaluation.metrics import calibration_bins, calibration_error, judge
from tessella.evaluation.settings import ProbeSettings
from tessella.plots.figures import STYLES, new_figure, render
from tessella.predictor import Predictor, load
from tessella.records import short_name
from tessella.weights.catalogue import BUILTIN_FOLDER, CATALOGUE, class_warning

SPLITS = 100
COVERAGE = 0.9
LEAST_IN_BIN = 20  # images in a bin that is drawn
MODELS = tuple(name for name, row in CATALOGUE.items() if row.file and not class_warning(name))  # of CIFAR-10
PHOTOGRAPHS = next(name for name, row in CATALOGUE.items() if row.file and class_warning(name))
RELATED = {CLASS for classes in CIFAR_KINDS.values() for CLASS in classes}  # classes of ImageNet-1k


def places_of(part: str, count: int) -> Any:
    """Return the positions of every N-th of some images from the I-th on, for the text I/N."""
    first, _, step = part.partition("/")
    return np.arange(int(first) - 1, count, int(step))


def data_of(images: LabelledImages, part: str) -> CalibrationData:
    """Return what a calibration records of a part of the images; their folder is left out."""
    name = Path(images.origin).name
    chosen = images.subset(places_of(part, len(images)))
    return CalibrationData(f"{name}, part {part}" if part != "1/1" else name, chosen.fingerprint, len(chosen), 0)


class Runner:
    """Runs models on images. folder: keeps their outputs by fingerprints, so that a later call needs no model."""

    def __init__(self, folder: Path | None):
        self._folder = folder

    def _outputs(self, predictor: Predictor, data: str, sources: Iterable[Source], labels_N: Any) -> LabeledOutputs:
        path = None if self._folder is None else self._folder / f"{predictor.fingerprint}-{data}.npz"
        if path is not None and path.is_file():
            with np.load(path) as arrays:
                return LabeledOutputs(arrays["logits"], arrays["embeddings"], arrays["labels"])
        outputs, errors = outputs_of(predictor, sources, labels_N)
        assert not errors  # all images have to be readable
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **outputs._asdict())
        return outputs

    def labeled(self, predictor: Predictor, images: LabelledImages) -> LabeledOutputs:
        """Return the outputs for images, with labels that are classes of the model."""
        labels_N = match_classes(images.classes, predictor, restrict=False).positions[images.labels]
        sources = (images.source(i) for i in range(len(images)))
        return self._outputs(predictor, images.fingerprint, sources, labels_N)

    def photographs(self, predictor: Predictor, path: Path) -> LabeledOutputs:
        """Return the outputs for photographs named by WordNet id; labels are their classes of ImageNet-1k."""
        sources = list(iter_sources([path]))
        labels_N = np.array([CLASS_OF[name_of(source)] for source in sources])
        return self._outputs(predictor, f"photographs-{len(sources)}", sources, labels_N)


def without_related(photos: LabeledOutputs) -> tuple[LabeledOutputs, LabeledOutputs]:
    """Return the photographs of other things than CIFAR-10's classes, and those of such things."""
    related_N = np.isin(photos.labels, list(RELATED))
    return photos.take(~related_N), photos.take(related_N)


# --- what calibrations promise ----------------------------------------------------------------------------------------


def measure_splits(name: str, data: str, outputs: LabeledOutputs) -> Iterator[dict[str, Any]]:
    """Yield a row for marginal sets and one for sets per class: means, and extremes, over random halves."""
    before = judge(outputs.logits, outputs.labels)
    classes = np.unique(outputs.labels)
    for per_class in (False, True):
        settings = CalibrationSettings(coverage=COVERAGE, per_class=per_class, detector=DEFAULT_DETECTOR)
        found: list[Judged] = []
        labels, errors, worst = [], [], []
        for seed in range(SPLITS):
            first, second = split(len(outputs.labels), 0.5, np.random.default_rng(1000 + seed))
            fitted, later = fit(outputs.take(first), settings), outputs.take(second)
            judged = judge_sets(later, fitted.temperature, fitted.sets, fitted.unknown)
            found.append(judged)
            labels.append(later.labels)
            errors.append(calibration_error(judge(calibrated_logits(fitted, later.logits), later.labels)))
            worst.append(min(judged.covered[later.labels == k].mean() for k in classes))
        print(f"{name}: {SPLITS} divisions, per class: {per_class}", file=sys.stderr, flush=True)
        yield dict(
            model=name, data=data, images=len(outputs.labels), splits=SPLITS, coverage=COVERAGE,
            kind="per class" if per_class else "marginal", top1=round(float(before.correct.mean()), 4),
            ece_before=round(calibration_error(before), 4),
            **spread("ece_after", errors),
            **coverage_columns(found, labels, COVERAGE, per_class, classes.tolist()),
            **spread("worst_class", worst),
            set_size=round(float(np.mean([one.sizes.mean() for one in found])), 3),
            single=round(float(np.mean([(one.sizes == 1).mean() for one in found])), 4),
            empty=int(sum((one.sizes == 0).sum() for one in found)),
            **spread("false_alarms", [one.unknown.mean() for one in found]),
        )  # fmt: skip


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return mean, smallest and largest value as columns."""
    found = dict(mean=np.mean(values), min=np.min(values), max=np.max(values))
    return {f"{name}_{which}": round(float(value), 4) for which, value in found.items()}


def coverage_columns(
    found: Sequence[Judged], labels: Sequence[Any], coverage: float, per_class: bool, classes: Sequence[int]
) -> dict[str, Any]:
    """Return coverages, and in how many divisions they are in their expected 95 % range, or at least not below it.

    For sets per class, each class of a division counts; `exact` is without the most probable class for free.
    """
    groups = [(one, label_N == k) for one, label_N in zip(found, labels, strict=True) for k in classes]
    if not per_class:
        groups = [(one, np.ones(len(label_N), bool)) for one, label_N in zip(found, labels, strict=True)]
    within = not_below = 0
    for one, chosen_N in groups:
        count = int(chosen_N.sum())
        low, high = expected_share(coverage, count, max(count // 2, 1))  # half of as many gave the threshold
        within += low <= one.exact[chosen_N].mean() <= high
        not_below += bool(one.covered[chosen_N].mean() >= low)
    return dict(
        **spread("exact", [one.exact.mean() for one in found]),
        **spread("covered", [one.covered.mean() for one in found]),
        groups=len(groups),
        exact_within_expected=int(within),
        covered_not_below_expected=not_below,
    )


def clothing_outputs(runner: Runner, path: Path, folder: Path) -> tuple[str, LabeledOutputs]:
    """Return the outputs of a linear probe on half of the training images, for the other half and the test images."""
    clothing = Clothing(path, folder / "clothing")
    half, rest = split(len(clothing.train), 0.5, np.random.default_rng(0))
    model = folder / "model"
    probe((clothing.train.subset(half), clothing.validation), None, ProbeSettings(shots=()), attach_to=model)
    predictor = load(f"local-dir:{model}", calibration=None)
    test = clothing.splits(with_test=True)["clothing_test"]
    parts = [runner.labeled(predictor, images) for images in (clothing.train.subset(rest), test)]
    return f"{PHOTOGRAPHS}, linear probe", LabeledOutputs(*map(np.concatenate, zip(*parts, strict=True)))


# --- unknown images ---------------------------------------------------------------------------------------------------


def measure_detectors(name: str, outputs: LabeledOutputs, photos: LabeledOutputs) -> Iterator[dict[str, Any]]:
    """Yield one row per detector: fitted on half of the images of the classes, judged on the others."""
    deciding, holding = halves(outputs, 0)
    unknown, related = without_related(photos)
    for kind in KINDS:
        detector = fit_detector(kind, *deciding)
        known_N, unknown_M, related_R = (detector.scores(*part[:2]) for part in (holding, unknown, related))
        threshold = float(np.quantile(known_N, 0.95, method="inverted_cdf"))
        yield dict(
            model=name, detector=kind, known=len(known_N), unknown=len(unknown_M),
            auroc=round(auroc(known_N, unknown_M), 4), fpr95=round(false_positive_rate(known_N, unknown_M), 4),
            called_unknown=round(float((unknown_M > threshold).mean()), 4),
            related=len(related_R), related_called_unknown=round(float((related_R > threshold).mean()), 4),
            stored_bytes=sum(array.nbytes for array in detector.arrays.values()),
        )  # fmt: skip


def measure_shipped(predictor: Predictor, outputs: LabeledOutputs, photos: LabeledOutputs) -> dict[str, Any] | None:
    """Return figures of the calibration beside the weights, None if there is none; outputs: for other images."""
    name, calibration = predictor.name, predictor.calibration
    if calibration is None:
        return None
    unknown, _ = without_related(photos)
    before = judge(outputs.logits, outputs.labels)
    after = judge(calibrated_logits(calibration, outputs.logits), outputs.labels)
    scaled = judge(outputs.logits / np.float32(calibration.temperature), outputs.labels)
    judged = judge_sets(outputs, calibration.temperature, calibration.sets, calibration.unknown)
    return dict(
        model=name, made_from=calibration.data.origin, calibration_images=calibration.data.images,
        images=len(outputs.labels), temperature=round(calibration.temperature, 4), method=calibration.sets.method,
        per_class=calibration.sets.per_class, detector=calibration.unknown.detector.kind,
        top1=round(float(before.correct.mean()), 4), ece_before=round(calibration_error(before), 4),
        ece_temperature=round(calibration_error(scaled), 4), ece_after=round(calibration_error(after), 4),
        loss_before=round(float(before.loss.mean()), 4),
        loss_after=round(float(after.loss.mean()), 4), coverage=calibration.coverage,
        covered=round(float(judged.covered.mean()), 4), set_size=round(float(judged.sizes.mean()), 3),
        false_alarms=round(float(judged.unknown.mean()), 4), photographs=len(unknown.labels),
        photographs_unknown=round(float(calibration.assess(*unknown[:2]).unknown.mean()), 4),
    )  # fmt: skip


def draw_reliability(path: Path, models: Sequence[tuple[Predictor, LabeledOutputs]]) -> None:
    """Draw accuracy against confidence for each model, before and after its calibration."""
    figure = new_figure(3 * len(models), 3.4)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, (predictor, outputs) in zip(panels, models, strict=True):
        assert predictor.calibration is not None
        after = judge(calibrated_logits(predictor.calibration, outputs.logits), outputs.labels)
        panel.plot((0, 1), (0, 1), color="0.8", linewidth=1)
        for index, (label, answers) in enumerate((("before", judge(outputs.logits, outputs.labels)), ("after", after))):
            color, marker = STYLES[index]
            bins = [one for one in calibration_bins(answers) if one.images >= LEAST_IN_BIN]
            points = [one.confidence for one in bins], [one.accuracy for one in bins]
            error = f"{label}: {100 * calibration_error(answers):.1f} %"
            panel.plot(*points, color=color, marker=marker, markersize=4, linewidth=1, label=error)
        panel.set_title(short_name(predictor.name), fontsize=8)
        panel.set_xlabel("confidence", fontsize=8)
        panel.legend(fontsize=7, title="calibration error", title_fontsize=7)
    panels[0].set_ylabel("accuracy", fontsize=8)
    path.write_bytes(render(figure, path.suffix))


# --- commands ---------------------------------------------------------------------------------------------------------


def held_out_images(train: Path, folder: Path) -> LabelledImages:
    """Return the tenth that training on this file holds out. folder: for a copy, which has no test images beside it."""
    return open_split(str(copy_data(train, folder / "data")))[1]


def make(args: argparse.Namespace) -> None:
    """Write the calibrations of built-in models."""
    runner = Runner(args.cache)
    with tempfile.TemporaryDirectory() as folder:
        if args.train:
            images = held_out_images(args.train, Path(folder))
            origin = f"the tenth of {args.train.name} that was held out of the training"
            data = CalibrationData(origin, images.fingerprint, len(images), 0)
        else:
            images = open_labelled(args.held_out)
            data = data_of(images, args.part)
        for name in args.models:
            if name == PHOTOGRAPHS:
                continue
            predictor = load(name, calibration=None)
            outputs = runner.labeled(predictor, images).take(places_of(args.part, len(images)))
            show(name, make_calibration(predictor, outputs, CalibrationSettings(), data).calibration)
    if PHOTOGRAPHS in args.models:
        predictor = load(PHOTOGRAPHS, calibration=None)
        outputs = runner.photographs(predictor, args.photos)
        data = CalibrationData("1,000 photographs, one per class of ImageNet-1k", "", len(outputs.labels), 0)
        settings = CalibrationSettings(detector="energy")  # a thousand class means would take 2 MB
        show(PHOTOGRAPHS, make_calibration(predictor, outputs, settings, data).calibration)


def show(name: str, calibration: Calibration) -> None:
    """Write a calibration beside the weights of a built-in model, and print what it is."""
    file = CATALOGUE[name].file
    assert file is not None
    path = write_calibration(beside(BUILTIN_FOLDER / file), calibration)
    figures = calibration.figures
    print(f"{path.name}: {path.stat().st_size:,} bytes, temperature {calibration.temperature:.3f}", flush=True)
    print({key: figures[key] for key in ("images", "top1", "ece_before", "ece_after", "coverage", "set_size")})


def measure(args: argparse.Namespace) -> None:
    """Write the tables, each as soon as it is complete."""
    runner, images = Runner(args.cache), open_labelled(args.cifar)
    unknown: list[dict[str, Any]] = []
    shipped: list[dict[str, Any]] = []
    drawn: list[tuple[Predictor, LabeledOutputs]] = []
    everything: dict[str, LabeledOutputs] = {}
    for name in MODELS:
        predictor = load(name)
        outputs, photos = runner.labeled(predictor, images), runner.photographs(predictor, args.photos)
        everything[name] = outputs
        unknown += measure_detectors(name, outputs, photos)
        later = outputs.take(places_of(args.part, len(images)))
        if (row := measure_shipped(predictor, later, photos)) is not None:
            shipped.append(row)
            drawn.append((predictor, later))
    write_table("calibration-unknown", unknown, args.out)
    if shipped:
        write_table("calibration-shipped", shipped, args.out)
    if args.picture and drawn:
        draw_reliability(args.picture, drawn)
    promises = [row for name, outputs in everything.items() for row in measure_splits(name, args.cifar.name, outputs)]
    with tempfile.TemporaryDirectory() as folder:
        name, outputs = clothing_outputs(runner, args.clothing, Path(folder))
        promises += measure_splits(name, f"{args.clothing.name}, half of train, and test", outputs)
    write_table("calibration", promises, args.out)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making, measuring = (commands.add_parser(name, help=help) for name, help in (
        ("make", "write the shipped calibrations"), ("measure", "write the tables")))  # fmt: skip
    sources = making.add_mutually_exclusive_group(required=True)
    sources.add_argument("--train", type=Path, metavar="DATA", help="use the tenth that training on DATA held out")
    sources.add_argument("--held-out", type=Path, metavar="DATA", help="use these images, of which --part takes some")
    making.add_argument("--models", nargs="+", default=[*MODELS, PHOTOGRAPHS], metavar="NAME")
    making.set_defaults(run=make)
    measuring.add_argument("--cifar", type=Path, required=True, metavar="DATA")
    measuring.add_argument("--clothing", type=Path, required=True, metavar="DATA")
    measuring.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV files")
    measuring.add_argument("--picture", type=Path, metavar="FILE", help="draw confidence and accuracy as .png or .svg")
    measuring.set_defaults(run=measure)
    for command in (making, measuring):
        command.add_argument("--photos", type=Path, required=True, metavar="INPUT")
        command.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the outputs of the models")
        command.add_argument("--part", default="1/1", metavar="I/N", help="every N-th image from the I-th on")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
