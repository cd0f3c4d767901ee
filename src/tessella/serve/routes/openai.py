"""`POST /v1/embeddings` of OpenAI, for images, and the routes of Infinity, which has the same form without `/v1`.

OpenAI has no form for images, so those of two other servers are accepted. Infinity: `input` is a data URI or a list of
them, with `"modality": "image"`. Jina: `input` is a list of `{"image": TEXT}`. A data URI of an image is also taken
without a modality. Embeddings have unit length. A request fails as a whole if one of its images is bad. Images have no
tokens, so `usage` is 0.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...errors import UsageError
from ..openapi import error_responses
from ..problems import RequestError
from .embedding import (
    NO_TEXT,
    embed_texts,
    fingerprint_header,
    open_model,
    read_object,
    require_count,
    to_base64,
    unit_embeddings,
)
from .foreign_schemas import InfinityModelsBody, TimeBody, embeddings_documentation
from .native import json_response, model_row, service_of
from .native_schemas import ModelBody

UNSPECIFIED = (None, "", "default/not-specified")  # the last is what Infinity's client sends
FORMATS = (None, "float", "base64")

MODEL_PATHS = ("/v1/embeddings", "/embeddings", "/embeddings_image")
router = APIRouter()
_MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": ModelBody, "description": "The model."},
    **error_responses("/v1/models/{name}", 404),
}


@router.post("/v1/embeddings", tags=["OpenAI"], response_class=Response, **embeddings_documentation("/v1/embeddings"))
@router.post("/embeddings", tags=["Infinity"], response_class=Response, **embeddings_documentation("/embeddings"))
async def embeddings(request: Request) -> Response:
    """Embed images that are given as data URIs."""
    body = await read_object(request)
    return await answer_embeddings(request, body, find_images(request, body))


@router.post(
    "/embeddings_image",
    tags=["Infinity"],
    response_class=Response,
    **embeddings_documentation("/embeddings_image"),
)
async def embeddings_image(request: Request) -> Response:
    """Embed images that are given as data URIs or base64."""
    body = await read_object(request)
    return await answer_embeddings(request, body, find_images(request, {**body, "modality": "image"}))


@router.get("/health", tags=["Infinity"], response_model=TimeBody)
async def health() -> dict[str, float]:
    """Return the time in seconds while the process serves."""
    return dict(unix=time.time())


@router.get("/v1/models/{name:path}", tags=["OpenAI"], response_class=Response, responses=_MODEL_RESPONSES)
async def model(request: Request, name: str) -> Response:
    """Return one model of the list of models. Raises UsageError `unknown_model`."""
    service = service_of(request)
    for status in service.models():
        if status.name == name:
            return json_response(model_row(service, status))
    raise UsageError("unknown_model", f"no model {name!r} is served")


@router.get("/models", tags=["Infinity"], response_model=InfinityModelsBody)
async def models(request: Request) -> dict[str, object]:
    """List the models as Infinity's client reads them: it accepts no other owner than Infinity, so there is none."""
    data = [
        dict(
            id=status.name,
            object="model",
            created=0,
            backend="tessella",
            capabilities=["image_embed"],
            stats=dict(state=status.state),
        )
        for status in service_of(request).models()
    ]
    return dict(object="list", data=data)


async def answer_embeddings(request: Request, body: Mapping[str, object], texts: list[str]) -> Response:
    """Answer a request for the embeddings of images. Raises RequestError, UsageError `unknown_model`, ServeError."""
    model, form = body.get("model"), body.get("encoding_format")
    if model is not None and not isinstance(model, str):
        raise RequestError("bad_request", "'model' is not the name of a model.")
    if form not in FORMATS:
        raise RequestError("bad_request", "'encoding_format' is neither 'float' nor 'base64'.")
    served = await open_model(request, None if model in UNSPECIFIED else model, body.get("dimensions"))
    answer = await embed_texts(request, texts, served)
    vectors = unit_embeddings(answer)
    data = [
        dict(object="embedding", index=index, embedding=to_base64(vector) if form == "base64" else vector.tolist())
        for index, vector in enumerate(vectors)
    ]
    usage = dict(prompt_tokens=0, total_tokens=0)
    content = dict(object="list", data=data, model=answer.model.name, usage=usage)
    return json_response(content, headers=fingerprint_header(answer))


def find_images(request: Request, body: Mapping[str, object]) -> list[str]:
    """Return the images of a request as texts.

    Raises RequestError `bad_request`, also for texts to embed; ServeError `too_many_images`.
    """
    entries, modality = body.get("input"), body.get("modality")
    if not isinstance(entries, list):
        entries = [entries]
    if modality in ("text", "audio"):
        raise RequestError("bad_request", NO_TEXT)
    if modality not in (None, "image"):
        raise RequestError("bad_request", "'modality' is not 'image'.")
    require_count(request, entries)
    return [find_image(entry, modality) for entry in entries]


def find_image(entry: object, modality: object) -> str:
    """Return the image of an element of 'input'. Raises RequestError `bad_request` if it is none."""
    match entry:
        case {"image": str(text), **others} if not others:
            return text
        case str(text) if modality == "image" or (modality is None and text[:11].lower() == "data:image/"):
            return text
        case str() | {"text": _} | int() | list():  # tokens are integers, or lists of them
            raise RequestError("bad_request", NO_TEXT)
    raise RequestError("bad_request", "'input' is not an image or a list of images.")
