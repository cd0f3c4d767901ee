"""What the route of explanations takes and gives, for its OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..explanations import MAX_EXPLAINED
from ..metrics import EXPLAIN_METHODS
from .native_schemas import CalibrationBody, infer_extra

AUTO = "auto"


class ExplainedClassBody(BaseModel):
    """A class of the model with its probability."""

    index: int
    label: str
    probability: float


class ScoreBody(BaseModel):
    """A figure that says how faithful a map is, beside the interval that holds it for 95 % of random maps."""

    value: float
    random: list[float]
    goal: Literal["higher", "lower"]
    is_better: bool


class ExplanationBody(BaseModel):
    """The explanation of one image; status is "ok" or the code of an error.

    target: the class that is explained. methods: those that apply to the model. map: rows of numbers, how much each
    position of the image adds to the score of the class. total: what they sum to if the method is exact, the logit of
    the class or the difference of two; else null. faithful, verdict: whether the map is better than random ones for
    this image. overlay: a PNG file as a data URI, the part of the image that the model sees with the map on it. box:
    left, top, right and bottom of that part in pixels of the image; beyond its edges if the model sees padding.
    """

    key: str
    status: str
    message: str | None = None
    top: list[ExplainedClassBody] | None = None
    target: ExplainedClassBody | None = None
    versus: ExplainedClassBody | None = None
    method: str | None = None
    methods: list[str] | None = None
    reason: str | None = None
    layer: str | None = None
    map: list[list[float]] | None = None
    total: float | None = None
    faithful: bool | None = None
    verdict: str | None = None
    verdict_reason: str | None = None
    scores: dict[str, ScoreBody] | None = None
    overlay: str | None = None
    box: list[float] | None = None
    width: int | None = None
    height: int | None = None


_EXAMPLE: dict[str, Any] = {
    "key": "cat.jpg",
    "status": "ok",
    "top": [{"index": 285, "label": "Egyptian cat", "probability": 0.68}],
    "target": {"index": 285, "label": "Egyptian cat", "probability": 0.68},
    "versus": None,
    "method": "exact",
    "methods": ["exact", "grad-cam", "integrated-gradients", "occlusion"],
    "reason": "it scored best of the methods that were measured for ConvMixer",
    "layer": "",
    "map": [[0.5, 2.0], [4.5, 1.0]],
    "total": 8.0,
    "faithful": True,
    "verdict": "faithful",
    "verdict_reason": "better than 97.5 % of random maps in deletion, insertion and correlation",
    "scores": {
        "deletion": {"value": 2.1, "random": [3.2, 4.4], "goal": "lower", "is_better": True},
        "insertion": {"value": 6.3, "random": [3.9, 4.9], "goal": "higher", "is_better": True},
        "correlation": {"value": 0.6, "random": [-0.2, 0.2], "goal": "higher", "is_better": True},
    },
    "overlay": "data:image/png;base64,iVBORw0KGgo=",
    "box": [75.5, 0.0, 375.5, 300.0],
    "width": 451,
    "height": 300,
}


class ExplanationsBody(BaseModel):
    """The explanations of all images of a request, in its order.

    calibration: as in `/v1/classify`; null if probabilities are plain softmax. Maps and scores are about logits.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "convmixer_384_8_ks5_p8.photographs",
                "fingerprint": "0123456789abcdef",
                "request_id": "8d1f0c5a2b7e4f63",
                "calibration": None,
                "results": [_EXAMPLE],
                "timing_ms": {"decode": 9, "queue": 0, "start": 2900, "load": 210, "explain": 850, "total": 3970},
            }
        }
    )
    model: str
    fingerprint: str
    request_id: str
    calibration: CalibrationBody | None = None
    results: list[ExplanationBody]
    timing_ms: dict[str, float]


_CLASS: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 1000}
_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "class": (
        _CLASS,
        "The class to explain, by name or as `index:3`; without it, the most probable one of each image.",
    ),
    "versus": (_CLASS, "A class to compare with: why the one and not the other."),
    "method": (
        {"type": "string", "enum": [AUTO, *EXPLAIN_METHODS], "default": AUTO},
        "How to explain; `auto` takes the method that scored best for the kind of model.",
    ),
}


def explain_extra() -> dict[str, Any]:
    """Return the parameters and bodies of the route of explanations."""
    extra = infer_extra(has_top=False)
    schemas = {name: schema | {"description": text} for name, (schema, text) in _OPTIONS.items()}
    extra["parameters"] += [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]
    content = extra["requestBody"]["content"]
    form, body = (content[kind]["schema"] for kind in ("multipart/form-data", "application/json"))
    form["properties"] |= schemas
    number = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
    body["properties"] |= {
        name: {"anyOf": [schema, {"type": "null"}, *([number] if name != "method" else [])]}
        for name, schema in schemas.items()
    }
    for schema, name in ((form, "file"), (body, "images")):
        schema["properties"][name]["maxItems"] = MAX_EXPLAINED
    return extra
