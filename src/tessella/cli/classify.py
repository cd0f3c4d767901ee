"""tessella classify, embed, features: one result per image, printed or written to a file."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click
from click.core import ParameterSource

from ..data.names import Skipped
from ..errors import UsageError
from ..text import count_of, printable
from .console import Command, echo, notice, show_progress
from .options import (
    CIFAR10_MODEL,
    PHOTOGRAPH_MODEL,
    calibration_options,
    find_sources,
    finish,
    input_options,
    json_lines_option,
    load_predictor,
    option,
    parse_numbers,
    report_bad,
    report_skipped,
    server_options,
    table_options,
    warn_about_classes,
)
from .preflight import count_type

if TYPE_CHECKING:
    from ..data.source import Source
    from ..predictor import Predictor
    from ..results import Assessment, Record
    from ..weights.catalogue import Task
    from .remote import RemoteModel

    MakeRecords = Callable[[Predictor | RemoteModel, Iterable[Source]], Iterable[Record]]

SHOWN_CLASSES = 5  # of a prediction set


@click.command(
    cls=Command,
    examples=[
        "tessella classify photo.jpg",
        "tessella classify photos --top 1 --out classes.csv",
        "tessella classify photos.tar --model mixer_b16_224.goog_in21k_ft_in1k --json",
        "tessella classify photos --server http://127.0.0.1:8000",
    ],
)
@input_options(CIFAR10_MODEL)
@server_options
@option(
    "-k",
    "--top",
    group="Output",
    type=count_type(),
    default=5,
    show_default=True,
    help="Number of most probable classes per image.",
)
@option(
    "--head",
    group="Model",
    metavar="RUN:NAME",
    help="Print the probability of a user-defined class (a head of a run, or its file), using the run's model.",
)
@calibration_options
@table_options
def classify(top: int, head: str | None, **arguments: Any) -> None:
    """Print the most probable classes of each image, or write them to a file.

    A calibrated model (see `tessella calibrate`) adds the prediction set, if it has several classes: one of them is
    right, with the stated coverage. Images that are probably of none of the classes are marked as unknown.
    """
    path = _check_table_options(arguments)
    if head is not None:
        _classify_with(head, arguments, path)
        return

    def make_records(predictor: Predictor | RemoteModel, sources: Iterable[Source]) -> Iterable[Record]:
        return predictor.records(sources, top=min(top, predictor.num_classes), embed=False)

    _run(arguments, make_records, path, task="classify", top=top)


def _classify_with(name: str, arguments: dict[str, Any], path: Path | None) -> None:
    """Print the probability of the class of a head, instead of the classes of the model."""
    from ..loading import choose_mode
    from ..search import Head

    context = click.get_current_context()
    settings = ("transform", "policy", "precision", "engine", "device", "batch_size", "images", "mode", "top", "server")
    for setting in (*settings, "calibration", "no_calibration"):
        if context.get_parameter_source(setting) is ParameterSource.COMMANDLINE:
            option = f"--{setting.replace('_', '-')}"
            hint = f"remove {option}: the head determines how images are classified"
            raise UsageError("bad_argument", f"--head and {option} cannot be combined", hint=hint)
    head = Head.load(name)

    def load() -> Predictor:
        return head.load_model(arguments["model"], arguments["checkpoint"], choose_mode(arguments["inputs"]))

    def make_records(predictor: Predictor | RemoteModel, sources: Iterable[Source]) -> Iterable[Record]:
        return map(head.record, predictor.records(sources, top=0, embed=True))

    _run(arguments, make_records, path, top=1, load=load)


@click.command(
    cls=Command,
    examples=["tessella embed photos --out embeddings.npz", "tessella embed photo.jpg --json"],
)
@input_options(PHOTOGRAPH_MODEL)
@server_options
@table_options
def embed(**arguments: Any) -> None:
    """Compute embeddings of images: vectors of unit length, whose dot product is the cosine similarity."""
    path = _check_table_options(arguments)
    _run(arguments, lambda predictor, sources: predictor.records(sources, top=0, embed=True), path, has_embedding=True)


@click.command(
    cls=Command,
    needs_torch="computing feature maps",
    examples=["tessella features photo.jpg", "tessella features photos --blocks 3,-1 --out maps.npz"],
)
@input_options(PHOTOGRAPH_MODEL)
@option(
    "--blocks",
    group="Output",
    metavar="I,J,...",
    help="Block numbers; negative ones count from the end.  [default: depends on the model]",
)
@json_lines_option
@option(
    "-o",
    "--out",
    group="Output",
    metavar="FILE.npz",
    help="Write the feature maps to a .npz file. Without it, only their shapes are printed.",
)
def features(blocks: str | None, **arguments: Any) -> None:
    """Show or save the feature maps of a model's blocks.

    The file has one row per input: key, status and feature maps, which are NaN if the status is not ok.
    """
    path = _check_path(arguments["out"], [".npz"])
    indices = parse_numbers("--blocks", blocks) if blocks else None

    def make_records(predictor: Predictor | RemoteModel, sources: Iterable[Source]) -> Iterable[Record]:
        return cast("Predictor", predictor).feature_records(sources, indices)  # the command has no --server

    _run(arguments, make_records, path)


def _check_path(out: str | None, suffixes: Sequence[str]) -> Path | None:
    from ..storage import check_output

    return check_output(out, suffixes) if out else None


def _check_table_options(arguments: dict[str, Any]) -> Path | None:
    """Return the output file, if there is one; UsageError for options that exclude each other."""
    from ..records import SUFFIXES

    as_json, as_csv, out = arguments["as_json"], arguments["as_csv"], arguments["out"]
    if as_json + as_csv + bool(out) > 1:
        raise UsageError("bad_argument", "--json, --csv and --out cannot be combined", hint="choose one of them")
    path = _check_path(out, SUFFIXES)
    if arguments["csv_safe"] and not (as_csv or (path is not None and path.suffix.lower() == ".csv")):
        raise UsageError("bad_argument", "--csv-safe needs --csv or --out FILE.csv", hint="remove --csv-safe")
    return path


def _run(
    arguments: dict[str, Any],
    make_records: MakeRecords,
    path: Path | None,
    *,
    task: Task = "embed",
    top: int = 0,
    has_embedding: bool = False,
    load: Callable[[], Predictor] | None = None,
) -> None:
    """Print one record per input as they come, or write all of them to a file at the end.

    task: what the default model is used for. top, has_embedding: what records contain, for the columns of a CSV table.
    load: loads another model than the options name.
    """
    from ..pipeline import error_records
    from ..records import write_records

    skipped = Skipped()
    sources: Iterable[Source] = find_sources(arguments["inputs"], skipped)
    records: Iterable[Record] = ()
    predictor: Predictor | RemoteModel | None = None
    total, width, metadata = None, 0, {}
    if is_listed := "-" not in arguments["inputs"]:  # a list on standard input may be endless
        sources = list(sources)
        total, records = len(sources), error_records(sources)
        report_skipped(skipped)
    if records:
        top = 0
    else:
        predictor = _open_model(arguments, task, load)
        if load is None:
            if top:
                warn_about_classes(predictor.name, arguments["checkpoint"])
            top = min(top, predictor.num_classes)
        width = predictor.width if has_embedding else 0
        records = make_records(predictor, sources)
    counter = _RecordCounter(keep=path is not None, quiet=arguments["as_json"] or arguments.get("as_csv", False))
    calibration = getattr(predictor, "calibration", None) if task == "classify" else None
    progress = show_progress(records, total, "images")
    _print(counter.follow(progress), arguments, path, _Contents(top, width, calibration and calibration.coverage))
    if not is_listed:
        report_skipped(skipped)
    if path is not None and counter.kept:
        if predictor is not None:
            metadata = dict(model=predictor.name, fingerprint=predictor.fingerprint)
            if calibration is not None:
                metadata["coverage"] = str(calibration.coverage)
        count = write_records(path, counter.kept, metadata, csv_safe=arguments.get("csv_safe", False))
        notice(f"wrote {count_of(count, 'row')} to {printable(str(path))}")
    finish(counter.good, counter.bad, arguments["strict"])


def _open_model(arguments: dict[str, Any], task: Task, load: Callable[[], Predictor] | None) -> Predictor | RemoteModel:
    """Return the model that the options name, here or on a server. load: as in `load_predictor`."""
    if arguments.get("server") is None:
        if arguments.get("token_file") is not None:
            raise UsageError("bad_argument", "--token-file needs --server", hint="give the URL of the server")
        return load_predictor(arguments, task, load)
    from .remote import open_remote

    return open_remote(arguments, task)


class _Contents(NamedTuple):
    """What records contain: number of classes, width of the embedding, coverage of a calibration or None."""

    top: int
    width: int
    coverage: float | None


class _RecordCounter:
    """Counts records and reports bad ones while they are printed; keeps them if they are to be written to a file."""

    def __init__(self, *, keep: bool, quiet: bool):
        self.good = self.bad = 0
        self.kept: list[Record] = []
        self._keep, self._quiet = keep, quiet

    def follow(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if self._keep:
                self.kept.append(record)
            if record.status == "ok":
                self.good += 1
            else:
                self.bad += 1
                report_bad(record, quiet=self._quiet)
            yield record


def _print(records: Iterator[Record], arguments: dict[str, Any], path: Path | None, columns: _Contents) -> None:
    """Print records as they come; only consume them if they go to a file instead."""
    from ..records import csv_lines, json_lines

    if arguments["as_json"]:
        lines = json_lines(records)
    elif arguments.get("as_csv"):
        assessed = columns.coverage is not None
        lines = csv_lines(records, columns.top, columns.width, assessed=assessed, safe=arguments["csv_safe"])
        if sys.stdout.isatty():
            lines = map(printable, lines)
    elif path is None:
        lines = (_render(record, columns.coverage) for record in records if record.status == "ok")
    else:
        lines = iter(())
        deque(records, maxlen=0)
    for line in lines:
        echo(line)


def _render(record: Record, coverage: float | None) -> str:
    """Format a record for people: classes below the key, the first components of the vector, or the shapes of maps."""
    key = printable(record.key)
    if record.features:
        return f"{key}: {', '.join('x'.join(map(str, features.shape)) for features in record.features)}"
    if record.embedding is not None:
        first = ", ".join(f"{value:+.4f}" for value in record.embedding[:4])
        return f"{key}: {len(record.embedding)} dimensions, unit length: {first}, ..."
    lines = [key]
    if record.assessment is not None and record.assessment.unknown:
        share = 100 * record.assessment.familiarity
        lines.append(f"  unknown: only {share:.1f} % of the calibration images are as unlike the model's classes")
    for prediction in record.top:
        synset = f"  ({prediction.synset})" if prediction.synset else ""
        lines.append(f"  {100 * prediction.probability:5.1f} %  {printable(prediction.label)}{synset}")
    if record.assessment is not None and record.assessment.set_size > 1:
        lines.append(f"  {_set_text(record.assessment, coverage)}")
    return "\n".join(lines)


def _set_text(assessment: Assessment, coverage: float | None) -> str:
    """Return a prediction set as text: all classes, or their number and the first ones."""
    names = ", ".join(printable(member.label) for member in assessment.prediction_set[:SHOWN_CLASSES])
    promise = "" if coverage is None else f" ({100 * coverage:g} %)"
    if assessment.set_size <= SHOWN_CLASSES:
        return f"one of: {names}{promise}"
    return f"one of {assessment.set_size:,} classes: {names}, ...{promise}"
