"""Import LanceDB without the client of its web service, which a table on disk does not need."""

from __future__ import annotations

import sys
from importlib import util
from types import ModuleType

from ..extras import require

_CLIENT = "lance_namespace_urllib3_client"


def import_lancedb() -> ModuleType:
    """Return the module `lancedb`. Raises UsageError `missing_dependency`."""
    if "lancedb" not in sys.modules:
        _defer_client()
    require("lancedb.index", "a search index")
    return require("lancedb", "a search index")


def _defer_client() -> None:
    """Let the package of the client run its code when a name of it is used, and not when LanceDB imports a submodule.

    It prepares the checks of every request that the service knows, which is half of the time of LanceDB's import.
    """
    spec = util.find_spec(_CLIENT)
    if spec is None or spec.loader is None or _CLIENT in sys.modules:
        return
    client = util.module_from_spec(spec)
    execute = spec.loader.exec_module

    def load_name(name: str) -> object:
        if name.startswith("__"):  # what the import system looks for
            raise AttributeError(f"module {_CLIENT!r} has no attribute {name!r}")
        del client.__getattr__
        execute(client)
        return getattr(client, name)

    client.__getattr__ = load_name  # type: ignore[method-assign]
    sys.modules[_CLIENT] = client
