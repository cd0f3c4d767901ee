"""Images that a run holds more than once: the same bytes, or nearly the same picture; and which one to keep.

Two images are joined where their bytes are equal, or where the cosine of their embeddings reaches the threshold. What
is joined through others is one cluster, so its ends may be less alike than the threshold: every row says how alike it
is to the one that is kept. That is the one with the most pixels; of equal ones the one with the most bytes; then the
one of the shortest key, as copies are often called "copy of" something; then the first by its key. All pairs are
compared, as products of blocks; nothing is approximate.

Letters for shapes: N images, D width of the embedding, P pairs, B images of a block, M members of a cluster.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..bulk.run_folder import finished_shards, read_run, read_shard, row_sources
from ..checks import as_path, checked
from ..errors import UsageError
from ..plots.sheet import SUFFIXES, Panel, write_sheet
from ..predictor import unit_length
from ..records import need_pyarrow
from ..storage import check_output, write_bytes
from .nearest import Floats, Ints, vectors_of

THRESHOLD = 0.95  # cosine
BLOCK = 2_048  # images: a block of cosines has 16 MB
PAIRS = 10  # shown on either side of the threshold
SHOWN_CLUSTERS, SHOWN_MEMBERS = 20, 8  # in a picture
OUTPUTS = (".csv", ".json", ".jsonl", ".parquet")
AROUND = 0.1  # below the threshold that pairs are looked for, to be shown


@dataclass(frozen=True)
class Duplicate:
    """A member of a cluster. kind: "kept"; "same", of the bytes of the kept one; or "near". similarity: cosine with the
    kept one. row: its place in the listing; bytes: of the file; width, height: pixels.
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
    """Two images of unlike bytes whose similarity is next to the threshold; joined: in one cluster, be it by others."""

    similarity: float
    keys: tuple[str, str]
    rows: tuple[int, int]
    joined: bool


@dataclass(frozen=True)
class Duplicates:
    """images: compared; clusters: in order of their first row; rows: by cluster, the one to keep first; pairs: those
    nearest to the threshold, up to ten on either side of it, the most alike first.
    """

    images: int
    clusters: int
    rows: tuple[Duplicate, ...]
    pairs: tuple[Pair, ...]


@checked
def find_duplicates(out: str | Path, *, threshold: float | None = THRESHOLD) -> Duplicates:
    """Clusters of a run's images, of which one each is to be kept; None: only equal bytes are duplicates.

    The embeddings are held in memory as they are stored; time grows with the square of their number.
    Raises UsageError: not_found without a run, damaged_run, bad_argument, missing_dependency.
    """
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold is not None and not (is_number and 0 < threshold <= 1):
        raise UsageError("bad_argument", f"threshold is {threshold!r}, expected a cosine, such as {THRESHOLD}")
    images, vectors_ND = _read(as_path("the run", out))
    first: dict[str, int] = {}
    root_N = np.array([first.setdefault(one["sha256"], i) for i, one in enumerate(images)], np.int64)
    distinct = np.flatnonzero(root_N == np.arange(len(root_N)))
    near = np.zeros(0, _PAIR)
    if threshold is not None:
        alike, near = _alike(vectors_ND[distinct], threshold)
        root_N = join(root_N, distinct, distinct[alike])
    order = np.argsort(root_N, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(root_N[order])) + 1)
    kept = [members for members in clusters if len(members) > 1]
    rows = [one for i, members in enumerate(kept) for one in _cluster(i, members.tolist(), images, vectors_ND)]
    pairs = []
    for similarity, *ends in near.tolist():
        i, j = distinct[ends].tolist()
        a, b = images[i], images[j]
        pairs.append(Pair(similarity, (a["key"], b["key"]), (a["row"], b["row"]), bool(root_N[i] == root_N[j])))
    return Duplicates(len(images), len(kept), tuple(rows), tuple(pairs))


def pairs_sheet(out: str | Path, found: Duplicates, path: str | Path) -> bool:
    """Draw the pairs near the threshold and the first clusters, each in its own box, to a .png or .html file.

    The pairs show whether the threshold is where it should be. Returns False and writes nothing if there are
    neither pairs nor clusters. Raises as `write_sheet`.
    """
    out, path = as_path("the run", out), check_output(as_path("the sheet", path), SUFFIXES)
    clusters = [list(some) for _, some in groupby(found.rows, lambda row: row.cluster)][:SHOWN_CLUSTERS]
    shown = [row for some in clusters for row in some[:SHOWN_MEMBERS]]
    if not (found.pairs or shown):
        return False
    sources = row_sources(out, read_run(out), [row for pair in found.pairs for row in pair.rows] +
                          [one.row for one in shown])  # fmt: skip
    panels = []
    for number, pair in enumerate(found.pairs, 1):
        title = f"pair {number}: {pair.similarity:.4f}, {'joined' if pair.joined else 'apart'}"
        panels += [Panel(sources[row], (key,), title) for row, key in zip(pair.rows, pair.keys, strict=True)]
    for some in clusters:
        more = f", {SHOWN_MEMBERS} shown" if len(some) > SHOWN_MEMBERS else ""
        title = f"cluster {some[0].cluster}: {len(some):,} images{more}"
        panels += [Panel(sources[one.row], (f"{one.kind} {one.similarity:.4f}", one.key), title)
                   for one in some[:SHOWN_MEMBERS]]  # fmt: skip
    write_sheet(path, panels, f"Duplicates in {out}", columns=4)
    return True


