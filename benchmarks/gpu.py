"""Compare Tessella with the usual ways to run timm's models on a GPU, in eight minutes: `scripts/bench gpu`.

First the kernels are compared with float64 at the real shapes. Then every model and batch size is measured: the eager
model, the model with torch.compile, the compiled engine, and timm's model both ways if timm can be imported. Candidates
take turns in one process, in bfloat16, and their logits are compared with float64 on the same images. What the time
limit does not allow is a row with the reason. Results are written to benchmarks/results.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIVE = ("convmixer_768_32", "convit_base", "gmixer_24_224", "mixer_b16_224", "crossvit_9_240")
RESULTS = Path(__file__).resolve().parent / "results"
TESSELLA, EAGER, COMPILE, TIMM, TIMM_COMPILE = "tessella", "eager", "torch.compile", "timm", "timm torch.compile"
TURN_SECONDS = 0.2  # per candidate and round, at least one pass
GEMM_SIDE = 8192
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}  # largest error of a kernel, relative to float64

Run = Callable[[], Any]
# prepares a candidate: returns (images -> logits, what it reads, function that returns its choices)
Make = Callable[[], tuple[Callable[[Tensor], Tensor], str, Callable[[], Any]]]


@dataclass
class Row:
    """The result of a candidate for one model and batch size; None for what was not measured."""

    model: str
    batch: int
    candidate: str
    reads: str = ""  # uint8 or normalized bfloat16 images, both already on the GPU
    status: str = "ok"  # or the reason why there are no figures
    images_per_second: float | None = None  # median of the rounds
    slowest: float | None = None
    fastest: float | None = None
    ms_per_pass: float | None = None
    rounds: int = 0
    passes: int = 0  # per round; at batch size 1 the GPU is synchronised after each
    ratio_to_best_stock: float | None = None  # of the medians; stock: eager, torch.compile and timm
    share_of_gemm: float | None = None  # 2 x MACs per second of the published model, as a fraction of gemm_tflops
    gemm_tflops: float | None = None  # of a large square matrix product in the same rounds, median
    peak_mb: float | None = None  # peak GPU memory (10^6 bytes) while it was prepared and run
    ready_seconds: float | None = None
    relative_difference: float | None = None  # of the logits, relative to float64
    same_top1: float | None = None  # fraction of the images compared
    choices: str = ""
    hardware: str = ""
    precision: str = "bfloat16"
    torch: str = torch.__version__
    date: str = time.strftime("%Y-%m-%d")


class Budget:
    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


# --- correctness of the kernels ---------------------------------------------------------------------------------------


def kernel_cases() -> Iterator[tuple[str, str, str, Any, Any, list[Any]]]:
    """Yield kernel, shape, type, operator, plain function, inputs: real shapes first, then odd ones with remainders."""
    from tessella.engine.kernels import depthwise, gpsa, token_mlp

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda")

    def convolution(shape: tuple[int, int, int, int], k: int, gelu: bool, last: bool, dtype: torch.dtype) -> Any:
        d = shape[1]
        low, scale = normal(d), normal(d)
        high = low + 1
        low[::2], high[1::2] = -torch.inf, torch.inf
        after = [None, None, scale] if gelu else [low, high, None]
        inputs = [t if t is None else t.to(dtype) for t in (normal(*shape), normal(k, k, d) / k, normal(d), *after)]
        name = f"depthwise {'gelu' if gelu else 'clamp'} {'NHWC' if last else 'NCHW'}"
        return name, f"{shape} k{k}", str(dtype), depthwise.depthwise, depthwise.plain, [*inputs, last]

    def attention(b: int, n: int, heads: int, d: int, dtype: torch.dtype) -> Any:
        inputs = [normal(b, n, 3 * heads * d), normal(heads).sigmoid(), normal(heads, n, n + 12).softmax(-1)]
        return "gpsa", str((b, n, heads, d)), str(dtype), gpsa.gpsa, gpsa.plain, [t.to(dtype) for t in inputs]

    def mlp(b: int, n: int, d: int, e: int, gated: bool, dtype: torch.dtype) -> Any:
        x, rows = normal(b, n, d), 2 * e if gated else e
        var, mean = torch.var_mean(x, dim=-1, correction=0)
        rest = [normal(d), normal(d), normal(rows, n + 12) / n**0.5, normal(rows), normal(n, e) / e**0.5, normal(n)]
        weights = token_mlp.TokenMlpWeights(*(t.to(dtype) for t in rest))
        inputs = [x.to(dtype), mean, (var + 1e-6).rsqrt(), weights, gated]
        name = f"token_mlp {'gated' if gated else 'gelu'}"
        return name, str((b, n, d, e)), str(dtype), token_mlp.token_mlp, token_mlp.plain, inputs

    torch.manual_seed(0)
    brain, half, single = torch.bfloat16, torch.float16, torch.float32
    for last in (True, False):
        yield convolution((64, 768, 32, 32), 7, False, last, brain)
    yield attention(64, 196, 16, 48, brain)
    yield mlp(64, 196, 384, 192, True, brain)
    yield mlp(64, 196, 768, 384, False, brain)
    yield convolution((2, 70, 9, 35), 5, True, True, single)
    yield attention(3, 15, 3, 5, half)
    yield mlp(3, 49, 70, 33, True, half)
    for last in (True, False):
        yield convolution((2, 1536, 32, 32), 9, True, last, brain)
    yield convolution((2, 70, 9, 35), 5, False, False, half)
    yield attention(2, 576, 16, 48, brain)
    yield mlp(2, 784, 70, 50, False, brain)
    yield attention(2, 196, 4, 48, single)
    yield mlp(2, 196, 70, 50, False, single)


def check_kernels(budget: Budget) -> list[dict[str, Any]]:
    """Return a row per case: the kernel's difference from float64, its time and the plain function's."""
    rows = []
    for kernel, shape, dtype, operator, plain, inputs in kernel_cases():
        row: dict[str, Any] = dict(kernel=kernel, shape=shape, dtype=dtype.removeprefix("torch."))
        if budget.left() < 0:
            rows.append(row | dict(status="dropped: no time left"))
            continue
        try:
            expected = plain(*map(as_double, inputs))
            off = difference(operator(*inputs), expected)
            times = dict(kernel_us=microseconds(operator, inputs), plain_us=microseconds(plain, inputs))
            row |= dict(relative_difference=off, **times, status="ok" if off < TOLERANCE[row["dtype"]] else "WRONG")
        except Exception as error:  # the others are still checked
            row |= dict(status=failure(error))
        rows.append(row)
        print(*row.values(), flush=True)
    return rows


def failure(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def as_double(value: Any) -> Any:
    """Convert an input of a kernel, a tensor or a tuple of them, to float64; return any other value unchanged."""
    if isinstance(value, tuple):
        return type(value)(*map(as_double, value))
    return value.double() if isinstance(value, Tensor) else value


def microseconds(function: Callable[..., Tensor], inputs: list[Any], times: int = 20) -> float:
    """Return the duration of one call (us) by the GPU's clock, the median of three rounds of `times` calls."""
    found = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            function(*inputs)
        end.record()
        end.synchronize()
        found.append(1e3 * start.elapsed_time(end) / times)
    return statistics.median(found)


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """An open candidate that takes turns."""

    row: Row
    run: Run
    wait_each: bool
    passes: int = 1
    seconds: list[float] | None = None  # per pass, one value per round

    def run_turn(self) -> float:
        """Run the passes of a turn and return the seconds per pass."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(self.passes):
            self.run()
            if self.wait_each:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / self.passes


def candidates(
    case: Any, batch: int, mode: str
) -> dict[str, Callable[[], tuple[Callable[[Tensor], Tensor], str, Any]]]:
    """Return for each candidate the function that prepares it: -> (images -> logits, what it reads, its choices)."""
    from tessella.engine import make_plan, open_engine

    size = (case.spec.height, case.spec.width)

    def engine(name: str) -> Any:
        def make() -> Any:
            opened: Any = open_engine(case.model, make_plan("cuda", "bfloat16", name, batch), size, case.spec)
            return lambda x: opened.run(x)[0], "uint8", lambda: getattr(opened, "choices", [])

        return make

    def module(get: Callable[[], torch.nn.Module], compile: bool) -> Any:
        def make() -> Any:
            net: Any = get().to("cuda", torch.bfloat16)
            return torch.no_grad()(torch.compile(net, mode=mode) if compile else net), "normalised", list

        return make

    def own() -> torch.nn.Module:
        return copy.deepcopy(case.model)

    found = {TESSELLA: engine("compile"), EAGER: engine("eager")}
    if twin := timm_twin(case.name):
        return found | {TIMM: module(twin, False), TIMM_COMPILE: module(twin, True), COMPILE: module(own, True)}
    return found | {COMPILE: module(own, True)}


def timm_twin(name: str) -> Callable[[], torch.nn.Module] | None:
    try:
        from peers import timm_importable, timm_model
    except ImportError:
        return None
    return (lambda: timm_model(name)) if timm_importable() else None


def measure(case: Any, batch: int, rounds: int, mode: str, budget: Budget) -> list[Row]:
    """Measure all candidates for one model and batch size in alternating rounds."""
    spec = case.spec
    shape = (batch, spec.height, spec.width, spec.channels)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).cuda()
    inputs = {"uint8": pixels, "normalised": normalize(pixels, spec).bfloat16()}
    few = pixels[:8]
    expected = reference_logits(case, few)
    contenders: list[Contender] = []
    rows: list[Row] = []
    for name, make in candidates(case, batch, mode).items():
        row = Row(case.name, batch, name, hardware=torch.cuda.get_device_name())
        rows.append(row)
        if budget.left() < 0:
            row.status = "dropped: no time left"
            continue
        try:
            torch.cuda.reset_peak_memory_stats()
            start, before = time.perf_counter(), torch.cuda.memory_allocated()
            run, row.reads, choices = make()
            x = inputs[row.reads]
            logits = run(x)[:8].double()
            torch.cuda.synchronize()
            row.ready_seconds = time.perf_counter() - start
            row.peak_mb = (torch.cuda.max_memory_allocated() - before) / 1e6
            row.relative_difference = difference(logits, expected)
            row.same_top1 = float((logits.argmax(-1) == expected.argmax(-1)).double().mean())
            row.choices = "; ".join(f"{one.what}: {one.chosen} ({one.reason})" for one in choices())
            contender = Contender(row, lambda run=run, x=x: run(x), wait_each=batch == 1)  # type: ignore[misc]
            contender.run_turn()
            contender.passes = max(1, int(TURN_SECONDS / contender.run_turn()))
            contenders.append(contender)
        except Exception as error:  # a candidate that fails is a row with the reason
            row.status = failure(error)
        print(
            f"  {name}: {row.status}, ready in {row.ready_seconds or 0:.0f} s, {budget.left():.0f} s left", flush=True
        )
    left, right = (torch.randn(GEMM_SIDE, GEMM_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    gemm = Contender(Row("", 0, "gemm"), lambda: left @ right, wait_each=False, passes=20)
    everything = [gemm, *contenders]
    for contender in everything:
        contender.seconds = []
    for _ in range(rounds):
        for contender in everything:
            assert contender.seconds is not None
            contender.seconds.append(contender.run_turn())
    fill(contenders, gemm, case.macs, batch, rounds)
    del contenders, everything, gemm
    gc.collect()
    torch.compiler.reset()  # programs of this batch size would count towards the compiler's limit
    torch.cuda.empty_cache()
    return rows


def fill(contenders: list[Contender], gemm: Contender, macs: int, batch: int, rounds: int) -> None:
    peak = 2 * GEMM_SIDE**3 / statistics.median(gemm.seconds or [])
    for contender in contenders:
        row, seconds = contender.row, contender.seconds or []
        taken = statistics.median(seconds)
        row.images_per_second, row.ms_per_pass = batch / taken, 1e3 * taken
        row.slowest, row.fastest = batch / max(seconds), batch / min(seconds)
        row.rounds, row.passes, row.gemm_tflops = rounds, contender.passes, peak / 1e12
        row.share_of_gemm = 2 * macs * batch / taken / peak
    stock = max(
        (contender.row.images_per_second or 0 for contender in contenders if contender.row.candidate != TESSELLA),
        default=0,
    )
    for contender in contenders:
        contender.row.ratio_to_best_stock = (contender.row.images_per_second or 0) / stock if stock else None


def normalize(pixels_BHWC: Tensor, spec: Any) -> Tensor:
    """Normalize (B,H,W,C) uint8 images to contiguous (B,C,H,W) float32."""
    mean, std = (torch.tensor(values, device="cuda") for values in (spec.mean, spec.std))
    return ((pixels_BHWC / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def reference_logits(case: Any, pixels_BHWC: Tensor) -> Tensor:
    """Return the logits of the eager model in float64 on the GPU."""
    mean, std = (torch.tensor(values, device="cuda", dtype=torch.float64) for values in (case.spec.mean, case.spec.std))
    x = ((pixels_BHWC.double() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    logits: Tensor = copy.deepcopy(case.model).to("cuda", torch.float64)(x)
    return logits


# --- output -----------------------------------------------------------------------------------------------------------


def result_path(what: str) -> Path:
    """Return <what>_<hardware>_<precision>_<torch>_<date>.csv, with a number if the file exists."""
    hardware = "-".join("".join(c if c.isalnum() else " " for c in torch.cuda.get_device_name().lower()).split())
    version = ".".join(torch.__version__.split(".")[:2])
    stem = f"{what}_{hardware}_bfloat16_torch{version}_{time.strftime('%Y-%m-%d')}"
    names = (RESULTS / f"{stem}{'' if number == 1 else f'_{number}'}.csv" for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: f"{v:.5g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=FIVE, metavar="NAME", help="models to measure")
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 1, 64], metavar="N", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds")
    parser.add_argument(
        "--seconds", type=float, default=450, help="time limit, after which no new candidate is started"
    )
    parser.add_argument("--mode", default="max-autotune", help="mode of torch.compile for the stock candidates")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        print(f"scripts/bench gpu needs a GPU: PyTorch {torch.__version__} (built with {built}) finds none here; "
              "for this machine's CPU use scripts/bench cpu", file=sys.stderr)  # fmt: skip
        return 2
    from tessella.performance.candidates import load_case

    budget = Budget(args.seconds)
    kernels = check_kernels(Budget(args.seconds / 4))  # most of which is compilation
    columns = ["kernel", "shape", "dtype", "status", "relative_difference", "kernel_us", "plain_us"]
    write(result_path("gpu-kernels"), columns, kernels)
    path = result_path("gpu")
    rows: list[Row] = []
    for batch in args.batches:
        for name in args.models:
            print(f"{name}, batch size {batch}", flush=True)
            if budget.left() < 0:
                rows.append(Row(name, batch, "all", status="dropped: no time left"))
                print("  dropped: no time left")
            else:
                rows += measure(load_case(name), batch, args.rounds, args.mode, budget)
            # after each group, so that an interrupt loses one at most
            write(path, [field.name for field in fields(Row)], [asdict(row) for row in rows])
    for row in rows:
        if row.images_per_second:
            print(f"{row.model:18} batch {row.batch:3}  {row.candidate:18} {row.images_per_second:9.0f} images/s  "
                  f"x{row.ratio_to_best_stock or 0:.2f} of best stock  {100 * (row.share_of_gemm or 0):.0f} % of GEMM  "
                  f"off {row.relative_difference:.1e}")  # fmt: skip
    print(f"all figures: {path}")
    wrong = [row for row in kernels if row["status"] not in ("ok", "dropped: no time left")]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
