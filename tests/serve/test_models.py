"""The host of models: one load at a time, failures, idle time, a memory budget; names that clients may use."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessella.data.decode import Pixels
from tessella.engine.base import ArrayOutputs
from tessella.errors import HubError, ServeError, TessellaError, UsageError, WeightsError
from tessella.machine import NICE
from tessella.predictor import Predictor, load
from tessella.results import FloatArray, Output
from tessella.serve import models
from tessella.serve.batcher import Batcher, Item, Lane, Result
from tessella.serve.models import RETRY_SECONDS, ModelHost, memory_needed, served_names
from tessella.serve.self_test import self_test
from tessella.serve.settings import ServeSettings
from tessella.weights.catalogue import default_model

from .engines import CLASSES, SPEC, FakeEngine, fake_predictor

FIRST, SECOND, THIRD = (f"{arch}_ti_p4_32.cifar10" for arch in ("mixer", "gmixer", "convit"))


class Loader:
    """Stands in for `tessella.load`: counts loads, waits at a gate, and fails as told."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.bytes = 100

    def __call__(self, source: str, settings: ServeSettings) -> Predictor:
        self.loads.append(source)
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return fake_predictor(source, FakeEngine())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(models, "open_predictor", loader)
    monkeypatch.setattr(models, "memory_needed", lambda source: loader.bytes)
    return loader


def host_of(clock: Callable[[], float] = lambda: 0.0, **settings: object) -> ModelHost:
    chosen: dict[str, object] = dict(models=(FIRST, SECOND, THIRD)) | settings
    return ModelHost(ServeSettings(**chosen), clock=clock)  # type: ignore[arg-type]


async def use(host: ModelHost, name: str | None = None) -> None:
    (await host.acquire(name, "classify")).release()


def states(host: ModelHost) -> list[str]:
    return [status.state for status in host.statuses()]


