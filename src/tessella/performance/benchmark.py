"""Candidates side by side: how fast they run the same model on the same images, and how near to the machine's limit.

All candidates of a model are open at once and take turns (A B C, A B C, ...), so that whatever else the machine does
meets all of them. A product of two large matrices takes turns with them in each of their precisions: its speed says
what the machine could do meanwhile. Figures of two runs are not to be compared, ratios within one are.
"""

from __future__ import annotations

import csv
import dataclasses
import gc
import importlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._version import __version__
from ..checks import checked
from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..engine import ENGINES, PRECISIONS, make_plan, open_engine
from ..engine.gate import CALIBRATION, open_gated
from ..engine.plan import Mode
from ..errors import TessellaError, UsageError
from ..extras import require
from ..machine import hardware, other_versions
from ..models.base import ImageModel
from ..plots.figures import STYLES
from ..records import short_name
from ..storage import write_bytes
from ..weights.catalogue import published_accuracy, resolve
from ..weights.counting import cost
from ..weights.factory import create_model
from ..weights.load import image_size

DEFAULT_ENGINES = ("eager", "rewritten", "openvino", "onnxruntime")  # `compile` takes minutes to start: when asked for
GEMM_SIDE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices
TURN_SECONDS = 0.2  # a turn is as many passes as fit, at least one: one short pass is mostly the clock and the threads
# Part of the answer's length by which a candidate may differ from the reference before it counts as another function:
# lossy precisions have no bound of rounding here, their gate is the engine's.
TOLERANCE = {"float32": 1e-3}
LOSSY_TOLERANCE = 0.5

Run = Callable[[Tensor], Tensor]


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, and the images that it reads."""

    name: str
    model: ImageModel  # float32, on the CPU, in evaluation mode
    spec: InputSpec
    weights: str  # "trained" or "random"; speed does not depend on them
    device: str = "cpu"

    @property
    def macs(self) -> int:
        """Of one image, as the model is published: a candidate that needs fewer may be above the machine's limit."""
        return cost(self.model, (self.spec.channels, self.spec.height, self.spec.width)).macs


class Opened(NamedTuple):
    """A candidate that is ready to run."""

    run: Run  # a batch as `Candidate.reads` says, on the case's device -> (B,classes) logits
    precision: str  # that it computes in
    note: str = ""  # what a reader of the row should know
    earlier_seconds: float = 0.0  # of work that it shares with a candidate opened before it


@dataclass(frozen=True)
class Candidate:
    """Something that can run a model.

    reads: "uint8" for (B,H,W,C) pixels, "float32" for (B,C,H,W) normalised images, whatever it computes in.
    plan: (case, batch size) -> what opens it; all that is costly, as converting and compiling, is left to that. Both
    may raise anything: that is the candidate's result.
    """

    name: str
    precision: str  # asked for
    reads: Literal["uint8", "float32"]
    plan: Callable[[Case, int], Callable[[], Opened]]


def load_case(name: str, *, pretrained: bool = False, device: str = "cpu") -> Case:
    """The model of a name of `create_model`; with random weights unless they are built in or asked for."""
    row = None if ":" in name else resolve(name)[1]
    trained = pretrained or bool(row and row.file)
    model = create_model(name, pretrained=trained).eval()
    if not trained:
        fill(model)
    spec = InputSpec.from_cfg(model.pretrained_cfg)
    height, width = image_size(model) or (spec.height, spec.width)
    spec = dataclasses.replace(spec, height=height, width=width)
    weights = "trained" if trained else "random"
    return Case(name=row.name if row else name, model=model, spec=spec, weights=weights, device=device)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Random weights with which every layer matters: an untrained head is zeros, and all answers would agree."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


