"""tessella index, search, dedup, gallery: similar images in a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from ..extras import require
from ..text import count_of, printable
from .console import Command, echo, echo_json, new_table, notice, print_table
from .options import argument, json_lines_option, json_option, option, run_argument
from .preflight import count_type

if TYPE_CHECKING:
    from ..search import Index, Neighbor, Query


@click.command(cls=Command, examples=["tessella index runs/photos", "tessella index runs/photos --map"])
@run_argument
@option(
    "--map",
    "map_method",
    group="Output",
    type=click.Choice(["pca", "umap", "none"]),
    is_flag=False,
    flag_value="pca",
    metavar="[pca|umap|none]",
    help="Also compute a map, which `tessella serve` shows: each image as a point in the plane, near similar ones. "
    "Without a value: pca. umap needs the package umap-learn; none removes the map.  [default: as the index is]",
)
@json_option
def index(folder: str, map_method: Literal["pca", "umap", "none"] | None, as_json: bool) -> None:
    """Make a run searchable, or update its index after the run has grown.

    The index is stored in RUN/index.
    """
    from ..search import build_index

    report = build_index(folder, map=map_method, log=lambda text: notice(printable(text)))
    if as_json:
        echo_json(dataclasses.asdict(report))
        return
    changes = f"{report.added:,} added, {report.removed:,} removed"
    size, seconds = f"{report.bytes / 1e6:.1f} MB", f"{report.seconds:.1f} s"
    has_map = f", map: {report.map}" if report.map else ""
    echo(printable(f"{count_of(report.rows, 'row')} in {folder}/index ({changes}){has_map}, {size}, {seconds}"))


@click.command(
    cls=Command,
    examples=[
        "tessella search runs/photos cat.jpg --top 5 --sheet cats.html",
        "tessella search runs/photos key:photos/1.jpg --label flamingo --where 'width >= 640'",
        "tessella search runs/photos cat.jpg --negative kitten.jpg",
        "tessella search runs/photos cat.jpg --top 3 --why why.html",
    ],
)
@run_argument
@argument(
    "queries",
    nargs=-1,
    required=True,
    metavar="QUERY...",
    help="Image, key of a row, .npy file with a vector, or .npz file of `tessella embed`; several are averaged.",
)
@option(
    "-k",
    "--top",
    group="Output",
    type=count_type(),
    default=10,
    show_default=True,
    help="Number of rows to find.",
)
@option(
    "--negative",
    group="Input",
    multiple=True,
    metavar="QUERY",
    help="Query that results should not resemble; can be given several times.",
)
@option("--label", group="Input", metavar="NAME", help="Search only rows with this predicted class.")
@option(
    "--where",
    group="Input",
    metavar="SQL",
    help="Search only rows that match, such as 'probability > 0.8 AND width >= 640', or 'NOT unknown' if the run was "
    "made with a calibrated model.",
)
@option("--all-rows", group="Advanced", is_flag=True, help="Compare every row, even if there is an approximate index.")
@option(
    "-m",
    "--model",
    group="Model",
    metavar="NAME",
    help="Current location of the run's model.  [default: the name used for the run]",
)
@option("--checkpoint", group="Model", metavar="FILE", help="Weight file, if the run was made with --checkpoint.")
@option(
    "--alignment",
    group="Model",
    metavar="FILE",
    help="Embed the queries with another model: FILE is from `tessella compare --write-alignment`, which measures how "
    "many of the nearest images are still found.",
)
@option("--sheet", group="Output", metavar="FILE", help="Draw the queries and results to a .html or .png file.")
@option(
    "--why",
    group="Output",
    metavar="FILE",
    help="Draw which regions of the queries and of each result make them similar, to a .html or .png file.",
)
@json_lines_option
def search(
    folder: str,
    queries: tuple[str, ...],
    negative: tuple[str, ...],
    sheet: str | None,
    why: str | None,
    alignment: str | None,
    as_json: bool,
    **options: object,
) -> None:
    """Find the images of a run that are most similar to the queries.

    The run needs an index: run `tessella index RUN` first.
    """
    from ..plots.sheet import SUFFIXES
    from ..search import Alignment, Index, load_model
    from ..storage import check_output

    path, why_path = (check_output(file, SUFFIXES) if file else None for file in (sheet, why))
    model, checkpoint = (cast("str | None", options.pop(name)) for name in ("model", "checkpoint"))
    if alignment and why:
        raise click.UsageError("--why explains the embeddings of the run's own model: leave out --alignment")
    opened = Index(folder, alignment=Alignment.load(alignment) if alignment else None)
    if model or checkpoint:
        opened.predictor = load_model(opened.query_facts, model, checkpoint)
    loaded_queries, loaded_negative = ([opened.query(query) for query in part] for part in (queries, negative))
    if why_path:
        require("torch", "explaining a search")
        from ..explain.neighbors import check_explainable

        check_explainable(opened, loaded_queries)  # before the search, whose results would be printed
    neighbors = opened.search(loaded_queries, negative=loaded_negative, **options)  # type: ignore[arg-type]
    table = new_table("score", "class", "%", "size", "key")
    for row in neighbors:
        percent = "" if row.probability is None else f"{100 * row.probability:.1f}"
        label = f"{row.label} (unknown)" if row.unknown else row.label or ""
        table.add_row(f"{row.score:.4f}", label, percent, f"{row.width}x{row.height}", row.key)
        if as_json:
            echo_json(dataclasses.asdict(row))
    if not as_json:
        print_table(table)
    if path:  # last, so that the results are printed even if the sheet cannot be drawn
        opened.sheet(path, loaded_queries, neighbors)
    if why_path:
        _explain(why_path, opened, loaded_queries, loaded_negative, neighbors)


def _explain(
    path: Path, index: Index, queries: Sequence[Query], negative: Sequence[Query], neighbors: Sequence[Neighbor]
) -> None:
    """Write the links between the queries and the results."""
    from ..explain.neighbors import MAX_EXPLAINED, explain_neighbors, write_neighbors

    if not neighbors:
        notice(printable(f"{path} was not written: there are no results"))
        return
    explained = list(explain_neighbors(index, queries, neighbors[:MAX_EXPLAINED], negative=negative))
    write_neighbors(path, explained, f"Why these images of {index.out} are similar")
    for result in explained:
        if result.error is not None:
            notice(printable(f"{result.neighbor.key} is not explained: {result.error}"))
    if len(neighbors) > MAX_EXPLAINED:
        notice(f"only the first {MAX_EXPLAINED} of {len(neighbors):,} results are explained")


@click.command(
    cls=Command,
    examples=["tessella dedup runs/photos --sheet pairs.html", "tessella dedup runs/photos --threshold 0.98"],
)
@run_argument
@option(
    "--threshold",
    group="Input",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SIMILARITY",
    help="Similarity threshold: images with this cosine similarity or more are duplicates.  [default: the one measured "
    "for the run's model if it is built in, else 0.95]",
)
@option("--exact", group="Input", is_flag=True, help="Find only files with identical bytes.")
@option("-o", "--out", group="Output", metavar="FILE", help="Write the rows to a .csv, .json, .jsonl or .parquet file.")
@option(
    "--sheet",
    group="Output",
    metavar="FILE",
    help="Draw pairs near the threshold and clusters to a .html or .png file.",
)
@json_lines_option
def dedup(folder: str, threshold: float | None, exact: bool, out: str | None, sheet: str | None, as_json: bool) -> None:
    """Find duplicate images in a run, and choose the one to keep of each cluster.

    The image to keep is the one with the most pixels, then the most bytes, then the shortest key. Nothing is deleted,
    and no index is needed.
    """
    from ..plots.sheet import SUFFIXES
    from ..search import dedup as find_duplicates
    from ..search import draw_duplicates, write_duplicates
    from ..search.duplicates import OUTPUTS
    from ..storage import check_output

    path = check_output(sheet, SUFFIXES) if sheet else None
    rows_path = check_output(out, OUTPUTS) if out else None
    duplicates = find_duplicates(folder, threshold=None if exact else threshold or "auto")
    if rows_path:
        write_duplicates(rows_path, duplicates)
    table = new_table("cluster", "", "similarity", "size", "bytes", "key")
    for row in duplicates.rows:
        size = f"{row.width}x{row.height}"
        table.add_row(str(row.cluster), row.kind, f"{row.similarity:.4f}", size, f"{row.bytes:,}", row.key)
        if as_json:
            echo_json(dataclasses.asdict(row))
    if not as_json:
        print_table(table)
    extra = len(duplicates.rows) - duplicates.clusters
    if duplicates.threshold is not None:
        value, reason = duplicates.threshold
        notice(printable(f"similarity threshold: {value:g} ({reason})"))
    notice(f"duplicates: {extra:,} of {duplicates.images:,} images; clusters: {duplicates.clusters:,}")
    if path and not draw_duplicates(folder, duplicates, path):
        notice(printable(f"{path} was not written: there are no duplicates and no pairs near the threshold"))


@click.command(cls=Command, examples=["tessella gallery runs/photos --out photos.html"])
@run_argument
@option("-o", "--out", group="Output", metavar="FILE.html", required=True, help="The file to write.")
@json_option
def gallery(folder: str, out: str, as_json: bool) -> None:
    """Write the images of a run as one HTML page: gallery, search by an image, map, filters and export.

    The page works without a server and without a network. It contains a thumbnail and the embedding of every image, so
    it is for up to 10,000 images. The run needs an index: run `tessella index RUN` first.
    """
    from ..search import gallery as write_gallery

    report = write_gallery(folder, out, log=lambda text: notice(printable(text)))
    if as_json:
        echo_json(dataclasses.asdict(report))
        return
    echo(printable(f"{out}: {count_of(report.images, 'image')}, {report.bytes / 1e6:.1f} MB"))
    echo(
        f"embeddings are stored with 8 bits per number: {100 * report.recall:.1f} % of the ten nearest images stay the "
        f"same, similarities change by at most {report.error:.4f}"
    )
    if report.missing:
        notice(f"without a thumbnail, because the image could not be read again: {report.missing:,}")
