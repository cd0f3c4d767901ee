"""The contract every family keeps: timm's method names, argument names and results, on one abstract module."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Features = Tensor | list[Tensor]  # CrossViT has one tensor a branch


@contextmanager
def buffers_restored(block: nn.Module) -> Iterator[None]:
    """Keep what a block counts, its batch statistics, from being counted again when it is computed a second time."""
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


class ImageModel(nn.Module, abc.ABC):
    """An image classifier: normalised (B,C,H,W) images -> (B,num_classes) logits.

    num_features, head_hidden_size: width of the embedding that the head reads (`forward_head(..., pre_logits=True)`).
    feature_info: one dict(num_chs, reduction, module) per entry of `forward_intermediates`.
    default_out_indices: what `features_only` taps when nothing is asked.
    config: the frozen dataclass the model was built from; arch: its name in the registry, set by the registry.
    pretrained_cfg: timm's dict (input_size, mean, std, ...), set by `create_model`.
    """

    arch = ""
    if TYPE_CHECKING:  # at run time TorchScript would read them, and it cannot read annotations that are text
        config: Any
        num_classes: int
        num_features: int
        head_hidden_size: int
        global_pool: str
        feature_info: list[dict[str, Any]]
        default_out_indices: tuple[int, ...]
        pretrained_cfg: dict[str, Any]
    __jit_unused_properties__ = ["default_cfg", "head_hidden_size"]  # TorchScript leaves these out

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.pretrained_cfg = {}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of `pretrained_cfg`."""
        return self.pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalised images -> (B,num_classes) logits; without a head, the embedding."""
        return self.forward_head(self.forward_features(x))

    @abc.abstractmethod
    def forward_features(self, x: Tensor) -> Any:
        """(B,C,H,W) normalised images -> the features that `forward_head` reads."""

    @abc.abstractmethod
    def forward_head(self, x: Any, pre_logits: bool = False) -> Tensor:
        """Features -> (B,num_classes) logits; with pre_logits, the (B,num_features) embedding."""

    @abc.abstractmethod
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Any, list[Tensor]]:
        """Outputs of the picked blocks (None: all, n: the last n, or a list), as maps or as "NLC" tokens.

        norm applies the final norm to each; stop_early skips the blocks after the last picked one.
        Returns (final features, outputs), or the outputs alone with intermediates_only.
        """

    @abc.abstractmethod
    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the picked intermediates do not need; returns their indices."""

    @abc.abstractmethod
    def get_classifier(self) -> nn.Module: ...

    @abc.abstractmethod
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head of num_classes (0: none) where the old one was: same device, dtype and mode."""

    @abc.abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameter names into layers, for layer-wise learning rates."""

    def no_weight_decay(self) -> set[str]:
        """Parameter names that no weight decay should touch, beyond the one-dimensional ones."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: recompute each block's activations in the backward pass."""
        self.grad_checkpointing = enable

    def run_block(self, block: nn.Module, *inputs: Any) -> Any:
        """One block, through gradient checkpointing where it is on and gradients are wanted."""
        if not (self.grad_checkpointing and self.training):
            return block(*inputs)
        if torch.compiler.is_compiling():  # the compiler recomputes without repeating side effects
            return checkpoint(block, *inputs, use_reentrant=False)
        return checkpoint(
            block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), buffers_restored(block))
        )

    def resample_state_dict(self, state: Mapping[str, Tensor], source: Sequence[int]) -> dict[str, Tensor]:
        """Fit a checkpoint made for `source` (height, width) px images to this model's own image size.

        The default changes nothing, which is right for a model that has no weight tied to the grid.
        """
        return dict(state)
