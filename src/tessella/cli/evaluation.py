"""tessella evaluate, probe: accuracy on labeled images."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ..engine import ENGINES
from ..text import count_of, printable
from .console import Command, echo, echo_json, new_table, notice, print_table, table_of
from .options import (
    PHOTOGRAPH_MODEL,
    calibration_options,
    checkpoint_option,
    chosen_calibration,
    data_argument,
    device_option,
    json_lines_option,
    json_option,
    model_option_of,
    option,
    parse_numbers,
    policy_option,
    report_skipped,
    transform_option,
    validation_options,
)
from .options import split as split_commas

if TYPE_CHECKING:
    from ..evaluation import ProbeResult
    from ..evaluation.leakage import Split


@click.command(
    cls=Command,
    examples=[
        "tessella probe animals/",
        "tessella probe animals/ -m convmixer_768_32 --shots 1,5,10 --out probes/animals",
        "tessella probe animals/ --attach-to models/animals",
    ],
)
@data_argument
@validation_options
@model_option_of(PHOTOGRAPH_MODEL)
@option(
    "--shots",
    group="Advanced",
    default="1,5,10",
    show_default=True,
    metavar="N,...",
    help="Numbers of training examples per class for few-shot accuracy.",
)
@option(
    "--target-accuracy",
    "accuracy",
    aliases=["--accuracy"],
    group="Advanced",
    type=click.FloatRange(0, 1, True),
    metavar="FRACTION",
    help="Find the confidence threshold that reaches this accuracy.",
)
@option(
    "--seed",
    group="Advanced",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Random seed for drawing held-out images and few-shot examples.",
)
@option(
    "-o",
    "--out",
    group="Output",
    metavar="FOLDER",
    help="Save embeddings and results to a folder; rerunning the command reuses the embeddings.",
)
@option("--attach-to", group="Output", metavar="FOLDER", help="Save the model with the new classifier to a folder.")
@json_option
def probe(
    data: str,
    model: str | None,
    val: str | None,
    shots: str,
    out: str | None,
    attach_to: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure how well a model's embeddings separate labeled classes, without training the model."""
    from ..data.datasets import open_split

    examples = parse_numbers("--shots", shots)
    images = open_split(data, val=val, val_fraction=settings["val_fraction"])

    from ..evaluation import ProbeSettings
    from ..evaluation import probe as run_probe
    from .progress import ProgressBars

    with ProgressBars() as progress:
        result = run_probe(
            images,
            model,
            ProbeSettings(shots=examples, **settings),
            out=out,
            attach_to=attach_to,
            progress=progress,
        )
    if as_json:
        echo_json(result.as_dict())
    else:
        _print_probe(result)


def _print_probe(result: ProbeResult) -> None:
    table = new_table("classifier", "top-1", "chosen")
    table.add_row("nearest neighbors", f"{100 * result.knn.top1:.2f} %", f"k = {result.neighbours}")
    table.add_row("linear", f"{100 * result.linear.top1:.2f} %", f"L2 penalty {result.strength:g}")
    for row in result.few_shot:
        top1 = f"{100 * row.top1:.2f} % ± {100 * row.spread:.2f}"
        table.add_row(f"linear, {row.shots} per class", top1, f"{row.draws} draws")
    print_table(table)
    for verb, data, count, errors in (
        ("trained on", result.train_data, result.train_count, result.train_errors),
        ("evaluated on", result.val_data, result.linear.count, result.linear.errors),
    ):
        codes = "".join(f", {number:,} {code}" for code, number in errors.items())
        notice(printable(f"{verb} {count_of(count, 'image')}: {data}{codes}"))
    if result.threshold:
        echo(
            f"confidence threshold {result.threshold.probability:.3f}: "
            f"{100 * result.threshold.coverage:.1f} % of {count_of(result.linear.count, 'image')} reach it, "
            f"{100 * result.threshold.accuracy:.2f} % of these are correct"
        )
    elif result.asked_accuracy is not None:
        echo(f"no confidence threshold reaches an accuracy of {result.asked_accuracy:g}")
    for note in result.notes:
        notice(printable(note))
    if result.attached:
        notice(printable(f"{result.attached} is ready: tessella classify -m local-dir:{result.attached} IMAGE"))


