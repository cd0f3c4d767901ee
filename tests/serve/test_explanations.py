"""Explanations of a service: images by their own status, limits, deadlines, disconnects, memory, the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.data.resize import prepare
from tessella.data.spec import InputSpec
from tessella.errors import ImageError, ServeError, TessellaError
from tessella.serve import explain_queue, explanations, models
from tessella.serve.explain_process import ExplainedImage
from tessella.serve.explanations import MAX_EXPLAINED, ExplainAnswer, ExplainOptions, box, memory_to_explain
from tessella.serve.models import ServedModel
from tessella.serve.problems import RequestError, RetryLaterError
from tessella.serve.service import Service

from . import fake_explainer
from .engines import FakeEngine, encoded
from .services import MODEL, code_of, run, until

FINGERPRINT = "f" * 16


@pytest.fixture(autouse=True)
def fake(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The engine and the process of all services of a test; a folder with what the process is to do."""
    monkeypatch.setattr(models, "_float32_fingerprint", lambda predictor: FINGERPRINT)
    monkeypatch.setattr(explanations, "ExplainProcess", fake_explainer.start_fake)
    monkeypatch.setattr(explanations, "is_installed", lambda name: True)
    monkeypatch.setenv(fake_explainer.FOLDER, str(tmp_path))
    return tmp_path


def explain(service: Service, *images: bytes | ImageError, wanted: str | None = None, **options: Any) -> Any:
    return service.explain([*images] or [encoded(7)], ExplainOptions(wanted), **options)


def first(answer: ExplainAnswer) -> ExplainedImage:
    outcome = answer.outcomes[0]
    assert isinstance(outcome, ExplainedImage)
    return outcome


async def error_of(work: Awaitable[object]) -> TessellaError:
    try:
        await work
    except TessellaError as error:
        return error
    raise AssertionError("there was no error")


def free(service: Service) -> bool:
    admission = service.explanations._admission
    return (admission.images, admission.bytes, round(admission.seconds, 6)) == (0, 0, 0)


def test_every_image_has_its_own_status() -> None:
    async def scenario(service: Service) -> None:
        images: list[bytes | ImageError] = [
            encoded(1),
            b"no image",
            encoded(2),
            ImageError("url_failed", "no"),
            encoded(3),
            b"x" * 21_000_000,
        ]
        answer = await explain(service, *images)
        found = [
            outcome.code if isinstance(outcome, ImageError) else outcome.values[0][0] for outcome in answer.outcomes
        ]
        assert found == [1, "unsupported_format", 2, "url_failed", 3, "too_many_bytes"]
        assert answer.sizes == [(8, 8), (0, 0), (8, 8), (0, 0), (8, 8), (0, 0)]
        assert answer.model.name == MODEL
        assert first(answer).reason == f"{MODEL} {FINGERPRINT} auto None"
        assert free(service)

    run(scenario)


def test_an_image_without_a_result_is_an_error_of_the_image() -> None:
    async def scenario(service: Service) -> None:
        answer = await explain(service, wanted="no result")
        assert isinstance(answer.outcomes[0], ImageError)
        assert answer.outcomes[0].code == "non_finite"

    run(scenario)


def test_options_reach_the_process_and_its_refusals_the_client() -> None:
    async def scenario(service: Service) -> None:
        answer = await service.explain([encoded(1)], ExplainOptions("cat", "dog", "occlusion"))
        assert first(answer).reason.endswith("occlusion cat")
        assert first(answer).versus.label == "dog"  # type: ignore[union-attr]
        refused = await error_of(explain(service, wanted="refuse"))
        assert isinstance(refused, RequestError)
        assert (refused.code, refused.message) == ("unprocessable", "The model has no class of that name or index.")
        broken = await error_of(explain(service, wanted="break"))
        assert (broken.code, broken.message) == ("internal_error", "")
        assert free(service)

    run(scenario)


