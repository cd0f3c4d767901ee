"""The table of measured rates decides the layout of a graph on CPUs that it knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tessella.data.spec import InputSpec
from tessella.engine import choice, make_plan, trial
from tessella.engine.base import Engine
from tessella.engine.choice import Rate, measured_rate
from tessella.engine.graphs import layouts_of
from tessella.engine.plan import Mode, Plan
from tessella.engine.trial import settle_layout
from tessella.machine import cpu_class
from tessella.models.configs import configure
from tessella.weights.network import Network

from ..models.tiny import size_of, tiny


def rate(**changes: object) -> Rate:
    row: dict[str, object] = dict(
        family="gmixer", cpu=cpu_class(), threads=2, mode="throughput", engine="openvino", ratio=2.0, source="here"
    )
    return Rate(**(row | changes))  # type: ignore[arg-type]


@pytest.fixture
def network() -> Network:
    return Network.of(tiny("gmixer"))


def settled(network: Network, mode: Mode = "throughput") -> Plan:
    size = size_of(network.to_module())
    plan = make_plan("cpu", "float32", "openvino", mode=mode, model=network, size=size)
    return settle_layout(network, plan, size, InputSpec(height=size[0], width=size[1]))


def test_the_nearest_number_of_threads_counts(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        rate(threads=16, request=1), rate(threads=4, request=2), rate(mode="latency", threads=1),
        rate(engine="rewritten", threads=1), rate(cpu="other"), rate(family="mixer"),
    )  # fmt: skip
    monkeypatch.setattr(choice, "rates", lambda: rows)
    found = [measured_rate(network, "openvino", "float32", threads, "throughput") for threads in (1, 5, 12)]
    assert [row and row.request for row in found] == [2, 2, 1]
    assert measured_rate(network, "onnxruntime", "float32", 1, "throughput") is None
    assert measured_rate(network, "openvino", "bfloat16", 1, "throughput") is None
    assert measured_rate(Network.of(tiny("convit")), "openvino", "float32", 1, "throughput") is None


def test_a_measured_layout_is_used_without_timing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(trial, "cached", never)
    for layout in layouts_of(network):
        monkeypatch.setattr(choice, "rates", lambda layout=layout: (rate(layout=layout),))
        plan = settled(network)
        assert plan.layout == layout
        assert plan.choice("layout").reason == "measured on this class of CPU: here"
    monkeypatch.setattr(choice, "rates", lambda: (rate(layout="of another version"),))
    assert settled(network).layout == ""  # the default


def test_each_precision_has_its_layout(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        rate(layout="left", ratio=1.5), rate(layout="right", precision="bfloat16", engine="rewritten", ratio=9.0),
        rate(layout="right", precision="bfloat16"),
    )  # fmt: skip
    monkeypatch.setattr(choice, "rates", lambda: rows)
    size = size_of(network.to_module())
    for precision, layout in (("float32", "left"), ("bfloat16", "right")):
        plan = dataclasses.replace(make_plan("cpu", "float32", "openvino"), precision=precision)
        assert settle_layout(network, plan, size, InputSpec(height=size[0], width=size[1])).layout == layout
    engine, reason = choice.fastest_engine(network, 2, "throughput")  # is chosen for float32
    assert engine == "openvino"
    assert reason.startswith("1.50 times")


def test_times_of_layouts_are_kept_for_each_number_of_images(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With one thread, both modes have one stream; the layout that is faster for 8 images may be slower for one."""
    timed: list[int] = []

    def times(engines: dict[str, Engine], count: int) -> dict[str, float]:
        timed.append(count)
        return {name: (1.0 if (name == "left") == (count == 1) else 2.0) for name in engines}

    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(choice, "rates", tuple)
    monkeypatch.setattr(trial, "_time_layouts", times)
    assert settled(network, "latency").layout == "left"
    assert settled(network).layout == "right"
    assert settled(network).layout == "right"
    assert timed == [1, 8]


def test_the_size_of_requests_follows_from_the_activations_of_the_model(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of a family was measured with one model; a small one would be slow with its few images per request."""
    monkeypatch.setattr(choice, "rates", lambda: (rate(layout=layouts_of(network)[0], request=1),))
    size = size_of(network.to_module())
    assert settled(network).request == choice.images_per_request(network.config, size) > 8
    large = configure("mixer_b16_224")
    assert choice.images_per_request(large, (224, 224)) == 2
    assert choice.images_per_request(configure("convmixer_768_32"), (224, 224)) == 2
