"""`tessella.optimize`: a model of `create_model` as the fastest function that this machine has for it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import checked
from ..errors import UsageError
from ..models.base import ImageModel
from ..text import html_table, html_text, printable
from .gate import open_gated
from .plan import Mode, Plan, make_plan


class Outputs(NamedTuple):
    """Of one pass over B images: logits (B,classes) and embedding (B,width), float32."""

    logits: Tensor
    embedding: Tensor


class Optimized:
    """A normalised batch in, answers out: (B,C,H,W) float -> (B,classes) logits, for inference only.

    plan: the choices and their reasons. The weights are those that the model had when it was optimized.
    """

    def __init__(self, model: ImageModel, plan: Plan, size: tuple[int, int]):
        self.model = model
        self.engine = open_gated(model, plan, size)
        self.plan = self.engine.plan

    def __repr__(self) -> str:
        channels, height, width = self.engine.shape
        how = ", ".join((self.plan.device, self.plan.precision, self.plan.engine))
        return f"<Optimized {printable(self.model.arch)}: (B,{channels},{height},{width}); {how}>"

    def _repr_html_(self) -> str:
        """For Jupyter: every choice with its reason."""
        return f"<p>{html_text(repr(self))}</p>" + html_table(("what", "chosen", "reason"), self.plan.choices)

    def __call__(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalised images -> (B,classes) logits, float32, on the device of `x`."""
        return self.predict(x).logits

    def embed(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalised images -> (B,width), what the classifier reads: `forward_head(..., pre_logits=True)`."""
        return self.predict(x).embedding

    def predict(self, x: Tensor) -> Outputs:
        """Both from one pass; a large batch goes through in pieces of the plan's size.

        Raises UsageError `bad_argument` for what is no batch, `wrong_input_size` for images of another size.
        """
        channels, height, width = self.engine.shape
        real = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
        if not real or x.ndim != 4 or not x.is_floating_point() or x.shape[1] != channels:
            given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                "bad_argument",
                f"got {given}, expected a batch of normalised images, float (B,{channels},{height},{width})",
                hint="tessella.data.create_transform makes one image of such a batch",
            )
        if x.shape[-2:] != (height, width):
            raise UsageError(
                "wrong_input_size",
                f"got {x.shape[-2]}x{x.shape[-1]} px images, this was optimized for {height}x{width} px",
                hint="optimize again with an example of the new size: tessella.optimize(net, example=x)",
            )
        moved = x.detach().to(device=self.plan.device, dtype=torch.float32)
        pieces = (piece.contiguous() for piece in moved.split(self.plan.batch_size)) if len(x) else ()
        parts = list(self.engine.in_turn(pieces))
        if not parts:
            widths = (self.model.num_classes, self.model.head_hidden_size)
            return Outputs(*(x.new_empty(0, width, dtype=torch.float32) for width in widths))
        return Outputs(*(torch.cat(found).to(x.device) for found in zip(*parts, strict=True)))


@checked
def optimize(
    net: Any,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    mode: Mode = "throughput",
    example: Tensor | None = None,
) -> Optimized:
    """The same function as `net`, faster; `net` itself is left as it was.

    net: a model of `create_model`. example: a batch like those to come, for its image size; without one the size is the
    checkpoint's. engine, precision, batch_size: "auto" chooses, and `.plan` says what and why; a precision that changes
    the answers too much is not used. mode: "latency" where batches are one image. Raises UsageError.
    """
    if not isinstance(net, ImageModel):
        raise UsageError(
            "bad_argument",
            f"optimize needs a model of create_model, got {type(net).__name__}",
            hint="give the model itself",
        )
    if example is not None:
        if not isinstance(example, Tensor) or example.ndim != 4:
            given = (
                f"a tensor of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
            )
            raise UsageError("bad_argument", f"example is {given}, expected a batch (B,C,H,W)")
        size = (int(example.shape[-2]), int(example.shape[-1]))
    else:
        configured = net.pretrained_cfg.get("input_size", (3, 224, 224))[-2:]
        made_for = getattr(net.config, "img_size", configured)
        size = (made_for, made_for) if isinstance(made_for, int) else (int(made_for[0]), int(made_for[1]))
    plan = make_plan(device, precision, engine, batch_size, mode, net, size)
    # other engines than the reference make weights of their own, but all must see a model that is not training
    model = copy.deepcopy(net).eval() if plan.engine == "eager" or net.training else net
    return Optimized(model, plan, size)
