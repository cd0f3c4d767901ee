"""Collect images that arrive one by one into batches, run models on them, and hand each result to its owner.

`BatchQueue` is the logic: what waits, what is refused, which batch is next. It has no threads, so tests drive it with a
simulated clock. `Batcher` adds the threads that run the models. Neither knows about HTTP or an event loop.

An image and whatever identifies it travel together as an Item, and a Result refers to its Item, so no list of owners
has to stay in step with a list of images.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from ..data.decode import Pixels
from ..errors import ImageError, ServeError
from ..machine import NICE, lower_priority
from ..results import NON_FINITE, FloatArray, Output, is_finite

Key = TypeVar("Key")
Clock = Callable[[], float]
log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Item(Generic[Key]):
    """One image (H,W,3) in the queue of a model. key: what the caller wants back. deadline: by the batcher's clock."""

    key: Key
    pixels: Pixels
    deadline: float = math.inf
    entered: float = 0.0  # when it was queued
    due: float = 0.0  # when it need not wait for a complete batch any longer


@dataclass(eq=False, slots=True)
class Lane(Generic[Key]):
    """One model and its queue.

    run: (N,H,W,3) uint8 -> logits (N,classes) and embeddings (N,width), with N up to `batch_size`, in any thread.
    streams: the number of batches that may run at the same time. image_seconds: what an image of a batch took lately.
    """

    run: Callable[[Pixels], tuple[FloatArray, FloatArray]]
    batch_size: int
    streams: int = 1
    waiting: deque[Item[Key]] = field(default_factory=deque)
    running: int = 0
    image_seconds: float = 0.0

    @property
    def pace(self) -> float:
        """Seconds per image while all streams are busy."""
        return self.image_seconds / self.streams

    def observe(self, seconds: float) -> None:
        """Take the time per image of another batch into account; a pause of the machine counts little."""
        if not self.image_seconds:
            self.image_seconds = seconds
        self.image_seconds += 0.1 * (min(seconds, 4 * self.image_seconds) - self.image_seconds)


class Result(NamedTuple, Generic[Key]):
    """What became of an item."""

    item: Item[Key]
    outcome: Output | ImageError | ServeError
    waited: float  # seconds in the queue
    computed: float  # seconds that its batch took; 0 if the model did not run


class LaneBatch(NamedTuple, Generic[Key]):
    """Items of one lane that are run together, and those whose deadline has passed."""

    lane: Lane[Key]
    items: list[Item[Key]]
    expired: list[Item[Key]]


