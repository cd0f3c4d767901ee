"""Teaching: heads are fitted to rows that a user has marked, rank the collection, and are saved with the run."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...errors import TessellaError, UsageError
from ...search import Head, list_heads
from ...search.heads import check_head_name, head_path
from ...text import finite
from ..collection import OpenedIndex
from ..openapi import error_responses
from ..problems import RequestError
from ..search import MAX_FOUND, teach
from . import index_schemas as schemas
from .index_common import TAGS, detail_of, responses, run
from .native import json_response

router = APIRouter()
MAX_HEADS = 1_000  # that are listed


@router.post(
    "/v1/teach",
    **responses("/v1/teach", schemas.TaughtBody, 409),
    openapi_extra=schemas.body_of(schemas.TeachBody, {"yes": [0], "no": [1], "top": 10}),
)
async def teach_class(request: Request) -> Response:
    """Fit a head to rows that are marked yes and no, and rank all rows by the probability of its class."""
    body = await schemas.read_object(request, schemas.TeachBody)
    if body.start + body.top > MAX_FOUND:
        raise RequestError("unprocessable", "These results are too far from the best ones.")
    name = None if body.name is None else _head_name(body.name)
    selection = body.selection()

    def work(opened: OpenedIndex) -> dict[str, object]:
        taught = teach(opened, name or "class", body.yes, body.no or (), body.start, body.top, selection)
        if name is not None:
            taught.head.save(opened.index.out, replace=body.replace)
        return {
            "ranked": taught.ranked,
            "matching": taught.matching,
            "rows": opened.index.rows,
            "train_ms": round(taught.milliseconds, 3),
            "separable": taught.head.separable,
            "saved": name,
        }

    return json_response(finite(await run(request, work)))


@router.post(
    "/v1/heads",
    status_code=201,
    response_class=Response,
    responses={
        201: {"model": schemas.HeadBody, "description": "The head was saved."},
        **error_responses("/v1/heads", 404, 409, 422, 504),
    },
    openapi_extra=schemas.body_of(schemas.SaveHeadBody, {"name": "red shoes", "yes": [0], "no": [1]}),
    tags=TAGS,
)
async def save_head(request: Request) -> Response:
    """Fit a head to marked rows and save it with the run, where `tessella classify --head RUN:NAME` finds it."""
    body = await schemas.read_object(request, schemas.SaveHeadBody)
    name = _head_name(body.name)

    def work(opened: OpenedIndex) -> dict[str, object]:
        head = Head.fit(opened.index, name, body.yes, body.no or ())
        head.save(opened.index.out, replace=body.replace)
        return _described(head, opened)

    return json_response(await run(request, work), 201)


@router.get("/v1/heads", **responses("/v1/heads", schemas.HeadListBody))
async def heads(request: Request) -> Response:
    """List the saved heads of the collection; files that are damaged are left out."""

    def work(opened: OpenedIndex) -> list[dict[str, object]]:
        found = []
        for name in list_heads(opened.index.out)[:MAX_HEADS]:
            with suppress(TessellaError):
                found.append(_described(Head.load(head_path(opened.index.out, name)), opened))
        return found

    return json_response({"heads": await run(request, work)})


def _described(head: Head, opened: OpenedIndex) -> dict[str, object]:
    facts = {"name": head.name, "model": opened.model, "fingerprint": head.fingerprint}
    return facts | {"yes": len(head.yes), "no": len(head.no)}


def _head_name(name: str) -> str:
    try:
        return check_head_name(name)
    except UsageError as error:
        raise RequestError("unprocessable", detail_of(error)) from error
