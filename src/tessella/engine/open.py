"""Open the engine of a plan. Backends are imported when they are used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..extras import require
from ..models.configs import image_size
from ..models.configs.convmixer import ConvMixerConfig
from ..weights.network import AnyModel, as_network
from .artefacts import GRAPHS
from .base import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from ..data.decode import Pixels
    from ..data.spec import InputSpec
    from ..weights.network import Network
    from .plan import Plan


log = logging.getLogger(__name__)
GRAPH_VERSION = 3  # raised whenever a graph in a lossy precision may give other results than before


def open_engine(
    model: AnyModel,
    plan: Plan,
    size: tuple[int, int],
    spec: InputSpec | None = None,
    samples: Pixels | None = None,
) -> Engine:
    """Return the engine of `plan`, ready to run `model` on images of `size` (height, width), in the plan's precision.

    spec: with it, the engine reads (B,H,W,C) uint8 images, without it (B,C,H,W) normalized floats. samples: (N,H,W,C)
    uint8 images to calibrate int8, required for that precision. The accuracy of a lossy precision is checked by
    `gate.open_gated`, not here. Raises WeightsError `cache_failed` if a converted model cannot be written,
    `conversion_failed`, and UsageError `missing_dependency` for an engine or model that needs PyTorch without it,
    `bad_argument` for int8 and a model without a graph, `wrong_input_size` for a size that the model does not support.
    """
    network = as_network(model)
    if network.is_standard:
        check_size(network, size)
    if plan.engine == "openvino":
        return _open_openvino(network, plan, size, spec, samples)
    require("torch", f"engine {plan.engine!r}")
    if plan.engine == "eager":
        from .eager import EagerEngine

        return EagerEngine(network, plan, size, spec)
    if plan.engine == "rewritten":
        from .eager import RewrittenEngine

        return RewrittenEngine(network, plan, size, spec)
    if plan.engine == "compile":
        from .compiled import CompileEngine

        return CompileEngine(network, plan, size, spec)
    from .convert import as_onnx

    folder = as_onnx(network, plan, size, spec)
    return open_graph(folder / GRAPHS[plan.engine], plan, size, spec, network)


def check_size(network: Network, size: tuple[int, int]) -> None:
    """Raise UsageError `wrong_input_size` unless the network can read images of `size` (height, width) in pixels."""
    required = image_size(network.config)
    got = f"got {size[0]}x{size[1]} px images"
    if required is not None and tuple(size) != required:
        raise UsageError(
            "wrong_input_size",
            f"{got}, this {network.arch} reads {required[0]}x{required[1]} px (height x width)",
            hint=f"resize the images, or build the model with img_size=({size[0]}, {size[1]}) if its patches fit that",
        )
    if isinstance(network.config, ConvMixerConfig) and min(size) < network.config.patch_size:
        raise UsageError("wrong_input_size", f"{got}, smaller than one {network.config.patch_size} px patch")


def _open_openvino(
    network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None, samples: Pixels | None
) -> Engine:
    from .graphs import why_not
    from .openvino import OpenVinoEngine, core

    core()  # before any other function of OpenVINO
    if (reason := why_not(network)) is not None:
        if plan.precision == "int8":
            raise UsageError(
                "bad_argument",
                f"int8 is not available for this {network.arch}, because {reason}",
                hint="use precision 'bfloat16' or 'float32'",
            )
        require("torch", f"the conversion of {network.arch} ({reason})")
        from .convert import as_openvino

        log.info("%s is converted by PyTorch, because %s", network.arch, reason)
        folder = as_openvino(network, plan, size, spec)
        return open_graph(folder / GRAPHS["openvino"], plan, size, spec, network)
    from .graphs import Products, build_graph

    if plan.precision == "int8":
        from .quantization import quantized_graph

        assert samples is not None
        graph, digest = quantized_graph(network, plan, size, spec, samples, plan.exact)
        return OpenVinoEngine(graph, plan, size, spec, network, graph_hash=f"{GRAPH_VERSION} {plan.layout} {digest}")
    graph = build_graph(network, size, spec, layout=plan.layout, products=Products(plan.precision))
    return OpenVinoEngine(graph, plan, size, spec, network, graph_hash=f"{GRAPH_VERSION} {plan.layout}")


def open_graph(
    graph: Path, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None, network: Network | None = None
) -> Engine:
    """Return an engine that runs the file of a converted model, without PyTorch.

    plan: its engine is a key of GRAPHS. network: the model that was converted; None for an exported folder.
    """
    if plan.engine == "openvino":
        from .openvino import OpenVinoEngine

        return OpenVinoEngine(graph, plan, size, spec, network)
    from .onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, plan, size, spec, network)
