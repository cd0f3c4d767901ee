"""Kill bulk runs and builds of their index at random moments, and resume them: 30 kills in the tests, many in a soak.

`scripts/soak run --kills 300 --rows 20000 --out FILE` writes the counts. The processes are real, and SIGKILL comes at
any moment: while inputs are listed, in the middle of a shard, between a file and its entry.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tessella.bulk import RunSettings, run
from tessella.bulk.ledger import Ledger
from tessella.engine import make_plan
from tessella.predictor import Predictor
from tessella.search.index import build_index

from ..models.tiny import tiny
from ..soak import write_figures
from .runs import expected_rows, indexed

SHARD_ROWS = 32
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.bulk.bulk_kills", "tests.training.kills", "pytest"])


def make_rows(path: Path, count: int) -> Path:
    """Write a Parquet file of small images, of which one in twenty is damaged."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()
        images.append(data[: len(data) // 2] if i % 20 == 7 else data)
    pq.write_table(pa.table(dict(image=images)), path, row_group_size=256)
    return path


def tiny_predictor() -> Predictor:
    torch.set_num_threads(1)
    model = tiny("mixer")
    model.pretrained_cfg = dict(input_size=(3, 32, 32), interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3,
                                std=(0.5,) * 3, label_names=tuple("abcde"), num_classes=5)  # fmt: skip
    plan = make_plan("cpu", "float32", "eager", 16, model=model, size=(32, 32))
    return Predictor(model, name="tiny", plan=plan)


def run_tiny(data: Path, out: Path, shard_rows: int = SHARD_ROWS) -> None:
    run([str(data)], out, tiny_predictor(), RunSettings(shard_rows=shard_rows, processes=1))


def _start(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def finished(out: Path) -> int:
    """Return the number of shards in the ledger."""
    if not (out / "run.json").is_file():
        return 0
    with Ledger(out) as ledger:
        return len(ledger.finished())


def killed_and_whole(
    data: Path, folder: Path, kills: int, seed: int = 0, shard_rows: int = SHARD_ROWS
) -> dict[str, Any]:
    """Kill a run `kills` times; start again when it is complete. Every complete run must equal an uninterrupted one.

    Return counts, and the largest number of finished shards that were missing afterwards.
    """
    rng = random.Random(seed)
    uninterrupted, out = folder / "whole", folder / "cut"
    process = _start(run_tiny, data, uninterrupted, shard_rows)
    while process.is_alive() and not uninterrupted.exists():
        time.sleep(0.002)  # the fork server imports PyTorch first
    start = time.monotonic()
    process.join(600)
    assert process.exitcode == 0
    seconds = time.monotonic() - start
    expected, rows = contents(uninterrupted), pq.ParquetFile(data).metadata.num_rows
    facts = dict(kills=0, while_listing=0, while_writing=0, ends=0, byte_equal=0, lost=0)
    while True:  # until a run has ended after the last kill
        before = finished(out)
        process = _start(run_tiny, data, out, shard_rows)
        if facts["kills"] < kills:
            process.join(rng.uniform(0, seconds / 2))  # the next one resumes, so that every moment can be hit
            if process.is_alive():
                process.kill()
                process.join()
                facts["kills"] += 1
                facts["while_listing"] += not (out / "run.json").exists()
                facts["while_writing"] += any((out / "shards").glob(".*.tmp"))
                facts["lost"] = max(facts["lost"], before - finished(out))
                continue
        process.join(600)
        assert process.exitcode == 0, f"a resumed run ended with {process.exitcode}"
        facts["ends"] += 1
        assert contents(out) == expected
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in uninterrupted.iterdir())
        assert finished(out) == len(expected)
        assert json.loads((out / "summary.json").read_text())["rows"] == rows
        facts["byte_equal"] += 1
        print(json.dumps(facts), flush=True)
        if facts["kills"] >= kills:
            return facts
        shutil.rmtree(out)


def killed_indexes(out: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Build the index of a run repeatedly and kill the builders; every complete index must match the shards."""
    rng = random.Random(seed)
    expected = expected_rows(out)
    facts = dict(kills=0, ends=0, equal=0)
    seconds = 0.0  # of the last complete build from nothing; the first also waits for imports
    while True:
        start, is_new = time.monotonic(), not (out / "index").exists()
        process = _start(build_index, out)
        if seconds and facts["kills"] < kills:
            process.join(rng.uniform(0, seconds))
            if process.is_alive():
                process.kill()
                process.join()
                facts["kills"] += 1
                if rng.random() < 0.7:  # another one resumes what this one has left, and may be killed, too
                    continue
                is_new, process = False, _start(build_index, out)
        process.join(600)
        assert process.exitcode == 0, f"a builder ended with {process.exitcode}"
        seconds = time.monotonic() - start if is_new else seconds
        facts["ends"] += 1
        assert indexed(out) == expected
        facts["equal"] += 1
        print(json.dumps(facts), flush=True)
        if facts["kills"] >= kills:
            return facts
        shutil.rmtree(out / "index")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak run", description=killed_and_whole.__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = make_rows(Path(folder) / "rows.parquet", args.rows)
        size = max(SHARD_ROWS, args.rows // 80 // 16 * 16)  # whole batches
        facts = killed_and_whole(data, Path(folder), args.kills, args.seed, size)
        facts["index"] = killed_indexes(Path(folder) / "whole", args.kills, args.seed)
    facts |= dict(rows=args.rows, shard_rows=size, seconds=round(time.monotonic() - start))
    print(json.dumps(facts))
    write_figures(args.out, "SIGKILL at random moments of a bulk run; D-1", facts, seed=args.seed)
