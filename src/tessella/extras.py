"""Import packages that may not be installed, with one error and one hint for all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import util
from types import ModuleType

import lazy_loader

from .errors import UsageError

DISTRIBUTIONS = {
    "prometheus_client": "prometheus-client",
    "PIL": "pillow",
    "python_multipart": "python-multipart",
    "umap": "umap-learn",
}  # if they differ from the import names


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
        raise _missing(package, purpose, state) from None


def check_installed(package: str, purpose: str) -> None:
    """Raise the UsageError of `require` if a package is not installed, without importing it: that may take seconds."""
    if not is_installed(package):
        raise _missing(package, purpose)


def _missing(package: str, purpose: str, state: str = "is not installed") -> UsageError:
    return UsageError(
        "missing_dependency", f"{purpose} needs {package}, which {state}", hint=install_command([package])
    )


def public_names(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package whose names are loaded on first use.

    package, file: its `__name__` and `__file__`; the names are listed in the `.pyi` stub next to the file. A name that
    needs PyTorch raises UsageError `missing_dependency` if it is not installed.
    """
    load, names, public = lazy_loader.attach_stub(package, file)

    def load_name(name: str) -> object:
        try:
            return load(name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise _missing("torch", f"{package}.{name}") from None

    return load_name, names, public


def is_installed(package: str) -> bool:
    """Return whether a package can be found, without importing it."""
    return util.find_spec(package) is not None


def need_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Return `pyarrow` and `pyarrow.parquet`; raises UsageError `missing_dependency` as `require` does."""
    return require("pyarrow", "Parquet"), require("pyarrow.parquet", "Parquet")


def install_command(packages: list[str]) -> str:
    """Return the `pip install` command for packages, given by their import names.

    The command does not use extras, because `tessella` on PyPI is another project.
    """
    return " ".join(["pip install", *(DISTRIBUTIONS.get(name, name) for name in packages)])
