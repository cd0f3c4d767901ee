"""`tessella serve --prove`: test a server on this machine before it goes live, and measure what it promises.

A server with the given settings is started as a separate process on a free port. It gets images whose answers this
process computes with the library, more requests than it can handle, broken images among good ones, a killed decoding
process and a SIGTERM under load.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..data.turbo import encode_jpeg
from ..machine import available_cores
from ..results import FloatArray
from ..weights.catalogue import default_model
from .load import Address, LoadResult, Request, TimedReply, closed_loop, make_request, open_loop, percentile
from .loops import run
from .models import open_predictor
from .process import COMMAND, ServerProcess, start_server
from .settings import ServeSettings

IMAGES = 64  # different images, each with a known answer
CLIENTS = 16  # concurrent clients that measure the capacity
SIDE = 256  # pixels per side of the images
TOLERANCE = 1e-3  # of an embedding's values; batches of other sizes change the last bits
FACTORS = (2, 5, 10)  # of the capacity
MIN_GOODPUT = 0.9  # of the capacity, during overload
MAX_REJECT_SECONDS = 0.05  # 99 of 100 refusals are sent in this time
MAX_GROWTH_MB = 200.0  # of memory, during overload
MAX_LEAK_MB = 32.0  # growth between the halves of the steady load, after warming up
RECOVERY_SECONDS = 10.0  # after an overload or the loss of a process
BROKEN = b"\x89PNG\r\n\x1a\n" + bytes(100)


@dataclass(frozen=True)
class Promise:
    """One promise of the server.

    kept: None if it could not be checked on this system. expected, measured: as shown to the user.
    """

    name: str
    expected: str
    measured: str
    kept: bool | None


@dataclass
class AnswerCheck:
    """Compare answers with those of the library, by the key of a request: its image.

    expected: embeddings (N,D) of the images. wrong: answers that differ from those of the library. swapped: those that
    are the answer to another image.
    """

    expected: FloatArray
    right: int = 0
    wrong: int = 0
    swapped: int = 0

    def judge(self, reply: TimedReply) -> None:
        """Check the embedding of an answer with status 200; other answers are counted by their status elsewhere."""
        if reply.status != 200:
            return
        try:
            vector_D = np.array(json.loads(reply.body)["results"][0]["embedding"], np.float32)
            errors_N = np.abs(self.expected - vector_D).max(1)
        except (ValueError, KeyError, IndexError, TypeError):
            self.wrong += 1
            return
        if errors_N[reply.key] <= TOLERANCE:
            self.right += 1
        elif errors_N.min() <= TOLERANCE:
            self.swapped += 1
        else:
            self.wrong += 1

    def __str__(self) -> str:
        return f"{self.right:,} right, {self.wrong:,} wrong, {self.swapped:,} swapped"

    @property
    def is_perfect(self) -> bool:
        """True if there were answers, and all were right."""
        return self.right > 0 and not self.wrong and not self.swapped


@dataclass
class Trial:
    """What all checks share: the server, images with known answers, and the capacity.

    expected: embeddings (N,D) of the images. seconds: length of each phase. capacity: images per second, and
    client_cores: how many CPU cores the clients kept busy then; `check_answers`, the first check, measures both.
    """

    server: ServerProcess
    images: Sequence[bytes]
    expected: FloatArray
    settings: ServeSettings
    seconds: float
    path: str
    headers: tuple[str, ...]
    capacity: float = 0.0
    client_cores: float = 0.0

    @property
    def address(self) -> Address:
        """Where the server listens."""
        return self.server.address

    def request(self, position: int, body: bytes | None = None) -> Request:
        """Return the request for an image, numbered from 0 and repeated after the last; body: send this instead."""
        key = position % len(self.images)
        return make_request(
            key, self.address, self.path, body or self.images[key], content_type="image/jpeg", headers=self.headers
        )

    def requests(self) -> Iterator[Request]:
        """Yield requests without end."""
        return map(self.request, itertools.count())


Check: TypeAlias = Callable[[Trial], Coroutine[None, None, list[Promise]]]


def prove(
    settings: ServeSettings,
    *,
    seconds: float = 5.0,
    on_promise: Callable[[Promise], None] = lambda promise: None,
    command: Sequence[str] = COMMAND,
) -> list[Promise]:
    """Start a server with these settings on a free port, and return what was measured for each of its promises.

    seconds: length of each phase of load. on_promise: called as soon as a promise was measured. command: starts the
    server, as in `start_server`. Raises ServeError `not_ready` if the server does not become ready, and the errors of
    `tessella.load`.
    """
    promises = []
    with open_trial(settings, seconds=seconds, command=command) as trial:
        for check in CHECKS:
            for promise in run(check(trial)):
                promises.append(promise)
                on_promise(promise)
    return promises


@contextlib.contextmanager
def open_trial(settings: ServeSettings, *, seconds: float = 5.0, command: Sequence[str] = COMMAND) -> Iterator[Trial]:
    """Start a server for checks, and stop it at the end; the arguments and errors are those of `prove`."""
    images = [encode_jpeg(pixels) for pixels in sample_images(InputSpec(height=SIDE, width=SIDE), IMAGES)]
    with start_server(settings, command) as server:
        # the path below uses the first model, or the default model of embeddings
        model = open_predictor(settings.models[0] if settings.models else default_model("embed"), settings)
        expected = model.embed(images)
        server.wait_until_ready()
        path = "/v1/predict" if model.num_classes else "/v1/embed"
        authorization = [] if settings.token is None else [f"Authorization: Bearer {settings.token}"]
        yield Trial(server, images, expected, settings, seconds, path, ("Accept: */*", *authorization))


async def check_answers(trial: Trial) -> list[Promise]:
    """Send every image several times from many clients; this measures the capacity, too."""
    await closed_loop(trial.address, itertools.islice(trial.requests(), CLIENTS * 4), CLIENTS)  # warm up
    answers = AnswerCheck(trial.expected)
    requests = _for_seconds(trial, trial.seconds, least=len(trial.images))
    result = await closed_loop(trial.address, requests, CLIENTS, judge=answers.judge)
    trial.capacity, trial.client_cores = result.count(200) / result.duration, result.cores
    refused = len(result.replies) - result.count(200)
    latencies = result.latencies(200)
    speed = f"{trial.capacity:,.1f} images/s, p50 {_ms(latencies, 0.5)}, p99 {_ms(latencies, 0.99)}"
    return [
        Promise("answers", "equal to those of the library", f"{answers}, {refused} refused", _kept(answers, refused)),
        Promise("capacity", f"measured with {CLIENTS} clients", speed, trial.capacity > 0),
    ]


def _for_seconds(trial: Trial, seconds: float, least: int) -> Iterator[Request]:
    """Yield requests for some seconds, and at least this many."""
    end = time.perf_counter() + seconds
    for position, request in enumerate(trial.requests()):
        if position >= least and time.perf_counter() >= end:
            return
        yield request


def _kept(answers: AnswerCheck, refused: int = 0) -> bool:
    return answers.is_perfect and not refused


async def check_overload(trial: Trial) -> list[Promise]:
    """Send several times as many requests as the server can handle."""
    promises = []
    before = trial.server.memory()
    for factor in FACTORS:
        answers = AnswerCheck(trial.expected)
        result = await open_loop(
            trial.address, trial.requests(), factor * trial.capacity, trial.seconds, judge=answers.judge
        )
        promises.append(_judge_overload(trial, factor, result, answers))
    if before is not None and (after := trial.server.memory()) is not None:
        growth = (after - before) / 1e6
        promises.append(
            Promise("memory in overload", f"<= +{MAX_GROWTH_MB:g} MB", f"{growth:+.0f} MB", growth <= MAX_GROWTH_MB)
        )
    else:
        promises.append(Promise("memory in overload", f"<= +{MAX_GROWTH_MB:g} MB", "not known on this system", None))
    return [*promises, await check_recovery(trial, "recovery from overload")]


def _judge_overload(trial: Trial, factor: int, result: LoadResult, answers: AnswerCheck) -> Promise:
    goodput = result.count(200) / result.duration / trial.capacity
    # the load generator runs on the same machine: what it needs for the additional requests is not there for the server
    cores = max(0.1, available_cores() - trial.client_cores)
    left = 1 - min(0.5, max(0.0, result.cores - trial.client_cores) / cores)
    accepted = result.latencies(200)
    rejected = sorted(reply.since_sent for reply in result.replies if reply.status == 429)
    others = len(result.replies) - len(accepted) - len(rejected)
    has_retry = all("retry-after" in reply.headers for reply in result.replies if reply.status == 429)
    kept = (
        goodput >= MIN_GOODPUT
        and percentile(accepted, 0.99) <= trial.settings.deadline
        and (not rejected or percentile(rejected, 0.99) <= MAX_REJECT_SECONDS)
        and _kept(answers)
        and has_retry
        and not others
    )
    measured = (
        f"{100 * goodput:.0f} %, or {100 * goodput / left:.0f} % of what the load generator leaves, "
        f"p99 {_ms(accepted, 0.99)}, refusals {_ms(rejected, 0.99)}, {answers}"
    )
    if others:
        measured += f", {others:,} other answers"
    expected = (
        f">= {100 * MIN_GOODPUT:.0f} % of the capacity, p99 <= {trial.settings.deadline:g} s, "
        f"refusals with Retry-After in {1000 * MAX_REJECT_SECONDS:.0f} ms"
    )
    return Promise(f"overload {factor}x", expected, measured, kept)


async def check_recovery(trial: Trial, name: str) -> Promise:
    """Wait until single requests are answered correctly again."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) <= RECOVERY_SECONDS:
        answers = AnswerCheck(trial.expected)
        result = await closed_loop(trial.address, itertools.islice(trial.requests(), 8), 2, judge=answers.judge)
        if _kept(answers, len(result.replies) - result.count(200)) and await _is_ready(trial):
            return Promise(name, f"<= {RECOVERY_SECONDS:g} s", f"{time.perf_counter() - start:.1f} s", True)
        await asyncio.sleep(0.1)
    return Promise(name, f"<= {RECOVERY_SECONDS:g} s", f"not within {elapsed:.0f} s", False)


