"""Check the Triton kernels and measure the speed of models on a GPU, in eight minutes: `scripts/bench gpu --out DIR`.

Three parts, the most important first, each with its own file in the folder, rewritten after every row:

1. kernels.csv: every Triton kernel at the real shapes and types, compared with float64 on the GPU, and its time.
2. models.csv: the outputs of whole models with the kernels, compared with those of the eager model in float64.
3. speed.csv: eager PyTorch, torch.compile, Tessella's compiled engine, and the same with its experimental kernels, in
   bfloat16, for each model at batch sizes 256, 1 and 32. Candidates take turns in one process.

What the time limit does not allow is a row with the reason. The accelerator's settings are not changed. --dry-run runs
everything on a CPU with tiny inputs, the kernels in Triton's interpreter: it tests this script, not the speed.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
import torch
from table import RESULTS, unused_path
from torch import Tensor

FIVE = ("convmixer_768_32", "convit_base", "gmixer_24_224", "mixer_b16_224", "crossvit_9_240")
TINY = ("convmixer_256_8_ks3_p4", "gmixer_ti_p4_32")  # for --dry-run
DRY = "--dry-run" in sys.argv
DEVICE = "cpu" if DRY else "cuda"
OURS, KERNELS, EAGER, COMPILE = "tessella", "tessella, experimental kernels", "eager", "torch.compile"
TURN_SECONDS = 0.2  # per candidate and round, at least one pass
GEMM_SIDE = 256 if DRY else 8192
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}  # largest error, relative to float64
MODEL_TOLERANCE = {"bfloat16": 5e-2, "float32": 1e-4}  # of the logits of whole models
DROPPED = "dropped: no time left"

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
    passes: int = 0  # per round; at batch size 1 the GPU is synchronized after each
    ratio_to_best_stock: float | None = None  # of the medians; stock: eager and torch.compile
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
        return torch.randn(shape, device=DEVICE)

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
    if not DRY:
        for last in (True, False):
            yield convolution((64, 768, 32, 32), 7, False, last, brain)
        yield attention(64, 196, 16, 48, brain)
        yield mlp(64, 196, 384, 192, True, brain)
        yield mlp(64, 196, 768, 384, False, brain)
    yield convolution((2, 70, 9, 35), 5, True, True, single)
    yield attention(3, 15, 3, 5, half)
    yield mlp(3, 49, 70, 33, True, half)
    if not DRY:
        for last in (True, False):
            yield convolution((2, 1536, 32, 32), 9, True, last, brain)
        yield attention(2, 576, 16, 48, brain)
        yield mlp(2, 784, 70, 50, False, brain)
        yield attention(2, 196, 4, 48, single)
        yield mlp(2, 196, 70, 50, False, single)
    yield convolution((2, 70, 9, 35), 5, False, False, half)


KERNEL_COLUMNS = ("kernel", "shape", "dtype", "status", "relative_difference", "kernel_us", "plain_us", "hardware")


def check_kernels(budget: Budget, path: Path) -> list[dict[str, Any]]:
    """Return a row per case: the kernel's difference from float64, its time and the plain function's.

    Correctness of all kernels comes first: their times are measured only afterwards.
    """
    rows: list[dict[str, Any]] = []
    timed: list[tuple[dict[str, Any], Any, Any, list[Any]]] = []
    for kernel, shape, dtype, operator, plain, inputs in kernel_cases():
        row: dict[str, Any] = dict(kernel=kernel, shape=shape, dtype=dtype.removeprefix("torch."), hardware=hardware())
        rows.append(row)
        if budget.left() < 0:
            row["status"] = DROPPED
            continue
        try:
            off = difference(operator(*inputs), plain(*map(as_double, inputs)))
            row |= dict(relative_difference=off, status="ok" if off < TOLERANCE[row["dtype"]] else "WRONG")
            timed.append((row, operator, plain, inputs))
        except Exception as error:  # the others are still checked
            row |= dict(status=failure(error))
        print(*row.values(), flush=True)
        write(path, KERNEL_COLUMNS, rows)
    for row, operator, plain, inputs in [] if DRY else timed:
        if budget.left() > 0:
            row |= dict(kernel_us=microseconds(operator, inputs), plain_us=microseconds(plain, inputs))
            write(path, KERNEL_COLUMNS, rows)
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


# --- correctness of whole models --------------------------------------------------------------------------------------

MODEL_COLUMNS = ("model", "layout", "swapped", "status", "difference", "difference_without", "same_top1", "hardware")


def check_models(names: Sequence[str], budget: Budget, path: Path) -> list[dict[str, Any]]:
    """Return a row per model and layout: the difference of the logits from float64, with and without the kernels."""
    from tessella.engine.kernels import LAYOUTS, use_kernels
    from tessella.engine.rewrites import rewrite
    from tessella.performance.candidates import load_case

    rows: list[dict[str, Any]] = []
    dtype = torch.float32 if DRY else torch.bfloat16  # Triton's interpreter is exact in float32
    for name in names:
        case = load_case(name)
        pixels = random_pixels(case, 1 if DRY else 4)
        expected = reference_logits(case, pixels)
        images = pixels.permute(0, 3, 1, 2)
        for layout in LAYOUTS:
            row: dict[str, Any] = dict(model=name, layout=layout, hardware=hardware())
            if budget.left() < 0:
                rows.append(row | dict(status=DROPPED))
                continue
            try:
                with torch.no_grad():
                    plain = rewrite(case.model, spec=case.spec).to(DEVICE, dtype)
                    row["difference_without"] = difference(plain(images)[0], expected)
                    swapped = use_kernels(plain, layout)
                    logits = plain(images)[0]
                off, limit = difference(logits, expected), MODEL_TOLERANCE[str(dtype).removeprefix("torch.")]
                same = float((logits.argmax(-1) == expected.argmax(-1)).double().mean())
                status = "no kernel" if not swapped else "ok" if off < limit else "WRONG"
                row |= dict(swapped=len(swapped), difference=off, same_top1=same, status=status)
            except Exception as error:  # the others are still checked
                row |= dict(status=failure(error))
            rows.append(row)
            print(*row.values(), flush=True)
            write(path, MODEL_COLUMNS, rows)
            if row["status"] == "no kernel" or not name.startswith("convmixer"):  # the others have one layout
                break
    return rows


def hardware() -> str:
    return "CPU, dry run" if DRY else torch.cuda.get_device_name()


def random_pixels(case: Any, batch: int) -> Tensor:
    """Return (B,H,W,C) uint8 images on the device."""
    shape = (batch, case.spec.height, case.spec.width, case.spec.channels)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


# --- speed ------------------------------------------------------------------------------------------------------------


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
        synchronize()
        start = time.perf_counter()
        for _ in range(self.passes):
            self.run()
            if self.wait_each:
                synchronize()
        synchronize()
        return (time.perf_counter() - start) / self.passes


def candidates(case: Any, batch: int, autotune: bool) -> dict[str, Make]:
    """Return for each candidate the function that prepares it."""
    from tessella.engine import compiled, make_plan, open_engine
    from tessella.engine.kernels import EXPERIMENTAL

    size = (case.spec.height, case.spec.width)
    if not autotune:
        compiled.GPU_OPTIONS.clear()  # as for the stock candidate: tuning takes minutes per program

    def ours(kernels: bool) -> Make:
        def make() -> Any:
            os.environ[EXPERIMENTAL] = "1" if kernels else "0"
            plan = make_plan(
                DEVICE, "bfloat16", "rewritten" if DRY else "compile", batch, "throughput", case.network, size
            )
            opened: Any = open_engine(case.network, plan, size, case.spec)
            return lambda x: opened.run(x)[0], "uint8", lambda: getattr(opened, "choices", [])

        return make

    def stock(compile: bool) -> Make:
        def make() -> Any:
            net: Any = copy.deepcopy(case.model).to(DEVICE, torch.bfloat16)
            mode = "max-autotune" if autotune else "reduce-overhead"  # both with CUDA graphs
            run = torch.compile(net, mode=mode) if compile and not DRY else net
            return torch.no_grad()(lambda x: run(x).clone()), "normalized", list

        return make

    return {EAGER: stock(False), OURS: ours(False), COMPILE: stock(True), KERNELS: ours(True)}


def measure(case: Any, batch: int, rounds: int, autotune: bool, budget: Budget) -> list[Row]:
    """Measure all candidates for one model and batch size in alternating rounds."""
    pixels = random_pixels(case, batch)
    inputs = {"uint8": pixels, "normalized": normalize(pixels, case.spec).bfloat16()}
    few = pixels[:8]
    expected = reference_logits(case, few)
    contenders: list[Contender] = []
    rows: list[Row] = []
    for name, make in candidates(case, batch, autotune).items():
        row = Row(case.name, batch, name, hardware=hardware())
        rows.append(row)
        if budget.left() < 0:
            row.status = DROPPED
            continue
        try:
            before = start_memory()
            start = time.perf_counter()
            run, row.reads, choices = make()
            x = inputs[row.reads]
            logits = run(x)[:8].double()
            synchronize()
            row.ready_seconds = time.perf_counter() - start
            row.peak_mb = None if DRY else (torch.cuda.max_memory_allocated() - before) / 1e6
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
    left, right = (torch.randn(GEMM_SIDE, GEMM_SIDE, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
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
    if not DRY:
        torch.cuda.empty_cache()
    return rows


def start_memory() -> int:
    """Reset the peak of the GPU's memory and return what is allocated (bytes)."""
    if DRY:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


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
        (
            contender.row.images_per_second or 0
            for contender in contenders
            if contender.row.candidate in (EAGER, COMPILE)
        ),
        default=0,
    )
    for contender in contenders:
        contender.row.ratio_to_best_stock = (contender.row.images_per_second or 0) / stock if stock else None


