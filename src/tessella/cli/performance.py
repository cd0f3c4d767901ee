"""tessella tune, bench: speed on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..engine import ENGINES
from ..engine.plan import missing_packages
from ..text import printable
from .console import Command, complain, echo, echo_json, new_table, notice, print_table, table_of
from .options import (
    argument,
    checkpoint_option,
    device_option,
    images_option,
    json_lines_option,
    json_option,
    option,
    parse_numbers,
    read_samples,
    split,
)
from .preflight import count_type

if TYPE_CHECKING:
    from ..performance import Tuning


@click.command(
    cls=Command,
    examples=[
        "tessella tune",
        "tessella tune mixer_b16_224 --precision float32,bfloat16 --images photos",
        "tessella tune convmixer_768_32 --random-weights --seconds 300",
    ],
)
@argument(
    "name",
    required=False,
    metavar="[MODEL]",
    help="Model, as for --model of `tessella classify`.  [default: the built-in model for photographs]",
)
@checkpoint_option
@option(
    "--random-weights",
    group="Model",
    is_flag=True,
    help="Use random weights, without downloads; speed does not depend on the weights.",
)
@option(
    "--precision",
    group="Model",
    metavar="P,...",
    help="One or more of float32, bfloat16, int8.  [default: all that are fast on this CPU]",
)
@option(
    "--engines",
    group="Model",
    metavar="E,...",
    help="One or more of rewritten, openvino, onnxruntime, compile.  [default: all installed except compile]",
)
@images_option
@option(
    "--seconds",
    group="Advanced",
    type=click.FloatRange(1, 86_400),
    default=100,
    show_default=True,
    help="Time limit in seconds.",
)
@json_option
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
    """Find the fastest settings for a model on this machine's CPU, and save them.

    Later commands then use these settings on the CPU, including a lossy precision that agrees with float32, unless
    --engine or --precision is given. With --precision float32, the results do not change. `tessella doctor` lists
    the settings.
    """
    from ..performance import tune as run_tuning
    from ..performance.tuning import check_can_save
    from ..weights.catalogue import default_model
    from ..weights.open import open_network

    check_can_save()  # before weights are downloaded
    result = run_tuning(
        open_network(name or default_model(), pretrained=not random_weights, checkpoint_path=checkpoint),
        precisions=split(precision) if precision else None,
        engines=split(engines) if engines else None,
        images=read_samples(images),
        check_precision=not random_weights,
        seconds=seconds,
        log=notice,
        show=_print_json if as_json else _print_tuning,
    )
    notice(f"saved to {result.path}")
    _explain(result)


def _print_json(result: Tuning) -> None:
    import msgspec

    winners = {mode: msgspec.to_builtins(winner) for mode, winner in result.winners.items()}
    doubts = {mode: doubt for mode in result.winners if (doubt := result.doubt(mode))}
    echo_json(dict(rows=[row.as_dict() for row in result.rows], winners=winners, doubts=doubts))


def _print_tuning(result: Tuning) -> None:
    table = new_table(
        "mode", "engine", "precision", "layout", "streams", "batch", "images/s", "slowest", "fastest", "n"
    )
    missing = {row.engine: " and ".join(missing_packages(row.engine)) for row in result.rows}
    for row in sorted(result.rows, key=lambda row: (row.mode, -row.images_per_second)):
        if missing[row.engine]:
            continue
        values = row.as_dict()
        figures = [str(values.get(key, "")) for key in ("images_per_second", "slowest", "fastest", "rounds")]
        name = (row.mode, row.engine, row.precision, row.layout, str(row.streams), str(row.batch_size))
        table.add_row(*name, *([row.note, "", "", ""] if row.note else figures))
    print_table(table)
    if needs := [f"{engine} (needs {packages})" for engine, packages in missing.items() if packages]:
        echo(f"not measured, because packages are not installed: {', '.join(needs)}")
    for mode, winner in result.winners.items():
        echo(f"{mode}: {winner.engine} {winner.precision} ({winner.reason})")


def _explain(result: Tuning) -> None:
    """Say what the result changes in later commands, and how to keep float32."""
    for mode in result.winners:
        if doubt := result.doubt(mode):
            complain(f"the choice for {mode} is uncertain: {doubt}; run the command again when the machine is idle")
    notice("later commands use these settings for this model on the CPU, unless --engine or --precision is given")
    compared: dict[str, list[str]] = {}  # modes by what their results are
    for mode, winner in result.winners.items():
        if winner.precision != "float32":
            agreement = result.agreement(mode) or "not compared, because the weights are random"
            compared.setdefault(f"{winner.precision}: {agreement}", []).append(mode)
    if not compared:
        return
    notice("their results may differ slightly from those in float32:")
    for text, modes in compared.items():
        notice(f"  {' and '.join(modes)}, {text}")
    precisions = " and ".join(dict.fromkeys(text.partition(":")[0] for text in compared))
    notice(
        "a calibration holds for one precision: without one made in "
        f"{precisions} by `tessella calibrate`, probabilities are the plain softmax"
    )
    notice("to keep float32, give --precision float32 to a command, or to `tessella tune`")


@click.command(
    cls=Command,
    examples=[
        "tessella bench",
        "tessella bench mixer_b16_224 convmixer_768_32 --batch-size 8,1 --out speed.csv",
        "tessella bench mixer_b16_224 --against timm --plot speed.png",
    ],
)
@argument(
    "models",
    nargs=-1,
    metavar="[MODEL...]",
    help="Models, as for --model of `tessella classify`.  [default: the built-in model for photographs]",
)
@option(
    "--engines",
    group="Model",
    default="eager,rewritten,openvino,onnxruntime",
    show_default=True,
    metavar="E,...",
    help=f"One or more of auto, {', '.join(ENGINES)}; speedups are relative to the first.",
)
@option(
    "--precision",
    group="Model",
    default="float32",
    show_default=True,
    metavar="P,...",
    help="One or more of float32, bfloat16, int8.",
)
@option(
    "--against",
    group="Model",
    type=click.Choice(["timm"]),
    help="Also measure timm's models; speedups are then relative to them.",
)
@option(
    "--pretrained",
    group="Model",
    is_flag=True,
    help="Load trained weights instead of random ones; speed does not depend on them.",
)
@device_option
@option(
    "--batch-size",
    "batch",
    aliases=["--batch"],
    group="Advanced",
    default="8,1",
    show_default=True,
    metavar="N,...",
    help="Batch sizes to measure.",
)
@option(
    "--rounds",
    group="Advanced",
    type=count_type(),
    default=7,
    show_default=True,
    help="Number of timed rounds per candidate.",
)
@option(
    "--out",
    group="Output",
    metavar="FILE.csv",
    help="Also write all results and the measurement conditions to a CSV file.",
)
@option(
    "--plot",
    aliases=["--picture"],
    group="Output",
    metavar="FILE.png",
    help="Plot speed against published accuracy.",
)
@json_lines_option
def bench(
    models: tuple[str, ...],
    batch: str,
    precision: str,
    engines: str,
    out: str | None,
    plot: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Benchmark engines against each other on this machine, in alternating rounds."""
    from ..performance import BenchmarkSettings, table
    from ..performance import bench as run_benchmark
    from ..weights.catalogue import default_model

    chosen = BenchmarkSettings(
        batch_sizes=parse_numbers("--batch-size", batch),
        precisions=split(precision),
        engines=split(engines),
        **settings,
    )
    rows = []
    for group in run_benchmark(models or (default_model(),), chosen, csv_path=out, plot_path=plot):
        rows += group
        if as_json:
            for row in group:
                echo_json(table.as_dict(row))
        notice(f"{printable(group[0].model)} at batch size {group[0].batch}: done")
    if not as_json:
        print_table(table_of(table.HEADER, [table.cells(row) for row in rows]))
        for line in table.conditions(rows):
            notice(printable(line))
