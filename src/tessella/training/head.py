"""The classifier that fine-tuning starts from: a linear probe of the frozen model, fitted on the training images.

A random classifier sends random gradients into pretrained weights in the first epochs and harms them; one that is
fitted first does not (Kumar et al., arXiv:2202.10054).

Shape suffixes: N images, D width of the embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..data.datasets import LabelledImages
from ..data.loader import EvalImages, Loader
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..errors import ImageError
from ..evaluation.classifiers import choose_strength, fit, hold_out
from ..evaluation.head import LinearHead, set_head
from ..evaluation.metrics import Ints
from ..models.base import ImageModel
from .distributed import DistributedContext
from .events import EmbeddingEvent

MAX_FITTED = 20_000  # images; more hardly change a linear classifier and take minutes


class HeadSettings(NamedTuple):
    """How a linear probe is computed.

    batch_size: per process. workers: data loader processes per process. seed: of the random split for the choice of the
    L2 penalty. on_event: called with an EmbeddingEvent after each batch; None for no reports.
    """

    batch_size: int
    workers: int
    seed: int
    on_event: Callable[[EmbeddingEvent], None] | None = None


def fit_head(
    model: ImageModel, spec: InputSpec, images: LabelledImages, context: DistributedContext, settings: HeadSettings
) -> None:
    """Replace the weights of the model's classifier by those of a linear probe of `images`.

    The processes share the work and end with the same weights. Deterministic for a seed, a device and a number of
    processes. Raises ImageError `unreadable` if no image can be read.
    """
    indices = _indices_of_all_classes(images.labels, MAX_FITTED)
    embeddings = embed(model, spec, images, indices, context, settings)
    if not embeddings.readable.any():
        raise ImageError("unreadable", f"none of the training images can be read: {embeddings.first_error}")
    x_ND, labels_N = (
        embeddings.vectors[embeddings.readable].numpy(),
        images.labels[indices][embeddings.readable.numpy()],
    )
    held_out = hold_out(labels_N, np.random.default_rng(settings.seed))
    num_classes = len(images.classes)
    head = fit(x_ND, labels_N, num_classes, choose_strength(x_ND, labels_N, held_out, num_classes))
    if context.world_size > 1:  # the last bits of a fit may differ between machines
        parts = [torch.from_numpy(part).to(context.device) for part in head]
        for part in parts:
            dist.broadcast(part, 0)
        head = LinearHead(*(part.cpu().numpy() for part in parts))
    set_head(model, head)


class ImageEmbeddings(NamedTuple):
    """The embeddings of N images.

    vectors: (N,D) float32, on the CPU; readable: (N,) whether the image could be read; first_error: a message, if any.
    """

    vectors: Tensor
    readable: Tensor
    first_error: str


@torch.no_grad()
def embed(
    model: ImageModel,
    spec: InputSpec,
    images: LabelledImages,
    indices: Ints,
    context: DistributedContext,
    settings: HeadSettings,
) -> ImageEmbeddings:
    """Return the (N,D) embeddings of the images at the (N,) `indices`, computed by all processes together."""
    was_training = model.training
    model.eval()
    vectors_ND = torch.zeros(len(indices), model.head_hidden_size)
    ok_N = torch.zeros(len(indices), dtype=torch.bool)
    first_error = ""
    size = settings.batch_size
    positions = np.arange(context.rank, len(indices), context.world_size)  # those of this process
    chunks = [positions[i : i + size] for i in range(0, len(positions), size)]
    pin = context.device.type == "cuda"
    loader = Loader(EvalImages(images, spec), settings.workers, pin=pin, persistent=False)
    batches = loader.run([indices[chunk].tolist() for chunk in chunks])
    for number, (chunk, batch) in enumerate(zip(chunks, batches, strict=True), 1):
        failed = {index for index, _ in batch.skipped}
        if batch.skipped and not first_error:
            first_error = batch.skipped[0][1].message
        good = chunk[[index not in failed for index in indices[chunk].tolist()]]
        if len(good):
            x = normalise(batch.x.to(context.device), spec)
            vectors_ND[good] = model.forward_head(model.forward_features(x), pre_logits=True).float().cpu()
            ok_N[good] = True
        if settings.on_event is not None:
            done = min(number * size * context.world_size, len(indices))
            settings.on_event(EmbeddingEvent(done=done, images=len(indices)))
    model.train(was_training)
    if context.world_size > 1:
        joined = torch.cat([vectors_ND, ok_N[:, None]], 1).to(context.device)
        dist.all_reduce(joined)  # each row is zero in all processes but one
        joined = joined.cpu()
        vectors_ND, ok_N = joined[:, :-1], joined[:, -1] > 0
    return ImageEmbeddings(vectors_ND, ok_N, first_error)


def _indices_of_all_classes(labels_N: Ints, most: int) -> Ints:
    """Return the indices of at most about `most` images, evenly from all classes, with at least one per class."""
    stride = -(-len(labels_N) // most)
    if stride == 1:
        return np.arange(len(labels_N))
    parts = [np.flatnonzero(labels_N == label)[::stride] for label in np.unique(labels_N)]
    return np.sort(np.concatenate(parts))
