"""The product of two large matrices: an upper limit for the speed of a model on this machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIDE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # for OpenVINO


def matrix_product(precision: str, device: str, side: int, threads: int) -> Callable[[], object] | None:
    """Return a function that multiplies two `side` x `side` matrices; None if the device lacks the precision.

    On a CPU, OpenVINO multiplies, because its products are at least as fast as those of PyTorch, whose library in
    float32 uses fewer instructions on some CPUs. int8: products of uint8 activations and int8 weights.
    """
    return _on_cpu(precision, side, threads) if device == "cpu" else _in_torch(precision, device, side)


def _on_cpu(precision: str, side: int, threads: int) -> Callable[[], object]:
    from ..engine.openvino import core
    from ..engine.runtime import op, ov

    runtime = core()
    generator = np.random.default_rng(0)
    left = generator.random((side, side), np.float32)
    entered = op.parameter([side, side], np.float32)
    if precision == "int8":
        low, high = np.float32(0), np.float32(1)
        first = op.fake_quantize(entered, low, high, low, high, 256)
        weights = op.constant(generator.integers(-127, 128, (side, side), np.int8))
        second = op.multiply(op.convert(weights, "f32"), np.full((1, side), 0.01, np.float32))
    else:
        first, second = entered, op.constant(generator.random((side, side), np.float32))
    model = ov.Model([op.matmul(first, second, False, False)], [entered])
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = runtime.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([left], share_inputs=True)


def _in_torch(precision: str, device: str, side: int) -> Callable[[], object] | None:
    import torch

    try:
        if precision == "int8":
            integers = torch.ones(side, side, dtype=torch.int8, device=device)
            torch._int_mm(integers, integers)
            return lambda: torch._int_mm(integers, integers)
        left = torch.ones(side, side, dtype=getattr(torch, precision), device=device)
        out = torch.mm(left, left)
        return lambda: torch.mm(left, left, out=out)
    except (AttributeError, RuntimeError, TypeError):
        return None
