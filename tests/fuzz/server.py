"""One process with everything imported that forks for each case, as an import of PyTorch per case would take hours.

It reads a case per line, pickled in base64, and answers with a line of JSON. The child gets its own folder, session,
standard streams and variables; whatever it starts is in its session, and is ended with it. The parent imports only:
no PyTorch operation and no thread runs in it, so that its children are like new interpreters.
"""

from __future__ import annotations

import base64
import contextlib
import faulthandler
import gc
import importlib
import io
import json
import multiprocessing.util
import os
import pickle
import pkgutil
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cases import Case
from .values import namespace

MOST_PROCESSES = 60
MOST_TEXT = 100_000  # characters that are kept of an output
MEMORY = 6 << 30  # bytes of a process; a case that asks for more meets a MemoryError
_TRACE = 250  # file descriptor of the child's stack, written on SIGUSR1
_MODULES = """numpy torch PIL.Image pyarrow.parquet pyarrow.dataset pyarrow.compute rich.progress rich.table
    safetensors.torch huggingface_hub matplotlib.figure fsspec filelock prometheus_client"""


def allowance(limit: float) -> float:
    """A time limit in seconds, stretched where more processes want to run than there are cores."""
    return limit * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def serve(world: str, folder: str) -> None:
    """Answer cases from standard input until it ends."""
    warnings.simplefilter("ignore")
    for name in _MODULES.split():
        importlib.import_module(name)
    import tessella

    for module in pkgutil.walk_packages(tessella.__path__, "tessella."):
        if not module.name.endswith(("__main__", "_triton")):
            importlib.import_module(module.name)
    namespace()
    gc.collect()
    gc.freeze()  # pages that the children share stay shared
    answers = os.fdopen(os.dup(1), "w")
    copy = Copy(Path(world), Path(folder) / "here")
    for line in sys.stdin:
        case = pickle.loads(base64.b64decode(line))
        outcome = run_case(case, copy, Path(folder))
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


def run_case(case: Case, copy: Copy, folder: Path) -> dict[str, Any]:
    """Run one case in the copy of the world, as if that were new; what came of it, as JSON."""
    copy.restore()
    for name in ("stdout", "stderr", "stack", "outcome"):
        (folder / name).unlink(missing_ok=True)
    began, limit = time.monotonic(), allowance(case.limit)
    pid = _fresh(case, folder) if case.fresh else _fork(case, folder)
    status, hung = _wait(pid, began + limit, case.limit)
    seconds = time.monotonic() - began
    left = _end_session(pid)
    outcome: dict[str, Any] = dict(number=case.number, status=status, seconds=round(seconds, 2), hung=hung, left=left)
    for name in ("stdout", "stderr", "stack"):
        with contextlib.suppress(OSError):
            text = (folder / name).read_bytes().decode(errors="replace")
            outcome[name] = text if len(text) <= MOST_TEXT else text[-MOST_TEXT:].partition("\n")[2]  # whole lines
    with contextlib.suppress(OSError):
        outcome |= json.loads((folder / "outcome").read_text())
    return outcome


