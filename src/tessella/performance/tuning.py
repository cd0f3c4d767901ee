"""Which engine, precision, layout, number of streams and batch run a model fastest on this machine: by measuring."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import checked
from ..data.decode import Pixels
from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..engine import ENGINES, Plan, make_plan, open_engine
from ..engine.base import Engine
from ..engine.gate import CALIBRATION, open_gated
from ..engine.plan import DEFAULT_BATCH, MODES, PRECISIONS, has_native_bfloat16, missing_packages
from ..engine.tuned import Tuned, Workload, save_tuned
from ..errors import TessellaError, UsageError, WeightsError
from ..inputs import AnyImage
from ..models.base import ImageModel
from ..pipeline import ImageReader

SECONDS = 100.0  # of which a half is for making engines ready
ROUNDS = 9
MEASURED = 0.3  # of the seconds are for measuring at least
LEAST = 0.2  # seconds of a round: shorter ones are all noise
HOPELESS = (1.5, 1.25, 1.15)  # slower than the fastest by so much after 1, 2, 3 rounds: the time goes to the others
WORTH = 1.03  # a winner must be so much faster than what runs without tuning
BATCHES = (1, 4, 8)


@dataclass
class Row:
    """One way to run the model in one mode, and how fast it was."""

    mode: str
    engine: str
    precision: str
    layout: str
    streams: int
    batch_size: int
    seconds: list[float] = field(default_factory=list)  # an image, of each round
    note: str = ""  # why it was not measured

    @property
    def images_per_second(self) -> float:
        """Of its better rounds, as what else the machine does only ever slows one down: the lower quartile of times."""
        return 1 / sorted(self.seconds)[(len(self.seconds) - 1) // 4] if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        row = {key: value for key, value in dataclasses.asdict(self).items() if key != "seconds"}
        if self.seconds:
            ends = (1 / max(self.seconds), 1 / min(self.seconds))
            row |= dict(images_per_second=round(self.images_per_second, 2), rounds=len(self.seconds))
            row |= dict(slowest=round(ends[0], 2), fastest=round(ends[1], 2))
        return row


@dataclass(frozen=True)
class Tuning:
    """The outcome: every row measured, the winner of each mode, and the file that `load` will read."""

    rows: list[Row]
    winners: dict[str, Tuned]
    path: Path


@dataclass
class Ready:
    """An engine that is open for one row."""

    row: Row
    engine: Engine
    images: Pixels

    def warm_up(self) -> None:
        """An image for every stream; more where that takes no time."""
        until = time.perf_counter() + LEAST
        while True:
            for _ in self.engine.imap([self.images[:1]] * self.row.streams):
                pass
            if time.perf_counter() > until:
                return

    def measure(self) -> None:
        """One round: the row's batches for every stream, at least LEAST seconds of them."""
        batches = self.row.streams
        if self.row.seconds:
            batches *= max(1, round(LEAST / (min(self.row.seconds) * batches * self.row.batch_size)))
        start = time.perf_counter()
        for _ in self.engine.imap([self.images[: self.row.batch_size]] * batches):
            pass
        self.row.seconds.append((time.perf_counter() - start) / (batches * self.row.batch_size))


