"""Explanations of classes for requests: limits, decoding, and the images that one process explains after another.

The bytes of an image go to the isolated decoders only, twice: for the pixels that the model sees, and for the same part
of the image with more pixels, onto which the map is drawn. The process with PyTorch gets these pixels.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import pickle
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..data.isolated.protocol import Decoded
from ..data.resize import geometry
from ..data.spec import InputSpec
from ..errors import ImageError, ServeError, TessellaError
from ..extras import is_installed
from ..info import info
from ..machine import thread_count
from .admission import Admission, Ticket
from .explain_process import REASONS, ExplainedImage, ExplainFailure, ExplainOrder, ExplainProcess
from .explain_queue import ExplainHooks, ExplainJob, ExplainOutcome, ExplainQueue
from .metrics import ServeMetrics
from .models import ModelHost, ServedModel, in_thread
from .problems import RequestError, RetryLaterError
from .settings import ServeSettings

MAX_EXPLAINED = 16  # images in the queue, those of all requests together
PICTURE_SIDE = 384  # pixels of the longer side of an overlay
FIRST_PACE = 1.0  # seconds per image, before one is known
# Bytes of a process with PyTorch; copies of the weights in it; and how much of the activations of a batch it needs at
# once, at most with gradients. Three models of three families took 0.6 to 1.0 of what these estimate.
PROCESS_BYTES, WEIGHTS_FACTOR, ACTIVATIONS_FACTOR = 500_000_000, 3.0, 0.75
BATCH_IMAGES, BATCH_PIXELS = 64, 1 << 20  # of the variants of an image that are computed at once

Decode = Callable[[bytes, InputSpec], Awaitable[Decoded]]
Box = tuple[float, float, float, float]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExplainOptions:
    """What is to be explained: a class, by index or name, and one that it is compared with; None as in `explain`."""

    wanted: int | str | None = None
    versus: int | str | None = None
    method: str = "auto"


@dataclass(frozen=True)
class ExplainAnswer:
    """The answer to a request for explanations.

    outcomes: one per image, in order. sizes: width and height of each image; (0, 0) if it was not decoded. boxes: the
    part of each image that the model sees, as left, top, right and bottom in its pixels; it may include padding outside
    of the image. timing: milliseconds for decoding, in the queue, until the process had started, for loading the model,
    for the explanations, and in total.
    """

    model: ServedModel
    outcomes: list[ExplainedImage | ImageError]
    sizes: list[tuple[int, int]]
    boxes: list[Box]
    timing: dict[str, float]


@dataclass(frozen=True)
class _DecodedImage:
    """A decoded image. seen: what the model sees. picture: for the overlay."""

    seen: Decoded
    picture: Decoded


class Explanations:
    """Explains images within limits of their own. All methods are called in the event loop; call `close` in the end."""

    def __init__(self, settings: ServeSettings, metrics: ServeMetrics, host: ModelHost) -> None:
        self._settings, self._metrics, self._host = settings, metrics, host
        self._admission = Admission(max_images=MAX_EXPLAINED, max_bytes=settings.queue_bytes)
        self._pace = FIRST_PACE  # seconds per image lately
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_available = settings.explain and is_installed("torch")
        threads = thread_count()
        self._queue = ExplainQueue(
            lambda: ExplainProcess(threads=threads),
            idle_seconds=60 * settings.explain_idle_minutes,
            hooks=ExplainHooks(on_end=self._on_end),
        )
        metrics.explanations.watch(lambda: self._admission.images, lambda: self._queue.is_running)

    @property
    def max_images(self) -> int:
        """The largest number of images in a request."""
        return min(MAX_EXPLAINED, self._settings.max_images)

    def refusal(self) -> TessellaError | None:
        """Return why no request is accepted now: `overloaded` or `explain_off`; None if one is."""
        try:
            self._queue.check()
        except RetryLaterError as error:
            return error
        return self._overloaded() if self._admission.is_full else None

    def can_explain(self, model: ServedModel | None) -> bool:
        """Return whether classes of a model can be explained here; of one that was not loaded yet, as far as known."""
        return self.is_available and (model is None or (bool(model.explained) and model.num_classes > 0))

    def check(self, model: ServedModel) -> None:
        """Raise RequestError if classes of a model cannot be explained here.

        It is `not_found` if that is switched off, `missing_dependency` without PyTorch, else `unprocessable`.
        """
        if not self._settings.explain:
            raise RequestError("not_found", "This server was started with --no-explain.")
        if not self.is_available:
            raise RequestError("missing_dependency", REASONS["torch"])
        if not model.explained:
            raise RequestError("unprocessable", REASONS["exported"])
        if not model.num_classes:
            raise RequestError("unprocessable", REASONS["no_classifier"])

    async def explain(
        self,
        images: Sequence[bytes | ImageError],
        model: ServedModel,
        options: ExplainOptions,
        deadline: float,
        decode: Decode,
    ) -> ExplainAnswer:
        """Explain images; a bad image has an ImageError as its outcome.

        deadline: by `time.monotonic`. decode: decodes the bytes of an image for a spec. Raises RetryLaterError
        `overloaded` and `explain_off`, ServeError `deadline_exceeded`, `not_ready`, `worker_failed`, `draining`;
        RequestError as `check`, `too_many_images`, and `unprocessable` for options that do not fit the model.
        """
        begun = time.monotonic()
        self.check(model)
        if len(images) > self.max_images:
            count = len(images)
            raise RequestError(
                "too_many_images",
                f"The request has {count:,} images, the limit for explanations is {MAX_EXPLAINED}: "
                "divide them among several requests.",
            )
        self._loop = asyncio.get_running_loop()
        size = sum(len(image) for image in images if not isinstance(image, ImageError))
        with self._counted():
            ticket = self._admit(len(images), size, deadline - begun)
        with self._held(ticket):
            with self._counted():
                await self._host.reserve(await in_thread(lambda: memory_to_explain(model)), "an explanation")
            prepared = [await self._prepare(image, model, decode) for image in images]  # `decode` counts its errors
            decoded = time.monotonic()
            with self._counted():
                jobs, outcomes = await self._run(prepared, model, options, deadline)
        timing = _timing(jobs, outcomes)
        timing |= dict(decode=1000 * (decoded - begun), total=1000 * (time.monotonic() - begun))
        self._observe(outcomes, timing)
        sizes = [(0, 0) if isinstance(image, ImageError) else _size(image) for image in prepared]
        boxes = [box(model.spec, *size) if all(size) else (0.0, 0.0, 0.0, 0.0) for size in sizes]
        return ExplainAnswer(model, outcomes, sizes, boxes, timing)

    async def close(self) -> None:
        """End the process; images that are left fail with `draining`."""
        await in_thread(self._queue.close)

    # --- inside ---

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a ServeError of the block."""
        try:
            yield
        except ServeError as error:
            self._metrics.failed(error)
            raise

    @contextmanager
    def _held(self, ticket: Ticket) -> Iterator[None]:
        """Give the places of a request back at the end of the block, and memory that no process uses."""
        try:
            with ticket:
                yield
        finally:
            self._release()

    def _overloaded(self) -> RetryLaterError:
        waiting = self._admission.images
        return RetryLaterError("overloaded", f"{waiting} images are to be explained", max(1.0, waiting * self._pace))

    def _admit(self, images: int, size: int, seconds: float) -> Ticket:
        """Return the places of a request. Raises RetryLaterError `overloaded`, ServeError `too_many_images`."""
        try:
            ticket = self._admission.admit(images, size)
            try:
                ticket.expect(images * self._pace, seconds)
            except ServeError:
                with ticket:  # its places are free again
                    raise
        except ServeError as error:
            raise self._overloaded() if error.code == "overloaded" else error from None
        return ticket

    async def _prepare(
        self, image: bytes | ImageError, model: ServedModel, decode: Decode
    ) -> _DecodedImage | ImageError:
        if isinstance(image, ImageError):
            return image
        seen = await decode(image, model.spec)
        if seen.error is not None:
            return seen.error
        picture = await decode(image, picture_spec(model.spec))
        # the limit on elongated images is reached sooner by the picture
        return _DecodedImage(seen, seen if picture.error is not None else picture)

    def _order(self, image: _DecodedImage, model: ServedModel, options: ExplainOptions) -> bytes:
        assert image.seen.pixels is not None
        assert image.picture.pixels is not None
        settings, calibration = self._settings, model.calibration
        order = ExplainOrder(
            source=model.source,
            fingerprint=model.explained,
            device=settings.device,
            policy=settings.policy,
            transform=settings.transform,
            confidence=None if calibration is None else (calibration.temperature, calibration.curve),
            pixels=image.seen.pixels,
            picture=image.picture.pixels,
            wanted=options.wanted,
            versus=options.versus,
            method=options.method,
        )
        return pickle.dumps(order, pickle.HIGHEST_PROTOCOL)

    async def _run(
        self, images: Sequence[_DecodedImage | ImageError], model: ServedModel, options: ExplainOptions, deadline: float
    ) -> tuple[list[ExplainJob], list[ExplainedImage | ImageError]]:
        """Return the jobs of the images without an error, and the outcomes of all images."""
        loop = asyncio.get_running_loop()
        waiting: list[tuple[ExplainJob, asyncio.Future[ExplainOutcome]] | ImageError] = []
        try:
            for image in images:
                if isinstance(image, ImageError):
                    waiting.append(image)
                    continue
                future: asyncio.Future[ExplainOutcome] = loop.create_future()
                job = ExplainJob(self._order(image, model, options), deadline, _deliver_to(loop, future))
                waiting.append((job, future))
                self._queue.submit(job)
            outcomes = [item if isinstance(item, ImageError) else _checked(await item[1]) for item in waiting]
        finally:
            for item in waiting:
                if not isinstance(item, ImageError):
                    self._queue.cancel(item[0])
        return [item[0] for item in waiting if not isinstance(item, ImageError)], outcomes

    def _observe(self, outcomes: Sequence[ExplainedImage | ImageError], timing: dict[str, float]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, ImageError):
                self._metrics.failed(outcome)
                continue
            self._pace += 0.3 * (outcome.seconds - self._pace)
            self._metrics.explanations.explained(outcome.method, bool(outcome.faithful))
        self._metrics.explanations.times(timing)

    def _on_end(self, why: str) -> None:
        """Free the memory of a process that has ended; called in the thread of the queue."""
        self._metrics.explanations.process_ended(why)
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        """Free the reserved memory, unless there is a process, or a request that may be about to start one."""
        if not self._queue.is_running and not self._admission.images:
            self._host.reserved = 0


