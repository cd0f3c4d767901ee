"""Convert a model to a file for another runtime with torch.export, and cache the result."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..data.spec import InputSpec
from ..errors import TessellaError, WeightsError
from ..machine import versions
from ..models.base import ImageModel
from ..weights.network import Network
from .artefacts import GRAPHS, cached
from .eager import rewritten_for, suppress_warnings, wrap_outputs
from .facts import conversion_facts
from .openvino import core
from .plan import Plan
from .rewrites import usual_layout

log = logging.getLogger(__name__)


@contextmanager
def _without_verbose() -> Iterator[None]:
    """Hide `--verbose` from OpenVINO, which reads sys.argv and would print its own statistics."""
    arguments = sys.argv
    sys.argv = [argument for argument in arguments if argument != "--verbose"]
    try:
        yield
    finally:
        sys.argv = arguments


def as_openvino(network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None) -> Path:
    """Return the folder with the model in OpenVINO's format; float32 and bfloat16 share one, as the runtime rounds.

    size: (height, width) in pixels. Raises WeightsError `conversion_failed` or `cache_failed`.
    """
    from .runtime import ov, report_nothing, save_graph

    core()
    report_nothing()
    model = network.to_module()

    def convert(folder: Path) -> None:
        log.info("converting %s for OpenVINO (only the first time)", model.arch)
        with conversion_errors("OpenVINO"), suppress_warnings(), _without_verbose():
            graph = ov.convert_model(export_program(model, plan, size, spec))
            save_graph(graph, folder / GRAPHS["openvino"])

    facts = conversion_facts(network, plan, size, spec, openvino=ov.__version__) | {"precision": "float32"}
    return cached("openvino", facts, convert)


def as_onnx(network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None) -> Path:
    """Return the folder with the model as an ONNX file.

    size: (height, width) in pixels. Raises WeightsError `conversion_failed` or `cache_failed`.
    """

    def export(folder: Path) -> None:
        log.info("converting %s for ONNX Runtime (only the first time)", network.arch)
        file = str(folder / GRAPHS["onnxruntime"])
        with conversion_errors("ONNX Runtime"), suppress_warnings():
            program = export_program(network.to_module(), plan, size, spec)
            torch.onnx.export(
                program,
                f=file,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["images"],
                output_names=["logits", "embedding"],
            )

    return cached("onnx", conversion_facts(network, plan, size, spec, **versions()), export)


def export_program(
    model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None
) -> torch.export.ExportedProgram:
    """Return the rewritten model as a torch.export program for any batch size, the input of all converters."""
    layout = plan.layout or usual_layout(model, plan.engine)
    exact = dataclasses.replace(plan, device="cpu", precision="float32", layout=layout)
    module = wrap_outputs(rewritten_for(model, exact, spec), exact, spec)
    channels = model.config.in_chans
    example = torch.zeros(2, *size, channels, dtype=torch.uint8) if spec else torch.zeros(2, channels, *size)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


@contextmanager
def conversion_errors(what: str) -> Iterator[None]:
    """Translate any exception of a converter into WeightsError `conversion_failed`."""
    try:
        yield
    except (TessellaError, OSError):
        raise
    except Exception as error:  # converters raise exceptions of many types
        first = next(iter(str(error).strip().splitlines()), "")[:200]
        raise WeightsError(
            "conversion_failed",
            f"the conversion to {what} failed: {type(error).__name__}: {first}",
            hint="engine 'rewritten' needs no conversion",
        ) from error
