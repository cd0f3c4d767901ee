"""tessella run, verify-run: whole collections into Parquet files."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import CODES, UsageError
from ..extras import require
from ..text import printable
from . import preflight
from .console import (
    Command,
    complain,
    echo_json,
    new_table,
    notice,
    print_table,
)
from .options import option
from .preflight import count_type

if TYPE_CHECKING:
    pass

from .options import MAX_PROCESSES, finish, input_options, load_predictor, loading


@click.command("run", cls=Command, short_help="Classify and embed a whole collection into Parquet files.")
@input_options
@option("-o", "--out", required=True, metavar="FOLDER", help="Output folder. Rerun the same command to resume.")
@option("-k", "--top", type=count_type(0), default=5, show_default=True, help="Number of top classes per row.")
@option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
              help="Data type of the embeddings.")  # fmt: skip
@option("--shard-rows", type=count_type(), help="Rows per shard.  [default: 1024 on a CPU, 16384 on other devices]")
@option("--processes", type=count_type(most=MAX_PROCESSES),
              help="Number of decoder processes.  [default: one per core, at most 8]")  # fmt: skip
@option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), default=30.0,
              show_default=True, help="Time limit for decoding one image, in seconds.")  # fmt: skip
@option("--quarantine", metavar="FILE", help="Write the name, error code and message of every bad input to a CSV file.")
@option("--prometheus", metavar="FILE", help="Write progress metrics for Prometheus, every five seconds.")
@option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="local",
    metavar="[HOST:PORT]",
    help="Run on Ray: on the cluster at HOST:PORT, or on a local one if no address is given.",
)
@option("--actor-cores", type=count_type(most=MAX_PROCESSES), metavar="N",
              help="CPU cores per Ray actor.  [default: all cores of this machine]")  # fmt: skip
@option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def run_(
    out: str, address: str | None, actor_cores: int | None, prometheus: str | None, as_json: bool, strict: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Classify and embed a whole collection into Parquet files, with exactly one row per input."""
    import dataclasses

    resumes = os.path.lexists(os.path.join(out, "run.json"))  # noqa: PTH118 - Path raises for names that are too long
    if not resumes and preflight.all_missing(given["inputs"]):  # a run that resumes has its own listing
        raise UsageError("not_found", f"there is no file or folder {given['inputs'][0]!r}")

    from ..bulk.ray.driver import Cluster
    from ..bulk.runner import run
    from .progress import RunWatcher

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


@click.command("verify-run", cls=Command, short_help="Read all that a run wrote and report damage.")
@click.argument("folder", metavar="FOLDER")
@option("--repair", "mend", is_flag=True, help="Repair damage, or list the rows that must be computed again.")
@option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def verify_run(folder: str, mend: bool, as_json: bool) -> None:
    """Read every byte that `tessella run` wrote to FOLDER and report corruption.

    The exit status is 6 if something is damaged and was not repaired.
    """
    import dataclasses

    from ..bulk.integrity import repair, verify

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
