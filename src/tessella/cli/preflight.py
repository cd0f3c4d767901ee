"""Checks of command-line arguments before anything slow is imported: paths, model names, numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from ..data.names import is_missing_path
from ..errors import UsageError, WeightsError

# parameters that name a file to write
_OUTPUTS = ("out", "bad_inputs", "prometheus", "sheet", "why", "receipt", "csv_file", "plot", "html", "write_list")
MAX_COUNT = 1_000_000_000  # larger counts on the command line are mistakes, and overflow some libraries


def count_type(least: int = 1, most: int = MAX_COUNT) -> click.IntRange:
    """Return the type of an option that is a count."""
    return click.IntRange(least, most)


def check(values: Mapping[str, Any]) -> None:
    """Check the arguments of a command by the names of its parameters. Raises UsageError or WeightsError."""
    for name, checker in _CHECKS.items():
        value = values.get(name)
        if name == "model" and values.get("server") is not None:
            continue  # the server knows its models
        if value is not None:
            for item in value if isinstance(value, tuple) else (value,):
                checker(item)
    for output in filter(values.get, _OUTPUTS):
        _check_output(values[output], [value for name, value in values.items() if name not in _OUTPUTS])


def _check_output(path: Any, others: Iterable[Any]) -> None:
    """Check that a file to write is none of the files that the other arguments name: that file would be lost."""
    if not isinstance(path, str) or not os.path.isfile(path):  # noqa: PTH113 - as below
        return
    values = [item for value in others for item in (value if isinstance(value, tuple) else (value,))]
    for name in (value for value in values if isinstance(value, str)):
        for file in (name, name.removeprefix("@"), name.removeprefix("local-dir:")):
            if os.path.isfile(file) and os.path.samefile(file, path):  # noqa: PTH113, PTH121
                message = f"{path!r} is an input, and would be replaced by the result"
                raise UsageError("bad_argument", message, hint="write the result to another file")


def _check_data(name: str) -> None:
    if is_missing_path(name):
        raise UsageError(
            "not_found",
            f"there is no file or folder {name!r}",
            hint="DATA is an image folder, a .parquet, .tar, .csv or .tsv file, a folder of these, or a glob",
        )


def _check_input(name: str) -> None:
    if is_missing_path(name):
        raise UsageError("not_found", f"there is no file or folder {name!r}")


def _check_weights(name: str) -> None:
    if not os.path.isfile(name):  # noqa: PTH113 - Path.is_file raises for names that are too long
        state = "is a folder" if os.path.isdir(name) else "does not exist"  # noqa: PTH112
        raise WeightsError("weights_not_found", f"the weight file {name!r} {state}")


def _check_model(name: str) -> None:
    from ..weights.catalogue import DEPRECATED, resolve
    from ..weights.names import local_folder

    if name.startswith("local-dir:"):
        local_folder(name)
    elif not name.startswith(("hf-hub:", "hf_hub:")) and name not in DEPRECATED and name != "default":
        resolve(name)  # `export` accepts the name "default"


def _check_teacher(name: str) -> None:
    """Check a model name as above; a teacher may also be a file or an exported folder."""
    from ..training.config import is_teacher_file, teacher_path

    if not is_teacher_file(name):
        _check_model(name)
    elif not os.path.lexists(teacher_path(name)):
        raise WeightsError("weights_not_found", f"there is no teacher {name!r}")


def _check_unlabelled(name: str) -> None:
    if is_missing_path(name):
        raise UsageError("not_found", f"there is no file or folder {name!r} of unlabeled images")


_CHECKS: dict[str, Callable[[str], None]] = {
    "data": _check_data,
    "val": _check_data,
    "images": _check_input,
    "source": _check_weights,
    "checkpoint": _check_weights,
    "model": _check_model,
    "models": _check_model,
    "name": _check_model,
    "like": _check_input,
    "weights": _check_model,
    "teacher": _check_teacher,
    "unlabelled": _check_unlabelled,
    "unknown": _check_input,
    "calibration": _check_input,
}
