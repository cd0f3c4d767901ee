"""The documentation site is complete, builds without warnings, loads nothing from elsewhere, and works in a browser."""

from __future__ import annotations

import functools
import http.server
import importlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest

from tessella.cards import compare_models
from tessella.cli.program import COMMANDS
from tessella.errors import CODES
from tessella.search import index
from tessella.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
MOST_SAMPLED = 12  # pages of files of the repository that the browser opens


def extension(name: str) -> Any:
    """Return a module of docs/_ext."""
    folder = str(DOCS / "_ext")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Warnings are errors, such as a link to a page that does not exist."""
    out = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-d", str(out.with_name("site-cache"))]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@dataclass
class Page(HTMLParser):
    """What a page refers to. loaded: addresses that a browser loads. anchors: names that links can have."""

    loaded: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        if tag in LOADING and LOADING[tag] in values:
            self.loaded.append(values[LOADING[tag]])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


@functools.cache
def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def html_files(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


# --- the pages as files -----------------------------------------------------------------------------------------------


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    foreign = [
        f"{path.relative_to(site)}: {address}"
        for path in html_files(site)
        for address in read_page(path).loaded
        if urlsplit(address).netloc
    ]
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""", text)
        foreign += [f"{path.relative_to(site)}: {address}" for address in found]
    assert foreign == []


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    broken = []
    for path in html_files(site):
        for link in {*read_page(path).links, *read_page(path).loaded}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            exists = target.is_file()
            if exists and parts.fragment and target.suffix == ".html":
                exists = unquote(parts.fragment) in read_page(target).anchors
            if not exists:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_files_of_the_repository_are_shown(site: Path) -> None:
    assert "test_outputs_are_the_reference" in (site / "repository/tests/models/test_golden.py.html").read_text("utf-8")
    assert "repository/tests/models/test_golden.py.html" in read_page(site / "promises.html").links
    assert "../repository/benchmarks/results.html" in read_page(site / "guide/speed.html").links


def test_every_error_code_is_listed(site: Path) -> None:
    text = (site / "reference/errors.html").read_text("utf-8")
    anchors = read_page(site / "reference/errors.html").anchors
    assert [code for code in CODES if f"error-{code.replace('_', '-')}" not in anchors] == []
    assert [kind.text for kind in CODES.values() if kind.text.replace("'", "’") not in text.replace("'", "’")] == []


def test_every_command_is_described_once(site: Path) -> None:
    pages = (DOCS / "reference/cli").glob("*.md")
    found = [name for page in pages for name in re.findall(r":prog: tessella (\S+)", page.read_text("utf-8"))]
    assert sorted(found) == sorted(COMMANDS)
    text = (site / "reference/cli/collections.html").read_text("utf-8")
    assert "--shard-rows" in text
    assert "Rows per" in text or "rows per" in text


def test_every_public_name_is_described(site: Path) -> None:
    api = extension("public_api")
    packages = {
        path.parent.relative_to(ROOT / "src").as_posix().replace("/", ".")
        for path in (ROOT / "src").rglob("__init__.pyi")
    }
    assert packages == set(api.PACKAGES)
    anchors = {name for path in (site / "reference").rglob("*.html") for name in read_page(path).anchors}
    names = [f"{api.home_of(name)}.{name.name}" for package in api.PACKAGES for name in api.public_names(package)]
    assert [name for name in names if name not in anchors] == []
    assert len(names) > 150


def test_every_setting_of_a_training_run_is_listed(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "reference/settings.html").read_text("utf-8"))
    assert [item.name for item in fields(TrainConfig) if item.name not in text] == []
    assert "Peak learning rate. From 0 to 1,000." in text


def test_columns_of_stored_files_are_described() -> None:
    text = "".join((DOCS / name).read_text("utf-8") for name in ("reference/formats.md", "guide/collections.md"))
    described = set(re.findall(r"`(\w+)`", text))
    (shard, *_) = sorted((ROOT / "tests/stored/run-finished/shards").glob("*.parquet"))
    listing = ROOT / "tests/stored/run-finished/manifest.parquet"
    columns = {*pq.read_schema(shard).names, *pq.read_schema(listing).names, *index.COLUMNS, *index.ASSESSED}
    assert columns - described == set()


def test_the_comparison_has_every_checkpoint(site: Path) -> None:
    text = (site / "comparison-table.html").read_text("utf-8")
    assert [row.name for row in compare_models(measured={}) if f">{row.name}<" not in text] == []
    assert "2 cores of an AMD EPYC" in text
    assert "../comparison-table.html" in read_page(site / "reference/comparison.html").loaded


# --- the extensions ---------------------------------------------------------------------------------------------------


def test_docstrings_are_split_into_parameters_and_errors() -> None:
    split = extension("docstrings").split_docstring
    text = """Return rows.

    A paragraph: it is not a parameter.

    size, shape: in pixels; top: of classes.
        More of it. Raises UsageError `bad_argument` for
    others.
    """
    parts = split(text, {"size", "shape", "top"})
    assert parts.paragraphs == ["Return rows.", "A paragraph: it is not a parameter."]
    assert parts.entries == [(("size", "shape"), "in pixels"), (("top",), "of classes. More of it.")]
    assert parts.raises == "Raises UsageError `bad_argument` for others."