def test_the_process_sees_what_the_model_sees_and_a_larger_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    submit = explain_queue.ExplainQueue.submit

    def watch(queue: explain_queue.ExplainQueue, job: explain_queue.ExplainJob) -> None:
        import pickle

        orders.append(pickle.loads(job.order))
        submit(queue, job)

    monkeypatch.setattr(explain_queue.ExplainQueue, "submit", watch)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")

    async def scenario(service: Service) -> None:
        answer = await explain(service, buffer.getvalue())
        spec = answer.model.spec
        assert np.array_equal(orders[0].pixels, prepare(pixels, spec))
        assert orders[0].picture.shape == (explanations.PICTURE_SIDE, explanations.PICTURE_SIDE, 3)
        assert answer.sizes == [(90, 60)]
        # the spec has the middle square
        assert answer.boxes[0] == pytest.approx((15, 0, 75, 60), abs=90 / 8 / 2)

    run(scenario)


def test_the_time_to_start_is_reported_once() -> None:
    async def scenario(service: Service) -> None:
        timing = (await explain(service)).timing
        assert timing["start"] > 10
        assert timing["total"] >= timing["start"] + timing["decode"]
        assert timing["explain"] == 1000 * fake_explainer.SECONDS
        assert (await explain(service)).timing["start"] < 10

    run(scenario)


def test_a_late_explanation_is_given_up_and_the_next_works() -> None:
    async def scenario(service: Service) -> None:
        await explain(service)  # the process is running
        begun = time.monotonic()
        assert await code_of(explain(service, wanted="hang", deadline=0.5)) == "deadline_exceeded"
        assert time.monotonic() - begun < 60  # it would have taken 600 seconds
        assert first(await explain(service)).values[0][0] == 7
        assert free(service)

    run(scenario)


def test_a_deadline_during_the_start_can_be_repeated(fake: Path) -> None:
    (fake / "slow start").touch()

    async def scenario(service: Service) -> None:
        assert await code_of(explain(service, deadline=0.5)) in ("not_ready", "deadline_exceeded")
        assert first(await explain(service)).values[0][0] == 7

    run(scenario)


def test_a_process_that_dies_is_replaced_and_nobody_notices() -> None:
    async def scenario(service: Service) -> None:
        answers = await asyncio.gather(*(explain(service, encoded(i), wanted="die once") for i in range(4)))
        assert [first(answer).values[0][0] for answer in answers] == [0, 1, 2, 3]
        assert 'tessella_explain_process_ends_total{reason="lost"} 1.0' in service.metrics.render().decode()

    run(scenario)


def test_a_crash_loop_switches_only_explanations_off() -> None:
    async def scenario(service: Service) -> None:
        while (error := await error_of(explain(service, wanted="die"))).code == "worker_failed":
            pass
        assert isinstance(error, RetryLaterError)
        assert error.code == "explain_off"
        assert 500 < error.retry_after <= explain_queue.OFF_SECONDS
        assert service.explanations.refusal() is not None
        assert service.readiness.ready
        assert (await service.infer([encoded(5)])).outcomes[0].logits[0] == 5  # type: ignore[union-attr]
        assert free(service)

    run(scenario)


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    async def scenario(service: Service) -> None:
        await explain(service)
        waiting = [asyncio.create_task(explain(service, *[encoded(i)] * 4, wanted="slow")) for i in range(4)]
        await until(lambda: service.explanations._admission.images == MAX_EXPLAINED)
        refused = await error_of(explain(service))
        assert isinstance(refused, RetryLaterError)
        assert refused.code == "overloaded"
        assert refused.retry_after >= 1
        assert service.explanations.refusal() is not None
        assert service.refusal() is None  # classification goes on
        for answer in await asyncio.gather(*waiting):
            assert len(answer.outcomes) == 4
        assert free(service)

    run(scenario)


def test_work_that_would_be_too_late_is_refused_at_once() -> None:
    async def scenario(service: Service) -> None:
        await explain(service)
        service.explanations._pace = 2.0
        waiting = asyncio.create_task(explain(service, *[encoded(1)] * 4, wanted="slow"))
        await until(lambda: service.explanations._admission.images == 4)
        assert await code_of(explain(service, deadline=5)) == "overloaded"
        assert first(await explain(service)).values[0][0] == 7  # there is time enough for it
        await waiting

    run(scenario)


