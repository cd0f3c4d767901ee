"""Pages: self-contained, escaped, without scripts, readable in a browser in both modes and on a phone."""

from __future__ import annotations

import base64
import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tessella.data.decode import decode
from tessella.errors import OutputError, UsageError
from tessella.explain.maps import AttributionMap
from tessella.explain.page import card, failure_card, legend, picture_card, write_page
from tessella.results import Prediction

from .made import DOG, make_branches, make_explanation, make_scores

HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x1b"
PICTURES = 3


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that tags are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_card_states_everything() -> None:
    shown = Tags(card(make_explanation(versus=DOG))).text
    for text in (
        "Why cat and not dog?",
        "photos/cat.jpg",
        "faithful",
        "deletion ↓",
        "0.50",
        "1.00 to 2.00",
        "better than random",
        "cat 75.0 %, dog 12.5 %",
        "exact: requested",
        "a_model, fingerprint 0123456789abcdef",
        "contribution to the difference of logits, 1.25",
    ):
        assert text in shown
    assert "not faithful here" not in shown


def test_numbers_have_real_minus_signs_and_columns_have_names() -> None:
    html = card(make_explanation())
    shown = Tags(html).text
    assert "−0.25" in shown
    assert "−0.50 to 0.50" in shown
    assert not re.search(r"-\d", shown)
    heads = re.findall("<th scope=col>(.*?)</th>", html)
    assert heads == ["score", "this map", "95 % of random maps", "result"]
    assert len(re.findall("<t[hd]", html.partition("</tr>")[2].partition("</tr>")[0])) == len(heads)
    assert "probabilities: cat 75.0 %, dog 12.5 %" in shown


def test_a_map_of_zeros_has_no_scale() -> None:
    zeros = AttributionMap(np.zeros((4, 4), np.float32), "occlusion", parts={"branch 0": np.zeros((2, 2), np.float32)})
    shown = Tags(card(make_explanation(map=zeros))).text
    assert "branch 0, 2×2; zero everywhere" in shown
    assert shown.endswith("zero everywhere")
    assert not re.search("[−+±]1", shown)


def test_a_map_that_is_no_better_than_random_is_marked() -> None:
    assert "not faithful here" in Tags(card(make_explanation(faithfulness=make_scores(faithful=False)))).text
    assert "not scored" in Tags(card(make_explanation(faithfulness=None))).text


def test_pictures_are_part_of_the_card_and_have_texts() -> None:
    images = [attributes for tag, attributes in Tags(card(make_explanation())).tags if tag == "img"]
    assert len(images) == PICTURES
    sources = [str(image["src"]) for image in images]
    assert all(image["alt"] for image in images)
    shapes = [decode(base64.b64decode(source.removeprefix("data:image/png;base64,"))).shape for source in sources]
    assert shapes == [(32, 40, 3), (4, 5, 3), (256, 320, 3)]


def test_the_parts_of_a_map_follow_with_their_grids_and_shares() -> None:
    html = Tags(card(make_explanation(map=make_branches())))
    images = [attributes for tag, attributes in html.tags if tag == "img"]
    assert [image["alt"] for image in images[PICTURES:]] == [
        "branch 0 of the map for cat",
        "branch 1 of the map for cat",
    ]
    parts = [decode(base64.b64decode(str(image["src"]).partition(",")[2])) for image in images[PICTURES:]]
    assert [part.shape for part in parts] == [(4, 6, 3), (2, 3, 3)]
    assert parts[0][1, 2].tolist() == [255, 243, 166]
    assert parts[1][1, 0].tolist() == [10, 40, 96]
    assert "branch 0, 6×4: 75 % of the logit; colors to ±0.75" in html.text
    assert "branch 1, 3×2: −25 % of the logit; colors to ±0.25" in html.text
    unweighted = dataclasses.replace(make_branches(), shares={})
    assert "branch 1, 3×2; colors to ±0.25" in Tags(card(make_explanation(map=unweighted))).text


