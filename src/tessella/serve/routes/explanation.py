"""Explanations: which parts of an image support a class, computed in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...errors import ImageError
from ..disconnects import run_unless_disconnected
from ..explain_process import ClassScore, ExplainedImage
from ..explanations import Box, ExplainAnswer, ExplainOptions
from ..images import read_images
from ..metrics import EXPLAIN_METHODS
from ..openapi import error_responses
from ..problems import RequestError, public_message
from .explanation_schemas import AUTO, ExplanationsBody, explain_extra
from .native import calibration_row, deadline_of, json_response, service_of

MODEL_PATHS = ("/v1/explain",)
PARAMETERS = ("model", "class", "versus", "method")
MAX_CLASS_NAME = 1000  # characters
router = APIRouter()


@router.post(
    "/v1/explain",
    response_class=Response,
    responses={
        200: {"model": ExplanationsBody, "description": "One explanation per image, each with its own status."},
        **error_responses("/v1/explain", 404, 422, 501, 504),
    },
    openapi_extra=explain_extra(),
    tags=["inference"],
)
async def explain(request: Request) -> Response:
    """Explain why the model predicts a class for each image: what supports it, and how faithful this map is.

    Images are explained one after another in a process with PyTorch, which the first request starts.
    """
    service = service_of(request)
    longest = service.settings.explain_deadline
    deadline = min(deadline_of(request) or longest, longest)
    asked = await read_images(request, deadline, PARAMETERS)
    options = read_options(asked.options)
    data = [image.data for image in asked.images]
    work = service.explain(data, options, model=asked.model, deadline=max(0.0, deadline - asked.seconds))
    answer = await run_unless_disconnected(request, work)
    if asked.is_single and isinstance(error := answer.outcomes[0], ImageError):
        raise error
    body = {
        "model": answer.model.name,
        "fingerprint": answer.model.fingerprint,
        "request_id": request.state.request_id,
        "calibration": calibration_row(answer.model),
        "results": results_of(answer, [image.name for image in asked.images]),
        "timing_ms": {stage: round(value, 3) for stage, value in answer.timing.items()},
    }
    return json_response(body, headers={"X-Tessella-Fingerprint": answer.model.fingerprint})


def read_options(values: Mapping[str, object]) -> ExplainOptions:
    """Return the options of a request. Raises RequestError `bad_request` for values that cannot be options."""
    wanted, versus = (_read_class(values.get(name)) for name in ("class", "versus"))
    method = AUTO if values.get("method") is None else values["method"]
    if not isinstance(method, str) or method not in (AUTO, *EXPLAIN_METHODS):
        raise RequestError("bad_request", '"method" is not the name of a method; the API description lists them.')
    return ExplainOptions(wanted, versus, method)


def _read_class(value: object) -> int | str | None:
    """Return a class: its index, a number of JSON or text such as "index:3", or text that `find_class` reads."""
    if isinstance(value, float) and value.is_integer():  # JSON has no integers, only numbers
        value = int(value)
    if isinstance(value, str) and (index := re.fullmatch(r"index:([0-9]{1,9})", value.strip())):
        value = int(index[1])  # unlike bare digits, which may be the name of another class
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**10):
        return value
    if isinstance(value, str) and 0 < len(value.strip()) <= MAX_CLASS_NAME:
        return value
    raise RequestError("bad_request", '"class" and "versus" are names or indices of classes.')


def results_of(answer: ExplainAnswer, names: list[str]) -> list[dict[str, object]]:
    """Return one result per image as JSON; errors have the text of their code, or a limit.

    names: of the images, in order.
    """
    results: list[dict[str, object]] = []
    for name, outcome, size, box in zip(names, answer.outcomes, answer.sizes, answer.boxes, strict=True):
        if isinstance(outcome, ImageError):
            results.append({"key": name, "status": outcome.code, "message": public_message(outcome)})
        else:
            results.append({"key": name, "status": "ok"} | _explained(outcome, size, box))
    return results


def _explained(image: ExplainedImage, size: tuple[int, int], box: Box) -> dict[str, object]:
    return {
        "top": [_class(best) for best in image.top],
        "target": _class(image.target),
        "versus": None if image.versus is None else _class(image.versus),
        "method": image.method,
        "methods": image.methods,
        "reason": image.reason,
        "layer": image.layer,
        "map": image.values,
        "total": image.total,
        "faithful": image.faithful,
        "verdict": image.verdict,
        "verdict_reason": image.verdict_reason,
        "scores": {
            score.name: {
                "value": score.value,
                "random": [score.random_low, score.random_high],
                "goal": score.goal,
                "is_better": score.better,
            }
            for score in image.scores
        },
        "overlay": f"data:image/png;base64,{image.overlay}",
        "box": [round(side, 2) for side in box],
        "width": size[0],
        "height": size[1],
    }


def _class(score: ClassScore) -> dict[str, Any]:
    return {"index": score.index, "label": score.label, "probability": score.probability}
