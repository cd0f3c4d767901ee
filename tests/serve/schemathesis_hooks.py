"""Loaded by Schemathesis: drops reports of accepted invalid requests if the request is valid.

Schemathesis mutates valid data, and sends what does not match the schema any more. It cannot validate data with binary
parts, such as uploaded files, and calls all of them invalid. A mutation of one alternative of `anyOf` is often valid by
another one, though, so these requests are validated here with text in the place of the binary parts.
"""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import schemathesis
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.transport.serialization import Binary, contains_binary


def without_binary(value: object) -> object:
    """Return data with text in the place of binary parts, which match schemas of strings."""
    if isinstance(value, Binary | bytes):
        return "binary"
    if isinstance(value, dict):
        return {key: without_binary(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_binary(item) for item in value]
    return value


def is_valid(body: object, described: dict[str, Any], operation: tuple[str, str], media_type: str) -> bool:
    """Return whether a body matches the schema of an operation (path, method in lower case)."""
    path, method = operation
    schema = described["paths"][path][method]["requestBody"]["content"][media_type]["schema"]
    validator = jsonschema_rs.Draft202012Validator({**schema, "components": described.get("components", {})})
    return bool(validator.is_valid(without_binary(body)))


@schemathesis.hook
def filter_failure(context: Any, failure: Exception, case: Any, response: Any) -> bool:
    """Keep a failure unless it is about a valid body with binary parts, and nothing else of the request was mutated."""
    if not isinstance(failure, AcceptedNegativeData) or not contains_binary(case.body):
        return True
    mutated = {location.name for location, part in case.meta.components.items() if part.mode.is_negative}
    operation = case.operation.path, case.operation.method.lower()
    return mutated != {"BODY"} or not is_valid(case.body, case.operation.schema.raw_schema, operation, case.media_type)
