"""Import packages that may not be installed, with one error and one hint for all."""

from __future__ import annotations

import importlib
from importlib import util
from types import ModuleType

from .errors import UsageError

DISTRIBUTIONS = {"prometheus_client": "prometheus-client", "PIL": "pillow"}  # if they differ from the import names


def require(module: str, purpose: str) -> ModuleType:
    """Import `module` (dotted names are allowed) and return it.

    purpose: the subject of the message, "reading Parquet files" in "reading Parquet files needs pyarrow".
    Raises UsageError `missing_dependency` with the command that installs the package.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)  # a loaded submodule does not prove that its package is available
        return importlib.import_module(module)
    except ImportError as error:
        missing = not error.name or error.name.partition(".")[0] == package
        state = "is not installed" if missing else f"cannot be imported: {error}"
        raise UsageError(
            "missing_dependency", f"{purpose} needs {package}, which {state}", hint=install_command([package])
        ) from None


def check_installed(package: str, purpose: str) -> None:
    """Raise the UsageError of `require` if a package is not installed, without importing it: that may take seconds."""
    if not util.find_spec(package):
        raise UsageError(
            "missing_dependency",
            f"{purpose} needs {package}, which is not installed",
            hint=install_command([package]),
        )


def need_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Return `pyarrow` and `pyarrow.parquet`; raises UsageError `missing_dependency` as `require` does."""
    return require("pyarrow", "Parquet"), require("pyarrow.parquet", "Parquet")


def install_command(packages: list[str]) -> str:
    """Return the `pip install` command for packages, given by their import names.

    The command does not use extras, because `tessella` on PyPI is another project.
    """
    return " ".join(["pip install", *(DISTRIBUTIONS.get(name, name) for name in packages)])
