"""The family of errors: fixed codes, statuses, and pickling between processes."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

from tessella import errors
from tessella.errors import CODES, HubError, ImageError, TessellaError, UsageError, WeightsError, public_text

SOURCES = Path(errors.__file__).parent


def test_every_code_has_statuses_and_a_public_text() -> None:
    for code, kind in CODES.items():
        assert kind.exit_code in (*range(2, 10), 130), code
        assert 400 <= kind.http_status < 600, code
        assert not re.search(r"0x[0-9a-f]{6}|/|Traceback|object at", public_text(code)), code


def test_every_code_is_raised_somewhere() -> None:
    text = "".join(path.read_text() for path in SOURCES.rglob("*.py") if path.name != "errors.py")
    assert [code for code in CODES if f'"{code}"' not in text] == []


def test_output_failed_is_always_an_output_error() -> None:
    nodes = [node for path in SOURCES.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args]
    failed = [
        call for call in calls if isinstance(call.args[0], ast.Constant) and call.args[0].value == "output_failed"
    ]
    names = {ast.unparse(call.func) for call in failed}
    assert {name for name in names if name.endswith("Error")} == {"OutputError"}


def test_an_unregistered_code_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError):
        TessellaError("no_such_code", "message")


@pytest.mark.parametrize("kind", [TessellaError, UsageError, ImageError, WeightsError, HubError])
def test_errors_survive_pickling(kind: type[TessellaError]) -> None:
    error = pickle.loads(pickle.dumps(kind("bad_argument", "given x, expected y", hint="type z")))
    assert type(error) is kind
    assert (error.code, error.message, error.hint) == ("bad_argument", "given x, expected y", "type z")
    assert str(error) == "given x, expected y (type z)"
    assert (error.exit_code, error.http_status) == (2, 400)
