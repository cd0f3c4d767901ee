"""`tessella.optimize`: run a model of `create_model` with the fastest engine available on this machine."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import checked
from ..errors import UsageError
from ..models.base import ImageModel
from ..models.configs import image_size
from ..text import html_table, html_text, printable
from ..weights.network import Network
from .gate import open_gated
from .plan import Mode, Plan, make_plan


class Outputs(NamedTuple):
    """The outputs of one forward pass over B images: logits (B,classes) and embedding (B,width), float32."""

    logits: Tensor
    embedding: Tensor


class Optimized:
    """A model for inference: (B,C,H,W) normalized float images -> (B,classes) logits.

    plan: the settings and their reasons. The weights are a copy: later changes to the model have no effect.
    """

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int]):
        self.model = model
        self.engine = open_gated(Network.of(model), plan, size)
        self.plan = self.engine.plan

    def __repr__(self) -> str:
        channels, height, width = self.engine.shape
        settings = ", ".join((self.plan.device, self.plan.precision, self.plan.engine))
        return f"<Optimized {printable(self.model.arch)}: (B,{channels},{height},{width}); {settings}>"

    def _repr_html_(self) -> str:
        """Return an HTML table of every setting with its reason, for Jupyter."""
        return f"<p>{html_text(repr(self))}</p>" + html_table(("what", "chosen", "reason"), self.plan.choices)

    def __call__(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images -> (B,classes) logits, float32, on the device of `x`."""
        return self.predict(x).logits

    def embed(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images -> (B,width) embeddings, as `forward_head(..., pre_logits=True)` returns them."""
        return self.predict(x).embedding

    def predict(self, x: Tensor) -> Outputs:
        """(B,C,H,W) normalized images -> logits and embedding of one forward pass, on the device of `x`.

        A large batch is computed in parts of the plan's batch size. Raises UsageError `bad_argument` unless `x` is such
        a batch, `wrong_input_size` for images of a different size.
        """
        channels, height, width = self.engine.shape
        dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
        if not dense or x.ndim != 4 or not x.is_floating_point() or x.shape[1] != channels:
            actual = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                "bad_argument",
                f"got {actual}, expected a batch of normalized images, float (B,{channels},{height},{width})",
                hint="tessella.data.create_transform prepares an image for such a batch",
            )
        if x.shape[-2:] != (height, width):
            raise UsageError(
                "wrong_input_size",
                f"got {x.shape[-2]}x{x.shape[-1]} px images, this was optimized for {height}x{width} px",
                hint=self._size_hint(x),
            )
        moved = x.detach().to(device=self.plan.device, dtype=torch.float32)
        parts = list(self.engine.imap(chunk.contiguous() for chunk in moved.split(self.plan.batch_size)))
        return Outputs(*(torch.cat(outputs).to(x.device) for outputs in zip(*parts, strict=True)))

    def _size_hint(self, x: Tensor) -> str:
        """Return what to do for images (B,C,H,W) whose size is not that of the engine."""
        if image_size(self.model.config) is None:
            return "optimize again with an example of the new size: tessella.optimize(net, example=x)"
        size = f"({x.shape[-2]}, {x.shape[-1]})"
        return f"resize the images, or optimize a model that was built with img_size={size}, if its patches fit that"


@checked
def optimize(
    net: object,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    mode: Mode = "throughput",
    example: Tensor | None = None,
) -> Optimized:
    """Return a faster implementation of the model `net`, which is not changed.

    net: a model of `create_model`. example: a (B,C,H,W) batch of the image size to use; by default the size of the
    checkpoint. device, engine, precision, batch_size: "auto" or None selects the best setting, and `.plan` has the
    reasons; a precision that changes the outputs too much is not used. mode: "throughput", or "latency" for single
    images. Raises UsageError `bad_argument`, `missing_dependency` or, for an example of a size that the model does not
    support, `wrong_input_size`; WeightsError `conversion_failed` or `cache_failed`.
    """
    if not isinstance(net, ImageModel):
        raise UsageError(
            "bad_argument",
            f"expected a model of create_model, got {type(net).__name__}",
            hint="pass the model itself",
        )
    if example is not None:
        channels = net.config.in_chans
        if not isinstance(example, Tensor) or example.ndim != 4 or example.shape[1] != channels:
            actual = (
                f"a tensor of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
            )
            raise UsageError("bad_argument", f"example is {actual}, expected a batch (B,{channels},H,W)")
        size = (int(example.shape[-2]), int(example.shape[-1]))
    else:
        configured = net.pretrained_cfg.get("input_size", (3, 224, 224))[-2:]
        img_size = getattr(net.config, "img_size", configured)
        size = (img_size, img_size) if isinstance(img_size, int) else (int(img_size[0]), int(img_size[1]))
    plan = make_plan(device, precision, engine, batch_size, mode, net, size)
    # only the reference shares the weights of the model; every engine needs a model in evaluation mode
    model = copy.deepcopy(net).eval() if plan.engine == "eager" or net.training else net
    return Optimized(model, plan, size)
