"""Links: which positions of two images make their embeddings similar.

If the embedding is the mean of the features of N positions, the cosine similarity of two images is a sum over all pairs
of positions: cos = sum_pq (a_p . b_q) / (N_a N_b |mean(a)| |mean(b)|). Each term is a link, and nothing is estimated.

Models that read a class token have no such sum. Their links are measured by masking: with u(A) the unit embedding of
image A, and u(A-p) the one after the pixels of position p were replaced by the mean color of the image, the link of
p and q is (u(A) - u(A-p)) . (u(B) - u(B-q)). This is what masking both positions changes beyond the sum of the changes
that masking either of them makes. Such links do not sum to the similarity, and they describe it poorly: for 30 pairs
of images of the same class of CIFAR-10, the sum of a position's links has a mean correlation of 0.26 (ConViT) and 0.42
(CrossViT) with the decrease of the similarity when the position is masked. Each result states this correlation for its
own images, and has the decreases themselves.

Letters for shapes: C channels, H, W pixels, N positions (row-major; Na and Nb of the two images), D width of the
embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import check_count
from ..errors import UsageError, WeightsError
from ..models.base import ImageModel
from ..models.convit import ConViT
from ..models.convmixer import ConvMixer
from ..models.crossvit import CrossViT
from ..results import NON_FINITE
from ..weights.modules import check_forward
from .ledger import Doubles, pooling_problem, position_features
from .maps import upsample

Grid = tuple[int, int]  # (rows, columns)
MAX_POSITIONS = 4096  # of one image: the links then take 134 MB
MASKED_SIDE = 8  # positions per side for masking at most; the model runs once for each position
BATCH = 32  # masked images that are computed at once
ROUNDING = 1e-6  # differences of a cosine that a model in float32 makes by rounding


@dataclass(frozen=True)
class PositionVectors:
    """One image, prepared for links: `link_vectors` then takes no time, however many images it is linked to.

    vectors: (N,D) float64, the products of which are the links: if exact, they sum to the embedding. embedding: (D,)
    float64 of unit length. grid: (rows, columns) of positions. exact: whether the embedding is a mean over positions.
    """

    vectors: Doubles
    embedding: Doubles
    grid: Grid
    exact: bool


@dataclass(frozen=True)
class Links:
    """The links between the positions of two images.

    values: (Na,Nb) float64; if they are exact, they sum to the cosine. cosine: similarity of the two embeddings. map_a,
    map_b: (rows,columns) float64, the part of each position of an image in the cosine: the sum of its links if they are
    exact, otherwise the decrease of the cosine when only this position is masked. agreement: None if the links are
    exact; if they were measured by masking, the correlation of both maps with the sums of the links of each position.
    """

    values: Doubles
    cosine: float
    map_a: Doubles
    map_b: Doubles
    agreement: float | None = None

    @property
    def exact(self) -> bool:
        """Whether the values are terms of the cosine."""
        return self.agreement is None

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """The (rows, columns) of positions of each image."""
        (rows_a, columns_a), (rows_b, columns_b) = self.map_a.shape, self.map_b.shape
        return (rows_a, columns_a), (rows_b, columns_b)

    def regions(self, rows: int, columns: int) -> Links:
        """Return the links between at most rows x columns regions of each image, which are sums of those of positions.

        Raises UsageError `bad_argument` for less than one region.
        """
        check_count("rows", rows, MAX_POSITIONS)
        check_count("columns", columns, MAX_POSITIONS)
        (sums_a, grid_a), (sums_b, grid_b) = (_membership(grid, rows, columns) for grid in self.grids)
        map_a, map_b = (sums_a @ self.map_a.ravel()).reshape(grid_a), (sums_b @ self.map_b.ravel()).reshape(grid_b)
        return Links(sums_a @ self.values @ sums_b.T, self.cosine, map_a, map_b, self.agreement)


@dataclass(frozen=True)
class Link:
    """One link between two positions, each given as (row, column)."""

    a: Grid
    b: Grid
    value: float


def links_problem(model: ImageModel) -> str | None:
    """Return why the similarity of two images is not a sum over pairs of positions, with the alternative; else None."""
    if problem := pooling_problem(model):
        return f"{problem}; links are measured by masking instead"
    return None


def link_images(model: ImageModel, a_1CHW: Tensor, b_1CHW: Tensor) -> Links:
    """Find the links between two normalized images (1,C,H,W): exact ones, or else by masking (see `links_problem`).

    Raises as `position_vectors`.
    """
    return link_vectors(position_vectors(model, a_1CHW), position_vectors(model, b_1CHW))


def link_vectors(a: PositionVectors, b: PositionVectors) -> Links:
    """Return the links between two images that were prepared with the same model."""
    values_NN = a.vectors @ b.vectors.T
    map_a, map_b = a.vectors @ b.embedding, b.vectors @ a.embedding
    agreement = None
    if not (a.exact and b.exact):
        sums = np.concatenate((values_NN.sum(1), values_NN.sum(0)))
        agreement = _correlation(np.concatenate((map_a, map_b)), sums)
    return Links(values_NN, float(a.embedding @ b.embedding), map_a.reshape(a.grid), map_b.reshape(b.grid), agreement)


def position_vectors(model: ImageModel, x_1CHW: Tensor) -> PositionVectors:
    """Prepare one normalized image (1,C,H,W) for links.

    Masking (see `links_problem`) computes the model once for each position, of which there are at most 64.
    Raises UsageError: `bad_argument` for a batch of several images, a model in training mode, without pooling, or with
    an embedding of zero, and for more than 4,096 positions; `wrong_input_size`. Raises WeightsError `non_finite` for
    features with NaN or infinity.
    """
    if x_1CHW.ndim == 4 and x_1CHW.shape[0] != 1:
        raise UsageError("bad_argument", f"got a batch of {x_1CHW.shape[0]} images, expected one (1,C,H,W)")
    if pooling_problem(model):
        return _masked_vectors(model, x_1CHW)
    _, z_1ND, grid = position_features(model, x_1CHW)
    if z_1ND.shape[1] > MAX_POSITIONS:
        raise UsageError(
            "bad_argument", f"the image has {grid[0]} x {grid[1]} positions, links are limited to {MAX_POSITIONS:,}"
        )
    z_ND = z_1ND[0].cpu().numpy()
    vectors_ND = z_ND / (_norm(z_ND.mean(0)) * len(z_ND))
    return PositionVectors(vectors_ND, vectors_ND.sum(0), grid, exact=True)


def strongest(links: Links, n: int) -> list[Link]:
    """Return at most `n` links with positive values, the largest first, such that no two share a position.

    Raises UsageError `bad_argument` for less than one.
    """
    check_count("n", n, MAX_POSITIONS)
    found: list[Link] = []
    used_a, used_b = (np.zeros(count, bool) for count in links.values.shape)
    grid_a, grid_b = links.grids
    for flat in np.argsort(-links.values, axis=None, kind="stable"):
        p, q = divmod(int(flat), links.values.shape[1])
        if links.values[p, q] <= 0 or len(found) == n:
            break
        if not (used_a[p] or used_b[q]):
            used_a[p] = used_b[q] = True
            found.append(Link(_place(p, grid_a), _place(q, grid_b), float(links.values[p, q])))
    return found


def _place(position: int, grid: Grid) -> Grid:
    return position // grid[1], position % grid[1]


def _membership(grid: Grid, rows: int, columns: int) -> tuple[Doubles, Grid]:
    """Return (regions,N) of 0 and 1, which says whether a position is in a region, and the grid of regions."""
    regions = (min(rows, grid[0]), min(columns, grid[1]))
    numbers_hw = np.arange(np.prod(regions)).reshape(regions)
    of_position_N = upsample(numbers_hw.astype(np.float32), *grid, smooth=False).ravel()
    return (of_position_N == np.arange(np.prod(regions))[:, None]).astype(np.float64), regions


def _norm(embedding_D: Doubles) -> float:
    norm = float(np.linalg.norm(embedding_D))
    if norm == 0:
        raise UsageError("bad_argument", "the embedding of an image is zero, so it has no similarity to others")
    return norm


# --- masking ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _masked_vectors(model: ImageModel, x_1CHW: Tensor) -> PositionVectors:
    if model.training:
        raise UsageError("bad_argument", "the model is in training mode, whose outputs vary", hint="model.eval()")
    if model.global_pool == "":
        raise UsageError("bad_argument", "the model has no embedding: it does not pool its positions")
    check_forward(model)
    like = next(model.parameters())
    x_1CHW = x_1CHW.to(like.device, like.dtype)
    whole_1D = _unit_embeddings(model, x_1CHW)
    height, width = x_1CHW.shape[2:]
    grid = _masking_grid(model, height, width)
    numbers_hw = np.arange(grid[0] * grid[1]).reshape(grid).astype(np.float32)
    position_HW = torch.from_numpy(upsample(numbers_hw, height, width, smooth=False)).to(like.device)
    mean_1C11 = x_1CHW.mean((2, 3), keepdim=True)
    parts = []
    for start in range(0, numbers_hw.size, BATCH):
        masked = range(start, min(start + BATCH, numbers_hw.size))
        is_masked_N1HW = torch.stack([position_HW == position for position in masked])[:, None]
        parts.append(_unit_embeddings(model, torch.where(is_masked_N1HW, mean_1C11, x_1CHW)))
    return PositionVectors(whole_1D[0] - np.concatenate(parts), whole_1D[0], grid, exact=False)


def _correlation(x_N: Doubles, y_N: Doubles) -> float:
    """Return Pearson's correlation of parts of a cosine, 0 if one of the two varies by no more than rounding."""
    if min(np.ptp(x_N), np.ptp(y_N)) <= ROUNDING:
        return 0.0
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    return float(x_N @ y_N / (np.linalg.norm(x_N) * np.linalg.norm(y_N)))


def _unit_embeddings(model: ImageModel, x_BCHW: Tensor) -> Doubles:
    embeddings_BD = model.forward_head(model.forward_features(x_BCHW), pre_logits=True).double().cpu().numpy()
    if not np.isfinite(embeddings_BD).all():
        raise WeightsError("non_finite", NON_FINITE)
    return embeddings_BD / np.array([[_norm(embedding_D)] for embedding_D in embeddings_BD])


def _masking_grid(model: ImageModel, height: int, width: int) -> Grid:
    """Return the grid of positions to mask: the model's patches, in CrossViT the large ones, or larger squares."""
    if isinstance(model, CrossViT):
        grid = model.grids[1]
    elif isinstance(model, ConvMixer):
        grid = (height // model.patch_size, width // model.patch_size)
    elif isinstance(model, ConViT):
        size = model.config.patch_size
        grid = (height // size, width // size)
    else:
        raise UsageError("bad_argument", f"a {type(model).__name__} is none of the models whose positions are known")
    return min(grid[0], MASKED_SIDE), min(grid[1], MASKED_SIDE)
