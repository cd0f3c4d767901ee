"""The command line: parsing and printing only; the work of each command is done elsewhere.

Results go to standard output, everything else to standard error. Exit status: 0 success, 2 wrong usage, 3 no input
could be read (with --strict: at least one could not), 4 unusable weights, 5 the model hub failed, 6 a result could not
be written or is damaged, 7 training diverged, 8 a cluster failed, 130 interrupted.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__, preflight
from .console import (
    PrintableFormatter,
    ReaderGoneError,
    Verb,
    complain,
    echo,
    echo_json,
    flush_results,
    is_verbose,
    new_table,
    notice,
    open_streams,
    print_table,
    show_error,
    show_progress,
    table_of,
)
from .data.names import Skipped
from .engine import ENGINES
from .engine.plan import MOST_IMAGES
from .errors import CODES, ImageError, TessellaError, UsageError
from .extras import require
from .preflight import count_type
from .text import escape, printable

if TYPE_CHECKING:
    from .data.sources import Source
    from .predictor import Predictor, Record

EXIT_BAD_INPUT = 3
MOST_PROCESSES = 1_024


def main() -> None:
    """Entry point of `tessella`: a TessellaError becomes a message and an exit status."""
    open_streams()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.exit(flush_results(_status()))


def _status() -> int:
    """Run the command line and return its exit status."""
    try:
        # click returns the status of an Exit, or None if the command ended normally
        return cli(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ReaderGoneError:
        return 0
    except TessellaError as error:
        show_error(error.message, error.hint)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130


class Program(click.Group):
    """The group of all commands; arguments are checked before a command imports what it needs."""

    class command_class(Verb):  # noqa: N801 - click's name for it
        def invoke(self, ctx: click.Context) -> Any:
            preflight.check(ctx.params)
            return super().invoke(ctx)


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings=dict(help_option_names=["-h", "--help"], max_content_width=100),
)
@click.version_option(__version__, prog_name="tessella")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Classify and embed images with ConvMixer, ConViT, MLP-Mixer, gMixer, CrossViT, ResMLP and gMLP.

    Models have timm's names. Without --model, the small model included in this package is used.
    """
    if ctx.invoked_subcommand is None:
        echo(ctx.get_help())


Command = Callable[..., None]


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine several click decorators into one; the help shows them in the order given."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


images_option = click.option(
    "--images",
    metavar="INPUT",
    help="A folder, glob or archive of images like yours, on which bfloat16 and int8 are compared with float32.  "
    "[default: photographs in this package]",
)
input_options = options(
    click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
    click.option(
        "-m",
        "--model",
        metavar="NAME",
        help="arch, arch.tag, hf-hub:org/repo or local-dir:path.  [default: the built-in model]",
    ),
    click.option("--checkpoint", metavar="FILE", help="Weight file to use instead of the published weights."),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps."),
    click.option("--precision", default="auto", show_default=True, help="float32, bfloat16 or int8."),
    click.option("--engine", default="auto", show_default=True, help=f"{', '.join(ENGINES)}."),
    click.option(
        "--mode",
        default="auto",
        show_default=True,
        help="throughput for many images, latency for one at a time; auto: depends on the number of inputs.",
    ),
    images_option,
    click.option(
        "--batch-size", type=count_type(most=MOST_IMAGES), help="Batch size.  [default: depends on the device]"
    ),
    click.option(
        "--transform",
        type=click.Choice(["exact", "fast"]),
        default="exact",
        show_default=True,
        help="exact: bit-identical to timm. fast: quicker, pixels differ by about one grey level.",
    ),
    click.option(
        "--policy",
        type=click.Choice(["tessella", "timm"]),
        default="tessella",
        show_default=True,
        help="How images are decoded. timm: ignore orientation, transparency and 16-bit depth, as timm does.",
    ),
    click.option("--strict", is_flag=True, help="Exit with status 3 if any input cannot be read."),
)
table_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line."),
    click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values with a header."),
    click.option(
        "--out", metavar="FILE", help="Write a .npz, .parquet, .csv, .json or .jsonl file instead of printing."
    ),
    click.option(
        "--csv-safe",
        is_flag=True,
        help="In CSV, put an apostrophe before text that a spreadsheet would run as a formula.",
    ),
)


