"""Tuned records on disk: files of earlier versions are read, and anything else is ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessella.engine import make_plan
from tessella.engine.tuned import Tuned, Workload, all_tuned, find_tuned, save_tuned
from tessella.weights.network import as_network

from ..models.tiny import size_of, tiny

WORKLOAD = Workload("mixer_s16_224", "MixerConfig(kind='mixer')", (224, 320), 4)
WINNER: dict[str, Any] = dict(
    engine="openvino", precision="float32", layout="", streams=2, batch_size=8, reason="tuned on 2026-01-01"
)
# a file written by commit 240d5c3, before records had types
RECORD: dict[str, Any] = {
    "conditions": {
        "arch": "mixer_s16_224",
        "config": "MixerConfig(kind='mixer')",
        "size": [224, 320],
        "threads": 4,
        "cpu": "Test CPU",
        "features": "0123abcd",
        "cores": 4,
        "tessella": "0.1.0",
        "torch": "2.13.0",
    },
    "winners": {"throughput": WINNER, "latency": WINNER | {"streams": 1, "batch_size": 1}},
    "table": [{"mode": "throughput", "engine": "openvino", "images_per_second": 12.5, "note": "", "rounds": 3}],
    "date": "2026-01-01",
}
FILE = "mixer_s16_224-6827261ce71fe5b3.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of records in an empty cache, on a machine with fixed properties."""
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    monkeypatch.setattr("tessella.engine.tuned.cpu_name", lambda: "Test CPU")
    monkeypatch.setattr("tessella.engine.tuned.cpu_features", lambda: "0123abcd")
    monkeypatch.setattr("tessella.engine.tuned.versions", lambda: {"tessella": "0.1.0", "torch": "2.13.0"})
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    (tmp_path / "tuned").mkdir()
    return tmp_path / "tuned"


def test_a_record_of_an_earlier_version_is_found(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(RECORD, indent=1))
    assert find_tuned(WORKLOAD, "throughput") == Tuned(**WINNER)
    assert find_tuned(WORKLOAD, "latency") == Tuned(**WINNER | {"streams": 1, "batch_size": 1})
    (record,) = all_tuned()
    assert record.arch == "mixer_s16_224"
    assert record.holds(threads=4)
    assert not record.holds(threads=2)


def test_the_file_has_the_same_bytes(folder: Path) -> None:
    winners = {mode: Tuned(**settings) for mode, settings in RECORD["winners"].items()}
    path = save_tuned(WORKLOAD, winners, RECORD["table"], RECORD["date"])
    assert path == folder / FILE
    assert path.read_text() == json.dumps(RECORD, indent=1)


@pytest.mark.parametrize(
    "change",
    [
        dict(winners={"throughput": WINNER | {"colour": "red"}}),
        dict(winners={"throughput": WINNER | {"streams": "2"}}),
        dict(winners=[WINNER]),
        dict(conditions={"arch": ["a"]}),
        dict(date=3),
        dict(winners={"throughput": WINNER | {"engine": "foo"}}),
        dict(winners={"throughput": WINNER | {"precision": "int9"}}),
        dict(winners={"throughput": WINNER | {"precision": "fast"}}),
        dict(winners={"throughput": WINNER | {"engine": "onnxruntime", "precision": "int8"}}),
        *(dict(winners={"throughput": WINNER | {"streams": streams}}) for streams in (-3, 0, 5, 10**9)),
        *(dict(winners={"throughput": WINNER | {"batch_size": size}}) for size in (-1, 0, 65_537)),
    ],
)
def test_unusable_records_are_ignored_with_a_warning(
    folder: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / FILE).write_text(json.dumps(RECORD | change))
    assert find_tuned(WORKLOAD, "throughput") is None
    assert f"the tuned settings in {folder / FILE} are ignored: " in caplog.text
    assert list(all_tuned()) == []


def test_a_model_without_a_record_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert find_tuned(WORKLOAD, "throughput") is None
    assert not caplog.records


@pytest.mark.parametrize("engine", ["openvino", "rewritten"])
@pytest.mark.parametrize(
    "change", [dict(engine="foo"), dict(streams=-3), dict(layout="sideways"), dict(precision="int8", batch_size=0)]
)
def test_a_model_with_an_unusable_record_is_opened_with_the_defaults(
    engine: str, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    network = as_network(tiny("mixer"))
    size = size_of(tiny("mixer"))
    plan = make_plan(model=network, size=size)
    settings = WINNER | {"engine": engine, "streams": 1} | change
    save_tuned(Workload.of(network, size, plan.threads), {"throughput": Tuned(**settings)}, [], "2026-01-01")
    assert make_plan(model=network, size=size) == plan
    assert "are ignored: " in caplog.text


@pytest.mark.parametrize("size", [[224], "224", [1, 2, 3]])
def test_a_record_with_an_invalid_size_is_not_used(folder: Path, size: Any) -> None:
    (folder / FILE).write_text(json.dumps(RECORD | {"conditions": RECORD["conditions"] | {"size": size}}))
    (record,) = all_tuned()
    assert not record.holds(threads=4)
