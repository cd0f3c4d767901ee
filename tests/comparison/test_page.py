"""The files of a comparison: complete, escaped, without scripts, and with a picture of every image that is shown."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.comparison import Comparison, ComparisonSettings, compare, write_comparison
from tessella.comparison.page import STYLE
from tessella.errors import TessellaError
from tessella.predictor import Predictor

from ..evaluation.small_data import NAMES, folder_of, model_of
from .test_comparer import NEW, OLD

HOSTILE = ('<img src=x onerror="alert(1)">', "a&b'c\"d", "\u202eevil", "ant", "bee")


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    data = folder_of(tmp_path_factory.mktemp("page") / "data", NAMES, 12)
    return compare(OLD, NEW, data, ComparisonSettings(speed=False))


def test_the_title_tells_two_precisions_of_a_model_apart(compared: Comparison, tmp_path: Path) -> None:
    new = compared.old._replace(precision="int8")
    text = write_comparison(tmp_path, replace(compared, new=new), command="tessella compare a a b").read_text()
    assert f"<h1>{compared.old.model} in float32 and in int8 on " in text


def test_names_in_notes_are_not_changed(compared: Comparison, tmp_path: Path) -> None:
    notes = ("mixer_ti and local-dir:x have different classes", "skipped 1 file, such as a/README.md")
    text = write_comparison(tmp_path, replace(compared, notes=notes)).read_text()
    assert all(f"<li>{note}</li>" in text for note in notes)


def test_the_page_shows_every_changed_image(compared: Comparison, tmp_path: Path) -> None:
    page = Page(write_comparison(tmp_path, compared, command="tessella compare a b c").read_text())
    assert len(page.all("figure")) == len(compared.changed)
    pictures = [str(image["src"]) for image in page.all("img")]
    assert len(pictures) == len(compared.changed)
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures)
    for change in compared.changed:
        assert change.key in page.text
    assert compared.accuracy is not None
    assert f"Gained: only the new model is right: {compared.accuracy.gained} image" in page.text
    assert f"Lost: only the old model was right: {compared.accuracy.lost} image" in page.text


def test_pictures_belong_to_their_captions(compared: Comparison, tmp_path: Path) -> None:
    import base64

    text = write_comparison(tmp_path, compared).read_text()
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    for figure in figures[::3]:
        (change,) = (change for change in compared.changed if f">{change.key}<" in figure)
        data = base64.b64decode(re.findall(r"base64,([^\"]+)", figure)[0])
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32)), np.float32)
        original = np.asarray(Image.open(change.source).convert("RGB"), np.float32)
        others = [np.asarray(Image.open(other.source), np.float32) for other in compared.changed]
        distances = [np.abs(shown - other).mean() for other in others]
        assert np.abs(shown - original).mean() == min(distances)


def test_the_policy_allows_the_style_sheet_and_nothing_else(compared: Comparison, tmp_path: Path) -> None:
    import base64
    import hashlib

    page = Page(write_comparison(tmp_path, compared).read_text())
    (policy,) = (str(meta["content"]) for meta in page.all("meta") if "http-equiv" in meta)
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not page.all("script")
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", [name.replace("/", "") for name in HOSTILE], 8)
    models: list[Predictor] = []
    for seed in (0, 3):
        model: Any = model_of(HOSTILE)
        import torch

        with torch.no_grad():
            model.head.weight += 0.05 * torch.randn(
                model.head.weight.shape, generator=torch.Generator().manual_seed(seed)
            )
        models.append(Predictor(model, name=f"<b>{seed}</b>"))
    result = compare(models[0], models[1], data, ComparisonSettings(speed=False))
    assert result.changed
    page = Page(write_comparison(tmp_path / "out", result).read_text())
    assert not page.all("b")
    assert not any("onerror" in attributes for attributes in page.all("img"))
    assert "\u202e" not in page.text
    assert "<b>0</b>" in page.text


def test_few_pictures_but_all_rows(compared: Comparison, tmp_path: Path) -> None:
    page = Page(write_comparison(tmp_path, compared, pictures=1).read_text())
    kinds = {change.change for change in compared.changed}
    assert len(page.all("figure")) == len(kinds)
    with (tmp_path / "changed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [change.key for change in compared.changed]
    assert [row["change"] for row in rows] == [change.change for change in compared.changed]
    assert float(rows[0]["new_probability"]) == compared.changed[0].new_probability
    values = json.loads((tmp_path / "comparison.json").read_text())
    assert values["changed"] == len(rows)
    with pytest.raises(TessellaError):
        write_comparison(tmp_path, compared, pictures=-1)


def test_an_image_that_is_gone_has_no_picture(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", NAMES, 12)
    result = compare(OLD, NEW, data, ComparisonSettings(speed=False))
    gone = Path(result.changed[0].source)
    gone.unlink()
    page = Page(write_comparison(tmp_path / "out", result).read_text())
    assert len(page.all("img")) == len(result.changed) - 1
    assert page.text.count("no picture") == 1


def test_nothing_is_written_where_a_folder_is_impossible(compared: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write: Callable[..., Path] = write_comparison
    with pytest.raises(TessellaError) as caught:
        write(tmp_path / "file" / "out", compared)
    assert caught.value.code == "output_failed"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_in_a_browser(width: int, scheme: str, compared: Comparison, tmp_path: Path) -> None:
    """No error or violation of the policy, nothing wider than the window, and enough contrast in both modes."""
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("there is no chromium on this machine")
    first = compared.changed[0]._replace(key="x" * 300, label="W" * 200)
    long = replace(compared, changed=(first, *compared.changed[1:]), data="y" * 300)
    written = write_comparison(tmp_path, long)
    messages: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
        page.on("console", lambda message: messages.append(message.text))
        page.goto(written.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.evaluate("[...document.images].filter((image) => image.naturalWidth > 0).length")
        assert shown == len(compared.changed)
        border = page.evaluate("getComputedStyle(document.querySelector('figure')).borderTopWidth")
        assert border == "4px"  # the style sheet is in effect
        from axe_playwright_python.sync_playwright import Axe

        found = [violation["id"] for violation in Axe().run(page).response["violations"]]
        browser.close()
    assert found == []
    assert messages == []
