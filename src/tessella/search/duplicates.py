"""Duplicate images in a run: identical bytes or nearly the same picture; and which one to keep.

Two images belong together if their bytes are equal, or if the cosine of their embeddings reaches the threshold.
Clusters are transitive, so two members may be less similar than the threshold: every row has its similarity to the
image that is kept. That is the one with the most pixels; if equal, the most bytes; then the shortest key, because
copies are often called "copy of" something; then the first key. All pairs are compared, as products of blocks; nothing
is approximate.

Letters for shapes: N images, D width of the embedding, P pairs, B images of a block, M members of a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bulk.run_folder import finished_shards, read_run, read_shard, row_sources
from ..checks import as_path, checked
from ..errors import UsageError
from ..extras import need_pyarrow
from ..plots.sheet import SUFFIXES, Panel, write_sheet
from ..records import csv_table
from ..results import l2_normalize
from ..storage import check_output, write_bytes
from ..weights.catalogue import full_name
from .nearest import Floats, Ints, vectors_of

THRESHOLD = 0.95  # cosine similarity, for models without a measured one
MEASURED_THRESHOLDS = {  # by model, chosen with benchmarks/dedup.py: figures are in docs/results.md
    "convmixer_384_8_ks5_p8.photographs": 0.95,
    "convmixer_256_8_ks3_p4.cifar10": 0.95,
}
BLOCK = 2_048  # images per block: a block of cosines has 16 MB
PAIRS = 10  # shown on either side of the threshold
SHOWN_CLUSTERS, SHOWN_MEMBERS = 20, 8  # in a contact sheet
OUTPUTS = (".csv", ".json", ".jsonl", ".parquet")
MARGIN = 0.1  # pairs down to this far below the threshold are candidates to be shown


@dataclass(frozen=True)
class Duplicate:
    """A member of a cluster.

    kind: "kept"; "same" if its bytes equal those of the kept image; else "near". similarity: cosine with the kept
    image. row: position in the listing. bytes: of the file. width, height: in pixels.
    """

    cluster: int
    kind: str
    similarity: float
    key: str
    source: str
    row: int
    bytes: int
    width: int
    height: int


@dataclass(frozen=True)
class Pair:
    """Two images with different bytes and a similarity near the threshold. joined: whether they are in one cluster."""

    similarity: float
    keys: tuple[str, str]
    rows: tuple[int, int]
    joined: bool


class SimilarityThreshold(NamedTuple):
    """A cosine similarity from which two images are duplicates, and why this one is used."""

    value: float
    reason: str

    @classmethod
    def of(cls, model: str) -> SimilarityThreshold:
        """Return the threshold that was measured for a model, or the general one."""
        model = full_name(model)
        if model in MEASURED_THRESHOLDS:
            return cls(MEASURED_THRESHOLDS[model], f"measured for {model}")
        return cls(THRESHOLD, f"not measured for {model}; look at --sheet and choose with --threshold")


@dataclass(frozen=True)
class Duplicates:
    """The duplicates in a run.

    images: number of images compared. threshold: the one that was used; None if only the bytes were compared. clusters:
    number of clusters. rows: the members, by cluster in order of their first row, the image to keep first. pairs: up to
    ten on either side of the threshold and nearest to it, the most similar first.
    """

    images: int
    threshold: SimilarityThreshold | None
    clusters: int
    rows: tuple[Duplicate, ...]
    pairs: tuple[Pair, ...]


@checked
def dedup(out: str | Path, *, threshold: float | Literal["auto"] | None = "auto") -> Duplicates:
    """Find clusters of duplicate images in the run in the folder `out`, and the one of each to keep.

    threshold: cosine similarity in (0, 1] from which two images are duplicates. "auto": the one that was measured for
    the model of the run if it is built in, else 0.95. None compares only the bytes.
    The embeddings are held in memory; time grows with the square of their number.
    Raises UsageError: `not_found` without a run, `damaged_run`, `bad_argument`, `missing_dependency`.
    """
    folder = as_path("the run", out)
    used = None if threshold is None else _choose_threshold(folder, threshold)
    images, vectors_ND = _read(folder)
    first: dict[str, int] = {}
    root_N = np.array([first.setdefault(image.sha256, i) for i, image in enumerate(images)], np.int64)
    distinct = np.flatnonzero(root_N == np.arange(len(root_N)))
    near = np.zeros(0, _PAIR)
    if used is not None:
        similar, near = _similar(vectors_ND[distinct], used.value)
        root_N = join(root_N, distinct, distinct[similar])
    order = np.argsort(root_N, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(root_N[order])) + 1)
    clusters = [members.tolist() for members in groups if len(members) > 1]
    rows = [row for i, members in enumerate(clusters) for row in _cluster(i, members, images, vectors_ND)]
    pairs = []
    for similarity, *ends in near.tolist():
        i, j = distinct[ends].tolist()
        a, b = images[i], images[j]
        pairs.append(Pair(similarity, (a.key, b.key), (a.row, b.row), bool(root_N[i] == root_N[j])))
    return Duplicates(len(images), used, len(clusters), tuple(rows), tuple(pairs))


def _choose_threshold(folder: Path, threshold: float | str) -> SimilarityThreshold:
    """Return the threshold that is given, or for "auto" that of the model of a run."""
    if threshold == "auto":
        return SimilarityThreshold.of(read_run(folder)["model"])
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if isinstance(threshold, str) or not is_number or not 0 < threshold <= 1:
        raise UsageError(
            "bad_argument", f"threshold is {threshold!r}, expected a cosine, such as {THRESHOLD}, or 'auto'"
        )
    return SimilarityThreshold(float(threshold), "given")


def draw_duplicates(out: str | Path, duplicates: Duplicates, path: str | Path) -> bool:
    """Draw the pairs near the threshold and the first clusters, each in its own box, to a .png or .html file.

    The pairs show whether the threshold is right. Returns False and writes nothing if there are neither pairs nor
    clusters. Raises as `write_sheet`.
    """
    out, path = as_path("the run", out), check_output(as_path("the sheet", path), SUFFIXES)
    clusters = [list(rows) for _, rows in groupby(duplicates.rows, lambda row: row.cluster)][:SHOWN_CLUSTERS]
    shown = [row for cluster in clusters for row in cluster[:SHOWN_MEMBERS]]
    if not (duplicates.pairs or shown):
        return False
    pair_rows = [row for pair in duplicates.pairs for row in pair.rows]
    sources = row_sources(out, read_run(out), [*pair_rows, *(row.row for row in shown)])
    panels = []
    for number, pair in enumerate(duplicates.pairs, 1):
        title = f"pair {number}: {pair.similarity:.4f}, {'in one cluster' if pair.joined else 'in different clusters'}"
        panels += [Panel(sources[row], (key,), title) for row, key in zip(pair.rows, pair.keys, strict=True)]
    for cluster in clusters:
        more = f", {SHOWN_MEMBERS} shown" if len(cluster) > SHOWN_MEMBERS else ""
        title = f"cluster {cluster[0].cluster}: {len(cluster):,} images{more}"
        for row in cluster[:SHOWN_MEMBERS]:
            panels.append(Panel(sources[row.row], (f"{row.kind} {row.similarity:.4f}", row.key), title))
    write_sheet(path, panels, f"Duplicates in {out}", columns=4)
    return True


def write_duplicates(path: str | Path, duplicates: Duplicates) -> None:
    """Write the rows of all clusters as .csv, .json (one list), .jsonl or .parquet.

    Raises UsageError `bad_argument` for any other suffix; OutputError `output_failed`.
    """
    path = check_output(as_path("the file", path), OUTPUTS)
    names = list(Duplicate.__dataclass_fields__)
    rows = [vars(row) for row in duplicates.rows]
    kind = path.suffix.lower()
    if kind == ".parquet":
        pa, pq = need_pyarrow()
        sink = pa.BufferOutputStream()
        kinds = dict(kind=pa.string(), similarity=pa.float64(), key=pa.string(), source=pa.string())
        schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in names])
        pq.write_table(pa.Table.from_pylist(rows, schema), sink)
        data = sink.getvalue().to_pybytes()
    elif kind == ".csv":
        data = csv_table(names, rows)
    elif kind == ".json":
        data = (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    write_bytes(path, data)


class _Image(NamedTuple):
    """An image of the run whose status is ok. row: position in the listing."""

    key: str
    source: str
    sha256: str
    bytes: int
    width: int
    height: int
    row: int


def _read(out: Path) -> tuple[list[_Image], NDArray[np.generic]]:
    """Return the images of a run whose status is ok, in its order, and their embeddings (N,D) as stored."""
    facts = read_run(out)
    images, vectors = [], [np.zeros((0, facts["width"]), facts["dtype"])]
    names = ["key", "source", "sha256", "bytes", "width", "height", "status"]
    for shard in finished_shards(out):
        table = read_shard(out, shard, [*names, "embedding"])
        vectors.append(vectors_of(table["embedding"].drop_null(), facts["width"]))
        for position, row in enumerate(table.select(names).to_pylist(), shard.id * facts["shard_rows"]):
            if row.pop("status") == "ok":
                images.append(_Image(**row, row=position))
    return images, np.concatenate(vectors)


# --- near duplicates --------------------------------------------------------------------------------------------------

_PAIR = np.dtype([("similarity", np.float32), ("i", np.int64), ("j", np.int64)])


def _similar(vectors_ND: NDArray[np.generic], threshold: float) -> tuple[Ints, NDArray[np.void]]:
    """Return the first image (N,) of each image's cluster, and the pairs near the threshold, the most similar first."""
    root_N = np.arange(len(vectors_ND))
    above = below = np.zeros(0, _PAIR)
    starts = range(0, len(vectors_ND), BLOCK)
    for top in starts:
        rows_BD = l2_normalize(vectors_ND[top : top + BLOCK].astype(np.float32))
        for left in starts[top // BLOCK :]:
            cosines_BB = rows_BD @ l2_normalize(vectors_ND[left : left + BLOCK].astype(np.float32)).T
            i_P, j_P = np.nonzero(cosines_BB >= threshold - MARGIN)
            if left == top:
                i_P, j_P = i_P[i_P < j_P], j_P[i_P < j_P]
            pairs = np.zeros(len(i_P), _PAIR)
            pairs["similarity"], pairs["i"], pairs["j"] = cosines_BB[i_P, j_P], top + i_P, left + j_P
            is_similar = pairs["similarity"] >= threshold
            root_N = join(root_N, pairs["i"][is_similar], pairs["j"][is_similar])
            above = _nearest(np.concatenate((above, pairs[is_similar])), threshold)
            below = _nearest(np.concatenate((below, pairs[~is_similar])), threshold)
    return root_N, np.sort(np.concatenate((above, below)))[::-1]


def duplicate_groups(vectors_ND: NDArray[np.generic], threshold: float) -> Ints:
    """Return the first image (N,) of each image's group of near-duplicates, for embeddings (N,D); itself without one.

    threshold: cosine from which two images are duplicates; groups are transitive.
    """
    return _similar(vectors_ND, threshold)[0]


def _nearest(pairs: NDArray[np.void], threshold: float) -> NDArray[np.void]:
    if len(pairs) <= PAIRS:
        return pairs
    return pairs[np.argpartition(np.abs(pairs["similarity"] - threshold), PAIRS)[:PAIRS]]


def join(root_N: Ints, i_P: Ints, j_P: Ints) -> Ints:
    """Merge the sets of the images i and j of each pair (P,): union-find with array operations.

    root_N and the result give the first image of each image's set. Each round attaches the later root of a pair to the
    earlier one and compresses all paths; pairs within a set are dropped.
    """
    root_N = root_N.copy()
    while True:
        a_P, b_P = root_N[i_P], root_N[j_P]
        apart = a_P != b_P
        if not apart.any():
            return root_N
        i_P, j_P, a_P, b_P = i_P[apart], j_P[apart], a_P[apart], b_P[apart]
        np.minimum.at(root_N, np.maximum(a_P, b_P), np.minimum(a_P, b_P))
        while not np.array_equal(root_N, further := root_N[root_N]):
            root_N = further


def _cluster(
    number: int, members: Sequence[int], images: Sequence[_Image], vectors_ND: NDArray[np.generic]
) -> list[Duplicate]:
    """Return the rows of a cluster, the image to keep first."""

    def rank(i: int) -> tuple[int, int, int, str]:
        image = images[i]
        return -image.width * image.height, -image.bytes, len(image.key), image.key

    members = sorted(members, key=rank)
    best = images[members[0]]
    units_MD: Floats = l2_normalize(vectors_ND[members].astype(np.float32))
    rows = []
    for i, cosine in zip(members, (units_MD @ units_MD[0]).tolist(), strict=True):
        image = images[i]
        kind = "kept" if image is best else "same" if image.sha256 == best.sha256 else "near"
        rows.append(
            Duplicate(
                cluster=number,
                kind=kind,
                similarity=round(cosine, 4) if kind == "near" else 1.0,
                key=image.key,
                source=image.source,
                row=image.row,
                bytes=image.bytes,
                width=image.width,
                height=image.height,
            )
        )
    return rows
