"""The same function, on this machine: where a model runs, how precisely, and why.

Every choice is a row of the plan with its reason; "auto" is resolved here and nowhere else. Now there is one engine,
the eager reference; later ones keep its interface and are compared with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..data.decode import Pixels
from ..data.transforms import InputSpec, normalise
from ..errors import UsageError
from ..models.base import ImageModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT_BATCH = {"cpu": 8, "cuda": 128, "mps": 32}  # images; on a CPU larger ones fall out of cache and gain nothing


class Choice(NamedTuple):
    """One row of a plan."""

    what: str
    chosen: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a model runs: resolved settings, and why each is what it is."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int  # images
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        return "\n".join(f"{row.what}: {row.chosen} ({row.reason})" for row in self.choices)


def make_plan(
    device: str = "auto", precision: str = "auto", engine: str = "auto", batch_size: int | None = None
) -> Plan:
    """Resolve "auto" for this machine; anything else is taken as it is, or refused with UsageError `bad_argument`."""
    asked = "asked for"
    where, why_device = (device, asked) if device != "auto" else _find_device()
    try:
        target = torch.device(where)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError):
        raise UsageError(
            "bad_argument", f"device {device!r} is not available here", hint="use 'cpu', or see `tessella doctor`"
        ) from None
    if precision != "auto" and precision not in PRECISIONS:
        raise UsageError("bad_argument", f"precision is {precision!r}, expected auto, {' or '.join(PRECISIONS)}")
    if engine not in ("auto", "eager"):
        raise UsageError("bad_argument", f"engine is {engine!r}, expected 'auto' or 'eager'")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError("bad_argument", f"batch_size is {batch_size!r}, expected a positive number of images")
    size = batch_size or DEFAULT_BATCH.get(target.type, 8)
    exact = "float32" if precision == "auto" else precision
    threads = torch.get_num_threads()
    return Plan(
        target,
        PRECISIONS[exact],
        size,
        (
            Choice("device", str(target), why_device),
            Choice("precision", exact, asked if precision != "auto" else "exact; a lossy one is used only when asked"),
            Choice("engine", "eager", asked if engine != "auto" else "the reference, the only engine so far"),
            Choice("batch", f"{size} images", asked if batch_size else f"default on {target.type}"),
            Choice("threads", str(threads), f"PyTorch's own choice, of {os.cpu_count()} cores"),
        ),
    )


def _find_device() -> tuple[str, str]:
    if torch.cuda.is_available():
        return "cuda", f"found {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "mps", "found an Apple GPU"
    return "cpu", "no GPU that PyTorch can use was found"


class EagerEngine:
    """The reference: plain PyTorch, one pass for logits and embedding."""

    def __init__(self, model: ImageModel, spec: InputSpec, plan: Plan):
        self.model = model.to(device=plan.device, dtype=plan.dtype).eval()
        self.spec = spec
        self.plan = plan

    def prepare(self, images_BHWC: Pixels) -> torch.Tensor:
        """(B,H,W,3) uint8 -> the model's normalised (B,3,H,W) input, where and as precise as the plan says."""
        return normalise(torch.from_numpy(images_BHWC).to(self.plan.device), self.spec).to(self.plan.dtype)

    @torch.inference_mode()
    def __call__(self, images_BHWC: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,H,W,3) uint8 -> float32 logits (B,classes) and embedding (B,width) on the CPU."""
        features = self.model.forward_features(self.prepare(images_BHWC))
        embedding = self.model.forward_head(features, pre_logits=True)
        logits = self.model.forward_head(features)
        return logits.float().cpu(), embedding.float().cpu()
