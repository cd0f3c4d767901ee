"""Tensors of the Open Inference Protocol, version 2: requests and answers as JSON, or as JSON and binary data.

No HTTP and no model in here: bytes become checked values, and values become bytes. A request consists of a JSON object
and, with the binary data extension, of the raw tensors after it; the header `Inference-Header-Content-Length` says
where the object ends. Numbers are little-endian and in row-major order; an element of type BYTES is its length as 4
bytes and its data. Bytes that do not follow the protocol give a `RequestError` with the code `bad_request` and one of
the fixed `REASONS`; none take more than linear time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from ..results import FloatArray
from .problems import RequestError

DTYPES: dict[str, np.dtype[np.float32] | np.dtype[np.uint8]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
Numbers = NDArray[np.float32] | NDArray[np.uint8]
DATATYPES = ("BYTES", *DTYPES)
MAX_JSON_VALUES = 2**21  # an object in Python takes up to 30 times the bytes of its text
MAX_TENSORS = 16
MAX_RANK = 8
MAX_SIDE = 2**31 - 1

REASONS = {
    "header_length": "Inference-Header-Content-Length is not the length of the JSON object that the body begins with.",
    "json": "The request is not a JSON object in UTF-8.",
    "json_values": "The JSON has too many values; send the tensor as binary data.",
    "id": "'id' is not a string.",
    "parameters": "'parameters' is not an object, or a parameter does not have the type that the protocol defines.",
    "inputs": "'inputs' is not a list of up to 16 tensors with a name, a datatype and a shape.",
    "outputs": "'outputs' is not a list of up to 16 objects with a name.",
    "datatype": "The datatype of the input is not one of BYTES, FP32 and UINT8.",
    "shape": "The shape of the input is not a list of sizes.",
    "binary_size": "The sizes of the binary data do not add up to what follows the JSON object.",
    "no_data": "An input needs either 'data' or the parameter 'binary_data_size'.",
    "shared_memory": "Shared memory is not supported; send the tensor in the request.",
    "data_size": "The data of the input does not have the size of its shape and datatype.",
    "element_size": "The lengths of the BYTES elements do not add up to the data of the input.",
    "data_type": "The data of the input does not have its datatype.",
    "classification": "'classification' is not a number of classes.",
}


@dataclass(frozen=True)
class InputTensor:
    """One input of a request: `data` is a view of the request's binary data, or a list from its JSON object."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | list[object]
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of elements that the shape describes."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for: as binary data or in JSON, and the number of classes, 0 for the tensor."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A parsed inference request. id: None if the client gave none. binary: outputs are sent so, if none are listed."""

    id: str | None
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...]
    binary: bool
    parameters: Mapping[str, object]


@dataclass(frozen=True)
class OutputTensor:
    """One output of an answer: float32 numbers, or texts in rows of equal length. binary: after the JSON object."""

    name: str
    values: FloatArray | list[list[str]]
    binary: bool


def parse_request(body: bytes, header_length: str | None) -> InferRequest:
    """Parse the body of an inference request.

    header_length: the value of `Inference-Header-Content-Length`, None if the request has no such header: then all of
    the body is JSON. Raises RequestError. The data is decoded later, by `read_elements` and `read_numbers`.
    """
    length = len(body) if header_length is None else parse_header_length(header_length, len(body))
    content = parse_object(body[:length])
    identity = content.get("id")
    check(identity is None or isinstance(identity, str), "id")
    parameters = parse_parameters(content)
    binary = parameters.get("binary_data_output", False)
    check(isinstance(binary, bool), "parameters")
    inputs = parse_inputs(content.get("inputs"), memoryview(body)[length:])
    outputs = parse_outputs(content.get("outputs"), default=bool(binary))
    return InferRequest(cast("str | None", identity), inputs, outputs, bool(binary), parameters)


def parse_header_length(text: str, available: int) -> int:
    """Return the length of the JSON object in bytes; RequestError if it is not a number up to `available`."""
    check(text.isascii() and text.isdigit() and len(text) <= 12, "header_length")
    length = int(text)
    check(length <= available, "header_length")
    return length


def parse_object(text: bytes) -> dict[str, object]:
    """Parse a JSON object. The number of values is bounded before anything is built from them."""
    values = text.count(b",") + text.count(b"[") + text.count(b"{")
    check(values <= MAX_JSON_VALUES, "json_values")
    try:
        content = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError:  # also if it is nested too deeply
        raise refusal("json") from None
    check(isinstance(content, dict), "json")
    return cast("dict[str, object]", content)


def parse_parameters(owner: Mapping[str, object]) -> Mapping[str, object]:
    """Return the parameters of a request, an input or an output; {} if it has none."""
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    check(
        isinstance(parameters, dict) and all(isinstance(value, str | int | float) for value in parameters.values()),
        "parameters",
    )
    return cast("dict[str, object]", parameters)


def parse_inputs(entries: object, binary: memoryview) -> tuple[InputTensor, ...]:
    """Return the inputs; binary data is given to those that ask for it, in their order, and all of it must be used."""
    check(isinstance(entries, list) and len(entries) <= MAX_TENSORS, "inputs")
    inputs, start = [], 0
    for entry in cast("list[object]", entries):
        check(isinstance(entry, dict), "inputs")
        tensor, used = parse_input(cast("dict[str, object]", entry), binary[start:])
        inputs.append(tensor)
        start += used
    check(start == len(binary), "binary_size")
    return tuple(inputs)


def parse_input(entry: Mapping[str, object], binary: memoryview) -> tuple[InputTensor, int]:
    """Return an input, and how many bytes of the binary data it takes."""
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    check(isinstance(name, str) and isinstance(datatype, str), "inputs")
    check(datatype in DATATYPES, "datatype")
    check(isinstance(shape, list) and len(shape) <= MAX_RANK and all(is_size(side) for side in shape), "shape")
    parameters = parse_parameters(entry)
    check("shared_memory_region" not in parameters, "shared_memory")
    size, data = parameters.get("binary_data_size"), entry.get("data")
    check((size is None) != (data is None), "no_data")
    sides = tuple(cast("list[int]", shape))
    if size is None:
        check(isinstance(data, list), "data_type")
        return InputTensor(str(name), str(datatype), sides, cast("list[object]", data), parameters), 0
    check(is_size(size) and cast("int", size) <= len(binary), "binary_size")
    used = cast("int", size)
    return InputTensor(str(name), str(datatype), sides, binary[:used], parameters), used


def parse_outputs(entries: object, *, default: bool) -> tuple[RequestedOutput, ...]:
    """Return the requested outputs; () if the request names none, which means all. default: binary unless it says."""
    if entries is None:
        return ()
    check(isinstance(entries, list) and len(entries) <= MAX_TENSORS, "outputs")
    outputs = []
    for entry in cast("list[object]", entries):
        check(isinstance(entry, dict) and isinstance(entry.get("name"), str), "outputs")
        known = cast("dict[str, object]", entry)
        parameters = parse_parameters(known)
        check("shared_memory_region" not in parameters, "shared_memory")
        binary, classes = parameters.get("binary_data", default), parameters.get("classification", 0)
        check(isinstance(binary, bool), "parameters")
        check(is_size(classes), "classification")
        outputs.append(RequestedOutput(str(known["name"]), bool(binary), cast("int", classes)))
    return tuple(outputs)


def read_elements(tensor: InputTensor) -> list[bytes | str]:
    """Return the elements of a BYTES tensor in row-major order: bytes of binary data, strings of JSON.

    Raises RequestError if the data does not have as many elements as the shape.
    """
    if isinstance(tensor.data, memoryview):
        return list(split_elements(tensor.data, tensor.count))
    texts = flatten(tensor.data)
    check(len(texts) == tensor.count, "data_size")
    check(all(isinstance(text, str) for text in texts), "data_type")
    return cast("list[bytes | str]", texts)


def split_elements(data: memoryview, count: int) -> list[bytes]:
    """Split binary data into `count` elements, each preceded by its length as 4 bytes."""
    elements, start = [], 0
    for _ in range(count):
        check(start + 4 <= len(data), "element_size")
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        check(end <= len(data), "element_size")
        elements.append(bytes(data[start + 4 : end]))
        start = end
    check(start == len(data), "element_size")
    return elements


def flatten(data: list[object]) -> list[object]:
    """Return the elements of a list or of nested lists, in order."""
    for _ in range(MAX_RANK):
        if not any(isinstance(element, list) for element in data):
            return data
        check(all(isinstance(element, list) for element in data), "data_size")
        data = list(chain.from_iterable(cast("list[list[object]]", data)))
    raise refusal("data_size")


def read_numbers(tensor: InputTensor) -> Numbers:
    """Return the numbers of an FP32 or UINT8 tensor in its shape; a view of the request if the data is binary.

    Raises RequestError if the data does not have the size of the shape, or holds something else than such numbers.
    """
    dtype = DTYPES[tensor.datatype]
    if isinstance(tensor.data, memoryview):
        check(len(tensor.data) == tensor.count * dtype.itemsize, "data_size")
        array = cast("Numbers", np.frombuffer(tensor.data, dtype))
    else:
        array = numbers_from_json(flatten(tensor.data), dtype)
        check(array.size == tensor.count, "data_size")
    return array.reshape(tensor.shape)


def numbers_from_json(values: list[object], dtype: np.dtype[np.float32] | np.dtype[np.uint8]) -> Numbers:
    """Return a flat list of numbers as an array; numbers that the type cannot hold are refused."""
    allowed = {int} if dtype.kind == "u" else {int, float}
    check({type(value) for value in values} <= allowed, "data_type")  # type(), since True is an int
    try:
        array = np.array(values, np.float64)
    except OverflowError:  # an integer that no float can hold
        raise refusal("data_type") from None
    limit = 255 if dtype.kind == "u" else float(np.finfo(np.float32).max)
    least = 0 if dtype.kind == "u" else -limit
    check(bool(((array >= least) & (array <= limit)).all()), "data_type")
    return cast("Numbers", array.astype(dtype))


def encode_answer(answer: Mapping[str, object], outputs: Iterable[OutputTensor]) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON object if binary data follows it, else None.

    answer: its other fields, such as the model's name and the id.
    """
    entries, parts = [], []
    for output in outputs:
        entry, part = encode_output(output)
        entries.append(entry)
        parts.append(part)
    text = json.dumps({**answer, "outputs": entries}, allow_nan=False, separators=(",", ":")).encode()
    if not any(output_part is not None for output_part in parts):
        return text, None
    return b"".join([text, *(part for part in parts if part is not None)]), len(text)