def test_docstrings_become_restructuredtext() -> None:
    to_rst = extension("docstrings").to_rst
    assert to_rst("*args, x_ and `a_b`") == "\\*args, x\\_ and `a_b`"
    assert to_rst("raises UsageError `busy`") == (
        "raises :py:exc:`UsageError <tessella.errors.UsageError>` :ref:`busy <error-busy>`"
    )
    assert to_rst("`UsageError` and errors.UsageError") == "`UsageError` and errors.UsageError"


def test_comments_describe_fields() -> None:
    entries = extension("docstrings").field_entries(TrainConfig)
    assert entries["lr"] == "peak learning rate"
    assert entries["keep_checkpoints"] == "number of newest checkpoints to keep, besides the best"


def test_links_out_of_the_docs_are_replaced() -> None:
    replace = extension("repository").replace_links
    text = "[a](../../README.md#speed) [b](../../tests/conftest.py) [c](speed.md) [d](https://e.org) [e](no-such.md)\n"
    assert replace(text, "guide/models") == (
        "[a](../readme.md#speed) [b](repository:tests/conftest.py) [c](speed.md) [d](https://e.org) [e](no-such.md)\n"
    )
    assert (
        replace("[a](docs/guide/speed.md) [b](CHANGELOG.md)\n", "readme") == "[a](guide/speed.md) [b](changelog.md)\n"
    )
    fenced = "```md\n[b](../../tests/conftest.py)\n```\n"
    assert replace(fenced, "guide/models") == fenced


# --- in a browser -----------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The address of a server of the site on the loopback interface."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


class Visitor:
    """A page in a browser context of its own, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address, self.problems = address, list[str]()
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self._note(message.type == "error", message.text))
        self.page.on("pageerror", lambda error: self._note(True, str(error)))
        self.page.on(
            "requestfailed",  # a request that ends because the page is left is none
            lambda request: self._note(request.failure != "net::ERR_ABORTED", f"failed: {request.url}"),
        )
        self.page.on("response", lambda answer: self._note(answer.status >= 400, f"{answer.status}: {answer.url}"))
        self.page.on("request", lambda request: self._note(not request.url.startswith((address, "data:")), request.url))

    def _note(self, wrong: bool, text: str) -> None:
        if wrong:
            self.problems.append(f"{self.page.url}: {text}")

    def open(self, name: str) -> None:
        """Open a page of the site."""
        self.page.goto(f"{self.address}/{name}")


@pytest.fixture
def visitor(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """A visitor, with the options of the browser context that a test asks for; nothing may go wrong."""
    opened = Visitor(browser, address, **getattr(request, "param", {}))
    yield opened
    opened.context.close()
    assert opened.problems == []


def names_of_pages(site: Path) -> list[str]:
    """Return the pages, with a sample of those of files of the repository."""
    names = [path.relative_to(site).as_posix() for path in html_files(site)]
    files = [name for name in names if name.startswith("repository/")]
    step = max(1, len(files) // MOST_SAMPLED)
    return [name for name in names if name not in files] + files[::step]


@pytest.mark.timeout(900)  # seconds for about a hundred pages
@pytest.mark.parametrize("visitor", [dict(viewport=dict(width=360, height=740))], indirect=True)
def test_no_page_is_wider_than_a_phone(visitor: Visitor, site: Path) -> None:
    wide = {}
    for name in names_of_pages(site):
        visitor.open(name)
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        if width > 360:
            wide[name] = width
    assert wide == {}


def test_the_search_finds_a_term(visitor: Visitor) -> None:
    visitor.open("index.html")
    visitor.page.get_by_placeholder("Search").first.fill("WebDataset")
    visitor.page.keyboard.press("Enter")
    visitor.page.locator("#search-results li a", has_text="Collections").first.wait_for()


def background(visitor: Visitor, selector: str) -> int:
    """Return the brightness of the background of an element, from 0 to 765."""
    script = "element => getComputedStyle(element).backgroundColor"
    color = visitor.page.locator(selector).first.evaluate(script)
    return sum(map(int, re.findall(r"\d+", color)[:3]))


@pytest.mark.parametrize("visitor", [dict(color_scheme="light"), dict(color_scheme="dark")], indirect=True)
def test_light_and_dark_follow_the_system_and_the_switch(visitor: Visitor) -> None:
    visitor.open("reference/comparison.html")
    frame = visitor.page.frame_locator("iframe").locator("body")

    def shades() -> tuple[bool, bool]:
        inner = frame.evaluate("element => getComputedStyle(element).backgroundColor")
        return background(visitor, "body") < 200, sum(map(int, re.findall(r"\d+", inner)[:3])) < 200

    first = shades()
    assert first[0] is first[1]
    visitor.page.evaluate("document.body.dataset.theme = 'dark'")
    assert shades() == (True, True)
    visitor.page.evaluate("document.body.dataset.theme = 'light'")
    assert shades() == (False, False)


def test_the_comparison_is_sorted_and_filtered(visitor: Visitor) -> None:
    visitor.open("reference/comparison.html")
    frame = visitor.page.frame_locator("iframe")
    frame.get_by_label("Text").fill("convit_tiny")
    frame.locator("#count", has_text="1 of").wait_for()


def test_the_index_of_the_search_has_every_page(site: Path) -> None:
    text = (site / "searchindex.js").read_text("utf-8")
    names = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))["docnames"]
    sources = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert set(names) == sources
