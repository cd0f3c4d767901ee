"""Concurrent batches: results are in order, few batches are in memory, and PyTorch's number of threads is restored."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.data.spec import InputSpec
from tessella.engine import make_plan, open_engine
from tessella.engine.base import Engine, TensorOutputs
from tessella.engine.plan import streams_for

from ..models.tiny import tiny

PLAN = dataclasses.replace(make_plan("cpu", "float32", "rewritten", 4), threads=3, streams=3)


class Slow(Engine):
    """An engine that returns its input after a random time."""

    def __init__(self) -> None:
        super().__init__(None, PLAN, (1, 1), InputSpec(height=1, width=1))
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.sizes: list[int] = []

    def run(self, x: Tensor) -> TensorOutputs:
        raise NotImplementedError

    def __call__(self, images: Any) -> Any:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.sizes.append(len(images))
        time.sleep(random.uniform(0.001, 0.02))
        with self.lock:
            self.running -= 1
        if images[0] == 99:
            raise RuntimeError("broken batch")
        return images, images + 1


def batches(count: int, size: int = 2) -> Iterator[np.ndarray]:
    return (np.arange(size) + size * i for i in range(count))


@pytest.mark.parametrize(
    ("threads", "streams"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 3), (7, 3), (8, 4), (64, 4)]
)
def test_streams_leave_few_threads_idle(threads: int, streams: int) -> None:
    assert streams_for(threads) == streams


def test_results_are_in_order_and_streams_run_concurrently() -> None:
    engine = Slow()
    actual = [part[0].tolist() for part in engine.imap(batches(40))]
    assert actual == [[2 * i, 2 * i + 1] for i in range(40)]
    assert engine.most == 3


def test_at_most_one_batch_more_than_streams_is_in_memory() -> None:
    drawn = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal drawn
        for batch in batches(1000):
            drawn += 1
            yield batch

    results = Slow().imap(counted())
    for number in range(1, 5):
        next(results)
        assert drawn <= number + PLAN.streams
    results.close()  # type: ignore[attr-defined]
    assert drawn < 10


def test_an_error_of_a_batch_is_raised_at_its_position() -> None:
    results = Slow().imap([np.array([1]), np.array([99]), np.array([3])])
    assert next(results)[0].tolist() == [1]
    with pytest.raises(RuntimeError, match="broken batch"):
        next(results)


def test_an_error_of_the_iterable_is_raised() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from batches(3)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(Slow().imap(failing()))


def test_a_single_batch_is_split_and_its_outputs_are_joined() -> None:
    engine = Slow()
    logits, embedding = next(engine.imap([np.arange(8, dtype=np.uint8)]))
    assert logits.tolist() == list(range(8))
    assert embedding.tolist() == list(range(1, 9))
    assert sorted(engine.sizes) == [2, 3, 3]
    engine.sizes.clear()
    assert next(engine.imap([np.arange(1, dtype=np.uint8)]))[0].tolist() == [0]
    assert engine.sizes == [1]
    assert list(engine.imap([])) == []


def test_pytorchs_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    plan = dataclasses.replace(make_plan("cpu", "float32", "rewritten", 2), threads=2, streams=2)
    engine = open_engine(tiny("mixer"), plan, (32, 32))
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    unsplit = engine.run(x)
    parts = list(engine.imap(x.split(2)))
    for actual, expected in zip(zip(*parts, strict=True), unsplit, strict=True):
        torch.testing.assert_close(torch.cat(actual), expected)
    assert torch.get_num_threads() == before
    first, second = (engine.imap(x.split(2)) for _ in range(2))  # two at the same time, the second one finishes first
    next(first)
    at_work = threading.Thread(target=lambda: list(second))
    at_work.start()
    at_work.join()
    list(first)
    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert elsewhere == [before]


FIRST = """
import os, sys, threading
import numpy as np
from tessella.engine.openvino import core
import openvino as ov
import openvino.opset13 as ops

made = core()
x = ops.parameter([-1, 3], np.float32)
compiled = made.compile_model(ov.Model([ops.relu(x)], [x]), "CPU")
sys.setswitchinterval(1e-6)
gate = threading.Barrier(4)

def first():
    request = compiled.create_infer_request()
    gate.wait()
    request.infer([np.zeros((2, 3), np.float32)], share_inputs=True)

threads = [threading.Thread(target=first) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("all done")
"""


def test_the_first_passes_of_openvino_may_be_concurrent() -> None:
    """OpenVINO's bindings look up NumPy on first use; with several threads, three of four processes deadlocked."""
    pytest.importorskip("openvino")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=60)
        assert done.stdout == "all done\n", done.stderr[-2000:]