def ours(engine: str, precision: str) -> Candidate:
    """An engine of this package, a key of ENGINES or "auto", on uint8 images."""

    def plan(case: Case, batch: int) -> Callable[[], Opened]:
        size = (case.spec.height, case.spec.width)
        mode: Mode = "latency" if batch == 1 else "throughput"
        chosen = make_plan(case.device, precision, engine, batch, mode, case.model, size)

        def make() -> Opened:
            judged = chosen.precision != "float32" and case.weights == "trained"
            if judged:
                opened = open_gated(case.model, chosen, size, case.spec)
            else:  # random weights have no answers that could be kept
                ranges = sample_images(case.spec, CALIBRATION) if chosen.precision == "int8" else None
                opened = open_engine(case.model, chosen, size, case.spec, ranges)
            fell_back = opened.plan.precision != chosen.precision  # from a lossy one whose answers were too far off
            note = ""
            if fell_back or engine == "auto":
                _, value, reason = opened.plan.choice("precision" if fell_back else "engine")
                note = f"{value}: {reason}"
            return Opened(lambda x: next(opened.imap([x]))[0], opened.plan.precision, note)

        return make

    name = f"auto ({precision})" if engine == "auto" != precision else engine
    return Candidate(name, precision, "uint8", plan)


def timm_eager(precision: str) -> Candidate:
    """timm's model of the same name and weights, step by step."""

    def plan(case: Case, batch: int) -> Callable[[], Opened]:
        def make() -> Opened:
            dtype = getattr(torch, precision)
            model = timm_model(case).to(case.device, dtype)
            return Opened(torch.inference_mode()(lambda x: model(x.to(dtype))), precision)

        return make

    return Candidate("timm", precision, "float32", plan)


def timm_model(case: Case) -> nn.Module:
    """timm's own model with the weights of the case, in evaluation mode, on the CPU. UsageError where it has none."""
    model, timm = case.model, import_timm()
    if not timm.is_model(model.arch):
        raise UsageError("unknown_model", f"timm has no {model.arch}")
    twin: nn.Module = timm.create_model(model.arch, num_classes=model.num_classes, in_chans=model.config.in_chans)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def import_timm() -> Any:
    """The module; UsageError `missing_dependency` where it is not installed or cannot be imported."""
    try:
        return importlib.import_module("timm")
    except Exception as error:  # torchvision, which it imports, raises RuntimeError over a torch that it does not fit
        why = "is not installed" if getattr(error, "name", "") == "timm" else f"cannot be imported: {_short(error)}"
        raise UsageError(
            "missing_dependency",
            f"timm {why}",
            hint="install it with a torchvision that fits this torch, or run `scripts/bench cpu` in a source checkout",
        ) from None


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Row:
    """What became of a candidate at one batch size; None for what was not measured. A CSV has these columns."""

    model: str
    candidate: str
    precision: str
    batch: int  # images a pass
    reads: str  # "uint8" pixels or normalised "float32"
    status: str = "ok"  # or the code of an error, "failed" for one without a code, "wrong_answer"
    note: str = ""
    images_per_second: float | None = None  # median of the rounds
    slowest: float | None = None  # round, images a second
    fastest: float | None = None
    ratio: float | None = None  # of medians, to the candidate `against`
    ratio_lowest: float | None = None  # of the rounds' own ratios
    ratio_highest: float | None = None
    against: str = ""  # the first candidate that ran
    difference: float | None = None  # of the logits from the model's own in float32, relative to their length
    gemm_gflops: float | None = None  # GFLOP a second of a large matrix product in this precision, median
    share_of_gemm: float | None = None  # the model's 2 x MACs a second as part of that
    ready_seconds: float | None = None  # converting, compiling and the first pass
    cold: bool = True  # False: what was converted for an earlier batch size could be used again
    peak_mb: float | None = None  # most memory (10^6 bytes) that getting ready and running added to the process or GPU
    rounds: int = 0
    passes: int = 0  # a round
    gmacs: float = 0.0
    weights: str = ""
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)
    hardware: str = ""
    torch: str = torch.__version__
    tessella: str = __version__
    versions: str = dataclasses.field(default_factory=lambda: other_versions())
    date: str = dataclasses.field(default_factory=lambda: time.strftime("%Y-%m-%d"))


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


