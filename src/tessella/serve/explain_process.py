"""The process that computes explanations, as the server sees it: start, one question at a time, end.

The server has no PyTorch; this process does. It gets pixels that the isolated decoders have made, never the bytes of a
file. Orders to it are pickled. Its answers are JSON, because a process that computes with data of clients should not be
able to run code in the server.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import msgspec

from ..calibration.confidence import ConfidenceCurve
from ..data.decode import Mode, Pixels, Policy
from ..machine import NICE

# Below the decoders and the engines (NICE): by the weights of Linux' scheduler, explanations get about a tenth of the
# time while these use all cores.
EXPLAIN_NICE = NICE + 10
HEAD_BYTES = 8
MAX_ANSWER = 64 << 20  # bytes
MAX_TEXT = 4000  # characters of a traceback, for the log
# sys.path comes first: the package may lie where only the server looks
_BOOT = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
REASONS = {  # why a request for explanations cannot be carried out, as one fixed sentence for the client
    "class": "The model has no class of that name or index.",
    "versus": "The two classes are the same.",
    "method": "The method does not apply to this model.",
    "no_classifier": "The model has no classifier, so it has no classes to explain.",
    "exported": "The model is an exported one, which cannot be explained; serve the model that was exported.",
    "changed": "The files of the model have changed since the server loaded it; restart the server.",
    "torch": "Explanations need PyTorch, which is not installed where the server runs.",
    "captum": "This method needs Captum, which is not installed where the server runs.",
    "": "",
}
COMMAND = "from tessella.serve.explain_loop import run_explainer; run_explainer()"


@dataclass(frozen=True)
class ExplainOrder:
    """One image to explain.

    source: of the model, as `tessella.load` takes it; fingerprint: that its float32 weights must have. device, policy,
    transform: settings of the server. confidence: temperature and curve of its calibration; None for plain softmax.
    pixels: (H,W,3) uint8 as the model sees them; picture: the same part of the image with more pixels, for the overlay.
    wanted, versus: classes by index or name; None for the most probable one and for none.
    """

    source: str
    fingerprint: str
    device: str
    policy: Policy
    transform: Mode
    confidence: tuple[float, ConfidenceCurve] | None
    pixels: Pixels
    picture: Pixels
    wanted: int | str | None
    versus: int | str | None
    method: str


class ClassScore(msgspec.Struct):
    """A class with its probability."""

    index: int
    label: str
    probability: float


class MapScore(msgspec.Struct):
    """A figure that says how faithful a map is, beside the interval of the same figure of random maps.

    goal: "higher" or "lower", whichever is better. better: whether the value is better than the interval.
    """

    name: str
    goal: str
    value: float
    random_low: float
    random_high: float
    better: bool


class ExplainedImage(msgspec.Struct):
    """What the process answers for one image.

    values: the map, a list of rows. total: what the values sum to if the method is exact. methods: those that apply to
    the model. overlay: a PNG file in base64. load_seconds: for the model, 0 if it was loaded already. seconds: for the
    explanation.
    """

    top: list[ClassScore]
    target: ClassScore
    versus: ClassScore | None
    method: str
    methods: list[str]
    reason: str
    layer: str
    total: float | None
    values: list[list[float]]
    scores: list[MapScore]
    faithful: bool | None
    verdict: str
    verdict_reason: str
    overlay: str
    load_seconds: float
    seconds: float


class ExplainFailure(msgspec.Struct):
    """Why there is no explanation.

    is_image: the image is to blame, not the request or the server. reason: a key of `REASONS`, or "". message: for the
    log only.
    """

    code: str
    message: str
    is_image: bool
    reason: str = ""


class WorkerAnswer(msgspec.Struct):
    """One answer of the process: an explanation or a failure. The first answer has neither if the process is ready."""

    explained: ExplainedImage | None = None
    failure: ExplainFailure | None = None


class ProcessLostError(Exception):
    """The process has ended, or its answer makes no sense; it is not running any more."""


class ExplainProcess:
    """A running process. Every method is called in one thread, except `kill`. Raises OSError if it cannot be started.

    command: Python code that runs `explain_loop.run_worker`. threads: that PyTorch may use. nice: how far the priority
    is below that of the server.
    """

    def __init__(self, command: str = COMMAND, *, threads: int, nice: int = EXPLAIN_NICE):
        self.is_ready = False
        self.started = time.monotonic()
        self._inbox = bytearray()
        self._socket, remote_end = socket.socketpair()
        # threads that spin while they wait would take the cores of the engines
        variables = dict(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
        try:
            with remote_end:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BOOT + command, str(remote_end.fileno()), str(nice)],
                    pass_fds=[remote_end.fileno()],
                    env=os.environ | variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        except BaseException:
            self._socket.close()
            raise
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as file:  # if it has ended, the first answer is missing
            file.write(pickle.dumps(sys.path))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the process is running."""
        return self._process.poll() is None

    def wait_until_ready(self, until: float) -> None:
        """Wait for the first answer. until: by `time.monotonic`. Raises TimeoutError, ProcessLostError."""
        if self.is_ready:
            return
        failure = self._receive(until).failure
        if failure is not None:
            self.end()
            raise ProcessLostError(f"the process that explains cannot start: {failure.message}")
        self.is_ready = True

    def ask(self, order: bytes, until: float) -> WorkerAnswer:
        """Send a pickled ExplainOrder and return the answer. Raises TimeoutError, ProcessLostError.

        After a TimeoutError the process is still working on the order, so it has to be ended.
        """
        try:
            self._socket.settimeout(max(until - time.monotonic(), 0.001))
            self._socket.sendall(len(order).to_bytes(HEAD_BYTES, "little") + order)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._lost() from error
        return self._receive(until)

    def _receive(self, until: float) -> WorkerAnswer:
        """Return the next answer; what has arrived before a TimeoutError is kept."""
        size = None
        while True:
            if size is None and len(self._inbox) >= HEAD_BYTES:
                size = HEAD_BYTES + int.from_bytes(self._inbox[:HEAD_BYTES], "little")
                if size > MAX_ANSWER:
                    raise self._lost()
            if size is not None and len(self._inbox) >= size:
                body = bytes(self._inbox[HEAD_BYTES:size])
                del self._inbox[:size]
                break
            try:
                self._socket.settimeout(max(until - time.monotonic(), 0.001))
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                raise
            except OSError as error:
                raise self._lost() from error
            if not data:
                raise self._lost()
            self._inbox += data
        try:
            return msgspec.json.decode(body, type=WorkerAnswer)
        except msgspec.DecodeError as error:
            raise self._lost() from error

    def _lost(self) -> ProcessLostError:
        with contextlib.suppress(subprocess.TimeoutExpired):  # how it ended by itself says more than our signal
            self._process.wait(1.0)
        self.end()
        code = self._process.returncode
        return ProcessLostError(f"the process that explains has ended {f'by signal {-code}' if code < 0 else code}")

    def kill(self) -> None:
        """Kill the process, in any thread; one that waits for its answer gets a ProcessLostError."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self.kill()
        self._process.wait()
        self._socket.close()
