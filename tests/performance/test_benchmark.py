"""`tessella bench`: alternating rounds, figures, failures as rows, output files; speeds are not compared."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.cli.program import main
from tessella.data.spec import InputSpec
from tessella.engine.artefacts import cache_folder, cached
from tessella.errors import UsageError
from tessella.performance import measuring, table
from tessella.performance.benchmark import BenchmarkSettings, bench
from tessella.performance.candidates import Candidate, Case, OpenCandidate, engine_candidate, in_torch, load_case
from tessella.performance.measuring import BenchmarkRow, Contender, fill_rows, measure, take_turns
from tessella.performance.memory import PeakMemory
from tessella.records import slug
from tessella.weights.catalogue import default_model
from tessella.weights.counting import cost
from tessella.weights.network import Network

from ..models.tiny import size_of, tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: small models are not faster with more, and threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def case_of(name: str = "mixer") -> Case:
    model = tiny(name)
    height, width = size_of(model)
    return Case(
        name=model.arch, network=Network.of(model), spec=InputSpec(height=height, width=width), weights="random"
    )


def candidate(name: str, run: Callable[[Tensor], Tensor], precision: str = "float32") -> Candidate:
    return Candidate(name, precision, "float32", lambda case, batch: lambda: OpenCandidate(in_torch(run), precision))


def measured(
    candidates: Sequence[Candidate], batches: Sequence[int] = (2,), rounds: int = 2, **more: Any
) -> list[BenchmarkRow]:
    case = more.pop("case", None) or case_of()
    groups = measure(case, candidates, batches, rounds, gemm_side=32, turn_seconds=0, **more)
    return [row for rows in groups for row in rows]


def contender(name: str, seen: list[str], seconds: Sequence[float]) -> Contender:
    """Return a contender whose turns take the given times; a turn after the last one fails."""
    remaining = iter(seconds)

    def turn() -> float:
        seen.append(name)
        duration = next(remaining, None)
        if duration is None:
            raise MemoryError("no more")
        return duration

    return Contender(turn)


def test_candidates_take_turns_and_failed_ones_are_dropped() -> None:
    seen: list[str] = []
    contenders = [contender("A", seen, [1, 2, 3]), contender("B", seen, [4]), contender("C", seen, [5, 6, 7])]
    take_turns(contenders, 3)
    assert "".join(seen) == "ABC" + "BCA" + "CA"  # each round starts with another one
    assert contenders[2].seconds == [5, 6, 7]
    assert isinstance(contenders[1].error, MemoryError)
    assert contenders[0].error is None


def test_figures_are_medians_spread_and_ratios_of_the_same_rounds() -> None:
    rows = [
        BenchmarkRow(model="m", candidate=name, precision="float32", batch=8, reads="uint8", gmacs=2) for name in "ABC"
    ]
    seen: list[str] = []
    contenders = {
        i: contender("x", seen, s) for i, s in ((0, [4.0, 2.0, 1.0]), (2, [1.0, 0.5, 1.0]))
    }  # B was never opened
    product = contender("gemm", seen, [0.5, 0.25, 1.0])
    take_turns([product, *contenders.values()], 3)
    fill_rows(rows, contenders, {"float32": product}, product_flop=16_000_000_000)
    first, absent, fast = rows
    assert (first.images_per_second, first.slowest, first.fastest) == (4, 2, 8)
    assert (first.ratio, first.rounds, first.against) == (1, 3, "A, float32")
    assert absent.images_per_second is None
    assert (fast.images_per_second, fast.ratio, fast.ratio_lowest, fast.ratio_highest) == (8, 2, 1, 4)
    assert fast.gemm_gflops == 32  # 16 GFLOP in a median of half a second
    assert fast.share_of_gemm == 1  # 8 images of 2 x 2 GFLOP per second


def test_a_candidate_that_fails_gives_a_row_with_the_reason() -> None:
    case = case_of()

    def refuse(x: Tensor) -> Tensor:
        raise RuntimeError("\nno such kernel\nlong story")

    def unavailable(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        raise UsageError("missing_dependency", "needs a thing", hint="pip install thing")

    rows = measured(
        [
            candidate("crashes", refuse),
            Candidate("absent", "float32", "uint8", unavailable),
            candidate("wrong", lambda x: case.model(x).flip(1)),
            candidate("nan", lambda x: case.model(x) * float("nan")),
            candidate("right", torch.inference_mode()(case.model)),
        ],
        case=case,
    )
    assert [row.status for row in rows] == ["failed", "missing_dependency", "wrong_answer", "wrong_answer", "ok"]
    assert rows[0].note == "RuntimeError: no such kernel"
    assert rows[1].note == "needs a thing (pip install thing)"
    assert rows[4].against == "right, float32"  # the first one that ran
    assert rows[4].difference is not None
    assert rows[4].difference < 1e-6
    assert all(len(table.cells(row)) == len(table.HEADER) for row in rows)


def test_a_wrong_answer_states_whether_it_stays_wrong() -> None:
    case, calls = case_of(), []

    def wrong_once(x: Tensor) -> Tensor:
        calls.append(x)
        return case.model(x) * (3 if len(calls) == 1 else 1)

    (row,) = measured([candidate("wrong once", torch.no_grad()(wrong_once))], case=case)
    assert row.status == "wrong_answer"
    first, further = row.note.split("; in further passes: ")
    assert first.endswith("; wrong images: 0, 1")
    assert further == "; ".join(["none"] * 8)


def test_a_stream_that_is_always_wrong_is_found() -> None:
    case = case_of()

    def wrong_stream(x: Tensor) -> Tensor:
        logits = case.model(x)
        return torch.cat([logits[:2], 3 * logits[2:]])

    (row,) = measured([candidate("wrong stream", torch.no_grad()(wrong_stream))], (4,), case=case)
    assert row.status == "wrong_answer"
    assert row.note.endswith(f"; wrong images: 2, 3; in further passes: {'; '.join(['2, 3'] * 8)}")


def test_an_interrupt_is_not_recorded_as_a_failure() -> None:
    def interrupt(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured([candidate("slow", interrupt)])


def test_engines_run_and_agree() -> None:
    case = case_of("gmixer")
    asked = [
        engine_candidate("eager", "float32"),
        engine_candidate("rewritten", "float32"),
        engine_candidate("auto", "float32"),
        engine_candidate("auto", "auto"),
    ]
    rows = measured(asked, batches=(2, 1), case=case)
    assert [row.batch for row in rows] == [2] * 4 + [1] * 4
    assert [row.candidate for row in rows[:4]] == ["eager", "rewritten", "auto (float32)", "auto"]
    for row in rows:
        assert row.status == "ok", row.note
        assert row.difference is not None
        assert row.difference < (1e-3 if row.precision == "float32" else 0.5)
        assert row.images_per_second
        assert row.slowest
        assert row.fastest
        assert row.slowest <= row.images_per_second <= row.fastest
        assert row.gmacs == cost(case.model, (3, 32, 32)).macs / 1e9
    assert rows[1].note == ""
    assert rows[2].note.startswith("openvino: ")  # the default engine


def test_an_engine_that_is_not_installed_gives_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.engine.plan.util.find_spec", lambda name: None if name == "onnx" else name)
    (row,) = measured([engine_candidate("onnxruntime", "float32")])
    assert row.status == "missing_dependency"
    assert "pip install onnx" in row.note


def test_conversion_is_timed_cold_and_does_not_change_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    made: list[Path] = []

    def plan(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        assert cache_folder() == tmp_path  # tuned settings are read from the usual cache

        def make() -> OpenCandidate:
            def build(folder: Path) -> None:
                made.append(folder)
                (folder / "graph").touch()

            cached("kind", {}, build)
            return OpenCandidate(in_torch(case.model), "float32", earlier_seconds=100)

        return make

    both = [Candidate(name, "float32", "float32", plan) for name in "AB"]
    rows = measured(both, batches=(2, 1))
    assert [(row.candidate, row.cold) for row in rows] == [("A", True), ("B", True), ("A", False), ("B", False)]
    assert len(made) == 2  # once for each candidate
    assert all(row.ready_seconds and row.ready_seconds > 100 for row in rows)
    assert not list(tmp_path.iterdir())
    assert os.environ["TESSELLA_CACHE"] == str(tmp_path)


def test_random_weights_affect_the_output() -> None:
    case = load_case("mixer_s32_224")
    assert case.weights == "random"
    assert case.name == "mixer_s32_224.untrained"
    with torch.inference_mode():
        assert case.model(torch.ones(1, 3, 224, 224)).std() > 0.01


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_peak_memory_includes_what_was_freed() -> None:
    memory = PeakMemory("cpu")
    block = torch.ones(100_000_000)  # 400 MB
    peak = memory.peak_mb()
    del block
    assert peak is None or 350 < peak < 1000  # None: a container may hide it


def run(*arguments: str, status: int = 0) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["tessella", "bench", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert (stop.value.code or 0) == status, err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one forward pass per turn, and a small matrix product."""
    monkeypatch.setattr(measuring, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "SIDE", {"cpu": 64})


