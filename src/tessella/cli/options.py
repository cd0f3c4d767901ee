"""Options and helpers that several commands share."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..data.names import Skipped
from ..engine import ENGINES
from ..engine.plan import MAX_BATCH_SIZE
from ..errors import UsageError
from ..text import any_of, printable
from . import preflight
from .console import (
    Argument,
    Option,
    complain,
    is_verbose,
    notice,
)
from .preflight import count_type

if TYPE_CHECKING:
    from ..data.source import Source
    from ..predictor import Predictor, Record
    from ..weights.catalogue import Task


F = TypeVar("F")
EXIT_BAD_INPUT = 3
MAX_PROCESSES = 1_024
TOKEN_VARIABLE = "TESSELLA_TOKEN"
Decorator = Callable[[F], F]


def option(*names: str, **settings: Any) -> Decorator[Any]:
    """Add an `Option`: `click.option` with the settings `group` and `aliases`."""
    return click.option(*names, cls=Option, **settings)


def argument(name: str, **settings: Any) -> Decorator[Any]:
    """Add an `Argument`: `click.argument` with the setting `help`."""
    return click.argument(name, cls=Argument, **settings)


def options(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Combine several click decorators into one; the help shows them in the order given."""

    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


data_argument = argument(
    "data",
    metavar="DATA",
    help="Labeled images: a folder with one subfolder per class, or with train/ and val/; a .parquet, .tar, .csv or "
    ".tsv file, a folder of these, or a glob.",
)
validation_options = options(
    option(
        "--val",
        group="Input",
        metavar="DATA",
        help="Validation images.  [default: the validation split of DATA, or a fraction of its images]",
    ),
    option(
        "--val-fraction",
        group="Input",
        type=click.FloatRange(0, 1, True, True),
        metavar="FRACTION",
        default=0.1,
        show_default=True,
        help="Validation fraction, used if DATA has no validation split.",
    ),
)
resumable_out_option = option(
    "-o",
    "--out",
    group="Output",
    required=True,
    metavar="FOLDER",
    resumes=True,
    help="Output folder. Rerun the same command to resume.",
)
run_argument = argument("folder", metavar="RUN", help="Output folder of `tessella run`.")


def model_option_of(default: str) -> Decorator[Any]:
    """Return the option `--model`. default: the model that the help names for calls without it."""
    return option(
        "-m",
        "--model",
        group="Model",
        metavar="NAME",
        help=f"Model: a name such as convmixer_768_32.in1k, hf-hub:ORG/REPO or local-dir:FOLDER.  [default: {default}]",
    )


CIFAR10_MODEL, PHOTOGRAPH_MODEL = "the built-in model for CIFAR-10", "the built-in model for photographs"
checkpoint_option = option(
    "--checkpoint", group="Model", metavar="FILE", help="Weight file to use instead of the published weights."
)
device_option = option(
    "--device",
    group="Advanced",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Device: cpu, cuda, cuda:1 or mps.",
)
json_option = option("--json", "as_json", group="Output", is_flag=True, help="Print one JSON object.")
json_lines_option = option("--json", "as_json", group="Output", is_flag=True, help="Print one JSON object per line.")
transform_option = option(
    "--transform",
    group="Input",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="Resizing: exact is bit-identical to timm, fast is quicker and differs by up to half a gray level on average.",
)
policy_option = option(
    "--policy",
    group="Input",
    type=click.Choice(["tessella", "timm"]),
    default="tessella",
    show_default=True,
    help="Decoding: tessella respects orientation, transparency and 16-bit depth; timm ignores them, as timm does.",
)
images_option = option(
    "--images",
    group="Advanced",
    metavar="INPUT",
    help="Images for checking bfloat16 and int8 against float32, preferably a few hundred representative ones.  "
    "[default: photographs in this package]",
)
precision_option = option(
    "--precision",
    group="Advanced",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Numeric precision: float32, bfloat16, int8, or fast for the fastest whose results agree with float32.",
)
engine_option = option(
    "--engine",
    group="Advanced",
    default="auto",
    show_default=True,
    metavar="NAME",
    help=f"Engine: {any_of(tuple(ENGINES))}.",
)
batch_size_option = option(
    "--batch-size",
    group="Advanced",
    type=count_type(most=MAX_BATCH_SIZE),
    help="Batch size.  [default: depends on the device]",
)


def input_options(default_model: str) -> Decorator[Any]:
    """Return the argument INPUT and the options of commands that read images. default_model: as the help names it."""
    return options(
        argument(
            "inputs",
            nargs=-1,
            required=True,
            metavar="INPUT...",
            help="File, folder, glob, .tar archive, .parquet file, URL of one of these in an object store, @FILE for a "
            "list of inputs, or - for a list on standard input.",
        ),
        transform_option,
        policy_option,
        option("--strict", group="Input", is_flag=True, help="Exit with status 3 if any input cannot be read."),
        model_option_of(default_model),
        checkpoint_option,
        device_option,
        precision_option,
        engine_option,
        option(
            "--mode",
            group="Advanced",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="Optimize for throughput or latency; auto: latency for one image file, else throughput.",
        ),
        batch_size_option,
        images_option,
    )


