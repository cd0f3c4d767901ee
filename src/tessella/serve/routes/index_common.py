"""What the routes of a collection share: its threads, texts for its errors, and descriptions for OpenAPI."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ...errors import UsageError
from ..collection import Collection, OpenedIndex
from ..disconnects import run_unless_disconnected
from ..images import settings_of
from ..openapi import error_responses
from ..problems import RequestError

Value = TypeVar("Value")
TAGS: list[str | Enum] = ["collection"]
FILTER = {"label": ["cat"], "min_width": 100}  # for examples


def collection_of(request: Request) -> Collection:
    """Return the collection of the server. Raises RequestError `not_found` if there is none."""
    collection = request.app.state.collection
    if collection is None:
        raise RequestError("not_found", "This server was started without --index.")
    assert isinstance(collection, Collection)
    return collection


async def run(request: Request, work: Callable[[OpenedIndex], Value], seconds: float | None = None) -> Value:
    """Call `work` with the index in a thread, unless the client leaves."""
    longest = settings_of(request).deadline
    limit = longest if seconds is None else min(seconds, longest)
    try:
        return await run_unless_disconnected(request, collection_of(request).run(work, limit))
    except UsageError as error:
        raise _public(error) from error


def _public(error: UsageError) -> UsageError | RequestError:
    """Return an error of the index with one fixed sentence for what a client can do about it."""
    detail = detail_of(error)
    if error.code == "bad_argument":
        return RequestError("unprocessable", detail)
    return RequestError(error.code, detail) if detail else error


def detail_of(error: UsageError) -> str:
    """Return a fixed sentence for an error of the index; "" if its code says enough."""
    sentences = {
        "the model has no class": "The model has no class of the name given in the filter.",
        "the index has no map": "The index has no map; tessella index RUN --map adds one.",
        "the run was made without a calibration": "The run was made without a calibration, which finds unknown images.",
        "the index has no row": "A row is not in the index.",
        "the edges of the polygon": "The polygon is too complex for the number of images.",
        "the queries cancel": "The queries cancel each other out.",
        "row ": "A row is marked yes and no.",
        "no image is marked yes": "Mark at least one image as yes: an image that shows the class.",
        "there is no other image": "All images of the collection are marked yes: at least one must not show the class.",
        "the head gives every image": "The images marked yes and no look the same: mark other images.",
        "the name of the head": "The name of a head has up to 64 letters, digits and spaces.",
    }
    return next((text for start, text in sentences.items() if error.message.startswith(start)), "")


def responses(path: str, kind: Any, *statuses: int, description: str = "The result.") -> dict[str, Any]:
    """Return arguments of a route for its description. kind: the model of the answer, or its content."""
    answer: dict[str, Any] = {"model": kind} if isinstance(kind, type) else dict(kind)
    described = {200: {"description": description} | answer, **error_responses(path, 404, 422, 504, *statuses)}
    if 304 in described:
        described[304] = {"description": "The client has this version."}
    return {"response_class": Response, "responses": described, "tags": TAGS}
