"""`features_only`: a model cut down to the outputs of some blocks, as detection and segmentation necks want them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .base import FeatureEntry, ImageModel


class FeatureInfo(list[FeatureEntry]):
    """What each map of a `FeatureExtractor` is, in the order of its output."""

    def channels(self) -> list[int]:
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Pixels of the image per step of the map."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """Where in the model each map is made."""
        return [info["module"] for info in self]


class FeatureExtractor(nn.Module):
    """(B,C,H,W) normalised images -> the outputs of some blocks, shallow to deep: maps, or (B,N,D) with "NLC".

    out_indices: as the `indices` of `ImageModel.forward_intermediates`; None takes `model.default_out_indices`.
    norm: apply the model's final norm to each. Takes `model` over: what the outputs do not need is cut from it.
    """

    def __init__(
        self,
        model: ImageModel,
        out_indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ):
        super().__init__()
        wanted = model.default_out_indices if out_indices is None else out_indices
        picked = model.prune_intermediate_layers(wanted, prune_norm=not norm)
        self.out_indices = sorted(set(picked))
        self.feature_info = FeatureInfo(model.feature_info[i] for i in self.out_indices)
        self.norm = norm
        self.output_fmt = output_fmt
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = self.model.forward_intermediates(
            x,
            indices=self.out_indices,
            norm=self.norm,
            stop_early=True,
            output_fmt=self.output_fmt,
            intermediates_only=True,
        )
        assert isinstance(outputs, list)
        return outputs
