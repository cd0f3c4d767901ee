"""What the server's own API takes and gives, for its OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class ClassBody(BaseModel):
    """A class of the model with its probability."""

    index: int
    label: str
    probability: float | None
    synset: str | None = None


class CalibrationBody(BaseModel):
    """What probabilities and prediction sets mean.

    coverage: share of images whose set contains the right class; per_class: whether that holds for the images of every
    class, and not only for all images together. false_alarms: largest share of images of the classes that are called
    unknown. temperature: by which logits are divided before anything else. All of it holds for images like those of the
    calibration.
    """

    coverage: float
    per_class: bool
    false_alarms: float
    temperature: float


class ImageBody(BaseModel):
    """The result of one image; status is "ok" or the code of an error.

    prediction_set, set_size, unknown, familiarity: only of a calibrated model. The set is listed from the most probable
    class on, up to 100 classes, and set_size is the number of all of them. unknown: the image probably shows none of
    the classes. familiarity: share of the calibration images that look at least as unfamiliar to the model.
    """

    key: str
    status: str
    message: str | None = None
    top: list[ClassBody] | None = None
    prediction_set: list[ClassBody] | None = None
    set_size: int | None = None
    unknown: bool | None = None
    familiarity: float | None = None
    embedding: list[float] | None = None
    width: int | None = None
    height: int | None = None


class InferenceBody(BaseModel):
    """The results of all images of a request, in its order.

    calibration: null if the model is not calibrated, so that probabilities are plain softmax; missing in `/v1/embed`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "convmixer_256_8_ks3_p4.cifar10",
                "fingerprint": "0123456789abcdef",
                "request_id": "8d1f0c5a2b7e4f63",
                "calibration": {"coverage": 0.9, "per_class": True, "false_alarms": 0.05, "temperature": 1.37},
                "results": [
                    {
                        "key": "cat.jpg",
                        "status": "ok",
                        "top": [{"index": 3, "label": "cat", "probability": 0.84}],
                        "prediction_set": [
                            {"index": 3, "label": "cat", "probability": 0.84},
                            {"index": 5, "label": "dog", "probability": 0.13},
                        ],
                        "set_size": 2,
                        "unknown": False,
                        "familiarity": 0.31,
                        "width": 451,
                        "height": 300,
                    }
                ],
                "timing_ms": {"decode": 2.1, "queue": 0.1, "model": 5.0, "total": 7.4},
            }
        }
    )
    model: str
    fingerprint: str
    request_id: str
    calibration: CalibrationBody | None = None
    results: list[ImageBody]
    timing_ms: dict[str, float]


class ModelBody(BaseModel):
    """A model of the server; the facts that are known once it has been loaded are missing before.

    can_explain: whether `/v1/explain` may be asked for it; true for one that has not been loaded unless none can be.
    calibration: as in `/v1/classify`.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: Literal["unloaded", "loading", "ready", "failed"]
    default_for: list[str]
    can_explain: bool = False
    fingerprint: str | None = None
    num_classes: int | None = None
    width: int | None = None
    input: list[int] | None = None
    calibration: CalibrationBody | None = None


class ModelListBody(BaseModel):
    """The models of the server."""

    object: Literal["list"]
    data: list[ModelBody]


class HealthBody(BaseModel):
    """The process serves."""

    status: Literal["ok"]


class ReadinessBody(BaseModel):
    """Whether requests are answered, and why not."""

    ready: bool
    reason: str


_MODEL: dict[str, Any] = {
    "type": "string",
    "description": "A name of `/v1/models`; without it, the default model.",
}
_TOP: dict[str, Any] = {
    "type": "integer",
    "minimum": 1,
    "maximum": 1_000_000_000,
    "default": 5,
    "description": "Number of classes per image, at most those of the model.",
}
_NAME: dict[str, Any] = {"type": "string", "maxLength": 1024}
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def infer_extra(*, has_top: bool) -> dict[str, Any]:
    """Return the parameters and bodies of a route of inference. has_top: whether it has the parameter `top`."""
    options = {"model": _MODEL} | ({"top": _TOP} if has_top else {})
    text = {"type": "string", "description": "Base64, or a data URI."}
    image = {
        "anyOf": [
            text,
            {
                "type": "object",
                "properties": {"data": text, "name": _optional(_NAME)},
                "required": ["data"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"url": {"type": "string"}, "name": _optional(_NAME)},
                "required": ["url"],
                "additionalProperties": False,
            },
        ]
    }
    images = {"type": "array", "items": image, "minItems": 1, "maxItems": 64}
    body = {
        "type": "object",
        "properties": {"images": images, **{name: _optional(schema) for name, schema in options.items()}},
        "required": ["images"],
        "additionalProperties": False,
    }
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": file, "minItems": 1, "maxItems": 64}, **options},
        "required": ["file"],
        "additionalProperties": False,
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    parameters = [
        {"name": "model", "in": "query", "schema": _MODEL},
        *([{"name": "top", "in": "query", "schema": _TOP}] if has_top else []),
        {"name": "name", "in": "query", "schema": _NAME, "description": "The key of a raw image in the answer."},
        {
            "name": "X-Tessella-Deadline-Ms",
            "in": "header",
            "schema": {"type": "integer", "minimum": 1, "maximum": 86_400_000},
            "description": "Milliseconds after which the request is given up, at most the deadline of the server.",
        },
    ]
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": body, "example": {"images": [{"name": "pixel.png", "data": _PIXEL}]}},
        "image/jpeg": binary,
        "image/png": binary,
        "application/octet-stream": binary,
    }
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}
