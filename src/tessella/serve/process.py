"""A server in a process of its own, as `--prove` and long trials start it: its address, memory, processes and end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ..errors import ServeError
from .load import Address
from .settings import ServeSettings

START_SECONDS = 180.0  # until the model is loaded, converted on first use
STOP_SECONDS = 60.0  # after SIGTERM
COMMAND = (sys.executable, "-c", "from tessella.serve.process import run_from_stdin; run_from_stdin()")
_URL = re.compile(r"http://([0-9.]+|\[[0-9a-f:]+\]):(\d+)")


def start_server(settings: ServeSettings, command: Sequence[str] = COMMAND) -> ServerProcess:
    """Start a server with these settings on a free port of this machine; it ends when this process does.

    command: calls `run_from_stdin`. The settings are its standard input, so that no other user sees the token.
    """
    local = dataclasses.replace(settings, host="127.0.0.1", port=0)
    return ServerProcess(command, json.dumps(dataclasses.asdict(local), default=str) + "\n")


def run_from_stdin() -> None:
    """Run a server whose settings are one line of JSON on standard input, until a signal or the end of the input."""
    from .runner import serve

    values = json.loads(sys.stdin.readline())
    for name in ("models", "allowed_hosts"):
        values[name] = tuple(values[name])
    values["index"] = values["index"] and Path(values["index"])
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    serve(ServeSettings(**values), on_ready=lambda started: print(started.url, flush=True))


def _stop_at_end_of_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


class ServerProcess:
    """Start a server with a command; a context manager whose exit kills it if it is still running.

    The command has to print the URL of the server, as `tessella serve` does. text: standard input, which stays open.
    """

    def __init__(self, command: Sequence[str], text: str = ""):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # its processes can be ended with it
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `address` says why
            self._process.stdin.write(text)
            self._process.stdin.flush()
        self._lines: deque[str] = deque(maxlen=50)
        self._found = threading.Event()
        self._address: Address | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(os, "killpg"):  # processes that it leaves behind would keep its output open
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if self._address is None and (found := _URL.search(line)):
                self._address = Address(found[1].strip("[]"), int(found[2]))
                self._found.set()
        self._found.set()

    @property
    def address(self) -> Address:
        """Where the server listens. Raises ServeError `not_ready` if it has ended or prints no URL."""
        self._found.wait(START_SECONDS)
        if self._address is None:
            raise self._not_started()
        return self._address

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until /readyz answers 200. Raises ServeError `not_ready` if that takes too long or the server ends."""
        host, port = self.address
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            url = f"http://{host}:{port}/readyz"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # URLError is an OSError
                return
            time.sleep(0.05)
        raise self._not_started()

    def _not_started(self) -> ServeError:
        last = " ".join("".join(self._lines).split())[-500:]
        status = self._process.poll()
        how = "did not become ready" if status is None else f"ended with status {status}"
        return ServeError("not_ready", f"the server {how}: {last}", hint="start it without --prove to see the reason")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        self._process.send_signal(number)

    def wait(self) -> int | None:
        """Wait for the end of the server and return its exit status; None if it does not end."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def memory(self) -> int | None:
        """Return the resident memory of the server in bytes; None if it is not known on this system."""
        try:
            command = ["ps", "-o", "rss=", "-p", str(self.pid)]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            return int(answer.stdout) * 1024
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def decoding_processes(self) -> list[int]:
        """Return the ids of the processes that decode images; empty if they are not known on this system."""
        return [worker for server in _children(self.pid) for worker in _children(server)]

    def kill(self, pid: int) -> None:
        """Kill one of the server's processes."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """Return the ids of the child processes, on Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()  # the name in parentheses may contain spaces
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return sorted(found)
