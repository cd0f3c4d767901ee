"""Names, labels and metadata that look like markup are shown as text, in every place of the page that shows them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tessella.errors import CODES

from .browser import Visit
from .conftest import ROOT
from .markup import STRINGS
from .stand_in import Collection, StandIn

Open = Callable[..., Visit]
TEXTS = "(selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent)"
INSERTED = (
    "document.querySelectorAll('script, iframe, object, embed, base, form[action], svg script, img[onerror]').length"
)


@pytest.fixture(scope="module")
def planted() -> Collection:
    """A row per string, which is its key and its label."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(len(STRINGS), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [dict(row=i, key=text, label=text, probability=0.5, width=40, height=30) for i, text in enumerate(STRINGS)]
    Image.new("RGB", (40, 30), "teal").save(buffer := io.BytesIO(), "JPEG")
    points = random.uniform(-1, 1, (len(STRINGS), 2)).astype(np.float32)
    return Collection(rows, vectors, points, list(STRINGS), dict.fromkeys(range(len(STRINGS)), buffer.getvalue()))


def test_there_are_enough_strings() -> None:
    assert len(STRINGS) >= 100


def test_names_of_files(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    image = (ROOT / "clothing" / "hat" / "0616.jpg").read_bytes()
    opened.add_files(*(dict(name=text, mimeType="image/jpeg", buffer=image) for text in STRINGS))
    opened.page.get_by_text(re.compile(f"^{len(STRINGS)} images · ")).first.wait_for(timeout=60_000)
    assert opened.page.evaluate(TEXTS, "tessella-card h2 bdi") == list(STRINGS)
    assert opened.page.evaluate(INSERTED) == 1  # the script of the page itself
    for i in range(0, len(STRINGS), 40):
        opened.find("tessella-card").nth(i).get_by_role("button", name=re.compile("^Show the request")).click()
        for tab in ("Python", "Answer (JSON)"):
            opened.page.get_by_role("tab", name=tab).click()
        opened.page.keyboard.press("Escape")
    assert opened.page.evaluate(INSERTED) == 1


def test_labels_and_keys_of_an_index(site: StandIn, visit: Open, planted: Collection) -> None:
    site.collection = planted
    site.heads.update(dict.fromkeys(STRINGS))
    opened = visit(f"{site.url}/#/gallery")
    for shown in range(60, len(STRINGS), 60):
        opened.find("tessella-tile").nth(shown - 1).wait_for()
        opened.button("Show more").click()
    opened.find("tessella-tile").nth(len(STRINGS) - 1).wait_for()
    titles = "(selector) => [...document.querySelectorAll(selector)].map((node) => node.title)"
    assert opened.page.evaluate(titles, "tessella-tile .tile-name") == list(STRINGS)
    assert opened.page.evaluate(titles, "tessella-tile .tile-label") == list(STRINGS)
    opened.find("tessella-filters .labels input").first.check()
    opened.page.get_by_text(f"1 of {len(STRINGS)} images").wait_for()
    opened.find("tessella-tile .tile-picture").first.click()
    opened.find(".query:visible").wait_for()
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn]").wait_for()
    opened.button("Select view").click()
    opened.find(".region tessella-tile").first.wait_for()
    opened.page.get_by_role("link", name="Teach").click()
    opened.find("tessella-teach .tile-marks button").first.click()
    assert opened.page.evaluate(TEXTS, ".saved bdi") == list(STRINGS)
    assert opened.page.evaluate(INSERTED) == 1


def test_metadata_of_an_image(site: StandIn, visit: Open) -> None:
    image = Image.open(ROOT / "examples" / "cat.jpg")
    exif = image.getexif()
    for tag in (0x010E, 0x013B, 0x8298):  # description, artist, copyright
        exif[tag] = "<img src=x onerror=alert(1)>"
    image.save(buffer := io.BytesIO(), "JPEG", exif=exif, comment=b"<script>alert(1)</script>")
    opened = visit(site.url)
    opened.add_files(dict(name="cat.jpg", mimeType="image/jpeg", buffer=buffer.getvalue()))
    opened.find("tessella-card[data-status=done]").wait_for()
    assert opened.page.evaluate(INSERTED) == 1


def test_an_svg_file_runs_nothing(site: StandIn, visit: Open) -> None:
    data = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>parent.planted.push(1)</script></svg>'
    opened = visit(site.url)
    opened.add_files(dict(name="drawing.svg", mimeType="image/svg+xml", buffer=data))
    opened.find("tessella-card[data-status=failed]").get_by_text("not an image format").wait_for()


def test_every_code_has_words(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    words = opened.page.evaluate(f"import('{opened.module('text.js')}').then((text) => text.MESSAGES)")
    images = {code for code, kind in CODES.items() if kind.exit_code == 3}
    server = set(list(CODES)[list(CODES).index("cache_failed") + 1 :])  # the codes of the server are the last ones
    assert len(server) > 5
    server -= {"cannot_listen", "promise_broken"}  # of the command line
    assert {*images, *server, "bad_argument", "unknown_model", "damaged_run", "busy"} <= set(words)
    assert len(set(words.values())) > len(words) - 8
    assert all(text.endswith(".") and text[0].isupper() for text in words.values())
    assert opened.page.evaluate(f"import('{opened.module('text.js')}').then((text) => text.messageOf('toString'))") == (
        "Something went wrong."
    )
