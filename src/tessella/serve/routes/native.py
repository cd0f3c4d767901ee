"""The server's own API: classification and embeddings, the list of models, health and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from ...errors import ImageError, public_text
from ...records import as_dict
from ...weights.catalogue import Task
from ..disconnects import run_unless_disconnected
from ..images import read_images
from ..metrics import CONTENT_TYPE
from ..openapi import error_responses
from ..problems import RequestError, public_message
from ..service import Answer, ModelStatus, ServedModel, Service
from .native_schemas import HealthBody, InferenceBody, ModelListBody, ReadinessBody, infer_extra

DEFAULT_TOP = 5
MAX_DEADLINE_MS = 24 * 3600 * 1000
MODEL_PATHS = ("/v1/classify", "/v1/embed", "/v1/predict")
router = APIRouter()


def service_of(request: Request) -> Service:
    """Return the service that handles a request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def deadline_of(request: Request) -> float | None:
    """Return the seconds of the header X-Tessella-Deadline-Ms, None without it. Raises RequestError `bad_request`."""
    text = request.headers.get("x-tessella-deadline-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= MAX_DEADLINE_MS):
        raise RequestError("bad_request", "The header X-Tessella-Deadline-Ms is not a positive number of milliseconds.")
    return int(text) / 1000


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response; numbers must be finite."""
    return Response(to_json(body), status, headers, "application/json")


def _documented(path: str, *, has_top: bool) -> dict[str, Any]:
    """Return the arguments of a route of inference for its description."""
    return {
        "response_class": Response,
        "responses": {
            200: {"model": InferenceBody, "description": "One result per image, each with its own status."},
            **error_responses(path, 404, 422, 501, 504),
        },
        "openapi_extra": infer_extra(has_top=has_top),
        "tags": ["inference"],
    }


@router.post("/v1/classify", **_documented("/v1/classify", has_top=True))
async def classify(request: Request) -> Response:
    """Return the most probable classes of each image."""
    return await _infer(request, "classify", has_top=True, embed=False)


@router.post("/v1/embed", **_documented("/v1/embed", has_top=False))
async def embed(request: Request) -> Response:
    """Return the embedding of each image: a vector of unit length."""
    return await _infer(request, "embed", has_top=False, embed=True)


@router.post("/v1/predict", **_documented("/v1/predict", has_top=True))
async def predict(request: Request) -> Response:
    """Return the most probable classes and the embedding of each image.

    Without `model`, this is the default model for embeddings, as in `tessella run`.
    """
    return await _infer(request, "embed", has_top=True, embed=True)


async def _infer(request: Request, task: Task, *, has_top: bool, embed: bool) -> Response:
    """Answer a request for results of a model."""
    service = service_of(request)
    deadline = deadline_of(request) or service.settings.deadline
    asked = await read_images(request, deadline)
    if asked.top is not None and not has_top:
        raise RequestError("bad_request", 'Embeddings have no "top".')
    data = [image.data for image in asked.images]
    left = max(0.0, deadline - asked.seconds)
    work = service.infer(data, model=asked.model, task=task, deadline=left)
    answer = await run_unless_disconnected(request, work)
    top = min(asked.top or DEFAULT_TOP, answer.model.num_classes) if has_top else 0
    names = [image.name for image in asked.images]
    results = results_of(answer, names, top=top, embed=embed)
    if asked.is_single and (code := results[0]["status"]) != "ok":
        (outcome,) = answer.outcomes
        raise outcome if isinstance(outcome, ImageError) else ImageError(str(code), "the image has no result")
    body = {
        "model": answer.model.name,
        "fingerprint": answer.model.fingerprint,
        "request_id": request.state.request_id,
        **({"calibration": calibration_row(answer.model)} if has_top else {}),
        "results": results,
        "timing_ms": {stage: round(value, 3) for stage, value in answer.timing.items()},
    }
    return json_response(body, headers={"X-Tessella-Fingerprint": answer.model.fingerprint})


def calibration_row(model: ServedModel) -> dict[str, object] | None:
    """Return what the probabilities and sets of a model mean, as JSON; None if it is not calibrated."""
    if (calibration := model.calibration) is None:
        return None
    return {
        "coverage": calibration.sets.coverage,
        "per_class": calibration.sets.per_class,
        "false_alarms": calibration.unknown.false_alarms,
        "temperature": calibration.temperature,
    }


def results_of(answer: Answer, names: list[str], *, top: int, embed: bool) -> list[dict[str, object]]:
    """Return one record per image as JSON, with the image's size; errors have the text of their code, or a limit.

    names: of the images, in the order of the answer.
    """
    results = []
    for name, outcome, (width, height) in zip(names, answer.outcomes, answer.sizes, strict=True):
        row = as_dict(answer.model.record(name, outcome, top=top, embed=embed))
        if isinstance(outcome, ImageError):
            row["message"] = public_message(outcome)
        else:
            row |= dict(width=width, height=height)
            if row["status"] != "ok":  # an output that is not finite
                row["message"] = public_text(str(row["status"]))
        results.append(row)
    return results


# --- models, health, metrics ------------------------------------------------------------------------------------------


@router.get(
    "/v1/models",
    response_class=Response,
    responses={200: {"model": ModelListBody, "description": "The models, the first one first."}},
    tags=["models"],
)
async def models(request: Request) -> Response:
    """List the models of this server. Facts of a model are known once it has been loaded."""
    service = service_of(request)
    return json_response({"object": "list", "data": [model_row(service, status) for status in service.models()]})


def model_row(service: Service, status: ModelStatus) -> dict[str, object]:
    """Return a model of the server as JSON."""
    row: dict[str, object] = dict(id=status.name, object="model", created=0, owned_by="tessella")
    row |= dict(state=status.state, default_for=list(status.default_for))
    row["can_explain"] = service.explanations.can_explain(status.model)
    if (model := status.model) is not None:
        row |= dict(fingerprint=model.fingerprint, num_classes=model.num_classes, width=model.width)
        row |= dict(input=[3, model.spec.height, model.spec.width], calibration=calibration_row(model))
    return row


@router.get(
    "/healthz",
    response_class=Response,
    responses={200: {"model": HealthBody, "description": "The process serves."}},
    tags=["health"],
)
async def healthz() -> Response:
    """Return 200 while the process serves."""
    return json_response({"status": "ok"})


@router.get(
    "/readyz",
    response_class=Response,
    responses={
        200: {"model": ReadinessBody, "description": "Requests are answered."},
        503: {"model": ReadinessBody, "description": "The server is loading, draining or broken."},
    },
    tags=["health"],
)
async def readyz(request: Request) -> Response:
    """Return 200 if requests are answered: the models are loaded, and the server is not being stopped."""
    readiness = service_of(request).readiness
    body = {"ready": readiness.ready, "reason": readiness.reason}
    return json_response(body, 200 if readiness.ready else 503, None if readiness.ready else {"Retry-After": "1"})


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "For Prometheus."}},
    tags=["health"],
)
async def metrics(request: Request) -> Response:
    """Return the metrics of this server for Prometheus."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})
