"""The report of an inspection: one HTML page with pictures, which needs nothing else.

It has no scripts, and its Content Security Policy forbids loading anything; all text is escaped. Pictures are in the
page itself. It follows the system's light or dark mode.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..plots.sheet import encode_png
from ..storage import create_output_folder, write_bytes
from ..text import count_of, encode_text, html_text
from .findings import Finding, label_of
from .kinds import KINDS, PAIRED
from .outcome import Inspection
from .pictures import class_colors, draw_map, map_points, thumbnails
from .settings import ProgressCallback

PAGE = "index.html"
SHOWN = 48  # findings of a kind that are shown with pictures
LISTED_CLASSES = 200  # in the table of classes and the legend of the map
_GRAY = 150  # of points without a class
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --ink: #1b1b1b; --soft: #5a5a5a; --line: #d3d3d3; --paper: #fff; --mark: #9b1c10 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ececec; --soft: #b0b0b0; --line: #444; --paper: #1c1c1e; --mark: #ff9c8f }} }}
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 1rem auto; padding: 0 1rem; max-width: 80rem; color: var(--ink);
  background: var(--paper) }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 .2rem }}
p {{ margin: .2rem 0; max-width: 60rem; overflow-wrap: anywhere }}
a {{ color: inherit }}
.soft {{ color: var(--soft) }}
table {{ border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; font-weight: normal; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere }}
td.number {{ text-align: right; white-space: nowrap }}
th[scope=col] {{ white-space: nowrap }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem; margin-top: .6rem }}
.pairs {{ grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)) }}
figure {{ margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .6rem }}
.sides {{ display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }}
.picture {{ height: 128px; display: flex; align-items: center; justify-content: center }}
.picture img {{ max-width: 100%; max-height: 128px; image-rendering: auto }}
figcaption, .side {{ font-size: 12px; overflow-wrap: anywhere }}
figcaption {{ color: var(--soft); margin-top: .3rem }}
.mark {{ color: var(--mark); font-weight: bold }}
.map {{ max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; margin: .5rem 0 }}
.legend svg {{ width: .8rem; height: .8rem; margin-right: .3rem }}
</style>
</head>
<body><main><h1>{title}</h1>
{body}
</main></body></html>
"""


def write_page(folder: Path, result: Inspection, *, progress: ProgressCallback | None = None) -> Path:
    """Write the report to FOLDER/index.html and return its path. Raises OutputError `output_failed`.

    progress: as in `thumbnails`.
    """
    create_output_folder(folder)
    groups: dict[str, list[Finding]] = {}
    for finding in result.findings:
        groups.setdefault(finding.kind, []).append(finding)
    shown = [finding for group in groups.values() for finding in group[:SHOWN]]
    indices = {i for finding in shown for i in (finding.index, finding.other) if i >= 0}
    pictures = thumbnails(result.images, indices, progress=progress)
    body = "\n".join(
        [
            *_summary(result, groups),
            *(line for kind, group in groups.items() for line in _section(result, kind, group, pictures)),
            *_map_section(result),
            *_class_table(result),
        ]
    )
    title = f"Inspection of {result.images.images.origin}"
    path = folder / PAGE
    write_bytes(path, encode_text(_PAGE.format(title=html_text(title), body=body)))
    return path


# --- text -------------------------------------------------------------------------------------------------------------


def _summary(result: Inspection, groups: Mapping[str, Sequence[Finding]]) -> Iterator[str]:
    images, labels = result.images, result.label_errors
    sizes = ", ".join(f"{split} {int((images.split == i).sum()):,}" for i, split in enumerate(images.splits) if split)
    splits = f" ({sizes})" if sizes else ""
    yield f"<p>{count_of(len(images), 'image')}{html_text(splits)}, {len(images.images.classes):,} classes; "
    yield f"embeddings of {html_text(result.model)}.</p>"
    for line in (*result.choices, *result.notes):
        yield f'<p class="soft">{html_text(line)}</p>'
    if labels is not None:
        yield (
            '<p class="soft">A linear classifier that was trained without the image predicts '
            f"{100 * labels.accuracy:.1f} % of the labels; by confident learning, about {labels.estimated:,} labels "
            "are wrong.</p>"
        )
    if not groups:
        yield "<p>Nothing was found.</p>"
        return
    yield "<table><tr><th scope=col>finding</th><th scope=col>number</th><th scope=col>strongest</th></tr>"
    for kind, group in groups.items():
        yield (
            f'<tr><th scope=row><a href="#{kind}">{html_text(KINDS[kind].title)}</a></th>'
            f'<td class="number">{len(group):,}</td><td>{html_text(group[0].key or group[0].label)}: '
            f"{html_text(group[0].reason)}</td></tr>"
        )
    yield "</table><p class=soft>Nothing was deleted. All findings, with reasons and scores, are in findings.csv.</p>"


