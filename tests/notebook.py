"""Execute examples/tour.ipynb; `python -m tests.notebook` writes its outputs, which a test keeps up to date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from .structure import ROOT

PATH = ROOT / "examples" / "tour.ipynb"
KERNEL = "python3"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
    "language_info": {"name": "python"},
}
CELL_SECONDS = 600  # generous: other tests may use the processors


class OwnKernelManager(AsyncKernelManager):
    """Starts a kernel with the running interpreter, whatever kernels are installed on the machine."""

    def __init__(self, **options: Any) -> None:
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **options)


def read(path: Path = PATH) -> Any:
    return nbformat.read(path, as_version=4)


def execute(notebook: Any, folder: Path) -> None:
    """Execute the cells in `folder` and store their outputs in the notebook."""
    client = NotebookClient(
        notebook,
        kernel_manager_class=OwnKernelManager,
        kernel_name=KERNEL,
        timeout=CELL_SECONDS,
        startup_timeout=CELL_SECONDS,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)  # without the version of Python


def shown(cell: Any) -> list[object]:
    """Return what a cell shows, without numbers, whose last digits may differ between processors.

    One entry per output: the name of the stream and its text, or the types of a result and its text.
    """
    found: list[object] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            found.append((output.name, without_numbers(output.text)))
        else:
            text = "" if "image/jpeg" in output.data else output.data.get("text/plain", "")
            found.append((output.output_type, sorted(output.data), without_numbers(text)))
    return found


def without_numbers(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[-+]?\d+(\.\d*)?", "#", text)).strip()


def main() -> None:
    notebook = read()
    execute(notebook, PATH.parent)
    nbformat.write(notebook, PATH)


if __name__ == "__main__":
    main()
