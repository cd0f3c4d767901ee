"""`features_only`: a model that returns the outputs of selected blocks, for detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .base import FeatureEntry, ImageModel


class FeatureInfo(list[FeatureEntry]):
    """Descriptions of the maps of a `FeatureExtractor`, in the order of its output."""

    def channels(self) -> list[int]:
        """Return the number of channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Return the stride of each map, in pixels of the image."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """Return the name of the module that computes each map."""
        return [info["module"] for info in self]


class FeatureExtractor(nn.Module):
    """(B,C,H,W) normalized images -> the outputs of selected blocks in order: maps, or (B,N,D) tokens with "NLC".

    model: changed in place; parts that the outputs do not need are removed. out_indices: as the `indices` of
    `ImageModel.forward_intermediates`; None uses `model.default_out_indices`. norm: apply the model's final norm to
    each output. output_fmt: "NCHW" or "NLC". Raises UsageError `bad_argument` for unknown indices.
    """

    def __init__(
        self,
        model: ImageModel,
        out_indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ):
        super().__init__()
        indices = model.default_out_indices if out_indices is None else out_indices
        picked = model.prune_intermediate_layers(indices, prune_norm=not norm)
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
