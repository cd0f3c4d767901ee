"""tessella calibrate: calibrated probabilities, prediction sets, and the detection of unknown images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..text import count_of, printable
from .console import Command, echo, echo_json, new_table, notice, print_table
from .options import (
    CIFAR10_MODEL,
    checkpoint_option,
    data_argument,
    device_option,
    engine_option,
    json_option,
    model_option_of,
    option,
    policy_option,
    precision_option,
    transform_option,
)

if TYPE_CHECKING:
    from ..calibration import Calibration
    from ..evaluation import CalibrationFigures, CalibrationReport

DETECTORS = ("energy", "max-logit", "neighbors", "mahalanobis", "combined")
LOADING = {"checkpoint": "checkpoint_path"} | {
    name: name for name in ("device", "precision", "engine", "transform", "policy")
}  # options, and the arguments of `load`


@click.command(
    cls=Command,
    examples=[
        "tessella calibrate animals/ -m local-dir:runs/animals",
        "tessella calibrate animals/ -m local-dir:runs/animals --coverage 0.95 --unknown other-photos/",
        "tessella calibrate imagenet/val -m convmixer_768_32.in1k",
    ],
)
@data_argument
@option(
    "--split",
    group="Input",
    type=click.Choice(["train", "val", "all"]),
    help="Split to use.  [default: val if there is one, else all; never the images that the model was trained on, if "
    "it has a record of them]",
)
@option(
    "--unknown",
    group="Input",
    metavar="INPUT",
    help="Images that show none of the classes, to choose the detector by.",
)
@model_option_of(CIFAR10_MODEL)
@checkpoint_option
@transform_option
@policy_option
@option(
    "--coverage",
    group="Output",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    metavar="FRACTION",
    help="Fraction of images whose prediction set has to contain the true class.",
)
@option(
    "--false-alarms",
    group="Output",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    metavar="FRACTION",
    help="Largest fraction of images of the classes that may be called unknown.",
)
@option(
    "--per-class/--marginal",
    "per_class",
    group="Output",
    default=None,
    help="Keep the coverage for every class, or only for all images together.  [default: per class if all classes "
    "have at least 50 images in the half that gives the thresholds]",
)
@option(
    "--detector",
    group="Advanced",
    type=click.Choice(DETECTORS),
    help="Detector of unknown images.  [default: the best one for the images of --unknown, or combined]",
)
@option(
    "--seed",
    group="Advanced",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Random seed for dividing the images.",
)
@device_option
@precision_option
@engine_option
@option(
    "-o",
    "--out",
    group="Output",
    metavar="FILE",
    help="File to write, for --calibration of other commands.  [default: the folder of a local-dir: model, or the "
    "cache, where other commands find it]",
)
@json_option
def calibrate(
    data: str,
    split: Any,
    unknown: str | None,
    model: str | None,
    out: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Calibrate a model's probabilities on labeled images that it was not trained on.

    Afterwards, `tessella classify` shows probabilities that match how often they are right, a prediction set that
    contains the true class with the stated coverage, and whether an image probably shows none of the classes. No
    printed figure is measured on images that were used to fit what it describes.
    """
    from ..calibration import CalibrationSettings
    from ..evaluation import calibrate as run_calibration
    from .progress import ProgressBars

    names = ("coverage", "false_alarms", "per_class", "detector", "seed")
    settings = CalibrationSettings(**{name: options[name] for name in names})
    with ProgressBars() as progress:
        report = run_calibration(
            data,
            model,
            settings,
            load_options={argument: options[name] for name, argument in LOADING.items()},
            split=split,
            unknown=unknown,
            out=out,
            progress=progress,
        )
    if as_json:
        echo_json(report.as_dict())
    else:
        _print_report(report)


def _print_report(report: CalibrationReport) -> None:
    calibration, figures = report.calibration, report.figures
    codes = "".join(f", {number:,} {code}" for code, number in report.errors.items())
    echo(printable(f"{calibration.model}: {figures.images:,} images of {calibration.data.origin}{codes}"))
    table = new_table("", "before", "after")
    table.add_row("calibration error (ECE)", f"{100 * figures.ece_before:.2f} %", f"{100 * figures.ece_after:.2f} %")
    table.add_row("loss", f"{figures.loss_before:.4f}", f"{figures.loss_after:.4f}")
    print_table(table)
    echo()
    _print_promises(calibration, figures)
    if figures.detectors:
        echo()
    table = new_table("detector of unknown images", "AUROC", "FPR at 95 % recall")
    for row in figures.detectors:
        chosen = " (used)" if row.kind == calibration.unknown.detector.kind else ""
        table.add_row(f"{row.kind}{chosen}", f"{row.auroc:.3f}", f"{100 * row.false_positives:.1f} %")
    print_table(table)
    if report.unknown_images:
        notice(f"detectors are compared on {count_of(report.unknown_images, 'unknown image')}")
    for remark in report.remarks:
        notice(printable(remark))
    notice(
        f"measured by cross-validation: {figures.folds} parts, {count_of(figures.repeats, 'time')}; expected: the "
        "bound that 97.5 % of such measurements meet if the promise holds"
    )
    echo(printable(f"written to {report.path}"))


def _print_promises(calibration: Calibration, figures: CalibrationFigures) -> None:
    sets, unknown = calibration.sets, calibration.unknown
    table = new_table("", "promised", "measured", "expected")
    kind = "per class" if sets.per_class else "marginal"
    table.add_row(
        f"coverage ({sets.method}, {kind})",
        f"{100 * sets.coverage:g} %",
        f"{100 * figures.coverage:.2f} %",
        f"at least {100 * figures.expected.low:.2f} %",
    )
    if (worst := figures.worst) is not None:
        promised = f"{100 * sets.coverage:g} %" if sets.per_class else ""
        expected = f"at least {100 * worst.expected.low:.2f} %" if sets.per_class else ""
        name = f"  worst class, {worst.label} ({count_of(worst.images, 'image')})"
        table.add_row(name, promised, f"{100 * worst.coverage:.2f} %", expected)
    table.add_row("  classes in a set", "", f"{figures.set_size:.2f}", "")
    table.add_row("  sets with one class", "", f"{100 * figures.single:.1f} %", "")
    table.add_row(
        "called unknown",
        f"{100 * unknown.false_alarms:g} %",
        f"{100 * figures.false_alarms:.2f} %",
        f"at most {100 * figures.false_alarms_expected.high:.2f} %",
    )
    print_table(table)
