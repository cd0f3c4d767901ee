"""The collection of a server: search, map, selection, thumbnails, export, and teaching of classes.

These routes exist on every server, and answer 404 `not_found` if it was started without an index.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ...errors import ImageError, UsageError
from ...results import Output, l2_normalize
from ...search import list_heads
from ...search.nearest import Ints
from ...search.query import Query
from ...text import finite
from ..collection import OpenedIndex
from ..disconnects import run_unless_disconnected
from ..images import content_type, decode_text, read_form, settings_of
from ..problems import RequestError
from ..search import (
    EXPORT_STEP,
    MAX_FOUND,
    MAX_GROUPED,
    SearchOptions,
    check_listable,
    csv_header,
    csv_part,
    exported_rows,
    list_part,
    rows_page,
    search,
)
from ..selection import Selection
from ..strict_json import parse_json
from ..thumbnails import SIZES, ByteCache, make_thumbnail, thumbnail_spec
from . import index_schemas as schemas
from .index_common import FILTER, collection_of, responses, run
from .native import deadline_of, json_response, service_of
from .page import has_version

router = APIRouter()
_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


# --- the collection ---------------------------------------------------------------------------------------------------


@router.get("/v1/index", **responses("/v1/index", schemas.IndexBody))
async def index(request: Request) -> Response:
    """Describe the collection: its size, classes, map and heads."""

    def describe(opened: OpenedIndex) -> dict[str, object]:
        columns, found = opened.columns, opened.map
        counts = np.bincount(columns.labels, minlength=len(columns.names))
        labels = [{"label": name, "count": int(counts[code])} for code, name in enumerate(columns.names)]
        return {
            "rows": opened.index.rows,
            "listed": columns.listed,
            "model": opened.model,
            "fingerprint": opened.facts["fingerprint"],
            "version": opened.version,
            "has_map": found is not None,
            "map": found and {"method": found.method, "explained": list(found.explained)},
            "threshold": opened.threshold,
            "labels": labels,
            "unknown": None if columns.unknown is None else int(columns.unknown.sum()),
            "width_range": _range(columns.widths),
            "height_range": _range(columns.heights),
            "heads": list_heads(opened.index.out),
        }

    return json_response(await run(request, describe))


def _range(values: Any) -> list[int] | None:
    return [int(values.min()), int(values.max())] if len(values) else None


@router.get(
    "/v1/index/map", **responses("/v1/index/map", _BINARY, 304, description="float32 (listed, 2), little-endian.")
)
async def map_points(request: Request) -> Response:
    """Return a point per row of the listing, NaN for inputs that are not in the index."""
    return await _array(request, lambda opened: opened.map_bytes)


@router.get(
    "/v1/index/labels.bin",
    **responses("/v1/index/labels.bin", _BINARY, 304, description="uint16 (listed,), little-endian."),
)
async def label_codes(request: Request) -> Response:
    """Return the position in `labels` of `/v1/index` per row of the listing, 65535 for none."""
    return await _array(request, lambda opened: opened.label_bytes)


async def _array(request: Request, get: Callable[[OpenedIndex], bytes | None]) -> Response:
    data, version = await run(request, lambda opened: (get(opened), opened.version))
    if data is None:
        raise RequestError("not_found", "The index has no map; tessella index RUN --map adds one.")
    return _cached(request, data, version, "application/octet-stream", "no-cache")


def _cached(request: Request, data: bytes, version: str, media_type: str, cache: str) -> Response:
    """Return data with a validator, or 304 if the client has this version."""
    headers = {"ETag": f'"{version}"', "Cache-Control": f"private, {cache}"}
    if _has(request, version):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=media_type)


def _has(request: Request, version: str) -> bool:
    """Return whether the client has this version, by its header If-None-Match."""
    return has_version(request.headers.get("if-none-match"), f'"{version}"')


_PAGE_PARAMETERS = {
    "parameters": [
        {"name": "start", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": schemas.MAX_ROW}},
        {"name": "count", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": schemas.MAX_TOP}},
    ]
}


@router.get("/v1/index/rows", **responses("/v1/index/rows", schemas.SelectedBody), openapi_extra=_PAGE_PARAMETERS)
async def rows(request: Request) -> Response:
    """Return a page of all rows of the index, in the order of the listing."""
    start, count = _number(request, "start", 0, schemas.MAX_ROW), _number(request, "count", 100, schemas.MAX_TOP)
    return await _page(request, Selection(), start, count)


@router.post(
    "/v1/index/select",
    **responses("/v1/index/select", schemas.SelectedBody),
    openapi_extra=schemas.body_of(schemas.SelectBody, {"filter": FILTER, "start": 0, "count": 10}),
)
async def select(request: Request) -> Response:
    """Return how many rows match a filter, and a page of them in the order of the listing."""
    body = await schemas.read_object(request, schemas.SelectBody)
    return await _page(request, body.selection(), body.start, body.count)


async def _page(request: Request, selection: Selection, start: int, count: int) -> Response:
    matching, found = await run(request, lambda opened: rows_page(opened, selection, start, count))
    return json_response(finite({"matching": matching, "start": start, "rows": found}))


def _number(request: Request, name: str, default: int, most: int) -> int:
    """Return a query parameter that is a whole number. Raises RequestError `bad_request`."""
    values = request.query_params.getlist(name)
    text = values[0] if values else str(default)
    if len(values) > 1 or not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= most):
        raise RequestError("bad_request", f'The parameter "{name}" is not a number that is allowed.')
    return int(text)


# --- images -----------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/index/image/{row}",
    **responses(
        "/v1/index/image/{row}",
        {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
        *(304, 409),
        description="A JPEG file.",
    ),
    openapi_extra={
        "parameters": [
            {
                "name": "row",
                "in": "path",
                "required": True,
                "schema": {"type": "integer", "minimum": 0, "maximum": schemas.MAX_ROW},
            },
            {"name": "size", "in": "query", "schema": {"type": "integer", "enum": list(SIZES), "default": 256}},
        ]
    },
)
async def image(request: Request) -> Response:
    """Return the image of a row, fitted into a square of `size` pixels; 0 for its own size, up to 4,000 pixels."""
    text, size = request.path_params["row"], _number(request, "size", 256, max(SIZES))
    if not (text.isascii() and text.isdigit() and len(text) <= 16) or size not in SIZES:
        raise RequestError("bad_request", "A row is a number, and the sizes are 0, 96 and 256.")
    row = int(text)

    def find(opened: OpenedIndex) -> tuple[Any, Any]:
        (neighbor,) = opened.index.neighbors([row])
        return neighbor, opened.source(row)

    neighbor, source = await run(request, find)
    version = f"{neighbor.sha256}-{size}"
    cache: ByteCache = request.app.state.thumbnails
    data = cache.get(version)
    if data is None and not _has(request, version):
        spec = thumbnail_spec(neighbor.width, neighbor.height, size)
        work = make_thumbnail(service_of(request), source, neighbor.sha256, spec)
        data = await run_unless_disconnected(request, work)
        cache.put(version, data)
    return _cached(request, data or b"", version, "image/jpeg", "no-cache")


# --- search -----------------------------------------------------------------------------------------------------------

_SEARCH_EXTRA = schemas.body_of(schemas.SearchBody, {"queries": [{"row": 0}], "top": 10, "filter": FILTER})
_SEARCH_EXTRA["requestBody"]["content"]["multipart/form-data"] = {
    "schema": {
        "type": "object",
        "properties": {
            "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": 64},
            "options": schemas.inlined(schemas.SearchOptionsBody)
            | {"description": "As JSON of at most 65,536 bytes: the keys of a JSON body except queries and negative."},
        },
        "required": ["file"],
        "additionalProperties": False,
    },
    "encoding": {"options": {"contentType": "application/json"}},
}


@dataclass(frozen=True)
class _AskedSearch:
    """A search as it was asked for: rows and encoded images, and the options."""

    positive: list[int | bytes]
    negative: list[int | bytes]
    body: schemas.SearchOptionsBody


class _Embedded(NamedTuple):
    """Queries from images, the fingerprint of their model, and milliseconds by stage; () and "" without images."""

    queries: tuple[Query, ...] = ()
    fingerprint: str = ""
    timing: Mapping[str, float] = MappingProxyType({})


@router.post("/v1/search", **responses("/v1/search", schemas.FoundBody, 409, 501), openapi_extra=_SEARCH_EXTRA)
async def find(request: Request) -> Response:
    """Return the rows that are most similar to images or other rows, or to the mean of several."""
    start = time.perf_counter()
    model = collection_of(request).model
    asked = await _read_search(request)
    body = asked.body
    if body.start + body.top > (MAX_GROUPED if body.group_duplicates else MAX_FOUND):
        raise RequestError("unprocessable", "These results are too far from the best ones.")
    embedded = await _embed(request, model, [*asked.positive, *asked.negative])
    images = iter(embedded.queries)
    positive, negative = (
        [next(images) if isinstance(item, bytes) else item for item in items]
        for items in (asked.positive, asked.negative)
    )
    options = SearchOptions(
        top=body.top,
        start=body.start,
        min_score=body.min_score,
        selection=body.selection(),
        group_duplicates=body.group_duplicates,
    )

    def work(opened: OpenedIndex) -> tuple[OpenedIndex, int, list[dict[str, object]]]:
        if embedded.fingerprint not in ("", opened.facts["fingerprint"]):
            raise RequestError("changed_run", "The server runs the model with other settings than those of the index.")
        return opened, *search(opened, positive, negative, options)

    begin = time.perf_counter()
    opened, matching, found = await run(request, work, deadline_of(request))
    end = time.perf_counter()
    timing = {**embedded.timing, "search": 1000 * (end - begin), "total": 1000 * (end - start)}
    fingerprint = opened.facts["fingerprint"]
    answer = {
        "neighbors": found,
        "matching": matching,
        "rows": opened.index.rows,
        "model": opened.model,
        "fingerprint": fingerprint,
        "timing_ms": {stage: round(value, 3) for stage, value in timing.items()},
    }
    return json_response(finite(answer), headers={"X-Tessella-Fingerprint": fingerprint})


async def _read_search(request: Request) -> _AskedSearch:
    """Read a search from a form with files or from JSON. Raises RequestError, and ImageError for a bad image."""
    if content_type(request) == "multipart/form-data":
        form = await read_form(request, {"options"})
        if not form.files:
            raise RequestError("bad_request", "The form has no image.")
        try:
            options = parse_json(form.fields.get("options", "{}").encode())
            form_body = schemas.check_object(options, schemas.SearchOptionsBody)
        except RequestError as error:  # the form itself is right
            raise RequestError("unprocessable", f'In the field "options": {error.message}') from error
        return _AskedSearch([_image_bytes(file.data) for file in form.files], [], form_body)
    body = await schemas.read_object(request, schemas.SearchBody)
    positive = [await _query(request, item) for item in body.queries]
    negative = [await _query(request, item) for item in body.negative or ()]
    return _AskedSearch(positive, negative, body)


async def _query(request: Request, query: schemas.QueryBody) -> int | bytes:
    if (query.row is None) == (query.data is None):
        raise RequestError("unprocessable", 'A query has either "row" or "data".')
    if query.row is not None:
        return query.row
    assert query.data is not None
    return _image_bytes(await asyncio.to_thread(decode_text, query.data, settings_of(request)))


def _image_bytes(data: bytes | ImageError) -> bytes:
    if isinstance(data, ImageError):
        raise data
    return data


async def _embed(request: Request, model: str, items: Sequence[int | bytes]) -> _Embedded:
    """Return queries for those items that are images. Raises ImageError for a bad one, and as `Service.infer`."""
    images = [item for item in items if isinstance(item, bytes)]
    if not images:
        return _Embedded()
    work = service_of(request).infer(images, model=model, task="embed", deadline=deadline_of(request))
    answer = await run_unless_disconnected(request, work)
    queries = []
    for number, outcome in enumerate(answer.outcomes):
        if not isinstance(outcome, Output):
            raise outcome
        if not outcome.is_finite:
            raise ImageError("unreadable", "the embedding of the image is not finite")
        queries.append(Query(f"image {number}", l2_normalize(outcome.embedding[None])[0]))
    return _Embedded(tuple(queries), answer.model.fingerprint, answer.timing)


# --- export -----------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/index/export",
    **responses(
        "/v1/index/export",
        {"content": {name: {"schema": {"type": "string"}} for name in ("text/csv", "text/plain")}},
        description="A file.",
    ),
    openapi_extra=schemas.body_of(schemas.ExportBody, {"filter": FILTER, "format": "csv"}),
)
async def export(request: Request) -> Response:
    """Return rows as CSV, or their files as a list for `tessella run @FILE`, which cannot name images in archives."""
    body = await schemas.read_object(request, schemas.ExportBody)
    if body.rows is not None and body.filter is not None:
        raise RequestError("unprocessable", 'Give either "rows" or "filter".')
    selection = body.selection()

    def begin(opened: OpenedIndex) -> tuple[OpenedIndex, Ints, str]:
        found = exported_rows(opened, selection, body.rows)
        return opened, found, check_listable(opened, found) if body.format == "list" else ""

    try:
        opened, found, separator = await run(request, begin)
    except UsageError as error:
        if error.code != "special_file":
            raise
        raise RequestError("special_file", "Images inside of archives and tables cannot be listed; use CSV.") from error
    encode = csv_part if body.format == "csv" else functools.partial(list_part, separator=separator)

    async def part(start: int) -> bytes:
        work = functools.partial(_part, encode, opened, found[start : start + EXPORT_STEP])
        return await collection_of(request).run(work, settings_of(request).deadline)

    first = await run_unless_disconnected(request, part(0))  # an error can still be an answer

    async def parts() -> AsyncIterator[bytes]:
        if body.format == "csv":
            yield csv_header(opened)
        yield first
        for start in range(EXPORT_STEP, len(found), EXPORT_STEP):
            yield await part(start)

    name, media_type = ("selection.csv", "text/csv") if body.format == "csv" else ("selection.txt", "text/plain")
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(parts(), headers=headers, media_type=media_type)


def _part(encode: Callable[[OpenedIndex, Ints], bytes], opened: OpenedIndex, rows: Ints, now: OpenedIndex) -> bytes:
    """Return a part of a file; all parts are of the state of the index with which it began."""
    return encode(opened, rows)
