"""The candidates of a benchmark: engines of this package, and timm, that run a model.

PyTorch is imported only by what needs it, so that OpenVINO is measured where PyTorch is not installed.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..engine import make_plan, open_engine
from ..engine.base import Engine
from ..engine.gate import open_gated
from ..engine.judging import CALIBRATION
from ..engine.plan import Mode
from ..engine.trial import settle_layout
from ..errors import UsageError
from ..extras import require
from ..models.configs import image_size
from ..weights.catalogue import resolve
from ..weights.costs import read_costs
from ..weights.network import Network
from ..weights.open import open_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models.base import ImageModel

Array: TypeAlias = "NDArray[np.generic] | Tensor"  # an array on a CPU, a tensor on other devices
Run: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to benchmark, and the format of its images."""

    name: str
    network: Network  # in float32
    spec: InputSpec
    weights: str  # "trained" or "random"; speed does not depend on them
    device: str = "cpu"

    @property
    def model(self) -> ImageModel:
        """The PyTorch model, on the CPU in evaluation mode. Raises UsageError `missing_dependency` without PyTorch."""
        require("torch", "this candidate")
        return self.network.to_module()

    @cached_property
    def macs(self) -> int:
        """Multiply-adds per image of the published model; a candidate that needs fewer may exceed the GEMM limit.

        0 without PyTorch if the model is not in the table of costs.
        """
        rows = read_costs()
        known = rows.get(self.name) or rows.get(self.network.arch)
        size = [self.spec.channels, self.spec.height, self.spec.width]
        if known and known["input_size"] == size and known["num_classes"] == self.network.num_classes:
            return known["macs"]
        if not has_torch():
            return 0
        from ..weights.counting import cost

        return cost(self.model, (self.spec.channels, self.spec.height, self.spec.width)).macs

    def expected(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the reference logits (B,classes) of uint8 images, from PyTorch, or from OpenVINO without it."""
        engine = "eager" if has_torch() else "openvino"
        plan = make_plan("cpu", "float32", engine, len(pixels_BHWC), "latency")
        opened = open_engine(self.network, plan, (self.spec.height, self.spec.width), self.spec)
        return opened(pixels_BHWC)[0]

    def normalised(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (B,C,H,W) normalised images of (B,H,W,C) uint8 pixels."""
        mean, std = (np.array(values, np.float32) for values in (self.spec.mean, self.spec.std))
        scaled = (pixels_BHWC.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


class OpenCandidate(NamedTuple):
    """A candidate that is ready to run."""

    run: Run  # a batch in the format of `Candidate.reads`, on the case's device -> (B,classes) logits
    precision: str  # used, which may differ from the requested one
    note: str = ""  # a remark for the row
    earlier_seconds: float = 0.0  # time of preparation that is shared with an earlier candidate
    gate: str = ""  # verdict about a lossy precision; "" if it was not judged


@dataclass(frozen=True)
class Candidate:
    """A way to run a model.

    reads: "uint8" for (B,H,W,C) pixels, "float32" for (B,C,H,W) normalised images, whatever the precision.
    prepare: (case, batch size) -> function that opens the candidate; conversion, compilation and other expensive
    work belong in that function. Both may raise any exception, which becomes the candidate's result. caches: candidates
    with the same name here share their caches; "" for caches of its own, so that conversions start cold.
    """

    name: str
    precision: str  # requested
    reads: Literal["uint8", "float32"]
    prepare: Callable[[Case, int], Callable[[], OpenCandidate]]
    caches: str = ""


def load_case(name: str, *, pretrained: bool = False, device: str = "cpu") -> Case:
    """Open the model `name`, with random weights unless they are built in or `pretrained` is set.

    Raises the errors of `open_network`, such as UsageError `missing_dependency` for random weights without PyTorch.
    """
    checkpoint = None if ":" in name else resolve(name)[1]
    trained = pretrained or bool(checkpoint and checkpoint.file)
    network = open_network(name, pretrained=trained)
    if not trained:
        model = network.to_module()
        fill_random(model)
        network = Network.of(model)
    spec = InputSpec.from_cfg(network.pretrained_cfg)
    height, width = image_size(network.config) or (spec.height, spec.width)
    spec = dataclasses.replace(spec, height=height, width=width)
    weights = "trained" if trained else "random"
    return Case(
        name=checkpoint.name if checkpoint else name, network=network, spec=spec, weights=weights, device=device
    )


def fill_random(model: nn.Module) -> None:
    """Fill the weights with random numbers, so that every layer affects the output.

    The head of an untrained model is zero, so the outputs of all candidates would be equal.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


def has_torch() -> bool:
    """Return whether PyTorch can be imported."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def in_torch(run: Callable[[Tensor], Tensor]) -> Run:
    """Return a candidate that runs a function of tensors on arrays or tensors (B,...), without derivatives."""
    import torch

    return torch.no_grad()(lambda x: run(torch.as_tensor(x)))


# --- this package -----------------------------------------------------------------------------------------------------


def engine_candidate(engine: str, precision: str, judged: Callable[[int], bool] | None = None) -> Candidate:
    """Return an engine of this package as a candidate that reads uint8 images; engine: a key of ENGINES or "auto".

    judged: None applies the gate to trained weights only. With it, a lossy precision is measured in any case, and
    compared with float32, for the record, if `judged` returns True for the batch size at that time.
    """

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        size = (case.spec.height, case.spec.width)
        mode: Mode = "latency" if batch == 1 else "throughput"
        plan = make_plan(case.device, precision, engine, batch, mode, case.network, size)

        def start() -> OpenCandidate:
            lossy = plan.precision != "float32"
            verdict, opened = "", None
            if not lossy or (judged(batch) if judged else case.weights == "trained"):
                opened = open_gated(case.network, plan, size, case.spec)
                kept = opened.plan.precision == plan.precision
                if lossy:
                    verdict = f"{'passed' if kept else 'refused'}: {opened.plan.choice('precision').reason}"
                opened = opened if kept or not judged else None
            if opened is None:  # without the gate
                calibration = sample_images(case.spec, CALIBRATION) if plan.precision == "int8" else None
                settled = settle_layout(case.network, plan, size, case.spec)
                opened = open_engine(case.network, settled, size, case.spec, calibration)
            fell_back = opened.plan.precision != plan.precision  # because the lossy precision was too inaccurate
            note = ""
            if fell_back or engine == "auto":
                _, value, reason = opened.plan.choice("precision" if fell_back else "engine")
                note = f"{value}: {reason}"
            return OpenCandidate(_run_of(opened), opened.plan.precision, note, gate=verdict)

        return start

    name = f"auto ({precision})" if engine == "auto" != precision else engine
    return Candidate(name, precision, "uint8", prepare)


def _run_of(engine: Engine) -> Run:
    def run(images: Array) -> Array:
        batches: Iterable[Tensor] = [images]  # type: ignore[list-item]  # imap takes both, but one kind per call
        return next(engine.imap(batches))[0]

    return run


# --- timm -------------------------------------------------------------------------------------------------------------


def timm_candidate(precision: str) -> Candidate:
    """Return timm's eager model with the same name and weights as a candidate."""

    def prepare(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        def start() -> OpenCandidate:
            import torch

            dtype = getattr(torch, precision)
            model = timm_model(case).to(case.device, dtype)
            return OpenCandidate(in_torch(torch.inference_mode()(lambda x: model(x.to(dtype)))), precision)

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
