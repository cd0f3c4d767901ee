"""The engines and precisions, and what each engine needs and supports."""

from __future__ import annotations

from typing import NamedTuple

PRECISIONS = ("float32", "bfloat16", "int8")
TORCH_PRECISIONS = ("float32", "bfloat16")
MAX_BATCH_SIZE = 65_536
MAX_STREAMS = 4  # unless tuned; each has its own buffers


class EngineKind(NamedTuple):
    """The requirements and capabilities of an engine."""

    packages: tuple[str, ...]  # import names of the required packages
    devices: tuple[str, ...]  # empty for all
    precisions: tuple[str, ...]


ENGINES = {
    "eager": EngineKind(("torch",), (), TORCH_PRECISIONS),  # the reference: the unchanged model
    "rewritten": EngineKind(("torch",), (), TORCH_PRECISIONS),  # the exact rewrites, run by PyTorch
    "compile": EngineKind(("torch",), ("cpu", "cuda"), TORCH_PRECISIONS),  # the same with torch.compile
    "openvino": EngineKind(("openvino",), ("cpu",), PRECISIONS),
    "onnxruntime": EngineKind(("torch", "onnxruntime", "onnx", "onnxscript"), ("cpu",), ("float32",)),
}
