"""Links to files of the repository that are not pages: they lead to a page with the highlighted file.

In the Markdown files, links are relative paths that also work on a code host. On the site, README.md, CHANGELOG.md and
CONTRIBUTING.md are pages (`ROOT_PAGES`), other text files get a page below `repository/`, folders get a list of their
files, and binary files are copied.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ROOT_PAGES = {"readme": "README.md", "changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
UNLISTED = ("log",)  # pages that are linked, but not in the navigation
SCHEME = "repository:"
LEXERS = {".py": "python", ".pyi": "python", ".json": "json", ".toml": "toml", ".md": "markdown", ".html": "html"}
SHOWN = (".csv", ".jsonl", ".toml", ".txt", ".png", ".svg", ".webp")  # other files that the page of a folder lists
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)\s]+(?=\))")
_FENCE = re.compile(r" *(```|~~~|:::)")


def source_of(page: str) -> Path:
    """Return the file that has the text of a page."""
    return ROOT / ROOT_PAGES[page] if page in ROOT_PAGES else DOCS / f"{page}.md"


def replace_links(text: str, page: str) -> str:
    """Return the text of a page with links for the site; blocks of code are left as they are."""
    lines, fence = [], ""
    for line in text.splitlines():
        if mark := _FENCE.match(line):
            fence = "" if mark[1] == fence else fence or mark[1]
        if not fence or fence == ":::":
            line = _LINK.sub(lambda match: site_link(match[0], page), line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def site_link(link: str, page: str) -> str:
    """Return what a relative link in the source of a page is on the site."""
    path, mark, anchor = link.partition("#")
    target = Path(os.path.normpath(source_of(page).parent / path))
    pages = {ROOT / file: DOCS / f"{name}.md" for name, file in ROOT_PAGES.items()}
    target = pages.get(target, target)
    if target.is_relative_to(DOCS):
        return os.path.relpath(target, (DOCS / page).parent) + mark + anchor
    if target.is_relative_to(ROOT) and target.exists():
        return f"{SCHEME}{target.relative_to(ROOT)}"
    return link  # MyST warns


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the source of a page."""
    text = source_of(page).read_text(encoding="utf-8") if page in ROOT_PAGES else source[0]
    header = "---\norphan: true\n---\n\n" if page in UNLISTED else ""
    source[0] = header + replace_links(text, page)
    if page in ROOT_PAGES:
        app.env.note_dependency(str(source_of(page)))


def resolve(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Point links to files of the repository to their pages."""
    if app.builder.format != "html":
        return
    for node in tree.findall(nodes.reference):
        uri = node.get("refuri", "")
        if uri.startswith(SCHEME):
            path = uri.removeprefix(SCHEME)
            node["internal"] = True
            node["refuri"] = relative_uri(app.builder.get_target_uri(page), f"repository/{path}{ending(ROOT / path)}")


def ending(path: Path) -> str:
    """Return what the name of a path's page ends with."""
    return "" if path.is_file() and is_binary(path) else ".html"


def is_binary(path: Path) -> bool:
    """Return whether a file is not UTF-8 text."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return True
    return False


def linked_paths(pages: list[str]) -> Iterator[Path]:
    """Yield the files and folders that pages link to, and the files in these folders."""
    found: set[str] = set()
    for page in pages:
        text = replace_links(source_of(page).read_text(encoding="utf-8"), page)
        found |= set(re.findall(rf"\]\({SCHEME}([^)\s]+)\)", text))
    for path in sorted(found):
        yield ROOT / path
        if (ROOT / path).is_dir():
            yield from listed(ROOT / path)


def listed(folder: Path) -> list[Path]:
    """Return the files of a folder that its page lists: texts and pictures, but no weights."""
    return sorted(path for path in folder.iterdir() if path.suffix in {*LEXERS, *SHOWN})


def collect_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the pages of linked files and folders, and copy binary files."""
    for path in dict.fromkeys(linked_paths(sorted(app.env.found_docs))):
        name = path.relative_to(ROOT)
        if path.is_dir():
            items = (f'<li><a href="{path.name}/{p.name}{ending(p)}">{escape(p.name)}</a></li>' for p in listed(path))
            yield f"repository/{name}", context(name, f"<ul>{''.join(items)}</ul>"), "page.html"
        elif is_binary(path):
            target = Path(app.outdir) / "repository" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        else:
            text = path.read_text(encoding="utf-8")
            block = app.builder.highlighter.highlight_block(text, LEXERS.get(path.suffix, "none"))  # type: ignore[attr-defined]
            yield f"repository/{name}", context(name, block), "page.html"


def context(name: Path, content: str) -> dict[str, Any]:
    """Return the context of the template for the page of a file or folder."""
    return {"title": str(name), "body": f"<section><h1>{escape(str(name))}</h1>{content}</section>"}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read_source)
    app.connect("doctree-resolved", resolve)
    app.connect("html-collect-pages", collect_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
