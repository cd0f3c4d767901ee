"""Simulate how long a billion images take on many nodes, some of which fail or are slow: `python benchmarks/scale.py`.

An idle node gets the next shard, as with Ray. A node that fails loses its current shard. AWAY seconds later, the
failure is noticed: the shard is given to an idle node, and the failed node is replaced. A slow node is always slow.
Measured values come from `--measure`, which times Ray and the ledger on this machine, and from earlier files in
benchmarks/results; assumed values are marked as such. Both modes write a CSV file to benchmarks/results.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from table import write_table

from tessella.bulk import RunEvent, RunSettings, ShardFinished, run
from tessella.bulk.ledger import Ledger, Shard
from tessella.bulk.ray.driver import LOCAL, Cluster
from tessella.predictor import load

MODEL = "convmixer_256_8_ks3_p4.cifar10"  # with which the times below were measured
ROWS = 1_000_000_000
# images per second of a node, and number of nodes
CASES = {
    "2 cores": (36.0, 1000),  # measured, from photographs: end-to-end_intel-xeon-2-cores-avx512_..., crossvit_9_240
    "a GPU": (2000.0, 64),  # assumed
}
JITTER = 0.1  # assumed: standard deviation of the logarithm of a shard's time
AWAY = 120.0  # assumed: seconds until a failure is noticed and the node is replaced
FAILURES = {"none": 0.0, "1 in 1,000 h": 1 / 3.6e6, "1 in 24 h": 1 / 86_400}  # assumed: failures per node and second
SLOW = {"none": (0.0, 1.0), "2 % at half speed": (0.02, 0.5), "1 % at a tenth": (0.01, 0.1)}  # assumed
START, OVERHEAD, COMMIT = 23.0, 0.03, 0.008  # seconds, measured: "start", "there" minus "local", "commit"
SMALL, SHARDS = 16, 60  # rows per shard and number of shards that are timed
SHARD_ROWS = (1024, 4096, 16_384, 65_536)


def simulate(
    rate: float, nodes: int, rows: int, failures: float, slow: tuple[float, float], start: float, overhead: float,
    seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Simulate a run. start: seconds to start an actor. overhead: seconds per shard in addition to its images.

    Returns hours, share (fraction of the ideal rate without failures), redone (fraction of the work that was lost with
    a node), tail_minutes (from the first idle node to the end), driver (fraction of the driver's time that the ledger
    takes).
    """
    chance = random.Random(seed)
    speeds = [slow[1] if i < slow[0] * nodes else 1.0 for i in range(nodes)]
    count = -(-ROWS // rows)
    todo = iter(range(count))
    again: list[float] = []  # heap of the times at which lost shards can be started again
    fails = [chance.expovariate(failures) if failures else float("inf") for _ in range(nodes)]
    free = [(start, i) for i in range(nodes)]
    ends, lost, first_idle = 0.0, 0.0, None
    while free:
        now, node = heapq.heappop(free)
        if again and again[0] <= now:
            heapq.heappop(again)
        elif next(todo, None) is None:
            first_idle = now if first_idle is None else first_idle
            if again:
                heapq.heappush(free, (again[0], node))
            continue
        takes = overhead + rows / (rate * speeds[node]) * chance.lognormvariate(0, JITTER)
        if now + takes > fails[node]:
            lost += max(fails[node] - now, 0.0)
            back = max(fails[node], now) + AWAY + start
            fails[node] = back + chance.expovariate(failures)
            heapq.heappush(again, back - start)
            heapq.heappush(free, (back, node))
            continue
        ends = max(ends, now + takes)
        heapq.heappush(free, (now + takes, node))
    ideal = ROWS / rate / nodes
    assert first_idle is not None
    return dict(hours=ends / 3600, share=ideal / ends, redone=lost / (ideal * nodes), shards=count,
                tail_minutes=(ends - first_idle) / 60, driver=count * COMMIT / ends)  # fmt: skip


def measure() -> dict[str, tuple[float, str]]:
    """Measure the ledger and Ray on this machine, a single node with one actor: name -> (seconds, description)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commits = []
        with Ledger(folder, new=True) as ledger:
            for i in range(200):
                began = time.perf_counter()
                ledger.commit(Shard(i, f"shard-{i:08d}.parquet", "0" * 64, 1, 1, 1, {}))
                commits.append(time.perf_counter() - began)
        rng = np.random.default_rng(0)
        for i in range(SMALL * SHARDS):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
        local = _times(folder, None)
        there = _times(folder, Cluster(functools.partial(load, MODEL, device="cpu"), LOCAL))
    steady = [(times[-1] - times[0]) / (len(times) - 1) for times in (local, there)]
    return dict(
        commit=(statistics.median(commits), "to record a shard, median of 200"),
        start=(there[0] - local[0], "until the first shard: a cluster, an actor, PyTorch, the model"),
        local=(steady[0], f"a shard of {SMALL} small images without Ray, mean of {SHARDS}"),
        there=(steady[1], f"the same shard with Ray, mean of {SHARDS}"),
    )


def _times(folder: Path, cluster: Cluster | None) -> list[float]:
    """Return the seconds from the start of a run to each of its shards."""
    times: list[float] = []
    predictor = load(MODEL, device="cpu")
    began = time.perf_counter()

    def watch(event: RunEvent) -> None:
        if isinstance(event, ShardFinished):
            times.append(time.perf_counter() - began)

    out = folder / ("local" if cluster is None else "ray")
    run([f"{folder}/*.png"], out, predictor, RunSettings(shard_rows=SMALL), cluster=cluster, on_event=watch)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure Ray and the ledger on this machine")
    parser.add_argument("--beside", default="nothing", help="other load on the machine, noted in the file")
    parser.add_argument("--start", type=float, default=START, help="seconds until an actor has its first shard")
    parser.add_argument("--overhead", type=float, default=OVERHEAD, help="seconds per shard in addition to its images")
    args = parser.parse_args()
    if args.measure:
        facts = measure()
        write_table("scale-measured", [
            dict(what=name, seconds=f"{value:.4f}", note=note, beside=args.beside)
            for name, (value, note) in facts.items()
        ])  # fmt: skip
        return
    rows = []
    for (node, (rate, nodes)), size in itertools.product(CASES.items(), SHARD_ROWS):
        for failures, slow in itertools.product(FAILURES, SLOW):
            found = simulate(rate, nodes, size, FAILURES[failures], SLOW[slow], args.start, args.overhead)
            given = dict(node=node, images_per_second=rate, nodes=nodes, shard_rows=size, failures=failures, slow=slow)
            rows.append(given | {name: f"{value:.4g}" for name, value in found.items()})
    write_table("scale", rows)


if __name__ == "__main__":
    main()