@dataclass
class _Lane:
    """A candidate that is open, or a matrix product: one that takes turns."""

    turn: Callable[[], float]  # -> seconds a pass
    seconds: list[float] = dataclasses.field(default_factory=list)
    error: Exception | None = None


def measure(
    case: Case,
    candidates: Sequence[Candidate],
    batches: Sequence[int],
    rounds: int = 7,
    *,
    gemm_side: int | None = None,
    turn_seconds: float | None = None,
) -> Iterator[list[Row]]:
    """Rows of one batch size at a time, in the order of the candidates; one that fails is a row that says why.

    batches: images a pass. gemm_side: rows and columns of the matrices whose product is the limit. turn_seconds: how
    long a turn is at least, where a pass is shorter.
    """
    side = gemm_side or GEMM_SIDE.get(torch.device(case.device).type, 2048)
    turn_seconds = TURN_SECONDS if turn_seconds is None else turn_seconds
    facts: dict[str, Any] = dict(
        model=case.name, gmacs=case.macs / 1e9, weights=case.weights, hardware=hardware(case.device)
    )
    with tempfile.TemporaryDirectory(prefix="tessella-bench-", ignore_cleanup_errors=True) as folder:
        for batch in batches:
            rows = [Row(candidate=one.name, precision=one.precision, reads=one.reads, batch=batch, **facts)
                    for one in candidates]  # fmt: skip
            inputs, expected = _inputs(case, batch)
            lanes: dict[int, _Lane] = {}
            for index, (one, row) in enumerate(zip(candidates, rows, strict=True)):
                own = Path(folder) / str(index)
                row.cold = not own.exists()
                try:
                    make = one.plan(case, batch)  # before the caches move: what was tuned is read from the user's own
                    with _caches_in(own):
                        lanes[index] = _open(make, inputs[one.reads], expected, case.device, turn_seconds, row)
                except Exception as error:  # whatever a converter or a runtime raises is this candidate's result
                    _fail(row, error)
            precisions = dict.fromkeys(rows[index].precision for index in lanes)
            products = {one: _gemm_lane(one, case.device, side, turn_seconds) for one in precisions}
            take_turns([*(lane for lane in products.values() if lane), *lanes.values()], rounds)
            _fill_rows(rows, lanes, products, 2 * side**3)
            lanes.clear()
            gc.collect()
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()  # programs of this batch size would count against the compiler's limit
            yield rows


def _inputs(case: Case, batch: int) -> tuple[dict[str, Tensor], Tensor]:
    """The same images in both forms, on the device, and the model's own logits of the first two."""
    spec = case.spec
    shape = (batch, spec.height, spec.width, spec.channels)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = normalise(pixels, spec)
    with torch.inference_mode():
        expected = case.model(images[:2])
    return {"uint8": pixels.to(case.device), "float32": images.to(case.device)}, expected


def _open(make: Callable[[], Opened], x: Tensor, expected: Tensor, device: str, turn_seconds: float, row: Row) -> _Lane:
    """A candidate ready to take turns, its answer checked; `row` gets what was learnt on the way."""
    memory = PeakMemory(device)
    start = time.perf_counter()
    opened = make()
    row.precision, row.note = opened.precision, opened.note
    found = opened.run(x)
    _synchronise(device)
    row.ready_seconds = time.perf_counter() - start + opened.earlier_seconds
    lane, row.passes = _lane(lambda: opened.run(x), device, turn_seconds)
    row.peak_mb = memory.peak_mb()
    row.difference = relative_difference(found[: len(expected)], expected)
    if not row.difference <= TOLERANCE.get(row.precision, LOSSY_TOLERANCE):  # so that NaN fails too
        raise WrongAnswerError(f"its answers differ from the model's own by {row.difference:.2g} of their length")
    return lane


