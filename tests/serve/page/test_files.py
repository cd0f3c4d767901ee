"""The files of the page: served from a fixed table with their hash, strict headers, and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tessella.search.single_page import join_modules
from tessella.serve.routes import page

FILES = page.read_page()
SCRIPTS = {name: body.decode() for name, body in FILES.items() if name.endswith(".js")}


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI(redirect_slashes=False)
    app.include_router(page.router)
    return TestClient(app)


def assets() -> list[str]:
    return sorted(path for path in page.OPEN_PATHS if path != "/")


def test_every_file_has_its_type_and_headers(client: TestClient) -> None:
    types = set()
    for path in page.OPEN_PATHS:
        answer = client.get(path)
        assert answer.status_code == 200
        types.add(answer.headers["content-type"])
        assert answer.headers["content-security-policy"] == page.POLICY
        immutable = "no-cache" if path == "/" else "public, max-age=31536000, immutable"
        assert answer.headers["cache-control"] == immutable
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(answer.content))
        assert head.headers["etag"] == answer.headers["etag"]
    assert types == {f"{kind}; charset=utf-8" for kind in page.TYPES.values()}


def test_a_known_file_is_not_sent_again(client: TestClient) -> None:
    for path in ("/", assets()[0]):
        tag = client.get(path).headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            answer = client.get(path, headers={"if-none-match": known})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_the_policy_is_strict() -> None:
    rules = dict(rule.split(" ", 1) for rule in page.POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' blob: data:"
    assert "unsafe" not in page.POLICY


def test_no_other_path_is_answered(client: TestClient) -> None:
    folder = assets()[0].rsplit("/", 1)[0]
    for path in (
        "/page/",
        folder,
        f"{folder}/",
        "/page/main.js",
        f"{folder}/gallery.html",
        f"{folder}/local.js",
        f"{folder}/../../routes/page.py",
        f"{folder}/%2e%2e/settings.py",
        f"{folder}/main.js/",
        "/index.html",
    ):
        assert client.get(path).status_code == 404, path
    assert all("{" not in route.path for route in page.router.routes)  # type: ignore[attr-defined]
    assert client.post("/").status_code == 405


def test_paths_change_with_the_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**FILES, "style.css": FILES["style.css"] + b"\n"}
    monkeypatch.setattr(page, "read_page", lambda: changed)
    assert set(page.static_files()) & page.OPEN_PATHS == {"/"}
    assert page.static_files()["/"].tag != page.FILES["/"].tag
    # a file that the server does not offer changes no path
    monkeypatch.setattr(page, "read_page", lambda: {**FILES, "local.js": b""})
    assert set(page.static_files()) == page.OPEN_PATHS


class Links(HTMLParser):
    """Collects attributes, and fails for markup that a strict policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert not any(name.startswith("on") or name == "style" for name in names)
        self.targets += [value for name, value in attrs if name in ("href", "src") and value]
        self.inline += tag == "style" or (tag == "script" and "src" not in names)


def test_the_page_loads_only_its_own_files() -> None:
    links = Links()
    links.feed(page.FILES["/"].body.decode())
    assert links.inline == 0
    assert len(links.targets) == 3
    assert set(links.targets) <= page.OPEN_PATHS
    imported = {
        name for text in SCRIPTS.values() for name in re.findall(r'from "\./([\w.]+)"|import "\./([\w.]+)"', text)
    }
    assert {one or other for one, other in imported} <= set(FILES)
    for name, text in SCRIPTS.items():
        others = set(re.findall(r"https?://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not others, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            name
        )


def test_the_modules_can_be_joined_to_one() -> None:
    """The page without a server relies on it: no name is defined twice, and no import renames anything."""
    names: dict[str, str] = {}
    for module, text in SCRIPTS.items():
        assert not re.search(r"^import .*\bas\b|^export (default|\{|\*)", text, re.MULTILINE), module
        assert "</script" not in text.lower()
        assert "<!--" not in text
        if module == "main.js":
            continue
        for name in re.findall(r"^(?:export )?(?:async )?(?:const|let|function|class) (\w+)", text, re.MULTILINE):
            assert name not in names, f"{name} is defined in {names[name]} and {module}"
            names[name] = module
    joined = join_modules(SCRIPTS, "local_main.js")
    assert not re.search(r"^(import|export) ", joined, re.MULTILINE)
    for name in ("class Thumbnails", "class FileBackend", "class PointGrid"):
        assert joined.count(name) == 1
    assert "ServerBackend" not in joined
    assert joined.index("class State") < joined.index("class Tile") < joined.index("class Gallery")


def test_the_scripts_are_short() -> None:
    assert {name: text.count("\n") for name, text in SCRIPTS.items() if text.count("\n") > 500} == {}
