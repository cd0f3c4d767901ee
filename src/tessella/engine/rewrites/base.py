"""The base classes of rewritten models, and of the rewrites of a model family."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ...data.spec import InputSpec
from ...models.base import ImageModel

Model = TypeVar("Model", bound=ImageModel)


class Rewritten(nn.Module):
    """A rewritten model, which returns (logits, embedding) of a batch from one forward pass.

    A subclass is a rewrite of the end of the forward pass (the last norm, the last block) that only computes logits and
    embedding; `rewrite` is its name.
    net: the rewritten `ImageModel`, with the same features and intermediates as the original.
    applied: names of the rewrites, in order.
    """

    rewrite = ""
    if TYPE_CHECKING:
        net: ImageModel

    def __init__(self, net: ImageModel, applied: tuple[str, ...]):
        super().__init__()
        self.net = net
        self.applied = applied

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W), normalized or, with the rewrite "pixels", uint8 -> (B,classes) logits, (B,width) embedding."""
        features = self.net.forward_features(x)
        return self.net.forward_head(features), self.net.forward_head(features, pre_logits=True)


class Unchanged(Rewritten):
    """A model without rewrites, as it is: for one that was changed by hand, of which only its own code knows the steps.

    spec: with it, the model reads uint8 pixels, which are normalized first.
    """

    def __init__(self, net: ImageModel, spec: InputSpec | None):
        super().__init__(net, ())
        self.spec = spec

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W), normalized or, with a spec, uint8 -> (B,classes) logits, (B,width) embedding."""
        if self.spec is not None:
            mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.spec.mean, self.spec.std))
            x = ((x.float() / 255 - mean) / std).to(next(self.net.parameters()).dtype)
        return super().forward(x)


class Family(abc.ABC, Generic[Model]):
    """The rewrites of one family of models.

    model_type: the class of the models. steps: functions by name; each changes a model in place for a layout. final:
    the rewrite of the end of the forward pass. skipped_by: by layout, the rewrite that is not applied in this layout.
    engine_layouts: the default layout by engine, if it is not the first one.
    """

    model_type: type[Model]
    steps: Mapping[str, Callable[[Model, str], None]]
    final: type[Rewritten]
    skipped_by: ClassVar[Mapping[str, str]] = {}
    engine_layouts: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def names(self, model: Model) -> tuple[str, ...]:
        """Return the names of the rewrites that apply to `model`, in the order in which they are applied."""

    def layouts(self, model: Model) -> tuple[str, ...]:
        """Return the names of equivalent layouts whose speed depends on the backend, the default first."""
        return ()

    @abc.abstractmethod
    def fold_pixels(self, net: Model, spec: InputSpec) -> None:
        """Make `net` read uint8 pixels by folding the normalization into its patch embedding."""

    def finish(self, net: Model, layout: str) -> None:
        """Prepare `net` for its layout, after all rewrites."""
