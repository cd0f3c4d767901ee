"""Tuning: find the engine, precision, layout, number of streams and batch size that run a model fastest."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..checks import checked
from ..data.decode import Pixels
from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..engine import ENGINES, Plan, make_plan, open_engine
from ..engine.base import Engine
from ..engine.gate import choose_images, open_gated
from ..engine.judging import CALIBRATION, GateImages
from ..engine.plan import DEFAULT_BATCH, MODES, PRECISIONS, has_native_bfloat16, missing_packages
from ..engine.tuned import Tuned, Workload, records_folder, save_tuned
from ..errors import TessellaError, UsageError, WeightsError
from ..inputs import AnyImage
from ..pipeline import ImageReader
from ..signals import raise_interrupt_behind
from ..storage import check_writable
from ..weights.network import AnyModel, Network, as_network

SECONDS = 100.0  # half of them for preparing engines
ROUNDS = 9
MEASURING_FRACTION = 0.3  # at least this fraction of the time is for measuring
ROUND_SECONDS = 0.2  # shortest duration of a round: shorter ones are dominated by noise
MAX_SLOWDOWNS = (1.5, 1.25, 1.15)  # candidates slower than the fastest by this factor after 1, 2, 3 rounds are dropped
MIN_GAIN = 1.03  # a winner must be faster than the default by this factor
BATCH_SIZES = (1, 4, 8)
SETTINGS = ("engine", "precision", "layout")  # that determine the results


@dataclass
class TuningRow:
    """A way to run the model in one mode, and its speed."""

    mode: str
    engine: str
    precision: str
    layout: str
    streams: int
    batch_size: int
    seconds: list[float] = field(default_factory=list)  # per image, of each round
    note: str = ""  # why it was not measured
    agreement: str = ""  # of the results of a lossy precision with float32, in words

    @property
    def images_per_second(self) -> float:
        """Speed at the lower quartile of the times, because other load on the machine only slows rounds down."""
        return 1 / self._quartiles[0] if self.seconds else 0.0

    @property
    def slowdown(self) -> float:
        """The upper quartile of the times, relative to the lower one: 1.0 if nothing else was running."""
        lower, upper = self._quartiles
        return upper / lower

    @property
    def _quartiles(self) -> tuple[float, float]:
        times = sorted(self.seconds)
        return times[(len(times) - 1) // 4], times[3 * len(times) // 4]

    def as_dict(self) -> dict[str, object]:
        """Return the row for JSON, with the speeds of the slowest and the fastest round in images per second."""
        row: dict[str, object] = {key: value for key, value in dataclasses.asdict(self).items() if key != "seconds"}
        if self.seconds:
            row |= dict(images_per_second=round(self.images_per_second, 2), rounds=len(self.seconds))
            row |= dict(slowest=round(1 / max(self.seconds), 2), fastest=round(1 / min(self.seconds), 2))
        return row


@dataclass(frozen=True)
class Tuning:
    """The result of tuning: all rows, the winner of each mode, and the file that `load` reads."""

    rows: list[TuningRow]
    winners: dict[str, Tuned]
    path: Path

    def agreement(self, mode: str) -> str:
        """Return how the winner's results agree with float32, in words; "" in float32, or if they were not compared."""
        winner = self.winners[mode]
        same = (row for row in self.rows if all(getattr(row, name) == getattr(winner, name) for name in SETTINGS))
        return next((row.agreement for row in same if row.agreement), "")

    def doubt(self, mode: str) -> str:
        """Return why the choice for a mode is uncertain, as a phrase; "" if the measurement decides it.

        It is uncertain if the rounds of the winner or the next candidate differ by more than these two do, or so much
        that a single slow round can have excluded a candidate.
        """
        winner, names = self.winners[mode], (*SETTINGS, "streams", "batch_size")
        rows = [row for row in self.rows if row.mode == mode and row.seconds]
        best = [row for row in rows if all(getattr(row, name) == getattr(winner, name) for name in names)]
        others = [row for row in rows if row not in best]
        if not best or not others:
            return ""
        following = max(others, key=lambda row: row.images_per_second)
        lead = max(best[0].images_per_second / following.images_per_second, 1.0)  # a small gain of another is no lead
        slowdown = max(best[0].slowdown, following.slowdown)
        if slowdown <= min(lead * MIN_GAIN, MAX_SLOWDOWNS[0]):
            return ""
        rank = f"{100 * (lead - 1):.0f} % slower" if lead >= 1.005 else "as fast"
        return f"round times differ by {100 * (slowdown - 1):.0f} %, and the next candidate is {rank}"


