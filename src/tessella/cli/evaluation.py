"""tessella evaluate, probe: accuracy on labelled images."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ..engine import ENGINES
from ..text import printable
from .console import (
    Command,
    echo,
    echo_json,
    new_table,
    notice,
    print_table,
    show_progress,
    table_of,
)
from .options import option

if TYPE_CHECKING:
    pass

from .options import parse_numbers, report_skipped, split


@click.command(cls=Command, short_help="Measure what a model's embeddings know, without training.")
@click.argument("data")
@option("-m", "--model", help="Model to embed with.  [default: the built-in model]")
@option(
    "--val", metavar="DATA", help="Validation images.  [default: the validation split of DATA, or a fraction of it]"
)
@option("--val-fraction", type=click.FloatRange(0, 1, True, True), default=0.1, show_default=True,
              help="Validation fraction, used if the data has no validation split.")  # fmt: skip
@option(
    "--shots",
    default="1,5,10",
    show_default=True,
    metavar="N,...",
    help="Training examples per class, for few-shot accuracy.",
)
@option(
    "--accuracy", type=click.FloatRange(0, 1, True), help="Find the confidence threshold that reaches this accuracy."
)
@option("-o", "--out", metavar="FOLDER", help="Keep embeddings and results; rerunning the command reuses them.")
@option("--attach-to", metavar="FOLDER", help="Write the model with the new classifier to a folder.")
@option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Random seed for drawing the few-shot examples.")  # fmt: skip
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def probe(
    data: str, model: str | None, val: str | None, val_fraction: float, shots: str, accuracy: float | None,
    out: str | None, attach_to: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure how well a model's embeddings separate labelled classes, without training the model.

    DATA is as for `tessella train`.
    """
    from ..data.datasets import open_split

    examples = parse_numbers("--shots", shots)
    images = open_split(data, val=val, val_fraction=val_fraction)

    from ..evaluation.linear_probe import probe as run

    found = run(images, model, shots=examples, accuracy=accuracy, out=out, attach_to=attach_to, seed=seed,
                watch=show_progress)  # fmt: skip
    if as_json:
        echo_json(found.as_dict())
        return
    table = new_table("classifier", "top-1", "chosen")
    table.add_row("nearest neighbours", f"{100 * found.knn.top1:.2f} %", f"k = {found.neighbours}")
    table.add_row("linear", f"{100 * found.linear.top1:.2f} %", f"L2 penalty {found.strength:g}")
    for row in found.few_shot:
        spread = f"{100 * row.top1:.2f} % ± {100 * row.spread:.2f}"
        table.add_row(f"linear, {row.shots} per class", spread, f"{row.draws} draws")
    print_table(table)
    for what, data_, count, errors in (
        ("trained on", found.train_data, found.train_count, found.train_errors),
        ("evaluated on", found.val_data, found.linear.count, found.linear.errors),
    ):
        codes = "".join(f", {number:,} {code}" for code, number in errors.items())
        notice(printable(f"{what} {count:,} images of {data_}{codes}"))
    if found.threshold:
        echo(
            f"confidence threshold {found.threshold.probability:.3f}: "
            f"answers {100 * found.threshold.coverage:.1f} % of {found.linear.count:,} images, "
            f"{100 * found.threshold.accuracy:.2f} % correct"
        )
    elif accuracy is not None:
        echo(f"no confidence threshold reaches an accuracy of {accuracy:g}")
    for note in found.notes:
        notice(printable(note))
    if found.attached:
        notice(printable(f"tessella classify -m local-dir:{found.attached} IMAGE"))


@click.command(cls=Command, short_help="Measure the accuracy of models on labelled images.")
@click.argument("data")
@option("-m", "--model", "models", multiple=True, help="Model name; may be repeated.  [default: the built-in model]")
@option("--split", "part", type=click.Choice(["train", "val", "all"]),
              help="Split to evaluate.  [default: val if there is one, else all]")  # fmt: skip
@option(
    "--engine", default="auto", show_default=True, metavar="E,...", help=f"One or more of auto, {', '.join(ENGINES)}."
)
@option(
    "--precision",
    default="auto",
    show_default=True,
    metavar="P,...",
    help="One or more of auto, float32, bfloat16, int8.",
)
@option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@option("--batch-size", type=click.IntRange(1, 1_000_000), help="Batch size.")
@option(
    "--transform",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact: bit-identical to timm. fast: quicker.",
)
@option("--policy", type=click.Choice(["tessella", "timm"]), default="tessella", show_default=True,
              help="How images are decoded.")  # fmt: skip
@option("--checkpoint", metavar="FILE", help="Weight file to use instead of the published weights.")
@option("--real", metavar="real.json", help="ReaL labels, for the ImageNet validation set.")
@option(
    "--dataset", metavar="NAME", help="Name of the published data set that DATA is, or none.  [default: recognised]"
)
@option(
    "--restrict/--no-restrict",
    default=None,
    help="Predict only classes of DATA.  [default: if its folders are WordNet ids]",
)
@option("-o", "--out", metavar="FOLDER", help="Write a table, a plot and a report per model.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def evaluate(
    data: str, models: tuple[str, ...], part: Any, engine: str, precision: str, checkpoint: str | None,
    out: str | None, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Measure the accuracy of models on labelled images, next to the published figures.

    Unreadable images are reported separately. DATA is as for `tessella train`. Folders named after WordNet ids or
    0..999 are recognised as ImageNet.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ..evaluation.leakage import choose_images
    from ..predictor import DEFAULT_MODEL

    images, remarks = choose_images(data, models, part)
    for remark in remarks:
        notice(printable(remark))

    from ..evaluation import evaluator as task
    from ..evaluation.report import prepare_folder

    if out:
        prepare_folder(out)
    report_skipped(images.skipped)
    rows = []
    streams: dict[str, Any] = dict(console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False)
    with Progress(**streams, transient=True, disable=not sys.stderr.isatty()) as progress:
        bars: dict[str, Any] = {}

        def watch(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done)

        chosen: dict[str, Any] = dict(engine=split(engine), precision=split(precision))
        for row in task.evaluate(
            images, models or (DEFAULT_MODEL,), checkpoint_path=checkpoint, progress=watch, **chosen, **given
        ):
            rows.append(row)
            if as_json:
                echo_json(task.as_dict(row))
    if not as_json:
        print_table(table_of(task.HEADER, [task.cells(row) for row in rows]))
        for line in task.remarks(rows):
            notice(printable(line))
    if out:
        command = shlex.join(["tessella", *sys.argv[1:]])
        page = task.write(out, rows, command=command, images=images, notes=remarks)
        notice(printable(str(page)))
