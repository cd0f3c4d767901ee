"""Long trials of a real server: overload, thousands of known answers, SIGTERM under load, killed processes, bad input.

`scripts/soak serve --answers 1000000 --seconds 600 --drains 100 --kills 200 --minutes 60 --out FILE` writes
the figures; the tests run short versions.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessella.serve import ServeSettings
from tessella.serve.load import Request, TimedReply, closed_loop, percentile
from tessella.serve.prove import (
    CLIENTS,
    AnswerCheck,
    Promise,
    Trial,
    check_answers,
    check_drain,
    check_lost_process,
    check_overload,
    open_trial,
)

from ..soak import write_figures

BAD_SHARE = 0.05
BAD = (b"", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(200), b"not an image")


async def many_answers(trial: Trial, count: int) -> dict[str, Any]:
    """Send known images, in random order, from many clients; count answers that are wrong, swapped or missing."""
    rng = random.Random(0)
    answers = AnswerCheck(trial.expected)
    requests = (trial.request(rng.randrange(len(trial.images))) for _ in range(count))
    result = await closed_loop(trial.address, requests, CLIENTS, judge=answers.judge)
    missing = count - result.count(200)
    assert answers.wrong == answers.swapped == missing == 0, f"{answers}, {missing} missing"
    return dict(answers=answers.right, wrong=answers.wrong, swapped=answers.swapped, missing=missing)


async def bad_input(trial: Trial, seconds: float) -> dict[str, Any]:
    """Send known images and 5 % malformed ones; the server's memory, threads and descriptors have to stay flat."""
    rng = random.Random(0)
    answers = AnswerCheck(trial.expected)
    bad: list[TimedReply] = []

    def requests(end: float) -> Iterator[Request]:
        for position in itertools.count():
            if time.perf_counter() >= end:
                return
            if rng.random() < BAD_SHARE:
                yield trial.request(position, rng.choice(BAD) or b" ")._replace(key=-1)
            else:
                yield trial.request(position)

    def judge(reply: TimedReply) -> None:
        if reply.key < 0:
            bad.append(reply._replace(body=b""))
        else:
            answers.judge(reply)

    sizes = []
    for _ in range(11):  # the first tenth more warms up
        result = await closed_loop(trial.address, requests(time.perf_counter() + seconds / 10), CLIENTS, judge=judge)
        lost = result.count(0, -1, 500)
        assert not lost, f"{lost} requests failed"
        sizes.append(usage(trial.server.pid))
    assert all(reply.status in (415, 422) for reply in bad)
    assert answers.is_perfect, str(answers)
    first, last = sizes[1], sizes[-1]
    facts = {f"{name}_growth": last[name] - first[name] for name in first}
    assert facts["threads_growth"] <= 2, facts
    assert facts["descriptors_growth"] <= 2 * CLIENTS, facts
    assert facts["memory_mb_growth"] <= 100, facts
    return dict(seconds=seconds, answers=answers.right, bad=len(bad), **facts, first=first, last=last)


def usage(pid: int) -> dict[str, int]:
    """Return memory in MB, threads and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    values = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if ":" in line and line.split()[1:]}
    return dict(
        memory_mb=int(values["VmRSS"]) // 1024,
        threads=int(values["Threads"]),
        descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    )


def kept(promises: list[Promise]) -> list[Promise]:
    """Return the promises. Raises AssertionError if one was not kept."""
    broken = [promise for promise in promises if promise.kept is False]
    assert not broken, broken
    return promises


def overload(settings: ServeSettings, seconds: float) -> dict[str, str]:
    """Send several times the capacity for `seconds` each; return what was measured, by promise, also if broken."""
    with open_trial(settings, seconds=seconds) as trial:
        promises = [*asyncio.run(check_answers(trial)), *asyncio.run(check_overload(trial))]
    return {promise.name: f"{'' if promise.kept else 'NOT KEPT: '}{promise.measured}" for promise in promises}


def drains(settings: ServeSettings, count: int) -> dict[str, Any]:
    """Stop servers under load; every one has to answer what it has accepted, and to end with status 0."""
    for _ in range(count):
        with open_trial(settings, seconds=2.0) as trial:
            asyncio.run(check_answers(trial))
            (promise,) = kept(asyncio.run(check_drain(trial)))
    return dict(drains=count, last=promise.measured)


def kills(settings: ServeSettings, count: int) -> dict[str, Any]:
    """Kill decoding processes of one server under load; nothing may be lost, and it has to recover every time."""
    recoveries = []
    with open_trial(settings) as trial:
        for _ in range(count):
            lost, recovery = kept(asyncio.run(check_lost_process(trial)))
            recoveries.append(float(recovery.measured.split()[0]))
    return dict(kills=count, last=lost.measured, slowest_recovery_s=percentile(sorted(recoveries), 1.0))


def main() -> None:
    """Run the trials that the options ask for, and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convmixer_384_8_ks5_p8.photographs")
    parser.add_argument("--answers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="of overload with each factor")
    parser.add_argument("--drains", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="of load with malformed input")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = ServeSettings(models=(options.model,), drain_delay=0.5)
    facts: dict[str, Any] = {}
    broken: list[str] = []

    def add(name: str, value: dict[str, Any]) -> None:
        facts[name] = value
        print(json.dumps({name: value}), flush=True)
        write_figures(options.out, "server trials", facts, model=options.model, clients=CLIENTS)

    if options.answers:
        with open_trial(settings) as trial:
            add("answers", asyncio.run(many_answers(trial, options.answers)))
    if options.seconds:
        add("overload", overload(settings, options.seconds))
        broken += [name for name, measured in facts["overload"].items() if measured.startswith("NOT KEPT")]
    if options.drains:
        add("drains", drains(settings, options.drains))
    if options.kills:
        add("kills", kills(settings, options.kills))
    if options.minutes:
        with open_trial(settings) as trial:
            add("bad_input", asyncio.run(bad_input(trial, 60 * options.minutes)))
    if broken:
        raise SystemExit(f"not kept: {', '.join(broken)}")


if __name__ == "__main__":
    main()