def test_the_image_in_the_card_is_the_image() -> None:
    explanation = make_explanation()
    source = str(next(attributes["src"] for tag, attributes in Tags(card(explanation)).tags if tag == "img"))
    assert np.array_equal(decode(base64.b64decode(source.partition(",")[2])), explanation.pixels)


def hostile_page(path: Path) -> str:
    hostile = make_explanation(
        key=HOSTILE, model=HOSTILE, reason=HOSTILE, target=Prediction(0, HOSTILE, 0.5), versus=Prediction(1, HOSTILE, 0)
    )
    hostile_part = AttributionMap(
        np.eye(2, dtype=np.float32), "attention", parts={HOSTILE: np.eye(2, dtype=np.float32)}
    )
    cards = [
        card(make_explanation()),
        card(hostile),
        card(make_explanation(map=hostile_part)),
        failure_card(HOSTILE, "not_found", HOSTILE),
        picture_card(HOSTILE, HOSTILE, b"\x89PNG", HOSTILE),
    ]
    write_page(path, cards, HOSTILE)
    return path.read_text()


def test_names_cannot_become_html(tmp_path: Path) -> None:
    parsed = Tags(hostile_page(tmp_path / "page.html"))
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "link", "object", "form", "a", "base"}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in parsed.text
    assert "\x1b" not in parsed.text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    text = hostile_page(tmp_path / "page.html")
    parsed = Tags(text)
    policies = [attributes["content"] for tag, attributes in parsed.tags if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    sources = [str(attributes["src"]) for _, attributes in parsed.tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?:", text)


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [failure_card("caf\udce9.jpg", "not_found", "no")], "title")
    assert "caf\\xe9.jpg" in (tmp_path / "page.html").read_text("utf-8")


def test_the_legend_is_about_what_is_shown() -> None:
    whole = " ".join(legend(make_explanation()))
    assert "supports the class. Blue" in whole
    assert "random maps" in whole
    assert "random" not in " ".join(legend(make_explanation(faithfulness=None)))
    compared = " ".join(legend(make_explanation(versus=DOG)))
    assert "Blue, enclosed by a dashed line: supports the class that it is compared with" in compared
    assert "contradicts" not in compared


def test_the_legend_is_above_the_cards(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", ["<article>card</article>"], "title", [HOSTILE, "second"])
    text = (tmp_path / "page.html").read_text()
    assert text.index("second") < text.index("<article>")
    assert "alert(1)" in Tags(text).text
    assert "<script>" not in text


def test_pages_are_written_as_html_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_page(tmp_path / "page.txt", [], "title")
    with pytest.raises((OutputError, UsageError)):
        write_page(tmp_path / "nowhere" / "page.html", [], "title")


def test_notebooks_show_the_card_with_its_style() -> None:
    html = make_explanation(key=HOSTILE)._repr_html_()
    assert html.startswith("<style>")
    assert [tag for tag, _ in Tags(html).tags].count("img") == PICTURES


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_in_a_browser(width: int, scheme: str, tmp_path: Path) -> None:
    """No error or violation of the policy, nothing wider than the window, and enough contrast in both modes."""
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    long = make_explanation(key="x" * 300, target=Prediction(1, "W" * 200, 0.5))
    branches = make_explanation(map=make_branches())
    cards = [card(make_explanation()), card(long), card(branches), failure_card("y" * 300, "a", "b")]
    write_page(tmp_path / "page.html", cards, "T")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        complete = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        assert page.evaluate(complete)
        background = page.evaluate("getComputedStyle(document.querySelector('.tessella-why')).backgroundColor")
        assert background == ("rgb(28, 28, 30)" if scheme == "dark" else "rgb(255, 255, 255)")
        from axe_playwright_python.sync_playwright import Axe

        found = [violation["id"] for violation in Axe().run(page).response["violations"]]
        browser.close()
    assert found == []
    assert messages == []