class WrongAnswerError(Exception):
    """A candidate computes another function than the model; its speed means nothing."""


def _lane(run: Callable[[], object], device: str, turn_seconds: float) -> tuple[_Lane, int]:
    """A lane warmed up by two passes, of which the second says how many are a turn; and how many are."""

    def turn(passes: int) -> float:
        # Threads of the one before may still spin, ONNX Runtime's for 40 ms: a pass meanwhile took twice as long.
        time.sleep(turn_seconds / 2)
        if passes > 1:
            run()  # not counted: it finds the caches full of the one before
        _synchronise(device)
        start = time.perf_counter()
        for _ in range(passes):
            run()
        _synchronise(device)
        return (time.perf_counter() - start) / passes

    turn(1)
    passes = max(1, round(turn_seconds / max(turn(1), 1e-4)))
    return _Lane(lambda: turn(passes)), passes


def take_turns(lanes: Sequence[_Lane], rounds: int) -> None:
    """A B C, A B C, ...: one turn each a round; a lane that fails is out, and the others go on."""
    for _ in range(rounds):
        for lane in lanes:
            if lane.error is None:
                try:
                    lane.seconds.append(lane.turn())
                except Exception as error:  # see measure
                    lane.error = error


def _gemm_lane(precision: str, device: str, side: int, turn_seconds: float) -> _Lane | None:
    """A product of two square matrices; None for a precision that PyTorch has no product for here."""
    try:
        if precision == "int8":
            left = torch.ones(side, side, dtype=torch.int8, device=device)
            return _lane(lambda: torch._int_mm(left, left), device, turn_seconds)[0]
        left = torch.ones(side, side, dtype=getattr(torch, precision), device=device)
        out = torch.empty_like(left)
        return _lane(lambda: torch.mm(left, left, out=out), device, turn_seconds)[0]
    except (AttributeError, RuntimeError, TypeError):
        return None


def _fill_rows(
    rows: Sequence[Row], lanes: Mapping[int, _Lane], products: Mapping[str, _Lane | None], product_flop: int
) -> None:
    """What the turns of the lanes, which have the indices of their rows, and of the matrix products say."""
    first = next((index for index, lane in lanes.items() if not lane.error), None)
    for index, lane in lanes.items():
        row = rows[index]
        if lane.error or first is None:
            _fail(row, lane.error)
            continue
        _compare(row, lane.seconds, lanes[first].seconds)
        row.against = f"{rows[first].candidate}, {rows[first].precision}"
        product = products[row.precision]
        if product and not product.error:
            assert row.images_per_second
            row.gemm_gflops = product_flop / statistics.median(product.seconds) / 1e9
            row.share_of_gemm = 2 * row.gmacs * row.images_per_second / row.gemm_gflops


def _compare(row: Row, seconds: Sequence[float], base: Sequence[float]) -> None:
    """Seconds a pass in each round, its own and those of the candidate that it is compared with."""
    row.rounds = len(seconds)
    row.images_per_second = row.batch / statistics.median(seconds)
    row.slowest, row.fastest = row.batch / max(seconds), row.batch / min(seconds)
    row.ratio = statistics.median(base) / statistics.median(seconds)
    pairs = [theirs / own for theirs, own in zip(base, seconds, strict=True)]
    row.ratio_lowest, row.ratio_highest = min(pairs), max(pairs)


def _fail(row: Row, error: Exception | None) -> None:
    row.status, row.note = "failed", _short(error) if error else ""
    if isinstance(error, WrongAnswerError):
        row.status, row.note = "wrong_answer", str(error)
    elif isinstance(error, TessellaError):
        row.status, row.note = error.code, str(error)


