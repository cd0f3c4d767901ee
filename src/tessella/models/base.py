"""The contract of every model family: timm's method names, argument names and results, in one abstract class.

A family defines `forward_features` and `forward_head`, and the hooks from which this class derives
`forward_intermediates` and pruning: `forward_stem`, `forward_block`, `forward_norm`, `to_intermediate`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import check_output_fmt, check_pool, new_head, pick_blocks

# A Tensor; in CrossViT, a list with one Tensor per branch. With a union, the narrower parameters of the families would
# violate the substitution principle, and TorchScript needs their exact types.
Features: TypeAlias = Any
Config: TypeAlias = Any  # a frozen dataclass; each family has its own class
PretrainedCfg: TypeAlias = dict[str, Any]  # timm's dict about a checkpoint: input_size, mean, std, ...


class FeatureEntry(TypedDict):
    """One output of `forward_intermediates`: its channels, its stride in pixels, and the module that computes it."""

    num_chs: int
    reduction: int
    module: str


class LayerGroups(TypedDict):
    """Regular expressions of parameter names by part of the model.

    A number beside a pattern is the layer of everything that the pattern matches; otherwise the layer is the number
    that the pattern captures.
    """

    stem: str
    blocks: str | list[tuple[str, tuple[int, ...] | None]]


@contextmanager
def buffers_restored(block: nn.Module) -> Iterator[None]:
    """Restore the buffers of `block` on exit, so that a second forward pass does not update batch statistics again."""
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


class ImageModel(nn.Module, abc.ABC):
    """An image classifier: normalized (B,C,H,W) images -> (B,num_classes) logits.

    num_features, head_hidden_size: width of the embedding that the head reads (`forward_head(..., pre_logits=True)`).
    feature_info: one FeatureEntry per entry of `forward_intermediates`.
    default_out_indices: the entries that `features_only` returns by default.
    config: the frozen dataclass that the model was built from. arch: the name of the model, set by the registry.
    pretrained_cfg: timm's dict (input_size, mean, std, ...), set by `create_model`. source: the model folder, or the
    weight file of a built-in model, whose weights `create_model` loaded; None for other weights.
    """

    arch = ""
    output_formats: ClassVar[tuple[str, ...]] = ("NCHW", "NLC")  # of `forward_intermediates`
    if TYPE_CHECKING:  # TorchScript evaluates the annotations of a class, and does not support string annotations
        config: Config
        num_classes: int
        num_features: int
        head_hidden_size: int
        global_pool: str
        feature_info: list[FeatureEntry]
        default_out_indices: tuple[int, ...]
        pretrained_cfg: PretrainedCfg
        source: Path | None
        blocks: nn.Sequential | nn.ModuleList
        head: nn.Module
        norm: nn.Module
    source = None
    __jit_unused_properties__ = ["default_cfg", "head_hidden_size"]  # TorchScript does not compile these

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.pretrained_cfg = {}

    @property
    def default_cfg(self) -> PretrainedCfg:
        """timm's older name for `pretrained_cfg`."""
        return self.pretrained_cfg

    # --- inference ----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images -> (B,num_classes) logits; without a head, the embedding."""
        return self.forward_head(self.forward_features(x))

    @abc.abstractmethod
    def forward_features(self, x: Tensor) -> Features:
        """(B,C,H,W) normalized images -> the features that `forward_head` reads."""

    @abc.abstractmethod
    def forward_head(self, x: Features, pre_logits: bool = False) -> Tensor:
        """Features -> (B,num_classes) logits; with pre_logits, the (B,num_features) embedding."""

    @abc.abstractmethod
    def forward_stem(self, x: Tensor) -> Features:
        """(B,C,H,W) normalized images -> the input of the first block."""

    def forward_block(self, index: int, x: Features) -> Features:
        """Run block `index` and anything that comes between it and the next block."""
        return self.run_block(self.blocks[index], x)

    @abc.abstractmethod
    def forward_norm(self, x: Features) -> Features:
        """Apply the final norm to the output of any block."""

    @abc.abstractmethod
    def to_intermediate(self, x: Features, branch: int, output_fmt: str) -> Tensor:
        """Convert the output of a block to an entry of `forward_intermediates`.

        branch: 0; in CrossViT, 0 or 1. output_fmt: one of `output_formats`: "NCHW" for a (B,D,rows,columns) map, "NLC"
        for (B,N,D) patch tokens.
        """

    def run_block(self, block: nn.Module, *inputs: Features) -> Features:
        """Run one block, with gradient checkpointing if it is enabled and the model is training."""
        if not (self.grad_checkpointing and self.training):
            return block(*inputs)
        if torch.compiler.is_compiling():  # the compiler recomputes without repeating side effects
            return checkpoint(block, *inputs, use_reentrant=False)
        return checkpoint(
            block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), buffers_restored(block))
        )

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Features, list[Tensor]]:
        """Return the final features and the outputs of the selected blocks, or only these outputs.

        x: (B,C,H,W) normalized images. indices: None for all entries of `feature_info`, n for the last n, or a list.
        norm: apply the final norm to each output. stop_early: skip the blocks after the last selected one. output_fmt:
        "NCHW" for (B,channels,rows,columns) maps, "NLC" for (B,patches,channels) tokens. intermediates_only: return
        only the list. The outputs are in the order of `feature_info`, without duplicates.
        Raises UsageError `bad_argument` for unknown indices or formats, `wrong_input_size` for images of another size.
        """
        check_output_fmt(output_fmt, self.output_formats)
        picked = sorted(set(pick_blocks(len(self.feature_info), indices)))
        depth = len(self.blocks)
        steps = max(i % depth for i in picked) + 1 if stop_early else depth
        x = self.forward_stem(x)
        outputs: dict[int, Tensor] = {}
        for step in range(steps):
            x = self.forward_block(step, x)
            entries = [i for i in picked if i % depth == step]
            if entries:
                y = self.forward_norm(x) if norm else x
                outputs |= {i: self.to_intermediate(y, i // depth, output_fmt) for i in entries}
        intermediates = [outputs[i] for i in picked]
        return intermediates if intermediates_only else (self.forward_norm(x), intermediates)

    # --- changing a model ---------------------------------------------------------------------------------------------

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last selected one; return the indices of the selected outputs after that.

        indices: as in `forward_intermediates`. prune_norm, prune_head: also remove the final norm or the classifier.
        Raises UsageError `bad_argument` for unknown indices.
        """
        depth = len(self.blocks)
        picked = pick_blocks(len(self.feature_info), indices)
        kept = max(i % depth for i in picked) + 1
        del self.blocks[kept:]
        self.feature_info = [entry for i, entry in enumerate(self.feature_info) if i % depth < kept]
        self.default_out_indices = self.default_indices(kept)
        if prune_norm:
            self.remove_norm()
        if prune_head:
            self.reset_classifier(0, "" if "" in self.pools() else None)
        return [i // depth * kept + i % depth for i in picked]

    def default_indices(self, depth: int) -> tuple[int, ...]:
        """Return the entries that `features_only` returns by default for `depth` blocks: those of the last three."""
        return tuple(range(max(depth - 3, 0), depth))

    def remove_norm(self) -> None:
        """Replace the final norm with the identity."""
        self.norm = nn.Identity().train(self.training)

    @abc.abstractmethod
    def pools(self) -> tuple[str, ...]:
        """Return the values of `global_pool` that this model accepts."""

    def get_classifier(self) -> nn.Module:
        """Return the head: a linear layer, or the identity for a model without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head with a new one for num_classes (0: none), keeping device, dtype and training mode.

        global_pool: one of `pools()`; None keeps the current one. Raises UsageError `bad_argument`.
        """
        if global_pool is not None:
            self.global_pool = check_pool(global_pool, self.pools())
        self.head = self.new_classifier(num_classes)
        self.num_classes = int(num_classes)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a new head for num_classes (0: the identity) with this model's device, dtype and training mode."""
        return new_head(self.head_hidden_size, num_classes, next(self.parameters()), self.training)

    def resample_state_dict(self, state: Mapping[str, Tensor], source: Sequence[int]) -> dict[str, Tensor]:
        """Adapt a checkpoint for images of `source` (height, width) pixels to the image size of this model.

        The default changes nothing, which is right for models whose weights do not depend on the patch grid.
        """
        return dict(state)

    # --- training -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Return regular expressions that sort parameter names into layers, for layer-wise learning rates."""

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay, in addition to the one-dimensional ones."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable gradient checkpointing: training recomputes activations in the backward pass to save memory."""
        self.grad_checkpointing = enable
