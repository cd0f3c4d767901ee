"""Decode the images of requests in isolated processes, each with the input spec of its model."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from contextlib import suppress

from ..data.isolated.decoder import current_folder
from ..data.isolated.processes import Task
from ..data.isolated.protocol import Decoded, DecodeSettings, EncodedImage, ListedImage
from ..data.isolated.supervisor import Supervisor
from ..data.source import Source
from ..data.spec import InputSpec
from ..errors import ImageError, ServeError
from ..machine import NICE, available_cores
from .settings import ServeSettings

Done = Callable[[Task], None]


def server_fault(error: ImageError | None) -> ImageError | ServeError | None:
    """Return an image's error, as a ServeError if the image is not to blame."""
    return ServeError(error.code, error.message) if error and error.code == "worker_failed" else error


class DecodePool:
    """Processes that decode images for all models. `submit` and `cancel` are called in one thread.

    A process gets one image at a time, so that an image which hangs delays no other one; if it crashes its process, or
    is still being decoded after `decode_timeout`, the process is replaced. on_lost: called when a process has ended.
    on_failed: called when decoding was given up because no process can be started. Both run in another thread.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        on_lost: Callable[[], None] = lambda: None,
        on_failed: Callable[[BaseException], object] = lambda error: None,
    ):
        def on_end(error: BaseException | None) -> None:
            if error is not None:
                on_failed(error)

        self._supervisor = Supervisor(
            # every image brings a spec of its own
            DecodeSettings(InputSpec(), settings.policy, settings.transform, settings.limits, nice=NICE),
            current_folder(),
            settings.decode_processes or min(available_cores(), 8),
            settings.decode_timeout,
            slots=1,
            on_lost=on_lost,
            on_end=on_end,
        )

    @property
    def has_worker(self) -> bool:
        """Whether a process is ready to decode."""
        return self._supervisor.has_worker

    def submit(self, data: bytes | Source, spec: InputSpec, done: Done) -> Task:
        """Decode an image for a spec, one in memory or one that the process reads.

        done: called in another thread with the task, whose result is set. If the processes have ended, the result is
        the error `worker_failed`.
        """
        image = EncodedImage(data=data, spec=spec) if isinstance(data, bytes) else ListedImage(listed=data, spec=spec)
        source = pickle.dumps(image, pickle.HIGHEST_PROTOCOL)
        return self._supervisor.submit(source, spec, done)

    def cancel(self, task: Task) -> None:
        """Give up a task; `done` is not called after this, except if it is being called now."""
        self._supervisor.cancel(task)

    async def decode(self, data: bytes | Source, spec: InputSpec) -> Decoded:
        """Decode one image and return its result, which may be an error. Raises ServeError `worker_failed`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not future.done():
                future.set_result(None)

        def done(task: Task) -> None:
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(resolve)

        task = self.submit(data, spec, done)
        try:
            await future
        finally:
            self.cancel(task)
        assert task.result is not None
        if isinstance(error := server_fault(task.result.error), ServeError):
            raise error
        return task.result

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        self._supervisor.close()
