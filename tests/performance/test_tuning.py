"""Tuning finds the fastest settings and saves them with their conditions; they are then used."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.doctor import _tuned
from tessella.engine import make_plan
from tessella.engine.tuned import Tuned, Workload, all_tuned, find_tuned, save_tuned
from tessella.errors import UsageError
from tessella.machine import thread_count
from tessella.performance import tuning
from tessella.performance.tuning import Tuning, TuningRow, _winner, tune
from tessella.predictor import Predictor

from ..models.tiny import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def _steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look at the clock take as long as a round, so that the results do not depend on the machine."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * tuning.ROUND_SECONDS, strftime=time.strftime)
    monkeypatch.setattr(tuning, "time", clock)


def model() -> Any:
    made = tiny("mixer")
    made.pretrained_cfg = dict(input_size=(3, 32, 32), num_classes=5)
    return made


@pytest.mark.usefixtures("_steady_clock")
def test_the_winner_is_saved_and_used() -> None:
    net = model()
    said: list[str] = []
    done = tune(net, engines=["rewritten", "openvino"], precisions=["float32"], seconds=1000, log=said.append)
    assert any("openvino float32" in line for line in said)
    measured = {(row.engine, row.layout) for row in done.rows if row.seconds}
    assert measured >= {("rewritten", ""), ("openvino", "")}
    for row in done.rows:
        assert bool(row.seconds) != bool(row.note)
        assert json.dumps(row.as_dict())
    for mode, winner in done.winners.items():
        plan = make_plan("cpu", mode=mode, model=net, size=(32, 32))  # type: ignore[arg-type]
        assert (plan.engine, plan.precision, plan.streams) == (winner.engine, winner.precision, winner.streams)
        assert (plan.layout, plan.batch_size) == (winner.layout, winner.batch_size)
        assert any("tuned on" in row.reason for row in plan.choices)
    assert done.winners["latency"].batch_size == 1
    assert (
        Predictor(net, plan=make_plan("cpu", model=net, size=(32, 32))).plan.engine == done.winners["throughput"].engine
    )
    # another size, a fixed engine, another shape: nothing was measured for these
    assert not any("tuned on" in row.reason for row in make_plan("cpu", model=net, size=(32, 64)).choices)
    assert make_plan("cpu", engine="eager", model=net, size=(32, 32)).engine == "eager"
    deeper = make_plan("cpu", model=tiny("mixer", num_blocks=3), size=(32, 32))
    assert not any("tuned on" in row.reason for row in deeper.choices)
    rows = _tuned(thread_count())
    assert {row.what for row in rows} == {f"{net.arch}, latency", f"{net.arch}, throughput"}
    assert all(row.reason.startswith("tuned on") for row in rows)


@pytest.mark.usefixtures("_steady_clock")
def test_a_lossy_precision_must_pass_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    from tessella.engine.agreement import BOUNDS, Bounds

    monkeypatch.setitem(BOUNDS, "bfloat16", Bounds(1.0, 1.1))
    done = tune(model(), engines=["rewritten"], precisions=["float32", "bfloat16"], seconds=1000)
    lossy = [row for row in done.rows if row.precision == "bfloat16"]
    assert lossy
    assert not any(row.seconds for row in lossy)
    assert all("is required" in row.note for row in lossy)
    assert all(winner.precision == "float32" for winner in done.winners.values())


@pytest.mark.usefixtures("_steady_clock")
def test_images_that_show_too_little_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    black = np.zeros((40, 40, 3), np.uint8)
    done = tune(model(), engines=["openvino"], precisions=["float32", "int8"], images=[black] * 3, seconds=1000)
    assert any(row.precision == "int8" for row in done.rows)
    assert caplog.text.count("no image with contrast given, so photographs of the package were added") == 1


def test_a_small_gain_is_not_chosen() -> None:
    def row(engine: str, seconds: list[float]) -> TuningRow:
        return TuningRow("throughput", engine, "float32", "", 1, 8, seconds)

    usual = row("rewritten", [0.10, 0.11, 0.12])
    assert _winner([usual, row("openvino", [0.108, 0.109, 0.11])], "today").engine == "rewritten"
    best = _winner([usual, row("openvino", [0.05, 0.055, 0.06]), row("onnxruntime", [])], "today")
    assert best.engine == "openvino"
    broken = row("openvino", [])
    broken.note = "RuntimeError: broken"
    assert _winner([broken, usual], "today").engine == "rewritten"  # the usual engine may fail
    with pytest.raises(tessella.WeightsError, match="not even openvino could be measured: RuntimeError: broken"):
        _winner([broken], "today")
    assert "20 images/s, 2.00 times that of rewritten float32; 3 alternating rounds" in best.reason


STEADY, NOISY = [1.0, 1.0, 1.01, 1.01, 1.02], [1.0, 1.01, 1.2, 1.4, 1.5]


@pytest.mark.parametrize(
    ("winner", "other", "doubt"),
    [
        (STEADY, [1.0, 1.0, 1.02, 1.02, 1.02], ""),  # a tie in which no choice is wrong
        (NOISY, [1.1] * 5, "round times differ by 39 %, and the next candidate is 9 % slower"),
        (NOISY, [1.0] * 5, "round times differ by 39 %, and the next candidate is as fast"),
        (STEADY, [1.1, 1.1, 1.3, 1.4, 1.5], "round times differ by 27 %, and the next candidate is 10 % slower"),
        (NOISY, [1.5] * 3, ""),  # clearly slower
        (
            [1.0, 2.0],
            [4.0] * 3,
            "round times differ by 100 %, and the next candidate is 300 % slower",
        ),  # excluded by chance?
        (STEADY, [0.98] * 3, ""),  # its gain is too small to matter
        (NOISY, [], ""),
    ],
)
def test_a_choice_that_noise_can_change_is_uncertain(winner: list[float], other: list[float], doubt: str) -> None:
    rows = [TuningRow("latency", name, "float32", "", 1, 1, times) for name, times in (("a", winner), ("b", other))]
    rows.append(TuningRow("throughput", "c", "float32", "", 2, 8, [0.5]))
    winners = {row.mode: Tuned(row.engine, row.precision, "", row.streams, row.batch_size, "") for row in rows[::2]}
    done = Tuning(rows, winners, Path("record.json"))
    assert done.doubt("latency").endswith(doubt)
    assert bool(done.doubt("latency")) == bool(doubt)
    assert done.doubt("throughput") == ""


def test_candidates_beyond_the_time_limit_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = tune(model(), seconds=1e-6)
    assert any(row.note == "not measured: the time limit was reached" for row in done.rows)
    assert done.winners["throughput"].engine == "openvino"  # the default


@pytest.mark.parametrize("wrong", [dict(engines=["abacus"]), dict(engines=["eager"]), dict(precisions=["int4"])])
def test_unknown_candidates_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        tune(model(), **wrong)
    assert "choose from" in str(caught.value.hint)


def test_records_are_only_used_under_their_conditions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = Tuned("openvino", "float32", "", 2, 8, "tuned")
    workload = Workload("arch", "config", (32, 32), 2)
    path = save_tuned(workload, {"throughput": best}, [], "2026-01-01")
    assert find_tuned(workload, "throughput") == best
    assert find_tuned(workload, "latency") is None
    assert find_tuned(Workload("arch", "config", (32, 32), 4), "throughput") is None
    monkeypatch.setattr("tessella.engine.tuned.cpu_name", lambda: "another")
    assert find_tuned(workload, "throughput") is None
    assert next(row.reason for row in _tuned(2)).startswith("not used")
    monkeypatch.undo()
    monkeypatch.setenv("TESSELLA_CACHE", str(cache))
    for damaged in ("", "[]", '{"winners": 1}', '{"winners": {"throughput": {"engine": 1}}, "conditions": {}}'):
        path.write_text(damaged)
        assert find_tuned(workload, "throughput") is None
        assert list(all_tuned()) == []


def test_a_winner_whose_package_was_removed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    best = Tuned("onnxruntime", "float32", "", 2, 8, "tuned")
    workload = Workload.of(net, (32, 32), thread_count())
    save_tuned(workload, {"throughput": best}, [], "2026-01-01")
    assert make_plan("cpu", model=net, size=(32, 32)).engine == "onnxruntime"
    monkeypatch.setattr("tessella.engine.plan.missing_packages", lambda *_: ["onnxruntime"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tessella.engine.plan.check_engine", lambda *_: None)
        assert make_plan("cpu", model=net, size=(32, 32)).engine == "openvino"


@pytest.mark.usefixtures("_steady_clock")
def test_an_engine_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("tessella.engine.graphs.build_graph", broken)
    done = tune(model(), engines=["rewritten", "openvino"], precisions=["float32"], seconds=1000)
    notes = {row.note for row in done.rows if row.engine == "openvino"}
    assert "RuntimeError: no such operator" in notes
    assert done.winners["throughput"].engine == "rewritten"


def test_a_cache_that_cannot_be_written_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tessella.engine.tuned.write_atomic", full)
    shown: list[Tuning] = []
    with pytest.raises(tessella.WeightsError, match="No space left") as caught:
        tune(model(), engines=["rewritten"], precisions=["float32"], seconds=1, show=shown.append)
    assert caught.value.code == "cache_failed"
    assert any(row.seconds for row in shown[0].rows)  # what was measured is not lost


@pytest.mark.parametrize("place", ["a file", "a file/below", "/proc/cache"])
def test_nothing_is_measured_if_the_result_cannot_be_saved(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / place))
    monkeypatch.setattr(tuning, "_open_all", lambda *_: pytest.fail("measured"))
    with pytest.raises(tessella.WeightsError, match="cannot be saved in") as caught:
        tune(model(), seconds=1)
    assert caught.value.code == "cache_failed"
    assert place in caught.value.message


@pytest.mark.usefixtures("_steady_clock")
def test_the_agreement_of_a_lossy_winner_is_kept() -> None:
    done = tune(model(), engines=["openvino"], precisions=["float32", "bfloat16"], seconds=1000)
    lossy = [row for row in done.rows if row.precision == "bfloat16" and row.seconds]
    assert lossy
    assert all("cosine" in row.agreement for row in lossy)
    assert not any(row.agreement for row in done.rows if row.precision == "float32")
    row = lossy[0]
    winner = Tuned(row.engine, row.precision, row.layout, 2, 4, "the fastest")
    assert dataclasses.replace(done, winners={"latency": winner}).agreement("latency") == row.agreement


def test_a_renamed_runtime_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu provides the module onnxruntime, but no distribution of that name."""
    from importlib import metadata

    original = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", version)
    assert make_plan("cpu", model=model(), size=(32, 32)).engine == "openvino"