server_options = options(
    option(
        "--server",
        group="Model",
        metavar="URL",
        help="Send the images to `tessella serve` at this address instead of loading a model here.",
    ),
    option(
        "--token-file",
        group="Model",
        metavar="FILE",
        help="File with the token of the server; the environment variable TESSELLA_TOKEN can have it instead.",
    ),
)
table_options = options(
    json_lines_option,
    option("--csv", "as_csv", group="Output", is_flag=True, help="Print comma-separated values with a header."),
    option(
        "-o",
        "--out",
        group="Output",
        metavar="FILE",
        help="Write a .npz, .parquet, .csv, .json or .jsonl file instead of printing.",
    ),
    option(
        "--csv-safe",
        group="Output",
        is_flag=True,
        help="In CSV, put an apostrophe before text that a spreadsheet would run as a formula.",
    ),
)


calibration_options = options(
    option(
        "--calibration",
        group="Model",
        metavar="FILE",
        help="Calibration to use, as `tessella calibrate --out` writes it.  [default: the one made for this model]",
    ),
    option(
        "--no-calibration", group="Model", is_flag=True, help="Plain softmax: no prediction sets, no unknown images."
    ),
)


def chosen_calibration(arguments: dict[str, Any]) -> str | None:
    """Return the argument `calibration` of `load` for the options that `calibration_options` adds.

    Without these options, as in commands that print no classes, it is None. Raises UsageError `bad_argument` if both
    are given.
    """
    path, off = arguments.get("calibration"), arguments.get("no_calibration", True)
    if path is not None and off:
        raise UsageError("bad_argument", "--calibration and --no-calibration cannot be combined", hint="remove one")
    return None if off else path or "auto"


def loading(arguments: dict[str, Any], task: Task) -> Callable[[], Predictor]:
    """Return `load` bound to the given options. task: what the default model is used for."""
    from ..loading import choose_mode
    from ..predictor import load
    from ..weights.catalogue import default_model

    keys = ("device", "precision", "engine", "batch_size", "transform", "policy")
    return functools.partial(
        load,
        arguments["model"] or default_model(task),
        checkpoint_path=arguments["checkpoint"],
        mode=choose_mode(arguments["inputs"]) if arguments["mode"] == "auto" else arguments["mode"],
        images=read_samples(arguments["images"]),
        calibration=chosen_calibration(arguments),
        **{key: arguments[key] for key in keys},
    )


def load_predictor(arguments: dict[str, Any], task: Task, load: Callable[[], Predictor] | None = None) -> Predictor:
    """Load the model that the options name; with --verbose, print every choice with its reason.

    task: as in `loading`. load: loads another model.
    """
    predictor = (load or loading(arguments, task))()
    if is_verbose():
        notice(f"model: {printable(predictor.name)}")
        for choice in predictor.plan.choices:
            notice(printable(str(choice)))
    return predictor


def warn_about_classes(model: str, checkpoint: str | None) -> None:
    """Print why the predicted classes of a model should not be relied on, if that is known.

    checkpoint: the file that was given instead of the model's own weights.
    """
    from ..weights.catalogue import class_warning

    if checkpoint is None and (warning := class_warning(model)):
        notice(f"{model}: {warning}; use its embeddings")


def read_token(path: str | None) -> str | None:
    """Return the token of a server: the text of a file, or the value of the environment variable TESSELLA_TOKEN.

    Raises UsageError `bad_argument` if the file cannot be read.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError("bad_argument", f"the token file {path!r} cannot be read: {reason}") from None


def find_sources(inputs: Sequence[str], skipped: Skipped | None = None) -> Iterator[Source]:
    """Yield the sources of the inputs; "-" reads standard input. skipped: counts entries that are not images."""
    from ..data.sources import iter_sources

    return iter_sources(inputs, stdin=sys.stdin, skipped=skipped)


def report_skipped(skipped: Skipped) -> None:
    """Print one line per reason for which entries were skipped."""
    for line in skipped.lines():
        notice(printable(line))


def read_samples(name: str | None) -> list[Source] | None:
    """List the images that --images names."""
    from ..loading import find_samples

    return None if name is None else find_samples(name, sys.stdin)


def report_bad(record: Record, *, quiet: bool) -> None:
    """Print the error of a bad input, unless the output is machine-readable and has it in the row."""
    if not quiet:
        complain(printable(f"{record.key}: {record.status}: {record.message}"))


def finish(good: int, bad: int, strict: bool) -> None:
    """End a command that reads images: status 3 if no input could be read or, with --strict, if any could not.

    Raises UsageError `not_found` if there were no inputs.
    """
    if not good + bad:
        raise UsageError(
            "not_found", "no inputs were given", hint="give a folder, files, or - for a list on standard input"
        )
    if bad:
        complain(f"{good} of {good + bad} inputs read, {bad} bad")
    if bad and (strict or not good):
        raise click.exceptions.Exit(EXIT_BAD_INPUT)


def parse_numbers(option: str, text: str) -> list[int]:
    """Parse comma-separated integers. Raises UsageError `bad_argument`."""
    try:
        numbers = [int(part) for part in split(text)]
    except ValueError:
        numbers = []
    if not numbers or max(map(abs, numbers)) > preflight.MAX_COUNT:
        raise UsageError("bad_argument", f"{option} is {text!r}, expected comma-separated integers such as 8,1")
    return numbers


def split(text: str) -> list[str]:
    """Split comma-separated values."""
    return [part.strip() for part in text.split(",")]
