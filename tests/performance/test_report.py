"""`scripts/bench cpu`, `report`, `rates`, `profile`: file, ratios, goals, the README's section and the picture."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from tessella.data.spec import InputSpec
from tessella.engine.choice import TABLE, Rate
from tessella.engine.plan import has_native_bfloat16
from tessella.performance.candidates import Case
from tessella.performance.measuring import BenchmarkRow
from tessella.weights.network import Network

from ..models.tiny import size_of, tiny

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """Import a benchmark from the source tree."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


cpu, report = load("cpu"), load("report")
SPEEDS: dict[tuple[str, str, str], tuple[float | None, float | None]] = {  # speed of model a and model b
    ("eager", "float32", ""): (2.0, 1.0),
    ("stock OpenVINO", "float32", ""): (4.0, None),
    ("stock OpenVINO", "bfloat16", ""): (40.0, 40.0),
    ("torch.compile", "float32", ""): (3.0, 2.0),
    ("Tessella", "float32", ""): (5.0, 4.0),
    ("Tessella", "bfloat16", "passed: fine"): (10.0, 8.0),
    ("Tessella", "int8", "refused: 80 % same top class"): (20.0, 16.0),
}


def rows() -> list[Any]:
    made: list[Any] = []
    for position, model in enumerate("ab"):
        group = [
            BenchmarkRow(
                model=model, candidate=name, precision=precision, batch=8, reads="uint8", gate=gate, rounds=5,
                images_per_second=speeds[position], slowest=(speeds[position] or 0) / 2,
                fastest=(speeds[position] or 0) * 2, status="ok" if speeds[position] else "failed",
                note="" if speeds[position] else "RuntimeError: no", gemm_gflops=100 + position, threads=2,
            )
            for (name, precision, gate), speeds in SPEEDS.items()
        ]  # fmt: skip
        made += cpu.as_rows(group)
    made += cpu.products(made)
    made += cpu.given_rows(["size: base install=431.5 MB", "start: tessella list=0.25 s"])
    return made


@pytest.fixture
def table(tmp_path: Path) -> list[dict[str, str]]:
    path = tmp_path / "speed.csv"
    cpu.write_rows(path, rows())
    read: list[dict[str, str]] = report.read(path)
    return read


def test_the_file_is_read_again_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    cpu.write_rows(path, rows())
    first = path.read_bytes()
    cpu.write_rows(path, cpu.read_rows(path))
    assert path.read_bytes() == first
    assert not path.with_suffix(".part").exists()


def test_rows_have_ratios_to_eager_and_their_conditions() -> None:
    (row,) = (one for one in rows() if (one.model, one.candidate, one.precision) == ("b", "Tessella", "int8"))
    assert row.ratio_to_eager == 16
    assert (row.lowest, row.value, row.highest, row.n) == (8, 16, 32, 5)
    assert all((row.cpu, row.cpu_class, row.features, row.date))
    assert "openvino" in row.versions
    (product,) = (one for one in rows() if one.kind == "product" and one.precision == "int8")
    assert (product.value, product.n) == (100.5, 2)
    (size,) = (one for one in rows() if one.kind == "size")
    assert (size.candidate, size.value, size.unit) == ("base install", 431.5, "MB")


def test_a_verdict_of_one_batch_size_holds_for_all() -> None:
    def row(model: str, precision: str, gate: str) -> Any:
        return cpu.Row(kind="speed", model=model, candidate="Tessella", precision=precision, gate=gate)

    made = [row("a", "int8", "passed: fine"), row("a", "int8", ""), row("a", "float32", ""), row("b", "int8", "")]
    cpu.share_verdicts(made)
    assert [one.gate for one in made] == ["passed: fine", "passed: fine", "", ""]


def test_ratios_compare_what_the_goals_name(table: list[dict[str, str]]) -> None:
    default, stock, gated, bypassed = report.RATIOS
    assert [report.ratio(table, name, "a", 8) for name in report.RATIOS] == [2.5, 1.25, 5, 10]
    assert report.ratio(table, stock, "b", 8) == 2  # torch.compile, as OpenVINO failed
    assert report.ratio(table, default, "a", 1) is None
    assert report.ratio(table, gated, "c", 8) is None
    assert report.geometric_mean([2.0, None]) is None
    assert report.geometric_mean([2.0, 8.0]) == pytest.approx(4)
    assert report.goal(default, 8, [1.4, 1.3]) == "1.3, 1.05: met"
    assert report.goal(default, 8, [1.9, 1.0]) == "1.3, 1.05: missed"  # each model counts
    assert report.goal(default, 8, [1.9, None]) == "1.3, 1.05: missed"
    assert report.goal(bypassed, 8, [1.9, 1.9]) == ""


def test_the_summary_has_every_figure_and_reason(table: list[dict[str, str]]) -> None:
    text = "\n".join(report.summary(table))
    assert "| stock OpenVINO | float32 | 4 | failed |" in text
    assert "| default / eager PyTorch | 2.50 | 4.00 | 3.16 | 1.3, 1.05: met |" in text
    assert "a, batch 8, Tessella int8: gate refused: 80 % same top class" in text
    assert "b, batch 8, stock OpenVINO float32: failed: RuntimeError: no" in text
    assert "| base install, given | 431.5 MB |" in text