@cli.command()
@input_options
@click.option("-k", "--top", type=count_type(), default=5, show_default=True, help="Number of top classes per image.")
@table_options
def classify(top: int, **given: Any) -> None:
    """Classify images.

    INPUT is a file, a folder, a glob, a .tar archive, a .parquet file, a URL of these in an object store, @FILE for a
    list of these, or - for a list on standard input.
    """
    run_records(given, top=top, embed=False)


@cli.command()
@input_options
@table_options
def embed(**given: Any) -> None:
    """Compute embeddings of images: vectors of unit length.

    INPUT is a file, a folder, a glob, a .tar archive, a .parquet file, a URL of these in an object store, @FILE for a
    list of these, or - for a list on standard input.
    """
    run_records(given, top=0, embed=True)


@cli.command()
@input_options
@click.option(
    "--blocks",
    metavar="I,J,...",
    help="Block numbers; negative ones count from the end.  [default: depends on the model]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option(
    "--out", metavar="FILE.npz", help="Write the feature maps to a file; without this only their shapes are printed."
)
def features(blocks: str | None, as_json: bool, out: str | None, **given: Any) -> None:
    """Show or save the feature maps of a model's blocks.

    INPUT is a file, a folder, a glob, a .tar archive, a .parquet file, a URL of these in an object store, @FILE for a
    list of these, or - for a list on standard input.

    The file has one row per input: key, status and feature maps, which are NaN if the status is not ok.
    """
    from .predictor import Record
    from .tasks.output import as_dict, check_output, npz_bytes, valid_text, write_bytes

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


@cli.command("run", short_help="Classify and embed a whole collection into Parquet files.")
@input_options
@click.option("-o", "--out", required=True, metavar="FOLDER", help="Output folder. Rerun the same command to resume.")
@click.option("-k", "--top", type=count_type(0), default=5, show_default=True, help="Number of top classes per row.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
              help="Data type of the embeddings.")  # fmt: skip
@click.option(
    "--shard-rows", type=count_type(), help="Rows per shard.  [default: 1024 on a CPU, 16384 on other devices]"
)
@click.option("--processes", type=count_type(most=MOST_PROCESSES),
              help="Number of decoder processes.  [default: one per core, at most 8]")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), default=30.0,
              show_default=True, help="Time limit for decoding one image, in seconds.")  # fmt: skip