@click.command(
    cls=Command,
    examples=[
        "tessella evaluate imagenet/val -m mixer_b16_224",
        "tessella evaluate animals/ -m local-dir:runs/animals --out reports/animals",
        "tessella evaluate animals/ --engine eager,openvino --precision float32,bfloat16",
    ],
)
@data_argument
@option(
    "--split",
    group="Input",
    type=click.Choice(["train", "val", "all"]),
    help="Split to evaluate.  [default: images held out of training if known, else val if there is one, else all]",
)
@option(
    "--dataset",
    group="Input",
    metavar="NAME",
    help="Published data set that DATA is a copy of, or none.  [default: detected]",
)
@option(
    "--real-labels",
    aliases=["--real"],
    group="Input",
    metavar="FILE",
    help="ReaL labels (real.json) for the ImageNet validation set.",
)
@option(
    "-m",
    "--model",
    "models",
    group="Model",
    multiple=True,
    metavar="NAME",
    help="Model, as for --model of `tessella classify`; may be repeated.  [default: the built-in model for CIFAR-10]",
)
@checkpoint_option
@calibration_options
@option(
    "--engine",
    group="Model",
    default="auto",
    show_default=True,
    metavar="E,...",
    help=f"One or more of auto, {', '.join(ENGINES)}.",
)
@option(
    "--precision",
    group="Model",
    default="auto",
    show_default=True,
    metavar="P,...",
    help="One or more of auto, fast, float32, bfloat16, int8.",
)
@device_option
@option(
    "--batch-size",
    group="Advanced",
    type=click.IntRange(1, 1_000_000),
    help="Batch size.  [default: depends on the device]",
)
@transform_option
@policy_option
@option(
    "--restrict/--no-restrict",
    group="Advanced",
    default=None,
    help="Predict only classes that occur in DATA.  [default: if its folders are WordNet ids]",
)
@option(
    "-o", "--out", group="Output", metavar="FOLDER", help="Write a table, a plot and a report per model to a folder."
)
@json_lines_option
def evaluate(
    data: str,
    models: tuple[str, ...],
    split: Split | None,
    engine: str,
    precision: str,
    out: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure the accuracy of models on labeled images, and show it next to the published accuracy.

    Unreadable images are reported separately and do not count as wrong. Folders named after WordNet ids or 0..999 are
    recognized as ImageNet.
    """
    from ..evaluation.leakage import choose_images
    from ..weights.catalogue import default_model

    images, remarks = choose_images(data, models, split)
    for remark in remarks:
        notice(printable(remark))

    from ..evaluation import EvaluationSettings, results
    from ..evaluation import evaluate as run_evaluation
    from ..evaluation.report import prepare_folder
    from .progress import ProgressBars

    if out:
        prepare_folder(out)
    report_skipped(images.skipped)
    checkpoint = settings.pop("checkpoint")
    calibration = chosen_calibration(settings)
    del settings["calibration"], settings["no_calibration"]
    chosen = EvaluationSettings(
        engine=split_commas(engine),
        precision=split_commas(precision),
        checkpoint_path=checkpoint,
        calibration=calibration,
        **settings,
    )
    rows = []
    with ProgressBars() as progress:
        for row in run_evaluation(images, models or (default_model("classify"),), chosen, progress=progress):
            rows.append(row)
            if as_json:
                echo_json(results.as_dict(row))
    if not as_json:
        print_table(table_of(results.HEADER, [results.cells(row) for row in rows]))
        for line in results.remarks(rows):
            notice(printable(line))
    if out:
        command = shlex.join(["tessella", *sys.argv[1:]])
        path = results.write_results(out, rows, command=command, images=images, notes=remarks)
        notice(printable(f"wrote {path}"))