def test_the_section_and_the_picture(table: list[dict[str, str]], tmp_path: Path) -> None:
    section = report.readme_section(table)
    assert "| best of OpenVINO with one stream, ONNX Runtime, torch.compile; float32 | 4 | 2 |" in section
    assert "| **Tessella, fastest precision that passes the gate** | 10 | 8 |" in section
    assert "default / best stock float32 engine 1.58 (batch size 8);" in section
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = tmp_path / f"speed{suffix}"
        report.draw(table, path)
        assert path.read_bytes().startswith(start)


def test_the_readme_equals_its_file() -> None:
    """`scripts/bench report benchmarks/results/FILE.csv --readme` writes the section and the picture."""
    match = report.SECTION.search((ROOT / "README.md").read_text())
    assert match
    name, section = match.groups()
    assert section == report.readme_section(report.read(ROOT / "benchmarks" / "results" / name))
    assert report.PICTURE.exists()


def test_the_time_limit_is_divided_by_cost() -> None:
    budget = cpu.Budget(100, [("big", 8), ("big", 1), ("small", 8), ("small", 1)], {"big": 20.0, "small": 1.0}.get)
    shares = {}
    for group in list(budget.left):
        budget.group_started = budget.started
        shares[group] = budget.until(*group) - budget.started
    assert sum(shares.values()) == pytest.approx(100)
    assert shares["big", 8] > shares["big", 1] > shares["small", 1]
    assert budget.is_early()
    budget.started -= 200
    budget.group_started = time.perf_counter()
    assert budget.until("big", 8) <= time.perf_counter()  # nothing is left
    assert not budget.is_early()


def case_of(name: str) -> Case:
    model = tiny(name)
    height, width = size_of(model)
    spec = InputSpec(height=height, width=width)
    return Case(name=model.arch, network=Network.of(model), spec=spec, weights="random")


def test_candidates_that_anyone_can_use_agree_with_the_model() -> None:
    from tessella.performance.measuring import measure

    stock = load("stock").stock(["float32"], ())
    assert [one.name for one in stock] == ["eager", *report.BASELINES[:3]]
    for row in next(measure(case_of("gmixer"), stock, (2,), 1, gemm_side=32, turn_seconds=0)):
        assert row.status == "ok", row.note
        assert row.difference is not None
        assert row.difference < 1e-4


def test_profiles_add_up() -> None:
    layers = load("layers")
    found = layers.profile(case_of("mixer"), "float32", 4, 1)
    assert sum(row["ms"] for row in found) == pytest.approx(found[0]["total_ms"])
    assert sum(row["share"] for row in found) == pytest.approx(1)
    assert "FullyConnected" in {row["node"] for row in found}
    assert {key for row in found for key in row} == set(layers.COLUMNS)
    assert len(layers.markdown(found)) == 4 + len(found)


def test_rates_are_rows_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates = load("rates")
    monkeypatch.setattr(rates, "PAUSE", 0)
    monkeypatch.setattr(rates, "TURN_SECONDS", 0)
    monkeypatch.setattr(rates, "SLOW", 1e9)
    case = case_of("gmixer")
    variants = rates.measure(case, "throughput", "float32", 1)
    assert variants[0].plan.engine == "eager"
    assert {one.plan.request for one in variants if one.plan.engine == "openvino"} == set(rates.REQUESTS)
    found = list(rates.rows_of(case, "throughput", variants))
    assert sorted(row["engine"] for row in found) == ["openvino", "rewritten"]
    assert {row["precision"] for row in found} == {"float32"}
    other = dict(found[0], cpu="neon")
    old = [{key: value for key, value in found[0].items() if key != "precision"} | dict(ratio=0.5), other]
    merged = rates.merge(found, old)
    assert other in merged
    assert len(merged) == 3
    monkeypatch.setattr(rates, "TABLE", tmp_path / "rates.json")
    rates.write_table(merged)
    assert len(msgspec.json.decode((tmp_path / "rates.json").read_bytes(), type=list[Rate])) == 3


@pytest.mark.skipif(not has_native_bfloat16("cpu"), reason="the CPU has no bfloat16")
def test_bfloat16_has_rates_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = load("rates")
    monkeypatch.setattr(rates, "PAUSE", 0)
    monkeypatch.setattr(rates, "TURN_SECONDS", 0)
    variants = rates.measure(case_of("gmixer"), "latency", "bfloat16", 1)
    assert {(one.plan.engine, one.plan.precision) for one in variants} == {
        ("eager", "float32"),
        ("openvino", "bfloat16"),
    }
    found = list(rates.rows_of(case_of("gmixer"), "latency", variants))
    assert [row["precision"] for row in found] == ["bfloat16"]
    in_float32 = dict(found[0], precision="float32")
    assert len(rates.merge(found, [in_float32])) == 2


def test_the_table_of_rates_is_in_order() -> None:
    table = json.loads(TABLE.read_text())
    assert table == load("rates").merge(table, [])


@pytest.mark.slow
def test_every_start_is_timed() -> None:
    starts = load("starts")
    found = list(starts.time_starts(1))
    assert [name for name, _, _ in found] == list(starts.COMMANDS)
    assert all(len(seconds) == 1 and not error for _, seconds, error in found), found
    assert set(report.START_GOALS) <= set(starts.COMMANDS)


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "benchmarks/gpu.py", "--dry-run", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, count in (("kernels", 4), ("models", 3), ("speed", 8)):
        found = report.read(tmp_path / f"{name}.csv")
        assert [row["status"] for row in found] == ["ok"] * count
