"""Open Inference Protocol, version 2, as Triton and KServe speak it, for clients that exist.

**Models.** A model has one input, "image", and one output, because NVIDIA's image client accepts no other models. So
every model of the server has two names: NAME gives "logits" (N, classes), NAME.embedding gives "embedding" (N, width)
of unit length. The only version is "1".

**Input.** One of three datatypes; metadata and configuration name FP32, as a client that prepares images needs it.

- BYTES, shape (N) or (N, 1): image files in any format that the server reads. In JSON they are base64 or data URIs.
- UINT8, shape (N, height, width, 3): RGB pixels of the model's size.
- FP32, shape (N, 3, height, width): RGB pixels of the model's size with values from 0 to 255. Clients that scale them
  append the scaling to the model's name: NAME.unit (0 to 1), NAME.inception (value / 127.5 - 1), NAME.vgg (value less
  123, 117, 104) or NAME.normalized (by the mean and std of the model). Only image files are resized.

**Output.** float32 in JSON or as binary data, whichever is asked for; with the classification extension, the highest
values as "value:index:label".

**Errors.** {"error": text} and the HTTP status. The protocol has no status per image, so a request fails as a whole if
one of its images does, and the text has the number of that image and the code of its error.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from fastapi import APIRouter
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from ..._version import __version__
from ...data.decode import Pixels
from ...errors import ImageError, ServeError, UsageError
from ...results import FloatArray
from ..disconnects import run_unless_disconnected
from ..images import decode_text, read_body, settings_of
from ..openapi import error_responses
from ..problems import RequestError
from ..scalings import DEFAULT_SCALING, SCALINGS, pixels_from_floats
from ..service import Answer, ServedModel, Service
from ..settings import ServeSettings
from ..tensors import (
    InferRequest,
    InputTensor,
    OutputTensor,
    RequestedOutput,
    classify_rows,
    encode_answer,
    parse_object,
    parse_request,
    read_elements,
    read_numbers,
)
from .embedding import fingerprint_header, good_outputs, unit_embeddings
from .foreign_schemas import (
    ConfigBody,
    IndexRowBody,
    LiveBody,
    MetadataBody,
    ReadyBody,
    ServerBody,
    index_documentation,
    infer_documentation,
)
from .native import deadline_of, service_of

HEADER_LENGTH = "Inference-Header-Content-Length"
INPUT = "image"
VERSION = "1"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration"]
Output = Literal["logits", "embedding"]


class ModelName(Convertor[str]):
    """A name of a model in a path. It may have slashes, as that of a repository, and ends before a known part."""

    regex = r"(?:(?!/(?:versions|ready|config|infer)(?:/|$))[^\n])+"

    def convert(self, value: str) -> str:
        """Return the name."""
        return value

    def to_string(self, value: str) -> str:
        """Return the part of a path."""
        return value


register_url_convertor("model", ModelName())

router = APIRouter(tags=["Open Inference Protocol"])
_MISSING = error_responses("/v2/", 404)
_READY: dict[str, Any] = {"responses": {200: {"description": "Requests are accepted.", "content": {}}, **_MISSING}}


@dataclass(frozen=True)
class Target:
    """What a name of the protocol stands for: a model of the server, one of its outputs, and the scaling of FP32."""

    model: str
    output: Output
    scaling: str

    def width(self, served: ServedModel) -> int:
        """The length of a row of the output."""
        return served.num_classes if self.output == "logits" else served.width


def find_target(name: str, version: str | None, known: Sequence[str]) -> Target:
    """Return what a name stands for. known: names of the server's models. Raises UsageError `unknown_model`.

    The names are NAME, NAME.SCALING, NAME.embedding and NAME.embedding.SCALING; a model whose own name ends like that
    wins.
    """
    model, scaling = name, DEFAULT_SCALING
    output: Output = "logits"
    stem, _, suffix = model.rpartition(".")
    if model not in known and suffix in SCALINGS:
        model, scaling = stem, suffix
    if model not in known and model.endswith(".embedding"):
        model, output = model.removesuffix(".embedding"), "embedding"
    if model not in known or version not in (None, VERSION):
        raise UsageError("unknown_model", f"no model {name!r} is served")
    return Target(model, output, scaling)


def known_models(service: Service) -> list[str]:
    """Return the names of the server's models."""
    return [status.name for status in service.models()]


@router.get("/v2", response_model=ServerBody)
async def server_metadata() -> dict[str, object]:
    """Return the name and version of the server, and the extensions of the protocol that it has."""
    return dict(name="tessella", version=__version__, extensions=EXTENSIONS)


@router.get("/v2/health/live", response_model=LiveBody)
async def live() -> dict[str, bool]:
    """Answer while the process serves."""
    return dict(live=True)


@router.get("/v2/health/ready", response_model=ReadyBody)
async def ready(request: Request) -> dict[str, bool]:
    """Answer 200 if inference requests are accepted, else 503."""
    require_ready(service_of(request))
    return dict(ready=True)


