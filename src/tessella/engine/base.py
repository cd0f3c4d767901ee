"""What every engine is: a batch in, float32 logits and embedding of one pass out."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.decode import Pixels
from ..data.transforms import InputSpec, normalise
from ..models.base import ImageModel
from .plan import Plan

FloatArray = NDArray[np.float32]
Outputs = tuple[Tensor, Tensor]  # logits (B,classes), embedding (B,width), float32


class Engine(abc.ABC):
    """A model that is ready to run as its plan says.

    model: the one it was opened with, in evaluation mode, never changed by it. spec: how pixels are normalised; an
    engine without one reads (B,C,H,W) normalised floats, one with it (B,H,W,C) uint8. size: (height, width) it is for.
    """

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None):
        self.model, self.plan, self.size, self.spec = model, plan, size, spec

    @abc.abstractmethod
    def run(self, x: Tensor) -> Outputs:
        """One pass over a batch of any number of images, where `x` is; inputs as the class says."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input image."""
        channels = self.model.config.in_chans
        return (*self.size, channels) if self.spec else (channels, *self.size)

    def example(self, batch: int) -> Tensor:
        """A batch of nothing, of the shape and type that `run` takes."""
        return torch.zeros(batch, *self.shape, dtype=torch.uint8 if self.spec else torch.float32)

    def __call__(self, images_BHWC: Pixels) -> tuple[FloatArray, FloatArray]:
        """(B,H,W,C) uint8 -> logits (B,classes) and embedding (B,width)."""
        assert self.spec, "this engine reads normalised batches"
        logits, embedding = self.run(torch.from_numpy(images_BHWC).to(self.plan.device, non_blocking=True))
        return logits.cpu().numpy(), embedding.cpu().numpy()

    @torch.inference_mode()
    def features(self, images_BHWC: Pixels, indices: int | Sequence[int]) -> list[FloatArray]:
        """Maps of the picked blocks for (B,H,W,C) uint8 images, each (B,channels,rows,columns)."""
        images = torch.from_numpy(images_BHWC).to(self.plan.device)
        return [one.float().cpu().numpy() for one in self.intermediates(images, indices)]

    def intermediates(self, images_BHWC: Tensor, indices: int | Sequence[int]) -> Any:
        """As `ImageModel.forward_intermediates`, by the model itself unless an engine has a faster one."""
        assert self.spec, "this engine reads normalised batches"
        x = normalise(images_BHWC, self.spec)
        return self.model.forward_intermediates(x, indices=indices, intermediates_only=True, stop_early=True)


class OnPixels(nn.Module):
    """A rewritten model that reads images as they lie in memory: (B,H,W,C) uint8."""

    def __init__(self, fast: nn.Module):
        super().__init__()
        self.fast = fast

    def forward(self, images: Tensor) -> Any:
        return self.fast(images.permute(0, 3, 1, 2))


class Float32(nn.Module):
    """Answers in float32, whatever the model inside computes in; inputs that are floats go in as it wants them."""

    def __init__(self, fast: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.fast, self.dtype = fast, dtype

    def forward(self, images: Tensor) -> Outputs:
        logits, embedding = self.fast(images.to(self.dtype) if images.is_floating_point() else images)
        return logits.float(), embedding.float()


def weights_hash(model: ImageModel) -> str:
    """SHA-256 over names, types, shapes and values of the state: what decides a model's answers besides its code."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def code_hash() -> str:
    """SHA-256 over the code that makes a converted model: a change of it leaves no old conversion in use."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(path for layer in ("models", "engine") for path in (package / layer).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def facts_of(engine: Engine, **more: Any) -> dict[str, Any]:
    """What decides a converted model; its name in the cache is made of this."""
    from .. import __version__

    model = engine.model
    return dict(
        architecture=model.arch,
        config=repr(model.config),
        pool=model.global_pool,
        weights=weights_hash(model),
        spec=engine.spec.to_cfg() if engine.spec else None,
        size=engine.size,
        precision=engine.plan.precision,
        tessella=__version__,
        code=code_hash(),
        torch=torch.__version__,
        **more,
    )
