"""`tessella serve --prove` keeps its promises on a sound server, and finds every planted fault."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from tessella.serve import ServeSettings, prove
from tessella.serve.prove import (
    Check,
    Promise,
    check_answers,
    check_drain,
    check_leak,
    check_lost_process,
    check_overload,
    check_poison,
    open_trial,
)

MODEL = "convmixer_384_8_ks5_p8.photographs"


def promises(fault: str, *checks: Check, models: tuple[str, ...] = (MODEL,), **options: Any) -> dict[str, Promise]:
    """Run checks against a server with a planted fault. options: more settings."""
    command = [sys.executable, "-m", "tests.serve.faulty_server", fault]
    found: dict[str, Promise] = {}
    settings = ServeSettings(models=models, drain_delay=3.0, **options)  # long enough for a busy machine
    with open_trial(settings, seconds=1.0, command=command) as trial:
        for check in (check_answers, *checks):
            found |= {promise.name: promise for promise in asyncio.run(check(trial))}
    return found


def test_a_sound_server_keeps_what_does_not_depend_on_the_speed_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prove, "RECOVERY_SECONDS", 60.0)
    checks = (check_poison, check_leak, check_lost_process, check_overload, check_drain)
    found = promises("none", *checks, deadline=60.0)
    for name in ("answers", "broken images", "memory", "killed process", "recovery from a killed process",
                 "memory in overload", "recovery from overload"):  # fmt: skip
        assert found[name].kept, found[name]
    assert "0 wrong, 0 swapped, 0 lost" in found["SIGTERM under load"].measured
    assert "exit status 0" in found["SIGTERM under load"].measured
    assert all("0 wrong, 0 swapped" in found[f"overload {factor}x"].measured for factor in (2, 5, 10))


def test_without_a_model_the_answers_are_those_of_the_default_model() -> None:
    assert promises("none", models=())["answers"].kept


@pytest.mark.parametrize("fault", ["swapped", "wrong", "failing"])
def test_a_damaged_answer_is_found(fault: str) -> None:
    promise = promises(fault)["answers"]
    assert promise.kept is False
    assert {"swapped": ", 0 swapped", "wrong": " 0 wrong", "failing": ", 0 refused"}[fault] not in promise.measured


def test_a_leak_is_found() -> None:
    assert promises("leak", check_leak)["memory"].kept is False


def test_a_lost_process_that_is_not_replaced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "RECOVERY_SECONDS", 2.0)
    found = promises("dead_worker", check_lost_process, decode_processes=1, deadline=1.0)
    assert found["recovery from a killed process"].kept is False
