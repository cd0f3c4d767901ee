"""tessella classify, embed, features: results for every image."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..data.names import Skipped
from ..errors import ImageError, TessellaError, UsageError
from ..text import escape, printable
from .console import (
    Command,
    echo,
    echo_json,
    notice,
    show_progress,
)
from .options import option
from .preflight import count_type

if TYPE_CHECKING:
    from ..data.sources import Source
    from ..predictor import Record

from .options import (
    errors_only,
    find_sources,
    finish,
    input_options,
    load_predictor,
    parse_numbers,
    report_bad,
    report_skipped,
    table_options,
)


@click.command(cls=Command)
@input_options
@option("-k", "--top", type=count_type(), default=5, show_default=True, help="Number of top classes per image.")
@table_options
def classify(top: int, **given: Any) -> None:
    """Classify images."""
    run_records(given, top=top, embed=False)


@click.command(cls=Command)
@input_options
@table_options
def embed(**given: Any) -> None:
    """Compute embeddings of images: vectors of unit length."""
    run_records(given, top=0, embed=True)


@click.command(cls=Command)
@input_options
@option(
    "--blocks",
    metavar="I,J,...",
    help="Block numbers; negative ones count from the end.  [default: depends on the model]",
)
@option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@option(
    "--out", metavar="FILE.npz", help="Write the feature maps to a file; without this only their shapes are printed."
)
def features(blocks: str | None, as_json: bool, out: str | None, **given: Any) -> None:
    """Show or save the feature maps of a model's blocks.

    The file has one row per input: key, status and feature maps, which are NaN if the status is not ok.
    """
    from ..predictor import Record
    from ..records import as_dict, npz_bytes, valid_text
    from ..storage import check_output, write_bytes

    path = check_output(out, [".npz"]) if out else None
    indices = parse_numbers("--blocks", blocks) if blocks else None
    skipped = Skipped()
    sources = list(find_sources(given["inputs"], skipped))
    report_skipped(skipped)
    predictor = None if errors_only(sources) else load_predictor(given)
    rows: list[tuple[Record, Any]] = []
    bad = 0
    for source in show_progress(sources, len(sources), "images"):
        record, maps = Record(source.key, "ok"), None
        try:
            data = source.read()
            if predictor is not None:
                maps = [one[0] for one in predictor.features(data, indices)]
        except TessellaError as error:
            if not isinstance(error, ImageError) and error.code != "non_finite":
                raise
            record = Record(source.key, error.code, str(error))
            bad += 1
            report_bad(record, quiet=as_json)
        shapes = [list(one.shape) for one in maps or ()]
        if as_json:
            echo_json(as_dict(record) | (dict(shapes=shapes) if maps else {}))
        elif maps and path is None:
            shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
            echo(f"{printable(source.key)}: {shown}")
        if path is not None:
            rows.append((record, maps))
    if path is not None and rows:
        facts = dict(model=predictor.name, fingerprint=predictor.fingerprint) if predictor else {}
        columns = dict(keys=[escape(record.key) for record, _ in rows], status=[record.status for record, _ in rows])
        named = {name: valid_text(value) for name, value in facts.items()}
        write_bytes(path, npz_bytes(columns | named | stack_maps([maps for _, maps in rows])))
        notice(f"wrote {len(rows)} rows to {printable(str(path))}")
    finish(len(sources) - bad, bad, given["strict"])


def stack_maps(rows: Sequence[Any]) -> dict[str, Any]:
    """Stack the feature maps of several inputs by block, each (N,channels,rows,columns); NaN for inputs without any."""
    import numpy as np

    known = next((maps for maps in rows if maps is not None), ())
    return {
        f"features{i}": np.stack([np.full_like(one, np.nan) if maps is None else maps[i] for maps in rows])
        for i, one in enumerate(known)
    }


def run_records(given: dict[str, Any], *, top: int, embed: bool) -> None:
    """Print one record per input as they come, or write all of them to a file at the end."""
    from ..records import SUFFIXES, as_dict, csv_header, csv_line, csv_row, write_records
    from ..storage import check_output

    as_json, as_csv, safe = given["as_json"], given["as_csv"], given["csv_safe"]
    if as_json + as_csv + bool(given["out"]) > 1:
        raise UsageError("bad_argument", "--json, --csv and --out cannot be combined", hint="choose one of them")
    path = check_output(given["out"], SUFFIXES) if given["out"] else None
    if safe and not (as_csv or (path is not None and path.suffix.lower() == ".csv")):
        raise UsageError("bad_argument", "--csv-safe needs --csv or --out FILE.csv", hint="remove --csv-safe")
    skipped = Skipped()
    sources: Iterable[Source] = find_sources(given["inputs"], skipped)
    total, records = None, None
    if is_listed := "-" not in given["inputs"]:  # a list on standard input may be endless
        sources = list(sources)
        total, records = len(sources), errors_only(sources)
        report_skipped(skipped)
    width, facts = 0, {}
    if records:
        top = 0
    else:
        predictor = load_predictor(given)
        top, width = min(top, predictor.num_classes), predictor.width if embed else 0
        facts = dict(model=predictor.name, fingerprint=predictor.fingerprint) if path is not None else {}
    if as_csv:
        echo(csv_line(csv_header(top, width)))
    kept: list[Record] = []
    good = bad = 0
    on_terminal = sys.stdout.isatty()
    for record in show_progress(records or predictor.records(sources, top=top, embed=embed), total, "images"):
        good, bad = good + (record.status == "ok"), bad + (record.status != "ok")
        if path is not None:
            kept.append(record)
        elif as_json:
            echo_json(as_dict(record))
        elif as_csv:
            line = csv_line(csv_row(record, top, width), safe=safe)
            echo(printable(line) if on_terminal else line)
        elif record.status == "ok":
            echo(render(record))
        if record.status != "ok":
            report_bad(record, quiet=as_json or as_csv)
    if not is_listed:
        report_skipped(skipped)
    if path is not None and kept:
        write_records(path, kept, facts, csv_safe=safe)
        notice(f"wrote {len(kept)} rows to {printable(str(path))}")
    finish(good, bad, given["strict"])


def render(record: Record) -> str:
    """Format a record for people: classes below the file name, or the first components of the vector."""
    key = printable(record.key)
    if record.embedding is not None:
        first = ", ".join(f"{value:+.4f}" for value in record.embedding[:4])
        return f"{key}: {len(record.embedding)} components, unit length: {first}, ..."
    lines = [f"  {100 * one.probability:5.1f} %  {printable(one.label)}" + (f"  ({one.synset})" if one.synset else "")
             for one in record.top]  # fmt: skip
    return "\n".join([key, *lines])
