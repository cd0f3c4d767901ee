"""tessella inspect: problems of a data set, before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import count_of, printable
from .console import Command, echo_json, new_table, notice, print_table
from .options import PHOTOGRAPH_MODEL, argument, json_option, model_option_of, option, split
from .preflight import count_type

if TYPE_CHECKING:
    from ..inspection import Inspection
    from ..inspection.label_errors import LabelErrors

EXAMPLES = 1  # findings of a kind that the table shows


@click.command(
    cls=Command,
    examples=[
        "tessella inspect animals/",
        "tessella inspect train.parquet test.parquet --out inspections/animals --write-list clean.csv",
        "tessella inspect animals/ --write-list clean.csv --remove exact_leak,near_leak,unreadable",
    ],
)
@argument(
    "data",
    nargs=-1,
    required=True,
    metavar="DATA...",
    help="Labeled images, as for `tessella train`; all splits are read. Several are inspected together, such as a "
    "training and a test file.",
)
@option(
    "--unlabeled",
    aliases=["--unlabelled"],
    group="Input",
    is_flag=True,
    help="Ignore classes, and read every image of DATA.",
)
@model_option_of(PHOTOGRAPH_MODEL)
@option(
    "--near",
    group="Advanced",
    type=click.FloatRange(0, 1, True),
    metavar="SIMILARITY",
    help="Similarity of the pixels, up to 1, from which two pictures are near duplicates.  [default: 0.84]",
)
@option(
    "--label-margin",
    group="Advanced",
    type=click.FloatRange(0, 1),
    metavar="PROBABILITY",
    help="Report a label if another class is more probable by at least this much.  [default: 0.75]",
)
@option(
    "--min-images",
    group="Advanced",
    type=count_type(0),
    metavar="N",
    help="Report a class with fewer images in a split.  [default: 10]",
)
@option(
    "--seed",
    group="Advanced",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Random seed of the folds for label errors.",
)
@option(
    "-o",
    "--out",
    group="Output",
    metavar="FOLDER",
    resumes=True,
    help="Write findings.csv, inspection.json and report/index.html to a folder. Rerun the same command to resume.",
)
@option(
    "--write-list",
    group="Output",
    metavar="FILE",
    help="Write a .csv list of the images that remain, which `tessella train` reads. Nothing is deleted.",
)
@option(
    "--remove",
    group="Output",
    metavar="KIND,...",
    help="Kinds of findings that --write-list leaves out.  [default: unreadable, exact and near copies]",
)
@json_option
def inspect(
    data: tuple[str, ...],
    model: str | None,
    out: str | None,
    write_list: str | None,
    remove: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find unreadable, duplicate, leaked, mislabeled and odd images before training.

    Copies are found within and across splits, even if they are cropped, mirrored, resized or recompressed. Labels are
    compared with predictions of a classifier that was trained without the image. Nothing is deleted.
    """
    from ..data.all_splits import open_all_splits
    from ..inspection.kinds import REMOVED, check_kinds

    removed = REMOVED if remove is None else tuple(split(remove))
    check_kinds(removed)

    from ..inspection.clean_list import check_list

    images = open_all_splits(data, unlabeled=settings["unlabeled"])
    if write_list is not None:
        check_list(write_list, images, removed)

    from ..inspection import InspectionSettings, write_clean_list
    from ..inspection import inspect as run_inspection
    from .progress import ProgressBars

    given = {name: value for name, value in settings.items() if value is not None}
    with ProgressBars() as progress:
        result = run_inspection(images, model, InspectionSettings(**given), out=out, progress=progress)
    kept = None if write_list is None else write_clean_list(write_list, images, result.findings, removed)
    if as_json:
        echo_json(result.as_dict() | dict(seconds=result.seconds, list_images=kept))
    else:
        _print(result)
    if out is not None:
        notice(printable(f"the report is in {Path(out) / 'report' / 'index.html'}"))
    if kept is not None:
        total = count_of(len(images), "image")
        # `train` refuses a list of nothing but validation or test images
        command = f": tessella train {write_list} -o FOLDER" if {"", "train"} & set(images.splits) else ""
        notice(printable(f"{write_list} lists {kept:,} of {total}{command}"))


def _print(result: Inspection) -> None:
    from ..inspection.kinds import KINDS

    for line in (*result.choices, *result.notes):
        notice(printable(line))
    table = new_table("finding", "number", "strongest")
    shown: dict[str, int] = {}
    for finding in result.findings:
        shown[finding.kind] = shown.get(finding.kind, 0) + 1
        if shown[finding.kind] <= EXAMPLES:
            strongest = f"{finding.key or finding.label}: {finding.reason}"
            table.add_row(KINDS[finding.kind].title, f"{result.counts[finding.kind]:,}", strongest)
    print_table(table)
    if result.label_errors is not None:
        notice(label_summary(result.label_errors))
    if not result.findings:
        notice("nothing was found")


def label_summary(errors: LabelErrors) -> str:
    """Return how well the labels can be predicted, and how many of them are wrong."""
    verb = "is" if errors.estimated == 1 else "are"
    return (
        f"a classifier trained without the image predicts {100 * errors.accuracy:.1f} % of the labels; "
        f"by confident learning, about {count_of(errors.estimated, 'label')} {verb} wrong"
    )
