"""tessella index, search, dedup: similar images in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..text import printable
from .console import (
    Command,
    echo,
    echo_json,
    new_table,
    notice,
    print_table,
)
from .options import option
from .preflight import count_type

if TYPE_CHECKING:
    pass


@click.command(cls=Command)
@click.argument("folder", metavar="RUN")
@option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def index(folder: str, as_json: bool) -> None:
    """Make a run searchable, or bring its index up to date.

    RUN is the folder that `tessella run --out` made; the index is kept in RUN/index.
    """
    import dataclasses

    from ..search.index import build_index

    done = build_index(folder, say=lambda text: notice(printable(text)))
    if as_json:
        echo_json(dataclasses.asdict(done))
    else:
        changes = f"{done.added:,} added, {done.removed:,} removed"
        echo(printable(f"{done.rows:,} rows in {folder}/index ({changes}), {done.bytes / 1e6:.1f} MB, "
                       f"{done.seconds:.1f} s"))  # fmt: skip


@click.command(cls=Command)
@click.argument("folder", metavar="RUN")
@click.argument("queries", nargs=-1, required=True, metavar="QUERY...")
@option("-k", "--top", type=count_type(), default=10, show_default=True, help="Number of rows to find.")
@option("--where", metavar="SQL", help="Only rows that match, e.g. \"label = 'cat' AND width >= 640\".")
@option("--label", metavar="NAME", help="Only rows with this predicted class.")
@option("--all-rows", is_flag=True, help="Compare with every row, even if there is an approximate index.")
@option(
    "-m", "--model", metavar="NAME", help="Current location of the run's model.  [default: the name used for the run]"
)
@option("--checkpoint", metavar="FILE", help="The weight file, if the run was made with --checkpoint.")
@option("--sheet", metavar="FILE", help="Draw the queries and their neighbours to an .html or .png file.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def search(
    folder: str, queries: tuple[str, ...], model: str | None, checkpoint: str | None, sheet: str | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Find the images of a run that are most similar to the queries.

    RUN needs an index, see `tessella index`. QUERY is an image, the key of a row, a .npy file with a vector, or a .npz
    file that `tessella embed` wrote. Several queries are averaged into one.
    """
    import dataclasses

    from ..plots.sheet import SUFFIXES
    from ..search.query import Index, load_model
    from ..storage import check_output

    path = check_output(sheet, SUFFIXES) if sheet else None
    there = Index(folder)
    if model or checkpoint:
        there.predictor = load_model(there.facts, model, checkpoint)
    asked = [there.query(one) for one in queries]
    found = there.search(asked, **given)
    table = new_table("score", "class", "%", "size", "key")
    for one in found:
        share = "" if one.probability is None else f"{100 * one.probability:.1f}"
        table.add_row(f"{one.score:.4f}", one.label or "", share, f"{one.width}x{one.height}", one.key)
        if as_json:
            echo_json(dataclasses.asdict(one))
    if not as_json:
        print_table(table)
    if path:  # last, so that a sheet that cannot be drawn costs no results
        there.sheet(path, asked, found)


@click.command(cls=Command, short_help="Find the images that a run holds more than once.")
@click.argument("folder", metavar="RUN")
@option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True,
              help="Cosine similarity from which images count as duplicates.")  # fmt: skip
@option("--exact", is_flag=True, help="Find only files with identical bytes.")
@option("-o", "--out", metavar="FILE", help="Also write the rows to a .csv, .json, .jsonl or .parquet file.")
@option("--sheet", metavar="FILE", help="Draw the pairs near the threshold and the clusters to an .html or .png file.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def dedup(folder: str, threshold: float, exact: bool, out: str | None, sheet: str | None, as_json: bool) -> None:
    """Find duplicate images in a run, and which one of each to keep.

    The one to keep has the most pixels; if equal, the most bytes; then the shortest key. Nothing is deleted. RUN is
    the folder that `tessella run --out` made; it needs no index.
    """
    import dataclasses

    from ..plots.sheet import SUFFIXES
    from ..search.duplicates import OUTPUTS, find_duplicates, pairs_sheet, write_duplicates
    from ..storage import check_output

    path = check_output(sheet, SUFFIXES) if sheet else None
    rows_path = check_output(out, OUTPUTS) if out else None
    found = find_duplicates(folder, threshold=None if exact else threshold)
    if rows_path:
        write_duplicates(rows_path, found)
    table = new_table("cluster", "", "similarity", "size", "bytes", "key")
    for one in found.rows:
        size = f"{one.width}x{one.height}"
        table.add_row(str(one.cluster), one.kind, f"{one.similarity:.4f}", size, f"{one.bytes:,}", one.key)
        if as_json:
            echo_json(dataclasses.asdict(one))
    if not as_json:
        print_table(table)
    extra = len(found.rows) - found.clusters
    notice(f"duplicates: {extra:,} of {found.images:,} images; clusters: {found.clusters:,}")
    if path and not pairs_sheet(folder, found, path):
        notice(printable(f"{path} was not written: there are no duplicates and no pairs near the threshold"))
