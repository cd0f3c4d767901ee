"""Measure search in 100,000 rows and retrieval: `scripts/bench search [--labelled CIFAR10_TEST.parquet]`.

    index   vectors in 1,000 clusters, stored as the shards of a run: seconds of `tessella index`, size of the index and
            of the shards, and in rotating order, for new vectors of the same clusters: milliseconds per query of the
            approximate search, the exact search and LanceDB's own scan of all rows; recall@10, where any result as near
            as the true tenth one counts
    model   with --labelled, every image is the query among all others: kNN accuracy, recall@k, mean average precision

Rows are written to benchmarks/results as CSV files.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from table import RESULTS, write_table

from tessella.bulk import run_folder, shards
from tessella.bulk.ledger import Ledger, Shard
from tessella.bulk.manifest import MANIFEST, write_manifest
from tessella.data.datasets import open_labelled
from tessella.data.isolated.protocol import Decoded
from tessella.data.source import Source
from tessella.evaluation.embeddings import embed
from tessella.predictor import load
from tessella.results import Record, l2_normalize
from tessella.search.index import HOME, TABLE, build_index, open_table
from tessella.search.nearest import Approximate, Floats, exact
from tessella.search.retrieval_metrics import retrieval
from tessella.weights.catalogue import default_model

WIDTH, CLUSTERS, SPREAD, SHARD_ROWS, TOP = 256, 1_000, 0.9, 1_024, 10
K = (1, 5, 10, 20)


def clustered(rows: int, seed: int) -> Floats:
    """Return (rows,WIDTH) vectors around CLUSTERS centers, nearly as far from them as these are from zero."""
    centers = np.random.default_rng(0).standard_normal((CLUSTERS, WIDTH)).astype(np.float32)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, WIDTH)).astype(np.float32)
    return l2_normalize(centers[rng.integers(0, CLUSTERS, rows)] + SPREAD * noise)


def make_run(out: Path, vectors_ND: Floats) -> int:
    """Write the folder of a run with these embeddings, and return the size of its shards in bytes."""
    (out / shards.SHARDS).mkdir(parents=True)
    sources = [Source(f"{i:08d}.jpg", f"{i:08d}.jpg") for i in range(len(vectors_ND))]
    count, digest = write_manifest(out / MANIFEST, sources, SHARD_ROWS)
    facts = run_folder.RunFacts(
        fingerprint="0" * 16, model="synthetic", precision="float32", engine="none", transform="exact",
        policy="tessella", device="cpu", batch=1, threads=1, shard_rows=SHARD_ROWS, top=0, dtype="float16",
        width=WIDTH, inputs=[], labels=[], rows=count, manifest=digest,
    )  # fmt: skip
    run_folder.write_facts(out / run_folder.RUN, facts)
    written = 0
    with Ledger(out, new=True) as ledger:
        for number, start in enumerate(range(0, count, SHARD_ROWS)):
            some = zip(sources[start : start + SHARD_ROWS], vectors_ND[start : start + SHARD_ROWS], strict=True)
            unread = Decoded(None, None, "", 0, 0, 0)
            rows = [shards.ShardRow(source, unread, Record(source.key, "ok", embedding=v)) for source, v in some]
            data = shards.encode(rows, facts)
            file = f"shard-{number:08d}.parquet"
            (out / shards.SHARDS / file).write_bytes(data)
            ledger.commit(Shard(number, file, hashlib.sha256(data).hexdigest(), len(data), len(rows), len(rows), {}))
            written += len(data)
    return written


def index(count: int, queries: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        shard_bytes = make_run(out, clustered(count, 1))
        built = build_index(out, log=print)
        table, seal = open_table(out / HOME, run_folder.read_run(out))

        def lancedb_scan(query_D: Floats) -> Any:
            query = table.search(query_D, vector_column_name="vector").distance_type("cosine").bypass_vector_index()
            return query.limit(TOP).select(["_distance"]).with_row_id(True).to_arrow()

        ways: dict[str, Any] = dict(
            exact=lambda query_D: exact(table, query_D[None], TOP)[0][0],
            lancedb_scan=lancedb_scan,
        )
        if built.plan.probes:
            near = Approximate(out / HOME, TABLE, seal.version)
            ways["approximate"] = lambda query_D: near.search(query_D, TOP, built.plan.probes)[0]
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        found = 0
        for number, query_D in enumerate(clustered(queries + 1, 2)):
            answers = {}
            for place in range(len(ways)):  # each one is the first as often as the others
                way = [*ways][(place + number) % len(ways)]
                began = time.perf_counter()
                answers[way] = ways[way](query_D)
                if number:  # the first query is a warm-up
                    seconds[way].append(time.perf_counter() - began)
            if number and "approximate" in ways:
                found += int((answers["approximate"] >= answers["exact"][-1] - 1e-6).sum())
        rows = []
        for way, times in seconds.items():
            times_exact = statistics.median(seconds["exact"]) / statistics.median(times)
            rows.append(
                dict(rows=count, width=WIDTH, way=way, queries=queries, ms=round(1e3 * statistics.median(times), 2),
                     fastest_ms=round(1e3 * min(times), 2), slowest_ms=round(1e3 * max(times), 2),
                     times_exact=round(times_exact, 2),
                     recall_at_10=round(found / TOP / queries, 4) if way == "approximate" else None,
                     probes=built.plan.probes, partitions=built.plan.partitions, build_seconds=round(built.seconds, 1),
                     index_mb=round(built.bytes / 1e6, 1), shards_mb=round(shard_bytes / 1e6, 1))
            )  # fmt: skip
    return rows


def models(names: Sequence[str], data: str, limit: int | None) -> list[dict[str, Any]]:
    images = open_labelled(data)
    images = images.subset(range(min(limit or len(images), len(images))))
    rows = []
    for name in names:
        predictor = load(name)
        embedded = embed(images, predictor)
        found = retrieval(embedded.vectors[embedded.ok], images.labels[embedded.ok], K)
        rows.append(
            dict(model=predictor.name, data=Path(data).name, images=found.images, errors=int((~embedded.ok).sum()),
                 width=predictor.width, map=round(found.map, 4),
                 **{f"knn_{k}": round(found.knn[k], 4) for k in K},
                 **{f"recall_at_{k}": round(found.recall[k], 4) for k in K}, fingerprint=predictor.fingerprint)
        )  # fmt: skip
    return rows


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--labelled", metavar="DATA", help="labeled images, as for `tessella train`")
    parser.add_argument("--models", nargs="+", default=[default_model()], metavar="NAME", help="models to measure")
    parser.add_argument("--limit", type=int, help="maximum number of labeled images")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    write_table("search", index(args.rows, args.queries), args.out)
    if args.labelled:
        write_table("retrieval", models(args.models, args.labelled, args.limit), args.out)


if __name__ == "__main__":
    main()
