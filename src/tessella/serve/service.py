"""The service behind all routes: admission, decoding, batches, answers; readiness and drain."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..data.decode import Pixels
from ..data.isolated.protocol import Decoded
from ..data.source import Source
from ..data.spec import InputSpec
from ..errors import ImageError, ServeError, TessellaError, UsageError
from ..results import Output
from ..weights.catalogue import Task
from .admission import Admission, Ticket
from .batcher import Batcher, Result
from .decoding import DecodePool
from .explanations import ExplainAnswer, ExplainOptions, Explanations
from .metrics import ServeMetrics
from .models import TASKS, HostedModel, ModelHost, in_thread
from .models import ModelStatus as ModelStatus
from .models import ServedModel as ServedModel
from .request import ImageKey, ImageRequest, Stages, hand_over
from .settings import ServeSettings

IDLE_CHECK_SECONDS = 15.0
START_SECONDS = 300.0  # for the first images, which wait for the processes and the models
# an 8x8 BMP file: within all limits
TEST_IMAGE = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 246, 0, 54, 40, 8, 8, 1, 24, 0, 192, 0, 0, 0, 0) + bytes(192)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    outcomes: one per image, in order. sizes: width and height of each decoded image; (0, 0) if it was not decoded.
    timing: milliseconds by stage, "decode", "queue" and "model" of the image that took longest, and "total".
    """

    model: ServedModel
    outcomes: list[Output | ImageError]
    sizes: list[tuple[int, int]]
    timing: dict[str, float]


@dataclass(frozen=True)
class Readiness:
    """Whether the service answers requests, and why not."""

    ready: bool
    reason: str = ""


State = Literal["starting", "ready", "draining", "stopped", "failed"]
_REASONS: dict[State, str] = {
    "starting": "the models are being loaded",
    "ready": "",
    "draining": "the server is shutting down",
    "stopped": "the server is shutting down",
    "failed": "images cannot be decoded, because no process for it can be started",
}


