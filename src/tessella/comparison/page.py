"""The page of a comparison: both models side by side, and the images whose answers changed, with pictures.

One HTML file that needs no server. It has no script; its Content Security Policy allows only its own style sheet, by
its hash, and pictures inside the file. All text from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator

from ..search.single_page import thumbnails
from ..text import count_of, html_text
from .answers import CHANGES, Change, ChangedAnswer
from .images import iter_sources_at
from .results import Comparison, sentences, side_rows

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1c1e; --line: #8885 }
:root { --good: #1a7f37; --bad: #c9302c; --other: #6e7781 }
@media (prefers-color-scheme: dark) {
  :root { --page: #1c1c1e; --text: #f2f2f7; --good: #57d27a; --bad: #ff8078; --other: #9aa4ad }
}
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1120px; margin: 1.5rem auto; padding: 0 1rem;
  background: var(--page); color: var(--text) }
h1 { font-size: 1.35rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
.verdict { font-size: 1.05rem; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right }
nav a { margin-right: 1rem }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .9rem }
figure { margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: 4px }
.changed figure { border-top: 4px solid var(--other) }
.gained figure { border-top: 4px solid var(--good) }
.lost figure { border-top: 4px solid var(--bad) }
figure img { display: block; width: 100%; height: 130px; object-fit: contain; image-rendering: auto }
.none { height: 130px; display: grid; place-items: center; color: var(--other) }
figcaption { font-size: .82rem; overflow-wrap: anywhere; margin-top: .4rem }
figcaption .key { color: var(--other) }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; margin: 0 }
dt { color: var(--other) } dd { margin: 0 }
"""
TITLES: dict[Change, str] = {
    "gained": "Gained: only the new model is right",
    "lost": "Lost: only the old model was right",
    "changed": "Other answers: neither is right",
}
UNLABELED = "Other answers"


def page_bytes(comparison: Comparison, pictures: int) -> bytes:
    """Return the HTML file, with at most `pictures` images of each kind of change."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = html_text(_title(comparison))
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{title} on {html_text(comparison.data)}</h1>",
        *_summary(comparison),
        *_classes(comparison),
        *_changes(comparison, pictures),
        "</main></body></html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "backslashreplace")


def _title(comparison: Comparison) -> str:
    """Return both models, with their precisions if it is one model in two of them."""
    old, new = comparison.old, comparison.new
    if old.model == new.model and old.precision != new.precision:
        return f"{old.model} in {old.precision} and in {new.precision}"
    return f"{old.model} and {new.model}"


def _summary(comparison: Comparison) -> Iterator[str]:
    first, *others = sentences(comparison)
    yield f'<p class="verdict">{html_text(first[0].upper() + first[1:])}.</p>'
    yield f"<p>{comparison.compared:,} of {count_of(comparison.images, 'image')} have a result of both models.</p>"
    yield "<ul>"
    for text in others:
        yield f"<li>{html_text(text[0].upper() + text[1:])}.</li>"
    for note in comparison.notes:  # as they are, because they may begin with the name of a model or a file
        yield f"<li>{html_text(note)}</li>"
    yield "</ul>"
    yield from _table(("figure", "old", "new", "change"), [row for row in side_rows(comparison) if row[0]])


def _classes(comparison: Comparison) -> Iterator[str]:
    if comparison.accuracy is None:
        return
    yield "<h2>Classes</h2>"
    rows = [
        (row.label, f"{row.images:,}", f"{100 * row.old:.1f} %", f"{100 * row.new:.1f} %", row.gained, row.lost)
        for row in sorted(comparison.accuracy.by_class, key=lambda row: row.lost - row.gained)
    ]
    yield from _table(("class", "images", "old accuracy", "new accuracy", "gained", "lost"), rows)


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    yield '<div class="scroll" tabindex="0"><table><thead><tr>'  # can be scrolled with the keyboard
    yield from (f'<th scope="col">{html_text(cell)}</th>' for cell in header)
    yield "</tr></thead><tbody>"
    for first, *others in rows:
        cells = "".join(f"<td>{html_text(cell)}</td>" for cell in others)
        yield f'<tr><th scope="row">{html_text(first)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _changes(comparison: Comparison, pictures: int) -> Iterator[str]:
    groups = {kind: [answer for answer in comparison.changed if answer.change == kind] for kind in CHANGES}
    shown = {kind: answers[:pictures] for kind, answers in groups.items()}
    rows = [answer.row for answers in shown.values() for answer in answers]
    images = thumbnails(iter_sources_at(comparison.sources, rows))
    for kind, answers in groups.items():
        if not answers:
            continue
        title = UNLABELED if comparison.accuracy is None else TITLES[kind]
        more = f" (the first {len(shown[kind]):,}; all are in changed.csv)" if len(shown[kind]) < len(answers) else ""
        yield f"<h2>{html_text(title)}: {count_of(len(answers), 'image')}{more}</h2>"
        yield f'<section class="images {kind}">'
        yield from (_figure(answer, next(images)) for answer in shown[kind])
        yield "</section>"


def _figure(answer: ChangedAnswer, picture: bytes | None) -> str:
    image = '<div class="none">no picture</div>'
    if picture is not None:
        image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    lines = [("true", answer.label)] if answer.label else []
    lines += [
        ("old", f"{answer.old} {100 * answer.old_probability:.1f} %"),
        ("new", f"{answer.new} {100 * answer.new_probability:.1f} %"),
    ]
    facts = "".join(f"<dt>{name}</dt><dd>{html_text(text)}</dd>" for name, text in lines)
    key = f'<div class="key">{html_text(answer.key)}</div>'
    return f"<figure>{image}<figcaption><dl>{facts}</dl>{key}</figcaption></figure>"