@click.option(
    "--quarantine", metavar="FILE", help="Write the name, error code and message of every bad input to a CSV file."
)
@click.option("--prometheus", metavar="FILE", help="Write progress metrics for Prometheus, every five seconds.")
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="local",
    metavar="[HOST:PORT]",
    help="Run on Ray: on the cluster at HOST:PORT, or on a local one if no address is given.",
)
@click.option("--actor-cores", type=count_type(most=MOST_PROCESSES), metavar="N",
              help="CPU cores per Ray actor.  [default: all cores of this machine]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def run_(
    out: str, address: str | None, actor_cores: int | None, prometheus: str | None, as_json: bool, strict: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Classify and embed a whole collection into Parquet files, with exactly one row per input.

    INPUT is a file, a folder, a glob, a .tar archive, a .parquet file, a URL of these in an object store, @FILE for a
    list of these, or - for a list on standard input.
    """
    import dataclasses

    resumes = os.path.lexists(os.path.join(out, "run.json"))  # noqa: PTH118 - Path raises for names that are too long
    if not resumes and preflight.all_missing(given["inputs"]):  # a run that resumes has its own listing
        raise UsageError("not_found", f"there is no file or folder {given['inputs'][0]!r}")

    from .tasks.bulk import run
    from .tasks.cluster import Cluster
    from .tasks.progress import RunWatcher

    if address:
        require("ray", "a run on a cluster")
    predictor = load_predictor(given)
    cluster = Cluster(loading(given), address, actor_cores) if address else None
    settings = {key: given[key] for key in ("top", "dtype", "shard_rows", "processes", "timeout", "quarantine")}
    with RunWatcher(prometheus) as watch:
        summary = run(given["inputs"], out, predictor, stdin=sys.stdin, cluster=cluster, watch=watch, **settings)
    if as_json:
        echo_json(dataclasses.asdict(summary))
    else:
        table = new_table("status", "rows")
        for status, count in {"ok": summary.ok, **summary.errors}.items():
            table.add_row(status, f"{count:,}")
        print_table(table)
        rate = f", {summary.images_per_second:.1f} images/s" if summary.images_per_second else ", nothing left to do"
        rate += f" ({100 * summary.share:.0f} % of the model's own speed)" if summary.share else ""
        notice(printable(f"{summary.rows:,} inputs, {summary.rows:,} rows in {out}/shards{rate}"))
    if summary.errors and not given["quarantine"]:
        notice("the same command with --quarantine FILE.csv names the bad inputs")
    finish(summary.ok, summary.rows - summary.ok, strict)


@cli.command("verify-run", short_help="Read all that a run wrote and report damage.")
@click.argument("folder", metavar="FOLDER")
@click.option("--repair", "mend", is_flag=True, help="Repair damage, or list the rows that must be computed again.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def verify_run(folder: str, mend: bool, as_json: bool) -> None:
    """Read every byte that `tessella run` wrote to FOLDER and report corruption.

    The exit status is 6 if something is damaged and was not repaired.
    """
    import dataclasses

    from .tasks.verify import repair, verify

    found = (repair if mend else verify)(folder)
    lost = sum(one.rows for one in found.damage if one.shard is not None)
    if as_json:
        echo_json(dataclasses.asdict(found))
    elif found.damage:
        table = new_table("file", "problem", "rows", "from", "to")
        for one in found.damage:
            table.add_row(one.file, one.message, f"{one.rows:,}" if one.rows else "", one.first_key, one.last_key)
        print_table(table)
    open_ = found.shards - found.finished
    told = f"{found.rows:,} rows in {found.shards:,} shards, {found.finished:,} of them finished and intact"
    if found.damage:
        complain(f"{told}; damage: {len(found.damage):,}")
    else:
        notice(f"{told}; no damage")
    if mend and found.damage:
        notice(f"repaired; {lost:,} rows must be computed again" if lost else "repaired; nothing is lost")
    if open_ and (mend or not found.damage):
        notice(f"unfinished shards: {open_:,}; rerun the same `tessella run` command")
    if found.damage and not mend:
        notice(printable(f"to repair it: tessella verify-run {shlex.quote(folder)} --repair"))
        raise click.exceptions.Exit(CODES["damaged_run"].exit_code)


@cli.command()
@click.argument("folder", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def index(folder: str, as_json: bool) -> None:
    """Make a run searchable, or bring its index up to date.

    RUN is the folder that `tessella run --out` made; the index is kept in RUN/index.
    """
    import dataclasses

    from .tasks.index import build_index

    done = build_index(folder, say=lambda text: notice(printable(text)))
    if as_json:
        echo_json(dataclasses.asdict(done))
    else:
        changes = f"{done.added:,} added, {done.removed:,} removed"
        echo(printable(f"{done.rows:,} rows in {folder}/index ({changes}), {done.bytes / 1e6:.1f} MB, "
                       f"{done.seconds:.1f} s"))  # fmt: skip


@cli.command()
@click.argument("folder", metavar="RUN")
@click.argument("queries", nargs=-1, required=True, metavar="QUERY...")
@click.option("-k", "--top", type=count_type(), default=10, show_default=True, help="Number of rows to find.")
@click.option("--where", metavar="SQL", help="Only rows that match, e.g. \"label = 'cat' AND width >= 640\".")
@click.option("--label", metavar="NAME", help="Only rows with this predicted class.")
@click.option("--all-rows", is_flag=True, help="Compare with every row, even if there is an approximate index.")
@click.option(
    "-m", "--model", metavar="NAME", help="Current location of the run's model.  [default: the name used for the run]"
)
@click.option("--checkpoint", metavar="FILE", help="The weight file, if the run was made with --checkpoint.")
@click.option("--sheet", metavar="FILE", help="Draw the queries and their neighbours to an .html or .png file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def search(
    folder: str, queries: tuple[str, ...], model: str | None, checkpoint: str | None, sheet: str | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Find the images of a run that are most similar to the queries.

    RUN needs an index, see `tessella index`. QUERY is an image, the key of a row, a .npy file with a vector, or a .npz
    file that `tessella embed` wrote. Several queries are averaged into one.
    """
    import dataclasses

    from .tasks.output import check_output
    from .tasks.search import Index, load_model
    from .tasks.sheet import SUFFIXES

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


@cli.command(short_help="Find the images that a run holds more than once.")
@click.argument("folder", metavar="RUN")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True,
              help="Cosine similarity from which images count as duplicates.")  # fmt: skip
