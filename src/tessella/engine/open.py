"""Open the engine of a plan. Backends are imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .artefacts import GRAPHS
from .base import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from ..data.decode import Pixels
    from ..data.spec import InputSpec
    from ..models.base import ImageModel
    from .plan import Plan


def open_engine(
    model: ImageModel,
    plan: Plan,
    size: tuple[int, int],
    spec: InputSpec | None = None,
    samples: Pixels | None = None,
) -> Engine:
    """Return the engine of `plan`, ready to run `model` on images of `size` (height, width), in the plan's precision.

    spec: with it, the engine reads (B,H,W,C) uint8 images, without it (B,C,H,W) normalised floats. samples: (N,H,W,C)
    uint8 images to calibrate int8, required for that precision. The accuracy of a lossy precision is checked by
    `gate.open_gated`, not here. Raises WeightsError `cache_failed` if a converted model cannot be written,
    `conversion_failed`.
    """
    if plan.engine == "eager":
        from .eager import EagerEngine

        return EagerEngine(model, plan, size, spec)
    if plan.engine == "rewritten":
        from .eager import RewrittenEngine

        return RewrittenEngine(model, plan, size, spec)
    if plan.engine == "compile":
        from .compiled import CompileEngine

        return CompileEngine(model, plan, size, spec)
    from .convert import as_onnx, as_openvino

    if plan.engine == "openvino":
        folder = as_openvino(model, plan, size, spec, samples)
    else:
        folder = as_onnx(model, plan, size, spec)
    return open_graph(folder / GRAPHS[plan.engine], plan, size, spec, model)


def open_graph(
    graph: Path, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None, model: ImageModel | None = None
) -> Engine:
    """Return an engine that runs the file of a converted model, without PyTorch.

    plan: its engine is a key of GRAPHS. model: the model that was converted; None for an exported folder.
    """
    if plan.engine == "openvino":
        from .openvino import OpenVinoEngine

        return OpenVinoEngine(graph, plan, size, spec, model)
    from .onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, plan, size, spec, model)