def test_many_requests_share_one_load(loader: Loader) -> None:
    async def scenario() -> None:
        host = host_of()
        loader.gate.clear()
        waiting = [asyncio.create_task(host.acquire(FIRST, "embed")) for _ in range(20)]
        given_up = asyncio.create_task(host.acquire(FIRST, "embed"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert states(host) == ["loading", "unloaded", "unloaded"]
        given_up.cancel()  # does not affect the others
        loader.gate.set()
        hosted = await asyncio.gather(*waiting)
        assert len({id(one) for one in hosted}) == 1
        assert hosted[0].users == 20
        assert loader.loads == [FIRST]
        assert states(host)[0] == "ready"
        await host.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error",
    [HubError("hub_unavailable", "no network"), WeightsError("hash_mismatch", "damaged"), ZeroDivisionError("a bug")],
)
def test_a_failed_load_is_an_error_of_its_requests_and_can_be_repeated(loader: Loader, error: BaseException) -> None:
    async def scenario() -> None:
        clock = Clock()
        host = host_of(clock)
        loader.error = error
        failures = await asyncio.gather(*(host.acquire(SECOND, "embed") for _ in range(5)), return_exceptions=True)
        expected = error.code if isinstance(error, TessellaError) else "conversion_failed"
        assert [getattr(failure, "code", None) for failure in failures] == [expected] * 5
        assert len({id(failure) for failure in failures}) == 5
        assert (states(host)[1], host.memory) == ("failed", 0)
        loader.error = None
        with pytest.raises(TessellaError):  # a client that repeats its request at once causes no other download
            await host.acquire(SECOND, "embed")
        assert loader.loads == [SECOND]
        clock.now += RETRY_SECONDS
        await use(host, SECOND)
        assert states(host)[1] == "ready"
        await host.close()

    asyncio.run(scenario())


def test_names_that_are_not_offered_are_unknown(loader: Loader) -> None:
    async def scenario() -> None:
        host = host_of()
        for name in ("convit_ti_p4_32", "crossvit_ti_dagger_p4_32.cifar10", "local-dir:/", "hf-hub:a/b", ""):
            with pytest.raises(UsageError) as unknown:
                await host.acquire(name, "embed")
            assert unknown.value.code == "unknown_model"
        assert loader.loads == []

    asyncio.run(scenario())


def test_idle_models_are_unloaded_except_the_first_and_those_in_use(loader: Loader) -> None:
    async def scenario() -> None:
        clock = Clock()
        host = host_of(clock, idle_minutes=1)
        for name in (FIRST, SECOND):
            await use(host, name)
        held = await host.acquire(THIRD, "embed")
        clock.now = 59.0
        await host.unload_idle()
        assert states(host) == ["ready"] * 3
        clock.now = 60.0
        await host.unload_idle()
        assert states(host) == ["ready", "unloaded", "ready"]
        assert host.statuses()[1].model is not None  # its facts stay known
        held.release()
        await host.unload_idle()
        assert states(host) == ["ready", "unloaded", "ready"]  # it was used just now
        clock.now = 120.0
        await host.unload_idle()
        assert states(host) == ["ready", "unloaded", "unloaded"]
        await use(host, SECOND)
        assert states(host) == ["ready", "ready", "unloaded"]
        await host.close()

    asyncio.run(scenario())


def test_the_budget_unloads_what_was_used_the_longest_time_ago(loader: Loader) -> None:
    async def scenario() -> None:
        clock = Clock()
        host = host_of(clock, memory_limit=250)
        for name in (FIRST, SECOND):
            clock.now += 1
            await use(host, name)
        clock.now += 1
        await use(host, THIRD)
        assert states(host) == ["ready", "unloaded", "ready"]
        held = await host.acquire(THIRD, "embed")
        with pytest.raises(ServeError) as busy:
            await host.acquire(SECOND, "embed")
        assert busy.value.code == "overloaded"
        held.release()
        clock.now += RETRY_SECONDS
        await use(host, SECOND)
        assert states(host) == ["ready", "ready", "unloaded"]
        assert host.memory == 200
        await host.close()
        assert host.memory == 0

    asyncio.run(scenario())


def test_a_model_that_does_not_fit_beside_the_first_is_refused(loader: Loader) -> None:
    async def scenario() -> None:
        host = host_of(memory_limit=150)
        await use(host, FIRST)
        with pytest.raises(ServeError) as refused:
            await host.acquire(SECOND, "embed")
        assert refused.value.code == "not_ready"
        assert states(host)[0] == "ready"
        await host.close()

    asyncio.run(scenario())


def test_the_first_model_is_loaded_even_beyond_the_budget(loader: Loader, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        host = host_of(memory_limit=50)
        await use(host)
        assert states(host)[0] == "ready"
        await host.close()

    asyncio.run(scenario())
    assert "more than the limit" in caplog.text


def test_closing_ends_the_wait_for_a_model(loader: Loader) -> None:
    async def scenario() -> None:
        host = host_of()
        loader.gate.clear()
        waiting = asyncio.create_task(host.acquire(FIRST, "embed"))
        while not loader.loads:
            await asyncio.sleep(0.001)
        await host.close()
        with pytest.raises(ServeError) as refused:
            await waiting
        assert refused.value.code == "draining"
        loader.gate.set()

    asyncio.run(scenario())


def test_closing_before_a_load_has_begun_ends_the_wait_for_it(loader: Loader) -> None:
    async def scenario() -> None:
        host = host_of()
        waiting = asyncio.create_task(host.acquire(None, "classify"))
        await asyncio.sleep(0)  # the task of the load exists, and has not had its first step
        await host.close()
        with pytest.raises(ServeError) as refused:
            await waiting
        assert refused.value.code == "draining"
        assert loader.loads == []
        assert states(host)[0] == "unloaded"

    asyncio.run(scenario())


def test_loaded_and_unloaded_models_are_reported(loader: Loader) -> None:
    events: list[tuple[str, str]] = []

    async def scenario() -> None:
        host = ModelHost(
            ServeSettings(models=(FIRST,)),
            on_loaded=lambda model: events.append(("loaded", model.name)),
            on_unloaded=lambda model: events.append(("unloaded", model.name)),
        )
        await use(host)
        await host.close()

    asyncio.run(scenario())
    assert events == [("loaded", FIRST), ("unloaded", FIRST)]


def test_a_model_that_is_loaded_again_while_its_memory_is_returned_is_reported_as_loaded(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    returning, gate = threading.Event(), threading.Event()

    def return_memory() -> None:
        returning.set()
        assert gate.wait(60)

    async def scenario() -> None:
        clock = Clock()
        host = ModelHost(
            ServeSettings(models=(FIRST, SECOND), idle_minutes=1),
            on_loaded=lambda model: events.append(f"loaded {model.name}"),
            on_unloaded=lambda model: events.append(f"unloaded {model.name}"),
            clock=clock,
        )
        await use(host, SECOND)
        clock.now = 3600.0
        unloading = asyncio.create_task(host.unload_idle())
        assert await asyncio.to_thread(returning.wait, 60)
        await use(host, SECOND)
        gate.set()
        await unloading
        assert events == [f"loaded {SECOND}", f"unloaded {SECOND}", f"loaded {SECOND}"]
        await host.close()

    monkeypatch.setattr(models, "return_freed_memory", return_memory)
    asyncio.run(scenario())


# --- names ------------------------------------------------------------------------------------------------------------


def test_without_names_the_default_models_are_offered() -> None:
    names, defaults = served_names(ServeSettings())
    assert defaults == {"classify": default_model("classify"), "embed": default_model("embed")}
    assert list(names) == list(defaults.values())


def test_the_first_name_is_the_default_of_both_tasks() -> None:
    names, defaults = served_names(ServeSettings(models=("mixer_ti_p4_32", THIRD)))
    assert list(names) == [FIRST, THIRD]
    assert set(defaults.values()) == {FIRST}


def test_a_short_and_a_full_name_of_the_same_model_are_one() -> None:
    assert list(served_names(ServeSettings(models=("mixer_ti_p4_32", FIRST)))[0]) == [FIRST]


def test_folders_are_known_by_their_names_without_the_path(tmp_path: Path) -> None:
    (tmp_path / "a" / "mine").mkdir(parents=True)
    source = f"local-dir:{tmp_path}/a/mine"
    assert served_names(ServeSettings(models=(source,)))[0] == {"mine": source}
    with pytest.raises(UsageError, match="same name"):
        served_names(ServeSettings(models=(source, f"local-dir:{tmp_path}/b/mine")))


def test_an_unknown_name_is_refused_before_anything_is_started() -> None:
    with pytest.raises(UsageError) as unknown:
        ModelHost(ServeSettings(models=("mixer_x",)))
    assert unknown.value.code == "unknown_model"


# --- memory and the test of a model -----------------------------------------------------------------------------------


def test_the_estimate_of_memory_follows_the_size_of_the_model(tmp_path: Path) -> None:
    assert memory_needed("mixer_b16_224") > 2 * 4 * 59_000_000
    assert memory_needed("mixer_b16_224") < memory_needed("mixer_l16_224") < 4 << 30
    (tmp_path / "tessella.json").write_bytes(bytes(10))
    (tmp_path / "model.bin").write_bytes(bytes(1000))
    assert memory_needed(f"local-dir:{tmp_path}") == 2525


class FaultyEngine(FakeEngine):
    """An engine with one of the faults that the self-test looks for."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def __call__(self, images_BHWC: Pixels) -> ArrayOutputs:
        logits, embeddings = super().__call__(images_BHWC)
        match self.fault:
            case "nan":
                embeddings[-1] = np.nan
            case "swapped" if len(logits) > 1:
                logits[[0, 1]] = logits[[1, 0]]
            case "neighbors":
                logits *= len(logits)
            case "rows" if len(logits) > 1:
                return logits[1:], embeddings[1:]
        return logits, embeddings


def test_a_sound_engine_passes_the_self_test() -> None:
    engine = FakeEngine(streams=3)
    self_test(engine, SPEC)
    assert sorted(engine.calls) == [1] * 4 + [4] * 3


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("nan", "non_finite"),
        ("swapped", "conversion_failed"),
        ("neighbors", "conversion_failed"),
        ("rows", "conversion_failed"),
    ],
)
def test_a_faulty_engine_fails_the_self_test(fault: str, code: str) -> None:
    with pytest.raises(WeightsError) as failed:
        self_test(FaultyEngine(fault), SPEC)
    assert failed.value.code == code


@pytest.mark.parametrize("name", [default_model("classify"), default_model("embed"), FIRST, SECOND, THIRD])
def test_built_in_models_pass_the_self_test(name: str) -> None:
    predictor = load(name)
    self_test(predictor.engine, predictor.spec)


def test_a_damaged_weight_fails_the_self_test() -> None:
    pytest.importorskip("torch")
    import torch

    import tessella

    model = tessella.create_model("mixer_ti_p4_32", pretrained=True)
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    predictor = Predictor(model)
    with pytest.raises(WeightsError) as failed:
        self_test(predictor.engine, predictor.spec)
    assert failed.value.code == "non_finite"


def test_the_facts_of_a_model_keep_no_engine_in_memory(loader: Loader) -> None:
    predictor = fake_predictor("fake", FakeEngine())
    model = models.ServedModel.of("fake", "fake", predictor)
    held = [getattr(model, field.name) for field in dataclasses.fields(model)]
    assert predictor.engine not in held
    assert predictor not in held
    assert (model.num_classes, model.width, len(model.labels)) == (CLASSES, 2, CLASSES)


@pytest.mark.parametrize("engine", ["openvino", "rewritten"])
def test_threads_of_a_batcher_compute_what_the_engine_does(engine: str) -> None:
    if engine == "rewritten":
        pytest.importorskip("torch")
    predictor = load(FIRST, engine=engine)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    expected = np.concatenate([predictor.engine(pixels[i : i + 1])[0] for i in range(60)])
    finished = threading.Semaphore(0)
    found: dict[int, FloatArray] = {}

    def deliver(results: list[Result[int]]) -> None:
        for result in results:
            assert isinstance(result.outcome, Output)
            found[result.item.key] = result.outcome.logits
            finished.release()

    plan = predictor.engine.plan
    lane: Lane[int] = Lane(predictor.engine.run_stream, plan.batch_size, plan.streams)
    with Batcher(deliver, workers=plan.streams, max_images=60, max_bytes=1 << 20) as batcher:
        for i, image in enumerate(pixels):
            batcher.submit(lane, [Item(i, image)])
        for _ in pixels:
            assert finished.acquire(timeout=60)
    np.testing.assert_allclose(np.stack([found[i] for i in range(60)]), expected, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_models_are_loaded_at_a_lower_priority(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of an engine inherit the priority of the thread that opens it."""
    found: list[int] = []

    def remember(source: str, settings: ServeSettings) -> Predictor:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return loader(source, settings)

    monkeypatch.setattr(models, "open_predictor", remember)

    async def scenario() -> None:
        host = host_of()
        await use(host)
        await host.close()

    asyncio.run(scenario())
    assert found == [min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)]
