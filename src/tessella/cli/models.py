"""tessella list, info, card, convert, export, doctor: models and this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import printable
from ..weights.catalogue import MODULES
from .console import Command, echo, echo_json, new_table, notice, print_table, table_of
from .options import argument, checkpoint_option, images_option, json_lines_option, json_option, option, read_samples
from .preflight import count_type

if TYPE_CHECKING:
    from ..cards.comparison import Machine, ModelRow, SortKey


@click.command(
    "list",
    cls=Command,
    examples=[
        "tessella list convmixer",
        "tessella list '*in1k' --pretrained",
        "tessella list --compare --min-accuracy 80 --max-params 30 --sort speed",
        "tessella list --plot models.png",
    ],
)
@argument("patterns", nargs=-1, metavar="[PATTERN...]", help="Part of a model name, or a glob such as '*in1k'.")
@option("--pretrained", group="Input", is_flag=True, help="List only models with published weights.")
@option("--family", group="Input", type=click.Choice(list(MODULES)), help="List only models of one family.")
@option(
    "--min-accuracy",
    group="Input",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="List only models with at least this published top-1 accuracy on ImageNet-1k.",
)
@option(
    "--max-params",
    group="Input",
    type=click.FloatRange(0),
    metavar="MILLIONS",
    help="List only models with at most this number of parameters, in millions.",
)
@option(
    "--max-gmacs",
    group="Input",
    type=click.FloatRange(0),
    metavar="BILLIONS",
    help="List only models with at most this number of multiply-adds per image, in billions.",
)
@option("--size", group="Input", type=count_type(), metavar="PIXELS", help="List only models with this image size.")
@option("--license", group="Input", metavar="NAME", help="List only models with this license, such as mit.")
@option(
    "--sort",
    group="Output",
    type=click.Choice(["name", "accuracy", "params", "gmacs", "activations", "size", "speed"]),
    default="name",
    show_default=True,
    help="Order of the models; accuracy and speed start with the best.",
)
@option(
    "--machine",
    group="Output",
    type=click.Choice(["rtx-4090", "i9-10940x", "here"]),
    default="rtx-4090",
    show_default=True,
    help="Machine whose speed is sorted by and plotted: one of two published with timm, or this one, as measured by "
    "`tessella tune`.",
)
@option("--compare", group="Output", is_flag=True, help="Show cost, accuracy on six test sets, and speed.")
@json_lines_option
@option("--csv", "csv_file", group="Output", metavar="FILE", help="Write the comparison to a .csv file.")
@option(
    "--plot",
    group="Output",
    metavar="FILE",
    help="Draw accuracy against speed, with the Pareto front, to a .png or .svg file.",
)
@option("--html", group="Output", metavar="FILE", help="Write the comparison as a table to sort and filter, in .html.")
def list_(
    patterns: tuple[str, ...],
    sort: SortKey,
    machine: Machine,
    compare: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """List models with their weights, input size and published accuracy, or compare them."""
    from ..cards.comparison import ModelFilter, compare_models
    from ..storage import check_output
    from ..weights.catalogue import CATALOGUE

    suffixes = {"csv_file": [".csv"], "html": [".html"], "plot": [".png", ".svg"]}
    files = {option: file for option in suffixes if (file := options.pop(option))}
    outputs = {option: check_output(file, suffixes[option]) for option, file in files.items()}
    rows = compare_models(patterns, ModelFilter(**options), sort=sort, machine=machine)
    _write_comparison(rows, machine, outputs)
    if as_json:
        for row in rows:
            echo_json(row.as_dict())
        return
    _print_comparison(rows) if compare else _print_list(rows)
    notice(f"{len(rows)} of {len(CATALOGUE)} models; accuracy as published (built-in models: as measured)")


def _write_comparison(rows: Sequence[ModelRow], machine: Machine, outputs: Mapping[str, Path]) -> None:
    """Write the files that were asked for, by option."""
    from ..cards.comparison import comparison_csv
    from ..storage import write_bytes

    for option_name, path in outputs.items():
        if option_name == "csv_file":
            write_bytes(path, comparison_csv(rows))
        elif option_name == "html":
            from ..cards.page import comparison_page

            write_bytes(path, comparison_page(rows, machine).encode())
        else:
            from ..cards.figure import draw_comparison

            if not draw_comparison(rows, machine, path):
                continue
        notice(printable(f"wrote {path}"))


def _print_list(rows: Sequence[ModelRow]) -> None:
    table = new_table("name", "weights", "input", "classes", "top-1 %", "measured on", "license")
    for row in rows:
        top1 = "" if row.top1 is None else f"{row.top1:.2f}"
        size = "x".join(map(str, row.input_size))
        table.add_row(row.name, row.weights, size, str(row.classes), top1, row.dataset or "", row.licence)
    print_table(table)


def _print_comparison(rows: Sequence[ModelRow]) -> None:
    from ..cards.comparison import MACHINES, SETS
    from ..weights.costs import in_units

    def shown(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = [
        [
            *(row.name, in_units(row.params, 1e6), in_units(row.macs, 1e9), in_units(row.activations, 1e6)),
            str(row.size),
            *(shown(row.accuracy.get(key)) for key in SETS),
            shown(row.top1) if row.dataset == "CIFAR-10" else "",
            *(shown(row.speed(machine), 1) for machine in MACHINES),
            row.licence,
        ]
        for row in rows
    ]
    speeds = [f"{name}, images/s" for name, _ in MACHINES.values()]
    header = ("name", "params (M)", "GMACs", "acts (M)", "px", *SETS.values(), "CIFAR-10", *speeds, "license")
    print_table(table_of(header, cells))
    for machine, (name, conditions) in MACHINES.items():
        if any(row.speed(machine) for row in rows):
            notice(f"{name}: {conditions}")
    for row in rows:
        if row.note:
            notice(f"{row.name}: {row.note}")


@click.command(
    cls=Command,
    examples=[
        "tessella card convmixer_768_32.in1k",
        "tessella card runs/animals --out runs/animals/README.md",
    ],
)
@argument(
    "target",
    metavar="MODEL",
    help="Name of a published model, folder of a saved or trained model, or hf-hub:ORG/REPO.",
)
@option("-o", "--out", group="Output", metavar="FILE", help="Write to a .md file instead of printing.")
def card(target: str, out: str | None) -> None:
    """Write a model card for the Hugging Face Hub: cost, papers, examples, figures, licenses, known errors, limits.

    The card of a trained model includes its report, its training and its calibration.
    """
    from ..cards import card as write_card
    from ..storage import check_output, write_bytes

    path = out and check_output(out, [".md"])
    text = write_card(target)
    if path:
        write_bytes(path, text.encode())
        notice(printable(f"wrote {path}"))
    else:
        echo(text.rstrip("\n"))


@click.command(
    cls=Command,
    examples=["tessella info mixer_b16_224.goog_in21k_ft_in1k"],
)
@argument(
    "name",
    required=False,
    metavar="[MODEL]",
    help="Model, as for --model.  [default: the built-in model for photographs]",
)
@json_option
def info(name: str | None, as_json: bool) -> None:
    """Show a model's size, cost, input, weights, license and published accuracy."""
    from ..info import describe
    from ..info import info as model_info
    from ..weights.catalogue import default_model

    model = model_info(name or default_model())
    if as_json:
        echo_json(dataclasses.asdict(model))
        return
    table = new_table("", "", header=False)
    for label, value in describe(model):
        table.add_row(label, value)
    print_table(table)