class BatchQueue(Generic[Key]):
    """The items that wait for a model; at most `max_images` and `max_bytes` of pixels in all lanes together.

    max_delay: seconds that an incomplete batch waits for more items; with 0 it starts as soon as a worker is free. The
    caller prevents concurrent calls.
    """

    def __init__(self, *, max_images: int, max_bytes: int, max_delay: float = 0.0, clock: Clock = time.monotonic):
        self.max_images, self.max_bytes, self.max_delay, self._clock = max_images, max_bytes, max_delay, clock
        self.images = self.bytes = 0
        self._lanes: dict[Lane[Key], None] = {}  # those with items, in the order in which they got them

    def put(self, lane: Lane[Key], items: Sequence[Item[Key]]) -> None:
        """Queue items, all or none. Raises ServeError `overloaded` if there is no room."""
        size = sum(item.pixels.nbytes for item in items)
        if self.images + len(items) > self.max_images or self.bytes + size > self.max_bytes:
            raise ServeError("overloaded", f"{self.images} images are waiting, the limit is {self.max_images}")
        self.images += len(items)
        self.bytes += size
        now = self._clock()
        for item in items:
            # half of the time that is left is enough to wait, or the model would have none
            item.entered, item.due = now, min(now + self.max_delay, (now + item.deadline) / 2)
            lane.waiting.append(item)
        if lane.waiting:
            self._lanes.setdefault(lane)

    def remove(self, lane: Lane[Key], item: Item[Key]) -> bool:
        """Take an item out of the queue; False if it is not there, because it was never put or was taken."""
        try:
            lane.waiting.remove(item)
        except ValueError:
            return False
        self._forget(lane, [item])
        return True

    def clear(self) -> list[Item[Key]]:
        """Take all items out of the queue."""
        items: list[Item[Key]] = []
        for lane in [*self._lanes]:
            taken = [*lane.waiting]
            lane.waiting.clear()
            self._forget(lane, taken)
            items += taken
        return items

    def take(self, idle: int) -> LaneBatch[Key] | float | None:
        """Return the next batch, or the seconds until one is due, or None if no lane has work for another worker.

        idle: the number of workers without work, including the one that asks. A queue that does not fill a batch for
        each of them is divided, so that every core has a part. Every batch must be given to `finish`.
        """
        lanes = [lane for lane in self._lanes if lane.running < lane.streams]
        if not lanes:
            return None
        now = self._clock()
        lane = min(lanes, key=_due)
        if (wait := _due(lane) - now) > 0:
            return wait
        share = -(-len(lane.waiting) // min(idle, lane.streams - lane.running))
        batch: LaneBatch[Key] = LaneBatch(lane, [], [])
        while lane.waiting and len(batch.items) < min(share, lane.batch_size):
            item = lane.waiting.popleft()
            (batch.items if now < item.deadline else batch.expired).append(item)
        self._forget(lane, [*batch.items, *batch.expired])
        lane.running += 1
        return batch

    def finish(self, batch: LaneBatch[Key]) -> None:
        """Let the lane of a batch run another one."""
        batch.lane.running -= 1

    def _forget(self, lane: Lane[Key], items: Sequence[Item[Key]]) -> None:
        self.images -= len(items)
        self.bytes -= sum(item.pixels.nbytes for item in items)
        if not lane.waiting:
            self._lanes.pop(lane, None)


def _due(lane: Lane[Key]) -> float:
    """Return when the next batch of a lane starts: at once if it is complete, else when an item is due."""
    if len(lane.waiting) >= lane.batch_size:
        return lane.waiting[0].entered
    return min(item.due for item in lane.waiting)


def run_batch(batch: LaneBatch[Key], clock: Clock) -> list[Result[Key]]:
    """Run the model on a batch: one result per item. Never raises.

    A model that fails does so for all images of the batch (`worker_failed`); numbers that are not finite concern only
    the image they belong to (`non_finite`).
    """
    start = clock()
    expired = "the deadline passed before the model was free"
    results = [Result(i, ServeError("deadline_exceeded", expired), start - i.entered, 0.0) for i in batch.expired]
    if not batch.items:
        return results
    outcomes: Sequence[Output | ImageError | ServeError]
    try:
        outcomes = _outcomes(batch)
        batch.lane.observe((clock() - start) / len(batch.items))
    except BaseException as error:  # libraries written in Rust raise BaseException
        log.error("a batch of %d images failed", len(batch.items), exc_info=error)
        outcomes = [_model_failed(error) for _ in batch.items]
    seconds = clock() - start
    for item, outcome in zip(batch.items, outcomes, strict=True):
        results.append(Result(item, outcome, start - item.entered, seconds))
    return results


def _model_failed(error: BaseException) -> ServeError:
    return ServeError("worker_failed", f"the model failed: {type(error).__name__}")


def _outcomes(batch: LaneBatch[Key]) -> list[Output | ImageError | ServeError]:
    count = len(batch.items)
    logits, embeddings = batch.lane.run(np.stack([item.pixels for item in batch.items]))
    if len(logits) != count or len(embeddings) != count:
        raise ValueError(f"the model gave {len(logits)} and {len(embeddings)} rows for {count} images")
    outputs = [Output(*row) for row in zip(logits, embeddings, strict=True)]
    if is_finite(logits) and is_finite(embeddings):  # one look at all is cheaper than one at each
        return [*outputs]
    return [output if output.is_finite else ImageError("non_finite", NON_FINITE) for output in outputs]


class Batcher(Generic[Key]):
    """Threads that run the batches of a BatchQueue. All methods may be called from any thread.

    deliver: called in a worker thread with the results of a batch. Every item of a successful `submit` is delivered
    exactly once, or was canceled. Leave the `with` block or call `close` to end the threads.
    """

    def __init__(
        self,
        deliver: Callable[[list[Result[Key]]], object],
        *,
        workers: int,
        max_images: int,
        max_bytes: int,
        max_delay: float = 0.0,
        clock: Clock = time.monotonic,
    ):
        self._deliver, self._clock = deliver, clock
        self._queue: BatchQueue[Key] = BatchQueue(
            max_images=max_images, max_bytes=max_bytes, max_delay=max_delay, clock=clock
        )
        self._changed = threading.Condition()
        self._idle = 0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.grow(workers, max_images)

    def __enter__(self) -> Batcher[Key]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """The number of items in the queue."""
        return self._queue.images

    @property
    def is_working(self) -> bool:
        """Whether all threads are running."""
        return all(thread.is_alive() for thread in self._threads)

    def grow(self, workers: int, max_images: int) -> None:
        """Have at least so many threads and places, if another model needs more."""
        with self._changed:
            self._queue.max_images = max(self._queue.max_images, max_images)
            while len(self._threads) < workers and not self._closed:
                thread = threading.Thread(target=self._work, name="tessella-batches", daemon=True)
                self._threads.append(thread)
                thread.start()

    def submit(self, lane: Lane[Key], items: Sequence[Item[Key]]) -> None:
        """Queue items, all or none. Raises ServeError `overloaded` if there is no room, `draining` after `close`."""
        with self._changed:
            if self._closed:
                raise ServeError("draining", "the batcher is closed")
            self._queue.put(lane, items)
            self._changed.notify(len(items))

    def cancel(self, lane: Lane[Key], item: Item[Key]) -> bool:
        """Take an item out of the queue; it is not delivered then. False if it is too late for that."""
        with self._changed:
            return self._queue.remove(lane, item)

    def close(self) -> None:
        """End the threads after their present batches; items that still wait are delivered as `draining`."""
        with self._changed:
            self._closed = True
            left = self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if left:
            now = self._clock()
            self._hand_over(
                [Result(i, ServeError("draining", "the server is stopping"), now - i.entered, 0.0) for i in left]
            )

    # --- in the worker threads ---

    def _work(self) -> None:
        lower_priority(NICE)
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        """Run one batch; False after `close`. A function of its own, so that no variable keeps a model in memory."""
        batch = self._next()
        if batch is None:
            return False
        results = run_batch(batch, self._clock)
        with self._changed:
            self._queue.finish(batch)
            if self._queue.images:
                self._changed.notify()  # a worker that waited because of the lane's limit
        self._hand_over(results)
        return True

    def _next(self) -> LaneBatch[Key] | None:
        """Wait for a batch and return it; None after `close`."""
        with self._changed:
            self._idle += 1
            try:
                while not self._closed:
                    found = self._queue.take(self._idle)
                    if isinstance(found, LaneBatch):
                        if self._queue.images:
                            self._changed.notify()  # of what is left, an idle worker may take its part
                        return found
                    self._changed.wait(found)
                return None
            finally:
                self._idle -= 1

    def _hand_over(self, results: list[Result[Key]]) -> None:
        try:
            self._deliver(results)
        except Exception:
            log.exception("the results of %d images could not be delivered", len(results))
