"""What the protocols of other servers take and give, for the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, JsonValue

from ..openapi import error_responses

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
_URI = f"data:image/png;base64,{_PIXEL}"
_TEXT: dict[str, Any] = {"type": "string"}
_MODEL: dict[str, Any] = {"type": "string", "description": "A name of `/v1/models`."}
_SOME = {"minItems": 1, "maxItems": 64}  # images of a request, by default
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_DEADLINE: dict[str, Any] = {
    "name": "X-Tessella-Deadline-Ms",
    "in": "header",
    "schema": {"type": "integer", "minimum": 1, "maximum": 86_400_000},
    "description": "Milliseconds after which the request is given up, at most the deadline of the server.",
}


# --- Open Inference Protocol ------------------------------------------------------------------------------------------


class ServerBody(BaseModel):
    """The server and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class LiveBody(BaseModel):
    """The process serves."""

    live: bool


class ReadyBody(BaseModel):
    """Inference requests are accepted."""

    ready: bool


class TensorBody(BaseModel):
    """An input or output of a model; -1 is the number of images."""

    name: str
    datatype: str
    shape: list[int]


class MetadataBody(BaseModel):
    """The input and the output of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorBody]
    outputs: list[TensorBody]


class ConfigInputBody(BaseModel):
    """The input of a model without its number of images."""

    name: str
    data_type: str
    format: str
    dims: list[int]


class ConfigOutputBody(BaseModel):
    """The output of a model without its number of images."""

    name: str
    data_type: str
    dims: list[int]
    label_filename: str


class ConfigBody(BaseModel):
    """The configuration of a model in Triton's form."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, int]]
    max_batch_size: int
    input: list[ConfigInputBody]
    output: list[ConfigOutputBody]
    parameters: dict[str, dict[str, str]]


class IndexRowBody(BaseModel):
    """A model in the index of models."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class OutputBody(TensorBody):
    """An output in the answer to an inference request; `data` is missing if it is sent as binary data."""

    data: list[float] | list[str] | None = None
    parameters: dict[str, int] | None = None


class InferBody(BaseModel):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputBody]


_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"anyOf": [_TEXT, {"type": "number"}, {"type": "boolean"}]},
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"const": "image"},
        "datatype": {"enum": ["BYTES", "FP32", "UINT8"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 8},
        "data": {"type": "array"},
        "parameters": _PARAMETERS,
    },
    "required": ["name", "datatype", "shape", "data"],
}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"name": _TEXT, "parameters": _PARAMETERS},
    "required": ["name"],
}
_INFER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": _OUTPUT, "maxItems": 1},
        "parameters": _PARAMETERS,
    },
    "required": ["inputs"],
}
_INFER_EXAMPLE = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [_PIXEL]}]}


def infer_documentation() -> dict[str, Any]:
    """Return the arguments of the routes of inference for their description."""
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "The length of the JSON object, if binary data follows it.",
    }
    content = {"application/json": {"schema": _INFER, "example": _INFER_EXAMPLE}, "application/octet-stream": _BINARY}
    answer = {"model": InferBody, "description": "The output.", "content": {"application/octet-stream": _BINARY}}
    return {
        "responses": {200: answer, **error_responses("/v2/", 404, 422, 501, 504)},
        "openapi_extra": {"parameters": [length, _DEADLINE], "requestBody": {"required": True, "content": content}},
    }


def index_documentation() -> dict[str, Any]:
    """Return the arguments of the route of the index of models for its description."""
    body = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    return {"openapi_extra": {"requestBody": {"required": False, "content": {"application/json": {"schema": body}}}}}


# --- OpenAI and Infinity ----------------------------------------------------------------------------------------------


class EmbeddingBody(BaseModel):
    """The embedding of one image: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class UsageBody(BaseModel):
    """Images have no tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsBody(BaseModel):
    """The embeddings of all images of a request, in its order."""

    object: Literal["list"]
    data: list[EmbeddingBody]
    model: str
    usage: UsageBody


class InfinityModelBody(BaseModel):
    """A model as Infinity's client reads it."""

    id: str
    object: Literal["model"]
    created: int
    backend: str
    capabilities: list[str]
    stats: dict[str, JsonValue]


