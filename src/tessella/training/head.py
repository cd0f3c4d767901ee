"""The classifier that fine-tuning starts from: a linear probe of the frozen model, fitted on the training images.

A random classifier sends random gradients into trained weights in the first epochs and harms them; one that is fitted
first does not (Kumar et al., arXiv:2202.10054).

Shape suffixes: N images, D width of the embedding, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..data.datasets import LabelledImages
from ..data.loader import EvalImages, Loader
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..errors import ImageError
from ..evaluation.linear_probe import Head, choose_strength, fit, hold_out, set_head
from ..evaluation.metrics import Ints
from ..models.base import ImageModel
from .trainer import Process

MOST_FITTED = 20_000  # images; more hardly change a linear classifier and take minutes


def fit_head(
    model: ImageModel, spec: InputSpec, images: LabelledImages, process: Process, *, workers: int, batch: int, seed: int
) -> None:
    """Replace the weights of the model's classifier by those of a linear probe of `images`.

    The processes share the work and end with the same weights. Deterministic for a seed, a device and a number of
    processes. Raises ImageError `unreadable` where no image can be read.
    """
    rows = _rows_of_all_classes(images.labels, MOST_FITTED)
    vectors_ND, ok_N, reason = embed(model, spec, images, rows, process, workers, batch)
    if not ok_N.any():
        raise ImageError("unreadable", f"none of the training images can be read: {reason}")
    x_ND, labels_N = vectors_ND[ok_N].numpy(), images.labels[rows][ok_N.numpy()]
    held = hold_out(labels_N, np.random.default_rng(seed))
    classes = len(images.classes)
    head = fit(x_ND, labels_N, classes, choose_strength(x_ND, labels_N, held, classes))
    if process.world > 1:  # the last bits of a fit may differ between machines
        parts = [torch.from_numpy(part).to(process.device) for part in head]
        for part in parts:
            dist.broadcast(part, 0)
        head = Head(*(part.cpu().numpy() for part in parts))
    set_head(model, head)


@torch.no_grad()
def embed(
    model: ImageModel,
    spec: InputSpec,
    images: LabelledImages,
    rows: Ints,
    process: Process,
    workers: int,
    batch: int,
) -> tuple[Tensor, Tensor, str]:
    """(N,D) float32 embeddings of some images, on the CPU, (N,) whether the image could be read, and the first reason
    why one could not.
    """
    was_training = model.training
    model.eval()
    vectors_ND = torch.zeros(len(rows), model.head_hidden_size)
    ok_N = torch.zeros(len(rows), dtype=torch.bool)
    reason = ""
    mine = np.arange(process.rank, len(rows), process.world)
    shares = [mine[i : i + batch] for i in range(0, len(mine), batch)]
    loader = Loader(EvalImages(images, spec), workers, pin=process.device.type == "cuda", persistent=False)
    for share, found in zip(shares, loader.run([rows[share].tolist() for share in shares]), strict=True):
        unread = {index for index, _ in found.skipped}
        if found.skipped and not reason:
            reason = found.skipped[0][1].message
        good = share[[row not in unread for row in rows[share].tolist()]]
        if len(good):
            x = normalise(found.x.to(process.device), spec)
            vectors_ND[good] = model.forward_head(model.forward_features(x), pre_logits=True).float().cpu()
            ok_N[good] = True
    model.train(was_training)
    if process.world > 1:
        both = torch.cat([vectors_ND, ok_N[:, None]], 1).to(process.device)
        dist.all_reduce(both)  # each row is zero in all processes but one
        both = both.cpu()
        vectors_ND, ok_N = both[:, :-1], both[:, -1] > 0
    return vectors_ND, ok_N, reason


def _rows_of_all_classes(labels_N: Ints, most: int) -> Ints:
    """Select at most about `most` images, evenly from all classes, with at least one per class."""
    every = -(-len(labels_N) // most)
    if every == 1:
        return np.arange(len(labels_N))
    parts = [np.flatnonzero(labels_N == label)[::every] for label in np.unique(labels_N)]
    return np.sort(np.concatenate(parts))
