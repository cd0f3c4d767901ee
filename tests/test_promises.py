"""Every promise has a test, and docs/promises.md says what docs/promises.toml and the newest results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .promises import PAGE, csv_value, figure_of, json_value, newest, page_text, problems, read_promises
from .structure import ROOT

PROMISES = read_promises()
GOOD = dict(
    group="Proof",
    text="This page is up to date.",
    page="README.md",
    tests=["tests/test_promises.py::test_the_page_is_up_to_date"],
)


@pytest.mark.parametrize("promise", PROMISES, ids=[str(promise["text"])[:40] for promise in PROMISES])
def test_every_promise_has_tests_and_a_page(promise: dict[str, object]) -> None:
    assert list(problems(promise)) == []


def test_the_page_is_up_to_date() -> None:
    """If this fails, run scripts/promises."""
    assert PAGE.read_text() == page_text(PROMISES)


def test_promises_are_made_once_and_in_groups() -> None:
    assert len({promise["text"] for promise in PROMISES}) == len(PROMISES) >= 20
    groups = [promise["group"] for promise in PROMISES]
    assert len(list(dict.fromkeys(groups))) == sum(a != b for a, b in zip(groups, ["", *groups], strict=False))


def test_links_of_the_page_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).is_file(), link


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (dict(tests=[]), "has no test"),
        (dict(tests=["tests/test_promises.py::test_nothing"]), "there is no test"),
        (dict(tests=["tests/test_nowhere.py::test_nothing"]), "there is no test"),
        (dict(tests=["tests/test_promises.py"]), "there is no test"),
        (dict(page="docs/nowhere.md"), "there is no page"),
        (dict(soak="scripts/soak nothing"), "there is no trial"),
        (dict(figure=dict(file="nothing_*.json", text="{a}")), "figure cannot be read"),
        (dict(figure=dict(file="soak-run_*.json", text="{nothing}")), "figure cannot be read"),
        (dict(figure=dict(file="search_*.csv", text="{min:ms}", where=dict(way="none"))), "figure cannot be read"),
    ],
)
def test_a_promise_that_is_not_held_is_found(change: dict[str, object], problem: str) -> None:
    assert list(problems(GOOD)) == []
    assert any(problem in found for found in problems(GOOD | change))


def test_figures_are_those_of_the_newest_file(tmp_path: Path) -> None:
    for date, kills in (("2026-01-02", 3), ("2025-12-31", 4)):
        (tmp_path / f"soak-x_{date}.json").write_text(json.dumps(dict(kills=kills, rows=[dict(a=1), dict(a=2)])))
    assert newest("soak-x_*.json", tmp_path).name == "soak-x_2026-01-02.json"
    figure = figure_of(dict(figure=dict(file="soak-x_*", text="{kills} of {sum:rows.*.a}")), tmp_path)
    assert figure is not None
    assert figure[0] == "3 of 3"


def test_values_of_results() -> None:
    assert json_value(dict(a=dict(b=5)), "a.b") == 5
    assert json_value(dict(a=dict(b=5, c=7)), "sum:a.*") == 12
    rows = [dict(x="1.5", y=""), dict(x="2", y="")]
    assert (csv_value(rows, "min:x"), csv_value(rows, "max:x"), csv_value(rows, "count:")) == (1.5, 2.0, 2)
    with pytest.raises(LookupError):
        csv_value(rows, "max:y")


def test_the_script_is_for_everyone() -> None:
    assert (ROOT / "scripts" / "promises").stat().st_mode & 0o111
