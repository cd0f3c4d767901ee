"""Compare runs that are killed at random and resumed with an uninterrupted run: a few kills in tests, many in a soak.

`scripts/soak train --kills 40 --out FILE` writes the results. Every run is a process of its own, forked from a server
that has imported PyTorch, and SIGKILL comes at any time, also while a checkpoint is
written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # an optimizer would import it in each process, for seconds

from tessella.training import checkpoint, results
from tessella.training.config import TrainConfig
from tessella.training.loop import train
from tessella.training.setup import DataSettings

from ..soak import write_figures
from .small_runs import FAMILIES, make_images, small

INTERVAL = 0.1  # seconds between checkpoints: several steps
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.bulk.bulk_kills", "tests.training.kills", "pytest"])


def last(out: Path) -> checkpoint.TrainingCheckpoint:
    return checkpoint.read(out, checkpoint.checkpoint_ids(out)[-1])


def assert_same(a: checkpoint.TrainingCheckpoint, b: checkpoint.TrainingCheckpoint) -> None:
    assert a.checkpoint_id == b.checkpoint_id
    assert a.tensors.keys() == b.tensors.keys()
    for part, tensors in a.tensors.items():
        assert tensors.keys() == b.tensors[part].keys()
        for name, value in tensors.items():
            assert torch.equal(value, b.tensors[part][name]), (part, name)


def config_of(family: str) -> TrainConfig:
    """Return a config of 36 steps that uses every feature with a state of its own."""
    return small(
        family,
        probe=True,
        freeze_batch_norm_stats=True,
        epochs=12,
        ema_decay=0.9,
        drop_path_rate=0.1,
        mixing=dict(mixup=0.2),
        checkpoint_minutes=INTERVAL / 60,
        augmentation=dict(auto_augment="rand-m9-inc1"),
        model_args=FAMILIES[family] | dict(drop_rate=0.1),
    )


def distillation_config(family: str, teacher: Path) -> TrainConfig:
    """Return a config of 36 steps that learns from the teacher's file, on labeled and unlabeled images."""
    return dataclasses.replace(
        config_of(family),
        probe=False,
        epochs=7,
        teacher=str(teacher),
        distill_target="both",
        teacher_background=1,  # leaves two classes, as the data has
        distill_center_images=20,
        distill_weight=0.7,
        unlabelled_fraction=0.4,
    )


def _run(data: Path, out: Path, family: str) -> None:
    """Run to the end. A teacher and unlabeled images beside the data are used."""
    torch.set_num_threads(1)
    teacher, unlabelled = data.parent / "teacher.xml", data.parent / "unlabelled"
    distills = teacher.exists()
    config = distillation_config(family, teacher) if distills else config_of(family)
    settings = DataSettings(data=data, unlabelled=(unlabelled,) if distills else ())
    with mock.patch.object(results, "write_report"):  # its figures take most of the time of such a small run
        train(settings, out, config, workers=0)


def _start(data: Path, out: Path, family: str) -> BaseProcess:
    process = _CONTEXT.Process(target=_run, args=(data, out, family))
    process.start()
    return process


def kill_and_resume(data: Path, folder: Path, family: str, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill runs `kills` times and resume them; every run that ends must equal the uninterrupted one, bit by bit.

    After the end of a run, another one is started. Return counts, and for each kill the seconds of lost work, that is,
    the time since the last complete checkpoint.
    """
    rng = random.Random(f"{family} {seed}")
    uninterrupted, resumed = folder / "uninterrupted", folder / "resumed"
    process = _start(data, uninterrupted, family)
    while not checkpoint.checkpoint_ids(uninterrupted):
        assert process.is_alive()
        time.sleep(0.002)
    start = time.monotonic()
    process.join(300)
    assert process.exitcode == 0
    duration = time.monotonic() - start
    weights = (uninterrupted / "model.safetensors").read_bytes()
    facts: dict[str, Any] = dict(
        family=family, kills=0, while_saving=0, resumed=0, ends=0, bit_equal=0, lost_seconds=[]
    )
    while facts["kills"] < kills or facts["ends"] == 0:
        before = checkpoint.checkpoint_ids(resumed)[-1:]
        process = _start(data, resumed, family)
        if facts["kills"] < kills:
            deadline = time.monotonic() + 120
            while (
                process.is_alive() and checkpoint.checkpoint_ids(resumed)[-1:] == before and time.monotonic() < deadline
            ):
                time.sleep(0.002)  # until it has resumed
            facts["resumed"] += bool(before) and checkpoint.checkpoint_ids(resumed)[-1:] != before
            process.join(rng.uniform(0, duration))
            if process.is_alive():
                process.kill()
                killed_at = time.time()
                facts["kills"] += 1
                process.join()
                newest = checkpoint.checkpoint_folder(resumed, checkpoint.checkpoint_ids(resumed)[-1])
                facts["while_saving"] += any((resumed / "checkpoints").glob(".*.tmp"))
                facts["lost_seconds"].append(killed_at - (newest / checkpoint.MANIFEST).stat().st_mtime)
                continue
        process.join(300)
        assert process.exitcode == 0, f"{family}: a resumed run ended with {process.exitcode}"
        facts["ends"] += 1
        assert_same(last(uninterrupted), last(resumed))
        assert (resumed / "model.safetensors").read_bytes() == weights
        facts["bit_equal"] += 1
        if facts["kills"] < kills:
            shutil.rmtree(resumed)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak train", description=kill_and_resume.__doc__)
    parser.add_argument("--kills", type=int, default=40, help="kills per model family; 40 take about an hour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_images(Path(folder) / "data")
        for family in FAMILIES:
            start = time.monotonic()
            facts = kill_and_resume(data, Path(folder) / family, family, args.kills, args.seed)
            lost = sorted(facts.pop("lost_seconds"))
            facts |= dict(lost_seconds_median=lost[len(lost) // 2], lost_seconds_most=lost[-1])
            rows.append(facts | dict(seconds=round(time.monotonic() - start, 1)))
            print(json.dumps(rows[-1]), flush=True)
    what = "SIGKILL at random moments of training; T-1"
    write_figures(args.out, what, dict(rows=rows), checkpoint_interval_seconds=INTERVAL, seed=args.seed)