async def _is_ready(trial: Trial) -> bool:
    request = make_request(0, trial.address, "/readyz", headers=trial.headers)
    return (await closed_loop(trial.address, [request], 1)).count(200) == 1


async def check_poison(trial: Trial) -> list[Promise]:
    """Send one broken image among every eight, so that nearly every batch has broken neighbors."""
    answers = AnswerCheck(trial.expected)
    broken: list[TimedReply] = []
    count = CLIENTS * 32

    def judge(reply: TimedReply) -> None:
        if reply.key < 0:
            broken.append(reply)
        else:
            answers.judge(reply)

    requests = (trial.request(i, BROKEN)._replace(key=-1) if i % 8 == 3 else trial.request(i) for i in range(count))
    result = await closed_loop(trial.address, requests, CLIENTS, judge=judge)
    wrong_status = sum(reply.status not in (415, 422) for reply in broken)
    lost = count - len(broken) - result.count(200) + sum(reply.status == 200 for reply in broken)
    measured = f"{answers}, {lost} neighbors lost, {len(broken) - wrong_status} of {len(broken)} broken images reported"
    kept = _kept(answers, lost) and not wrong_status
    return [Promise("broken images", "reported, and no neighbor is affected", measured, kept)]


async def check_lost_process(trial: Trial) -> list[Promise]:
    """Kill a decoding process while requests are running."""
    expected = "no answer lost or wrong"
    workers = trial.server.decoding_processes()
    if not workers:
        return [Promise("killed process", expected, "the processes are not known on this system", None)]
    answers = AnswerCheck(trial.expected)
    load = asyncio.create_task(
        closed_loop(
            trial.address, itertools.islice(trial.requests(), CLIENTS * 16), CLIENTS, judge=answers.judge, timeout=30
        )
    )
    await asyncio.sleep(0.05)
    trial.server.kill(random.choice(workers))
    result = await load
    blamed = result.count(422)  # an image that was being decoded may be blamed for the death of its process
    lost = len(result.replies) - result.count(200) - blamed
    measured = f"{answers}, {lost} lost, {blamed} of the lost process reported"
    kept = _kept(answers, lost) and blamed <= 1
    return [
        Promise("killed process", expected, measured, kept),
        await check_recovery(trial, "recovery from a killed process"),
    ]


