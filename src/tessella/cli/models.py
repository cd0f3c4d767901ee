"""tessella list, info, convert, export, doctor: models and this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ..text import printable
from .console import Command, echo, echo_json, new_table, notice, print_table
from .options import argument, checkpoint_option, images_option, json_lines_option, json_option, option, read_samples


@click.command(
    "list",
    cls=Command,
    examples=["tessella list convmixer", "tessella list '*in1k' --pretrained"],
)
@argument("patterns", nargs=-1, metavar="[PATTERN...]", help="Part of a model name, or a glob such as '*in1k'.")
@option("--pretrained", group="Input", is_flag=True, help="List only models with published weights.")
@json_lines_option
def list_(patterns: tuple[str, ...], pretrained: bool, as_json: bool) -> None:
    """List models with their weights, input size and published accuracy."""
    from ..weights.catalogue import CATALOGUE
    from ..weights.names import find_models, headline_accuracy

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
    table = new_table("name", "weights", "input", "classes", "top-1 %", "measured on", "license")
    for row_ in rows:
        shown = {**row_, "top1": None if row_["top1"] is None else f"{row_['top1']:.2f}"}
        cells = (shown[key] for key in ("name", "weights", "input", "classes", "top1", "dataset", "licence"))
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    print_table(table)
    notice(f"{len(rows)} of {len(CATALOGUE)} models; accuracy as published (built-in models: as measured)")


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
