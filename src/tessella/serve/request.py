"""One request on its way through decoding and the model: it collects the outcomes of its images.

An ImageRequest belongs to the event loop. Other threads hand it pixels (the supervisor of the decoding processes) and
results (the batcher); they change nothing that the event loop reads before it is told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ..data.decode import Pixels
from ..data.isolated.processes import Task
from ..data.spec import InputSpec
from ..errors import ImageError, ServeError
from ..results import Output
from .batcher import Batcher, Item, Lane, Result
from .decoding import DecodePool, server_fault

Outcome: TypeAlias = Output | ImageError
ImageKey: TypeAlias = "tuple[ImageRequest, int]"  # a request, and the position of an image in it
ImageLane: TypeAlias = Lane[ImageKey]


class Times(NamedTuple):
    """Seconds that an image spent in each stage."""

    decode: float = 0.0
    queue: float = 0.0  # before the decoding process and before the model
    model: float = 0.0  # its whole batch


@dataclass(frozen=True)
class Stages:
    """What a request passes through."""

    pool: DecodePool
    batcher: Batcher[ImageKey]
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]


class ImageRequest:
    """The images of one request; await `finished`, and call `cancel` in any case.

    lane: of the model. count: number of images, each of which is given to `decode`, `run` or `fail`. deadline: by the
    clock of the stages. `finished` raises ServeError if the server failed, not the image: the request can be repeated.
    """

    def __init__(self, stages: Stages, lane: ImageLane, count: int, deadline: float):
        self._stages, self._lane, self._deadline = stages, lane, deadline
        self._outcomes: list[Outcome | None] = [None] * count
        self.sizes = [(0, 0)] * count  # width and height of each decoded image
        self._times = [Times()] * count
        self._tasks: dict[int, Task] = {}
        self._items: dict[int, Item[ImageKey]] = {}
        self._remaining = count
        self._canceled = False
        self.finished: asyncio.Future[None] = stages.loop.create_future()
        if not count:
            self.finished.set_result(None)

    @property
    def outcomes(self) -> list[Outcome]:
        """One per image, in order, when the request is finished."""
        return [outcome for outcome in self._outcomes if outcome is not None]

    @property
    def times(self) -> Times:
        """The longest time of any image in each stage."""
        return Times(*map(max, zip(Times(), *self._times, strict=True)))

    # --- in the event loop ---

    def decode(self, index: int, data: bytes, spec: InputSpec) -> None:
        """Decode the image at a position, then run the model on it."""
        submitted = self._stages.clock()
        self._tasks[index] = self._stages.pool.submit(data, spec, lambda task: self._decoded(index, task, submitted))

    def run(self, images_NHWC: Sequence[Pixels]) -> None:
        """Run the model on all images of the request, (H,W,3) each. Raises ServeError as `Batcher.submit`."""
        items = [Item((self, i), pixels, self._deadline) for i, pixels in enumerate(images_NHWC)]
        self._items = dict(enumerate(items))
        self._stages.batcher.submit(self._lane, items)

    def fail(self, index: int, error: ImageError | ServeError) -> None:
        """Set the outcome of the image at a position that will not reach the model."""
        self._set(index, error)

    def finish(self, index: int, result: Result[ImageKey]) -> None:
        """Set the outcome of the image at a position."""
        decode, queue, _ = self._times[index]
        self._times[index] = Times(decode, queue + result.waited, result.computed)
        self._set(index, result.outcome)

    def abort(self, error: ServeError) -> None:
        """Let the request fail, unless it is finished."""
        if not self.finished.done():
            self.finished.set_exception(error)

    def cancel(self) -> None:
        """Give up what is not finished: no process and no model begins to work on it."""
        self._canceled = True
        if not self.finished.cancel() and not self.finished.cancelled():
            self.finished.exception()  # asyncio complains about one that nobody has looked at
        if self._remaining:
            for index, task in self._tasks.items():
                if self._outcomes[index] is None:
                    self._stages.pool.cancel(task)
            for item in [*self._items.values()]:
                self._stages.batcher.cancel(self._lane, item)
        self._tasks.clear()  # these refer to this request: no cycle shall keep images, or a model, in memory
        self._items.clear()

    def _set(self, index: int, outcome: Outcome | ServeError) -> None:
        if isinstance(outcome, ServeError):
            self.abort(outcome)
            return
        if self.finished.done():  # it failed or was given up
            return
        self._outcomes[index] = outcome
        self._remaining -= 1
        if not self._remaining:
            self.finished.set_result(None)

    # --- in the thread of the decoding processes ---

    def _decoded(self, index: int, task: Task, submitted: float) -> None:
        result = task.result
        assert result is not None
        error = server_fault(result.error)
        if result.pixels is not None:
            self.sizes[index] = (result.width, result.height)
            waited = max(0.0, self._stages.clock() - submitted - task.seconds)
            self._times[index] = Times(task.seconds, waited, 0.0)
            item = self._items[index] = Item((self, index), result.pixels, self._deadline)
            try:
                self._stages.batcher.submit(self._lane, [item])
            except ServeError as refused:
                error = refused
            if self._canceled:  # perhaps `cancel` did not see the item
                self._stages.batcher.cancel(self._lane, item)
        if error is not None:
            with suppress(RuntimeError):  # the event loop is closed
                self._stages.loop.call_soon_threadsafe(self.fail, index, error)


def hand_over(results: list[Result[ImageKey]]) -> None:
    """Give the results of a batch to their requests; called in the event loop, once per batch."""
    for result in results:
        request, index = result.item.key
        request.finish(index, result)