async def check_leak(trial: Trial) -> list[Promise]:
    """Compare the memory after two equally long phases of steady load."""
    expected = f"<= +{MAX_LEAK_MB:g} MB under steady load"
    sizes: list[int | None] = []
    for _ in range(3):  # the first phase warms up
        await closed_loop(trial.address, _for_seconds(trial, trial.seconds, least=4 * CLIENTS), CLIENTS)
        sizes.append(trial.server.memory())
    if None in sizes:
        return [Promise("memory", expected, "not known on this system", None)]
    growth = ((sizes[2] or 0) - (sizes[1] or 0)) / 1e6
    return [Promise("memory", expected, f"{growth:+.1f} MB", growth <= MAX_LEAK_MB)]


async def check_drain(trial: Trial) -> list[Promise]:
    """Stop the server under load: what it has accepted is answered, and it ends with status 0."""
    answers = AnswerCheck(trial.expected)
    load = asyncio.create_task(
        open_loop(trial.address, trial.requests(), 0.8 * trial.capacity, trial.seconds, judge=answers.judge)
    )
    await asyncio.sleep(trial.seconds / 2)
    trial.server.send_signal(signal.SIGTERM)
    asked = time.perf_counter()
    while await _is_ready(trial) and time.perf_counter() - asked < RECOVERY_SECONDS:
        await asyncio.sleep(0.005)
    not_ready = time.perf_counter() - asked
    result = await load
    status = await asyncio.to_thread(trial.server.wait)
    # later, the listening socket may be closed between connecting and sending; a load balancer knows by then
    accepting = asked + trial.settings.drain_delay
    lost = sum(reply.status not in (200, 429, 503) for reply in result.replies if reply.sent < accepting)
    measured = f"{answers}, {lost} lost, not ready after {1000 * not_ready:.0f} ms, exit status {status}"
    kept = _kept(answers, lost) and status == 0 and not_ready <= 0.1
    return [Promise("SIGTERM under load", "nothing accepted is lost, exit status 0", measured, kept)]


def _ms(sorted_seconds: Sequence[float], fraction: float) -> str:
    value = percentile(sorted_seconds, fraction)
    return "none" if value != value else f"{1000 * value:,.0f} ms"  # NaN: there are none


CHECKS: tuple[Check, ...] = (check_answers, check_poison, check_leak, check_lost_process, check_overload, check_drain)
