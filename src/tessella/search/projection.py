"""The map of a run: every embedding as a point in the plane, such that similar images lie near each other.

    RUN/index/map-HASH.safetensors   the points (N,2) float32, in the order of the rows, and how they were computed

`tessella index RUN --map` writes the file and lists it in the seal of the index with its hash, so a map always belongs
to the rows of its index. The name contains a hash of the contents: a file is never changed, and the seal decides which
one counts. Both methods get embeddings of unit length:

- pca: the two directions of largest variance. Exact and linear: the rows are read twice, in batches.
- umap: UMAP (umap-learn) of the first 50 principal components, from a fixed seed, starting from the PCA. It shows
  groups more clearly; distances between groups mean little. The components are held in memory.

Letters for shapes: N rows, B rows of a batch, D width of the embedding, C components.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ..extras import check_installed, require
from ..results import FloatArray
from ..storage import write_atomic

Method: TypeAlias = Literal["pca", "umap"]
Batches: TypeAlias = Callable[[], Iterable[FloatArray]]  # each call yields all embeddings (B,D), of unit length
Doubles: TypeAlias = NDArray[np.float64]

METHODS: tuple[Method, ...] = get_args(Method)
COMPONENTS = 50  # principal components that UMAP gets: more change its maps little, and need more memory
NEIGHBORS, MIN_DISTANCE = 15, 0.1  # UMAP's own defaults
SEED = 0
PREFIX, SUFFIX = "map-", ".safetensors"
PATTERN = f"{PREFIX}*{SUFFIX}"  # names of maps in the folder of an index


@dataclass(frozen=True)
class Projection:
    """The map of a run.

    method: "pca" or "umap". points: (N,2) float32 in [-1, 1], in the order of the rows of the index by their position
    in the listing. explained: the fraction of the variance that each axis of a PCA has; (0, 0) for UMAP.
    """

    method: Method
    points: FloatArray
    explained: tuple[float, float] = (0.0, 0.0)


class Components(NamedTuple):
    """Principal components: mean (D,), directions (D,C) of unit length, the fraction of the variance of each (C,)."""

    mean: Doubles
    directions: Doubles
    fractions: Doubles


# --- computing --------------------------------------------------------------------------------------------------------


def check_method(method: Method) -> None:
    """Raise UsageError `missing_dependency` if the package of a method is not installed."""
    if method == "umap":
        check_installed("umap", "a map with UMAP")


def project(batches: Batches, width: int, method: Method) -> Projection:
    """Compute the map of embeddings of unit length and of the given width.

    The same rows in the same order give the same map. Raises UsageError `missing_dependency`.
    """
    if method == "pca":
        found = principal_components(batches(), width, 2)
        first, second = (*found.fractions.tolist(), 0.0)[:2]
        return Projection(method, _fit_square(reduce(batches(), found)), (first, second))
    reduced_NC = reduce(batches(), principal_components(batches(), width, COMPONENTS))
    return Projection(method, _fit_square(_umap(reduced_NC)))


def principal_components(batches: Iterable[FloatArray], width: int, count: int) -> Components:
    """Return the `count` principal components of embeddings (B,D) of the given width, at most D.

    The covariance is summed in float64. The sign of a direction is fixed: its largest entry is positive.
    """
    rows, sum_D, products_DD = 0, np.zeros(width), np.zeros((width, width))
    for batch_BD in batches:
        exact_BD = batch_BD.astype(np.float64)
        rows += len(exact_BD)
        sum_D += exact_BD.sum(0)
        products_DD += exact_BD.T @ exact_BD
    mean_D = sum_D / max(rows, 1)
    covariance_DD = products_DD / max(rows, 1) - np.outer(mean_D, mean_D)
    variances_D, directions_DD = np.linalg.eigh(covariance_DD)  # the largest last
    directions_DC = directions_DD[:, ::-1][:, :count]
    largest_C = np.abs(directions_DC).argmax(0)
    directions_DC = directions_DC * np.where(directions_DC[largest_C, range(directions_DC.shape[1])] < 0, -1.0, 1.0)
    total = float(np.trace(covariance_DD))
    fractions_C = (
        np.maximum(variances_D[::-1][:count], 0) / total if total > 1e-12 else np.zeros(directions_DC.shape[1])
    )
    return Components(mean_D, directions_DC, fractions_C)


def reduce(batches: Iterable[FloatArray], components: Components) -> FloatArray:
    """Return the coordinates (N,C) of embeddings along their principal components."""
    parts = [np.zeros((0, components.directions.shape[1]), np.float32)]
    for batch_BD in batches:
        parts.append(((batch_BD - components.mean) @ components.directions).astype(np.float32))
    return np.concatenate(parts)


def _umap(reduced_NC: FloatArray) -> FloatArray:
    """Return UMAP's coordinates (N,2); those of the PCA if there are too few rows for a graph of neighbors."""
    start_N2 = _two_columns(reduced_NC)
    if len(reduced_NC) < 4 or not np.ptp(start_N2):
        return start_N2
    umap = require("umap", "a map with UMAP")
    model = umap.UMAP(
        n_neighbors=min(NEIGHBORS, len(reduced_NC) - 1),
        min_dist=MIN_DISTANCE,
        init=_fit_square(start_N2) * 10,  # the size of UMAP's own starting points
        random_state=SEED,
        n_jobs=1,  # several threads would give another map each time
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few rows, and about the versions of its dependencies
        points_N2: FloatArray = np.asarray(model.fit_transform(reduced_NC), np.float32)
    # an image without neighbors gets no coordinates
    return np.where(np.isfinite(points_N2), points_N2, np.nanmean(points_N2, axis=0)).astype(np.float32)


def _two_columns(reduced_NC: FloatArray) -> FloatArray:
    missing = max(2 - reduced_NC.shape[1], 0)  # embeddings of width 1 have one component
    return np.pad(reduced_NC[:, :2], ((0, 0), (0, missing)))


def _fit_square(reduced_NC: FloatArray) -> FloatArray:
    """Move and scale the first two coordinates into [-1, 1], both by the same factor; returns (N,2) float32."""
    points_N2 = _two_columns(reduced_NC).astype(np.float64)
    if not len(points_N2):
        return points_N2.astype(np.float32)
    low_2, high_2 = points_N2.min(0), points_N2.max(0)
    half = float((high_2 - low_2).max()) / 2
    centered_N2 = points_N2 - (low_2 + high_2) / 2
    return np.clip(centered_N2 / half if half > 1e-6 else 0 * centered_N2, -1, 1).astype(np.float32)


# --- storing ----------------------------------------------------------------------------------------------------------


def write_map(home: Path, projection: Projection) -> str:
    """Write a map to the folder of an index and return the name of its file. Raises OSError."""
    from safetensors.numpy import save

    facts = json.dumps(dict(method=projection.method, explained=projection.explained))
    data = save({"points": projection.points}, {"tessella": facts})  # several entries would have a random order
    name = f"{PREFIX}{hashlib.sha256(data).hexdigest()[:16]}{SUFFIX}"
    write_atomic(home / name, data)
    return name


def is_map(name: str) -> bool:
    """Return whether a file in the folder of an index is called as a map is."""
    return fnmatchcase(name, PATTERN)


def method_of(path: Path) -> Method | None:
    """Return the method of the map in a file; None if the file is not a map."""
    try:
        return _read(path).method
    except (ValueError, OSError):
        return None


def read_map(path: Path, rows: int) -> Projection:
    """Read a map of `rows` points. Raises ValueError if the file is not one, OSError if it cannot be read."""
    found = _read(path)
    if found.points.shape != (rows, 2):
        raise ValueError("a map of other rows")
    return found


def _read(path: Path) -> Projection:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            facts, points_N2 = json.loads(file.metadata()["tessella"]), file.get_tensor("points")
        first, second = map(float, facts["explained"])
        method = next(method for method in METHODS if method == facts["method"])
    except (SafetensorError, KeyError, TypeError, StopIteration) as error:
        raise ValueError("not a map") from error
    return Projection(method, points_N2.astype(np.float32, copy=False), (first, second))
