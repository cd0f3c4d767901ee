"""The nearest rows of a LanceDB table: by comparing all, or through an approximate index whose recall was measured.

Letters for shapes: N rows, Q queries, D width of the embedding, K neighbours.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..results import l2_normalize

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]

SCAN_ROWS = 16_384  # in memory while all are compared
APPROXIMATE_FROM = 50_000  # rows; fewer are compared in less than a tenth of a second
PARTITION_ROWS = 4_096  # of an approximate index
BITS = 6  # of a component in it
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the partitions, tried until enough is found
RECALL, RECALL_AT, ASKED = 0.99, 10, 256  # what must be found: of the nearest ten, of so many rows of the table


@dataclass(frozen=True)
class Plan:
    """How the nearest rows are found: by comparing all, or through an approximate index whose recall was measured."""

    why: str = ""
    partitions: int = 0  # of the approximate index
    probes: int = 0  # of these that are looked into; 0: all rows are compared
    recall: float = 1.0
    trained: int = 0  # rows when the partitions were made

    def __str__(self) -> str:
        if not self.probes:
            return f"searches are exact, all rows are compared: {self.why}"
        return (
            f"searches are approximate: {self.why}; recall@{RECALL_AT} {self.recall:.4f} against the exact answers for "
            f"{ASKED} of them, looking into {self.probes} of {self.partitions} partitions"
        )


def exact(
    table: Any, queries_QD: Floats, k: int, where: str = "", label: str | None = None
) -> tuple[Floats, Ints]:  # fmt: skip
    """(Q,K) cosines, best first, and ids of the rows: all rows that fit `where` are compared, in float32.

    label: of the rows, beside `where`, which is SQL of the user and is never made part of other SQL. K is less than k
    if there are fewer rows. LanceDB's own scan rounds the query to float16 and does one at a time.
    """
    scan = table.search().select(["vector"] if label is None else ["vector", "label"]).with_row_id(True)
    return nearest_of((scan.where(where) if where else scan).to_batches(SCAN_ROWS), queries_QD, k, label)


def nearest_of(
    batches: Iterable[Any], queries_QD: Floats, k: int, label: str | None = None
) -> tuple[Floats, Ints]:  # fmt: skip
    """`exact` of Arrow batches with the columns vector, _rowid and, where one is asked for, label."""
    import pyarrow.compute as pc

    scores, ids = np.zeros((len(queries_QD), 0), np.float32), np.zeros((len(queries_QD), 0), np.int64)
    for batch in batches:
        if label is not None:
            batch = batch.filter(pc.equal(batch["label"], label))
        here_N = batch["_rowid"].to_numpy().astype(np.int64)
        scores = np.concatenate((scores, _cosines(queries_QD, batch["vector"])), 1)
        ids = np.concatenate((ids, np.broadcast_to(here_N, (len(queries_QD), len(here_N)))), 1)
        if scores.shape[1] > k:
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


class Approximate:
    """One version of a table, open for searches through its approximate index; threads may share it.

    A search by LanceDB's calls that wait crosses five times to the thread that does the work, by its coroutines once.
    """

    def __init__(self, home: Path, name: str, version: int):
        import lancedb

        async def opened() -> Any:
            table = await (await lancedb.connect_async(home)).open_table(name)
            await table.checkout(version)
            return table

        self._table = _wait_for(opened())

    def search(self, query_D: Floats, k: int, probes: int) -> tuple[Floats, Ints]:
        """(K,) cosines, best first, and ids of rows, from so many partitions.

        The index ranks by rounded vectors; of half as many more, at least five, the best are picked by the stored ones.
        """
        candidates = k + max(k // 2, 5)

        async def near() -> Any:
            query = self._table.query().nearest_to(query_D).column("vector").distance_type("cosine").nprobes(probes)
            return await query.limit(candidates).select(["vector", "_distance"]).with_row_id().to_arrow()

        found = _wait_for(near())
        cosines_N = _cosines(query_D[None], found["vector"].combine_chunks())[0]
        order = np.argsort(-cosines_N, kind="stable")[:k]
        return cosines_N[order], found["_rowid"].to_numpy().astype(np.int64)[order]


def _wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tessella-nearest", daemon=True).start()
    return loop


def _cosines(queries_QD: Floats, column: Any) -> Floats:
    """(Q,D) of unit length, an Arrow array of N float16 vectors -> (Q,N)."""
    rows_ND = column.flatten().to_numpy().reshape(len(column), queries_QD.shape[1]).astype(np.float32)
    norms_N = np.sqrt(np.einsum("nd,nd->n", rows_ND, rows_ND))
    cosines_QN: Floats = queries_QD @ rows_ND.T / np.maximum(norms_N, np.float32(1e-12))
    return cosines_QN


def choose_plan(table: Any, home: Path, plan: Plan, approximate_from: int, say: Callable[[str], None]) -> Plan:
    """Merge small pieces of a table of the database in `home`, and decide how its rows are searched."""
    from lancedb.index import IvfRq

    rows = table.count_rows()
    keep = rows >= approximate_from and 0.8 * plan.trained < rows < 1.25 * plan.trained
    for one in [] if keep else table.list_indices():
        table.drop_index(one.name)
    table.optimize()  # takes new rows into an index that stays
    if rows < approximate_from:
        plan = Plan(f"there are fewer than {approximate_from:,} rows")
    else:
        if not keep:
            plan = Plan(partitions=max(rows // PARTITION_ROWS, 1), trained=rows)
            say(f"training an approximate index of {rows:,} rows")
            config = IvfRq(distance_type="cosine", num_partitions=plan.partitions, num_bits=BITS)
            table.create_index("vector", config=config)
        plan = _measured(table, Approximate(home, table.name, table.version), plan)
        if not plan.probes:
            for one in table.list_indices():
                table.drop_index(one.name)
    say(str(plan))
    return plan


def _measured(table: Any, index: Approximate, plan: Plan) -> Plan:
    """The plan with the fewest probes that find 99 % of the nearest ten of some of the table's rows, or an exact one.

    What is as near as the tenth is as good: of copies any will do. A row itself is found too, and not counted.
    """
    offsets = np.unique(np.linspace(0, table.count_rows() - 1, ASKED).astype(np.int64))
    own = table.take_offsets(offsets.tolist()).select(["vector"]).to_arrow()["vector"]
    queries_QD = l2_normalize(vectors_of(own, own.type.list_size).astype(np.float32))
    worst_Q = exact(table, queries_QD, RECALL_AT + 1)[0][:, -1] - 1e-6
    recall = 0.0
    for share in SHARES:
        probes = max(round(share * plan.partitions), 1)
        found = [
            (index.search(query_D, RECALL_AT + 1, probes)[0] >= worst).sum() - 1
            for query_D, worst in zip(queries_QD, worst_Q, strict=True)
        ]
        recall = float(np.mean(found)) / RECALL_AT
        if recall >= RECALL:
            return replace(plan, probes=probes, recall=recall, why=f"there are {table.count_rows():,} rows")
    return Plan(f"an approximate index had a recall@{RECALL_AT} of {recall:.4f}, under {RECALL}")


def vectors_of(column: Any, width: int) -> NDArray[Any]:
    """An Arrow column of embeddings, none of them missing -> (N,D) of its own number type."""
    flat: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)
