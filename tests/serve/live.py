"""A server in a process of its own, for tests that call it over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PROGRAM = """
import json, sys
from tessella.serve.runner import serve
from tessella.serve.settings import ServeSettings

fields = json.loads(sys.argv[1])
fields["models"] = tuple(fields.get("models", ()))
serve(ServeSettings(port=0, drain_delay=0.0, **fields), on_ready=lambda started: print(started.url, flush=True))
"""


@contextmanager
def live_server(**settings: object) -> Iterator[str]:
    """Run a server with these settings on a free port, and give its URL; it must end with status 0 when asked to."""
    command = [sys.executable, "-c", _PROGRAM, json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the server did not start"
            yield url
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