@click.command(
    cls=Command,
    needs_torch="converting weights",
    examples=["tessella convert Mixer-B_16.npz", "tessella convert weights.pth --arch convmixer_768_32"],
)
@argument("source", metavar="FILE", help="Weight file as the authors published it.")
@option("--arch", group="Model", metavar="NAME", help="Architecture, if the file does not identify it.")
@option("-o", "--out", group="Output", metavar="FOLDER", help="Output folder.  [default: named after the architecture]")
def convert(source: str, arch: str | None, out: str | None) -> None:
    """Convert the original authors' weights to a folder that timm and Tessella load."""
    from ..weights.convert import convert as convert_file

    done = convert_file(Path(source), arch, Path(out) if out else None)
    folder = printable(str(done.folder))
    echo(f"wrote {folder}: {done.arch}, converted from {done.layout} in {printable(source)}")
    notice(f'use it: tessella classify --model "local-dir:{folder}" photo.jpg')


@click.command(
    cls=Command,
    examples=["tessella export default exported", "tessella export convit_base.fb_in1k exported --engine onnxruntime"],
)
@argument("name", metavar="MODEL", help="Model, as for --model, or `default` for the built-in model for photographs.")
@argument("folder", metavar="FOLDER", help="Output folder; must be new or empty.")
@checkpoint_option
@option(
    "--engine",
    group="Output",
    type=click.Choice(["openvino", "onnxruntime"]),
    default="openvino",
    show_default=True,
    help="Runtime to export for: openvino writes an OpenVINO file, onnxruntime an ONNX file.",
)
@option(
    "--precision",
    group="Output",
    default="float32",
    show_default=True,
    metavar="NAME",
    help="Numeric precision: float32, bfloat16, int8, or fast for the fastest whose results agree with float32.",
)
@images_option
def export(name: str, folder: str, checkpoint: str | None, engine: str, precision: str, images: str | None) -> None:
    """Export a model to a folder that needs no PyTorch and that OpenVINO or ONNX tools can read.

    Use the folder with --model local-dir:FOLDER.
    """
    from ..export import check_new
    from ..export import export as write_export
    from ..predictor import load
    from ..weights.catalogue import class_warning, default_model

    check_new(Path(folder))
    predictor = load(
        default_model() if name == "default" else name,
        checkpoint_path=checkpoint,
        engine=engine,
        precision=precision,
        images=read_samples(images),
    )
    done = write_export(predictor, folder, on_checked=lambda found: notice(f"checked: {found}"))
    reason = predictor.plan.choice("precision").reason
    shown = printable(str(done))
    echo(f"wrote {shown}: {printable(predictor.name)} for {engine} in {predictor.plan.precision} ({reason})")
    if predictor.num_classes and predictor.calibration is None:
        notice("the export is not calibrated: tessella calibrate can do it")
    command = "embed" if class_warning(predictor.name) and checkpoint is None else "classify"
    notice(f'use it: tessella {command} --model "local-dir:{shown}" photo.jpg')


@click.command(
    cls=Command,
    examples=["tessella doctor"],
)
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, hardware and automatic choices with reasons, then test the built-in model for photographs."""
    from ..doctor import examine

    findings = examine()
    if as_json:
        echo_json([row._asdict() for row in findings])
    else:
        table = new_table("item", "value", "reason")
        for row in findings:
            table.add_row(*row)
        print_table(table)
