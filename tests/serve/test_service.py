"""The service: every request gets its own answer or a coded error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sys
from collections import Counter

import numpy as np
import pytest

from tessella.data.spec import InputSpec
from tessella.errors import ImageError, ServeError, UsageError, WeightsError
from tessella.predictor import load
from tessella.results import Output
from tessella.serve.request import ImageRequest
from tessella.serve.service import Service
from tessella.serve.settings import ServeSettings

from .engines import PHOTOGRAPH, SIZE, SPEC, FakeEngine, encoded, pixels_of
from .services import MODEL, code_of, hold, numbers_in, run, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the decoding processes are tested on Linux")


# --- answers ----------------------------------------------------------------------------------------------------------


def test_each_image_of_a_request_has_its_own_outcome(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        given = ImageError("not_found", "no such file")
        answer = await service.infer([encoded(7), b"damaged", encoded(300), given, b"", encoded(70_000)])
        assert numbers_in(answer) == [7, "unsupported_format", 300, "not_found", "empty", 70_000]
        assert answer.sizes == [(SIZE, SIZE), (0, 0), (SIZE, SIZE), (0, 0), (0, 0), (SIZE, SIZE)]
        assert answer.outcomes[3] is given
        assert set(answer.timing) == {"decode", "queue", "model", "total"}
        assert answer.timing["total"] >= answer.timing["model"] > 0
        assert (await service.infer([])).outcomes == []

    run(scenario)


def test_an_image_over_the_limit_is_refused_without_sending_it(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        answer = await service.infer([bytes(2000), encoded(1)])
        assert numbers_in(answer) == ["too_many_bytes", 1]

    run(scenario, max_body_bytes=1000)


def test_answers_equal_those_of_the_predictor() -> None:
    names = ("convmixer_256_8_ks3_p4.cifar10", "convmixer_384_8_ks5_p8.photographs")
    images = [PHOTOGRAPH, b"damaged", encoded(5), PHOTOGRAPH]
    expected = {name: [*load(name).records(images, top=3, embed=True)] for name in names}

    async def scenario(service: Service) -> None:
        for name in names:
            answer = await service.infer(images, model=name)
            assert answer.model.fingerprint == load(name).fingerprint
            for i, (outcome, record) in enumerate(zip(answer.outcomes, expected[name], strict=True)):
                found = answer.model.record(str(i), outcome, top=3, embed=True)
                assert (found.key, found.status) == (record.key, record.status)
                assert [one.label for one in found.top] == [one.label for one in record.top]
                if record.embedding is not None:
                    assert found.embedding is not None
                    np.testing.assert_allclose(found.embedding, record.embedding, atol=1e-5)

    run(scenario, models=names)


def test_tasks_have_their_default_models() -> None:
    async def scenario(service: Service) -> None:
        for task, name in service._host.defaults.items():
            assert (await service.infer([PHOTOGRAPH], task=task)).model.name == name
            assert (await service.open(None, task)).name == name
        assert [status.state for status in service.models()] == ["ready", "ready"]

    run(scenario, models=())


def test_decoded_images_go_directly_to_the_model(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        answer = await service.infer_pixels(np.stack([pixels_of(i) for i in range(20)]))
        assert numbers_in(answer) == list(range(20))
        for wrong in (
            np.zeros((1, SIZE, SIZE + 1, 3), np.uint8),
            np.zeros((1, 3, SIZE, SIZE), np.uint8),
            np.zeros((1, SIZE, SIZE, 3), np.float32),
            np.zeros((SIZE, SIZE, 3), np.uint8),
        ):
            with pytest.raises(UsageError) as refused:
                await service.infer_pixels(wrong)  # type: ignore[arg-type]
            assert refused.value.code == "wrong_input_size"

    run(scenario)


def test_an_image_can_be_decoded_for_another_spec(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        decoded = await service.decode(PHOTOGRAPH, InputSpec(height=96, width=64, crop_mode="squash"))
        assert decoded.pixels is not None
        assert decoded.pixels.shape == (96, 64, 3)
        assert (decoded.width, decoded.height) == (512, 512)

    run(scenario)


def test_fifty_thousand_answers_and_none_is_swapped(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        numbers = iter(range(50_000))
        answered: Counter[int] = Counter()

        async def client(seed: int) -> None:
            rng = random.Random(seed)
            while chosen := [*itertools.islice(numbers, rng.randint(1, 3))]:
                answer = await service.infer_pixels(np.stack([pixels_of(number) for number in chosen]))
                assert numbers_in(answer) == chosen
                answered.update(chosen)

        await asyncio.gather(*map(client, range(20)))
        assert len(answered) == 50_000
        assert set(answered.values()) == {1}
        assert max(engine.calls) > 1, "images of several requests share batches"

    run(scenario)


def test_answers_of_encoded_images_are_not_swapped_beside_bad_ones(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        numbers = iter(range(3000))

        async def client(seed: int) -> None:
            rng = random.Random(seed)
            while chosen := [*itertools.islice(numbers, rng.randint(1, 3))]:
                images = [b"damaged" if number % 10 == 3 else encoded(number) for number in chosen]
                expected = ["unsupported_format" if number % 10 == 3 else number for number in chosen]
                assert numbers_in(await service.infer(images)) == expected

        await asyncio.gather(*map(client, range(16)))

    run(scenario)


def test_answers_of_a_real_model_are_not_swapped() -> None:
    rng = np.random.default_rng(0)
    count = 2000
    pixels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    expected = [*load(MODEL).outputs(pixels)]

    async def scenario(service: Service) -> None:
        numbers = iter(range(count))

        async def client() -> None:
            for number in numbers:
                (outcome,) = (await service.infer_pixels(pixels[number : number + 1])).outcomes
                reference = expected[number]
                assert isinstance(outcome, Output)
                assert isinstance(reference, Output)
                np.testing.assert_allclose(outcome.logits, reference.logits, atol=1e-4)
                np.testing.assert_allclose(outcome.embedding, reference.embedding, atol=1e-4)

        await asyncio.gather(*(client() for _ in range(16)))

    run(scenario)


# --- overload, deadlines, clients that leave --------------------------------------------------------------------------


def test_a_full_service_refuses_at_once_and_recovers(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        engine.gate.clear()
        held = [asyncio.create_task(service.infer([encoded(i)] * 4)) for i in range(2)]
        await until(lambda: service._admission.images == 8)
        assert await code_of(service.infer([encoded(0)])) == "overloaded"
        assert await code_of(service.infer_pixels(pixels_of(0)[None])) == "overloaded"
        with pytest.raises(ServeError, match="in work"):
            service.check()
        held[0].cancel()
        await until(lambda: held[0].done())
        assert service._admission.images == 4  # a client that leaves frees its places
        service.check()
        late = asyncio.create_task(service.infer([encoded(9)]))
        await asyncio.sleep(0)
        engine.gate.set()
        assert numbers_in(await late) == [9]
        assert numbers_in(await held[1]) == [1] * 4

    run(scenario, queue_images=8, max_images=8)


def test_the_limit_on_bytes_counts_files_and_pixels(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        engine.gate.clear()
        held = asyncio.create_task(service.infer([encoded(1)]))
        await until(lambda: engine.held == 1)
        assert service._admission.bytes == len(encoded(1)) + pixels_of(1).nbytes
        assert await code_of(service.infer([bytes(900)])) == "overloaded"
        assert await code_of(service.infer([bytes(1100)])) == "too_many_images"
        engine.gate.set()
        await held

    run(scenario, queue_bytes=1000, max_body_bytes=1000)


def test_a_request_with_too_many_images_is_refused(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        assert await code_of(service.infer([encoded(1)] * 5)) == "too_many_images"
        assert await code_of(service.infer([encoded(1)] * 4)) == "ok"

    run(scenario, max_images=4)


def test_work_that_would_come_too_late_is_refused_instead_of_done_in_vain(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        hosted = await service._host.acquire(None, "classify")
        hosted.release()
        hosted.lane.image_seconds = 1.0  # a slow model, whose two streams need half a second for an image
        engine.gate.clear()
        held = [asyncio.create_task(service.infer([encoded(i)] * 5)) for i in range(3)]
        await until(lambda: service._admission.seconds == pytest.approx(7.5))
        assert await code_of(service.infer([encoded(9)] * 2)) == "overloaded"  # 8.5 of 10 seconds
        assert await code_of(service.infer([encoded(9)], deadline=5.0)) == "overloaded"
        engine.gate.set()
        assert [len(answer.outcomes) for answer in await asyncio.gather(*held)] == [5, 5, 5]
        assert len((await service.infer([encoded(9)] * 40)).outcomes) == 40  # nobody is before it

    run(scenario)


def test_an_expired_request_never_reaches_the_model(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        held = await hold(service, engine, 2)
        calls = len(engine.calls)
        assert await code_of(service.infer([encoded(3)], deadline=0.2)) == "deadline_exceeded"
        assert await code_of(service.infer([encoded(3)], deadline=0.0)) == "deadline_exceeded"
        assert service._admission.images == 2
        engine.gate.set()
        await asyncio.gather(*held)
        assert len(engine.calls) == calls

    run(scenario)


def test_a_request_may_only_shorten_the_deadline(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        engine.gate.clear()
        assert await code_of(service.infer([encoded(3)], deadline=1000.0)) == "deadline_exceeded"
        engine.gate.set()

    run(scenario, deadline=0.2)


def test_clients_that_leave_drop_their_images(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        held = await hold(service, engine, 2)
        calls = len(engine.calls)
        leaving = [asyncio.create_task(service.infer([encoded(i)] * 3)) for i in range(10)]
        assert service._stages is not None
        batcher = service._stages.batcher
        await until(lambda: batcher.waiting == 30)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        assert batcher.waiting == 0
        engine.gate.set()
        await asyncio.gather(*held)
        assert len(engine.calls) == calls

    run(scenario)


def test_random_cancellation_leaves_nothing_behind(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        rng = random.Random(0)
        outcomes: Counter[str] = Counter()

        async def client(seed: int) -> None:
            own = random.Random(seed)
            for number in range(40):
                request = asyncio.create_task(service.infer([encoded(number)] * own.randint(1, 4)))
                if own.random() < 0.5:
                    await asyncio.sleep(own.random() * 0.01)
                    request.cancel()
                try:
                    assert set(numbers_in(await request)) == {number}
                    outcomes["answered"] += 1
                except asyncio.CancelledError:
                    outcomes["canceled"] += 1
                except ServeError as error:
                    outcomes[error.code] += 1

        await asyncio.gather(*(client(rng.randrange(1 << 30)) for _ in range(24)))
        assert outcomes["answered"] > 50
        assert outcomes["canceled"] > 50
        assert outcomes["overloaded"] > 0
        assert set(outcomes) == {"answered", "canceled", "overloaded"}

    run(scenario, queue_images=30, max_images=30)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_model_that_fails_costs_its_batch_only(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        engine.fail = RuntimeError("out of memory at 0x7f00deadbeef")
        assert await code_of(service.infer([encoded(1), encoded(2)])) == "worker_failed"
        engine.fail = None
        assert numbers_in(await service.infer([encoded(1)])) == [1]
        assert service.readiness.ready

    run(scenario)


def test_a_result_that_is_not_finite_is_an_error_of_its_image(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        engine.not_finite = {5}
        answer = await service.infer([encoded(i) for i in range(8)])
        assert numbers_in(answer) == [0, 1, 2, 3, 4, "non_finite", 6, 7]
        assert answer.model.record("x", answer.outcomes[5], top=1, embed=True).status == "non_finite"

    run(scenario)


def test_a_model_that_fails_its_test_keeps_the_service_from_starting(engine: FakeEngine) -> None:
    async def scenario() -> None:
        engine.fail = RuntimeError("broken")
        service = Service(ServeSettings(models=(MODEL,), decode_processes=1))
        with pytest.raises(WeightsError) as failed:
            await service.start()
        assert failed.value.code == "conversion_failed"
        assert not service.readiness.ready
        assert await code_of(service.infer([encoded(1)])) == "not_ready"
        await service.close()

    asyncio.run(scenario())


def test_requests_before_the_start_are_refused(engine: FakeEngine) -> None:
    async def scenario() -> None:
        service = Service(ServeSettings(models=(MODEL,)))
        assert (service.readiness.ready, service.readiness.reason) == (False, "the models are being loaded")
        assert await code_of(service.infer([encoded(1)])) == "not_ready"
        assert await code_of(service.decode(encoded(1), SPEC)) == "not_ready"
        await service.close()

    asyncio.run(scenario())


def test_requests_are_freed_without_the_garbage_collector(engine: FakeEngine) -> None:
    async def scenario(service: Service) -> None:
        gc.collect()
        gc.disable()
        try:
            await service.infer([encoded(1), b"damaged", encoded(2)])
            await service.infer_pixels(pixels_of(1)[None])
            engine.gate.clear()
            leaving = asyncio.create_task(service.infer([encoded(3)]))
            await until(lambda: engine.held == 1)
            leaving.cancel()
            await asyncio.wait([leaving])
            del leaving
            engine.gate.set()
            await until(lambda: not any(type(one) is ImageRequest for one in gc.get_objects()))
        finally:
            gc.enable()

    run(scenario)