def write_duplicates(path: str | Path, found: Duplicates) -> None:
    """Write the rows of all clusters as .csv, .json (one list), .jsonl or .parquet.

    Raises UsageError `bad_argument` for another suffix; OutputError `output_failed`.
    """
    path = check_output(as_path("the file", path), OUTPUTS)
    names = list(Duplicate.__dataclass_fields__)
    rows = [vars(one) for one in found.rows]
    kind = path.suffix.lower()
    if kind == ".parquet":
        pa, pq = need_pyarrow()
        sink = pa.BufferOutputStream()
        kinds = dict(kind=pa.string(), similarity=pa.float64(), key=pa.string(), source=pa.string())
        schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in names])
        pq.write_table(pa.Table.from_pylist(rows, schema), sink)
        data = sink.getvalue().to_pybytes()
    elif kind == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    elif kind == ".json":
        data = (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    write_bytes(path, data)


def _read(out: Path) -> tuple[list[dict[str, Any]], Any]:
    """The images of a run that are ok, in its order, and (N,D) their embeddings as stored."""
    facts = read_run(out)
    images, vectors = [], [np.zeros((0, facts["width"]), facts["dtype"])]
    names = ["key", "source", "status", "sha256", "bytes", "width", "height"]
    for shard in finished_shards(out):
        table = read_shard(out, shard, [*names, "embedding"])
        vectors.append(vectors_of(table["embedding"].drop_null(), facts["width"]))
        for place, row in enumerate(table.select(names).to_pylist(), shard.id * facts["shard_rows"]):
            if row["status"] == "ok":
                images.append(row | dict(row=place))
    return images, np.concatenate(vectors)


# --- near duplicates --------------------------------------------------------------------------------------------------

_PAIR = np.dtype([("similarity", np.float32), ("i", np.int64), ("j", np.int64)])


def _alike(vectors_ND: Any, threshold: float) -> tuple[Ints, Any]:
    """(N,) the first of each image's cluster; and the pairs next to the threshold, the most alike first."""
    root_N = np.arange(len(vectors_ND))
    above = below = np.zeros(0, _PAIR)
    starts = range(0, len(vectors_ND), BLOCK)
    for top in starts:
        rows_BD = unit_length(vectors_ND[top : top + BLOCK].astype(np.float32))
        for left in starts[top // BLOCK :]:
            cosines_BB = rows_BD @ unit_length(vectors_ND[left : left + BLOCK].astype(np.float32)).T
            i_P, j_P = np.nonzero(cosines_BB >= threshold - AROUND)
            if left == top:
                i_P, j_P = i_P[i_P < j_P], j_P[i_P < j_P]
            pairs = np.zeros(len(i_P), _PAIR)
            pairs["similarity"], pairs["i"], pairs["j"] = cosines_BB[i_P, j_P], top + i_P, left + j_P
            alike = pairs["similarity"] >= threshold
            root_N = join(root_N, pairs["i"][alike], pairs["j"][alike])
            above = _nearest(np.concatenate((above, pairs[alike])), threshold)
            below = _nearest(np.concatenate((below, pairs[~alike])), threshold)
    return root_N, np.sort(np.concatenate((above, below)))[::-1]


def _nearest(pairs: Any, threshold: float) -> Any:
    if len(pairs) <= PAIRS:
        return pairs
    return pairs[np.argpartition(np.abs(pairs["similarity"] - threshold), PAIRS)[:PAIRS]]


def join(root_N: Ints, i_P: Ints, j_P: Ints) -> Ints:
    """Union-find over whole arrays: every image points to the first of its set, before and after.

    Each round hangs the later root of a pair under the earlier one and shortens all paths to one step; pairs within a
    set drop out.
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


def _cluster(number: int, members: Sequence[int], images: Sequence[dict[str, Any]], vectors_ND: Any) -> list[Duplicate]:
    def rank(i: int) -> tuple[int, int, int, str]:
        one = images[i]
        return -one["width"] * one["height"], -one["bytes"], len(one["key"]), one["key"]

    members = sorted(members, key=rank)
    best = images[members[0]]
    units_MD: Floats = unit_length(vectors_ND[members].astype(np.float32))
    rows = []
    for i, cosine in zip(members, (units_MD @ units_MD[0]).tolist(), strict=True):
        one = images[i]
        kind = "kept" if one is best else "same" if one["sha256"] == best["sha256"] else "near"
        told = {name: one[name] for name in ("key", "source", "row", "bytes", "width", "height")}
        rows.append(Duplicate(number, kind, round(cosine, 4) if kind == "near" else 1.0, **told))
    return rows