class InfinityModelsBody(BaseModel):
    """The models of the server as Infinity's client reads them."""

    object: Literal["list"]
    data: list[InfinityModelBody]


class TimeBody(BaseModel):
    """The time in seconds."""

    unix: float


def embeddings_documentation(path: str) -> dict[str, Any]:
    """Return the arguments of a route of embeddings for its description."""
    options = {"model": {"type": ["string", "null"]}, "encoding_format": {"enum": ["float", "base64", None]}}
    options["dimensions"] = {"enum": [0, None], "description": "Or the width of the model."}
    marked = {
        "properties": {"input": _images(_TEXT), "modality": {"const": "image"}},
        "required": ["input", "modality"],
    }
    uri = {"type": "string", "pattern": "^data:image/"}
    unmarked = {"properties": {"input": _images(uri), "modality": {"type": "null"}}, "required": ["input"]}
    body: dict[str, Any] = {"type": "object", "properties": options}
    if path == "/embeddings_image":
        body |= {"properties": {"input": _images(_TEXT), **options}, "required": ["input"]}
    else:
        body["anyOf"] = [marked, unmarked]
    return _documentation(path, EmbeddingsBody, body, {"input": [_URI], "modality": "image"})


def _images(text: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of `input`. text: that of an image which is not an object."""
    image = {"properties": {"image": _TEXT}, "required": ["image"], "additionalProperties": False}
    one = [text, {"type": "object", **image}]
    return {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}, **_SOME}]}


# --- Cohere -----------------------------------------------------------------------------------------------------------


class CohereBody(BaseModel):
    """The embeddings of all images of a request, by type."""

    id: str
    response_type: Literal["embeddings_by_type"]
    embeddings: dict[str, list[list[float]] | list[list[int]] | list[str]]
    meta: dict[str, JsonValue]


def cohere_documentation(path: str) -> dict[str, Any]:
    """Return the arguments of Cohere's route for its description."""
    types = {
        "type": "array",
        "items": {"enum": ["float", "base64", "binary", "ubinary"]},
        "minItems": 1,
        "maxItems": 16,
    }
    image = {
        "type": "object",
        "properties": {
            "type": {"const": "image_url"},
            "image_url": {"type": "object", "properties": {"url": _TEXT}, "required": ["url"]},
        },
        "required": ["type", "image_url"],
    }
    content = {"type": "array", "items": image, "minItems": 1, "maxItems": 1}
    entry = {"type": "object", "properties": {"content": content}, "required": ["content"]}
    images, inputs = {"type": "array", "items": _TEXT, **_SOME}, {"type": "array", "items": entry, **_SOME}
    nothing = {"type": "null"}
    body = {
        "type": "object",
        "properties": {
            "model": _MODEL,
            "input_type": {"enum": ["image", "search_document", "search_query", "classification", "clustering"]},
            "embedding_types": {"anyOf": [types, nothing]},
        },
        "required": ["model", "input_type"],
        "anyOf": [
            {"properties": {"images": images, "inputs": nothing}, "required": ["images"]},
            {"properties": {"images": nothing, "inputs": inputs}, "required": ["inputs"]},
        ],
    }
    example = {"model": "convmixer_256_8_ks3_p4.cifar10", "input_type": "image", "images": [_URI]}
    return _documentation(path, CohereBody, body, example)


def _documentation(path: str, answer: type[BaseModel], body: dict[str, Any], example: object) -> dict[str, Any]:
    content = {"application/json": {"schema": body, "example": example}}
    return {
        "responses": {
            200: {"model": answer, "description": "The embeddings, in the order of the images."},
            **error_responses(path, 404, 422, 501, 504),
        },
        "openapi_extra": {"parameters": [_DEADLINE], "requestBody": {"required": True, "content": content}},
    }
