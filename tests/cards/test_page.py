"""The page and the picture of the comparison."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
from pathlib import Path
from typing import Any

import pytest

from tessella.cards.comparison import MeasuredSpeed, compare_models
from tessella.cards.figure import _rises, check_points, draw_comparison
from tessella.cards.page import comparison_page
from tessella.errors import UsageError

ROWS = compare_models(measured={})


def test_the_policy_allows_the_script_and_the_style_sheet_of_the_page_and_nothing_else() -> None:
    page = comparison_page(ROWS)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    for tag, source in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page)
    assert set(re.findall(r'(?:src|href)="(https?://[^/"]+)', page)) == {"https://huggingface.co"}


def test_every_model_has_a_row_that_can_be_read_without_a_script() -> None:
    page = comparison_page(ROWS)
    assert page.count("<tr") == len(ROWS) + 1
    assert all(f'data-value="{row.name}"' in page for row in ROWS)
    assert "79.38" in page
    cells = {len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)}
    assert len(cells) == 1  # every row has a cell per column


def test_text_is_escaped() -> None:
    row = dataclasses.replace(ROWS[0], note="<img src=x onerror=alert(1)>", licence='"><b>', family="<i>")
    page = comparison_page([row], title="<s>")
    assert "<img" not in page
    assert '"><b>' not in page
    assert html.escape("<s>") in page


def test_speeds_of_this_machine_state_their_conditions() -> None:
    rows = compare_models(["convit"], measured={"convit_tiny": MeasuredSpeed(3.5, "openvino, on a test")})
    page = comparison_page(rows)
    assert "this machine: openvino, on a test." in page
    assert "images/s, this machine" in page
    assert "images/s, this machine" not in comparison_page(ROWS)
    assert "images/s, AMD EPYC" in comparison_page(rows, here="AMD EPYC")


def test_the_page_sorts_and_filters(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "models.html"
    path.write_text(comparison_page(ROWS))
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())

    def shown() -> list[str]:
        return [str(text) for text in page.locator("tbody tr:visible th").all_inner_texts()]

    assert len(shown()) == len(ROWS)
    page.get_by_role("button", name="ImageNet-1k").click()
    assert shown()[:2] == ["resmlp_big_24_224.fb_in22k_ft_in1k", "crossvit_18_dagger_408.in1k"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="ImageNet-1k").click()
    assert shown()[0] == "mixer_l16_224.goog_in21k_ft_in1k"  # unknown values stay at the end
    page.get_by_label("Family").select_option("ConViT")
    page.get_by_label("Accuracy from").fill("80")
    assert shown() == ["convit_small.fb_in1k", "convit_base.fb_in1k"]
    page.get_by_label("Parameters up to").fill("30")
    assert shown() == ["convit_small.fb_in1k"]
    assert page.locator("#count").inner_text() == f"1 of {len(ROWS)} models"
    assert errors == []
    page.close()


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"models{suffix}"
    assert draw_comparison(ROWS, "rtx-4090", path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in data


def test_a_picture_needs_two_models() -> None:
    pytest.importorskip("matplotlib")
    for machine, says in (("here", "tessella tune"), ("rtx-4090", "choose more models")):
        with pytest.raises(UsageError) as caught:
            check_points(ROWS[:1] if machine == "rtx-4090" else ROWS, machine)  # type: ignore[arg-type]
        assert caught.value.code == "bad_argument"
        assert says in caught.value.hint


def test_labels_do_not_cover_each_other() -> None:
    labels, corners = ["a long name", "another name", "third"], [(1.0, 1.0), (1.2, 1.02), (5.0, 1.0)]
    rises = _rises(labels, corners)
    assert rises[0] == rises[2] == 0
    assert 1.02 + rises[1] - 1.0 >= 0.16
