"""Do what a page tells its reader to do: run its blocks in order, in one folder."""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from sybil import Example

from tessella.weights.catalogue import CATALOGUE

from .blocks import ROOT, read_page, reason_not_to_run, shown_commands
from .compare import difference

_PORT = "8000"  # the one on the pages
_FAMILIES, _EPOCHS = "docs/families/", 2  # the pages whose trainings, which show no figures, end after so many epochs


class Reader:
    """Runs the blocks of one page. Commands run in bash, Python blocks in one namespace in this process.

    A server that a page starts runs until the page starts another one, or ends. It listens on a free port, which
    replaces port 8000 in later commands and programs.
    """

    def __init__(
        self, folder: Path, show: Callable[[str], None] = lambda text: None, epochs: int | None = None
    ) -> None:
        """`show` gets each command with its output. epochs: of every training, instead of those of the page."""
        self._folder = folder
        self._show = show
        self._tools = tempfile.TemporaryDirectory(prefix="tessella-docs-")
        command = Path(self._tools.name, "tessella")
        program = f'exec {shlex.quote(sys.executable)} -m tessella "$@"'
        shorter = "" if epochs is None else f'[ "$1" != train ] || {program} --epochs {epochs}\n'
        command.write_text(f"#!/bin/sh\n{shorter}{program}\n")
        command.chmod(0o755)
        search = [self._tools.name, str(Path(sys.executable).parent), os.environ["PATH"]]
        modules = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join(search),
            "PYTHONPATH": os.pathsep.join(modules),
            "HF_HUB_OFFLINE": "1",
        }
        self._server: subprocess.Popen[str] | None = None
        self._port = ""
        self._printed: str | None = None  # by the block before, if that was a program

    def close(self) -> None:
        """Stop the server, which must end with status 0."""
        self._stop_server()
        self._tools.cleanup()

    def evaluate(self, example: Example) -> str | None:
        """Run one block and return what is wrong with it, or None."""
        printed, self._printed = self._printed, None
        if reason_not_to_run(example.document, example.region):
            return None
        language, source = example.region.lexemes["language"], self._on_port(str(example.parsed))
        if language == "python":
            return self._run_python(example, source)
        if language == "console":
            problems = (self._run_command(command, shown) for command, shown in shown_commands(source))
            return next((problem for problem in problems if problem), None)
        if language == "sh":
            return self._run_command(source, [])
        if language == "json":
            json.loads(source)
            return None
        if language == "text" and printed is not None:
            problem = difference(source.splitlines(), printed)
            return problem and f"{problem}\n{printed}"
        return f"a block of the kind {language!r} is not run: mark it with <!-- not run: REASON -->"

    def _on_port(self, text: str) -> str:
        for host in ("localhost", "127.0.0.1"):
            text = text.replace(f"{host}:{_PORT}", f"{host}:{self._port or _PORT}")
        return text

    def _run_python(self, example: Example, source: str) -> str | None:
        printed = io.StringIO()
        before = "\n" * (example.line + example.parsed.line_offset)  # so that tracebacks have the line of the page
        with contextlib.chdir(self._folder), contextlib.redirect_stdout(printed):
            if source.startswith(">>>"):
                return self._run_session(source, example)
            exec(compile(before + source, example.path, "exec", dont_inherit=True), example.namespace)
        self._printed = printed.getvalue()
        self._show(self._printed)
        return None

    @staticmethod
    def _run_session(source: str, example: Example) -> str | None:
        for statement in doctest.DocTestParser().get_examples(source):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(statement.source, example.path, "single", dont_inherit=True), example.namespace)
            problem = difference(statement.want.splitlines(), printed.getvalue())
            if problem or (printed.getvalue() and not statement.want):
                return f">>> {statement.source}{problem or 'printed, but not shown'}:\n{printed.getvalue()}"
        return None

    def _run_command(self, command: str, shown: list[str]) -> str | None:
        if command.startswith("tessella serve") and "--prove" not in command:
            return self._start_server(command, shown)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", self._on_port(command)],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
        )
        self._show(f"$ {command}\n{done.stdout}{done.stderr}")
        must_fail = any(line.startswith("error: ") for line in shown)
        if must_fail != (done.returncode != 0):
            problem = f"the exit status is {done.returncode}"
        else:
            any_model = not any(row.architecture in command for row in CATALOGUE.values() if row.file)
            problem = difference(shown, done.stdout, done.stderr, any_model) or ""
        return f"$ {command}\n{problem}\n{done.stdout}{done.stderr}" if problem else None

    def _start_server(self, command: str, shown: list[str]) -> str | None:
        self._stop_server()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])
        log = Path(self._tools.name, "server.log")
        with log.open("w") as errors:
            self._server = subprocess.Popen(
                ["bash", "-c", f"exec {command} --port {self._port} --drain-delay 0"],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        problem = difference(shown, line, any_model=" -m " not in command)
        if not line:
            problem = "the server did not start"
        return f"$ {command}\n{problem}\n{line}{log.read_text()}" if problem else None

    def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.terminate()
            server.communicate()
            assert server.returncode == 0, f"the server ended with status {server.returncode}"


def follow(page: str, folder: Path, show: Callable[[str], None] = lambda text: None) -> Iterator[str]:
    """Run all blocks of a page, and yield what is wrong with them; `show` gets each command with its output."""
    reader = Reader(folder, show, _EPOCHS if page.startswith(_FAMILIES) else None)
    with contextlib.closing(reader):
        for example in read_page(ROOT / page, reader.evaluate):
            try:
                problem = reader.evaluate(example)
            except Exception:  # a program of the page may raise anything; the next blocks are run nevertheless
                problem = traceback.format_exc()
            if problem:
                yield f"{page}:{example.line}: {problem}"
