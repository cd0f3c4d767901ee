"""The usual ways to run a model on a CPU without Tessella's engines, as candidates of `tessella.performance`.

All run the unchanged PyTorch model, whose modules and operations are those of timm, converted as the documentation of
each tool recommends: a fixed batch size, normalized float32 images, all threads on one batch. OpenVINO also runs as it
recommends for throughput, with a part of the batch on each of several streams.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessella.engine.openvino import core
from tessella.engine.runtime import ov
from tessella.performance.candidates import Array, Candidate, Case, OpenCandidate, in_torch

EAGER, COMPILE, OPENVINO, ONNXRUNTIME = "eager", "torch.compile", "stock OpenVINO", "stock ONNX Runtime"
STREAMS = "stock OpenVINO, streams"


def eager() -> Candidate:
    """Return the unchanged PyTorch model in float32."""

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        return lambda: OpenCandidate(in_torch(torch.inference_mode()(case.model)), "float32")

    return Candidate(EAGER, "float32", "float32", prepare)


def compiled(precision: str) -> Candidate:
    """Return torch.compile with frozen weights, the documented way to run a model repeatedly on a CPU."""
    dtype = getattr(torch, precision)

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        def start() -> OpenCandidate:
            model = case.model if precision == "float32" else copy.deepcopy(case.model).to(dtype)
            program = torch.compile(model, dynamic=False, options={"freezing": True})
            return OpenCandidate(in_torch(lambda x: program(x.to(dtype))), precision)

        return start

    return Candidate(COMPILE, precision, "float32", prepare)


def openvino(precision: str) -> Candidate:
    """Return OpenVINO's own conversion of the PyTorch model."""

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        def start() -> OpenCandidate:
            settings = {"PERFORMANCE_HINT": "LATENCY", **openvino_settings(precision)}
            request = core().compile_model(converted(case, batch), "CPU", settings).create_infer_request()
            return OpenCandidate(lambda x: request.infer([x], share_inputs=True)[0].copy(), precision)

        return start

    return Candidate(OPENVINO, precision, "float32", prepare)


def openvino_streams(precision: str) -> Candidate:
    """Return OpenVINO's own conversion with as many streams as threads; each one runs an equal part of the batch."""

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        def start() -> OpenCandidate:
            streams = math.gcd(torch.get_num_threads(), batch)
            settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams, **openvino_settings(precision)}
            compiled = core().compile_model(converted(case, batch // streams), "CPU", settings)
            requests = [compiled.create_infer_request() for _ in range(streams)]

            def run(x: Array) -> Array:
                for request, part in zip(requests, np.split(x, streams), strict=True):
                    request.start_async([part], share_inputs=True)
                for request in requests:
                    request.wait()
                return np.concatenate([request.get_output_tensor().data for request in requests])

            return OpenCandidate(run, precision)

        return start

    return Candidate(STREAMS, precision, "float32", prepare)


def openvino_settings(precision: str) -> dict[str, object]:
    """Return the settings that do not depend on the number of streams."""
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    return {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}


@functools.lru_cache(maxsize=2)  # a batch and the part of it that a stream runs; both precisions run the same model
def converted(case: Case, batch: int) -> Any:
    """Return OpenVINO's conversion of the PyTorch model for a fixed batch size."""
    core()  # before any other function of OpenVINO
    images = example(case, batch)
    with quiet(), torch.no_grad():
        # a copy, as the conversion patches the modules
        return ov.convert_model(copy.deepcopy(case.model), example_input=images, input=[list(images.shape)])


def onnxruntime() -> Candidate:
    """Return ONNX Runtime with the PyTorch model exported by torch.onnx."""

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        def start() -> OpenCandidate:
            import onnxruntime as runtime

            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3  # errors
            with exported(case, batch) as path:
                session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name

            def run(x: Array) -> Array:
                logits: Array = session.run(None, {name: x})[0]
                return logits

            return OpenCandidate(run, "float32")

        return start

    return Candidate(ONNXRUNTIME, "float32", "float32", prepare)


@contextlib.contextmanager
def exported(case: Case, batch: int) -> Iterator[Path]:
    """Export the model to an ONNX file, which is removed at the end of the context."""
    folder = Path(tempfile.mkdtemp(prefix="tessella-stock-"))
    try:
        with torch.no_grad(), quiet():
            torch.onnx.export(
                case.model, (example(case, batch),), str(folder / "model.onnx"), dynamo=True, external_data=False
            )
        yield folder / "model.onnx"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def example(case: Case, batch: int) -> torch.Tensor:
    return torch.zeros(batch, case.spec.channels, case.spec.height, case.spec.width)


def stock(precisions: list[str], compiled_precisions: Sequence[str] = ("float32",)) -> list[Candidate]:
    """Return all candidates, eager first; ONNX Runtime has no bfloat16 kernels for CPUs."""
    found = [eager()]
    for precision in precisions:
        found += [openvino(precision), openvino_streams(precision)]
        if precision == "float32":
            found.append(onnxruntime())
        if precision in compiled_precisions:
            found.append(compiled(precision))
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters print and warn about."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