def test_a_request_has_a_limited_number_of_images() -> None:
    async def scenario(service: Service) -> None:
        assert await code_of(explain(service, *[encoded(1)] * (MAX_EXPLAINED + 1))) == "too_many_images"
        assert free(service)

    run(scenario)


def test_a_client_that_leaves_makes_room() -> None:
    async def scenario(service: Service) -> None:
        await explain(service)
        left = asyncio.create_task(explain(service, *[encoded(1)] * 8, wanted="slow"))
        begun = Path(os.environ[fake_explainer.FOLDER]) / "slow"
        await until(lambda: service.explanations._admission.images == 8 and begun.exists())
        left.cancel()
        before = begun.stat().st_size
        with contextlib.suppress(asyncio.CancelledError):
            await left
        assert free(service)
        await explain(service)
        assert begun.stat().st_size <= before + 2  # of eight: what was being explained, and what had just begun

    run(scenario)


def test_classification_does_not_wait_for_explanations() -> None:
    async def scenario(service: Service) -> None:
        await explain(service)
        slow = asyncio.create_task(explain(service, *[encoded(1)] * 4, wanted="slow"))
        await until(lambda: service.explanations._admission.images == 4)
        for i in range(20):
            assert (await service.infer([encoded(i)])).outcomes[0].logits[0] == i  # type: ignore[union-attr]
        assert not slow.done()
        await slow

    run(scenario)


def served(service: Service) -> ServedModel:
    model = service.models()[0].model
    assert model is not None
    return model


def test_memory_is_reserved_within_the_budget_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "memory_to_explain", lambda model: 1000)
    first_model = models.memory_needed(MODEL)

    async def enough(service: Service) -> None:
        assert service._host.reserved == 0
        await explain(service)
        assert service._host.reserved == 1000
        assert service._host.memory == first_model + 1000
        service.explanations._queue._idle_seconds = 0.01
        await explain(service)
        await until(lambda: service._host.reserved == 0)

    async def too_little(service: Service) -> None:
        assert await code_of(explain(service)) == "not_ready"
        assert free(service)

    run(enough, memory_limit=first_model + 1000)
    run(too_little, memory_limit=first_model + 999)


def test_the_estimate_of_memory_grows_with_the_model() -> None:
    async def scenario(service: Service) -> None:
        small = served(service)
        photographs = dataclasses.replace(small, source="convmixer_384_8_ks5_p8.photographs")
        large = dataclasses.replace(small, source="mixer_b16_224", spec=InputSpec(height=224, width=224))
        found = [memory_to_explain(model) for model in (small, photographs, large)]
        assert explanations.PROCESS_BYTES < found[0] < found[1] < found[2] < 4 * explanations.PROCESS_BYTES * 2

    run(scenario)


def test_memory_stays_reserved_while_a_request_may_start_a_process(fake: Path) -> None:
    async def scenario(service: Service) -> None:
        host = service._host
        await explain(service)
        reserved = host.reserved
        assert reserved
        service.explanations._pace = 0.0  # so that the deadline does not seem too short for two requests
        with service.explanations._admission.admit(1, 0):  # another request, whose image is being decoded
            assert await code_of(explain(service, wanted="hang", deadline=0.5)) == "deadline_exceeded"
            await until(lambda: not service.explanations._queue.is_running)
            await asyncio.sleep(0)  # the release that the end of the process has scheduled
            await asyncio.sleep(0)
            assert host.reserved == reserved
        await explain(service)
        assert host.reserved == reserved
        assert await code_of(explain(service, wanted="hang", deadline=0.5)) == "deadline_exceeded"
        await until(lambda: not host.reserved)

    run(scenario)


def test_memory_is_not_reserved_after_a_request_without_a_process() -> None:
    async def scenario(service: Service) -> None:
        await explain(service, b"no image")
        assert not service.explanations._queue.is_running
        assert service._host.reserved == 0

    run(scenario)


