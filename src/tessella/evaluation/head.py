"""A linear classifier on embeddings, and functions that make it the head of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..predictor import Predictor
from ..results import FloatArray

if TYPE_CHECKING:
    from torch import nn

    from ..models.base import ImageModel


class LinearHead(NamedTuple):
    """A linear classifier on unnormalized embeddings: logits = x @ weight.T + bias. D features, K classes."""

    weight: FloatArray  # (K,D)
    bias: FloatArray  # (K,)

    def __call__(self, vectors_ND: FloatArray) -> FloatArray:
        """Return the (N,K) logits of (N,D) embeddings."""
        return vectors_ND @ self.weight.T + self.bias


def attach(predictor: Predictor, head: LinearHead, classes: Sequence[str], folder: str | Path) -> Path:
    """Write a model folder with the predictor's backbone, `head` as its classifier and `classes` as its labels.

    `tessella.load("local-dir:FOLDER")` then loads a model with this head. The predictor is not changed. Raises
    UsageError `bad_argument` for an exported model, which has no backbone to save, and the errors of `save_pretrained`.
    """
    from ..weights.save import save_pretrained

    model = copy.deepcopy(predictor.model)
    model.reset_classifier(len(classes))
    set_head(model, head)
    dropped = ("tag", "label_names", "label_descriptions", "label_offset", "description", "note", "class_warning")
    kept = {key: value for key, value in model.pretrained_cfg.items() if key not in dropped}
    model.pretrained_cfg = kept | predictor.spec.to_cfg() | dict(num_classes=len(classes), label_names=tuple(classes))
    return save_pretrained(model, folder)


def set_head(model: ImageModel, head: LinearHead) -> None:
    """Copy `head` into the model's classifier, which must have the same number of classes."""
    import torch

    with torch.no_grad():
        for layer, columns, factor in _layers(model):
            layer.weight.copy_(torch.from_numpy(head.weight[:, columns]) * factor)
            layer.bias.copy_(torch.from_numpy(head.bias))


def _layers(model: ImageModel) -> Iterator[tuple[nn.Linear, slice, float]]:
    """Yield the linear layers of the classifier, each with its slice of the embedding and a factor for its weights.

    CrossViT has one layer per branch, and its logits are their mean, so the weights are multiplied by the number of
    branches.
    """
    from torch import nn

    classifier = model.get_classifier()
    layers = list(classifier) if isinstance(classifier, nn.ModuleList) else [classifier]
    first = 0
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        yield layer, slice(first, first + layer.in_features), float(len(layers))
        first += layer.in_features
    assert first == model.head_hidden_size
