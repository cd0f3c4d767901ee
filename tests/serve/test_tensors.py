"""Requests and answers of the Open Inference Protocol: any bytes give a value or an error with a fixed text."""

from __future__ import annotations

import gc
import json
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.data.spec import InputSpec
from tessella.serve.problems import RequestError
from tessella.serve.scalings import SCALINGS, pixels_from_floats
from tessella.serve.tensors import (
    MAX_JSON_VALUES,
    REASONS,
    InferRequest,
    OutputTensor,
    RequestedOutput,
    classify_rows,
    encode_answer,
    parse_request,
    read_elements,
    read_numbers,
)

from .leaks import find_leaks

SPEC = InputSpec(height=8, width=6, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def with_binary(content: object, *parts: bytes) -> tuple[bytes, str]:
    """Return a request with binary data, and the value of its header."""
    text = json.dumps(content).encode()
    return text + b"".join(parts), str(len(text))


def tensor(**fields: object) -> dict[str, object]:
    return dict(name="image", datatype="FP32", shape=[1, 2]) | fields


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def read(request: InferRequest) -> object:
    """Read the data of all inputs."""
    return [read_elements(x) if x.datatype == "BYTES" else read_numbers(x) for x in request.inputs]


def reason(body: bytes, header: str | None) -> str:
    """Return the reason for which a request is refused."""
    with pytest.raises(RequestError) as caught:
        read(parse_request(body, header))
    assert caught.value.code == "bad_request"
    return {text: name for name, text in REASONS.items()}[caught.value.message]


class TestParse:
    def test_json(self) -> None:
        body = {
            "id": "42",
            "inputs": [tensor(data=[[0.5, 2]])],
            "outputs": [{"name": "logits", "parameters": {"classification": 3}}],
            "parameters": {"timeout": 5, "text": "x"},
        }
        request = parse_request(json.dumps(body).encode(), None)
        assert request.id == "42"
        assert request.outputs == (RequestedOutput("logits", binary=False, classes=3),)
        assert request.parameters == {"timeout": 5, "text": "x"}
        numbers = read_numbers(request.inputs[0])
        assert numbers.dtype == np.float32
        np.testing.assert_array_equal(numbers, [[0.5, 2]])

    @pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]])
    def test_nested_data_is_in_row_major_order(self, data: object) -> None:
        body = {"inputs": [tensor(shape=[2, 2], datatype="UINT8", data=data)]}
        numbers = read_numbers(parse_request(json.dumps(body).encode(), None).inputs[0])
        assert numbers.dtype == np.uint8
        np.testing.assert_array_equal(numbers, [[1, 2], [3, 4]])

    def test_binary_tensors_follow_each_other(self) -> None:
        files = elements(b"first", b"", b"third")
        numbers = np.array([1.5, -2], "<f4").tobytes()
        content = {
            "inputs": [
                tensor(datatype="BYTES", shape=[3], parameters={"binary_data_size": len(files)}),
                tensor(data=[0.25, 0.5]),
                tensor(parameters={"binary_data_size": 8}),
            ]
        }
        request = parse_request(*with_binary(content, files, numbers))
        first, second, third = request.inputs
        assert read_elements(first) == [b"first", b"", b"third"]
        np.testing.assert_array_equal(read_numbers(second), [[0.25, 0.5]])
        np.testing.assert_array_equal(read_numbers(third), [[1.5, -2]])

    def test_binary_outputs(self) -> None:
        content = {
            "inputs": [tensor(data=[1, 2])],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
        }
        request = parse_request(json.dumps(content).encode(), None)
        assert request.binary
        assert [output.binary for output in request.outputs] == [True, False]

    def test_strings_of_json(self) -> None:
        body = {"inputs": [tensor(datatype="BYTES", shape=[2, 1], data=[["YQ=="], ["Yg=="]])]}
        assert read_elements(parse_request(json.dumps(body).encode(), None).inputs[0]) == ["YQ==", "Yg=="]