def require_ready(service: Service) -> None:
    """Raise ServeError `not_ready` if the service does not accept requests."""
    if not service.readiness.ready:
        raise ServeError("not_ready", service.readiness.reason)


@router.get("/v2/models/{name:model}/versions/{version}/ready", response_class=Response, **_READY)
async def version_ready(request: Request, name: str, version: str) -> Response:
    """Answer as for the model without a version."""
    return model_readiness(request, name, version)


@router.get("/v2/models/{name:model}/ready", response_class=Response, **_READY)
async def model_ready(request: Request, name: str) -> Response:
    """Answer 200 with an empty body if requests for the model are accepted, else 503.

    That includes a model which the first request loads.
    """
    return model_readiness(request, name, None)


def model_readiness(request: Request, name: str, version: str | None) -> Response:
    """Return an empty answer if requests for the model are accepted. Raises UsageError, ServeError."""
    service = service_of(request)
    target = find_target(name, version, known_models(service))
    require_ready(service)
    if any(status.name == target.model and status.state == "failed" for status in service.models()):
        raise ServeError("not_ready", f"{target.model} could not be loaded")
    return Response()


@router.get("/v2/models/{name:model}/versions/{version}/config", response_model=ConfigBody, responses=_MISSING)
async def version_config(request: Request, name: str, version: str) -> dict[str, object]:
    """Answer as for the model without a version."""
    return await model_config(request, name, version)


@router.get("/v2/models/{name:model}/config", response_model=ConfigBody, responses=_MISSING)
async def config(request: Request, name: str) -> dict[str, object]:
    """Return the configuration in Triton's form: layout and size of the input, number of images in a request."""
    return await model_config(request, name, None)


async def model_config(request: Request, name: str, version: str | None) -> dict[str, object]:
    """Return the configuration of a model. Loads the model. Raises UsageError `unknown_model`, ServeError."""
    target, served = await open_target(request, name, version)
    spec, images = served.spec, settings_of(request).max_images
    source = dict(name=INPUT, data_type="TYPE_FP32", format="FORMAT_NCHW", dims=[3, spec.height, spec.width])
    result = dict(name=target.output, data_type="TYPE_FP32", dims=[target.width(served)], label_filename="")
    return dict(
        name=name,
        platform="tessella",
        backend="tessella",
        version_policy={"latest": {"num_versions": 1}},
        max_batch_size=images,
        input=[source],
        output=[result],
        parameters={"fingerprint": {"string_value": served.fingerprint}},
    )


async def open_target(request: Request, name: str, version: str | None) -> tuple[Target, ServedModel]:
    """Return what a name stands for, and the model. Loads the model. Raises UsageError `unknown_model`, ServeError."""
    service = service_of(request)
    target = find_target(name, version, known_models(service))
    return target, await service.open(target.model)


@router.get("/v2/models/{name:model}/versions/{version}", response_model=MetadataBody, responses=_MISSING)
async def version_metadata(request: Request, name: str, version: str) -> dict[str, object]:
    """Answer as for the model without a version."""
    return await model_metadata(request, name, version)


@router.get("/v2/models/{name:model}", response_model=MetadataBody, responses=_MISSING)
async def metadata(request: Request, name: str) -> dict[str, object]:
    """Return the input and the output of a model; -1 is the number of images."""
    return await model_metadata(request, name, None)


async def model_metadata(request: Request, name: str, version: str | None) -> dict[str, object]:
    """Return the input and output of a model. Loads the model. Raises UsageError `unknown_model`, ServeError."""
    target, served = await open_target(request, name, version)
    shape = [-1, 3, served.spec.height, served.spec.width]
    return dict(
        name=name,
        versions=[VERSION],
        platform="tessella",
        inputs=[dict(name=INPUT, datatype="FP32", shape=shape)],
        outputs=[dict(name=target.output, datatype="FP32", shape=[-1, target.width(served)])],
    )


@router.post("/v2/repository/index", response_model=list[IndexRowBody], **index_documentation())
async def repository_index(request: Request) -> list[dict[str, str]]:
    """List the names of all models, as Triton does; {"ready": true} leaves out those that are not loaded."""
    body = await read_body(request)
    only_ready = parse_object(body).get("ready", False) if body else False
    if not isinstance(only_ready, bool):
        raise RequestError("bad_request", "'ready' is neither true nor false.")
    return [
        dict(name=name, version=VERSION, state="READY" if status.state == "ready" else "UNAVAILABLE", reason=reason)
        for status in service_of(request).models()
        for reason in ("" if status.state == "ready" else status.state,)
        for name in (status.name, f"{status.name}.embedding")
        if status.state == "ready" or not only_ready
    ]


@router.post("/v2/models/{name:model}/versions/{version}/infer", response_class=Response, **infer_documentation())
async def version_infer(request: Request, name: str, version: str) -> Response:
    """Answer as for the model without a version."""
    return await infer_tensor(request, name, version)


