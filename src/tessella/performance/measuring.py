"""Measurement of candidates in alternating rounds.

All candidates of a model are open at the same time and take turns (A B C, B C A, ...), so that other load on the
machine affects all of them, and none always follows the same other one. A product of two large matrices in each
precision takes turns with them: its speed is an upper limit for this machine. Ratios within a run can be compared;
absolute speeds of different runs cannot.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..errors import TessellaError
from ..machine import hardware, other_versions, thread_count, versions
from ..signals import raise_interrupt_behind
from .candidates import Array, Candidate, Case, OpenCandidate, Run, first_line
from .memory import PeakMemory
from .products import SIDE, matrix_product

# A turn consists of as many forward passes as fit into this time, at least one. A single short pass would mostly
# measure the resolution of the clock and the start of threads.
TURN_SECONDS = 0.2
# Pause before each turn, as a multiple of TURN_SECONDS: threads of the previous contender may still spin (those of
# ONNX Runtime for 40 ms, those of some builds of OpenMP for 200 ms), which took up to 1.7 times the speed.
PAUSE = 1.25
LEAST_ROUNDS = 3
# Largest difference of the logits from the reference, relative to their norm. With a larger one, the candidate computes
# another function. The accuracy of lossy precisions is checked by the gate of the engine, not here.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "int8": 1.0}
CHECKED = 16  # images of a batch whose logits are compared: all of a usual one, since each stream computes a part of it
FURTHER = 8  # passes after a wrong one: the streams, which may differ, compute other parts in each


class WrongAnswerError(Exception):
    """The outputs of a candidate are not those of the model, so its speed is meaningless."""


@dataclass(kw_only=True)
class BenchmarkRow:
    """The result of a candidate at one batch size; None if a figure was not measured. CSV files have these columns."""

    model: str
    candidate: str
    precision: str
    batch: int  # batch size
    reads: str  # "uint8" pixels or normalised "float32"
    status: str = "ok"  # or an error code, "failed" for an error without a code, "wrong_answer"
    note: str = ""
    images_per_second: float | None = None  # median of the rounds
    slowest: float | None = None  # images per second of the slowest round
    fastest: float | None = None
    ratio: float | None = None  # of medians, relative to the candidate `against`
    ratio_lowest: float | None = None  # lowest ratio within a round
    ratio_highest: float | None = None
    against: str = ""  # the first candidate that ran
    difference: float | None = None  # of the logits from those of the model in float32, relative to their norm
    gemm_gflops: float | None = None  # GFLOP/s of a large matrix product in this precision, median
    share_of_gemm: float | None = None  # 2 x MACs per second of the model, as a fraction of that
    ready_seconds: float | None = None  # conversion, compilation and the first forward pass
    cold: bool = True  # False if a conversion for an earlier batch size could be reused
    peak_mb: float | None = None  # additional memory (10^6 bytes) of the process or GPU while preparing and running
    rounds: int = 0
    passes: int = 0  # forward passes per round
    gmacs: float = 0.0
    weights: str = ""
    gate: str = ""  # verdict about a lossy precision; "" if it was not judged
    threads: int = 0
    hardware: str = ""
    torch: str = dataclasses.field(default_factory=lambda: torch_version())
    tessella: str = __version__
    versions: str = dataclasses.field(default_factory=lambda: other_versions())
    date: str = dataclasses.field(default_factory=lambda: time.strftime("%Y-%m-%d"))


def torch_version() -> str:
    """Return the version of PyTorch, or "" if it is not installed."""
    return versions().get("torch", "")


COLUMNS = tuple(field.name for field in dataclasses.fields(BenchmarkRow))


@dataclass
class Contender:
    """An open candidate or a matrix product that takes turns."""

    turn: Callable[[], float]  # returns seconds per forward pass
    seconds: list[float] = dataclasses.field(default_factory=list)
    error: Exception | None = None


def measure(
    case: Case,
    candidates: Sequence[Candidate],
    batch_sizes: Sequence[int],
    rounds: int = 7,
    *,
    gemm_side: int | None = None,
    turn_seconds: float | None = None,
    until: Callable[[int], float] | None = None,
) -> Iterator[list[BenchmarkRow]]:
    """Yield the rows of one batch size at a time, in the order of the candidates; failed ones state the reason.

    gemm_side: rows and columns of the matrices whose product is the upper limit. turn_seconds: shortest duration of a
    turn. until: takes a batch size; returns the time (of time.perf_counter) after which no further round starts, except
    for the first LEAST_ROUNDS.
    """
    side = gemm_side or SIDE.get(_kind(case.device), 2048)
    turn_seconds = TURN_SECONDS if turn_seconds is None else turn_seconds
    threads = thread_count()
    with tempfile.TemporaryDirectory(prefix="tessella-bench-", ignore_cleanup_errors=True) as folder:
        for batch in batch_sizes:
            rows = [_empty_row(case, candidate, batch, threads) for candidate in candidates]
            contenders = _open_all(case, candidates, rows, Path(folder), turn_seconds)
            products: dict[str, Contender | None] = {}
            for precision in dict.fromkeys(rows[index].precision for index in contenders):
                run = matrix_product(precision, _kind(case.device), side, threads)
                products[precision] = contender_of(run, case.device, turn_seconds)[0] if run else None
            everything = [*(product for product in products.values() if product), *contenders.values()]
            take_turns(everything, rounds, until(batch) if until else None)
            fill_rows(rows, contenders, products, 2 * side**3)
            contenders.clear()
            gc.collect()
            if "torch._dynamo" in sys.modules:
                import torch

                torch.compiler.reset()  # as the compiler limits the number of its programs
            yield rows


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _empty_row(case: Case, candidate: Candidate, batch: int, threads: int) -> BenchmarkRow:
    return BenchmarkRow(
        model=case.name,
        candidate=candidate.name,
        precision=candidate.precision,
        reads=candidate.reads,
        batch=batch,
        gmacs=case.macs / 1e9,
        weights=case.weights,
        threads=threads,
        hardware=hardware(case.device),
    )


def _open_all(
    case: Case, candidates: Sequence[Candidate], rows: Sequence[BenchmarkRow], folder: Path, turn_seconds: float
) -> dict[int, Contender]:
    """Open the candidates and return those that work, by the index of their row; `folder` has a cache for each."""
    if not rows:
        return {}
    inputs, expected = _make_inputs(case, rows[0].batch)
    contenders: dict[int, Contender] = {}
    for index, (candidate, row) in enumerate(zip(candidates, rows, strict=True)):
        caches = folder / (candidate.caches or str(index))
        row.cold = not caches.exists()
        try:
            start = candidate.prepare(case, row.batch)  # uses the tuned settings in the cache of the user
            with _caches_in(caches):
                contenders[index] = _open(start, inputs[candidate.reads], expected, case.device, turn_seconds, row)
        except Exception as error:  # converters and runtimes raise exceptions of many types
            raise_interrupt_behind(error)
            _fail(row, error)
    return contenders


def _make_inputs(case: Case, batch: int) -> tuple[dict[str, Array], NDArray[np.floating]]:
    """Return the same random images in both formats, on the device, and the model's logits for the first CHECKED."""
    spec = case.spec
    shape = (batch, spec.height, spec.width, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    inputs: dict[str, Array] = {"uint8": pixels, "float32": case.normalised(pixels)}
    expected = case.expected(pixels[:CHECKED])
    if case.device != "cpu":
        import torch

        inputs = {name: torch.as_tensor(images).to(case.device) for name, images in inputs.items()}
    return inputs, expected


def _open(
    start: Callable[[], OpenCandidate],
    x: Array,
    expected: NDArray[np.floating],
    device: str,
    turn_seconds: float,
    row: BenchmarkRow,
) -> Contender:
    """Open a candidate, check its output, and fill in `row`."""
    memory = PeakMemory(device)
    started = time.perf_counter()
    opened = start()
    row.precision, row.note, row.gate = opened.precision, opened.note, opened.gate
    logits = opened.run(x)
    _synchronise(device)
    row.ready_seconds = time.perf_counter() - started + opened.earlier_seconds
    contender, row.passes = contender_of(lambda: opened.run(x), device, turn_seconds)
    row.peak_mb = memory.peak_mb()
    row.difference = float(differences(as_array(logits), expected).max())
    if not row.difference <= TOLERANCE[row.precision]:  # also true for NaN
        raise WrongAnswerError(
            f"the logits of an image differ from those of the model by {row.difference:.2g} of their norm; "
            f"{_evidence(opened.run, x, as_array(logits), expected, TOLERANCE[row.precision])}"
        )
    return contender


def _evidence(run: Run, x: Array, first: NDArray[np.generic], expected: NDArray[np.floating], tolerance: float) -> str:
    """Return which images were wrong in the first pass, and in FURTHER ones, which helps to find the cause.

    A pass that is wrong once points to a race, images that stay wrong to the weights or the graph, and parts of the
    batch that are wrong in turns to a stream.
    """
    texts = []
    for logits in (first, *(as_array(run(x)) for _ in range(FURTHER))):
        wrong = np.flatnonzero(~(differences(logits, expected) <= tolerance))
        texts.append(", ".join(map(str, wrong)) or "none")
    return f"wrong images: {texts[0]}; in further passes: {'; '.join(texts[1:])}"


# --- turns ------------------------------------------------------------------------------------------------------------


def contender_of(run: Callable[[], object], device: str, turn_seconds: float) -> tuple[Contender, int]:
    """Warm up with two forward passes; the second determines the number of passes per turn, which is also returned."""

    def turn(passes: int) -> float:
        time.sleep(PAUSE * turn_seconds)
        if passes > 1:
            run()  # not timed, because the caches contain data of the previous contender
        _synchronise(device)
        start = time.perf_counter()
        for _ in range(passes):
            run()
        _synchronise(device)
        return (time.perf_counter() - start) / passes

    turn(1)
    passes = max(1, round(turn_seconds / max(turn(1), 1e-4)))
    return Contender(lambda: turn(passes)), passes


def take_turns(contenders: Sequence[Contender], rounds: int, until: float | None = None) -> None:
    """Give each contender one turn per round; each round starts with another one (A B C, B C A, ...).

    A contender that fails gets no further turns. until: time of time.perf_counter after which no round starts, except
    for the first LEAST_ROUNDS.
    """
    for number in range(rounds):
        if until is not None and number >= LEAST_ROUNDS and time.perf_counter() > until:
            return
        first = number % max(len(contenders), 1)
        for contender in [*contenders[first:], *contenders[:first]]:
            if contender.error is None:
                try:
                    contender.seconds.append(contender.turn())
                except Exception as error:  # see _open_all
                    contender.error = error


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


# --- results ----------------------------------------------------------------------------------------------------------


def fill_rows(
    rows: Sequence[BenchmarkRow],
    contenders: Mapping[int, Contender],
    products: Mapping[str, Contender | None],
    product_flop: int,
) -> None:
    """Write the figures into the rows. contenders: by the index of their row; products: by precision."""
    first = next((index for index, contender in contenders.items() if not contender.error), None)
    for index, contender in contenders.items():
        row = rows[index]
        if contender.error or first is None:
            _fail(row, contender.error)
            continue
        _compare(row, contender.seconds, contenders[first].seconds)
        row.against = f"{rows[first].candidate}, {rows[first].precision}"
        product = products[row.precision]
        if product and not product.error:
            assert row.images_per_second
            row.gemm_gflops = product_flop / statistics.median(product.seconds) / 1e9
            row.share_of_gemm = 2 * row.gmacs * row.images_per_second / row.gemm_gflops


def _compare(row: BenchmarkRow, seconds: Sequence[float], base: Sequence[float]) -> None:
    """Fill in speed and ratios from the seconds per forward pass of each round, and those of the base candidate."""
    row.rounds = len(seconds)
    row.images_per_second = row.batch / statistics.median(seconds)
    row.slowest, row.fastest = row.batch / max(seconds), row.batch / min(seconds)
    row.ratio = statistics.median(base) / statistics.median(seconds)
    ratios = [base_time / time_ for base_time, time_ in zip(base, seconds, strict=True)]
    row.ratio_lowest, row.ratio_highest = min(ratios), max(ratios)


def _fail(row: BenchmarkRow, error: Exception | None) -> None:
    row.status, row.note = "failed", first_line(error) if error else ""
    if isinstance(error, WrongAnswerError):
        row.status, row.note = "wrong_answer", str(error)
    elif isinstance(error, TessellaError):
        row.status, row.note = error.code, str(error)


def differences(logits: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the norm of each image's difference relative to the norm of `expected` (N,classes): (N,).

    logits: (B,classes) for these and possibly more images.
    """
    exact = expected.astype(np.float64)
    difference = logits[: len(expected)].astype(np.float64) - exact
    return np.asarray(np.linalg.norm(difference, axis=1) / np.linalg.norm(exact, axis=1))


def as_array(logits: Array) -> NDArray[np.generic]:
    """Return logits (B,classes) of any device as an array; bfloat16, which NumPy lacks, as float32."""
    return logits if isinstance(logits, np.ndarray) else logits.detach().float().cpu().numpy()


@contextmanager
def _caches_in(folder: Path) -> Iterator[None]:
    """Cache converted and compiled models in `folder`, so that conversions start cold and no other cache is changed."""
    names = {"TESSELLA_CACHE": folder, "TORCHINDUCTOR_CACHE_DIR": folder.with_name(f"{folder.name}-inductor")}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(path) for name, path in names.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