def check_can_save() -> None:
    """Check that the results of `tune` can be saved on this machine; raises WeightsError `cache_failed`."""
    with _saving():
        check_writable(records_folder())


@contextmanager
def _saving() -> Iterator[None]:
    """Translate OSError into WeightsError `cache_failed`."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            "cache_failed",
            f"the measurements cannot be saved in {records_folder()}: {error.strerror or error}",
            hint="set TESSELLA_CACHE to a writable folder with free space",
        ) from error


@checked
def tune(
    model: AnyModel,
    *,
    precisions: Sequence[str] | None = None,
    engines: Sequence[str] | None = None,
    images: Sequence[AnyImage] | None = None,
    seconds: float = SECONDS,
    check_precision: bool = True,
    log: Callable[[str], None] = lambda text: None,
    show: Callable[[Tuning], None] = lambda result: None,
) -> Tuning:
    """Measure candidates in alternating rounds and save the winner of each mode for this model, size and machine.

    precisions: None measures float32, int8, and bfloat16 if the CPU supports it. Lossy precisions must pass the gate on
        `images` (see `tessella.load`).
    engines: None measures all installed ones except "compile", which takes minutes to start. Those that need PyTorch
        are listed with the reason if it is not installed.
    seconds: time limit; a conversion that has started is completed.
    check_precision: False measures lossy precisions without the gate, for models with random weights; the gate is
        still applied when trained weights are loaded.
    log: called with a line of text about the progress.
    show: called with the result before it is saved.

    Raises UsageError `bad_argument`, WeightsError `conversion_failed` if nothing can be measured, and `cache_failed`,
    before any measurement if the cache cannot be written.
    """
    check_can_save()
    started = time.perf_counter()
    network = _in_evaluation(model)
    spec = InputSpec.from_cfg(network.pretrained_cfg)
    plan = make_plan("cpu", "float32", batch_size=DEFAULT_BATCH["cpu"])
    usual = ("float32", *(("bfloat16",) if has_native_bfloat16("cpu") else ()), "int8")
    candidates = list(_candidates(network, plan.engine, engines, usual if precisions is None else precisions))
    pixels = None if images is None else ImageReader(spec).load_readable(images)
    gate_images = choose_images(pixels, spec) if check_precision else None
    opener = _Opener(network, plan, spec, gate_images, check_precision, sample_images(spec, max(BATCH_SIZES)))
    rows, ready = _open_all(opener, candidates, started + seconds / 2, log)
    now = time.perf_counter()
    remaining = max(started + seconds - now, MEASURING_FRACTION * seconds)  # also after slow conversions
    for mode, fraction in zip(MODES, (0.5, 0.75), strict=True):
        _run_rounds([candidate for candidate in ready if candidate.row.mode == mode], now + fraction * remaining)
    best = max((row for row in rows if row.mode == "throughput"), key=lambda row: row.images_per_second)
    log(f"measuring batch sizes of {best.engine}")
    variants = [opener.open(row) for row in _variants(best, plan)]
    ready = [*(candidate for candidate in ready if candidate.row is best), *filter(None, variants)]
    _run_rounds(ready, now + remaining)
    rows += [candidate.row for candidate in ready if candidate.row is not best]
    return _save(Workload.of(network, (spec.height, spec.width), plan.threads), rows, show)


def _in_evaluation(model: AnyModel) -> Network:
    """Return the network of a model; that of a copy in evaluation mode if the model is in training mode."""
    if not isinstance(model, Network) and model.training:
        model = copy.deepcopy(model).eval()
    return as_network(model)


def _save(workload: Workload, rows: list[TuningRow], show: Callable[[Tuning], None]) -> Tuning:
    date = time.strftime("%Y-%m-%d")
    winners = {mode: _winner([row for row in rows if row.mode == mode], date) for mode in MODES}
    result = Tuning(rows, winners, workload.path())
    show(result)
    with _saving():
        save_tuned(workload, winners, [row.as_dict() for row in rows], date)
    return result


# --- candidates -------------------------------------------------------------------------------------------------------


def _candidates(
    network: Network, usual: str, engines: Sequence[str] | None, precisions: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield (engine, precision, layout), the most promising first, because there may not be enough time for all.

    usual: the engine without tuning; in float32 it is always measured, as the baseline.
    """
    _check_names(engines or (), precisions)
    selected = list(engines) if engines else ["openvino", "rewritten", "onnxruntime"]
    default = (usual, "float32", "")
    yield default
    layouts = {name: _layouts(network, name) for name in selected}
    for layout in ("", *dict.fromkeys(layout for names in layouts.values() for layout in names)):
        for precision in sorted(precisions, key=PRECISIONS.index, reverse=True):
            for name in sorted(selected, key=lambda name: name != "openvino"):
                candidate = (name, precision, layout)
                if precision in ENGINES[name].precisions and candidate != default and layout in ("", *layouts[name]):
                    yield candidate


