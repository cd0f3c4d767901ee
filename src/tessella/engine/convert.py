"""From a model to a file that another runtime runs: by torch.export, once, kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..errors import TessellaError, WeightsError
from ..fingerprint import config_text, weights_hash
from ..machine import versions
from ..models.base import ImageModel
from ..models.convmixer import ConvMixer
from .artefacts import cached
from .eager import quiet, rewritten_for, whole
from .exported import GRAPHS
from .openvino import core
from .plan import Plan
from .rewrite import usual_layout

log = logging.getLogger(__name__)


@contextmanager
def _without_verbose() -> Iterator[None]:
    """Hide `--verbose` of the program: OpenVINO reads sys.argv, and would print statistics as if they were results."""
    given = sys.argv
    sys.argv = [argument for argument in given if argument != "--verbose"]
    try:
        yield
    finally:
        sys.argv = given


def as_openvino(
    model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None, samples: Pixels | None
) -> Path:
    """The folder of the model as OpenVINO's files; float32 and bfloat16 share one, as the runtime rounds.

    samples: (N,H,W,C) uint8 images that int8 ranges are measured on; needed for that precision only.
    """
    import openvino as ov

    core()

    def convert(folder: Path) -> None:
        log.info("converting %s for OpenVINO, once", model.arch)
        with converting("OpenVINO"), quiet(), _without_verbose():
            graph = ov.convert_model(exported(model, plan, size, spec))
            ov.save_model(graph, folder / GRAPHS["openvino"], compress_to_fp16=False)

    facts = facts_of(model, plan, size, spec, openvino=ov.__version__) | {"precision": "float32"}
    exact = cached("openvino", facts, convert)
    if plan.precision != "int8":
        return exact
    assert samples is not None

    def quantise(folder: Path) -> None:
        log.info("measuring int8 ranges of %s on %d images, once: minutes for a large model", model.arch, len(samples))
        with converting("int8"):
            graph = quantised(exact / GRAPHS["openvino"], model, spec, samples)
            ov.save_model(graph, folder / GRAPHS["openvino"], compress_to_fp16=False)

    facts |= dict(precision="int8", samples=array_hash(samples), recipe=recipe_of(model), **versions())
    return cached("openvino", facts, quantise)


def as_onnx(model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None) -> Path:
    """The folder of the model as an ONNX file."""

    def export(folder: Path) -> None:
        log.info("converting %s for ONNX Runtime, once", model.arch)
        file = str(folder / GRAPHS["onnxruntime"])
        names: dict[str, Any] = dict(input_names=["images"], output_names=["logits", "embedding"])
        with converting("ONNX Runtime"), quiet():
            program = exported(model, plan, size, spec)
            torch.onnx.export(program, f=file, dynamo=True, external_data=False, verbose=False, **names)

    return cached("onnx", facts_of(model, plan, size, spec, **versions()), export)


def exported(
    model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None
) -> torch.export.ExportedProgram:
    """The whole rewritten model as a program of torch.export with a free batch, for converters to other runtimes."""
    layout = plan.layout or usual_layout(model, plan.engine)
    exact = dataclasses.replace(plan, device="cpu", precision="float32", layout=layout)
    module = whole(rewritten_for(model, exact, spec), exact, spec)
    channels = model.config.in_chans
    example = torch.zeros(2, *size, channels, dtype=torch.uint8) if spec else torch.zeros(2, channels, *size)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


# --- int8 -------------------------------------------------------------------------------------------------------------


def quantised(graph: Path, model: ImageModel, spec: InputSpec | None, samples: Pixels) -> Any:
    """The graph with int8 products: NNCF's post-training quantisation, ranges measured on the samples.

    Left in floating point: the first and last products, whose inputs and outputs are the model's own; depthwise
    convolutions and sums, which are bound by memory and lose accuracy. Activations are asymmetric, as none is centred.
    """
    with quiet(), redirect_stdout(sys.stderr):  # its progress bars are no result
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        nncf.set_log_level(logging.ERROR)
        inputs = samples if spec else normalise(samples, InputSpec.from_cfg(model.pretrained_cfg)).numpy()
        network = core().read_model(graph)
        products = [
            op.get_friendly_name()
            for op in network.get_ordered_ops()
            if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
        ]
        convolutional = isinstance(model, ConvMixer)
        return nncf.quantize(
            network,
            nncf.Dataset([one[None] for one in inputs]),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=None if convolutional else nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(
                names=[products[0], products[-1]],
                types=["GroupConvolution", "Add"] if convolutional else [],
                validate=False,
            ),
            # without VNNI products are added in pairs in 16 bits, and full-range weights overflow; always on, so that
            # a file gives the same answers on every CPU
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
        )


@contextmanager
def converting(what: str) -> Iterator[None]:
    """Whatever a converter raises, as an error that says what to do instead."""
    try:
        yield
    except (TessellaError, OSError):
        raise
    except Exception as error:  # converters raise of all kinds
        first = next(iter(str(error).strip().splitlines()), "")[:200]
        raise WeightsError(
            "conversion_failed",
            f"the conversion for {what} failed: {type(error).__name__}: {first}",
            hint="engine 'rewritten' needs none",
        ) from error


def recipe_of(model: ImageModel) -> dict[str, Any]:
    return dict(InputSpec.from_cfg(model.pretrained_cfg).to_cfg())


# --- names of converted models ----------------------------------------------------------------------------------------


def array_hash(array: Any) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def code_hash() -> str:
    """SHA-256 over the code that makes a converted model: a change of it leaves no old conversion in use."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(path for layer in ("models", "engine") for path in (package / layer).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def facts_of(
    model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None, **more: Any
) -> dict[str, Any]:
    """What decides a converted model; its name in the cache is made of this."""
    from .._version import __version__

    return dict(
        architecture=model.arch,
        config=config_text(model.config),
        pool=model.global_pool,
        weights=weights_hash(model),
        spec=spec.to_cfg() if spec else None,
        size=size,
        precision=plan.precision,
        layout=plan.layout,
        code=code_hash(),
    ) | (dict(tessella=__version__, torch=torch.__version__) | more)