def encode_output(output: OutputTensor) -> tuple[dict[str, object], bytes | None]:
    """Return the JSON of an output, and its binary data, None if the JSON contains the data."""
    if isinstance(output.values, np.ndarray):
        datatype, shape = "FP32", list(output.values.shape)
        raw = output.values.astype("<f4").tobytes() if output.binary else None
        data: Sequence[object] = [] if output.binary else output.values.ravel().tolist()
    else:
        datatype, shape = "BYTES", [len(output.values), len(output.values[0]) if output.values else 0]
        texts = list(chain.from_iterable(output.values))
        raw = join_elements(text.encode() for text in texts) if output.binary else None
        data = texts
    entry: dict[str, object] = dict(name=output.name, datatype=datatype, shape=shape)
    if raw is None:
        return {**entry, "data": data}, None
    return {**entry, "parameters": {"binary_data_size": len(raw)}}, raw


def join_elements(elements: Iterable[bytes]) -> bytes:
    """Return BYTES elements as binary data: each one's length as 4 bytes, then its bytes."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(4, "little"), element))


def classify_rows(values: FloatArray, labels: Sequence[str], count: int) -> list[list[str]]:
    """Return the `count` highest values of each row as "value:index:label", the highest first.

    values: (N, classes) float32. labels: one per class, or () for "value:index". Of equal values, the lower index comes
    first. There are at most as many texts as classes.
    """
    rows = []
    for row in values:
        best = np.argsort(-row, kind="stable")[:count]
        rows.append([":".join([f"{row[i]:f}", str(i), *labels[i : i + 1]]) for i in best.tolist()])
    return rows


def is_size(value: object) -> bool:
    """Return whether a JSON value is a size: an integer from 0 to `MAX_SIDE`."""
    return type(value) is int and 0 <= value <= MAX_SIDE


def refusal(reason: str) -> RequestError:
    """Return the error `bad_request` with one of the fixed `REASONS`."""
    return RequestError("bad_request", REASONS[reason])


def check(condition: bool, reason: str) -> None:
    """Raise the error of `reason` unless `condition` holds."""
    if not condition:
        raise refusal(reason)