@checked
def tune(
    model: ImageModel,
    *,
    precisions: Sequence[str] | None = None,
    engines: Sequence[str] | None = None,
    images: Sequence[AnyImage] | None = None,
    seconds: float = SECONDS,
    judged: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Measure the candidates by turns, keep the winner of each mode for this model, size and machine.

    precisions: None takes float32, and bfloat16 where the hardware has it; lossy ones must pass the gate on `images`
    (see `tessella.load`). engines: None takes those that are installed and ready within a minute, which "compile" is
    not. seconds: when to stop; a conversion that has begun is finished. judged: False measures lossy precisions without
    asking the gate, for random weights; it is asked when trained ones are loaded. say: gets a line as work goes on.
    Raises UsageError `bad_argument`.
    """
    model = copy.deepcopy(model).eval() if model.training else model
    spec = InputSpec.from_cfg(model.pretrained_cfg)
    plan = make_plan("cpu")
    started = time.perf_counter()
    exact = ("float32", "bfloat16") if has_native_bfloat16("cpu") else ("float32",)
    wanted = list(_candidates(model, plan, engines, exact if precisions is None else precisions))
    judges = None if images is None else ImageReader(spec).load_readable(images)
    pictures = sample_images(spec, max(BATCHES))
    rows: list[Row] = []
    ready: list[Ready] = []
    for number, (engine, precision, layout) in enumerate(wanted, 1):
        say(f"{number}/{len(wanted)} {' '.join(filter(None, (engine, precision, layout)))}")
        for mode in MODES:
            streams = 1 if mode == "latency" or engine == "compile" else plan.streams
            row = Row(mode, engine, precision, layout, streams, 1 if mode == "latency" else DEFAULT_BATCH["cpu"])
            rows.append(row)
            if number > 1 and time.perf_counter() - started > seconds / 2:
                row.note = "not measured: the time was up"
                continue
            if opened := _open(model, plan, spec, row, judges if judged else (), pictures):
                ready = _worth_a_round([*ready, opened])
    now = time.perf_counter()
    left = max(started + seconds - now, MEASURED * seconds)  # also where conversions took longer than planned
    for mode, share in zip(MODES, (0.5, 0.75), strict=True):
        _rounds([one for one in ready if one.row.mode == mode], now + share * left)
    best = max((row for row in rows if row.mode == "throughput"), key=lambda row: row.images_per_second)
    say(f"batches of {best.engine}")
    variants = [_open(model, plan, spec, row, judges if judged else (), pictures) for row in _variants(best, plan)]
    ready = [*(one for one in ready if one.row is best), *(one for one in variants if one)]
    _rounds(ready, now + left)
    rows += [one.row for one in ready if one.row is not best]
    date = time.strftime("%Y-%m-%d")
    winners = {mode: _winner([row for row in rows if row.mode == mode], date) for mode in MODES}
    table = [row.as_dict() for row in rows]
    size = (spec.height, spec.width)
    try:
        path = save_tuned(Workload.of(model, size, plan.threads), winners, table, date)
    except OSError as error:
        raise WeightsError(
            "cache_failed",
            f"what was measured could not be kept: {error.strerror or error}",
            hint="set TESSELLA_CACHE to a folder that you can write to",
        ) from error
    return Tuning(rows, winners, path)


def _candidates(
    model: ImageModel, plan: Plan, engines: Sequence[str] | None, precisions: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """(engine, precision, layout), the most promising first: what it takes to try all may not be there."""
    from ..engine.rewrites import layouts_of, usual_layout

    for name in engines or ():
        if name not in ENGINES or name == "eager":
            raise UsageError(
                "bad_argument", f"engine is {name!r}", hint=f"choose of {', '.join(n for n in ENGINES if n != 'eager')}"
            )
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UsageError("bad_argument", f"precision is {precision!r}", hint=f"choose of {', '.join(PRECISIONS)}")
    usual = [name for name in ("rewritten", "openvino", "onnxruntime") if not missing_packages(name)]
    chosen = list(engines) if engines else usual
    untuned = ("rewritten", "float32", "")  # what runs without tuning is measured, whatever was asked for
    yield untuned
    for layout in ("", *layouts_of(model)):
        for precision in sorted(precisions, key=PRECISIONS.index, reverse=True):
            for name in sorted(chosen, key=lambda name: name != "openvino"):
                if precision not in ENGINES[name].precisions or (name, precision, layout) == untuned:
                    continue
                if layout == usual_layout(model, name) or layout == "norms_apart":
                    continue
                if layout.startswith("channels") and name != "rewritten":
                    continue  # other runtimes lay maps out by themselves
                yield name, precision, layout


def _open(
    model: ImageModel, plan: Plan, spec: InputSpec, row: Row, images: Pixels | tuple[()] | None, pictures: Pixels
) -> Ready | None:
    """The engine of the row, warm and measured once; None, with a note in the row, where it cannot be used."""
    try:
        this = make_plan("cpu", row.precision, row.engine, row.batch_size)
        this = dataclasses.replace(this, threads=plan.threads, layout=row.layout, streams=row.streams)
        size = (spec.height, spec.width)
        if isinstance(images, tuple):
            ranges = sample_images(spec, CALIBRATION) if row.precision == "int8" else None
            engine = open_engine(model, this, size, spec, ranges)
        else:
            engine = open_gated(model, this, size, spec, images)
        if engine.plan.precision != row.precision:
            row.note = engine.plan.choice("precision").reason
            return None
        ready = Ready(row, engine, pictures)
        ready.warm_up()
        ready.measure()
    except Exception as error:  # whatever one runtime raises, the others are measured
        row.note = error.message if isinstance(error, TessellaError) else f"{type(error).__name__}: {error}"[:200]
        row.seconds.clear()
        return None
    return ready


def _worth_a_round(ready: list[Ready]) -> list[Ready]:
    """Without those that have no hope, to free their memory; the first of a mode is what all are compared with."""
    kept: list[Ready] = []
    for one in ready:
        same = [other for other in ready if other.row.mode == one.row.mode]
        if one is same[0] or not _hopeless(one, same):
            kept.append(one)
    return kept


def _hopeless(one: Ready, others: list[Ready]) -> bool:
    allowed = HOPELESS[min(len(one.row.seconds), len(HOPELESS)) - 1]
    return min(one.row.seconds) > allowed * min(min(other.row.seconds) for other in others)


def _rounds(ready: list[Ready], until: float) -> None:
    """Turn by turn, so that what else the machine does meets all; the first, which all are compared with, has three."""
    for _ in range(ROUNDS - 1):
        for one in ready:
            if _hopeless(one, ready) and not (one is ready[0] and len(one.row.seconds) < len(HOPELESS)):
                continue
            if time.perf_counter() > until and len(one.row.seconds) >= 2:
                return
            one.measure()


def _variants(best: Row, plan: Plan) -> list[Row]:
    """Other batches and streams of the fastest way."""
    streams = {1} if best.engine == "compile" else {1, best.streams, max(1, plan.threads // 2), plan.threads}
    fresh = dataclasses.replace
    return [
        fresh(best, streams=count, batch_size=size, seconds=[], note="")
        for count in sorted(streams)
        for size in BATCHES
        if (count, size) != (best.streams, best.batch_size) and (count > 1 or size == max(BATCHES))
    ]


def _winner(rows: list[Row], date: str) -> Tuned:
    if not rows[0].seconds:
        raise WeightsError("conversion_failed", f"not even {rows[0].engine} could be measured: {rows[0].note}")
    usual, *others = (row for row in rows if row.seconds)
    best = max(others, key=lambda row: row.images_per_second, default=usual)
    gain = best.images_per_second / usual.images_per_second
    if gain < WORTH:
        best = usual
    per = f"{best.images_per_second:.3g} images/s"
    against = "" if best is usual else f", {gain:.2f} times that of {usual.engine} {usual.precision}"
    reason = f"tuned on {date}: {per}{against}; {len(best.seconds)} rounds by turns"
    return Tuned(best.engine, best.precision, best.layout, best.streams, best.batch_size, reason)
