"""Detectors of unknown images: how much an image differs from images of the model's classes, as one number.

| kind | the number | source |
| --- | --- | --- |
| `energy` | minus the logarithm of the sum of the exponentials of the logits | arXiv:2010.03759 |
| `max-logit` | minus the highest logit | arXiv:1911.11132 |
| `neighbors` | cosine distance of the embedding to the k-th nearest of stored embeddings | arXiv:2204.06507 |
| `mahalanobis` | squared Mahalanobis distance of the embedding to the nearest class mean | arXiv:1807.03888 |
| `combined` | the sum of `energy` and `mahalanobis`, each in units of its standard deviation for later images | |

Larger numbers mean larger differences. Embeddings have unit length, which
helps Mahalanobis distances (arXiv:2505.18032).

`combined` is the default: logits and embeddings notice different images, and on photographs of other things their sum
was the best or nearly the best for each of the built-in models (docs/guide/calibration.md). Which detector is best
cannot be determined by treating each class as unknown in turn: that prefers `energy`, because the model has learned to
give low logits to exactly these images.

Letters for shapes: N images, K classes, D width of the embedding, R stored embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np

from ..results import FloatArray, l2_normalize
from .arrays import Floats, Ints

DetectorKind: TypeAlias = Literal["energy", "max-logit", "neighbors", "mahalanobis", "combined"]
KINDS: tuple[DetectorKind, ...] = get_args(DetectorKind)
MAX_STORED = 1000  # embeddings; 0.5 MB at a width of 256. With 4,000, AUROCs were at most 0.006 higher
NEIGHBOR = 3  # the distance to this neighbor counts, or to the last one if there are fewer
SHRINKAGE = 0.01  # weight of a multiple of the identity in the covariance, which few images leave singular


class Detector(Protocol):
    """A fitted detector. kind: one of KINDS. width: D, or 0 if it does not use embeddings."""

    kind: DetectorKind

    @property
    def width(self) -> int:
        """The width of the embeddings that it needs."""
        ...

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """The arrays that rebuild the detector, by name."""
        ...

    def scores(self, logits_NK: FloatArray, embeddings_ND: FloatArray) -> Floats:
        """Return one number per image (N,); embeddings are as the model gives them, not normalized."""
        ...


class EnergyDetector:
    """See the table at the top; it has no parameters."""

    kind: DetectorKind = "energy"
    width = 0

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """Nothing."""
        return {}

    def scores(self, logits_NK: FloatArray, embeddings_ND: FloatArray) -> Floats:
        """Return one number per image (N,)."""
        logits = logits_NK.astype(np.float64)
        highest_N = logits.max(axis=1)
        return -(highest_N + np.log(np.exp(logits - highest_N[:, None]).sum(axis=1)))


class MaxLogitDetector:
    """See the table at the top; it has no parameters."""

    kind: DetectorKind = "max-logit"
    width = 0

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """Nothing."""
        return {}

    def scores(self, logits_NK: FloatArray, embeddings_ND: FloatArray) -> Floats:
        """Return one number per image (N,)."""
        return -logits_NK.max(axis=1).astype(np.float64)


class NeighborDetector:
    """See the table at the top. stored: embeddings (R,D) float32 of unit length."""

    kind: DetectorKind = "neighbors"

    def __init__(self, stored: FloatArray) -> None:
        self.stored = stored

    @classmethod
    def fit(cls, embeddings_ND: FloatArray) -> NeighborDetector:
        """Store embeddings, at most MAX_STORED of them, evenly spaced."""
        places = np.unique(np.linspace(0, len(embeddings_ND) - 1, MAX_STORED).astype(np.int64))
        # rounded as they will be read, so that scores before and after storing agree
        stored = l2_normalize(embeddings_ND[places]).astype(np.float16).astype(np.float32)
        return cls(stored)

    @property
    def width(self) -> int:
        """The width of the embeddings that it needs."""
        return int(self.stored.shape[1])

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """The stored embeddings."""
        return {"stored": self.stored}

    def scores(self, logits_NK: FloatArray, embeddings_ND: FloatArray) -> Floats:
        """Return one number per image (N,)."""
        similarity_NR = l2_normalize(embeddings_ND) @ self.stored.T
        place = len(self.stored) - min(NEIGHBOR, len(self.stored))
        nearest_N = np.partition(similarity_NR, place, axis=1)[:, place]
        return 1 - nearest_N.astype(np.float64)


class MahalanobisDetector:
    """See the table at the top.

    means: of the classes (K,D) float32. whitening: (D,D) float32, W with W W^T = inverse of the covariance.
    """

    kind: DetectorKind = "mahalanobis"

    def __init__(self, means: FloatArray, whitening: FloatArray) -> None:
        self.means, self.whitening = means, whitening
        self._means_KD = (means @ whitening).astype(np.float64)
        self._squares_K = (self._means_KD**2).sum(1)

    @classmethod
    def fit(cls, embeddings_ND: FloatArray, labels_N: Ints) -> MahalanobisDetector:
        """Compute the means of the classes that occur, and the covariance within classes."""
        embeddings = l2_normalize(embeddings_ND).astype(np.float64)
        classes, places_N = np.unique(labels_N, return_inverse=True)
        counts = np.bincount(places_N)
        means = np.zeros((len(classes), embeddings.shape[1]))
        np.add.at(means, places_N, embeddings)
        means /= counts[:, None]
        centered = embeddings - means[places_N]
        covariance = centered.T @ centered / len(centered)
        variance = float(np.trace(covariance)) / len(covariance) or 1.0
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * variance * np.eye(len(covariance))
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
        return cls(means.astype(np.float32), whitening.astype(np.float32))

    @property
    def width(self) -> int:
        """The width of the embeddings that it needs."""
        return len(self.whitening)

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """Means and whitening."""
        return {"means": self.means, "whitening": self.whitening}

    def scores(self, logits_NK: FloatArray, embeddings_ND: FloatArray) -> Floats:
        """Return one number per image (N,)."""
        whitened_ND = (l2_normalize(embeddings_ND) @ self.whitening).astype(np.float64)
        nearest_N = (self._squares_K - 2 * whitened_ND @ self._means_KD.T).min(axis=1)
        return np.asarray((whitened_ND**2).sum(1) + nearest_N)


class CombinedDetector:
    """See the table at the top. scales: the standard deviations of energy and Mahalanobis distance (2,) float32.

    They are those of images on which the distance was not fitted: with fewer images than dimensions, all images have
    nearly the same distance to the means that were fitted on them.
    """

    kind: DetectorKind = "combined"

    def __init__(self, mahalanobis: MahalanobisDetector, scales: FloatArray) -> None:
        self.mahalanobis, self.scales = mahalanobis, scales
        self._energy = EnergyDetector()

    @classmethod
    def fit(cls, logits_NK: FloatArray, embeddings_ND: FloatArray, labels_N: Ints) -> CombinedDetector:
        """Fit the Mahalanobis distance, and measure how much both numbers vary."""
        energy_N = EnergyDetector().scores(logits_NK, embeddings_ND)
        fitted, later = slice(0, None, 2), slice(1, None, 2) if len(labels_N) > 1 else slice(None)
        half = MahalanobisDetector.fit(embeddings_ND[fitted], labels_N[fitted])
        distance_M = half.scores(logits_NK[later], embeddings_ND[later])
        scales = np.array([float(part.std()) or 1.0 for part in (energy_N, distance_M)], np.float32)
        return cls(MahalanobisDetector.fit(embeddings_ND, labels_N), scales)

    @property
    def width(self) -> int:
        """The width of the embeddings that it needs."""
        return self.mahalanobis.width

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """Means, whitening and scales."""
        return self.mahalanobis.arrays | {"scales": self.scales}

    def scores(self, logits_NK: FloatArray, embeddings_ND: FloatArray) -> Floats:
        """Return one number per image (N,)."""
        energy_N = self._energy.scores(logits_NK, embeddings_ND) / self.scales[0]
        return np.asarray(energy_N + self.mahalanobis.scores(logits_NK, embeddings_ND) / self.scales[1])


def fit_detector(kind: DetectorKind, logits_NK: FloatArray, embeddings_ND: FloatArray, labels_N: Ints) -> Detector:
    """Return a detector that was fitted on images of known classes; labels_N: these classes (N,)."""
    match kind:
        case "energy":
            return EnergyDetector()
        case "max-logit":
            return MaxLogitDetector()
        case "neighbors":
            return NeighborDetector.fit(embeddings_ND)
        case "mahalanobis":
            return MahalanobisDetector.fit(embeddings_ND, labels_N)
        case "combined":
            return CombinedDetector.fit(logits_NK, embeddings_ND, labels_N)


_ARRAYS: dict[DetectorKind, tuple[str, ...]] = {
    "energy": (),
    "max-logit": (),
    "neighbors": ("stored",),
    "mahalanobis": ("means", "whitening"),
    "combined": ("means", "whitening", "scales"),
}


def read_detector(kind: DetectorKind, arrays: Mapping[str, FloatArray]) -> Detector:
    """Return the detector with these stored arrays. Raises ValueError if they do not fit the detector."""
    if arrays.keys() != set(_ARRAYS[kind]):
        raise ValueError(f"the detector {kind} has the arrays {sorted(arrays)}")
    if any(array.ndim != 2 or not array.size for name, array in arrays.items() if name != "scales"):
        raise ValueError("an array of the detector is empty, or has the wrong number of dimensions")
    if "whitening" in arrays and not arrays["whitening"].shape == (arrays["means"].shape[1],) * 2:
        raise ValueError("the means and the whitening do not fit")
    if "scales" in arrays and not (arrays["scales"].shape == (2,) and (arrays["scales"] > 0).all()):
        raise ValueError("the scales are not two positive numbers")
    match kind:
        case "energy":
            return EnergyDetector()
        case "max-logit":
            return MaxLogitDetector()
        case "neighbors":
            return NeighborDetector(arrays["stored"])
        case "mahalanobis":
            return MahalanobisDetector(arrays["means"], arrays["whitening"])
        case "combined":
            return CombinedDetector(MahalanobisDetector(arrays["means"], arrays["whitening"]), arrays["scales"])


def auroc(known_N: Floats, unknown_M: Floats) -> float:
    """Return the probability that an unknown image has a larger number than a known one; ties count one half."""
    values = np.concatenate((known_N, unknown_M))
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = counts.cumsum() - (counts - 1) / 2  # mean rank of equal values, from 1
    rank_sum = float(ranks[places[len(known_N) :]].sum())
    return (rank_sum - len(unknown_M) * (len(unknown_M) + 1) / 2) / (len(known_N) * len(unknown_M))


def false_positive_rate(known_N: Floats, unknown_M: Floats, recall: float = 0.95) -> float:
    """Return the share of unknown images taken for known at the threshold that keeps `recall` of the known ones.

    This is the figure that papers call FPR at 95 % TPR, in which known images are the positives.
    """
    ordered = np.sort(known_N)
    threshold = ordered[min(int(np.ceil(recall * len(ordered))) - 1, len(ordered) - 1)]
    return float((unknown_M <= threshold).mean())
