"""Embeddings and nearest neighbors of the images that an input names, and a contact sheet of them.

Letters for shapes: N images, D width of the embedding, K classes, k neighbors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessella.data.labels import labels_for
from tessella.data.source import Source
from tessella.errors import ImageError
from tessella.inputs import AnyImage
from tessella.plots.sheet import Panel, write_sheet
from tessella.predictor import Predictor
from tessella.results import FloatArray, l2_normalize

Ints: TypeAlias = NDArray[np.int64]

NEIGHBORS = 10
QUERIES = (  # WordNet ids of ten different kinds of things
    "n01978287",  # Dungeness crab
    "n02007558",  # flamingo
    "n02099601",  # golden retriever
    "n02279972",  # monarch butterfly
    "n02676566",  # acoustic guitar
    "n02980441",  # castle
    "n04120489",  # running shoe
    "n04285008",  # sports car
    "n07873807",  # pizza
    "n09472597",  # volcano
)
_SYNSETS = labels_for("imagenet-1k")
CLASS_OF = {synset: label for label, synset in enumerate(_SYNSETS.synsets)}  # classes of ImageNet-1k by WordNet id


def name_of(source: Source) -> str:
    """Return the name of an image's file without folders, archive and suffix."""
    return source.key.rpartition("::")[2].rpartition("/")[2].partition(".")[0]


def outputs_of(predictor: Predictor, images: Sequence[AnyImage]) -> tuple[FloatArray, FloatArray]:
    """Return the logits (N,K) and embeddings (N,D) of images; all of them have to be readable."""
    logits, embeddings = [], []
    for outcome in predictor.outputs(images):
        if isinstance(outcome, ImageError):
            raise SystemExit(f"an image cannot be read: {outcome}")
        logits.append(outcome.logits)
        embeddings.append(outcome.embedding)
    return np.stack(logits), np.stack(embeddings)


def centered(vectors_ND: FloatArray) -> FloatArray:
    """Return the vectors minus their mean."""
    return vectors_ND - vectors_ND.mean(0)


def nearest(vectors_ND: FloatArray, k: int = NEIGHBORS) -> tuple[Ints, FloatArray]:
    """Return the positions (N,k) of the nearest other images of each image, and their cosines; the highest first."""
    units_ND = l2_normalize(vectors_ND)
    cosines_NN = units_ND @ units_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)
    order_Nk = np.argsort(-cosines_NN, axis=1, kind="stable")[:, :k]
    return order_Nk, np.take_along_axis(cosines_NN, order_Nk, 1)


def recall(expected_Nk: Ints, found_Nk: Ints) -> float:
    """Return the mean fraction of the expected neighbors of an image that are among those found."""
    return float((expected_Nk[:, :, None] == found_Nk[:, None, :]).any(2).mean())


def draw_neighbors(
    path: Path, sources: Sequence[Source], vectors: Mapping[str, FloatArray], queries: Sequence[str]
) -> None:
    """Draw each query and its nearest neighbors to a .png or .html file, one row per query and model.

    vectors: the embeddings (N,D) of all images by the name of the model. queries: names as of `name_of`, or the end of
    a key, such as "hat/0613.jpg".
    """
    panels = []
    found = {model: nearest(vectors_ND) for model, vectors_ND in vectors.items()}
    for query in queries:
        matches = [i for i, source in enumerate(sources) if query == name_of(source) or source.key.endswith(query)]
        if len(matches) != 1:
            raise SystemExit(f"{len(matches)} of {len(sources)} images are called {query!r}, expected one")
        for model, (order_Nk, cosines_Nk) in found.items():
            title = f"{_caption(sources[matches[0]])}, {model}"
            panels.append(Panel(sources[matches[0]], (_caption(sources[matches[0]]), "query"), title))
            near = zip(order_Nk[matches[0]].tolist(), cosines_Nk[matches[0]].tolist(), strict=True)
            panels += [Panel(sources[i], (_caption(sources[i]), f"{cosine:.3f}"), title) for i, cosine in near]
    write_sheet(path, panels, "Nearest neighbors", columns=1 + NEIGHBORS)


def _caption(source: Source) -> str:
    """Return the first name of a photograph's class if its file is named by WordNet id, else its folder and name."""
    name = name_of(source)
    if name in CLASS_OF:
        return _SYNSETS.names[CLASS_OF[name]].partition(",")[0]
    return "/".join(source.key.rpartition("::")[2].split("/")[-2:])