def test_a_model_that_is_not_used_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "gmixer_ti_p4_32.cifar10"
    needed = models.memory_needed(other)
    monkeypatch.setattr(explanations, "memory_to_explain", lambda model: needed)

    async def scenario(service: Service) -> None:
        await service.infer([encoded(1)], model=other)
        await explain(service)
        states = {status.name: status.state for status in service.models()}
        assert states == {MODEL: "ready", other: "unloaded"}

    run(scenario, models=(MODEL, other), memory_limit=models.memory_needed(MODEL) + needed)


def test_without_what_is_needed_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    async def switched_off(service: Service) -> None:
        error = await error_of(explain(service))
        assert (error.code, error.message) == ("not_found", "This server was started with --no-explain.")
        assert not service.explanations.can_explain(None)

    async def no_torch(service: Service) -> None:
        error = await error_of(explain(service))
        assert error.code == "missing_dependency"
        assert "PyTorch" in error.message

    async def exported(service: Service) -> None:
        error = await error_of(explain(service))
        assert (error.code, "exported" in error.message) == ("unprocessable", True)
        assert not service.explanations.can_explain(await service.open(None))

    run(switched_off, explain=False)
    with monkeypatch.context() as patch:
        patch.setattr(explanations, "is_installed", lambda name: name != "torch")
        run(no_torch)
    monkeypatch.setattr(models, "_float32_fingerprint", lambda predictor: "")
    run(exported)


def test_the_end_interrupts_an_explanation() -> None:
    async def main() -> None:
        from .services import running

        async with running() as service:
            await explain(service)
            hanging = asyncio.create_task(explain(service, wanted="hang"))
            await until(lambda: service.explanations._admission.images == 1)
            await asyncio.sleep(0.1)
            await service.close()
            assert await code_of(hanging) == "draining"

    asyncio.run(main())


def test_the_drain_waits_for_an_explanation() -> None:
    async def scenario(service: Service) -> None:
        await explain(service)
        slow = asyncio.create_task(explain(service, wanted="slow"))
        await until(lambda: service.explanations._admission.images == 1)
        await service.drain()
        assert slow.done()
        assert first(await slow).values[0][0] == 7

    run(scenario)


def test_a_stopped_service_refuses() -> None:
    async def scenario(service: Service) -> None:
        await service.drain()
        assert await code_of(explain(service)) == "draining"

    run(scenario)


@pytest.mark.parametrize(
    ("spec", "size", "expected"),
    [
        (InputSpec(height=100, width=100, crop_pct=1.0), (200, 100), (50, 0, 150, 100)),
        (InputSpec(height=100, width=100, crop_pct=0.5), (200, 200), (50, 50, 150, 150)),
        (InputSpec(height=50, width=50, crop_pct=1.0, crop_mode="squash"), (200, 100), (0, 0, 200, 100)),
        (InputSpec(height=100, width=100, crop_pct=1.0, crop_mode="border"), (200, 100), (0, -50, 200, 150)),
    ],
)
def test_the_box_is_what_the_model_sees(
    spec: InputSpec, size: tuple[int, int], expected: tuple[float, float, float, float]
) -> None:
    assert box(spec, *size) == pytest.approx(expected, abs=1)


def test_every_error_is_counted_once() -> None:
    async def scenario(service: Service) -> None:
        def count(code: str) -> float:
            text = service.metrics.render().decode().splitlines()
            line = f'tessella_errors_total{{code="{code}"}} '
            return next((float(row.removeprefix(line)) for row in text if row.startswith(line)), 0.0)

        await explain(service)
        assert await code_of(explain(service, wanted="hang", deadline=0.5)) == "deadline_exceeded"
        assert count("deadline_exceeded") == 1
        with service.explanations._admission.admit(MAX_EXPLAINED, 0):
            assert await code_of(explain(service)) == "overloaded"
        assert count("overloaded") == 1
        await explain(service, b"no image")
        assert count("unsupported_format") == 1
        assert await code_of(explain(service, wanted="die")) == "worker_failed"
        assert count("worker_failed") == 1

    run(scenario)


def test_service_errors_are_of_the_known_kind() -> None:
    async def scenario(service: Service) -> None:
        error = await error_of(explain(service, wanted="hang", deadline=0.0))
        assert isinstance(error, ServeError)
        assert error.code in ("deadline_exceeded", "not_ready")

    run(scenario)
