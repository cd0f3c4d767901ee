"""Compute embeddings of labeled images, and cache them in a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bulk.shards import decoder_of
from ..data.datasets import LabelledImages
from ..errors import ImageError
from ..predictor import Predictor
from ..records import npz_bytes
from ..results import FloatArray
from ..storage import open_regular, write_bytes
from .settings import ProgressCallback


@dataclass(frozen=True)
class Embedded:
    """Embeddings of N images, one row per image in the order of the data. D is the width of the embedding."""

    vectors: FloatArray  # (N,D), not normalized; zeros if there is no embedding
    status: NDArray[np.str_]  # (N,) "ok" or an error code
    cached: bool = False  # read from the file of an earlier run

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Whether each image has an embedding, (N,)."""
        return self.status == "ok"

    @property
    def errors(self) -> dict[str, int]:
        """Number of images without an embedding, by error code."""
        return dict(Counter(self.status[~self.ok].tolist()))


def embed(
    images: LabelledImages,
    predictor: Predictor,
    cache: Path | None = None,
    *,
    label: str = "images",
    progress: ProgressCallback | None = None,
) -> Embedded:
    """Embed every image in the same way as a bulk run; images that cannot be read keep their rows.

    cache: an .npz file, which is read if it was written for the same model and data and otherwise written. An
    embedding that is not finite counts as an error, `non_finite`. progress: called with (label, images done, number of
    images) after each image. Raises OutputError `output_failed`.
    """
    facts = dict(model=predictor.fingerprint, data=images.fingerprint)
    if cache is not None and (stored := _read_cache(cache, facts, len(images), predictor.width)):
        return stored
    vectors_ND = np.zeros((len(images), predictor.width), np.float32)
    status = np.full(len(images), "ok", "<U24")
    sources = (images.source(i) for i in range(len(images)))
    with decoder_of(predictor) as decoder:
        decoded = enumerate(image.outcome for image in decoder.decoded(sources))
        for i, outcome in predictor.decoded_outputs(decoded, split_batch=False):
            if isinstance(outcome, ImageError):
                status[i] = outcome.code
            elif np.isfinite(outcome.embedding).all():
                vectors_ND[i] = outcome.embedding
            else:
                status[i] = "non_finite"
            if progress:
                progress(label, i + 1, len(images))
    if cache is not None:
        arrays = dict(vectors=vectors_ND, status=status, labels=images.labels)
        write_bytes(cache, npz_bytes(arrays | {name: np.array(value) for name, value in facts.items()}))
    return Embedded(vectors_ND, status)


def _read_cache(path: Path, facts: dict[str, str], count: int, width: int) -> Embedded | None:
    """Read the file of an earlier run; return None if it is damaged, or for other images or another model."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            if any(str(arrays[name]) != value for name, value in facts.items()):
                return None
            stored = Embedded(arrays["vectors"], arrays["status"], cached=True)
    except Exception:  # damaged zip files raise exceptions of many types; the embeddings are computed again
        return None
    return stored if (stored.vectors.shape, stored.status.shape) == ((count, width), (count,)) else None