def _short(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200]


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Length of the difference relative to that of `expected`; both (B,classes)."""
    expected = expected.double()
    return float((found.detach().cpu().double() - expected).norm() / expected.norm())


# --- the machine ------------------------------------------------------------------------------------------------------


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class PeakMemory:
    """How much more memory than now was held at most since: the GPU's, else the process's, which only Linux tells."""

    def __init__(self, device: str):
        gc.collect()  # what is freed meanwhile would hide what is added
        self.device = device if device.startswith("cuda") else None
        self.known = True
        if self.device:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the high water mark to what is held now
            self.before = _status("VmRSS")
        except (OSError, StopIteration):
            self.known = False

    def peak_mb(self) -> float | None:
        if not self.known:
            return None
        peak = torch.cuda.max_memory_allocated(self.device) if self.device else _status("VmHWM")
        return max(peak - self.before, 0) / 1e6


def _status(field: str) -> int:
    """Bytes that Linux gives for a field of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


@contextmanager
def _caches_in(folder: Path) -> Iterator[None]:
    """Converted and compiled models are kept in `folder` meanwhile: conversions are timed cold, the user's stay."""
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


# --- the command ------------------------------------------------------------------------------------------------------


@checked
def bench(
    names: Sequence[str],
    *,
    batches: Sequence[int] = (8, 1),
    precisions: Sequence[str] = ("float32",),
    engines: Sequence[str] = DEFAULT_ENGINES,
    against: str | None = None,
    pretrained: bool = False,
    device: str = "auto",
    rounds: int = 7,
) -> Iterator[list[Row]]:
    """Rows of one model and batch size at a time. UsageError for what cannot be asked, before anything is measured.

    against: "timm" puts timm's own models first, as what the others are compared with.
    """
    for what, given, known in (("engine", engines, ENGINES), ("precision", precisions, PRECISIONS)):
        for one in given:
            if one not in known and one != "auto":
                raise UsageError("bad_argument", f"{what} is {one!r}, expected auto, {' or '.join(known)}")
    if not batches or any(batch < 1 for batch in batches):
        raise UsageError("bad_argument", f"batch sizes are {list(batches)}, expected positive numbers of images")
    for name in names:
        if ":" not in name:
            resolve(name)
    where = make_plan(device=device, precision="float32", engine="eager").device
    candidates = [ours(engine, precision) for precision, engine in itertools.product(precisions, engines)]
    if against:
        import_timm()
        floats = [one for one in precisions if one in ("float32", "bfloat16")] or ["float32"]
        candidates = [*(timm_eager(one) for one in floats), *candidates]

    def rows() -> Iterator[list[Row]]:
        for name in names:
            yield from measure(load_case(name, pretrained=pretrained, device=where), candidates, batches, rounds)

    return rows()


def csv_bytes(rows: Sequence[Row]) -> bytes:
    """A header of COLUMNS and a line a row; figures have four digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(as_dict(row).values())
    return text.getvalue().encode()


def as_dict(row: Row) -> dict[str, Any]:
    """The columns of a row, in order; measured figures rounded to four digits."""
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in dataclasses.asdict(row).items()
    }


HEADER = ("model", "candidate", "batch", "images/s", "slowest..fastest", "ratio", "of limit", "peak MB", "ready s", "")


def cells(row: Row) -> tuple[str, ...]:
    """A row for a person to read, under HEADER."""
    computed = "" if row.precision in row.candidate else f", {row.precision}"
    what = (short_name(row.model), row.candidate + computed, str(row.batch))
    if row.images_per_second is None:
        return (*what, row.status, "", "", "", "", "", row.note)
    return (
        *what,
        _figure(row.images_per_second),
        f"{_figure(row.slowest)}..{_figure(row.fastest)}",
        f"{row.ratio:.2f} ({row.ratio_lowest:.2f}..{row.ratio_highest:.2f})",
        "" if row.share_of_gemm is None else f"{100 * row.share_of_gemm:.0f} %",
        "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        f"{_figure(row.ready_seconds)}{'' if row.cold else ' (cached)'}",
        row.note.partition(":")[0],
    )


def _figure(value: float | None) -> str:
    """Three digits, no exponent."""
    assert value is not None
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def conditions(rows: Sequence[Row]) -> Iterator[str]:
    """What else a reader must know, as sentences."""
    one = rows[0]
    rates = {row.precision: row.gemm_gflops for row in rows if row.gemm_gflops}
    yield f"{one.hardware}, {one.threads} threads, torch {one.torch}, {max(row.rounds for row in rows)} rounds by turns"
    if rates:
        told = ", ".join(f"{rate:.0f} in {precision}" for precision, rate in rates.items())
        yield f"limit: products of large matrices in the same rounds, {told} GFLOP/s"
    yield "ratio: of medians to the first candidate that ran, and the lowest and highest of a round"
    if any(row.weights == "random" for row in rows):
        yield "weights are random where none are built in (--pretrained loads them): speed does not depend on them"


# --- the picture ------------------------------------------------------------------------------------------------------


def top1(name: str) -> float | None:
    """Published accuracy on ImageNet-1k's validation set, in per cent."""
    found = {} if ":" in name else published_accuracy(name)
    return found["imagenet"].top1 if "imagenet" in found else None


