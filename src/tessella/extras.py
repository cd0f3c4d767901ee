"""Packages that may be missing: one function imports them, with one error and one hint."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import UsageError

DISTRIBUTIONS = {"prometheus_client": "prometheus-client", "PIL": "pillow"}  # where the import name differs


def require(module: str, purpose: str) -> Any:
    """Import `module` (dotted names are allowed) and return it.

    purpose: what needs the package, as the subject of the message ("reading Parquet files").
    Raises UsageError `missing_dependency` with the command that installs the package.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)  # a submodule alone may still be loaded where its package was removed
        return importlib.import_module(module)
    except ImportError as error:
        missing = not error.name or error.name.partition(".")[0] == package
        state = "is not installed" if missing else f"cannot be imported: {error}"
        raise UsageError(
            "missing_dependency", f"{purpose} needs {package}, which {state}", hint=install_command([package])
        ) from None


def install_command(packages: list[str]) -> str:
    """The `pip install` command that provides `packages`, given by their import names.

    It names the packages, not an extra: on PyPI `tessella` is another project.
    """
    return " ".join(["pip install", *(DISTRIBUTIONS.get(name, name) for name in packages)])