def test_rounds_alternate_and_slow_candidates_are_dropped() -> None:
    order: list[str] = []

    class Fake:
        def __init__(self, name: str, seconds: float):
            self.row = TuningRow("throughput", name, "float32", "", 1, 8, [seconds])
            self.seconds = seconds

        def measure(self) -> None:
            order.append(self.row.engine)
            self.row.seconds.append(self.seconds)

    fakes: list[Any] = [Fake("usual", 9.0), Fake("a", 1.0), Fake("slow", 5.0), Fake("b", 1.1)]
    tuning._run_rounds(fakes, until=float("inf"))
    assert order == [*["usual", "a", "b"] * 2, *["a", "b"] * (tuning.ROUNDS - 3)]
    assert len(fakes[2].row.seconds) == 1
    assert len(fakes[0].row.seconds) == len(tuning.MAX_SLOWDOWNS)
    assert np.isclose(fakes[1].row.images_per_second, 1.0)


def test_a_single_slow_round_does_not_determine_the_winner() -> None:
    """Another program slows three of the seven rounds of the faster candidate, as on a shared machine."""
    usual = TuningRow("throughput", "rewritten", "float32", "", 1, 8, [0.10] * 7)
    disturbed = TuningRow("throughput", "openvino", "float32", "", 1, 8, [0.08, 0.3, 0.08, 0.3, 0.08, 0.3, 0.3])
    assert _winner([usual, disturbed], "today").engine == "openvino"