def _section(result: Inspection, kind: str, group: Sequence[Finding], pictures: Mapping[int, bytes]) -> Iterator[str]:
    meaning = KINDS[kind]
    more = f", the {SHOWN} strongest are shown" if len(group) > SHOWN else ""
    yield f'<section id="{kind}"><h2>{html_text(meaning.title)}</h2>'
    yield f"<p>{html_text(meaning.text)} {count_of(len(group), 'finding')}{more}.</p>"
    yield f'<p class="soft">Score: {html_text(meaning.score)}.</p>'
    if kind == "small_class":
        yield "<table><tr><th scope=col>class</th><th scope=col>reason</th></tr>"
        for finding in group[:LISTED_CLASSES]:
            yield f"<tr><th scope=row>{html_text(finding.label)}</th><td>{html_text(finding.reason)}</td></tr>"
        yield "</table>"
    else:
        yield f'<div class="cards{" pairs" if kind in PAIRED else ""}">'
        for finding in group[:SHOWN]:
            yield _card(result, finding, pictures)
        yield "</div>"
    yield "</section>"


def _card(result: Inspection, finding: Finding, pictures: Mapping[int, bytes]) -> str:
    sides = [_side(result, finding.index, pictures)]
    if finding.other >= 0:
        sides.append(_side(result, finding.other, pictures))
    inside = f'<div class="sides">{"".join(sides)}</div>' if len(sides) > 1 else sides[0]
    return (
        f"<figure>{inside}<figcaption>{finding.score:.3g}: {html_text(finding.reason)}<br>"
        f'<span class="mark">{html_text(finding.suggestion)}</span></figcaption></figure>'
    )


def _side(result: Inspection, index: int, pictures: Mapping[int, bytes]) -> str:
    key, split = result.images.images.key(index), result.images.split_of(index)
    picture = '<span class="soft">no picture</span>'
    if index in pictures:
        picture = f'<img alt="{html_text(key)}" src="data:image/jpeg;base64,{b64encode(pictures[index]).decode()}">'
    facts = ", ".join(text for text in (split, label_of(result.images, index)) if text)
    return (
        f'<div class="side"><div class="picture">{picture}</div>{html_text(facts)}<br>'
        f'<span class="soft">{html_text(key)}</span></div>'
    )


# --- classes ----------------------------------------------------------------------------------------------------------


def _map_section(result: Inspection) -> Iterator[str]:
    rows = np.flatnonzero(result.measured.ok)
    classes, labels = result.images.images.classes, result.images.images.labels[rows]
    colors_K3 = class_colors(len(classes))
    gray = np.full((1, 3), _GRAY, np.uint8)
    colors = np.concatenate((colors_K3, gray)) if classes else gray
    marked = np.zeros(len(result.images), bool)
    marked[[finding.index for finding in result.findings if finding.kind in ("label_error", "outlier")]] = True
    picture = draw_map(map_points(result.measured.vectors[rows]), colors[labels], marked[rows])
    data = b64encode(encode_png(picture)).decode()
    yield "<section><h2>Map</h2><p>Each point is an image, near similar ones: the two main directions of the "
    yield "embeddings. Label errors and outliers have a dark frame.</p>"
    yield f'<img class="map" alt="Map of the embeddings, colored by class" src="data:image/png;base64,{data}">'
    yield '<ul class="legend">'
    for name, color in zip(classes[:LISTED_CLASSES], colors_K3.tolist(), strict=False):
        fill = "rgb({} {} {})".format(*color)
        yield f'<li><svg viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1" fill="{fill}"/></svg>'
        yield f"{html_text(name)}</li>"
    yield "</ul></section>"


def _class_table(result: Inspection) -> Iterator[str]:
    images = result.images
    if not images.is_labeled:
        return
    classes = images.images.classes
    counts = [
        np.bincount(images.images.labels[images.split == i], minlength=len(classes)) for i in range(len(images.splits))
    ]
    heads = "".join(f"<th scope=col>{html_text(split or 'images')}</th>" for split in images.splits)
    yield f"<section><h2>Classes</h2><table><tr><th scope=col>class</th>{heads}</tr>"
    for i, name in enumerate(classes[:LISTED_CLASSES]):
        cells = "".join(f'<td class="number">{int(count[i]):,}</td>' for count in counts)
        yield f"<tr><th scope=row>{html_text(name)}</th>{cells}</tr>"
    yield "</table>"
    if len(classes) > LISTED_CLASSES:
        yield f"<p>The first {LISTED_CLASSES} of {len(classes):,} classes.</p>"
    yield "</section>"