@click.option("--exact", is_flag=True, help="Find only files with identical bytes.")
@click.option("-o", "--out", metavar="FILE", help="Also write the rows to a .csv, .json, .jsonl or .parquet file.")
@click.option(
    "--sheet", metavar="FILE", help="Draw the pairs near the threshold and the clusters to an .html or .png file."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def dedup(folder: str, threshold: float, exact: bool, out: str | None, sheet: str | None, as_json: bool) -> None:
    """Find duplicate images in a run, and which one of each to keep.

    The one to keep has the most pixels; if equal, the most bytes; then the shortest key. Nothing is deleted. RUN is
    the folder that `tessella run --out` made; it needs no index.
    """
    import dataclasses

    from .tasks.dedup import OUTPUTS, find_duplicates, pairs_sheet, write_duplicates
    from .tasks.output import check_output
    from .tasks.sheet import SUFFIXES

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


@cli.command("list", short_help="List models whose names match a pattern.")
@click.argument("patterns", nargs=-1, metavar="[PATTERN...]")
@click.option("--pretrained", is_flag=True, help="Only models with trained weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(patterns: tuple[str, ...], pretrained: bool, as_json: bool) -> None:
    """List models. PATTERN is part of a name, or has wildcards, such as 'convit*' or '*in1k'."""
    from .weights.catalogue import CATALOGUE
    from .weights.names import find_models, headline_accuracy

    rows = []
    for name in find_models(patterns, pretrained=pretrained):
        row = CATALOGUE[name]
        top1, dataset = headline_accuracy(name) or (None, None)
        rows.append(
            dict(
                name=name,
                weights="built in" if row.file else row.hf_hub_id or "none",
                input="x".join(map(str, row.input_size)),
                classes=row.num_classes,
                top1=top1,
                dataset=dataset,
                licence=row.license,
                note=row.note,
            )
        )
    if as_json:
        for row_ in rows:
            echo_json(row_)
        return
    table = new_table("name", "weights", "input", "classes", "top-1 %", "of", "licence")
    for row_ in rows:
        shown = {**row_, "top1": None if row_["top1"] is None else f"{row_['top1']:.2f}"}
        cells = (shown[key] for key in ("name", "weights", "input", "classes", "top1", "dataset", "licence"))
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    print_table(table)
    notice(f"{len(rows)} of {len(CATALOGUE)} models; accuracy as published, built-in models as measured here")


@cli.command(short_help="Show a model's size, cost, sources and accuracy.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(name: str | None, as_json: bool) -> None:
    """Show a model's size, cost, input, sources, licence and published accuracy."""
    import dataclasses

    from .predictor import DEFAULT_MODEL
    from .tasks.info import describe
    from .tasks.info import info as model_info

    found = model_info(name or DEFAULT_MODEL)
    if as_json:
        echo_json(dataclasses.asdict(found))
        return
    table = new_table("", "", header=False)
    for label, value in describe(found):
        table.add_row(label, value)
    print_table(table)


@cli.command(short_help="Convert the original authors' weights.")
@click.argument("source", metavar="FILE")
@click.option("--arch", metavar="NAME", help="The architecture, if the file does not identify it.")
@click.option("--out", metavar="FOLDER", help="Output folder.  [default: a folder named after the architecture]")
def convert(source: str, arch: str | None, out: str | None) -> None:
    """Convert the original authors' weights to a folder that timm and Tessella load."""
    from .weights.convert import convert as convert_file

    done = convert_file(Path(source), arch, Path(out) if out else None)
    folder = printable(str(done.folder))
    echo(f"{printable(source)} holds {done.layout}: wrote {done.arch} to {folder}")
    notice(f'use it: tessella classify --model "local-dir:{folder}" photo.jpg')


@cli.command(short_help="Measure what runs a model fastest on this machine.")
@click.argument("name", required=False, metavar="[MODEL]")
@click.option("--checkpoint", metavar="FILE", help="Weight file to use instead of the published weights.")
@click.option(
    "--random-weights", is_flag=True, help="Use random weights and download nothing: speed does not depend on weights."
)
@click.option(
    "--precision",
    metavar="P,P,...",
    help="Any of float32, bfloat16, int8.  [default: float32 and what the CPU supports]",
)
@click.option(
    "--engines", metavar="E,E,...", help="Any of rewritten, openvino, onnxruntime, compile.  [default: all installed]"
)
@images_option
@click.option(
    "--seconds", type=click.FloatRange(1, 86_400), default=100, show_default=True, help="Time limit in seconds."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tune(
    name: str | None,
    checkpoint: str | None,
    random_weights: bool,
    precision: str | None,
    engines: str | None,
    images: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure which settings run a model fastest on this machine's CPU, and use them from now on.

    They are used on a CPU whenever --engine and --precision are auto; `tessella doctor` lists them.
    """
    import dataclasses

    from .predictor import DEFAULT_MODEL
    from .tasks.tune import tune as measure
    from .weights.factory import create_model

    model = create_model(name or DEFAULT_MODEL, pretrained=not random_weights, checkpoint_path=checkpoint)
    done = measure(
        model.eval(),
        precisions=split(precision) if precision else None,
        engines=split(engines) if engines else None,
        images=read_samples(images),
        judged=not random_weights,
        seconds=seconds,
        say=notice,
    )
    if as_json:
        winners = {mode: dataclasses.asdict(winner) for mode, winner in done.winners.items()}
        echo_json(dict(rows=[row.as_dict() for row in done.rows], winners=winners))
        return
    table = new_table(
        "mode", "engine", "precision", "layout", "streams", "batch", "images/s", "slowest", "fastest", "n"
    )
    for row in sorted(done.rows, key=lambda row: (row.mode, -row.images_per_second)):
        cells = row.as_dict()
        figures = [str(cells.get(key, "")) for key in ("images_per_second", "slowest", "fastest", "rounds")]
        table.add_row(row.mode, row.engine, row.precision, row.layout, str(row.streams), str(row.batch_size),
                      *([row.note, "", "", ""] if row.note else figures))  # fmt: skip
    print_table(table)
    for mode, winner in done.winners.items():
        echo(f"{mode}: {winner.engine} {winner.precision} ({winner.reason})")
    notice(f"saved to {done.path}")


@cli.command(short_help="Write a folder that classifies without PyTorch.")
@click.argument("name", metavar="MODEL")
@click.argument("folder", metavar="FOLDER")
@click.option("--checkpoint", metavar="FILE", help="Weight file to use instead of the published weights.")
@click.option(
    "--engine",
    type=click.Choice(["openvino", "onnxruntime"]),
    default="openvino",
    show_default=True,
    help="Runtime of the exported model: writes an OpenVINO or an ONNX file.",
)
@click.option("--precision", default="float32", show_default=True, help="float32, bfloat16 or int8.")
@images_option
def export(name: str, folder: str, checkpoint: str | None, engine: str, precision: str, images: str | None) -> None:
    """Export a model to a folder that needs no PyTorch and that OpenVINO or ONNX tools can read.

    Use it as --model local-dir:FOLDER. MODEL is a name as for --model, or `default` for the built-in model.
    """
    from .export import check_new
    from .export import export as write_export
    from .predictor import DEFAULT_MODEL, load

    check_new(Path(folder))
    predictor = load(
        DEFAULT_MODEL if name == "default" else name,
        checkpoint_path=checkpoint,
        engine=engine,
        precision=precision,
        images=read_samples(images),
    )
    done = write_export(predictor, folder)
    reason = next(row.reason for row in predictor.plan.choices if row.what == "precision")
    shown = printable(str(done))
    echo(f"{printable(predictor.name)} in {predictor.plan.precision} for {engine}: wrote {shown} ({reason})")
    notice(f'use it: tessella classify --model "local-dir:{shown}" photo.jpg')


@cli.command(short_help="Show what was found on this machine; test the model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show what was detected on this machine, what was chosen and why, then test the built-in model."""
    from .tasks.doctor import examine

    findings = examine()
    if as_json:
        echo_json([row._asdict() for row in findings])
    else:
        table = new_table("what", "found or chosen", "why")
        for row in findings:
            table.add_row(*row)
        print_table(table)


@cli.command()
@click.argument("data")
@click.option("-m", "--model", help="Architecture, checkpoint, hf-hub:org/repo or local-dir:folder to start from.  "
              "[default: the built-in model]")  # fmt: skip
@click.option("-o", "--out", required=True, metavar="FOLDER", help="Output folder. Rerun the same command to resume.")
@click.option("--preset", metavar="NAME", help="One of convmixer, convit, crossvit, mixer, gmixer, finetune, "
              "small-data.  [default: finetune for a pretrained model, else small-data]")  # fmt: skip
@click.option(
    "--config", metavar="FILE.json", help="JSON file with all or some of the settings, such as train.json of a run."
)
@click.option(
    "--val", metavar="DATA", help="Validation images.  [default: the validation split of DATA, or a fraction of it]"
)
@click.option("--val-fraction", type=click.FloatRange(0, 1, True, True), default=0.1, show_default=True,
              help="Validation fraction, used if the data has no validation split.")  # fmt: skip
@click.option("--scratch", is_flag=True, help="Start from random weights.")
@click.option("--head-only", is_flag=True, help="Train only the classifier.")
@click.option("--layer-decay", type=click.FloatRange(0, 1, True), help="Layer-wise learning-rate decay.")
@click.option("--epochs", type=click.IntRange(1, 1_000_000), help="Number of epochs.")
@click.option("--batch-size", type=click.IntRange(1, 1_000_000), help="Global batch size, over all processes.")
@click.option(
    "--accumulate", type=click.IntRange(1, 1_000_000), help="Gradient accumulation steps per batch, to save memory."
)
@click.option("--lr", type=click.FloatRange(0, 1000, min_open=True), help="Peak learning rate.")
@click.option("--img-size", type=click.IntRange(1, 4000), help="Height and width of the model's input in pixels.")
@click.option("--ema", type=click.FloatRange(0, 1), help="Decay of the moving average of the weights; 0 turns it off.")
@click.option("--teacher", metavar="MODEL", help="Teacher model for distillation.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), help="Autocast precision.")
@click.option("--compile", "compile_", is_flag=True, help="Use torch.compile.")
@click.option("--shard", is_flag=True, help="Shard the weights over the torchrun processes (FSDP2).")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda.")
@click.option("--workers", type=click.IntRange(0, 256), help="Number of data loader processes.  [default: cores - 1]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Random seed.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard logs to FOLDER/tensorboard.")
def train(
    data: str, model: str | None, out: str, preset: str | None, config: str | None, val: str | None,
    val_fraction: float, scratch: bool, head_only: bool, compile_: bool, shard: bool, device: str, workers: int | None,
    tensorboard: bool, **given: Any,
) -> None:  # fmt: skip
    """Train or fine-tune a classifier on labelled images.

    DATA is a folder with one subfolder per class, Parquet in the Hugging Face layout, WebDataset tars, or a CSV file of
    path,label. With several processes: torchrun --nproc-per-node N -m tessella train ...
    """
    from .data.datasets import open_split
    from .tasks.recipes import choose

    changes = {name: value for name, value in given.items() if value is not None}
    changes |= dict(part="head") if head_only else {}
    changes |= dict(compile=True) if compile_ else {}
    chosen, why = choose(model, preset, config, scratch, changes)
    images = open_split(data, val=val, val_fraction=val_fraction)
    command = shlex.join(["tessella", *sys.argv[1:]])

    from .tasks.progress import Watcher
    from .tasks.train import train as run  # imported late: PyTorch is only needed once all arguments are checked

    with Watcher(out if tensorboard else None) as watch:
        watch(dict(kind="remark", text=why))
        run(images, out, chosen, device=device, workers=workers, shard=shard, command=command, watch=watch)
        name = shlex.quote(f"local-dir:{out}")
        watch(dict(kind="remark", text=f"{out} is ready: tessella classify -m {name} IMAGE; {out}/report"))


@cli.command(short_help="Measure what a model's embeddings know, without training.")
@click.argument("data")
@click.option("-m", "--model", help="Model to embed with.  [default: the built-in model]")
@click.option(
    "--val", metavar="DATA", help="Validation images.  [default: the validation split of DATA, or a fraction of it]"
)
@click.option("--val-fraction", type=click.FloatRange(0, 1, True, True), default=0.1, show_default=True,
              help="Validation fraction, used if the data has no validation split.")  # fmt: skip
@click.option(
    "--shots",
    default="1,5,10",
    show_default=True,
    metavar="N,...",
    help="Training examples per class, for few-shot accuracy.",
)
@click.option(
    "--accuracy", type=click.FloatRange(0, 1, True), help="Find the confidence threshold that reaches this accuracy."
)
@click.option("-o", "--out", metavar="FOLDER", help="Keep embeddings and results; rerunning the command reuses them.")
@click.option("--attach-to", metavar="FOLDER", help="Write the model with the new classifier to a folder.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Random seed for drawing the few-shot examples.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def probe(
    data: str, model: str | None, val: str | None, val_fraction: float, shots: str, accuracy: float | None,
    out: str | None, attach_to: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure how well a model's embeddings separate labelled classes, without training the model.

    DATA is as for `tessella train`.
    """
    from .data.datasets import open_split

    examples = parse_numbers("--shots", shots)
    images = open_split(data, val=val, val_fraction=val_fraction)

    from .tasks.probe import probe as run

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


@cli.command(short_help="Measure the accuracy of models on labelled images.")
@click.argument("data")
@click.option(
    "-m", "--model", "models", multiple=True, help="Model name; may be repeated.  [default: the built-in model]"
)
@click.option("--split", "part", type=click.Choice(["train", "val", "all"]),
              help="Split to evaluate.  [default: val if there is one, else all]")  # fmt: skip
@click.option(
    "--engine", default="auto", show_default=True, metavar="E,...", help=f"One or more of auto, {', '.join(ENGINES)}."
)
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    metavar="P,...",
    help="One or more of auto, float32, bfloat16, int8.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--batch-size", type=click.IntRange(1, 1_000_000), help="Batch size.")
@click.option(
    "--transform",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact: bit-identical to timm. fast: quicker.",
)
@click.option("--policy", type=click.Choice(["tessella", "timm"]), default="tessella", show_default=True,
              help="How images are decoded.")  # fmt: skip
@click.option("--checkpoint", metavar="FILE", help="Weight file to use instead of the published weights.")
@click.option("--real", metavar="real.json", help="ReaL labels, for the ImageNet validation set.")
@click.option(
    "--dataset", metavar="NAME", help="Name of the published data set that DATA is, or none.  [default: recognised]"
)
@click.option(
    "--restrict/--no-restrict",
    default=None,
    help="Predict only classes of DATA.  [default: if its folders are WordNet ids]",
)
@click.option("-o", "--out", metavar="FOLDER", help="Write a table, a plot and a report per model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
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

    from .predictor import DEFAULT_MODEL
    from .tasks.seen import choose_images

    images, remarks = choose_images(data, models, part)
    for remark in remarks:
        notice(printable(remark))

    from .tasks import evaluate as task
    from .tasks.report import prepare_folder

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


@cli.command(short_help="Benchmark engines against each other.")
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option("--batch", default="8,1", show_default=True, metavar="N,...", help="Batch sizes.")
@click.option(
    "--precision", default="float32", show_default=True, metavar="P,...", help="One or more of float32, bfloat16, int8."
)
@click.option("--engines", default="eager,rewritten,openvino,onnxruntime", show_default=True, metavar="E,...",
              help=f"One or more of auto, {', '.join(ENGINES)}; speedups are relative to the first.")  # fmt: skip
@click.option("--against", type=click.Choice(["timm"]), help="Compare with timm's own models instead.")
@click.option("--pretrained", is_flag=True, help="Load trained weights; speed does not depend on them.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--rounds", type=count_type(), default=7, show_default=True, help="Number of timed rounds per candidate.")
@click.option(
    "--out", metavar="FILE.csv", help="Also write all results, with the measurement conditions, to a CSV file."
)
@click.option("--picture", metavar="FILE.png", help="Plot speed against published accuracy.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def bench(
    models: tuple[str, ...], batch: str, precision: str, engines: str, out: str | None, picture: str | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Benchmark engines against each other on this machine, in alternating rounds."""
    from .predictor import DEFAULT_MODEL
    from .tasks import bench as task
    from .tasks.output import check_output, write_bytes

    names = models or (DEFAULT_MODEL,)
    path = check_output(out, [".csv"]) if out else None
    image = check_output(picture, [".png", ".svg"]) if picture else None
    if image:
        task.check_picture(names)
    chosen: dict[str, Any] = dict(
        precisions=split(precision), engines=split(engines), batches=parse_numbers("--batch", batch)
    )
    rows = []
    for some in task.bench(names, **chosen, **given):
        rows += some
        for row in some:
            if as_json:
                echo_json(task.as_dict(row))
        notice(f"{printable(some[0].model)} at batch {some[0].batch}: measured")
        if path:
            write_bytes(path, task.csv_bytes(rows))  # so that an interrupt loses no results
    if not as_json:
        print_table(table_of(task.HEADER, [task.cells(row) for row in rows]))
        for line in task.conditions(rows):
            notice(printable(line))
    if image:
        task.draw(rows, image)


# --- helpers ----------------------------------------------------------------------------------------------------------


def loading(given: dict[str, Any]) -> Callable[[], Predictor]:
    """Return `load` bound to the given options."""
    from .data.names import is_archive
    from .predictor import load

    keys = ("device", "precision", "engine", "batch_size", "transform", "policy")
    mode = given["mode"]
    if mode == "auto":
        (only,) = given["inputs"] if len(given["inputs"]) == 1 else ("",)
        # os.path: Path.is_file raises for names that are too long
        alone = os.path.isfile(only) and not is_archive(only)  # noqa: PTH113
        mode = "latency" if alone else "throughput"
    return functools.partial(
        load,
        given["model"],
        checkpoint_path=given["checkpoint"],
        mode=mode,
        images=read_samples(given["images"]),
        **{key: given[key] for key in keys},
    )


def load_predictor(given: dict[str, Any]) -> Predictor:
    predictor = loading(given)()
    if is_verbose():
        notice(f"model: {printable(predictor.name)}")
        for row in predictor.plan.choices:
            notice(printable(f"{row.what}: {row.chosen} ({row.reason})"))
    return predictor


def find_sources(inputs: Sequence[str], skipped: Skipped | None = None) -> Iterator[Source]:
    from .data.sources import iter_sources

    return iter_sources(inputs, stdin=sys.stdin, skipped=skipped)


def report_skipped(skipped: Skipped) -> None:
    for line in skipped.lines():
        notice(printable(line))


MOST_SAMPLES = 500  # images for comparing a precision with float32


def read_samples(given: str | None) -> list[Source] | None:
    """Read the images that --images names, at most MOST_SAMPLES."""
    if given is None:
        return None
    sources = list(find_sources([given]))[:MOST_SAMPLES]
    if not sources:
        raise UsageError("bad_argument", f"--images {given!r} contains no images")
    return sources


def errors_only(sources: Sequence[Source]) -> list[Record]:
    """Return error records if no source can be read, or an empty list if one may be readable.

    So a wrong path is reported at once, without loading a model.
    """
    from .predictor import Record

    records = []
    for source in sources:
        if source.error is None and ("://" in source.path or os.path.exists(source.path)):  # noqa: PTH110
            return []
        try:
            source.read()
        except ImageError as error:
            records.append(Record(source.key, error.code, str(error)))
        else:
            return []
    return records


def run_records(given: dict[str, Any], *, top: int, embed: bool) -> None:
    """Print one record per input as they come, or write all of them to a file at the end."""
    from .tasks.output import SUFFIXES, as_dict, check_output, csv_header, csv_line, csv_row, write_records

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


def report_bad(record: Record, *, quiet: bool) -> None:
    if not quiet:  # machine-readable output has the error in the row
        complain(printable(f"{record.key}: {record.status}: {record.message}"))


def finish(good: int, bad: int, strict: bool) -> None:
    """End a command that reads images: status 3 if none could be read or, with --strict, if any could not."""
    if not good + bad:
        raise UsageError(
            "not_found", "no inputs were given", hint="give a folder, files, or - for a list on standard input"
        )
    if bad:
        complain(f"{good} of {good + bad} inputs read, {bad} bad")
    if bad and (strict or not good):
        raise click.exceptions.Exit(EXIT_BAD_INPUT)


def parse_numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in split(text)]
    except ValueError:
        numbers = []
    if not numbers or max(map(abs, numbers)) > preflight.MOST:
        raise UsageError("bad_argument", f"{option} is {text!r}, expected comma-separated integers such as 8,1")
    return numbers


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