def _layouts(network: Network, engine: str) -> tuple[str, ...]:
    """Return the layouts of a network in an engine, apart from its usual one; none if the engine cannot be used."""
    if missing_packages(engine):
        return ()
    if engine == "openvino":
        from ..engine.graphs import layouts_of, why_not

        return layouts_of(network)[1:] if why_not(network) is None else ()
    from ..engine.rewrites import layouts_of as rewritten_layouts
    from ..engine.rewrites import usual_layout

    module = network.to_module()
    return tuple(
        layout
        for layout in rewritten_layouts(module)
        if layout not in (usual_layout(module, engine), "norms_apart")
        # other runtimes choose the memory layout themselves
        and (engine == "rewritten" or not layout.startswith("channels"))
    )


def _check_names(engines: Sequence[str], precisions: Sequence[str]) -> None:
    known = [name for name in ENGINES if name != "eager"]
    for name in engines:
        if name not in known:
            raise UsageError("bad_argument", f"engine is {name!r}", hint=f"choose from {', '.join(known)}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UsageError("bad_argument", f"precision is {precision!r}", hint=f"choose from {', '.join(PRECISIONS)}")


def _variants(best: TuningRow, plan: Plan) -> list[TuningRow]:
    """Return other batch sizes and numbers of streams for the fastest candidate."""
    streams = {1} if best.engine == "compile" else {1, best.streams, max(1, plan.threads // 2), plan.threads}
    return [
        dataclasses.replace(best, streams=count, batch_size=size, seconds=[], note="")
        for count in sorted(streams)
        for size in BATCH_SIZES
        if (count, size) != (best.streams, best.batch_size) and (count > 1 or size == max(BATCH_SIZES))
    ]


# --- opening and measuring --------------------------------------------------------------------------------------------


@dataclass
class Ready:
    """An engine that is ready to measure a row; images: (N,H,W,3) uint8, with N at least the batch size of the row."""

    row: TuningRow
    engine: Engine
    images: Pixels

    def warm_up(self) -> None:
        """Run an image on every stream, for at least ROUND_SECONDS."""
        until = time.perf_counter() + ROUND_SECONDS
        while True:
            for _ in self.engine.imap([self.images[:1]] * self.row.streams):
                pass
            if time.perf_counter() > until:
                return

    def measure(self) -> None:
        """Run one round: the same number of batches on every stream, for at least ROUND_SECONDS."""
        batches = self.row.streams
        if self.row.seconds:
            batches *= max(1, round(ROUND_SECONDS / (min(self.row.seconds) * batches * self.row.batch_size)))
        start = time.perf_counter()
        for _ in self.engine.imap([self.images[: self.row.batch_size]] * batches):
            pass
        self.row.seconds.append((time.perf_counter() - start) / (batches * self.row.batch_size))


@dataclass(frozen=True)
class _Opener:
    """Opens engines for one model. gate_images: for the gate, None uses the photographs of this package."""

    network: Network
    plan: Plan
    spec: InputSpec
    gate_images: GateImages | None
    check_precision: bool
    images: Pixels  # to measure with

    def open(self, row: TuningRow) -> Ready | None:
        """Open the engine of the row and measure one round; on failure, set the note of the row and return None."""
        try:
            engine = self._engine(row)
            if engine.plan.precision != row.precision:
                row.note = engine.plan.choice("precision").reason
                return None
            row.agreement = engine.agreement
            ready = Ready(row, engine, self.images)
            ready.warm_up()
            ready.measure()
        except Exception as error:  # if a runtime fails with any exception, the others are still measured
            raise_interrupt_behind(error)
            row.note = error.message if isinstance(error, TessellaError) else f"{type(error).__name__}: {error}"[:200]
            row.seconds.clear()
            return None
        return ready

    def _engine(self, row: TuningRow) -> Engine:
        size = (self.spec.height, self.spec.width)
        plan = make_plan("cpu", row.precision, row.engine, row.batch_size, "throughput", self.network, size)
        plan = dataclasses.replace(plan, threads=self.plan.threads, layout=row.layout, streams=row.streams)
        if self.check_precision:
            return open_gated(self.network, plan, size, self.spec, self.gate_images)
        calibration = sample_images(self.spec, CALIBRATION) if row.precision == "int8" else None
        return open_engine(self.network, plan, size, self.spec, calibration)


def _open_all(
    opener: _Opener, candidates: Sequence[tuple[str, str, str]], deadline: float, log: Callable[[str], None]
) -> tuple[list[TuningRow], list[Ready]]:
    """Open the candidates in each mode until the deadline; the first is always opened."""
    rows: list[TuningRow] = []
    ready: list[Ready] = []
    for number, (engine, precision, layout) in enumerate(candidates, 1):
        log(f"opening candidate {number} of {len(candidates)}: {' '.join(filter(None, (engine, precision, layout)))}")
        for mode in MODES:
            streams = 1 if mode == "latency" or engine == "compile" else opener.plan.streams
            batch_size = 1 if mode == "latency" else DEFAULT_BATCH["cpu"]
            row = TuningRow(mode, engine, precision, layout, streams, batch_size)
            rows.append(row)
            if number > 1 and time.perf_counter() > deadline:
                row.note = "not measured: the time limit was reached"
                continue
            if opened := opener.open(row):
                ready = _drop_slow([*ready, opened])
    return rows, ready


def _drop_slow(ready: list[Ready]) -> list[Ready]:
    """Drop slow candidates to free their memory; the first one of a mode is the baseline and is kept."""
    kept: list[Ready] = []
    for candidate in ready:
        same_mode = [other for other in ready if other.row.mode == candidate.row.mode]
        if candidate is same_mode[0] or not _is_too_slow(candidate, same_mode):
            kept.append(candidate)
    return kept


def _is_too_slow(candidate: Ready, others: list[Ready]) -> bool:
    limit = MAX_SLOWDOWNS[min(len(candidate.row.seconds), len(MAX_SLOWDOWNS)) - 1]
    return min(candidate.row.seconds) > limit * min(min(other.row.seconds) for other in others)


def _run_rounds(ready: list[Ready], until: float) -> None:
    """Measure in alternating rounds, so that other load affects all candidates; the baseline gets at least 3 rounds."""
    for _ in range(ROUNDS - 1):
        for candidate in ready:
            rounds = len(candidate.row.seconds)
            if _is_too_slow(candidate, ready) and not (candidate is ready[0] and rounds < len(MAX_SLOWDOWNS)):
                continue
            if time.perf_counter() > until and rounds >= 2:
                return
            candidate.measure()


def _winner(rows: list[TuningRow], date: str) -> Tuned:
    """Return the fastest of the rows of one mode; the first that could be measured wins unless another is faster."""
    measured = [row for row in rows if row.seconds]
    if not measured:
        raise WeightsError("conversion_failed", f"not even {rows[0].engine} could be measured: {rows[0].note}")
    baseline, *others = measured
    best = max(others, key=lambda row: row.images_per_second, default=baseline)
    gain = best.images_per_second / baseline.images_per_second
    if gain < MIN_GAIN:
        best = baseline
    rate = best.images_per_second
    speed = f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s"
    compared = "" if best is baseline else f", {gain:.2f} times that of {baseline.engine} {baseline.precision}"
    reason = f"tuned on {date}: {speed}{compared}; {len(best.seconds)} alternating rounds"
    return Tuned(best.engine, best.precision, best.layout, best.streams, best.batch_size, reason)
