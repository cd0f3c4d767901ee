"""The nearest rows of a LanceDB table: exactly, or with an approximate index whose recall was measured.

Letters for shapes: N rows, Q queries, D width of the embedding, K neighbors.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..results import l2_normalize
from .lance import import_lancedb

if TYPE_CHECKING:
    import asyncio

    import pyarrow as pa
    from lancedb.table import AsyncTable, Table

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]
ArrowTable: TypeAlias = "pa.Table"
ArrowColumn: TypeAlias = "pa.ChunkedArray"
LanceTable: TypeAlias = "Table"
T = TypeVar("T")

SCAN_ROWS = 16_384  # rows in memory during an exact search
_BLOCK_NUMBERS = 1 << 16  # float32 numbers that stay in the cache of a core while they are used
APPROXIMATE_FROM = 50_000  # rows; fewer are compared in less than a tenth of a second
PARTITION_ROWS = 4_096  # rows per partition of an approximate index
BITS = 6  # per component in an approximate index
PROBED_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the partitions, tried until the recall is reached
RECALL, RECALL_AT = 0.99, 10  # an approximate index must find this fraction of the nearest rows
RECALL_QUERIES = 256  # rows of the table with which the recall is measured
SCORE_DIGITS = 6  # scores are rounded to them; those that are equal then are ties
_TIE = 1.1 * 10**-SCORE_DIGITS  # scores that differ by more are not equal when they are rounded


@dataclass(frozen=True)
class SearchPlan:
    """How the nearest rows are found: by comparing all rows, or with an approximate index.

    why: the reason. partitions: of the approximate index. probes: partitions per search; 0 compares all rows.
    recall: measured. trained: rows when the partitions were computed.
    """

    why: str = ""
    partitions: int = 0
    probes: int = 0
    recall: float = 1.0
    trained: int = 0

    def __str__(self) -> str:
        if not self.probes:
            return f"searches are exact, all rows are compared: {self.why}"
        return (
            f"searches are approximate: {self.why}; recall@{RECALL_AT} {self.recall:.4f}, measured with "
            f"{RECALL_QUERIES} rows, probing {self.probes} of {self.partitions} partitions"
        )


class Condition(NamedTuple):
    """Which rows are compared, all of it checked here and not in SQL. () is every row.

    label: the predicted class. among: whether each row of the listing (L,) is compared.
    """

    label: str | None = None
    among: NDArray[np.bool_] | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that are needed to check it."""
        return ["label"] * (self.label is not None) + ["row"] * (self.among is not None)

    def filter(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of an Arrow batch that match."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.label is not None:
            batch = batch.filter(pc.equal(batch["label"], self.label))
        return batch if self.among is None else batch.filter(pa.array(self.among[batch["row"].to_numpy()]))


EVERY_ROW = Condition()


def exact(
    table: LanceTable,
    queries_QD: Floats,
    k: int,
    where: str = "",
    condition: Condition = EVERY_ROW,
    *,
    ties: bool = False,
) -> tuple[Floats, Ints]:
    """Compare the queries (Q,D) with all rows that match, in float32; return cosines and row ids, best first.

    Both are (Q,K); K is less than k if fewer rows match. where: SQL of the user. ties: also return all rows whose score
    equals the k-th one, for a single query; K may then be greater than k. (LanceDB's own scan rounds the query to
    float16 and takes one query at a time.)
    """
    scan = table.search().select(["vector", *condition.columns]).with_row_id(True)
    batches = (scan.where(where) if where else scan).to_batches(SCAN_ROWS)
    return nearest_of(batches, queries_QD, k, condition, ties=ties)


def nearest_of(
    batches: Iterable[pa.RecordBatch],
    queries_QD: Floats,
    k: int,
    condition: Condition = EVERY_ROW,
    *,
    ties: bool = False,
) -> tuple[Floats, Ints]:
    """Compare queries (Q,D) with Arrow batches, as `exact` does with a table; return cosines and row ids, both (Q,K).

    The batches have the columns vector, _rowid and those of the condition. ties: as for `exact`.
    """
    assert not ties or len(queries_QD) == 1
    scores, ids = np.zeros((len(queries_QD), 0), np.float32), np.zeros((len(queries_QD), 0), np.int64)
    for batch in batches:
        batch = condition.filter(batch)
        batch_ids_N = batch["_rowid"].to_numpy().astype(np.int64)
        scores = np.concatenate((scores, _cosines(queries_QD, batch["vector"])), 1)
        ids = np.concatenate((ids, np.broadcast_to(batch_ids_N, (len(queries_QD), len(batch_ids_N)))), 1)
        if scores.shape[1] > k:
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            if ties:
                best = np.flatnonzero(scores[0] >= scores[0, best].min() - _TIE)[None]
            scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


class Approximate:
    """One version of a table, open for searches with its approximate index. Threads may share it.

    LanceDB's blocking calls switch threads five times per search, its coroutines once.
    """

    def __init__(self, home: Path, name: str, version: int):
        lancedb = import_lancedb()

        async def open_version() -> AsyncTable:
            table = await (await lancedb.connect_async(home)).open_table(name)
            await table.checkout(version)
            return table

        self._table = _wait_for(open_version())

    def search(self, query_D: Floats, k: int, probes: int) -> tuple[Floats, Ints]:
        """Return the cosines (K,), best first, and the ids of the rows in `probes` partitions nearest to query (D,).

        The index ranks by quantized vectors, so 1.5 k candidates, at least k + 5, are ranked again by the stored
        vectors.
        """
        candidates = k + max(k // 2, 5)

        async def candidate_rows() -> ArrowTable:
            query = self._table.query().nearest_to(query_D).column("vector").distance_type("cosine").nprobes(probes)
            return await query.limit(candidates).select(["vector", "_distance"]).with_row_id().to_arrow()

        rows = _wait_for(candidate_rows())
        cosines_N = _cosines(query_D[None], rows["vector"].combine_chunks())[0]
        order = np.argsort(-cosines_N, kind="stable")[:k]
        return cosines_N[order], rows["_rowid"].to_numpy().astype(np.int64)[order]


def _wait_for(coroutine: Coroutine[None, None, T]) -> T:
    import asyncio

    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    import asyncio

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tessella-nearest", daemon=True).start()
    return loop


def _cosines(queries_QD: Floats, column: pa.Array) -> Floats:
    """Return the cosines (Q,N) of queries (Q,D) of unit length and an Arrow array of N float16 vectors."""
    width = queries_QD.shape[1]
    halves_ND = column.flatten().to_numpy().reshape(len(column), width)
    block = max(_BLOCK_NUMBERS // width, 1)
    cosines_QN = np.empty((len(queries_QD), len(halves_ND)), np.float32)
    bits_BD, rows_BD = np.empty((block, width), np.int32), np.empty((block, width), np.float32)
    for start in range(0, len(halves_ND), block):
        part_BD = halves_ND[start : start + block]
        rows = _widen(part_BD, bits_BD[: len(part_BD)], rows_BD[: len(part_BD)])
        norms_B = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        cosines_QN[:, start : start + block] = queries_QD @ rows.T / np.maximum(norms_B, np.float32(1e-12))
    return cosines_QN


def _widen(halves_BD: NDArray[np.float16], bits_BD: NDArray[np.int32], rows_BD: Floats) -> Floats:
    """Convert finite float16 numbers to float32, into `rows_BD`, three times as fast as `astype` does.

    The bits of a float16 number, moved to the places of those of a float32 number, are the number divided by 2^112.
    bits_BD: a buffer of the same shape.
    """
    np.left_shift(halves_BD.view(np.int16), 13, out=bits_BD, dtype=np.int32, casting="unsafe")
    np.bitwise_and(bits_BD, np.int32(-0x70002000), out=bits_BD)  # the shift has repeated the sign
    return np.multiply(bits_BD.view(np.float32), np.float32(2.0**112), out=rows_BD)


def choose_plan(
    table: LanceTable, home: Path, plan: SearchPlan, approximate_from: int, log: Callable[[str], None]
) -> SearchPlan:
    """Merge small fragments of a table of the database in `home`, and decide how its rows are searched.

    plan: the plan of the table before rows were added or removed.
    """
    from lancedb.index import IvfRq

    rows = table.count_rows()
    keep = rows >= approximate_from and 0.8 * plan.trained < rows < 1.25 * plan.trained
    for index in [] if keep else table.list_indices():
        table.drop_index(index.name)
    table.optimize()  # adds new rows to an index that is kept
    if rows < approximate_from:
        plan = SearchPlan(f"there are fewer than {approximate_from:,} rows")
    else:
        if not keep:
            plan = SearchPlan(partitions=max(rows // PARTITION_ROWS, 1), trained=rows)
            log(f"training an approximate index of {rows:,} rows")
            config = IvfRq(distance_type="cosine", num_partitions=plan.partitions, num_bits=BITS)
            table.create_index("vector", config=config)
        plan = _measure_recall(table, Approximate(home, table.name, table.version), plan)
        if not plan.probes:
            for index in table.list_indices():
                table.drop_index(index.name)
    log(str(plan))
    return plan


def _measure_recall(table: LanceTable, index: Approximate, plan: SearchPlan) -> SearchPlan:
    """Return the plan with the fewest probes that reach the recall, or an exact one if none does.

    A row that is as near as the tenth nearest counts as found, because any copy of a row will do. The query row itself
    is found as well, and does not count.
    """
    offsets = np.unique(np.linspace(0, table.count_rows() - 1, RECALL_QUERIES).astype(np.int64))
    stored = table.take_offsets(offsets.tolist()).select(["vector"]).to_arrow()["vector"]
    queries_QD = l2_normalize(vectors_of(stored, stored.type.list_size).astype(np.float32))
    worst_Q = exact(table, queries_QD, RECALL_AT + 1)[0][:, -1] - 1e-6
    recall = 0.0
    for fraction in PROBED_FRACTIONS:
        probes = max(round(fraction * plan.partitions), 1)
        hits = [
            (index.search(query_D, RECALL_AT + 1, probes)[0] >= worst).sum() - 1
            for query_D, worst in zip(queries_QD, worst_Q, strict=True)
        ]
        recall = float(np.mean(hits)) / RECALL_AT
        if recall >= RECALL:
            return replace(plan, probes=probes, recall=recall, why=f"there are {table.count_rows():,} rows")
    return SearchPlan(f"the recall@{RECALL_AT} of an approximate index was {recall:.4f}, less than {RECALL}")


def vectors_of(column: ArrowColumn, width: int) -> NDArray[np.generic]:
    """Convert an Arrow column of embeddings without missing values to an array (N,D) of the same number type.

    Raises UsageError `damaged_run` if the embeddings have another width.
    """
    flat: NDArray[np.generic] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(column) * width:
        raise UsageError(
            "damaged_run",
            f"the embeddings of the run have {len(flat) // len(column):,} numbers, run.json says {width:,}",
            hint="restore run.json, or run the collection again",
        )
    return flat.reshape(-1, width)
