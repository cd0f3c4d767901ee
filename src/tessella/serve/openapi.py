"""The OpenAPI description of all routes: what FastAPI derives, the errors of the gate, and the token."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus

from fastapi import FastAPI
from pydantic import BaseModel

from .problems import Dialect, dialect_of
from .security import HEALTH_PATHS

Schema = dict[str, object]


class ProblemBody(BaseModel):
    """An error, by RFC 9457 with a code.

    title, error: the fixed text of the code. detail: one sentence about what to change, or about a limit with the
    number that was given; otherwise the same text.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    error: str
    request_id: str


_TEXT: Schema = {"type": "string"}
_DIALECTS: dict[Dialect, tuple[str, str, Schema]] = {  # media type, name of the schema, schema
    "problem": ("application/problem+json", "Problem", ProblemBody.model_json_schema()),
    "open_inference": (
        "application/json",
        "OpenInferenceError",
        {"type": "object", "required": ["error"], "properties": {"error": _TEXT}},
    ),
    "cohere": (
        "application/json",
        "CohereError",
        {"type": "object", "required": ["id", "message"], "properties": {"id": _TEXT, "message": _TEXT}},
    ),
    "openai": (
        "application/json",
        "OpenAIError",
        {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "code"],
                    "properties": {"message": _TEXT, "type": _TEXT, "code": _TEXT, "param": {"type": "null"}},
                }
            },
        },
    ),
}
_OF_EVERY_ROUTE = (400, 403, 405, 408, 413, 415, 429, 431, 500, 503)
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The token of the server."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The token of the server."},
}


def error_responses(path: str, *statuses: int) -> dict[int | str, dict[str, object]]:
    """Return the descriptions of error statuses for the route `path`, for the argument `responses` of FastAPI."""
    media_type, name, _ = _DIALECTS[dialect_of(path)]
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def describe(app: FastAPI, *, has_token: bool, open_paths: Collection[str]) -> None:
    """Add to the description of `app` what the gate does. open_paths: need no token."""
    derive = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = derive()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {}).update({name: body for _, name, body in _DIALECTS.values()})
            if has_token:
                components["securitySchemes"] = _SCHEMES
                schema["security"] = [{name: []} for name in _SCHEMES]
            for path, operations in schema["paths"].items():
                is_open = path in HEALTH_PATHS or path in open_paths
                statuses = _OF_EVERY_ROUTE if is_open or not has_token else (401, *_OF_EVERY_ROUTE)
                for operation in operations.values():
                    for status, response in error_responses(path, *statuses).items():
                        operation["responses"].setdefault(str(status), response)
                    if has_token and is_open:
                        operation["security"] = []
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