JSON_CASES = {
    "no JSON": (b"\xff\xfe", "json"),
    "a list": (b"[]", "json"),
    "NaN": (b'{"inputs": [NaN]}', "json"),
    "deep": (b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json"),
    "many values": (b'{"id":[' + b"0," * (MAX_JSON_VALUES + 1) + b"0]}", "json_values"),
    "a huge number": (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [' + b"9" * 5000 + b"]}]}", "json"),
}
OBJECT_CASES: dict[str, tuple[object, str]] = {
    "number as id": ({"id": 3, "inputs": []}, "id"),
    "no inputs": ({}, "inputs"),
    "inputs of numbers": ({"inputs": [1]}, "inputs"),
    "many inputs": ({"inputs": [tensor(data=[1, 2])] * 17}, "inputs"),
    "many outputs": ({"inputs": [], "outputs": [{"name": "x"}] * 17}, "outputs"),
    "no name": ({"inputs": [{"datatype": "FP32", "shape": [1]}]}, "inputs"),
    "FP16": ({"inputs": [tensor(datatype="FP16", data=[1, 2])]}, "datatype"),
    "shape of texts": ({"inputs": [tensor(shape=["1"], data=[1])]}, "shape"),
    "negative size": ({"inputs": [tensor(shape=[-1, 2], data=[1, 2])]}, "shape"),
    "true as size": ({"inputs": [tensor(shape=[True, 2], data=[1, 2])]}, "shape"),
    "many sizes": ({"inputs": [tensor(shape=[1] * 9, data=[1])]}, "shape"),
    "huge size": ({"inputs": [tensor(shape=[2**40], data=[1])]}, "shape"),
    "huge product": ({"inputs": [tensor(shape=[2**31 - 1] * 8, data=[1])]}, "data_size"),
    "no data": ({"inputs": [tensor()]}, "no_data"),
    "text as data": ({"inputs": [tensor(data="1, 2")]}, "data_type"),
    "too few numbers": ({"inputs": [tensor(data=[1])]}, "data_size"),
    "too many numbers": ({"inputs": [tensor(data=[1, 2, 3])]}, "data_size"),
    "ragged": ({"inputs": [tensor(data=[[1], 2])]}, "data_size"),
    "nested too deeply": ({"inputs": [tensor(data=[[[[[[[[[[1, 2]]]]]]]]]])]}, "data_size"),
    "text as number": ({"inputs": [tensor(data=["1", "2"])]}, "data_type"),
    "true as number": ({"inputs": [tensor(data=[True, 2])]}, "data_type"),
    "too large": ({"inputs": [tensor(data=[1e39, 2])]}, "data_type"),
    "integer beyond floats": ({"inputs": [tensor(data=[10**400, 2])]}, "data_type"),
    "fraction as byte": ({"inputs": [tensor(datatype="UINT8", data=[1.5, 2])]}, "data_type"),
    "256 as byte": ({"inputs": [tensor(datatype="UINT8", data=[256, 2])]}, "data_type"),
    "number as text": ({"inputs": [tensor(datatype="BYTES", shape=[1], data=[1])]}, "data_type"),
    "too few texts": ({"inputs": [tensor(datatype="BYTES", shape=[2], data=["YQ=="])]}, "data_size"),
    "shared memory": ({"inputs": [tensor(parameters={"shared_memory_region": "x"})]}, "shared_memory"),
    "shared output": (
        {"inputs": [], "outputs": [{"name": "x", "parameters": {"shared_memory_region": "x"}}]},
        "shared_memory",
    ),
    "outputs of texts": ({"inputs": [], "outputs": ["logits"]}, "outputs"),
    "output without name": ({"inputs": [], "outputs": [{}]}, "outputs"),
    "text as binary": ({"inputs": [], "outputs": [{"name": "x", "parameters": {"binary_data": "yes"}}]}, "parameters"),
    "classes": ({"inputs": [], "outputs": [{"name": "x", "parameters": {"classification": -1}}]}, "classification"),
    "list of parameters": ({"inputs": [], "parameters": [1]}, "parameters"),
    "list as parameter": ({"inputs": [], "parameters": {"x": [1]}}, "parameters"),
    "size without data": ({"inputs": [tensor(parameters={"binary_data_size": 8})]}, "binary_size"),
}


class TestRefusals:
    @pytest.mark.parametrize(("body", "expected"), JSON_CASES.values(), ids=JSON_CASES)
    def test_json(self, body: bytes, expected: str) -> None:
        assert reason(body, None) == expected

    @pytest.mark.parametrize(("content", "expected"), OBJECT_CASES.values(), ids=OBJECT_CASES)
    def test_objects(self, content: object, expected: str) -> None:
        assert reason(json.dumps(content).encode(), None) == expected

    @pytest.mark.parametrize("header", ["", "x", "-1", "1.5", " 5", "99999999999999", "1000", "\u0661"])
    def test_header(self, header: str) -> None:
        assert reason(b'{"inputs": []}', header) == "header_length"

    @pytest.mark.parametrize(
        ("shape", "data", "expected"),
        [
            ([1], b"\x01\0\0", "element_size"),  # the length is cut off
            ([1], b"\x05\0\0\0abc", "element_size"),  # the data is cut off
            ([1], b"\xff\xff\xff\xffabc", "element_size"),
            ([2], elements(b"abc"), "element_size"),
            ([1], elements(b"abc") + b"x", "element_size"),
            ([2**31 - 1, 2**31 - 1], elements(b"abc"), "element_size"),
        ],
    )
    def test_elements(self, shape: list[int], data: bytes, expected: str) -> None:
        content = {"inputs": [tensor(datatype="BYTES", shape=shape, parameters={"binary_data_size": len(data)})]}
        assert reason(*with_binary(content, data)) == expected

    @pytest.mark.parametrize(
        ("size", "data", "expected"),
        [
            (8, bytes(7), "binary_size"),
            (8, bytes(9), "binary_size"),
            (7, bytes(7), "data_size"),
            (True, bytes(1), "binary_size"),
            (-8, bytes(8), "binary_size"),
        ],
    )
    def test_binary_numbers(self, size: int, data: bytes, expected: str) -> None:
        assert reason(*with_binary({"inputs": [tensor(parameters={"binary_data_size": size})]}, data)) == expected

    def test_both_forms_of_data(self) -> None:
        content = {"inputs": [tensor(data=[1, 2], parameters={"binary_data_size": 8})]}
        assert reason(*with_binary(content, bytes(8))) == "no_data"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SIZES = st.integers(-1, 20) | st.just(2**31)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "classification", "binary_data_output", "timeout"]),
    SIZES | st.booleans() | JSON_VALUES,
    max_size=2,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("image"), "datatype": st.sampled_from(["BYTES", "FP32", "UINT8", "BOOL"])},
    optional={
        "shape": st.lists(SIZES, max_size=4) | JSON_VALUES,
        "data": st.lists(st.floats(0, 9) | st.integers(0, 300) | st.text(max_size=3), max_size=4) | JSON_VALUES,
        "parameters": PARAMETERS | JSON_VALUES,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS | JSON_VALUES, max_size=3) | JSON_VALUES},
    optional={
        "id": JSON_VALUES,
        "parameters": PARAMETERS | JSON_VALUES,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.text()}, optional={"parameters": PARAMETERS}))
        | JSON_VALUES,
    },
)