def normalize(pixels_BHWC: Tensor, spec: Any) -> Tensor:
    """Normalize (B,H,W,C) uint8 images to contiguous (B,C,H,W) float32."""
    mean, std = (torch.tensor(values, device=DEVICE) for values in (spec.mean, spec.std))
    return ((pixels_BHWC / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def reference_logits(case: Any, pixels_BHWC: Tensor) -> Tensor:
    """Return the logits of the eager model in float64 on the GPU."""
    mean, std = (torch.tensor(values, device=DEVICE, dtype=torch.float64) for values in (case.spec.mean, case.spec.std))
    x = ((pixels_BHWC.double() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    logits: Tensor = copy.deepcopy(case.model).to(DEVICE, torch.float64)(x)
    return logits


# --- output -----------------------------------------------------------------------------------------------------------


def write(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows so far, so that an interrupt loses one at most."""
    draft = path.with_suffix(".part")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.5g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    draft.replace(path)


def measure_all(args: argparse.Namespace, budget: Budget, path: Path) -> list[Row]:
    """Measure every batch size and model until the time is used up."""
    from tessella.performance.candidates import load_case

    rows: list[Row] = []
    for batch in args.batches:
        for name in args.models:
            print(f"{name}, batch size {batch}, {budget.left():.0f} s left", flush=True)
            if budget.left() < 0:
                rows.append(Row(name, batch, "all", status=DROPPED))
            else:
                try:
                    rows += measure(load_case(name), batch, args.rounds, args.autotune, budget)
                except Exception as error:  # such as too little memory for the reference; the others are still measured
                    rows.append(Row(name, batch, "all", status=failure(error)))
            write(path, [one.name for one in fields(Row)], [asdict(row) for row in rows])
    return rows


def parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the results  [default: a new one in benchmarks/results]")
    parser.add_argument("--models", nargs="+", default=TINY if DRY else FIVE, metavar="NAME", help="models to measure")
    parser.add_argument("--batches", nargs="+", type=int, default=[2] if DRY else [256, 1, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=2 if DRY else 7, help="number of timed rounds")
    parser.add_argument("--seconds", type=float, default=400, help="time limit, after which nothing new is started")
    parser.add_argument(
        "--autotune",
        action="store_true",
        help="let the compiler tune its code, for stock and Tessella, which takes long",
    )
    parser.add_argument("--dry-run", action="store_true", help="run on a CPU with tiny inputs, to test this script")
    return parser.parse_args()


def main() -> int:
    args = parse()
    if not DRY and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        print(f"scripts/bench gpu needs a GPU: PyTorch {torch.__version__} (built with {built}) finds none here; "
              "for this machine's CPU use scripts/bench cpu", file=sys.stderr)  # fmt: skip
        return 2
    name = f"gpu_{'-'.join(hardware().lower().split())}_{time.strftime('%Y-%m-%d')}"
    folder = args.out or unused_path(RESULTS / name)
    folder.mkdir(parents=True, exist_ok=True)
    budget = Budget(args.seconds)
    kernels = check_kernels(Budget(args.seconds / 4), folder / "kernels.csv")  # most of which is compilation
    models = check_models(args.models, Budget(args.seconds / 6), folder / "models.csv")
    rows = measure_all(args, budget, folder / "speed.csv")
    for row in rows:
        if row.images_per_second:
            print(f"{row.model:18} batch {row.batch:3}  {row.candidate:30} {row.images_per_second:9.0f} images/s  "
                  f"x{row.ratio_to_best_stock or 0:.2f} of best stock  {100 * (row.share_of_gemm or 0):.0f} % of GEMM  "
                  f"off {row.relative_difference:.1e}")  # fmt: skip
    print(f"all figures: {folder}")
    wrong = [row for row in (*kernels, *models) if row["status"] not in ("ok", "no kernel", DROPPED)]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
