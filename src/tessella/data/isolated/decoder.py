"""`IsolatedDecoder`: decode many sources in order, in processes that may die."""

from __future__ import annotations

import os
import pickle
import weakref
from collections import deque
from collections.abc import Generator, Iterable

import numpy as np

from ...errors import UsageError
from ...machine import available_cores
from ..decode import Mode, Policy, open_image
from ..limits import DEFAULT_LIMITS, Limits
from ..source import Source
from ..spec import InputSpec
from .processes import Task
from .protocol import Decoded, DecodeSettings
from .supervisor import Supervisor


class IsolatedDecoder:
    """Apply `load_pixels` to many sources in separate processes; a context manager whose exit ends the processes.

    processes: number of workers; None is one per core, at most 8. timeout: seconds per image, reading included.
    ahead: maximum number of images that are decoded or waiting to be consumed, which bounds memory; None is enough for
    the processes and one or two batches of a model. Relative paths start at the folder that was current when the
    decoder was created. Raises UsageError `bad_argument` for invalid arguments.
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        policy: Policy = "tessella",
        mode: Mode = "exact",
        limits: Limits = DEFAULT_LIMITS,
        processes: int | None = None,
        timeout: float = 30.0,
        ahead: int | None = None,
    ):
        open_image(np.zeros((1, 1, 3), np.uint8), policy=policy, mode=mode)  # refuses an unknown policy or mode
        spec.require_rgb()
        for name, value in (("processes", processes), ("timeout", timeout), ("ahead", ahead)):
            if value is not None and not value > 0:
                raise UsageError("bad_argument", f"{name} is {value}, expected a positive number")
        self.processes = processes or min(available_cores(), 8)
        self.timeout = timeout
        self.ahead = ahead or 4 * self.processes + 64
        self._settings = DecodeSettings(spec, policy, mode, limits)
        self._folder = current_folder()
        self._closed = self._busy = False
        self._supervisor: Supervisor | None = self._start()  # now, so that processes start while a model is loaded

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.close()

    def decoded(self, sources: Iterable[Source]) -> Generator[Decoded, None, None]:
        """Yield one Decoded per source, in order. Only one call may run at a time; errors of `sources` pass through.

        Raises UsageError `unreadable` if the processes cannot be started, and `bad_argument` for a source that cannot
        be sent to another process. If a run is abandoned, its processes are replaced when the next one starts.
        """
        if self._closed or self._busy:
            raise UsageError(
                "bad_argument",
                "this decoder is closed" if self._closed else "this decoder is decoding other sources",
                hint="create another IsolatedDecoder",
            )
        supervisor = self._supervisor = self._supervisor or self._start()
        self._busy = True
        waiting: deque[Task] = deque()
        try:
            for source in sources:
                waiting.append(supervisor.submit(_pickled(source)))
                if len(waiting) >= self.ahead:
                    yield supervisor.result(waiting.popleft())
            while waiting:
                yield supervisor.result(waiting.popleft())
        finally:
            self._busy = False
            if waiting or supervisor.ended:
                supervisor.close()
                self._supervisor = None

    def _start(self) -> Supervisor:
        supervisor = Supervisor(self._settings, self._folder, self.processes, self.timeout)
        weakref.finalize(self, supervisor.close)  # if nobody calls close, and at the end of the interpreter
        return supervisor


def current_folder() -> str:
    """Return the folder at which relative paths of the processes start: that of the caller, if it exists."""
    try:
        return os.getcwd()  # noqa: PTH109 - as Popen takes it
    except FileNotFoundError:  # the folder was deleted, so relative paths cannot be read
        return os.sep


def _pickled(source: Source) -> bytes:
    if type(source).__module__ == "__main__":  # can be pickled, but the __main__ of a worker is another module
        problem = "its class is defined in __main__"
    else:
        try:
            return pickle.dumps(source, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    raise UsageError(
        "bad_argument",
        f"a {type(source).__name__} cannot be sent to another process: {problem}",
        hint="define its class in a module that can be imported, with fields that can be pickled",
    )
