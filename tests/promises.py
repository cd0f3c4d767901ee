"""Make docs/promises.md from docs/promises.toml; `scripts/promises` runs this.

With --check, nothing is written, and the exit status is 1 if the page is not what would be written.
"""

from __future__ import annotations

import argparse
import ast
import csv
import fnmatch
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .structure import ROOT

TABLE, PAGE, RESULTS = ROOT / "docs" / "promises.toml", ROOT / "docs" / "promises.md", ROOT / "benchmarks" / "results"
HEADER = """# Promises

What this project promises, the tests that hold it, and the newest figure. The tests run in CI; where a trial is named,
the test is a short version of it. `scripts/promises` makes this page from [promises.toml](promises.toml), and CI fails
if a promise has no test, if a test or a figure does not exist, or if this page is not up to date.
"""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")

Promise = Mapping[str, object]
Row = Mapping[str, str]


def read_promises(path: Path = TABLE) -> list[Promise]:
    """Return the promises in the order of the file."""
    promises: list[Promise] = tomllib.loads(path.read_text())["promise"]
    return promises


def problems(promise: Promise, root: Path = ROOT) -> Iterator[str]:
    """Yield what is wrong with a promise: no test, a test or page that does not exist, a figure that has no value."""
    name = str(promise["text"])
    tests = promise.get("tests")
    if not isinstance(tests, list) or not tests:
        yield f"{name}: it has no test"
        return
    for test in tests:
        file, _, function = test.partition("::")
        if not function or function not in test_names(root / file):
            yield f"{name}: there is no test {test}"
    page = root / str(promise["page"])
    if not page.is_file():
        yield f"{name}: there is no page {promise['page']}"
    soak = promise.get("soak")
    if soak is not None and str(soak).removeprefix("scripts/soak ") not in _trials(root):
        yield f"{name}: there is no trial {soak}"
    if "figure" in promise:
        try:
            figure_of(promise, root / "benchmarks" / "results")
        except (LookupError, ValueError) as error:
            yield f"{name}: its figure cannot be read: {error}"


def test_names(path: Path) -> set[str]:
    """Return the names of the test functions of a file; empty if it does not exist."""
    if not path.is_file():
        return set()
    nodes = ast.walk(ast.parse(path.read_text()))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in nodes if isinstance(node, kinds) and node.name.startswith("test_")}


def _trials(root: Path) -> set[str]:
    return set(re.findall(r"^  (\w+)\) trial=", (root / "scripts" / "soak").read_text(), re.M))


# --- figures ----------------------------------------------------------------------------------------------------------


def newest(pattern: str, folder: Path = RESULTS) -> Path:
    """Return the newest file of results by the date in its name. Raises LookupError if there is none."""
    found = [path for path in folder.iterdir() if fnmatch.fnmatch(path.name, pattern) and _DATE.search(path.name)]
    if not found:
        raise LookupError(f"no file in benchmarks/results is called {pattern}")
    return max(found, key=lambda path: (_DATE.findall(path.name)[-1], path.name))


def figure_of(promise: Promise, folder: Path = RESULTS) -> tuple[str, Path] | None:
    """Return the text of a figure and its file; None for a promise without one. Raises LookupError, ValueError."""
    figure = promise.get("figure")
    if not isinstance(figure, dict):
        return None
    path = newest(figure["file"], folder)
    if path.suffix == ".json":
        values = json.loads(path.read_text())
        return re.sub(r"{(.+?)}", lambda match: _shown(json_value(values, match[1])), figure["text"]), path
    with path.open(newline="") as file:
        wanted = figure.get("where", {})
        rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    return re.sub(r"{(.+?)}", lambda match: _shown(csv_value(rows, match[1])), figure["text"]), path


def json_value(values: object, field: str) -> object:
    """Return a.b of a JSON object, or the sum of all values at sum:a.*.b. Raises LookupError."""
    function, _, names = field.rpartition(":")
    found = [values]
    for name in names.split("."):
        if name == "*":
            found = [one for value in found for one in (value.values() if isinstance(value, dict) else _list(value))]
        else:
            found = [value[name] for value in found if isinstance(value, dict)]
    if not found:
        raise LookupError(f"there is no {field}")
    if function == "sum":
        return sum(one for one in found if isinstance(one, int | float))
    (value,) = found
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise LookupError(f"{str(value)[:40]} is no list")
    return value


def csv_value(rows: Sequence[Row], field: str) -> object:
    """Return min:column, max:column or count: of the rows. Raises LookupError if none has a value."""
    function, _, column = field.partition(":")
    if function == "count":
        return len(rows)
    numbers = [float(row[column]) for row in rows if row[column]]
    if not numbers:
        raise LookupError(f"no row has a value of {column}")
    return {"min": min, "max": max}[function](numbers)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


# --- the page ---------------------------------------------------------------------------------------------------------


def page_text(promises: Sequence[Promise]) -> str:
    """Return the contents of promises.md."""
    lines, group = [HEADER], ""
    for promise in promises:
        if promise["group"] != group:
            group = str(promise["group"])
            lines += [f"## {group}\n", "| promise | tests | newest figure |", "| --- | --- | --- |"]
        lines.append(_row(promise))
        if promise is promises[-1] or promises[promises.index(promise) + 1]["group"] != group:
            lines.append("")
    return "\n".join(lines)


def _row(promise: Promise) -> str:
    page = str(promise["page"])
    link = page.removeprefix("docs/") if page.startswith("docs/") else f"../{page}"
    tests = ["[`{2}`](../{0})".format(*test.partition("::")) for test in _tests(promise)]
    if "soak" in promise:
        tests.append(f"`{promise['soak']}`")
    shown = ""
    if (figure := figure_of(promise)) is not None:
        text, path = figure
        shown = f"{text} ([{_DATE.findall(path.name)[-1]}](../benchmarks/results/{path.name}))"
    return f"| [{promise['text']}]({link}) | {'<br>'.join(tests)} | {shown} |"


def _tests(promise: Promise) -> list[str]:
    tests = promise["tests"]
    assert isinstance(tests, list)
    return tests


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/promises", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    promises = read_promises()
    found = [problem for promise in promises for problem in problems(promise)]
    if not found:
        text = page_text(promises)
        if args.check and text != PAGE.read_text():
            found = ["docs/promises.md is not up to date; run scripts/promises"]
        elif not args.check:
            PAGE.write_text(text)
    print("\n".join(found) or f"{len(promises)} promises")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
