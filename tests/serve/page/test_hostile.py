"""Names, labels and metadata that look like markup are shown as text, in every place of the page that shows them."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tessella.errors import CODES
from tessella.text import printable

from .browser import Visit
from .conftest import ROOT
from .markup import STRINGS
from .stand_in import Collection, StandIn

Open = Callable[..., Visit]
TEXTS = "(selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent)"
SHOWN = [printable(text) for text in STRINGS]  # without characters that change the text around them
HIDDEN = r"""(() => {
  const hidden = /(?![\u200c\u200d\n])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
  const texts = [...document.querySelectorAll("body *")].flatMap((node) => [
    ...[...node.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE).map(({ data }) => data),
    ...["title", "alt", "aria-label", "placeholder"].map((name) => node.getAttribute(name) ?? ""),
  ]);
  return texts.filter((text) => hidden.test(text));
})()"""
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
    assert opened.page.evaluate(TEXTS, "tessella-card h2 bdi") == SHOWN
    assert opened.page.evaluate(HIDDEN) == []
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
    assert opened.page.evaluate(titles, "tessella-tile .tile-name") == SHOWN
    assert opened.page.evaluate(titles, "tessella-tile .tile-label") == SHOWN
    assert opened.page.evaluate(HIDDEN) == []
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
    assert opened.page.evaluate(TEXTS, ".saved bdi") == SHOWN
    assert opened.page.evaluate(HIDDEN) == []
    assert opened.page.evaluate(INSERTED) == 1


@pytest.fixture(scope="module")
def disguised() -> Collection:
    """Rows whose names and labels would look like others, or move the text around them."""
    names = ["photo\u202egpj.exe", "\u05c0photo.jpg\u05c0.exe", "a\u2066b", "zero\u200bwidth.jpg", "two\nlines.jpg"]
    rows = [
        dict(
            row=i, key=f"{name}/{name}", label=f"{name} \u05d7\u05ea\u05d5\u05dc", probability=0.5, width=40, height=30
        )
        for i, name in enumerate(names)
    ]
    vectors = np.eye(len(names), 8, dtype=np.float32)
    points = np.random.default_rng(0).uniform(-1, 1, (len(names), 2)).astype(np.float32)
    return Collection(rows, vectors, points, [str(row["label"]) for row in rows], {})


def test_a_name_cannot_look_like_another_one(site: StandIn, visit: Open, disguised: Collection) -> None:
    site.collection = disguised
    opened = visit(f"{site.url}/#/gallery")
    names = [
        r"photo\u202egpj.exe", "\u05c0photo.jpg\u05c0.exe", r"a\u2066b", r"zero\u200bwidth.jpg", r"two\x0alines.jpg"
    ]  # fmt: skip
    assert opened.find("tessella-tile .tile-name").all_inner_texts() == names
    # the characters from left to right, by where the browser draws them
    drawn = opened.page.evaluate(
        """[...document.querySelectorAll("tessella-tile .tile-name")].map((node) => {
          const text = node.firstChild;
          const places = [...text.data].map((character, i) => {
            const range = document.createRange();
            range.setStart(text, i);
            range.setEnd(text, i + 1);
            return [range.getBoundingClientRect().left, character];
          });
          return places.sort(([a], [b]) => a - b).map(([, character]) => character).join("");
        })"""
    )
    assert [text[-4:] for text in drawn] == [".exe", ".exe", "066b", ".jpg", ".jpg"]
    opened.find("tessella-tile .tile-picture").first.click()
    opened.find(".query:visible").wait_for()
    facts = opened.find(".query-text > span").nth(1)
    assert facts.inner_text() == "photo\\u202egpj.exe \u05d7\u05ea\u05d5\u05dc 50 % · 40 × 30 pixels"
    assert opened.find(".query .path").inner_text() == r"photo\u202egpj.exe/photo\u202egpj.exe"
    assert opened.page.evaluate(HIDDEN) == []
    opened.button("Show all images").click()
    opened.find("tessella-filters .labels input").first.check()  # the class is sent as it is
    opened.page.get_by_text("1 of 5 images").wait_for()
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn]").wait_for()
    assert opened.find(".legend button[aria-pressed=true]").count() == 1
    opened.expect_messages("404")  # the images of these rows do not exist


def test_hidden_characters_are_shown_as_in_the_terminal(site: StandIn, visit: Open) -> None:
    codes = [
        *range(0x20, 0x100),
        0x34F,
        0x5D0,
        0x61C,
        *range(0x200B, 0x2010),
        *range(0x2028, 0x2030),
        *range(0x2060, 0x2070),
    ]
    texts = [chr(code) for code in (*codes, 0xD800, 0xDC80, 0xDCFF, 0xFE0F, 0xFEFF, 0x1F431, 0xE0041)]
    opened = visit(site.url)
    found = opened.page.evaluate(
        f"import('{opened.module('text.js')}').then(({{ printable }}) => {json.dumps(texts)}.map(printable))"
    )
    assert found == [printable(text) for text in texts]


def test_a_copied_request_has_no_hidden_characters_and_means_the_same(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    label = "photo\u202egpj.exe\u2066\ufeff\u00ad"
    request = dict(method="POST", url=f"{site.url}/v1/index/select", json=dict(filter=dict(label=[label]), name="a'b"))
    written = opened.page.evaluate(
        f"""Promise.all(['{opened.module("snippets.js")}'].map((path) => import(path))).then(([snippets]) => {{
          const request = {json.dumps(request)};
          return ["curlCommand", "pythonProgram", "jsonText"].map((name) => snippets[name](request, null, 2));
        }})"""
    )
    assert not any(character in text for text in written for character in label if not character.isascii())
    curl, program, answer = written
    assert json.loads(answer) == request
    body = shlex.split(curl.replace("\\\n", ""))[-1]
    assert json.loads(body) == request["json"]
    sent = re.search(r"json=(.*),\n\)", program)
    assert sent is not None
    assert ast.literal_eval(sent[1]) == request["json"]


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
