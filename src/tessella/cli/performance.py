"""tessella tune, bench: speed on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..engine import ENGINES
from ..text import printable
from .console import (
    Command,
    echo,
    echo_json,
    new_table,
    notice,
    print_table,
    table_of,
)
from .options import option
from .preflight import count_type

if TYPE_CHECKING:
    pass

from .options import images_option, parse_numbers, read_samples, split


@click.command(cls=Command, short_help="Measure what runs a model fastest on this machine.")
@click.argument("name", required=False, metavar="[MODEL]")
@option("--checkpoint", metavar="FILE", help="Weight file to use instead of the published weights.")
@option(
    "--random-weights", is_flag=True, help="Use random weights and download nothing: speed does not depend on weights."
)
@option(
    "--precision",
    metavar="P,P,...",
    help="Any of float32, bfloat16, int8.  [default: float32 and what the CPU supports]",
)
@option(
    "--engines", metavar="E,E,...", help="Any of rewritten, openvino, onnxruntime, compile.  [default: all installed]"
)
@images_option
@option("--seconds", type=click.FloatRange(1, 86_400), default=100, show_default=True, help="Time limit in seconds.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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

    from ..performance.tuning import tune as measure
    from ..predictor import DEFAULT_MODEL
    from ..weights.factory import create_model

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
        winners = {mode: msgspec.to_builtins(winner) for mode, winner in done.winners.items()}
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


@click.command(cls=Command, short_help="Benchmark engines against each other.")
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@option("--batch", default="8,1", show_default=True, metavar="N,...", help="Batch sizes.")
@option(
    "--precision", default="float32", show_default=True, metavar="P,...", help="One or more of float32, bfloat16, int8."
)
@option("--engines", default="eager,rewritten,openvino,onnxruntime", show_default=True, metavar="E,...",
              help=f"One or more of auto, {', '.join(ENGINES)}; speedups are relative to the first.")  # fmt: skip
@option("--against", type=click.Choice(["timm"]), help="Compare with timm's own models instead.")
@option("--pretrained", is_flag=True, help="Load trained weights; speed does not depend on them.")
@option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@option("--rounds", type=count_type(), default=7, show_default=True, help="Number of timed rounds per candidate.")
@option("--out", metavar="FILE.csv", help="Also write all results, with the measurement conditions, to a CSV file.")
@option("--picture", metavar="FILE.png", help="Plot speed against published accuracy.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def bench(
    models: tuple[str, ...], batch: str, precision: str, engines: str, out: str | None, picture: str | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Benchmark engines against each other on this machine, in alternating rounds."""
    from ..performance import benchmark as task
    from ..predictor import DEFAULT_MODEL
    from ..storage import check_output, write_bytes

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
