"""The first 200 cases of the fuzz test, and its own rules: what it covers, and that it finds faults of each kind."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tessella
from tests.fuzz import STATUSES, Server, judge, make_case, reproducer, run_cases, servers
from tests.fuzz.cases import Case, Surroundings, commands, function, functions

CASES = 200
README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture(scope="module")
def fuzz_servers() -> Iterator[list[Server]]:
    with servers(len(os.sched_getaffinity(0))) as started:
        yield started


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_case_ends_in_a_traceback_a_hang_or_an_unlisted_status(fuzz_servers: list[Server]) -> None:
    cases = (make_case(0, number) for number in range(CASES))
    failures = [f"{wrong}\n{reproducer(case)}" for case, _, wrong in run_cases(cases, fuzz_servers) if wrong]
    assert not failures, "\n\n".join(failures)


def test_cases_are_the_same_for_the_same_seed_and_cover_everything() -> None:
    generated = [make_case(7, number) for number in range(300)]
    assert generated == [make_case(7, number) for number in range(300)]
    assert generated != [make_case(8, number) for number in range(300)]
    assert {case.target for case in generated if case.arguments} == set(commands())
    called = {case.code for case in generated if case.code}
    assert all(any(code.startswith(f"{name}(") for code in called) for name in functions())
    assert {f"tessella.{name}" for name in ("load", "create_model", "save_pretrained", "optimize")} <= set(functions())
    assert any(case.fresh for case in generated)
    assert {name for name in dir(tessella) if name.startswith("list_")} <= {
        name.removeprefix("tessella.") for name in functions()
    }


def test_good_values_are_those_of_parameters() -> None:
    """A value for a parameter that no longer exists would make every case of its function end at the call."""
    for target, values in functions().items():
        found = function(target)
        if not inspect.isclass(found) or "__init__" in vars(found):
            parameters = inspect.signature(found).parameters
            takes_any = any(param.kind is inspect.Parameter.VAR_KEYWORD for param in parameters.values())
            assert takes_any or set(values) <= set(parameters), target


def test_the_statuses_are_those_of_the_readme() -> None:
    line = re.search(r"Exit status: (.*?)\n\n", README.read_text(), re.DOTALL)
    assert line
    assert {int(number) for number in re.findall(r"(?:^|[,.] )(\d+) [a-z]", line[1].replace("\n", " "))} == STATUSES


def run(server: Server, **fields: Any) -> tuple[dict[str, Any], str]:
    case = Case(0, 0, **fields)
    result = server.run(case)
    return result, judge(case, result)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("spec()", ""),
        ("data.InputSpec(height='x')", ""),  # a coded error
        ("spec.of.from_cfg()", ""),  # Python's own error for a call
        ("data.decode._open_bytes(3, 'tessella', 'exact', None)", "TypeError in data/decode.py:_open_bytes"),
        ("exec('import signal; os.kill(os.getpid(), signal.SIGSEGV)')", "status -11"),
        ("__import__('subprocess').Popen(['sleep', '60'])", "processes left: sleep"),
    ],
)
def test_faults_of_functions_are_found(fuzz_servers: list[Server], code: str, wrong: str) -> None:
    assert run(fuzz_servers[0], code=code)[1] == wrong


def test_a_hang_is_found_with_its_location(fuzz_servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = fuzz_servers[0]
    result, wrong = run(server, code="__import__('time').sleep(600)", limit=0.5)
    assert result["status"] is None
    assert wrong.startswith("still running after 0.5 s")


@pytest.mark.parametrize("fresh", [False, True])
def test_surroundings_reach_the_program(fuzz_servers: list[Server], fresh: bool) -> None:
    def status(*arguments: str, **around: Any) -> Any:
        return run(fuzz_servers[0], arguments=arguments, fresh=fresh, around=Surroundings(**around))[0]["status"]

    assert status("list", "conv*") == 0
    assert status("list", "--nonsense") == 2
    assert status("classify", "nowhere.jpg", "--engine", "eager") == 3
    assert status("list", "conv*", stdout="no reader") == 0


def test_files_of_a_case_are_removed_before_the_next(fuzz_servers: list[Server]) -> None:
    server = fuzz_servers[0]
    run(server, code="(Path('run/run.json').write_text('x'), Path('new').mkdir(), os.remove('list.txt'))")
    result, _ = run(server, arguments=("verify-run", "run"))
    assert result["status"] == 0
    assert run(server, code="os.stat('new') and 1 / 0")[0]["error"] == "FileNotFoundError"
    assert "error" not in run(server, code="os.stat('list.txt')")[0]


def test_a_reproducer_names_the_surroundings() -> None:
    around = Surroundings({"HOME": None, "COLUMNS": "1"}, stdin="closed", stdout="full", deleted=True, handles=24)
    case = Case(3, 4, arguments=("list", "a b"), around=around)
    assert case.shell("W") == (
        "cd W; mkdir gone && cd gone && rmdir ../gone; ulimit -n 24; "
        "env -u HOME COLUMNS=1 python -m tessella list 'a b' <&- >W/full"
    )
    assert reproducer(case).startswith("scripts/soak fuzz --seed 3 --case 4\n")
    assert dataclasses.replace(case, fresh=True).target == "list"
