"""Kill an actor, the process that uses Ray, the driver or a node of a run on two Ray nodes at random moments.

`scripts/soak cluster --kills 50 --out FILE` writes what happened; the tests kill each of them once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from tessella.bulk.ledger import Ledger

from ..soak import write_figures
from .bulk_kills import contents, make_rows
from .cluster_runs import ROWS, WAIT, finished, run_locally, running, start_driver, start_nodes, wait_until

TARGETS = dict(actor=8, scheduler=4, driver=4, node=1)  # how often each is chosen


def kill(target: str, driver: Popen[str], nodes: dict[str, Any], rng: random.Random) -> bool:
    """Kill a process; return False if there is none of this kind."""
    if target == "driver":
        driver.kill()
        return True
    if target == "node":
        pids = {nodes.pop("raylet")} if "raylet" in nodes else set()
    else:
        pids = running("MapWorker" if target == "actor" else "tessella.bulk.ray.scheduler")
    if pids:
        os.kill(rng.choice(sorted(pids)), signal.SIGKILL)
    return bool(pids)


def trials(data: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` processes; start again when a run is complete. Every complete run must equal a local one."""
    rng = random.Random(seed)
    local_run, out = folder / "whole", folder / "cut"
    run_locally(data, local_run)
    expected = contents(local_run)
    with Ledger(local_run) as ledger:
        entries = ledger.finished()
    facts: dict[str, Any] = dict(kills=dict.fromkeys(TARGETS, 0), ends=0, byte_equal=0)
    cluster, nodes = start_nodes()
    while sum(facts["kills"].values()) < kills or out.exists():
        before = len(finished(out))
        driver = start_driver(data, out, nodes["address"], RAY_AUTH_TOKEN=nodes["token"])
        expecting = {0}
        while sum(facts["kills"].values()) < kills:
            try:
                driver.wait(rng.uniform(4, 14))
                break
            except TimeoutExpired:
                (target,) = rng.choices(list(TARGETS), list(TARGETS.values()))
            if not kill(target, driver, nodes, rng):
                continue
            facts["kills"][target] += 1
            print(json.dumps(dict(target=target, finished=len(finished(out)))), flush=True)
            if target in ("driver", "scheduler"):
                expecting = {-signal.SIGKILL if target == "driver" else 8}
                break
        if len(finished(out)) == len(entries):
            expecting.add(0)  # it may have been at its end
        output, _ = driver.communicate(timeout=3 * WAIT)
        assert driver.returncode in expecting, (driver.returncode, output)
        wait_until(lambda: not running("MapWorker") | running("tessella.bulk.ray.scheduler"))
        assert len(finished(out)) >= before  # none lost
        if driver.returncode == 0:
            facts["ends"] += 1
            assert contents(out) == expected
            with Ledger(out) as ledger:
                assert ledger.finished() == entries
            facts["byte_equal"] += 1
            print(json.dumps(facts), flush=True)
            shutil.rmtree(out)
        if "raylet" not in nodes:
            cluster.communicate(timeout=WAIT)
            cluster, nodes = start_nodes()
    cluster.communicate(timeout=WAIT)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak cluster", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        data = make_rows(Path(name) / "rows.parquet", ROWS)
        facts = trials(data, Path(name), args.kills, args.seed)
    facts |= dict(rows=ROWS, nodes=2, seconds=round(time.monotonic() - start))
    what = "SIGKILL at random moments of a run on two nodes of Ray on one machine; D-8"
    write_figures(args.out, what, facts, seed=args.seed)
