"""LanceDB is imported without its web client, which is loaded when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tessella.errors import UsageError
from tessella.search.lance import import_lancedb


def test_the_client_is_loaded_on_first_use() -> None:
    code = (
        "import sys; from tessella.search.lance import import_lancedb\n"
        "lancedb = import_lancedb()\n"
        "api = 'lance_namespace_urllib3_client.api'\n"
        "print(lancedb.__name__, api in sys.modules)\n"
        "import lance_namespace_urllib3_client as client\n"
        "print(hasattr(client, 'NoSuchName'), client.ApiClient.__name__, api in sys.modules)\n"
        "from lance_namespace_urllib3_client import TableApi\n"
        "print(TableApi.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "lancedb False",
        "False ApiClient True",
        "lance_namespace_urllib3_client.api.table_api",
    ]


def test_without_lancedb_an_index_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(UsageError, match="a search index needs lancedb") as caught:
        import_lancedb()
    assert caught.value.code == "missing_dependency"
