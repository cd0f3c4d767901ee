"""The kernels: in Triton's interpreter against float64, as PyTorch operators, and swapped into a model.

Triton reads its settings when it is imported, so they are set in another process, which disturbs no other test.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.engine import selection
from tessella.engine.compiled import compile_alone, planned_kernels
from tessella.engine.kernels import EXPERIMENTAL, has_triton, use_kernels
from tessella.engine.kernels import depthwise as depthwise_file
from tessella.engine.kernels import gpsa as gpsa_file
from tessella.engine.kernels import token_mlp as token_mlp_file
from tessella.engine.kernels.depthwise import depthwise
from tessella.engine.kernels.gpsa import gpsa
from tessella.engine.kernels.token_mlp import TokenMlpWeights, token_mlp
from tessella.engine.rewrites import rewrite
from tessella.engine.selection import AttentionCalls, choose_attention, choose_kernels, fastest, input_of
from tessella.errors import UsageError

from ..models.tiny import TINY, images, size_of, tiny
from .test_rewrites import ODD, made

CLOSE: dict[str, Any] = dict(rtol=1e-11, atol=1e-11)
OFF = {torch.float32: 1e-6, torch.bfloat16: 1.5e-2, torch.float16: 1e-3}  # relative; inputs are rounded beforehand
DTYPES = list(OFF)
SWAPPED = {
    "convmixer": ["net.blocks.0", "net.blocks.1"],
    "convmixer_relu": ["net.blocks.0", "net.blocks.1"],
    "convit": ["net.blocks.0.attn"],
    "mixer": ["net.blocks.0", "net.blocks.1"],
    "gmixer": ["net.blocks.0", "net.blocks.1"],
}
MODULE = {"depthwise": depthwise_file, "gpsa": gpsa_file, "token_mlp": token_mlp_file}
OPERATOR: dict[str, Any] = {"depthwise": depthwise, "gpsa": gpsa, "token_mlp": token_mlp}


def depthwise_inputs(
    shape: tuple[int, int, int, int], k: int, act: str, channels_last: bool, dtype: torch.dtype
) -> list[Any]:
    noise = torch.Generator().manual_seed(0)
    depth = shape[1]
    x, weight = torch.randn(shape, generator=noise), torch.randn(k, k, depth, generator=noise) / k
    bias, low, scale = torch.randn(3, depth, generator=noise)
    high = low + 1
    low[::2], high[1::2] = -math.inf, math.inf  # as for negative and positive scales of batch norms
    after = [low, high, None] if act == "clamp" else [None, None, scale]
    return [*(t if t is None else t.to(dtype) for t in (x, weight, bias, *after)), channels_last]


def gpsa_inputs(batch: int, tokens: int, heads: int, width: int, pad: int, dtype: torch.dtype) -> list[Any]:
    noise = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * heads * width, generator=noise)
    position = torch.rand(heads, tokens, tokens + pad, generator=noise).softmax(-1)
    position[..., tokens:] = math.nan  # must not be read
    return [t.to(dtype) for t in (qkv, torch.rand(heads, generator=noise), position)]


def token_mlp_inputs(
    batch: int, tokens: int, width: int, hidden: int, gated: bool, pad: int, dtype: torch.dtype
) -> list[Any]:
    noise = torch.Generator().manual_seed(0)
    rows = 2 * hidden if gated else hidden
    x = torch.randn(batch, tokens, width, generator=noise)
    weight1 = torch.randn(rows, tokens + pad, generator=noise) / tokens**0.5
    weight2 = torch.randn(tokens, hidden + pad, generator=noise) / hidden**0.5
    weight1[:, tokens:], weight2[:, hidden:] = math.nan, math.nan  # must not be read
    vectors = [torch.randn(n, generator=noise) for n in (width, width, rows, tokens)]
    scale, shift, bias1, bias2 = vectors
    var, mean = torch.var_mean(x, dim=-1, correction=0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    halves = [t.to(dtype) for t in (scale, shift, weight1, bias1, weight2, bias2)]
    return [x.to(dtype), mean.to(exact), (var + 1e-6).rsqrt().to(exact), TokenMlpWeights(*halves), gated]


INPUTS: dict[str, Callable[..., list[Any]]] = {
    "depthwise": depthwise_inputs,
    "gpsa": gpsa_inputs,
    "token_mlp": token_mlp_inputs,
}


def doubled(inputs: list[Any]) -> list[Any]:
    def as_double(value: Any) -> Any:
        if isinstance(value, TokenMlpWeights):
            return TokenMlpWeights(*map(as_double, value))
        return value.double() if isinstance(value, Tensor) else value

    return [as_double(value) for value in inputs]


# --- in Triton's interpreter, in another process ----------------------------------------------------------------------


def start_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    warnings.simplefilter("error")
    torch.set_num_threads(1)


def difference_from_float64(kernel: str, args: tuple[Any, ...]) -> float:
    """Return the relative difference of the kernel in the interpreter from float64; fail unless Triton ran it."""
    inputs = INPUTS[kernel](*args)
    expected = MODULE[kernel].plain(*doubled(inputs))
    actual = OPERATOR[kernel](*inputs)
    assert "numpy" in type_of_runner(kernel, inputs[0])
    assert actual.dtype == inputs[0].dtype
    assert actual.stride() == expected.stride()
    return selection.relative_difference(actual, expected)


def type_of_runner(kernel: str, x: Tensor) -> str:
    """Return the implementation that runs the kernel on `x`: "plain", "compiled", or "numpy" for the interpreter."""
    from triton.runtime.interpreter import InterpretedFunction  # type: ignore[import-untyped,import-not-found,unused-ignore]

    run = MODULE[kernel].kernel_of(kernel, MODULE[kernel].plain, x, ())
    if run is MODULE[kernel].plain:
        return "plain"
    kernels = {"depthwise": "rows_of_an_image", "gpsa": "rows_of_a_head", "token_mlp": "slab_of_an_image"}
    return "numpy" if isinstance(run.__globals__[kernels[kernel]], InterpretedFunction) else "compiled"


def difference_of_models(case: str, layout: str) -> tuple[list[str], float]:
    """Return the names of the replaced modules, and the relative difference of their float32 outputs from float64."""
    model = made(case, **ODD[case])
    x = images(model, 1)
    if case.startswith("convmixer"):  # which reads any size; the interpreter is slow
        x = x[..., :12, :20]
    expected = rewrite(model)(x.double())[0]
    fast = rewrite(model.float())
    names = use_kernels(fast, layout)
    return list(names), selection.relative_difference(fast(x)[0], expected)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    if not has_triton():
        pytest.skip("Triton is not installed, so its interpreter is not there either")
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, initializer=start_interpreter) as pool:
        yield pool


@pytest.mark.parametrize(
    ("act", "channels_last", "dtype"),
    [
        ("clamp", True, torch.float32),
        ("clamp", False, torch.float32),
        ("gelu", True, torch.float32),
        ("clamp", False, torch.bfloat16),
        ("gelu", True, torch.float16),
    ],
)
def test_depthwise(interpreter: ProcessPoolExecutor, act: str, channels_last: bool, dtype: torch.dtype) -> None:
    args = ((2, 3, 5, 6), 3, act, channels_last, dtype)  # the last row, columns and channels do not fill a block
    assert interpreter.submit(difference_from_float64, "depthwise", args).result() < OFF[dtype]


@pytest.mark.parametrize(
    ("shape", "k", "channels_last"),
    [((1, 70, 2, 3), 3, True), ((1, 20, 2, 35), 3, False), ((1, 2, 5, 3), 5, True), ((1, 1, 1, 1), 7, False)],
)
def test_depthwise_of_more_or_less_than_one_block(
    interpreter: ProcessPoolExecutor, shape: Any, k: int, channels_last: bool
) -> None:
    args = (shape, k, "clamp", channels_last, torch.float32)
    assert interpreter.submit(difference_from_float64, "depthwise", args).result() < OFF[torch.float32]


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width", "pad", "dtype"),
    [
        *((2, 15, 3, 5, 1, dtype) for dtype in DTYPES),
        (1, 196, 1, 48, 12, torch.bfloat16),
        (1, 1, 1, 1, 0, torch.float32),
    ],
)
def test_gpsa(
    interpreter: ProcessPoolExecutor, dtype: torch.dtype, batch: int, tokens: int, heads: int, width: int, pad: int
) -> None:
    args = (batch, tokens, heads, width, pad, dtype)
    assert interpreter.submit(difference_from_float64, "gpsa", args).result() < OFF[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "hidden", "pad"), [(2, 15, 10, 6, 1), (1, 196, 70, 50, 12), (1, 1, 1, 1, 0)]
)
def test_token_mlp(
    interpreter: ProcessPoolExecutor,
    dtype: torch.dtype,
    gated: bool,
    batch: int,
    tokens: int,
    width: int,
    hidden: int,
    pad: int,
) -> None:
    args = (batch, tokens, width, hidden, gated, pad, dtype)
    assert interpreter.submit(difference_from_float64, "token_mlp", args).result() < OFF[dtype]


@pytest.mark.parametrize(
    ("case", "layout"),
    [("convmixer", "channels_first"), *((case, "channels_last") for case in SWAPPED if case != "convmixer")],
)
def test_models_with_kernels(interpreter: ProcessPoolExecutor, case: str, layout: str) -> None:
    names, off = interpreter.submit(difference_of_models, case, layout).result()
    assert names[0] == SWAPPED[case][0]
    assert off < 1e-5


# --- as PyTorch operators ---------------------------------------------------------------------------------------------


def test_cpus_always_run_the_plain_functions() -> None:
    assert os.environ.get("TRITON_INTERPRET") != "1"
    inputs = gpsa_inputs(1, 4, 2, 3, 0, torch.float32)
    assert torch.equal(gpsa(*inputs), gpsa_file.plain(*inputs))


@pytest.mark.parametrize(
    ("kernel", "args"),
    [
        *(
            ("depthwise", ((2, 3, 5, 4), 3, act, channels_last, dtype))
            for act, channels_last, dtype in [("clamp", True, torch.bfloat16), ("gelu", False, torch.float64)]
        ),
        ("gpsa", (2, 5, 2, 3, 1, torch.float32)),
        ("gpsa", (1, 1, 1, 1, 0, torch.float16)),
        ("token_mlp", (2, 5, 4, 3, True, 1, torch.float32)),
        ("token_mlp", (1, 4, 3, 2, False, 0, torch.bfloat16)),
    ],
)
def test_fake_implementations_have_the_right_shapes(kernel: str, args: tuple[Any, ...]) -> None:
    inputs = INPUTS[kernel](*args)
    if kernel != "depthwise":  # opcheck compares inputs before and after, and NaN is not equal to itself
        inputs = [t.nan_to_num() if isinstance(t, Tensor) else t for t in inputs]
    else:  # an input in the other layout
        inputs[0] = inputs[0].contiguous(memory_format=torch.contiguous_format if inputs[-1] else torch.channels_last)
    torch.library.opcheck(OPERATOR[kernel], tuple(inputs))


@pytest.mark.parametrize("kernel", ["depthwise", "gpsa", "token_mlp"])
def test_plain_functions_round_once(kernel: str) -> None:
    args: dict[str, tuple[Any, ...]] = {
        "depthwise": ((2, 3, 5, 4), 3, "gelu", True),
        "gpsa": (2, 5, 2, 3, 1),
        "token_mlp": (2, 5, 4, 3, True, 1),
    }
    inputs = INPUTS[kernel](*args[kernel], torch.bfloat16)
    exact = MODULE[kernel].plain(*doubled(inputs))
    torch.testing.assert_close(MODULE[kernel].plain(*inputs), exact.bfloat16(), rtol=1e-2, atol=1e-5)


def test_nan_stays_nan() -> None:
    inputs = depthwise_inputs((1, 2, 3, 3), 3, "clamp", True, torch.float32)
    inputs[0][0, 0, 1, 1] = math.nan
    assert depthwise(*inputs)[0, 0].isnan().all()
    assert not depthwise(*inputs)[0, 1].isnan().any()


# --- in place of a model's modules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
@pytest.mark.parametrize(
    ("case", "layout"),
    [
        *((case, "channels_last") for case in SWAPPED),
        ("convmixer", "channels_first"),
        ("convmixer_relu", "channels_first"),
    ],
)
@torch.no_grad()
def test_models_with_kernels_give_the_same_outputs(case: str, layout: str, odd: bool) -> None:
    model = made(case, **(ODD[case] if odd else {}))
    x = images(model, 2).double()
    rewritten = rewrite(model)
    fast = copy.deepcopy(rewritten)
    names = list(use_kernels(fast, layout))
    assert names[: len(SWAPPED[case])] == SWAPPED[case]
    torch.testing.assert_close(fast(x), rewritten(x), **CLOSE)
    torch.testing.assert_close(fast.net.forward_intermediates(x), rewritten.net.forward_intermediates(x), **CLOSE)


@pytest.mark.parametrize("case", SWAPPED)
def test_weights_move_with_the_model(case: str) -> None:
    fast = rewrite(tiny(case))
    use_kernels(fast)
    assert {parameter.dtype for parameter in fast.bfloat16().parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert fast(images(tiny(case), 1).bfloat16())[0].dtype == torch.bfloat16


def test_modules_without_a_kernel_do_not_change() -> None:
    separable = rewrite(made("convit"), layout="separable")
    assert use_kernels(separable) == ()
    assert use_kernels(rewrite(made("resmlp"))) == ()
    assert use_kernels(rewrite(made("convmixer", kernel_size=4))) == ()
    assert use_kernels(rewrite(made("convmixer"), only=())) == ()
    with pytest.raises(UsageError, match="layout"):
        use_kernels(separable, "upside_down")


@pytest.mark.parametrize("case", ["convmixer", "gmixer"])
@torch.no_grad()
def test_compilers_see_the_operators(case: str) -> None:
    fast = rewrite(tiny(case))
    use_kernels(fast)
    x = images(tiny(case), 3)
    torch.testing.assert_close(compile_alone(fast, backend="aot_eager")(x), fast(x))


@pytest.mark.parametrize("case", ["convmixer", "convit"])
@torch.no_grad()
def test_exported_programs_have_the_operators(case: str) -> None:
    fast = rewrite(tiny(case))
    use_kernels(fast)
    x = images(tiny(case), 3)
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(program.module()(x[:1]), fast(x[:1]))
    assert any("tessella" in str(node.target) for node in program.graph.nodes)


# --- selection by measurement, without a GPU --------------------------------------------------------------------------

ONE = torch.ones(4)


def answer(value: float, seconds: float) -> Callable[[], Any]:
    """Return a candidate with a known output and duration; `seconds_of` returns the duration."""

    def run() -> Tensor:
        return ONE * value

    run.seconds = seconds  # type: ignore[attr-defined]
    return lambda: run


def seconds_of(run: Any) -> float:
    return float(run.seconds)


def broken() -> Any:
    raise NotImplementedError("no such instruction")


def test_the_fastest_correct_candidate_is_chosen_and_the_reason_has_all_times() -> None:
    candidates = {
        "slow": answer(1, 3e-3),
        "wrong": answer(1.5, 1e-3),
        "nothing": answer(math.nan, 1e-3),
        "fast": answer(1.001, 2e-3),
        "broken": broken,
    }
    best, choice = fastest("thing", candidates, ONE, 1e-2, "at batch 8", seconds_of)
    assert best == choice.chosen == "fast"
    assert choice.what == "thing"
    assert choice.reason == (
        "at batch 8: fast 2.000 ms, slow 3.000 ms, wrong is off by 5.0e-01, nothing is off by nan, "
        "broken failed (NotImplementedError)"
    )
    with pytest.raises(RuntimeError, match="broken failed") as caught:
        fastest("thing", {"broken": broken}, ONE, 1e-2, "at batch 8", seconds_of)
    assert isinstance(caught.value.__cause__, NotImplementedError)


@pytest.mark.parametrize("case", ["convmixer_relu", "convit", "gmixer", "crossvit"])
def test_kernels_are_chosen_by_the_time_of_one_block(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPERIMENTAL, "1")
    model = made(case)
    rewritten = rewrite(model)
    x = images(model, 2).double()
    prepared: list[tuple[str, Tensor]] = []

    def ready(module: nn.Module, block_input: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            y: Tensor = module(block_input)
            return y

        run.seconds = 1.0 if "Kernel" in type(module).__name__ else 2.0  # type: ignore[attr-defined]
        prepared.append((type(module).__name__, block_input))
        return run

    with torch.no_grad():
        expected = rewritten(x)
        fast, choice = choose_kernels(rewritten, lambda: rewritten(x), 1e-9, "batch 2", ready, seconds_of)
        torch.testing.assert_close(fast(x), expected, **CLOSE)
    if case == "crossvit" or not has_triton():
        assert fast is rewritten
        assert choice.chosen == "the compiler's"
        return
    assert fast is not rewritten
    assert choice.chosen.startswith("ours")
    assert "the compiler's 2000.000 ms" in choice.reason
    assert len(prepared) == (3 if case == "convmixer_relu" else 2)  # two layouts of ours, or one
    assert all(torch.equal(block_input, prepared[0][1]) for _, block_input in prepared)


@pytest.mark.parametrize("value", [None, "0", ""])
def test_kernels_are_off_unless_requested(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU has run them so far."""
    monkeypatch.delenv(EXPERIMENTAL, raising=False)
    if value is not None:
        monkeypatch.setenv(EXPERIMENTAL, value)
    rewritten = rewrite(made("convmixer"))

    def never(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
        raise AssertionError

    fast, choice = choose_kernels(rewritten, lambda: None, 1e-9, "batch 2", never)
    assert fast is rewritten
    assert choice == planned_kernels()
    assert choice.chosen == "the compiler's"
    assert f"{EXPERIMENTAL}=1" in choice.reason
    monkeypatch.setenv(EXPERIMENTAL, "1")
    assert planned_kernels().chosen != choice.chosen


def test_attention_is_timed_on_the_shapes_of_the_model() -> None:
    model = tiny("crossvit")
    x = images(model)
    rewritten = rewrite(model)
    backends = {name: selection.ATTENTION[name] for name in ("flash", "math")}  # backends of a CPU
    seconds = iter([2.0, 1.0] * selection.ROUNDS)
    with torch.no_grad():
        expected = rewritten(x)
        context, choices = choose_attention(
            lambda: rewritten(x), 1e-4, "batch 2", lambda run: run, lambda run: run() is None or next(seconds), backends
        )
        with context:
            assert not torch.backends.cuda.flash_sdp_enabled()
            torch.testing.assert_close(rewritten(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.backends.cuda.flash_sdp_enabled()
    assert [choice.chosen for choice in choices] == ["math"]
    assert "2 shapes at batch 2" in choices[0].reason
    mixer = rewrite(tiny("mixer"))
    assert choose_attention(lambda: mixer(images(tiny("mixer"))), 1e-4, "", lambda run: run)[1] == []


def test_attention_calls_are_recorded_once_per_shape() -> None:
    q = torch.randn(1, 2, 3, 4)
    with AttentionCalls() as recorder:
        for _ in range(2):
            torch.nn.functional.scaled_dot_product_attention(q, q, q, scale=0.1)
        torch.nn.functional.scaled_dot_product_attention(q, q[..., :2, :], q[..., :2, :])
    assert len(recorder.calls) == 2
    assert next(iter(recorder.calls.values())).keywords == {"scale": 0.1}


def test_input_of_returns_the_input_and_removes_its_hook() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Tanh())
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(input_of(net[1], lambda: net(x)), torch.tensor([0.0, 2.0]))
    assert not net[1]._forward_pre_hooks


def test_more_programs_than_the_compiler_allows_per_function() -> None:
    made_programs = []

    def backend(graph: Any, _: Any) -> Any:
        made_programs.append(graph)
        return graph

    for width in range(1, 12):
        program = compile_alone(nn.Linear(width, 1), backend=backend)
        assert program(torch.zeros(1, width)).shape == (1, 1)
    assert len(made_programs) == 11


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", TINY)
def test_on_a_gpu(case: str) -> None:
    from tessella.data.spec import InputSpec
    from tessella.engine import make_plan, open_engine

    model = tiny(case)
    height, width = size_of(model)
    spec = InputSpec(height=height, width=width)
    pixels = torch.randint(256, (5, height, width, 3), dtype=torch.uint8).numpy()
    reference = open_engine(model, make_plan("cpu", engine="eager"), (height, width), spec)
    fast = open_engine(model, make_plan("cuda", "bfloat16", "compile", 2), (height, width), spec)
    for actual, expected in zip(fast(pixels), reference(pixels), strict=True):
        assert selection.relative_difference(torch.from_numpy(actual), torch.from_numpy(expected)) < 3e-2
    assert {choice.what for choice in fast.choices} >= {"kernels"}  # type: ignore[attr-defined]
