"""Training in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from tessella.training.config import TrainConfig
from tessella.training.distributed import DistributedContext
from tessella.training.loop import TrainingRun

from .small_runs import epochs_of, run, small


def train_two_processes(data: Path, out: Path, config: TrainConfig, *more: str) -> list[float]:
    """Train in two processes under torchrun; return the training losses of all epochs, then the validation losses."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps(config.as_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = ["train", str(data), "--config", str(file), "--out", str(out), "--workers", "0", *more]
    command = [*torchrun, "tessella", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"), timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in rows] == list(range(config.epochs))  # only one process writes
    return [row["loss"] for row in rows] + [row["val_loss"] for row in rows]


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("more", [(), ("--shard",)])
def test_two_processes_train_as_one(data: Path, tmp_path: Path, more: tuple[str, ...], optimizer: str) -> None:
    config = small(probe=True, ema_decay=0.9, max_grad_norm=1.0, repeats=2, optimizer=optimizer)
    events = run(data, tmp_path / "one_process", config)
    epochs = epochs_of(events)
    expected = [epoch.loss for epoch in epochs] + [epoch.val_loss for epoch in epochs]
    np.testing.assert_allclose(
        train_two_processes(data, tmp_path / "two_processes", config, *more), expected, rtol=1e-4
    )
    one, two = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one_process", "two_processes")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_no_process_waits_for_the_results(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(DistributedContext, "shutdown", lambda context: calls.append("shutdown"))
    monkeypatch.setattr(TrainingRun, "finish", lambda run, command: calls.append("finish"))
    run(data, tmp_path / "run", small(epochs=1))
    assert calls == ["shutdown", "finish"]


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    context = DistributedContext.init("cpu")
    assert (context.rank, context.world_size, context.device, context.owns_group) == (0, 1, torch.device("cpu"), False)
    assert context.all_reduce_sum(1, 2.5) == [1, 2.5]
    context.shutdown()
    assert not dist.is_initialized()