class Service:
    """Answers requests for classification and embeddings. All methods are called in one event loop.

    Create it, await `start`, and in the end `drain` and `close`. failed: set when the service cannot recover by itself,
    so that its process should end with an error. Creating one raises UsageError for models that do not exist.
    """

    def __init__(self, settings: ServeSettings, *, clock: Callable[[], float] = time.monotonic):
        self.settings, self.metrics, self._clock = settings, ServeMetrics(), clock
        self.failed = asyncio.Event()
        self._host = ModelHost(settings, on_loaded=self._loaded, on_unloaded=self._unloaded, clock=clock)
        self.explanations = Explanations(settings, self.metrics, self._host)
        self._admission = Admission(max_images=settings.queue_images_for(1), max_bytes=settings.queue_bytes)
        self.metrics.watch_queue(
            lambda: self._admission.images, lambda: self._admission.bytes, lambda: self.readiness.ready
        )
        self._stages: Stages | None = None  # from `start` on
        self._state: State = "starting"
        self._idle_check: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._requests: set[ImageRequest] = set()  # those in work
        self._in_flight = 0  # these, and requests that wait for a model
        self._exchanges = 0  # all HTTP requests that are not answered completely
        self._answer_seconds = 1.0  # that answers took lately
        self._nothing_left = asyncio.Event()
        self._nothing_left.set()

    @property
    def readiness(self) -> Readiness:
        """Whether the service should get requests, and why not."""
        if self._state != "ready":
            return Readiness(False, _REASONS[self._state])
        assert self._stages is not None
        if not self._stages.pool.has_worker:
            return Readiness(False, "no decoding process is running")
        if not self._stages.batcher.is_working:
            return Readiness(False, "a thread of the models has ended")
        return Readiness(True)

    @property
    def is_stopping(self) -> bool:
        """Whether the service was asked to stop; it may still accept requests."""
        return self._drain is not None

    @property
    def retry_after(self) -> float:
        """Seconds after which a refused request may succeed: as long as the requests that are in work will take."""
        return self._answer_seconds

    # --- start and end ---

    async def start(self) -> None:
        """Start the decoding processes, load the models that requests use by default, and test all of it.

        Raises the errors of `tessella.load`, WeightsError if a model fails its test, ServeError `worker_failed` if no
        image can be decoded.
        """
        loop = asyncio.get_running_loop()
        pool = DecodePool(
            self.settings,
            on_lost=self.metrics.worker_restarted,
            on_failed=lambda error: loop.call_soon_threadsafe(self._decoding_failed, error),
        )
        batcher: Batcher[ImageKey] = Batcher(
            lambda results: loop.call_soon_threadsafe(self._batch_finished, results),
            workers=1,
            # admission is the limit that requests meet; the batcher may hold images of canceled ones for a moment
            max_images=2 * self._admission.max_images,
            max_bytes=2 * self._admission.max_bytes,
            max_delay=self.settings.max_delay,
            clock=self._clock,
        )
        self._stages = Stages(pool, batcher, loop, self._clock)
        for task in TASKS:
            answer = await self._answer([TEST_IMAGE], None, task, START_SECONDS)
            if isinstance(error := answer.outcomes[0], ImageError):
                raise ServeError("worker_failed", f"the first image gives the error: {error.message}")
        self._idle_check = asyncio.create_task(self._unload_idle())
        if self._state == "starting":
            self._state = "ready"

    async def drain(self) -> None:
        """Stop: not ready at once; requests are accepted for `drain_delay`, and finished within `drain_timeout`."""
        if self._drain is None:
            self._drain = asyncio.create_task(self._finish_requests())
            if self._state == "ready":
                self._state = "draining"
            elif self._state == "starting":
                self._state = "stopped"
        await asyncio.shield(self._drain)

    async def _finish_requests(self) -> None:
        if self._state == "draining":
            await asyncio.sleep(self.settings.drain_delay)
            self._state = "stopped"
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self._nothing_left.wait()
        except TimeoutError:
            log.warning("%d requests were not finished in time", max(self._in_flight, self._exchanges))
            self._abort()

    async def close(self) -> None:
        """End all threads and processes; requests that are left fail with `draining`."""
        if self._state != "failed":
            self._state = "stopped"
        for task in (self._idle_check, self._drain):
            if task is not None:
                task.cancel()
        self._abort()
        await self.explanations.close()
        await self._host.close()
        if (stages := self._stages) is not None:
            await in_thread(stages.batcher.close)
            await in_thread(stages.pool.close)

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Let `drain` wait for the end of the block, in which an HTTP request is read and answered.

        Requests that arrive when the service has stopped are refused, and do not prolong its end.
        """
        if self._state == "stopped":
            yield
            return
        self._exchanges += 1
        self._nothing_left.clear()
        try:
            yield
        finally:
            self._exchanges -= 1
            self._check_left()

    def _check_left(self) -> None:
        if not self._in_flight and not self._exchanges:
            self._nothing_left.set()

    def _abort(self) -> None:
        for request in self._requests:
            request.abort(ServeError("draining", "the server is stopping"))

    async def _unload_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_SECONDS)
            await self._host.unload_idle()

    def _decoding_failed(self, error: BaseException) -> None:
        log.error("decoding was given up: %s", error)
        self._state = "failed"
        self.failed.set()

    # --- requests ---

    def refusal(self) -> ServeError | None:
        """Return why a request is not accepted now: `draining`, `not_ready` or `overloaded`; None if it is."""
        if self._state in ("ready", "draining") and not self._admission.is_full:
            return None
        code = {"ready": "overloaded", "draining": "overloaded", "stopped": "draining"}.get(self._state, "not_ready")
        return ServeError(code, _REASONS[self._state] or f"{self._admission.images} images are in work")

    def check(self) -> None:
        """Raise the error of `refusal`, and count it."""
        if (error := self.refusal()) is not None:
            self.metrics.failed(error)
            raise error

    async def infer(
        self,
        images: Sequence[bytes | ImageError],
        *,
        model: str | None = None,
        task: Task = "classify",
        deadline: float | None = None,
    ) -> Answer:
        """Decode images and run a model on them; a bad image has an ImageError as its outcome, as does a given one.

        deadline: seconds, at most those of the settings. Raises UsageError `unknown_model`; ServeError `overloaded`,
        `deadline_exceeded`, `draining`, `not_ready`, `too_many_images`, `worker_failed`; errors of `tessella.load`.
        """
        self.check()
        return await self._answer(images, model, task, self._seconds(deadline))

    async def infer_pixels(
        self,
        pixels_NHWC: Pixels,
        *,
        model: str | None = None,
        task: Task = "classify",
        deadline: float | None = None,
    ) -> Answer:
        """Run a model on decoded images, (N,H,W,3) uint8 of the model's size. Raises as `infer`.

        Raises UsageError `wrong_input_size` for another shape or type.
        """
        self.check()
        return await self._answer(pixels_NHWC, model, task, self._seconds(deadline))

    async def explain(
        self,
        images: Sequence[bytes | ImageError],
        options: ExplainOptions,
        *,
        model: str | None = None,
        deadline: float | None = None,
    ) -> ExplainAnswer:
        """Explain a class of each image; a bad image has an ImageError as its outcome.

        deadline: seconds, at most `explain_deadline` of the settings. Raises as `infer` and as `Explanations.explain`:
        UsageError, ServeError, RequestError.
        """
        self.check()
        longest = self.settings.explain_deadline
        seconds = longest if deadline is None else min(deadline, longest)
        is_open = False
        with self.exchange():
            try:
                async with asyncio.timeout(seconds) as timeout:
                    until = time.monotonic() + seconds
                    served = await self.open(model)
                    is_open = True
                    return await self.explanations.explain(images, served, options, until, self._decode_one)
            except TimeoutError:
                if not timeout.expired():
                    raise
                code = "deadline_exceeded" if is_open else "not_ready"
                raise self._expired(code, seconds) from None

    async def decode(self, data: bytes | Source, spec: InputSpec) -> Decoded:
        """Decode an image for any spec, without a model; a bad image has an error. Raises ServeError as `infer`.

        data: its encoded bytes, or where the decoding process reads them.
        """
        self.check()
        return await self._decode_one(data, spec)

    async def _decode_one(self, data: bytes | Source, spec: InputSpec) -> Decoded:
        """Decode an image of a request that was accepted."""
        assert self._stages is not None
        size = len(data) if isinstance(data, bytes) else 0  # the process that reads an image also holds it
        async with self._admitted(1, size + _pixel_bytes(spec), self.settings.deadline):
            return await self._stages.pool.decode(data, spec)

    async def open(self, model: str | None, task: Task = "classify") -> ServedModel:
        """Return a model, which is loaded first if necessary. Raises UsageError `unknown_model` and as `infer`."""
        hosted = await self._host.acquire(model, task)
        hosted.release()
        return hosted.model

    def models(self) -> list[ModelStatus]:
        """Return all models that are offered, the first one first."""
        return self._host.statuses()

    def _seconds(self, deadline: float | None) -> float:
        return self.settings.deadline if deadline is None else min(deadline, self.settings.deadline)

    def _expired(self, code: str, seconds: float) -> ServeError:
        """Return the error of a request whose time is over, and count it."""
        error = ServeError(code, f"the request was not answered within {seconds:g} s")
        self.metrics.failed(error)
        return error

    @asynccontextmanager
    async def _admitted(self, images: int, size: int, seconds: float) -> AsyncIterator[Ticket]:
        """Hold places for a request, and give it up after its time.

        Raises ServeError `deadline_exceeded`, or `not_ready` if the model was still being loaded: clients repeat that.
        """
        self._in_flight += 1
        self._nothing_left.clear()
        ticket = None
        try:
            if images > (most := self.settings.max_images):
                raise ServeError("too_many_images", f"the request has {images:,} images, the limit is {most:,}")
            if seconds <= 0:
                raise TimeoutError
            with self._admission.admit(images, size) as ticket:
                async with asyncio.timeout(seconds):
                    yield ticket
        except TimeoutError:
            code = "not_ready" if ticket is not None and ticket.is_waiting else "deadline_exceeded"
            raise self._expired(code, seconds) from None
        except TessellaError as error:
            self.metrics.failed(error)
            raise
        finally:
            self._in_flight -= 1
            self._check_left()

    async def _answer(
        self, images: Sequence[bytes | ImageError] | Pixels, model: str | None, task: Task, seconds: float
    ) -> Answer:
        start = self._clock()
        size = images.nbytes if isinstance(images, np.ndarray) else sum(map(_encoded_bytes, images))
        async with self._admitted(len(images), size, seconds) as ticket:
            with nullcontext() if self._host.is_loaded(model, task) else ticket.waiting():
                hosted = await self._host.acquire(model, task)
            try:
                ticket.expect(len(images) * hosted.lane.pace, start + seconds - self._clock())
                request = await self._run(images, hosted, ticket, start + seconds)
            finally:
                hosted.release()
        timing = {stage: 1000 * value for stage, value in request.times._asdict().items()}
        total = self._clock() - start
        timing["total"] = 1000 * total
        self._answer_seconds += 0.1 * (total - self._answer_seconds)
        self.metrics.answer(timing, request.outcomes)
        return Answer(hosted.model, request.outcomes, request.sizes, timing)

    async def _run(
        self, images: Sequence[bytes | ImageError] | Pixels, hosted: HostedModel, ticket: Ticket, deadline: float
    ) -> ImageRequest:
        """Return the finished request for images that have places."""
        assert self._stages is not None
        spec = hosted.model.spec
        request = ImageRequest(self._stages, hosted.lane, len(images), deadline)
        self._requests.add(request)
        try:
            if isinstance(images, np.ndarray):
                _check_pixels(images, spec)
                request.run([*images])
            else:
                ticket.add(0, _pixel_bytes(spec) * len(images))
                self._decode(request, images, spec)
            await request.finished
        finally:
            request.cancel()
            self._requests.discard(request)
        return request

    def _decode(self, request: ImageRequest, images: Sequence[bytes | ImageError], spec: InputSpec) -> None:
        most = self.settings.limits.bytes
        for index, image in enumerate(images):
            if isinstance(image, ImageError):
                request.fail(index, image)
            elif len(image) > most:  # it need not be sent to another process
                message = f"the image has {len(image):,} bytes, the limit is {most:,}"
                request.fail(index, ImageError("too_many_bytes", message))
            else:
                request.decode(index, image, spec)

    # --- events ---

    def _batch_finished(self, results: list[Result[ImageKey]]) -> None:
        self.metrics.batch(sum(result.computed > 0 for result in results))
        hand_over(results)

    def _loaded(self, model: ServedModel) -> None:
        self.metrics.model(model.name, model.fingerprint, loaded=True)
        limit = self._admission.max_images = max(
            self._admission.max_images, self.settings.queue_images_for(model.plan.batch_size)
        )
        if self._stages is not None:
            self._stages.batcher.grow(model.plan.streams, 2 * limit)

    def _unloaded(self, model: ServedModel) -> None:
        self.metrics.model(model.name, model.fingerprint, loaded=False)


def _encoded_bytes(image: bytes | ImageError) -> int:
    return 0 if isinstance(image, ImageError) else len(image)


def _pixel_bytes(spec: InputSpec) -> int:
    return 3 * spec.height * spec.width


def _check_pixels(pixels_NHWC: Pixels, spec: InputSpec) -> None:
    """Raise UsageError `wrong_input_size` for anything but (N,H,W,3) uint8 of the model's size."""
    expected = (len(pixels_NHWC), spec.height, spec.width, 3)
    if pixels_NHWC.shape != expected or pixels_NHWC.dtype != np.uint8:
        raise UsageError(
            "wrong_input_size", f"got {pixels_NHWC.dtype} of shape {pixels_NHWC.shape}, expected uint8 {expected}"
        )