def check_picture(names: Sequence[str]) -> None:
    """UsageError where a picture could not be drawn: `missing_dependency`, or no model with a published accuracy."""
    require("matplotlib", "--picture")
    if all(top1(name) is None for name in names):
        raise UsageError(
            "bad_argument",
            f"a picture shows speed against published accuracy, and none is published for {', '.join(names)}",
            hint="name a model that `tessella list` shows a top-1 for",
        )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot speed against published accuracy, one panel per batch size, to a .png or .svg file.

    A picture that cannot be drawn costs a warning. Raises as `check_picture`, and TessellaError `output_failed`.
    """
    from ..plots.figures import draw_or_warn

    check_picture([row.model for row in rows])
    if data := draw_or_warn(str(path), lambda: _draw(rows, path.suffix)):
        write_bytes(path, data)


def _draw(rows: Sequence[Row], suffix: str) -> bytes:
    figures, ticker = (importlib.import_module(f"matplotlib.{name}") for name in ("figure", "ticker"))
    batches = list(dict.fromkeys(row.batch for row in rows))
    series = list(dict.fromkeys((row.candidate, row.precision) for row in rows if row.images_per_second))
    figure = figures.Figure(figsize=(1.5 + 5 * len(batches), 5), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for batch, panel in zip(batches, panels, strict=True):
        drawn = [row for row in rows if row.batch == batch and row.images_per_second and top1(row.model)]
        for index, (candidate, precision) in enumerate(series):
            points = [row for row in drawn if (row.candidate, row.precision) == (candidate, precision)]
            colour, shape = STYLES[index % len(STYLES)]
            inside = colour if index < len(STYLES) else "white"
            panel.scatter(
                [row.images_per_second for row in points],
                [top1(row.model) for row in points],
                s=45, facecolors=inside, marker=shape, edgecolors=colour, linewidths=1.5, zorder=2 + index,
                label=f"{candidate}, {precision}",
            )  # fmt: skip
        for name in dict.fromkeys(row.model for row in drawn):
            speeds = [row.images_per_second for row in drawn if row.model == name]
            panel.plot(speeds, [top1(name)] * len(speeds), color="0.8", linewidth=1, zorder=1)
            end = (max(filter(None, speeds)), top1(name))
            panel.annotate(short_name(name), end, (0, 7), textcoords="offset points", ha="center", fontsize=8)
        panel.set_xscale("log")
        panel.margins(0.2)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
        panel.set_xlabel("speed (images a second, median)")
        panel.set_title(f"batch {batch}", fontsize=10)
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("published top-1 accuracy, ImageNet-1k (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(f"{rows[0].hardware}, {rows[0].threads} threads", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:].lower(), dpi=150)
    return buffer.getvalue()
