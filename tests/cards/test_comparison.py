"""The comparison of checkpoints: its rows, filters and orders, the speeds of this machine, and the Pareto front."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.cards.comparison import (
    MACHINES,
    SETS,
    MeasuredSpeed,
    ModelFilter,
    ModelRow,
    benchmark_speeds,
    compare_models,
    comparison_csv,
    pareto_front,
    published_speeds,
    speeds_here,
)
from tessella.engine.tuned import Tuned, Workload, save_tuned
from tessella.errors import UsageError
from tessella.fingerprint import config_text
from tessella.models.configs import CONFIGS, configure
from tessella.weights.catalogue import CATALOGUE, published_accuracy


def names(rows: list[ModelRow]) -> list[str]:
    return [row.name for row in rows]


def test_all_checkpoints_are_compared() -> None:
    rows = compare_models(measured={})
    assert set(names(rows)) == set(CATALOGUE)
    for row in rows:
        published = published_accuracy(row.name)
        assert row.accuracy == {key: published[key].top1 for key in SETS if key in published}
    complete = [row for row in rows if len(row.accuracy) == len(SETS)]
    assert len(complete) == 31  # all checkpoints that timm lists
    assert all(row.speed("rtx-4090") and row.speed("i9-10940x") for row in complete)


def test_published_speeds_are_those_of_models_with_1000_classes() -> None:
    rows = {row.name: row for row in compare_models(["mixer_b16"], measured={})}
    assert rows["mixer_b16_224.goog_in21k_ft_in1k"].speed("rtx-4090") == 2635.16
    assert rows["mixer_b16_224.miil_in21k_ft_in1k"].speed("rtx-4090") == 2635.16
    assert rows["mixer_b16_224.goog_in21k"].speeds == {}
    assert all(set(table) <= set(CONFIGS) for table in published_speeds().values())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (dict(family="mixer", pretrained=True, min_accuracy=80), {"mixer_b16_224.miil_in21k_ft_in1k"}),
        (dict(license="MIT", max_params=25), {"convmixer_768_32.in1k", "convmixer_1024_20_ks9_p14.in1k"}),
        (dict(family="MIXER", pretrained=True, min_accuracy=80), {"mixer_b16_224.miil_in21k_ft_in1k"}),
        (dict(size=408), {"crossvit_15_dagger_408.in1k", "crossvit_18_dagger_408.in1k"}),
        (dict(min_accuracy=82, max_gmacs=7), {"crossvit_15_dagger_240.in1k"}),
    ],
)
def test_filters(where: dict[str, object], expected: set[str]) -> None:
    assert set(names(compare_models(where=ModelFilter(**where), measured={}))) == expected  # type: ignore[arg-type]


def test_a_family_or_license_that_no_checkpoint_has_is_refused() -> None:
    for where, says in ((ModelFilter(family="convmixr"), "convmixer"), (ModelFilter(license="gpl"), "apache-2.0")):
        with pytest.raises(UsageError) as caught:
            compare_models(where=where, measured={})
        assert caught.value.code == "bad_argument"
        assert says in caught.value.hint


def test_orders() -> None:
    by_accuracy = compare_models(sort="accuracy", measured={})
    assert names(by_accuracy)[0] == "resmlp_big_24_224.fb_in22k_ft_in1k"
    known = [row.imagenet for row in by_accuracy if row.imagenet is not None]
    assert known == sorted(known, reverse=True)
    assert all(row.imagenet is None for row in by_accuracy[len(known) :])
    assert [row.params for row in compare_models(sort="params", measured={})] == sorted(
        row.params for row in compare_models(measured={})
    )
    fastest = compare_models(["convmixer"], sort="speed", machine="i9-10940x", measured={})
    assert names(fastest)[:3] == ["convmixer_1024_20_ks9_p14.in1k", "convmixer_768_32.in1k", "convmixer_1536_20.in1k"]
    measured = {"convmixer_1536_20": MeasuredSpeed(3.0, "here"), "convmixer_768_32": MeasuredSpeed(1.0, "here")}
    here = compare_models(["convmixer"], sort="speed", machine="here", measured=measured)
    assert names(here)[:2] == ["convmixer_1536_20.in1k", "convmixer_768_32.in1k"]


# --- this machine -----------------------------------------------------------------------------------------------------


def tuned(arch: str, size: int, rate: float, **changes: object) -> Path:
    """Write a record as `tessella tune` does, with a second row that is not the winner."""
    workload = Workload(arch, config_text(configure(arch, **changes)), (size, size), threads=2)
    winner = Tuned("openvino", "float32", "auto", 2, 8, "measured")
    row = dict(mode="throughput", engine="openvino", precision="float32", layout="auto", streams=2, batch_size=8)
    table = [row | dict(batch_size=4, images_per_second=1.0), row | dict(images_per_second=rate)]
    return save_tuned(workload, {"throughput": winner}, table, "2026-11-29")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    return tmp_path


def test_speeds_here_are_those_of_tune(cache: Path) -> None:
    assert speeds_here() == {}
    tuned("convmixer_768_32", 224, 10.5)
    tuned("convit_tiny", 224, 20.5, num_classes=7)  # a model of the user's own
    tuned("gmixer_24_224", 256, 30.5, img_size=256)  # another size
    assert speeds_here() == {
        "convmixer_768_32": MeasuredSpeed(10.5, "openvino, float32, batch size 8, 2 threads, 2026-11-29")
    }
    (row,) = compare_models(["convmixer_768_32"])
    assert row.speed("here") == 10.5


def test_a_record_of_another_machine_is_not_used(cache: Path) -> None:
    path = tuned("convmixer_768_32", 224, 10.5)
    record = json.loads(path.read_text())
    record["conditions"]["cpu"] = "another"
    path.write_text(json.dumps(record))
    assert speeds_here() == {}


def test_speeds_of_a_result_file() -> None:
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    speeds = benchmark_speeds(results / "cpu_amd-epyc-2-cores-avx512-bf16_2026-11-29.csv")
    assert len(speeds) == 5
    assert speeds["convit_base"].images_per_second == 14.17
    assert speeds["convit_base"].conditions.startswith("Tessella, float32, batch size 8, AMD EPYC, 2 cores, 2 threads")
    with pytest.raises(UsageError):
        benchmark_speeds(results / "dedup_amd-epyc-2-cores-avx512-bf16_float32_torch2.13_2026-11-29.csv")


# --- the Pareto front -------------------------------------------------------------------------------------------------

TEMPLATE = compare_models(["convit_tiny"], measured={})[0]
points = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=12)


@given(points)
def test_the_front_has_exactly_the_rows_that_none_surpasses(pairs: list[tuple[int, int]]) -> None:
    rows = [
        dataclasses.replace(
            TEMPLATE, name=f"{i}", accuracy={"imagenet": float(top1)}, speeds={"here": MeasuredSpeed(speed, "")}
        )
        for i, (speed, top1) in enumerate(pairs)
    ]
    front = [(row.speed("here") or 0, row.imagenet or 0) for row in pareto_front(rows, "here")]
    best = {
        (speed, top1)
        for speed, top1 in pairs
        if not any(s >= speed and t >= top1 and (s, t) != (speed, top1) for s, t in pairs)
    }
    assert set(front) == best
    assert len(front) == sum(pair in best for pair in pairs)  # of equal rows, all
    assert front == sorted(front, reverse=True)


def test_rows_without_accuracy_or_speed_are_not_on_the_front() -> None:
    rows = compare_models(measured={})
    front = pareto_front(rows, "rtx-4090")
    assert {row.name for row in front} <= {row.name for row in rows if row.imagenet and row.speed("rtx-4090")}
    assert front[0].name == "crossvit_tiny_240.in1k"
    assert front[-1].name == "resmlp_big_24_224.fb_in22k_ft_in1k"
    assert pareto_front(rows, "here") == []


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_csv_file_has_every_figure() -> None:
    rows = compare_models(measured={"convit_tiny": MeasuredSpeed(12.5, "here")})
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows).decode())))
    assert [row["name"] for row in read] == names(rows)
    by_name = {row["name"]: row for row in read}
    row = by_name["convit_tiny.fb_in1k"]
    assert float(row["top1_imagenet"]) == published_accuracy("convit_tiny.fb_in1k")["imagenet"].top1
    assert (row["images_per_second_here"], row["height"], row["params"]) == ("12.5", "224", "5710512")
    assert by_name["gmlp_b16_224.untrained"]["top1_imagenet"] == ""
    assert by_name["convmixer_256_8_ks3_p4.cifar10"]["top1_cifar10"] == "88.18"
    assert set(MACHINES) == {key.removeprefix("images_per_second_") for key in row if key.startswith("images_per")}
