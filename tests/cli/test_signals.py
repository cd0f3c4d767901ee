"""Commands that are stopped: one line, status 130, and no temporary files, whatever the signal and its moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tessella.signals import interrupt_on_sigterm, raise_interrupt_behind

WAITING = """
import sys, time
from tessella.performance import measuring

def wait(*_):
    print("measuring", flush=True)
    time.sleep(600)  # until a signal comes

measuring._open_all = wait
from tessella.cli import main
main()
"""
EARLY = """
import sys

class Finder:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from tessella.cli import main
main()
"""
INSIDE_AN_EXTENSION = """
import importlib.machinery, sys

class Interrupted:
    def find_spec(self, name, *_):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name == "openvino" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):  # as pybind11 does if Ctrl-C comes while it imports a module
        raise ImportError("initialization failed") from KeyboardInterrupt()

sys.meta_path.insert(0, Interrupted())
from tessella.cli import main
main()
"""
STORED = Path(__file__).resolve().parents[1] / "stored"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_no_temporary_files(number: signal.Signals, tmp_path: Path) -> None:
    arguments = ["bench", "mixer_ti_p4_32", "--engines", "openvino", "--rounds", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(TMPDIR=str(tmp_path)),
        # background jobs, such as a test run, hand down ignored interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "measuring\n"
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_interrupt_during_the_imports_needs_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY, "list"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", str(STORED.parents[1] / "examples" / "cat.jpg")],
        ["verify", str(STORED / "exported" / "openvino")],
        ["tune", "mixer_ti_p4_32", "--engines", "openvino", "--precision", "float32", "--seconds", "1"],
        ["bench", "mixer_ti_p4_32", "--engines", "openvino", "--rounds", "1", "--batch-size", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_interrupt_that_an_extension_module_hides_is_one(arguments: list[str], tmp_path: Path) -> None:
    """It is no damaged model, and no candidate that failed while the others are measured."""
    command = [sys.executable, "-c", INSIDE_AN_EXTENSION, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(TESSELLA_CACHE=str(tmp_path)))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_a_chosen_reaction_to_sigterm_is_kept(handler: signal.Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        interrupt_on_sigterm()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupt_is_found_behind_errors_that_lead_to_each_other() -> None:
    first, second = ValueError("first"), RuntimeError("second")
    second.__cause__ = first
    first.__context__ = second  # as after `except RuntimeError as error: raise error.__cause__`
    for error in (first, second):
        raise_interrupt_behind(error)
    first.__cause__ = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        raise_interrupt_behind(second)
