"""Embeddings for the protocols of other servers: JSON with images as texts in, encoded vectors out.

These protocols have no status per image, so that a request fails as a whole if one of its images is bad. Keys of a
request that are not known are ignored, since clients send settings of other servers' models.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence, Sized

import numpy as np
from starlette.requests import Request

from ...errors import ImageError, ServeError
from ...results import FloatArray, Output, l2_normalize
from ..disconnects import run_unless_disconnected
from ..images import load_texts, read_json, settings_of
from ..problems import RequestError, limit_message
from ..service import Answer, ServedModel
from .native import deadline_of, service_of

NO_TEXT = "The models of this server embed images, not texts: send images as data URIs."


async def read_object(request: Request) -> dict[str, object]:
    """Return the body of a request, which must be a JSON object. Raises RequestError `bad_request`."""
    value = await read_json(request)
    if not isinstance(value, dict):
        raise RequestError("bad_request", "The body is not a JSON object.")
    return value


async def open_model(request: Request, model: str | None, dimensions: object) -> ServedModel:
    """Return a model for embeddings, None for the default one, which is loaded first if necessary.

    dimensions: how many a client asks for; None and 0 stand for those of the model. Raises RequestError `bad_request`
    for another number; UsageError `unknown_model`; ServeError.
    """
    served = await service_of(request).open(model, "embed")
    if isinstance(dimensions, bool) or dimensions not in (None, 0, served.width):
        raise RequestError("bad_request", "The embeddings of a model have a fixed number of dimensions.")
    return served


async def embed_texts(request: Request, texts: Sequence[str], served: ServedModel) -> Answer:
    """Run a model on images that are given as base64, data URIs or addresses. Raises ServeError."""
    deadline, start = deadline_of(request) or settings_of(request).deadline, time.monotonic()
    images = await load_texts(request, texts, deadline)
    left = max(0.0, deadline - (time.monotonic() - start))
    work = service_of(request).infer(images, model=served.name, task="embed", deadline=left)
    return await run_unless_disconnected(request, work)


def require_count(request: Request, entries: Sized) -> None:
    """Check the number of images of a request. Raises RequestError `bad_request`, ServeError `too_many_images`."""
    limit = settings_of(request).max_images
    if not len(entries):
        raise RequestError("bad_request", "The request has no images.")
    if len(entries) > limit:
        raise ServeError("too_many_images", f"the request has {len(entries):,} images, the limit is {limit:,}")


def good_outputs(answer: Answer) -> list[Output]:
    """Return the outputs of all images. Raises RequestError with the code of the first bad image, and its number."""
    outputs = []
    for index, outcome in enumerate(answer.outcomes):
        if isinstance(outcome, ImageError) or not outcome.is_finite:
            code = outcome.code if isinstance(outcome, ImageError) else "non_finite"
            reason = f": {limit_message(outcome)}" if isinstance(outcome, ImageError) and limit_message(outcome) else ""
            raise RequestError(code, f"This is the error {code} of image {index}, counted from 0{reason}.")
        outputs.append(outcome)
    return outputs


def unit_embeddings(answer: Answer) -> FloatArray:
    """Return the embeddings of all images, (N, width) float32 of unit length. Raises as `good_outputs`."""
    return l2_normalize(np.stack([output.embedding for output in good_outputs(answer)]))


def to_base64(vector: FloatArray) -> str:
    """Return the numbers of a vector, little-endian float32, as base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def pack_signs(vectors: FloatArray) -> list[list[int]]:
    """Return one bit for each number, 1 if it is positive: (N, 8 n) float32 -> N rows of n bytes, 0 to 255.

    The first number of eight is the highest bit.
    """
    rows: list[list[int]] = np.packbits(vectors > 0, axis=1).tolist()
    return rows


def fingerprint_header(answer: Answer) -> dict[str, str]:
    """Return the header with the fingerprint of the model that answered."""
    return {"X-Tessella-Fingerprint": answer.model.fingerprint}
