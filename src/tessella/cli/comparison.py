"""tessella compare: two models, or two runs, on the same images."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..text import printable
from .console import Command, echo, echo_json, new_table, notice, print_table
from .options import argument, device_option, json_option, option, policy_option
from .options import split as split_commas
from .preflight import count_type

if TYPE_CHECKING:
    from ..comparison import Comparison
    from ..evaluation.leakage import Split


@click.command(
    cls=Command,
    examples=[
        "tessella compare local-dir:runs/old local-dir:runs/new animals/ --out differences",
        "tessella compare convmixer_768_32 convmixer_768_32 animals/ --precision float32,int8",
        "tessella compare runs/photos mixer_b16_224 --write-alignment mixer.safetensors",
    ],
)
@argument(
    "old", metavar="OLD", help="Model, as for --model of `tessella classify`, or an output folder of `tessella run`."
)
@argument("new", metavar="NEW", help="The same, for the other side.")
@argument(
    "data",
    required=False,
    metavar="[DATA]",
    help="Labeled images as for `tessella evaluate`, an output folder of `tessella run`, whose inputs are used, or any "
    "images.  [default: the inputs of the run that OLD or NEW is]",
)
@option(
    "--split",
    group="Input",
    type=click.Choice(["train", "val", "all"]),
    help="Split of labeled images, as for `tessella evaluate`.",
)
@option(
    "--transform",
    group="Input",
    default="exact",
    show_default=True,
    metavar="NAME[,NAME]",
    help="Transform of both models, or of OLD and of NEW: exact or fast.",
)
@policy_option
@option(
    "--precision",
    group="Model",
    default="auto",
    show_default=True,
    metavar="NAME[,NAME]",
    help="Precision of both models, or of OLD and of NEW: auto, fast, float32, bfloat16 or int8.",
)
@option(
    "--engine",
    group="Model",
    default="auto",
    show_default=True,
    metavar="NAME[,NAME]",
    help="Engine of both models, or of OLD and of NEW.",
)
@device_option
@option(
    "--speed/--no-speed",
    group="Output",
    default=True,
    show_default=True,
    help="Measure the speed of both models, in rounds in which they take turns.",
)
@option(
    "--pictures",
    group="Output",
    type=count_type(most=10_000, least=0),
    default=60,
    show_default=True,
    help="Number of pictures on the page for each kind of change.",
)
@option(
    "--write-alignment",
    "alignment",
    group="Output",
    metavar="FILE.safetensors",
    help="Write the map of new embeddings to old ones, with which `tessella search --alignment` searches a run of OLD "
    "with NEW. Refused if too many of the nearest images would be lost.",
)
@option(
    "-o",
    "--out",
    group="Output",
    metavar="FOLDER",
    resumes=True,
    help="Write a page with the images whose answers changed, and tables, to a folder. Rerun the same command to "
    "resume.",
)
@json_option
def compare(
    old: str,
    new: str,
    data: str | None,
    split: Split | None,
    out: str | None,
    alignment: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compare two models, or two runs, on the same images.

    With labels: the difference of the accuracies with its confidence interval, and the images that were gained and
    lost. Always: how often both give the same answer and the same nearest images, speed and size.
    """
    from ..comparison import ComparisonSettings, write_comparison
    from ..comparison import compare as run_comparison
    from ..storage import check_output
    from .progress import ProgressBars

    if alignment:
        check_output(alignment, [".safetensors"])
    for name in ("engine", "precision", "transform"):
        settings[name] = _both(name, settings[name])
    chosen = ComparisonSettings(split=split, **settings)
    with ProgressBars() as progress:
        comparison = run_comparison(old, new, data, chosen, out=out, progress=progress)
    if as_json:
        echo_json(comparison.as_dict())
    else:
        _print_comparison(comparison)
    if out:
        command = shlex.join(["tessella", *sys.argv[1:]])
        path = write_comparison(out, comparison, pictures=chosen.pictures, command=command)
        notice(printable(f"wrote {path}"))
    if alignment:  # last, because it may be refused
        written = comparison.write_alignment(alignment)
        notice(printable(f"wrote {alignment}, fingerprint {written.fingerprint}"))


def _both(name: str, text: str) -> tuple[str, str]:
    """Parse the values for OLD and NEW; one value is for both."""
    values = split_commas(text)
    if len(values) > 2 or not all(values):
        raise UsageError("bad_argument", f"--{name} is {text!r}, expected one value, or two as in OLD,NEW")
    return values[0], values[-1]


def _print_comparison(comparison: Comparison) -> None:
    from ..comparison.results import sentences, side_rows

    table = new_table("", "old", "new", "change")
    for row in side_rows(comparison):
        if row[0]:
            table.add_row(*row)
    print_table(table)
    for text in sentences(comparison):
        echo(printable(text))
    if comparison.compared < comparison.images:
        notice(f"{comparison.compared:,} of {comparison.images:,} images have a result of both models")
    for note in comparison.notes:
        notice(printable(note))
