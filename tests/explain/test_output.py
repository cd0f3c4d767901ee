"""Pages of several results: the legend is about what is on the page, and states nothing that is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella.explain import FailedExplanation, LinkExplanation, PreparedImage, open_output
from tessella.explain.link_figures import about_links
from tessella.explain.links import Links
from tessella.explain.output import Result

from .made import DOG, make_explanation

SUPPORTS, CONTRADICTS, COMPARED = "supports the class.", "contradicts it", "supports the class that it is compared with"
EXACT_LINKS, MEASURED_LINKS = about_links(exact=True), about_links(exact=False)
SCORED = "a map that is not better is marked"
TEXTS = (SUPPORTS, CONTRADICTS, COMPARED, SCORED, EXACT_LINKS, MEASURED_LINKS)


def make_links(*, exact: bool = True) -> LinkExplanation:
    rng = np.random.default_rng(0)
    a, b = (
        PreparedImage(name, rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), torch.zeros(1, 3, 32, 32))
        for name in ("a.jpg", "b.jpg")
    )
    values, map_a, map_b = rng.normal(size=(16, 16)), rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    links = Links(values, 0.5, map_a, map_b, None if exact else 0.25)
    return LinkExplanation(a, b, links, "a_model", "0123456789abcdef")


def write(path: Path, *results: Result) -> str:
    output = open_output(str(path), count=len(results), title="Title")
    for result in results:
        output.add(result)
    assert output.close() == [path]
    return path.read_text()


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (make_explanation(), {SUPPORTS, CONTRADICTS, SCORED}),
        (make_explanation(faithfulness=None), {SUPPORTS, CONTRADICTS}),
        (make_explanation(versus=DOG), {COMPARED, SCORED}),
        (make_explanation(versus=DOG, faithfulness=None), {COMPARED}),
        (make_links(), {EXACT_LINKS}),
        (make_links(exact=False), {MEASURED_LINKS}),
        (FailedExplanation("a.jpg", "not_found", "there is no file"), set()),
    ],
)
def test_the_legend_of_a_page_is_about_its_results(result: Result, expected: set[str], tmp_path: Path) -> None:
    shown = write(tmp_path / "page.html", result)
    assert {text for text in TEXTS if text in shown} == expected


def test_every_text_is_in_the_legend_once(tmp_path: Path) -> None:
    scored = make_explanation()
    results = (dataclasses.replace(scored, faithfulness=None), scored, scored)
    shown = write(tmp_path / "page.html", *results)
    assert [shown.count(text) for text in (SUPPORTS, CONTRADICTS, SCORED)] == [1, 1, 1]