def test_reasons_reveal_nothing() -> None:
    assert [text for text in REASONS.values() if find_leaks(text.encode())] == []


class TestFuzz:
    @staticmethod
    def parse(body: bytes, header: str | None) -> bool:
        """Return whether a request is accepted; anything but a value or an error of the protocol fails the test."""
        try:
            read(parse_request(body, header))
        except RequestError as error:
            message = error.message
        else:
            return True
        assert message in REASONS.values()
        return False

    @settings(max_examples=500, deadline=None)
    @given(st.binary(max_size=200), st.none() | st.text(max_size=4) | st.integers(0, 200).map(str))
    def test_any_bytes(self, body: bytes, header: str | None) -> None:
        self.parse(body, header)

    @settings(max_examples=500, deadline=None)
    @given(REQUESTS, st.binary(max_size=40), st.booleans())
    def test_any_structure(self, content: object, data: bytes, has_header: bool) -> None:
        body, header = with_binary(content, data)
        self.parse(body, header if has_header else None)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.binary(max_size=12), max_size=6), st.data())
    def test_damaged_elements(self, values: list[bytes], data: st.DataObject) -> None:
        """Elements are read as they were written; after one change they are other elements or an error."""
        raw = bytearray(elements(*values))
        content = {"inputs": [tensor(datatype="BYTES", shape=[len(values)], parameters={"binary_data_size": len(raw)})]}
        assert read(parse_request(*with_binary(content, bytes(raw)))) == [values]
        if raw:
            position = data.draw(st.integers(0, len(raw) - 1))
            raw[position] = data.draw(st.integers(0, 255))
            self.parse(*with_binary(content, bytes(raw)))
            assert reason(*with_binary(content, bytes(raw[:-1]))) == "binary_size"

    @pytest.mark.quiet
    @pytest.mark.parametrize("case", ["elements", "parameters", "brackets", "numbers", "lists"])
    def test_time_is_linear(self, case: str) -> None:
        """Eight times the input takes about eight times as long; a quadratic parser would take 64 times as long."""

        def build(size: int) -> tuple[bytes, str | None]:
            match case:
                case "elements":
                    raw = elements(*([b""] * size))
                    parameters = {"binary_data_size": len(raw)}
                    return with_binary({"inputs": [tensor(datatype="BYTES", shape=[size], parameters=parameters)]}, raw)
                case "parameters":
                    return json.dumps({"inputs": [], "parameters": {str(i): i for i in range(size)}}).encode(), None
                case "brackets":
                    return b'{"id":' + b"[" * size, None
                case "numbers":
                    return json.dumps({"inputs": [tensor(shape=[size], data=[0.5] * size)]}).encode(), None
            return json.dumps({"inputs": [tensor(shape=[size], data=[[0.5]] * size)]}).encode(), None

        def seconds(size: int) -> float:
            body, header = build(size)
            best = float("inf")
            gc.disable()  # its time depends on all objects of the process
            try:
                for _ in range(3):
                    start = time.process_time()
                    self.parse(body, header)
                    best = min(best, time.process_time() - start)
            finally:
                gc.enable()
            return best

        assert seconds(800_000) < 24 * max(seconds(100_000), 0.002)