class Copy:
    """A copy of the world; what a case has changed in it is copied again, by top-level name."""

    def __init__(self, world: Path, here: Path):
        self.world, self.here = world, here
        self._seen: dict[str, Any] = {}
        here.mkdir(parents=True)

    def restore(self) -> None:
        names = {path.name for path in self.world.iterdir()}
        for name in names | {path.name for path in self.here.iterdir()}:
            path = self.here / name
            if name in names and name in self._seen and self._seen[name] == _state(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif os.path.lexists(path):
                path.unlink()
            if name in names:
                subprocess.run(["cp", "-a", str(self.world / name), str(path)], check=True)
                self._seen[name] = _state(path)


def _state(path: Path) -> Any:
    """What changes when a file, or anything in a folder, does."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    within = [(one.name, _state(one)) for one in sorted(path.iterdir())] if stat.S_ISDIR(about.st_mode) else []
    return (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, within)


def _wait(pid: int, deadline: float, limit: float) -> tuple[int | None, str]:
    """(exit status, "") or, of a case that was ended here, (None, why)."""
    pause, looked = 0.002, time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), ""
        now = time.monotonic()
        why = f"still running after {limit:g} s" if now > deadline else ""
        if now - looked > 0.5:
            looked = now
            if (count := len(_session(pid))) > MOST_PROCESSES:
                why = f"{count} processes"
        if why:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)  # a stack, see _fork
                time.sleep(0.3)
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, why
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _session(leader: int) -> list[tuple[int, str]]:
    """(process id, name) of what is alive in the session of `leader`."""
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                name, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
                state, _parent, _group, session = rest.split()[:4]
                if int(session) == leader and state not in "ZX":
                    processes.append((int(entry.name), name.partition("(")[2]))
    return processes


def _end_session(leader: int) -> list[str]:
    """Names of processes that outlived the case by two seconds; all are ended."""
    deadline = time.monotonic() + 2
    while (left := _session(leader)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [name for _, name in left]


def variables(case: Case, here: Path) -> dict[str, str]:
    """The environment of a case: nothing of the caller's home or cache, no network."""
    environment = dict(os.environ)
    for name in ("PYTHONIOENCODING", "PYTHONWARNINGS", "HF_HOME", "COLUMNS", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    environment |= dict(HOME=f"{here}/home", TMPDIR=f"{here}/tmp", TESSELLA_CACHE=f"{here}/cache", HF_HUB_OFFLINE="1",
                  OMP_NUM_THREADS="2")  # fmt: skip
    for name, value in case.around.variables.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value.format(here=here)
    return environment


def _fresh(case: Case, folder: Path) -> int:
    """A new interpreter, by the shell line that a person would type; the process id of the shell."""
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        environment = variables(Case(0, 0), folder / "here") | dict(PYTHONPATH=os.pathsep.join(sys.path))
        line = f"set -o pipefail; ulimit -c 0; {case.shell(str(folder / 'here'), sys.executable)}"
        command: list[str | bytes] = ["bash", "-c", os.fsencode(line)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
        )
    return process.pid


def _fork(case: Case, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        _child(case, folder)
    except BaseException:  # a fault of this harness
        (folder / "outcome").write_text(json.dumps(dict(harness=traceback.format_exc())))
    finally:
        os._exit(99)


# --- in the child -----------------------------------------------------------------------------------------------------


def _child(case: Case, folder: Path) -> None:
    here = folder / "here"
    os.setsid()
    os.chdir(here)
    trace = os.open(folder / "stack", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.dup2(trace, _TRACE)
    _streams(case, folder)
    faulthandler.register(signal.SIGUSR1, file=_TRACE, all_threads=True)
    os.environ.clear()
    os.environ.update(variables(case, here))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if case.around.handles:
        resource.setrlimit(resource.RLIMIT_NOFILE, (case.around.handles, case.around.handles))
    if case.around.deleted:
        (gone := here / "gone").mkdir()
        os.chdir(gone)
        gone.rmdir()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcome, status = (_call if case.code else _command)(case)
    try:
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        threading._shutdown()  # type: ignore[attr-defined]
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:
        outcome, status = outcome or describe(error), status or 120  # what the interpreter says
    if outcome:
        (folder / "outcome").write_text(json.dumps(outcome))
    os._exit(status)


def _streams(case: Case, folder: Path) -> None:
    """Standard streams as the case wants them, and no other open file."""
    around, here = case.around, folder / "here"
    kinds = (around.stdin, around.stdout, around.stderr)
    files = {"names": "list.txt", "bytes": "random.bin", "endless": "zero"}
    path = here / files[around.stdin] if around.stdin in files else "/dev/null"
    opened = [os.open(path, os.O_RDONLY)]
    for kind, name in zip(kinds[1:], ("stdout", "stderr"), strict=True):
        if kind == "no reader":
            reader, writer = os.pipe()
            os.close(reader)
            opened.append(writer)
        else:
            opened.append(os.open(here / "full" if kind == "full" else folder / name, os.O_CREAT | os.O_WRONLY, 0o644))
    high = [os.dup2(file, 100 + i) for i, file in enumerate(opened)]
    for i, file in enumerate(high):
        os.dup2(file, i)
    os.closerange(3, _TRACE)
    os.closerange(_TRACE + 1, 1024)
    for i, (name, kind) in enumerate(zip(("stdin", "stdout", "stderr"), kinds, strict=True)):
        if kind == "closed":
            os.close(i)
        stream = None if kind == "closed" else _text_stream(i, case.around.variables)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _text_stream(number: int, variables: Mapping[str, str | None]) -> io.TextIOWrapper:
    """What the interpreter would make of an open descriptor."""
    encoding, _, errors = (variables.get("PYTHONIOENCODING") or "utf-8").partition(":")
    errors = "backslashreplace" if number == 2 else errors or "strict"
    raw = io.FileIO(number, "w" if number else "r", closefd=False)
    if number:
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=number == 2)
    return io.TextIOWrapper(io.BufferedReader(raw), encoding, errors)


def _command(case: Case) -> tuple[dict[str, Any], int]:
    from tessella.cli.program import main

    sys.argv = ["tessella", *case.arguments]
    try:
        main()
    except SystemExit as done:
        return {}, done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException as error:
        return describe(error), 1
    return {}, 0


def _call(case: Case) -> tuple[dict[str, Any], int]:
    names = namespace()
    try:
        names["look"](eval(compile(case.code, "<case>", "eval"), names))
    except BaseException as error:
        return describe(error), 1
    return {}, 0


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as JSON; place: the innermost function of the package, "" where none was entered."""
    from tessella.errors import TessellaError

    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _ours(frame.filename)]
    places = [f"{frame.filename.rpartition('/src/tessella/')[2]}:{frame.name}" for frame in ours]
    return dict(
        coded=isinstance(error, TessellaError),
        error=type(error).__name__,
        message=str(error)[:500],
        place=places[-1] if places else "",
        trace="".join(traceback.format_exception(error))[-6000:],
    )


def _ours(file: str) -> bool:
    return "/src/tessella/" in file


if __name__ == "__main__":
    serve(*sys.argv[1:3])