@pytest.mark.usefixtures("short")
def test_the_command_measures_the_built_in_model(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    quick = ("--rounds", "1", "--batch", "2,1", "--engines", "eager,rewritten")
    out, err = run(*quick, "--device", "cpu", "--out", str(path))
    assert re.search(rf"{default_model().partition('.')[0]} +rewritten, float32 +1 ", out)
    assert "GFLOP/s" in err
    assert "1 alternating rounds" in err
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert tuple(rows[0]) == measuring.COLUMNS
    assert [(row["candidate"], row["batch"]) for row in rows] == [
        (engine, batch) for batch in ("2", "1") for engine in ("eager", "rewritten")
    ]
    assert all(float(row["images_per_second"]) > 0 and row["status"] == "ok" for row in rows)
    assert {row["weights"] for row in rows} == {"trained"}
    assert {row["model"] for row in rows} == {default_model()}


@pytest.mark.usefixtures("short")
def test_the_csv_has_all_rows_after_each_batch_size(tmp_path: Path) -> None:
    settings = BenchmarkSettings(batch_sizes=(2, 1), engines=("eager",), device="cpu", rounds=1)
    path = tmp_path / "speed.csv"
    groups = bench(["convmixer_256_8_ks3_p4"], settings, csv_path=path)
    counts = [len(path.read_text().splitlines()) - 1 for _ in groups]
    assert counts == [1, 2]


def test_a_plot_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no accuracy is published"):
        bench(["convmixer_256_8_ks3_p4"], plot_path=tmp_path / "speed.png")


@pytest.mark.usefixtures("short")
def test_json_has_the_columns_of_the_csv() -> None:
    engines = "eager,onnxruntime"
    out, _ = run("--json", "--rounds", "1", "--batch", "1", "--engines", engines, "--precision", "bfloat16")
    rows = [json.loads(line) for line in out.splitlines()]
    assert tuple(rows[0]) == measuring.COLUMNS
    assert [row["status"] for row in rows] == ["ok", "bad_argument"]
    assert "float32" in rows[1]["note"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engines", "warp"], "engine is 'warp'"),
        (["--precision", "float8"], "precision is 'float8'"),
        (["--batch", "8,many"], "--batch-size is '8,many'"),
        (["--batch", "0"], "positive"),
        (["--device", "warp"], "device 'warp'"),
        (["--rounds", "0"], "--rounds"),
        (["--out", "speed.xlsx"], ".csv"),
        (["--picture", "speed.bmp"], ".png"),
        (["--plot", "speed.bmp"], ".png"),
        (["convmixer_768_33"], "convmixer_768_32"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_measured(arguments: list[str], says: str) -> None:
    out, err = run(*arguments, status=2)
    assert says in err
    assert out == ""


@pytest.mark.parametrize("rounds", [0, -1])
def test_a_benchmark_has_at_least_one_round(rounds: int) -> None:
    with pytest.raises(UsageError, match=f"rounds is {rounds}, expected at least 1"):
        BenchmarkSettings(rounds=rounds)


def test_missing_timm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(UsageError) as caught:
        bench(["mixer_s32_224"], BenchmarkSettings(against="timm", device="cpu"))
    assert caught.value.code == "missing_dependency"
    assert "scripts/bench" in caught.value.hint


def test_names_of_files() -> None:
    assert slug("Intel(R) Xeon(R) Processor @ 2.50GHz, 2 cores, AVX512") == "intel-xeon-2-cores-avx512"