class TestAnswers:
    ROWS = np.array([[1.5, -2, 7.25], [0.125, 3, 3]], np.float32)

    def test_json(self) -> None:
        body, length = encode_answer({"id": "\ud800"}, [OutputTensor("logits", self.ROWS, binary=False)])
        assert length is None
        output = {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [1.5, -2, 7.25, 0.125, 3, 3]}
        assert json.loads(body) == {"id": "\ud800", "outputs": [output]}

    def test_binary(self) -> None:
        texts = [["a", "ä"], ["", "b"]]
        outputs = [OutputTensor("x", self.ROWS, True), OutputTensor("y", texts, False), OutputTensor("z", texts, True)]
        body, length = encode_answer({}, outputs)
        assert length is not None
        x, y, z = json.loads(body[:length])["outputs"]
        assert x["parameters"] == {"binary_data_size": 24}
        assert y["data"] == ["a", "ä", "", "b"]
        assert "data" not in x
        assert (z["datatype"], z["shape"]) == ("BYTES", [2, 2])
        raw = body[length:]
        np.testing.assert_array_equal(np.frombuffer(raw[:24], "<f4").reshape(2, 3), self.ROWS)
        assert raw[24:] == elements(b"a", "ä".encode(), b"", b"b")
        assert z["parameters"] == {"binary_data_size": len(raw) - 24}

    def test_classes(self) -> None:
        """Of equal values, the lower index comes first; more classes than there are give all."""
        assert classify_rows(self.ROWS, ("a", "b:c", "d"), 2) == [
            ["7.250000:2:d", "1.500000:0:a"],
            ["3.000000:1:b:c", "3.000000:2:d"],
        ]
        assert classify_rows(self.ROWS[:1], (), 9) == [["7.250000:2", "1.500000:0", "-2.000000:1"]]


class TestScalings:
    @pytest.fixture
    def pixels(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), np.uint8)

    @staticmethod
    def scale(pixels: np.ndarray, scaling: str) -> np.ndarray:
        """Scale as clients do: (N,H,W,3) uint8 -> (N,3,H,W) float32."""
        x = pixels.astype(np.float32)
        scaled: dict[str, np.ndarray] = {
            "none": x,
            "unit": x / 255,
            "inception": x / 127.5 - 1,
            "vgg": x - np.array((123, 117, 104), np.float32),
            "normalized": (x / 255 - np.array(SPEC.mean, np.float32)) / np.array(SPEC.std, np.float32),
        }
        return scaled[scaling].astype(np.float32).transpose(0, 3, 1, 2)

    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_every_scaling_is_undone_exactly(self, pixels: np.ndarray, scaling: str) -> None:
        restored = pixels_from_floats(self.scale(pixels, scaling), scaling, SPEC)
        assert restored.dtype == np.uint8
        assert restored.flags.c_contiguous
        np.testing.assert_array_equal(restored, pixels)

    @pytest.mark.parametrize("scaling", SCALINGS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 300, -130])
    def test_values_that_no_pixel_has(self, pixels: np.ndarray, scaling: str, value: float) -> None:
        scaled = self.scale(pixels, scaling).copy()
        scaled[1, 2, 3, 4] = value
        with pytest.raises(RequestError) as caught:
            pixels_from_floats(scaled, scaling, SPEC)
        assert caught.value.code == "bad_request"

    @pytest.mark.parametrize("scaling", ["unit", "inception", "vgg", "normalized"])
    def test_scaled_values_are_not_taken_for_pixels(self, pixels: np.ndarray, scaling: str) -> None:
        with pytest.raises(RequestError, match="name of the model"):
            pixels_from_floats(self.scale(pixels, scaling), "none", SPEC)

    def test_one_scaled_image_among_others(self, pixels: np.ndarray) -> None:
        mixed = self.scale(pixels, "none").copy()
        mixed[2] /= 255
        with pytest.raises(RequestError, match=r"\.unit"):
            pixels_from_floats(mixed, "none", SPEC)

    def test_black_images_are_pixels(self) -> None:
        black = np.zeros((2, 3, 8, 6), np.float32)
        black[1, 0] = 1
        np.testing.assert_array_equal(pixels_from_floats(black, "none", SPEC), black.transpose(0, 2, 3, 1))

    def test_fractions_are_rounded(self) -> None:
        values = np.full((1, 3, 8, 6), 100.4, np.float32)
        assert (pixels_from_floats(values, "none", SPEC) == 100).all()
