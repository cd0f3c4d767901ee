"""Signal handlers still run after engines were created and freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, os, signal
import tessella

handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
engines = [tessella.load(engine="openvino", precision=precision) for precision in ("float32", "int8", "float32")]
while engines:
    del engines[0]  # the oldest first, as in a server that replaces its models
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(handled), "handled")
"""


def test_signals_are_handled_after_engines_are_freed() -> None:
    """OpenVINO gives the thread a signal stack with each Core, and frees them in a way that leaves it with a dead one:
    the next signal, a Ctrl-C or the end of a child process, then killed the process without a word.
    """
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert done.stdout.splitlines()[-1] == "3 handled"