@router.post("/v2/models/{name:model}/infer", response_class=Response, **infer_documentation())
async def infer(request: Request, name: str) -> Response:
    """Run a model on the images of a tensor."""
    return await infer_tensor(request, name, None)


async def infer_tensor(request: Request, name: str, version: str | None) -> Response:
    """Answer an inference request. Raises UsageError `unknown_model`, RequestError, ServeError."""
    service = service_of(request)
    service.check()  # before the body is read
    target = find_target(name, version, known_models(service))
    asked = await asyncio.to_thread(parse_request, await read_body(request), request.headers.get(HEADER_LENGTH))
    tensor, output = find_input(asked.inputs, settings_of(request).max_images), find_output(asked, target)
    answer = await run_unless_disconnected(request, run_tensor(request, target, tensor, find_deadline(request, asked)))
    if target.output == "embedding":
        values, labels = unit_embeddings(answer), list[str]()
    else:
        values, labels = np.stack([row.logits for row in good_outputs(answer)]), list(answer.model.labels)
    content = classify_rows(values, labels, output.classes) if output.classes else values
    fields: dict[str, object] = dict(model_name=name, model_version=VERSION)
    if asked.id is not None:
        fields["id"] = asked.id
    body, length = encode_answer(fields, [OutputTensor(target.output, content, output.binary)])
    headers = fingerprint_header(answer)
    if length is None:
        return Response(body, media_type="application/json", headers=headers)
    return Response(body, media_type="application/octet-stream", headers={**headers, HEADER_LENGTH: str(length)})


def find_deadline(request: Request, asked: InferRequest) -> float | None:
    """Return the deadline in seconds that a request asks for: the shorter one of the header and of `timeout`, in us."""
    deadline, timeout = deadline_of(request), asked.parameters.get("timeout")
    if timeout in (None, 0):
        return deadline
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 < timeout < 2**63:
        raise RequestError("bad_request", "The parameter 'timeout' is not a number of microseconds.")
    return min(timeout / 1e6, math.inf if deadline is None else deadline)


def find_input(inputs: Sequence[InputTensor], max_images: int) -> InputTensor:
    """Return the input of a request. Raises RequestError `bad_request`, ServeError `too_many_images`."""
    if len(inputs) != 1 or inputs[0].name != INPUT:
        raise RequestError("bad_request", f"The request does not have exactly one input, with the name '{INPUT}'.")
    tensor = inputs[0]
    if not tensor.shape or tensor.shape[0] == 0:
        raise RequestError("bad_request", "The input has no images: the first size of its shape is their number.")
    if tensor.shape[0] > max_images:
        raise ServeError("too_many_images", f"the request has {tensor.shape[0]:,} images, the limit is {max_images:,}")
    if tensor.datatype == "BYTES" and tensor.shape[1:] not in ((), (1,)):
        raise RequestError("bad_request", "The shape of BYTES is (images) or (images, 1).")
    return tensor


def find_output(asked: InferRequest, target: Target) -> RequestedOutput:
    """Return how to send the output. Raises RequestError `bad_request` if the request asks for another one."""
    if not asked.outputs:
        return RequestedOutput(target.output, asked.binary)
    if len(asked.outputs) > 1 or asked.outputs[0].name != target.output:
        raise RequestError("bad_request", "A requested output is not the one that the metadata of the model names.")
    return asked.outputs[0]


async def run_tensor(request: Request, target: Target, tensor: InputTensor, deadline: float | None) -> Answer:
    """Run the model on the images of a tensor. Raises RequestError, ServeError."""
    service = service_of(request)
    if tensor.datatype == "BYTES":
        files = await asyncio.to_thread(read_files, tensor, settings_of(request))
        return await service.infer(files, model=target.model, deadline=deadline)
    served = await service.open(target.model)
    pixels = await asyncio.to_thread(read_pixels, tensor, served, target.scaling)
    return await service.infer_pixels(pixels, model=target.model, deadline=deadline)


def read_files(tensor: InputTensor, settings: ServeSettings) -> list[bytes | ImageError]:
    """Return the image files of a BYTES tensor; those in JSON are base64 or data URIs. Raises RequestError."""
    elements = read_elements(tensor)
    return [decode_text(element, settings) if isinstance(element, str) else element for element in elements]


def read_pixels(tensor: InputTensor, served: ServedModel, scaling: str) -> Pixels:
    """Return the pixels of a UINT8 or FP32 tensor as (N,H,W,3) uint8. Raises RequestError `bad_request`."""
    size = (served.spec.height, served.spec.width)
    expected = (*size, 3) if tensor.datatype == "UINT8" else (3, *size)
    if tensor.shape[1:] != expected:
        raise RequestError(
            "bad_request",
            "The shape is (images, height, width, 3) for UINT8 and (images, 3, height, width) for FP32,"
            " with the size that the metadata of the model names.",
        )
    values = read_numbers(tensor)
    if tensor.datatype == "UINT8":
        return cast("Pixels", values)
    return pixels_from_floats(cast("FloatArray", values), scaling, served.spec)
