"""`POST /v2/embed` of Cohere, for images.

Embeddings have unit length. `float` and `base64` (little-endian float32) are exact; `ubinary` has one bit per number, 1
if it is positive, eight to a byte, and `binary` is the same less 128. `int8` and `uint8` are refused: their scale is a
property of Cohere's own models. `output_dimension` must be the width of the model. A request fails as a whole if one
of its images is bad.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...results import FloatArray
from ..problems import RequestError
from .embedding import (
    NO_TEXT,
    embed_texts,
    fingerprint_header,
    open_model,
    pack_signs,
    read_object,
    require_count,
    to_base64,
    unit_embeddings,
)
from .foreign_schemas import cohere_documentation
from .native import json_response

INPUT_TYPES = ("image", "search_document", "search_query", "classification", "clustering")
TYPES: dict[str, Callable[[FloatArray], object]] = {
    "float": lambda vectors: vectors.tolist(),
    "base64": lambda vectors: [to_base64(vector) for vector in vectors],
    "ubinary": pack_signs,
    "binary": lambda vectors: [[byte - 128 for byte in row] for row in pack_signs(vectors)],
}
MAX_TYPES = 16  # in a request

MODEL_PATHS = ("/v2/embed",)
router = APIRouter(tags=["Cohere"])


@router.post("/v2/embed", response_class=Response, **cohere_documentation("/v2/embed"))
async def embed(request: Request) -> Response:
    """Embed images that are given as data URIs."""
    body = await read_object(request)
    model = body.get("model")
    if not isinstance(model, str):
        raise RequestError("bad_request", "'model' is not the name of a model.")
    if body.get("input_type") not in INPUT_TYPES:
        raise RequestError("bad_request", "'input_type' is not 'image', or another type that Cohere has.")
    texts, types = find_images(request, body), find_types(body.get("embedding_types"))
    served = await open_model(request, model, body.get("output_dimension"))
    if served.width % 8 and {"binary", "ubinary"} & set(types):
        raise RequestError("bad_request", "The model has no binary embeddings: its width is not a multiple of 8.")
    answer = await embed_texts(request, texts, served)
    vectors = unit_embeddings(answer)
    content = dict(
        id=request.state.request_id,
        response_type="embeddings_by_type",
        embeddings={name: TYPES[name](vectors) for name in types},
        meta={"api_version": {"version": "2"}, "billed_units": {"images": len(vectors)}},
    )
    return json_response(content, headers=fingerprint_header(answer))


def find_images(request: Request, body: Mapping[str, object]) -> list[str]:
    """Return the images of a request: those of 'images', or of 'inputs' with one image each.

    Raises RequestError `bad_request`, ServeError `too_many_images`.
    """
    if body.get("texts"):
        raise RequestError("bad_request", NO_TEXT)
    entries = body.get("images")
    if body.get("inputs") is not None:
        inputs = body["inputs"]
        if entries is not None or not isinstance(inputs, list):
            raise RequestError("bad_request", "The request needs either 'images' or 'inputs', a list.")
        require_count(request, inputs)
        entries = [find_image(entry) for entry in inputs]
    if not isinstance(entries, list):
        raise RequestError("bad_request", "'images' is not a list of data URIs.")
    require_count(request, entries)
    if not all(isinstance(entry, str) for entry in entries):
        raise RequestError("bad_request", "'images' is not a list of data URIs.")
    return cast("list[str]", entries)


def find_image(entry: object) -> str:
    """Return the image of an element of 'inputs'. Raises RequestError `bad_request` for any other content."""
    match entry:
        case {"content": [{"type": "image_url", "image_url": {"url": str(text)}}]}:
            return text
    raise RequestError("bad_request", "An element of 'inputs' does not have one image as its content. " + NO_TEXT)


def find_types(entries: object) -> list[str]:
    """Return the requested embedding types; `float` if none are named. Raises RequestError `bad_request`."""
    if entries is None:
        return ["float"]
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_TYPES:
        raise RequestError("bad_request", "'embedding_types' is not a list of types.")
    if not all(isinstance(entry, str) and entry in TYPES for entry in entries):
        raise RequestError(
            "bad_request",
            "An embedding type is not one of float, base64, binary and ubinary; the scale of int8 and uint8 is a"
            " property of Cohere's models.",
        )
    return list(dict.fromkeys(entries))
