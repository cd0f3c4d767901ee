"""tessella run, verify-run: whole collections into Parquet files."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..errors import CODES
from ..text import count_of, printable
from .console import Command, complain, echo_json, new_table, notice, print_table
from .options import (
    MAX_PROCESSES,
    PHOTOGRAPH_MODEL,
    calibration_options,
    finish,
    input_options,
    json_option,
    load_predictor,
    loading,
    option,
    resumable_out_option,
    run_argument,
    warn_about_classes,
)
from .preflight import count_type

if TYPE_CHECKING:
    from ..bulk import IntegrityReport, RunEvent, RunSummary
    from ..bulk.events import OnEvent
    from ..predictor import Predictor

MAX_TIMEOUT = 86_400  # seconds


@click.command(
    "run",
    cls=Command,
    examples=[
        "tessella run photos --out runs/photos",
        "tessella run s3://bucket/photos.tar --out runs/photos --bad-inputs bad.csv",
        "tessella run photos --out /shared/run --ray 10.0.0.1:6379",
    ],
)
@input_options(PHOTOGRAPH_MODEL)
@calibration_options
@resumable_out_option
@option(
    "-k",
    "--top",
    group="Output",
    type=count_type(0),
    default=5,
    show_default=True,
    help="Number of top classes per row; 0 for embeddings only.",
)
@option(
    "--dtype",
    group="Output",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Data type of the embeddings.",
)
@option(
    "--shard-rows",
    group="Output",
    type=count_type(),
    metavar="N",
    help="Rows per shard.  [default: 1024 on a CPU, 16384 on other devices]",
)
@option(
    "--bad-inputs",
    group="Output",
    metavar="FILE.csv",
    aliases=["--quarantine"],
    help="Write the name, error code and message of every bad input to a CSV file.",
)
@option(
    "--prometheus",
    group="Output",
    metavar="FILE",
    help="Write progress metrics for Prometheus, every five seconds.",
)
@json_option
@option(
    "--processes",
    group="Advanced",
    type=count_type(most=MAX_PROCESSES),
    metavar="N",
    help="Number of decoder processes.  [default: one per core, at most 8]",
)
@option(
    "--timeout",
    group="Advanced",
    type=click.FloatRange(0, MAX_TIMEOUT, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for decoding one image.",
)
@option(
    "--ray",
    "address",
    group="Advanced",
    is_flag=False,
    flag_value="local",
    metavar="[HOST:PORT]",
    help="Run on Ray: on the cluster at HOST:PORT, or on a local one if no address is given.",
)
@option(
    "--actor-cores",
    group="Advanced",
    type=count_type(most=MAX_PROCESSES),
    metavar="N",
    help="CPU cores per Ray actor.  [default: as many as the model has threads; on GPUs, an equal share of a node's "
    "cores]",
)
def run_(
    out: str, address: str | None, actor_cores: int | None, prometheus: str | None, as_json: bool, **arguments: Any
) -> None:
    """Classify and embed a whole collection into Parquet files, with exactly one row per input."""
    from ..bulk import Cluster, PrometheusFile, RunSettings, run
    from ..bulk.run_folder import model_of
    from ..data.sources import list_as_image
    from ..weights.catalogue import default_model
    from .run_progress import RunProgressBar

    arguments["model"] = arguments["model"] or default_model("embed", model_of(out))
    names = ("top", "dtype", "shard_rows", "processes", "timeout", "bad_inputs")
    settings = RunSettings(**{name: arguments[name] for name in names})
    cluster = Cluster(loading(arguments, "embed"), address, actor_cores) if address else None
    with contextlib.ExitStack() as stack:
        consumers: list[OnEvent] = [stack.enter_context(RunProgressBar())]
        if prometheus:
            consumers.append(stack.enter_context(PrometheusFile(prometheus)))

        def on_event(event: RunEvent) -> None:
            for consumer in consumers:
                consumer(event)

        summary = run(
            arguments["inputs"], out, _loader(arguments), settings, stdin=sys.stdin, cluster=cluster, on_event=on_event
        )
    if as_json:
        echo_json(summary.as_dict())
    else:
        _show_summary(summary)
    if settings.top:
        warn_about_classes(model_of(out) or "", arguments["checkpoint"])
    if summary.errors:
        for problem in filter(None, map(list_as_image, arguments["inputs"])):
            complain(printable(str(problem)))
    if summary.errors and not arguments["bad_inputs"]:
        notice("rerun the same command with --bad-inputs FILE.csv to list the bad inputs")
    finish(summary.ok, summary.rows - summary.ok, arguments["strict"])


def _loader(arguments: dict[str, Any]) -> Callable[[], Predictor]:
    """Return a function that loads the model; the engine of a resumed run is kept if no option chooses another one."""
    from ..bulk import AutomaticEngine

    def load(**engine_options: Any) -> Predictor:
        return load_predictor(arguments | engine_options, "embed")

    is_automatic = arguments["engine"] == arguments["precision"] == "auto" and arguments["batch_size"] is None
    return AutomaticEngine(load) if is_automatic else load


def _show_summary(summary: RunSummary) -> None:
    table = new_table("status", "rows")
    for status, count in {"ok": summary.ok, **summary.errors}.items():
        table.add_row(status, f"{count:,}")
    print_table(table)
    text = f"{count_of(summary.rows, 'input')}, {count_of(summary.rows, 'row')} in {summary.out}/shards"
    text += f", {summary.images_per_second:.1f} images/s" if summary.images_per_second else ", nothing left to do"
    if summary.speed_fraction:
        text += f" ({100 * summary.speed_fraction:.0f} % of the model's own speed)"
    notice(printable(text))


@click.command(
    "verify-run",
    cls=Command,
    examples=["tessella verify-run runs/photos", "tessella verify-run runs/photos --repair"],
)
@run_argument
@option(
    "--repair",
    "with_repair",
    group="Output",
    is_flag=True,
    help="Repair damage, and show the rows that must be computed again.",
)
@json_option
def verify_run(folder: str, with_repair: bool, as_json: bool) -> None:
    """Read every byte that `tessella run` wrote to RUN and report corruption.

    The exit status is 6 if something is damaged and was not repaired.
    """
    from ..bulk import repair, verify

    report = repair(folder) if with_repair else verify(folder)
    if as_json:
        echo_json(asdict(report))
    else:
        _show_damage(report)
    counts = f"{count_of(report.rows, 'row')} in {count_of(report.shards, 'shard')}, "
    counts += f"{report.finished:,} of them finished and intact"
    if report.damage:
        complain(f"{counts}; damage: {len(report.damage):,}")
    else:
        notice(f"{counts}; no damage")
    if with_repair and report.damage:
        lost = report.lost_rows
        notice(f"repaired; {count_of(lost, 'row')} must be computed again" if lost else "repaired; nothing is lost")
    unfinished = report.shards - report.finished
    if unfinished and (with_repair or not report.damage):
        notice(f"unfinished shards: {unfinished:,}; rerun the same `tessella run` command")
    if report.damage and not with_repair:
        notice(printable(f"to repair it: tessella verify-run {shlex.quote(folder)} --repair"))
        raise click.exceptions.Exit(CODES["damaged_run"].exit_code)


def _show_damage(report: IntegrityReport) -> None:
    table = new_table("file", "problem", "rows", "from", "to")
    for damage in report.damage:
        rows = f"{damage.rows:,}" if damage.rows else ""
        table.add_row(damage.file, damage.message, rows, damage.first_key, damage.last_key)
    print_table(table)
