"""The life of a service: readiness is true, processes are replaced, drain loses nothing, close leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive, Scope, Send

from tessella.data.isolated.processes import ForkServer
from tessella.engine.base import Engine
from tessella.errors import ServeError
from tessella.predictor import Predictor
from tessella.serve import models
from tessella.serve.security import Gate, GateHooks
from tessella.serve.service import Service
from tessella.serve.settings import ServeSettings

from .engines import PHOTOGRAPH, FakeEngine, encoded, fake_predictor
from .processes import Snapshot, decoders, descriptors, resident_bytes
from .services import MODEL, code_of, numbers_in, run, running, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


def decoders_of(service: Service) -> list[int]:
    assert service._stages is not None
    return decoders(service._stages.pool)


# --- readiness --------------------------------------------------------------------------------------------------------


def test_readiness_follows_the_decoding_processes(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = ForkServer.fork
    allowed = threading.Event()

    def fork_if_allowed(self: ForkServer, channel: int, memory: int) -> None:
        if not allowed.is_set():
            raise OSError("no memory")
        fork(self, channel, memory)

    async def scenario(service: Service) -> None:
        await until(lambda: len(decoders_of(service)) == 2)
        assert service.readiness.ready
        monkeypatch.setattr(ForkServer, "fork", fork_if_allowed)
        for pid in decoders_of(service):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not service.readiness.ready)
        assert service.readiness.reason == "no decoding process is running"
        late = asyncio.create_task(service.infer([encoded(3)]))
        allowed.set()
        await until(lambda: service.readiness.ready)
        assert numbers_in(await late) == [3]
        assert not service.failed.is_set()
        text = service.metrics.render().decode()
        assert "tessella_worker_restarts_total 2.0" in text

    run(scenario)


def test_a_crash_loop_turns_the_service_off(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ForkServer, channel: int, memory: int) -> None:
        raise OSError("no memory")

    async def scenario(service: Service) -> None:
        await until(lambda: len(decoders_of(service)) == 2)
        for pid in decoders_of(service):
            os.kill(pid, signal.SIGSTOP)
        held = [asyncio.create_task(service.infer([encoded(i)])) for i in range(4)]
        await asyncio.sleep(0)
        monkeypatch.setattr(ForkServer, "fork", refuse)
        for pid in decoders_of(service):
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            await service.failed.wait()
        assert not service.readiness.ready
        assert "decoded" in service.readiness.reason
        assert [await code_of(task) for task in held] == ["worker_failed"] * 4
        assert await code_of(service.infer([encoded(1)])) == "not_ready"

    run(scenario)


def test_killed_decoders_lose_no_answer(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        outcomes: Counter[int | str] = Counter()
        rng = random.Random(0)
        stop = asyncio.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                (found,) = numbers_in(await service.infer([encoded(number)]))
                outcomes[found if isinstance(found, str) else "ok"] += 1
                assert found in (number, "decoder_crashed")

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for _ in range(30):
            await until(lambda: len(decoders_of(service)) == 2)
            with contextlib.suppress(ProcessLookupError):  # its end has not been noticed yet
                os.kill(rng.choice(decoders_of(service)), signal.SIGKILL)
            answered = outcomes["ok"]
            await until(lambda answered=answered: outcomes["ok"] > answered + 5)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*clients)
        assert outcomes["decoder_crashed"] <= 15  # only an image that meets two of the 30 kills
        assert service.readiness.ready

    run(scenario)


def test_everything_at_once_leaves_nothing_behind(engine: FakeEngine) -> None:
    """Clients that leave, short deadlines, bad images, a model that fails and processes that are killed."""

    async def scenario(service: Service) -> None:
        outcomes: Counter[int | str] = Counter()
        rng = random.Random(0)

        async def client(seed: int) -> None:
            own = random.Random(seed)
            for number in range(40):
                images = [b"damaged" if own.random() < 0.2 else encoded(number) for _ in range(own.randint(1, 4))]
                deadline = own.choice([None, None, 0.001, 0.01])
                request = asyncio.create_task(service.infer(images, deadline=deadline))
                if own.random() < 0.3:
                    await asyncio.sleep(own.random() * 0.02)
                    request.cancel()
                try:
                    for image, found in zip(images, numbers_in(await request), strict=True):
                        assert found in (
                            "unsupported_format" if image == b"damaged" else number,
                            "decoder_crashed",  # an image, damaged or not, that met two kills
                        )
                        outcomes["ok" if found == number else found] += 1
                except asyncio.CancelledError:
                    outcomes["canceled"] += 1
                except ServeError as error:
                    outcomes[error.code] += 1

        async def disturb() -> None:
            while True:
                with contextlib.suppress(ProcessLookupError):
                    if running := decoders_of(service):
                        os.kill(rng.choice(running), signal.SIGKILL)
                engine.fail = RuntimeError("broken") if rng.random() < 0.3 else None
                await asyncio.sleep(0.05)

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*map(client, range(16)))
        disturbing.cancel()
        await asyncio.wait([disturbing])
        engine.fail = None
        expected = {"ok", "unsupported_format", "canceled", "deadline_exceeded", "worker_failed"}
        assert expected <= set(outcomes) <= expected | {"decoder_crashed", "overloaded"}
        assert numbers_in(await service.infer([encoded(7)])) == [7]

    run(scenario)


# --- drain and close --------------------------------------------------------------------------------------------------


def test_drain_accepts_for_a_while_and_finishes_what_was_accepted(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        engine.gate.clear()
        early = asyncio.create_task(service.infer([encoded(1)]))
        await until(lambda: engine.held == 1)
        draining = asyncio.create_task(service.drain())
        await asyncio.sleep(0)
        assert (service.readiness.ready, service.readiness.reason) == (False, "the server is shutting down")
        late = asyncio.create_task(service.infer([encoded(2)]))
        await until(lambda: engine.held == 2)
        await until(lambda: service._state == "stopped")
        assert await code_of(service.infer([encoded(3)])) == "draining"
        assert not draining.done()
        engine.gate.set()
        assert numbers_in(await early) + numbers_in(await late) == [1, 2]
        await draining
        await service.drain()  # again, at once

    run(scenario, drain_delay=0.5)


def test_a_service_that_is_asked_to_stop_while_it_starts_accepts_nothing(engine: FakeEngine) -> None:
    async def scenario() -> None:
        service = Service(ServeSettings(models=(MODEL,), decode_processes=1, drain_delay=60.0))
        engine.gate.clear()
        starting = asyncio.create_task(service.start())
        await until(lambda: engine.held == 1)
        draining = asyncio.create_task(service.drain())
        await asyncio.sleep(0)
        engine.gate.set()
        await starting
        await draining
        assert not service.readiness.ready
        assert await code_of(service.infer([encoded(1)])) == "draining"
        await service.close()

    asyncio.run(scenario())


def test_drain_gives_up_after_its_time(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(service: Service) -> None:
        engine.gate.clear()
        held = asyncio.create_task(service.infer([encoded(1)]))
        await until(lambda: engine.held == 1)
        await service.drain()
        assert await code_of(held) == "draining"
        engine.gate.set()

    run(scenario, drain_timeout=0.1)
    assert "1 requests were not finished" in caplog.text


def test_drain_waits_for_requests_that_use_no_model(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        settings = ServeSettings()
        answering, answered = asyncio.Event(), asyncio.Event()

        async def search(scope: Scope, receive: Receive, send: Send) -> None:
            answering.set()
            await answered.wait()

        gate = Gate(search, settings, hooks=GateHooks(exchange=service.exchange))
        scope = {"type": "http", "method": "POST", "path": "/v1/search", "headers": [(b"host", b"localhost")]}
        request = asyncio.create_task(gate(scope, None, None))  # type: ignore[arg-type]
        await answering.wait()
        draining = asyncio.create_task(service.drain())
        await until(lambda: service._state == "stopped")
        await asyncio.sleep(0.05)
        assert not draining.done()
        answered.set()
        await draining
        await request

    run(scenario, drain_delay=0.0)


def test_refused_requests_do_not_prolong_the_end(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(service: Service) -> None:
        async def client() -> None:
            while True:
                with service.exchange():
                    await asyncio.sleep(0.02)

        clients = [asyncio.create_task(client()) for _ in range(10)]  # at every moment, some of them are refused
        await asyncio.wait_for(service.drain(), 60)
        for task in clients:
            task.cancel()

    run(scenario, drain_delay=0.1, drain_timeout=600)
    assert "not finished" not in caplog.text


def test_drain_under_load_loses_nothing(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        outcomes: Counter[str] = Counter()

        async def client(number: int) -> None:
            while (code := await code_of(service.infer([encoded(number)]))) == "ok":
                outcomes[code] += 1
            outcomes[code] += 1

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        await until(lambda: outcomes["ok"] > 100)
        await service.drain()
        await asyncio.gather(*clients)
        assert set(outcomes) == {"ok", "draining"}
        assert outcomes["draining"] == 16

    run(scenario, drain_delay=0.2)


def test_close_leaves_no_thread_process_or_descriptor(engine: FakeEngine) -> None:
    async def scenario() -> None:
        before = Snapshot()
        async with running() as service:
            engine.gate.clear()
            held = [asyncio.create_task(service.infer([encoded(i)] * 3)) for i in range(5)]
            await until(lambda: engine.held == 2)
            closing = asyncio.create_task(service.close())
            await asyncio.sleep(0)
            engine.gate.set()
            await closing
            assert [await code_of(task) for task in held] == ["draining"] * 5
            assert await code_of(service.infer([encoded(1)])) == "draining"
            assert await code_of(service.open(None)) == "draining"
        await until(lambda: not before.left_over())

    asyncio.run(scenario())


def test_a_service_that_was_never_started_can_be_closed(engine: FakeEngine) -> None:
    async def scenario() -> None:
        await Service(ServeSettings(models=(MODEL,))).close()

    asyncio.run(scenario())


# --- long runs --------------------------------------------------------------------------------------------------------


def test_memory_threads_and_descriptors_stay_flat() -> None:
    rng = random.Random(0)

    async def scenario(service: Service) -> None:
        async def client(count: int) -> None:
            for _ in range(count):
                bad = rng.random() < 0.05
                cut = PHOTOGRAPH[: rng.randrange(len(PHOTOGRAPH) - 1)]
                answer = await service.infer([cut if bad else encoded(rng.randrange(1 << 24))])
                assert hasattr(answer.outcomes[0], "code") is bad

        async def measure() -> tuple[int, int, int, int]:
            gc.collect()
            await until(lambda: len(decoders_of(service)) == 2)
            return resident_bytes(), threading.active_count(), descriptors(), len(asyncio.all_tasks())

        await asyncio.gather(*(client(50) for _ in range(8)))  # whatever is created once
        before = await measure()
        await asyncio.gather(*(client(250) for _ in range(8)))
        after = await measure()
        assert all(now <= then for now, then in zip(after[1:], before[1:], strict=True))
        assert after[0] - before[0] < 8 << 20

    run(scenario)


def test_an_idle_model_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    names = (MODEL, "gmixer_ti_p4_32.cifar10")
    engines: list[weakref.ref[Engine]] = []
    open_predictor = models.open_predictor

    def remember(source: str, settings: ServeSettings) -> Predictor:
        predictor = open_predictor(source, settings)
        engines.append(weakref.ref(predictor.engine))
        return predictor

    monkeypatch.setattr(models, "open_predictor", remember)

    async def scenario() -> None:
        service = Service(ServeSettings(models=names, decode_processes=1, idle_minutes=1), clock=lambda: now[0])
        await service.start()
        for _ in range(4):
            assert (await service.infer([encoded(1)], model=names[1])).model.name == names[1]
            now[0] += 60
            await service._host.unload_idle()
            assert [status.state for status in service.models()] == ["ready", "unloaded"]
        assert len(engines) == 5
        await until(lambda: not any(engine() for engine in engines[1:]))  # a thread may be leaving its last batch
        await service.close()

    asyncio.run(scenario())


def test_a_model_that_loads_slowly_leaves_places_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, may_load = "gmixer_ti_p4_32.cifar10", threading.Event()

    def open_slowly(source: str, settings: ServeSettings) -> Predictor:
        if source == slow:
            assert may_load.wait(60)
        return fake_predictor(source, FakeEngine())

    monkeypatch.setattr(models, "open_predictor", open_slowly)

    async def scenario(service: Service) -> None:
        late = await code_of(service.infer([encoded(1)], model=slow, deadline=0.05))
        assert late == "not_ready"  # clients repeat this, unlike an expired deadline
        waiting = [asyncio.create_task(service.infer([encoded(i)] * 4, model=slow)) for i in range(8)]
        await asyncio.sleep(0)
        refused = [task for task in waiting if task.done() or not await _is_pending(task)]
        assert [await code_of(task) for task in refused] == ["not_ready"] * 4  # 16 of 32 places are taken
        assert numbers_in(await service.infer([encoded(2)] * 8)) == [2] * 8
        may_load.set()
        answers = [await task for task in waiting if task not in refused]
        assert [numbers_in(answer) for answer in answers] == [[i] * 4 for i in range(4)]
        assert numbers_in(await service.infer([encoded(3)] * 32, model=slow)) == [3] * 32
        assert 'tessella_errors_total{code="not_ready"} 5.0' in service.metrics.render().decode()

    run(scenario, models=(MODEL, slow), queue_images=32, max_images=32)


async def _is_pending(task: asyncio.Task[object]) -> bool:
    await asyncio.wait([task], timeout=0.05)
    return not task.done()


def test_pytorch_is_not_imported() -> None:
    program = """
import asyncio, sys
from tessella.serve import Service, ServeSettings
from tests.serve.engines import encoded

async def main():
    service = Service(ServeSettings(engine="openvino", device="cpu"))
    await service.start()
    await service.infer([encoded(1)])
    await service.close()

asyncio.run(main())
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_metrics_of_requests() -> None:
    engine = FakeEngine()

    async def scenario(service: Service) -> None:
        await service.infer([encoded(1), b"damaged"])
        assert await code_of(service.infer([encoded(1)], model="unknown")) == "unknown_model"
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(service.metrics.render().decode())
            for sample in family.samples
        }
        assert found["tessella_errors_total", "unsupported_format"] == 1
        assert found["tessella_errors_total", "unknown_model"] == 1
        assert found["tessella_ready",] == 1
        assert found["tessella_queue_images",] == 0
        assert found["tessella_model_loaded", *sorted((MODEL, (await service.open(None)).fingerprint))] == 1
        for stage in ("queue", "decode", "model", "total"):
            assert found["tessella_latency_seconds_count", stage] == found["tessella_latency_seconds_count", "total"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tessella.serve.models.open_predictor", lambda source, settings: fake_predictor(source, engine))
        run(scenario)
