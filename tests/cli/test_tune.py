"""`tessella tune` and the cache: results are printed before they are saved, and nothing is measured in vain."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from tessella.cli.performance import _explain, _print_json, _print_tuning
from tessella.engine.tuned import Tuned
from tessella.performance.tuning import Tuning, TuningRow

from .test_cli import run


def result(precision: str, agreement: str = "") -> Tuning:
    rows = [
        TuningRow("latency", "openvino", "float32", "", 1, 1, [0.01]),
        TuningRow("throughput", "openvino", precision, "", 2, 8, [0.001], agreement=agreement),
    ]
    winners = {
        row.mode: Tuned(row.engine, row.precision, "", row.streams, row.batch_size, "the fastest") for row in rows
    }
    return Tuning(rows, winners, Path("record.json"))


def test_a_lossy_winner_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    _explain(result("int8", "99.2 % same top class, cosine 0.9987 on 128 images"))
    assert capsys.readouterr().err.splitlines() == [
        "later commands use these settings for this model on the CPU, unless --engine or --precision is given",
        "their results may differ slightly from those in float32:",
        "  throughput, int8: 99.2 % same top class, cosine 0.9987 on 128 images",
        "a calibration holds for one precision: without one made in int8 by `tessella calibrate`, probabilities are "
        "the plain softmax",
        "to keep float32, give --precision float32 to a command, or to `tessella tune`",
    ]


def test_modes_with_the_same_precision_and_agreement_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    done = result("int8", "cosine 0.9987 on 128 images")
    done.winners["latency"] = done.winners["throughput"]
    _explain(done)
    assert capsys.readouterr().err.count("cosine") == 1


def test_an_agreement_that_was_not_measured_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _explain(result("bfloat16"))
    assert "  throughput, bfloat16: not compared, because the weights are random" in capsys.readouterr().err


def test_results_in_float32_need_no_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    _explain(result("float32"))
    assert "differ" not in capsys.readouterr().err


def test_an_uncertain_choice_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    done = result("float32")
    latency = done.rows[0]
    latency.seconds[:] = [0.010, 0.011, 0.015, 0.016]
    done.rows.append(dataclasses.replace(latency, engine="rewritten", seconds=[0.011] * 4))
    _explain(done)
    assert capsys.readouterr().err.splitlines()[0] == (
        "the choice for latency is uncertain: round times differ by 60 %, and the next candidate is 10 % slower; run "
        "the command again when the machine is idle"
    )
    _print_json(done)
    assert list(json.loads(capsys.readouterr().out)["doubts"]) == ["latency"]


def test_engines_without_their_packages_are_not_in_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"rewritten": ["torch"], "onnxruntime": ["torch", "onnx"]}
    monkeypatch.setattr("tessella.cli.performance.missing_packages", lambda engine: missing.get(engine, []))
    done = result("float32")
    done.rows.extend(
        TuningRow("latency", name, "float32", "", 1, 1, note=f"engine {name!r} needs torch") for name in missing
    )
    _print_tuning(done)
    *_, line, throughput, latency = capsys.readouterr().out.splitlines()
    assert line == (
        "not measured, because packages are not installed: rewritten (needs torch), onnxruntime (needs torch and onnx)"
    )
    assert throughput.startswith("latency: openvino")
    assert latency.startswith("throughput: openvino")


def test_nothing_is_done_if_the_result_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tessella.weights.open.open_network", lambda *_, **__: pytest.fail("the model was opened"))
    out, err = run("tune", status=5)
    assert out == ""
    assert f"cannot be saved in {tmp_path / 'file' / 'cache' / 'tuned'}" in err
    assert "TESSELLA_CACHE" in err


def test_the_table_is_printed_before_the_result_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    monkeypatch.setattr("tessella.engine.tuned.write_atomic", full)
    out, err = run("tune", "--precision", "float32", "--engines", "openvino", "--seconds", "2", status=5)
    assert "throughput: openvino float32 (tuned on" in out
    assert "No space left" in err
    assert "later commands" not in err
    assert not list((tmp_path / "tuned").iterdir())
