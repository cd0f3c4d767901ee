"""Count the cost of one forward pass of a model, on a copy on the meta device; needs PyTorch.

`python -m tessella.weights.counting` writes the table that `tessella info` reads without PyTorch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..models.base import ImageModel
from ..models.convit import ConViT
from .catalogue import ARCHITECTURE_NAMES, CATALOGUE
from .costs import COSTS, Cost, ModelFacts
from .factory import create_model
from .load import image_size


def cost(model: ImageModel, input_size: tuple[int, int, int]) -> Cost:
    """Count the cost of one forward pass with an image of (channels, height, width), without running `model`.

    Raises UsageError `wrong_input_size` if the model does not accept images of that size.
    """
    # a copy on the meta device: deepcopy uses the tensors in its memo instead of copying the data
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, object] = {id(tensor): _without_memory(tensor) for tensor in tensors}
    shadow = copy.deepcopy(model, memo).eval()
    counter = _Counter()
    with torch.no_grad(), counter:
        shadow(torch.empty(1, *input_size, device="meta"))
    if isinstance(model, ConViT):
        # Positional attention is counted as a linear layer on the 3 numbers of each pair of patches, although GPSA
        # computes it elementwise.
        pairs = model.rel_pos.shape[0] ** 2 * model.config.num_heads * model.num_local
        counter.add(outputs=pairs, depth=3)
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.macs,
        activations=counter.activations,
        card_macs=counter.macs - counter.same_macs + counter.norm_work,
        card_activations=counter.activations - counter.same_activations,
    )


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class _Counter(TorchFunctionMode):
    """Counts operations before PyTorch selects kernels, when attention and `padding="same"` are still one call."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.activations = self.same_macs = self.same_activations = self.norm_work = 0

    def add(self, outputs: int, depth: int) -> None:
        """Count an operation with `outputs` output elements, each the sum of `depth` products."""
        self.macs += outputs * depth
        self.activations += outputs

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, torch.Tensor):
            return result
        if func is F.linear or func in MATMULS:
            self.add(result.numel(), depth=args[0].shape[-1])
        elif func is F.conv2d:
            _, weight, _, _, padding, *_ = args
            depth = weight[0].numel()
            self.add(result.numel(), depth)
            if padding == "same":
                self.same_macs += result.numel() * depth
                self.same_activations += result.numel()
        elif func is F.scaled_dot_product_attention:
            query, key = args[:2]
            scores = query.shape[:-1].numel() * key.shape[-2]
            self.add(scores, depth=query.shape[-1])
            self.add(result.numel(), depth=key.shape[-2])
        elif func is F.batch_norm:
            self.norm_work += 2 * result.numel()
        elif func is F.layer_norm:
            self.norm_work += 5 * result.numel()
        return result


# --- the table --------------------------------------------------------------------------------------------------------


def facts_of(name: str) -> ModelFacts:
    """Return the row of the table for a model name: the cost, and other facts that require the built model.

    Raises the errors of `create_model`.
    """
    with torch.device("meta"):
        model = create_model(name)
    assert isinstance(model, ImageModel)  # create_model returns another type only for features_only
    return model_facts(model)


def model_facts(model: ImageModel) -> ModelFacts:
    """Return the row of the table for a model at its input size."""
    channels = model.config.in_chans
    height, width = image_size(model) or model.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
    counts = cost(model, (channels, height, width))
    return ModelFacts(
        input_size=[channels, height, width],
        num_classes=model.num_classes,
        embedding_width=model.head_hidden_size,
        params=counts.params,
        macs=counts.macs,
        activations=counts.activations,
        card_macs=counts.card_macs,
        card_activations=counts.card_activations,
    )


def table_names() -> list[str]:
    """Return the names of all checkpoints, and of the architectures that have none."""
    with_rows = {row.architecture for row in CATALOGUE.values()}
    return [*CATALOGUE, *(arch for arch in ARCHITECTURE_NAMES if arch not in with_rows)]


def main() -> None:
    """Write the table."""
    rows = {name: facts_of(name) for name in table_names()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    COSTS.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
