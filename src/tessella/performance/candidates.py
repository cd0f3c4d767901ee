"""The candidates of a benchmark: engines of this package, and timm, that run a model."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..engine import make_plan, open_engine
from ..engine.gate import CALIBRATION, open_gated
from ..engine.plan import Mode
from ..errors import UsageError
from ..models.base import ImageModel
from ..weights.catalogue import resolve
from ..weights.counting import cost
from ..weights.factory import create_model
from ..weights.load import image_size

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to benchmark, and the format of its images."""

    name: str
    model: ImageModel  # float32, on the CPU, in evaluation mode
    spec: InputSpec
    weights: str  # "trained" or "random"; speed does not depend on them
    device: str = "cpu"

    @property
    def macs(self) -> int:
        """Multiply-adds per image of the published model; a candidate that needs fewer may exceed the GEMM limit."""
        return cost(self.model, (self.spec.channels, self.spec.height, self.spec.width)).macs


class OpenCandidate(NamedTuple):
    """A candidate that is ready to run."""

    run: Run  # a batch in the format of `Candidate.reads`, on the case's device -> (B,classes) logits
    precision: str  # used, which may differ from the requested one
    note: str = ""  # a remark for the row
    earlier_seconds: float = 0.0  # time of preparation that is shared with an earlier candidate


@dataclass(frozen=True)
class Candidate:
    """A way to run a model.

    reads: "uint8" for (B,H,W,C) pixels, "float32" for (B,C,H,W) normalised images, whatever the precision.
    prepare: (case, batch size) -> function that opens the candidate; conversion, compilation and other expensive
    work belong in that function. Both may raise any exception, which becomes the candidate's result.
    """

    name: str
    precision: str  # requested
    reads: Literal["uint8", "float32"]
    prepare: Callable[[Case, int], Callable[[], OpenCandidate]]


def load_case(name: str, *, pretrained: bool = False, device: str = "cpu") -> Case:
    """Create the model `name`, with random weights unless they are built in or `pretrained` is set.

    Raises the errors of `create_model`.
    """
    checkpoint = None if ":" in name else resolve(name)[1]
    trained = pretrained or bool(checkpoint and checkpoint.file)
    model = create_model(name, pretrained=trained).eval()
    if not trained:
        fill_random(model)
    spec = InputSpec.from_cfg(model.pretrained_cfg)
    height, width = image_size(model) or (spec.height, spec.width)
    spec = dataclasses.replace(spec, height=height, width=width)
    weights = "trained" if trained else "random"
    return Case(name=checkpoint.name if checkpoint else name, model=model, spec=spec, weights=weights, device=device)


@torch.no_grad()
def fill_random(model: nn.Module) -> None:
    """Fill the weights with random numbers, so that every layer affects the output.

    The head of an untrained model is zero, so the outputs of all candidates would be equal.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


# --- this package -----------------------------------------------------------------------------------------------------


def engine_candidate(engine: str, precision: str) -> Candidate:
    """Return an engine of this package as a candidate that reads uint8 images; engine: a key of ENGINES or "auto"."""

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        size = (case.spec.height, case.spec.width)
        mode: Mode = "latency" if batch == 1 else "throughput"
        plan = make_plan(case.device, precision, engine, batch, mode, case.model, size)

        def start() -> OpenCandidate:
            if plan.precision != "float32" and case.weights == "trained":
                opened = open_gated(case.model, plan, size, case.spec)
            else:  # the accuracy of random weights cannot be judged
                calibration = sample_images(case.spec, CALIBRATION) if plan.precision == "int8" else None
                opened = open_engine(case.model, plan, size, case.spec, calibration)
            fell_back = opened.plan.precision != plan.precision  # because the lossy precision was too inaccurate
            note = ""
            if fell_back or engine == "auto":
                _, value, reason = opened.plan.choice("precision" if fell_back else "engine")
                note = f"{value}: {reason}"
            return OpenCandidate(lambda x: next(opened.imap([x]))[0], opened.plan.precision, note)

        return start

    name = f"auto ({precision})" if engine == "auto" != precision else engine
    return Candidate(name, precision, "uint8", prepare)


# --- timm -------------------------------------------------------------------------------------------------------------


def timm_candidate(precision: str) -> Candidate:
    """Return timm's eager model with the same name and weights as a candidate."""

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        def start() -> OpenCandidate:
            dtype = getattr(torch, precision)
            model = timm_model(case).to(case.device, dtype)
            return OpenCandidate(torch.inference_mode()(lambda x: model(x.to(dtype))), precision)

        return start

    return Candidate("timm", precision, "float32", prepare)


def timm_model(case: Case) -> nn.Module:
    """Create timm's model with the weights of the case, in evaluation mode, on the CPU.

    Raises UsageError `unknown_model` if timm does not have it, and the errors of `import_timm`.
    """
    model, timm = case.model, import_timm()
    if not timm.is_model(model.arch):
        raise UsageError("unknown_model", f"timm has no {model.arch}")
    twin: nn.Module = timm.create_model(model.arch, num_classes=model.num_classes, in_chans=model.config.in_chans)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def import_timm() -> ModuleType:
    """Import timm; raises UsageError `missing_dependency` if it is not installed or cannot be imported."""
    try:
        return importlib.import_module("timm")
    except (
        Exception
    ) as error:  # torchvision, which timm imports, raises RuntimeError for an incompatible version of torch
        missing = getattr(error, "name", "") == "timm"
        state = "is not installed" if missing else f"cannot be imported: {first_line(error)}"
        raise UsageError(
            "missing_dependency",
            f"timm {state}",
            hint="install it with a matching version of torchvision, or run `scripts/bench cpu` in a source checkout",
        ) from None


def first_line(error: Exception) -> str:
    """Return the type and the first line of an exception, at most 200 characters."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:200]
