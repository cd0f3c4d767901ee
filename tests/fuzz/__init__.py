"""A seeded fuzz test: every command and every public function with wrong types, sizes, paths and environments.

`scripts/soak fuzz --cases 2000 --out FILE` runs it, `--case N` runs one case again and shows everything; the tests run
200. The rules that a case must keep:

- a command ends with a status that the README lists (never 1), without a traceback, and prints only JSON with --json;
- a function returns, or raises an error of the TessellaError family. Python's own TypeError for a call with a missing
  or an unknown keyword is allowed; a TypeError (or anything else) from inside the package is not;
- both end within 20 s (more where the machine is shared, by its load), and leave no process behind.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from .cases import Case
from .cases import make_case as make_case

ROOT = Path(__file__).resolve().parent.parent.parent
STATUSES = {0, 2, 3, 4, 5, 6, 7, 8, 9, 130}  # those of the README
NEVER = ("Traceback (most recent call last)", "Exception ignored in", "panicked at", "Fatal Python error")


def judge(case: Case, outcome: dict[str, Any]) -> str:
    """What is wrong with an outcome; "" if nothing is."""
    if "harness" in outcome:
        return f"harness: {outcome['harness']}"
    if outcome["hung"]:
        return f"{outcome['hung']}: {outcome.get('place') or innermost(outcome.get('stack', ''))}"
    if outcome["left"]:
        return f"processes left: {', '.join(sorted(set(outcome['left'])))}"
    if "error" in outcome and not outcome["coded"] and (outcome["place"] or not case.code) and not _is_binding(outcome):
        return f"{outcome['error']} in {outcome['place']}"
    if case.code:
        return "" if outcome["status"] in (0, 1) else f"status {outcome['status']}"
    if outcome["status"] not in STATUSES:
        return f"status {outcome['status']}: {innermost(outcome['stderr'])}"
    if words := [word for word in NEVER if word in outcome["stderr"]]:
        return f"{words[0]}: {innermost(outcome['stderr'])}"
    return _not_json(case, outcome)


def _is_binding(outcome: dict[str, Any]) -> bool:
    """Whether Python itself refused the call: it lacks an argument, or has one twice."""
    words = ("required positional argument", "required keyword-only argument", "multiple values for argument")
    return outcome["error"] == "TypeError" and any(word in outcome["message"] for word in words)


def _not_json(case: Case, outcome: dict[str, Any]) -> str:
    if (
        "--json" not in case.arguments
        or case.around.stdout != "file"
        or case.around.variables
        or outcome["status"] not in (0, 3)
    ):
        return ""
    try:
        for line in outcome["stdout"].splitlines():
            json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        return f"not JSON: {error}"
    return ""


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def innermost(trace: str) -> str:
    """Of a printed stack, the last line of the package, and the exception."""
    lines = [line.strip() for line in trace.splitlines()]
    files = [line for line in lines if line.startswith("File") and "/src/tessella/" in line]
    newest_first = "most recent call first" in trace
    place = files[0 if newest_first else -1].rpartition("/src/tessella/")[2] if files else ""
    return f"{place} {'' if newest_first else next((line for line in reversed(lines) if line), '')}".strip()[:300]


# --- running ----------------------------------------------------------------------------------------------------------


@contextmanager
def servers(count: int) -> Iterator[list[Server]]:
    """Processes that run cases, with the world that these work in."""
    folder = Path(tempfile.mkdtemp(prefix="tessella-fuzz-"))
    try:
        world = folder / "world"
        world.mkdir()
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        ours = dict(TESSELLA_CACHE=str(folder / "cache"), HF_HUB_OFFLINE="1", OPENBLAS_NUM_THREADS="1", PYTHONPATH=path)
        environment = {**os.environ, **ours}
        build = [sys.executable, "-m", "tests.fuzz.world", str(world)]
        subprocess.run(build, check=True, env=environment, capture_output=True)
        with ExitStack() as stack:
            yield [stack.enter_context(Server(world, folder / str(number), environment)) for number in range(count)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """`tests.fuzz.server` in a process of its own."""

    def __init__(self, world: Path, folder: Path, environment: dict[str, str]):
        folder.mkdir()
        self.folder = folder / "case"
        command = [sys.executable, "-m", "tests.fuzz.server", str(world), str(self.folder)]
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment, text=True
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait(60)
        self._pipe(self._process.stdout).close()
        self._log.close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def run(self, case: Case) -> dict[str, Any]:
        pipe = self._pipe(self._process.stdin)
        pipe.write(base64.b64encode(pickle.dumps(case)).decode() + "\n")
        pipe.flush()
        answer = self._pipe(self._process.stdout).readline()
        assert answer, Path(self._log.name).read_text()[-2000:]
        outcome: dict[str, Any] = json.loads(answer)
        return outcome


def run_cases(cases: Iterable[Case], among: list[Server]) -> Iterator[tuple[Case, dict[str, Any], str]]:
    """(case, what came of it, what is wrong), as they finish."""
    free = list(among)

    def one(case: Case) -> tuple[Case, dict[str, Any], str]:
        server = free.pop()
        try:
            outcome = server.run(case)
        finally:
            free.append(server)
        return case, outcome, judge(case, outcome)

    with ThreadPoolExecutor(len(among)) as pool:
        yield from pool.map(one, cases)


def reproducer(case: Case) -> str:
    """How to run a case again, and what it does."""
    again = f"scripts/soak fuzz --seed {case.seed} --case {case.number}"
    return f"{again}\n  {case.code or case.shell('COPY_OF_THE_WORLD')}" + (f"\n  {case.around}" if case.code else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/soak fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run only this one, and show all of it")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    numbers = range(args.cases) if args.case is None else [args.case]
    cases = [make_case(args.seed, number) for number in numbers]
    failures: list[dict[str, Any]] = []
    targets, outcomes = Counter[str](), Counter[str]()
    with servers(min(len(cases), len(os.sched_getaffinity(0)))) as among:
        for case, outcome, wrong in run_cases(cases, among):
            targets[case.target] += 1
            outcomes[outcome_of(outcome)] += 1
            if wrong:
                text = case.code or case.shell("HERE")
                failures.append(dict(number=case.number, wrong=wrong, case=text, message=outcome.get("message", "")))
            if wrong or args.case is not None:
                print(
                    f"--- case {case.number}: {wrong or 'fine'}: {outcome.get('message', '')}\n{reproducer(case)}",
                    flush=True,
                )
            if args.case is not None:
                print(json.dumps(outcome, indent=1).replace("\\n", "\n"))
    kinds = Counter(row["wrong"] for row in failures)
    print(f"{len(cases)} cases of {len(targets)} commands and functions, seed {args.seed}: {len(failures)} failed")
    for wrong, count in kinds.most_common():
        print(f"{count:5}  {wrong}")
    from tests.soak import write_figures

    figures = dict(failures=failures, outcomes=dict(outcomes.most_common()), targets=dict(sorted(targets.items())))
    what = "every command and public function with wrong types, sizes, paths and environments"
    write_figures(args.out, what, figures, seed=args.seed, trials=len(cases), failed=len(failures))
    sys.exit(bool(failures))


def outcome_of(outcome: dict[str, Any]) -> str:
    """An error's code or type, or the exit status."""
    return str(outcome.get("code") or outcome.get("error") or f"status {outcome['status']}")
