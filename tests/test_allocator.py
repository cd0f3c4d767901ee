"""Freed memory is kept while a model is trained, and returned to the system afterwards."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tessella import allocator
from tessella.allocator import FreedMemory, return_freed_memory

from .training.small_runs import make_images

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")

PROLOGUE = """
import json, resource, sys
import torch
from tessella import allocator
from tessella.allocator import FreedMemory

allocator.available_memory = lambda: 60  # of 100
allocator.total_memory = lambda: 100

def faults():
    "Return how many pages are cleared, on average, for a block of 80 MB that is used and freed 20 times."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(20_000_000)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20

def resident():
    "Return the megabytes of memory that the process has."
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

found = {"before": faults()}
"""
BLOCK = """
with FreedMemory() as outer:
    found["first step"] = faults()
    outer.adjust()
    with FreedMemory() as inner:
        inner.adjust()
        found["inner"] = faults()
    found["inside"] = faults()
    found["MB inside"] = resident()
found["MB after"] = resident()
print(json.dumps(found))
"""
TRAINING = """
from tests.training.small_runs import small
from tessella.training.events import StepEvent
from tessella.training.loop import train

def measure(event):
    if isinstance(event, StepEvent):
        found["training"] = faults()
        found["MB inside"] = resident()

train(sys.argv[1], sys.argv[2], small(epochs=1), workers=0, on_event=measure)
found["MB after"] = resident()
print(json.dumps(found))
"""
CLEARED, KEPT = 10_000, 9_000  # at least, at most; 80 MB are 20,000 pages of 4 KiB, some of which are used first


def measure(code: str, *args: str, **environment: str) -> dict[str, float]:
    """Run code in a new process and return what it found."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROLOGUE + code, *args]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_glibc
def test_freed_memory_is_kept_from_the_first_step_to_the_end() -> None:
    found = measure(BLOCK)
    assert min(found["before"], found["first step"]) > CLEARED
    assert max(found["inner"], found["inside"]) < KEPT
    assert found["MB after"] < found["MB inside"] - 60


@needs_glibc
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_an_allocator_that_the_environment_configures_is_left_alone(environment: dict[str, str]) -> None:
    assert measure(BLOCK, **environment)["inside"] > CLEARED


@needs_glibc
def test_a_training_keeps_the_memory_of_its_steps(tmp_path: Path) -> None:
    found = measure(TRAINING, str(make_images(tmp_path / "data")), str(tmp_path / "run"))
    assert found["training"] < KEPT < CLEARED < found["before"]
    assert found["MB after"] < found["MB inside"] - 60


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, int], ...]]:
    """Return the options that are given to the allocator, on a machine with 60 of 100 bytes available."""
    given: list[tuple[tuple[int, int], ...]] = []
    monkeypatch.setattr(allocator, "_configure", lambda library, options: given.append(options))
    monkeypatch.setattr(allocator, "_glibc", mock.MagicMock())
    monkeypatch.setattr(allocator, "_is_configured", lambda: False)
    monkeypatch.setattr(allocator, "available_memory", lambda: 60)
    monkeypatch.setattr(allocator, "total_memory", lambda: 100)
    return given


def test_memory_is_returned_for_good_if_the_machine_has_little_left(
    calls: list[tuple[tuple[int, int], ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FreedMemory() as memory:
        for available, expected in (
            (49, []),
            (50, [allocator._KEEP]),
            (26, [allocator._KEEP]),
            (24, [allocator._KEEP, allocator._USUAL]),
            (90, [allocator._KEEP, allocator._USUAL]),
        ):
            monkeypatch.setattr(allocator, "available_memory", mock.Mock(return_value=available))
            memory.adjust()
            assert calls == expected
    assert calls == [allocator._KEEP, allocator._USUAL]


def test_the_last_of_several_trainings_restores_the_allocator(calls: list[tuple[tuple[int, int], ...]]) -> None:
    first, second = FreedMemory(), FreedMemory()
    for memory in (first, second, first):
        memory.adjust()
    with first:
        pass
    assert calls == [allocator._KEEP]
    with second:
        pass
    assert calls == [allocator._KEEP, allocator._USUAL]


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without glibc, or if the system does not say how much memory there is, nothing is changed."""
    monkeypatch.setattr(allocator, "_configure", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(allocator, "available_memory", lambda: 0)
    monkeypatch.setattr(allocator, "total_memory", lambda: 0)
    with FreedMemory() as memory:
        memory.adjust()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(allocator, "available_memory", lambda: 60)
    monkeypatch.setattr(allocator, "total_memory", lambda: 100)
    with FreedMemory() as memory:
        memory.adjust()
    return_freed_memory()
