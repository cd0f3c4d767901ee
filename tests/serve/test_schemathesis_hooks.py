"""Which reports of Schemathesis about accepted requests are dropped: those about valid requests only."""

from __future__ import annotations

from typing import Any

import pytest
from schemathesis.transport.serialization import Binary

from .schemathesis_hooks import is_valid

SCHEMA = {
    "type": "object",
    "properties": {
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
        "options": {"$ref": "#/components/schemas/Options"},
    },
    "required": ["file"],
}
OPTIONS = {"properties": {"unknown": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}, "additionalProperties": False}
DESCRIBED: dict[str, Any] = {
    "paths": {"/search": {"post": {"requestBody": {"content": {"multipart/form-data": {"schema": SCHEMA}}}}}},
    "components": {"schemas": {"Options": OPTIONS}},
}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"file": [Binary(b"\x89PNG")], "options": {"unknown": None}}, True),
        ({"file": [b"\x89PNG"]}, True),
        ({"file": [Binary(b"\x89PNG")], "options": {"unknown": 1}}, False),
        ({"file": [Binary(b"\x89PNG")], "options": {"other": None}}, False),
        ({"file": []}, False),
        ({"options": {"unknown": None}}, False),
    ],
)
def test_bodies_with_binary_parts_are_validated(body: object, expected: bool) -> None:
    assert is_valid(body, DESCRIBED, ("/search", "post"), "multipart/form-data") == expected