def memory_to_explain(model: ServedModel) -> int:
    """Return an estimate of the bytes that a process takes which explains a model. Raises as `tessella.info`."""
    cost, spec = info(model.source).cost, model.spec
    batch = max(min(BATCH_IMAGES, BATCH_PIXELS // (spec.height * spec.width)), 1)
    return int(PROCESS_BYTES + 4 * (WEIGHTS_FACTOR * cost.params + ACTIVATIONS_FACTOR * batch * cost.activations))


def picture_spec(spec: InputSpec) -> InputSpec:
    """Return the spec of the same part of an image, whose longer side has PICTURE_SIDE pixels."""
    scale = PICTURE_SIDE / max(spec.height, spec.width)
    height, width = (max(round(scale * side), 1) for side in (spec.height, spec.width))
    return dataclasses.replace(spec, height=height, width=width, interpolation="bicubic")


def box(spec: InputSpec, width: int, height: int) -> Box:
    """Return the part of an image of width x height pixels that a model sees, as in `ExplainAnswer`."""
    plan = geometry(height, width, spec)
    across, down = width / plan.width, height / plan.height
    return (
        plan.left * across,
        plan.top * down,
        (plan.left + spec.width) * across,
        (plan.top + spec.height) * down,
    )


def _size(image: _DecodedImage) -> tuple[int, int]:
    return image.seen.width, image.seen.height


def _deliver_to(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[ExplainOutcome]
) -> Callable[[ExplainOutcome], None]:
    """Return a function that sets the result of a future, in any thread."""

    def resolve(outcome: ExplainOutcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def deliver(outcome: ExplainOutcome) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(resolve, outcome)

    return deliver


def _checked(outcome: ExplainOutcome) -> ExplainedImage | ImageError:
    """Return the outcome of an image. Raises the error of the request or of the server."""
    if isinstance(outcome, ServeError):
        raise outcome
    if isinstance(outcome, ExplainFailure):
        if outcome.is_image:
            return ImageError(outcome.code, outcome.message)
        log.log(logging.INFO if outcome.reason else logging.ERROR, "no explanation: %s", outcome.message)
        raise RequestError(outcome.code, REASONS[outcome.reason])
    return outcome


def _timing(jobs: Sequence[ExplainJob], outcomes: Sequence[ExplainedImage | ImageError]) -> dict[str, float]:
    """Return milliseconds: the longest wait, and what the images took one after another."""
    explained = [outcome for outcome in outcomes if isinstance(outcome, ExplainedImage)]
    return dict(
        queue=1000 * max((job.waited for job in jobs), default=0.0),
        start=1000 * sum(job.starting for job in jobs),
        load=1000 * sum(outcome.load_seconds for outcome in explained),
        explain=1000 * sum(outcome.seconds for outcome in explained),
    )
