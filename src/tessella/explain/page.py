"""Explanations as HTML: a card for notebooks, and one page for many images.

The page is self-contained and has no scripts; its Content Security Policy forbids loading anything. All text is
escaped. It follows the system's light or dark mode, and its pictures wrap on narrow screens.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..data.decode import Pixels
from ..plots.sheet import encode_png
from ..storage import check_output, write_bytes
from ..text import encode_text, html_text
from .colors import ANCHORS, colorize, is_averaged, overlay, scale_of
from .facts import ExplanationFacts, MapPart, ScoreLine

_ARROWS = {"higher": "↑", "lower": "↓"}  # which values are better
SIDE = 320  # pixels of the longer side of an overlay
STYLE = """
.tessella-why { --ink: #1b1b1b; --soft: #5a5a5a; --line: #d3d3d3; --paper: #fff; --alarm: #9b1c10; color: var(--ink);
  background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 0 0 1rem;
  font: 14px/1.45 system-ui, sans-serif; max-width: 74rem; box-sizing: border-box }
.tessella-why h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere }
.tessella-why p { margin: .2rem 0; overflow-wrap: anywhere }
.tessella-why .soft { color: var(--soft) }
.tessella-why .columns { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: .8rem }
.tessella-why .pictures { flex: 3 1 22rem; display: grid; grid-template-columns: repeat(3, 1fr); gap: .8rem;
  align-items: start; max-width: 44rem }
.tessella-why figure { margin: 0 }
.tessella-why img { width: 100%; height: auto; display: block; image-rendering: pixelated }
.tessella-why .smooth { image-rendering: auto }
.tessella-why figcaption { color: var(--soft); margin-top: .25rem }
.tessella-why .scale { height: .7rem; background: linear-gradient(to right, GRADIENT) }
.tessella-why .ends { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums }
.tessella-why .facts { flex: 2 1 22rem; min-width: 0 }
.tessella-why table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; color: inherit }
.tessella-why th, .tessella-why td { text-align: left; font-weight: normal; padding: .2rem .7rem .2rem 0;
  border-bottom: 1px solid var(--line); background: none }
.tessella-why td { white-space: nowrap }
.tessella-why .verdict { font-weight: bold; font-size: 1.05rem }
.tessella-why .doubtful { color: var(--alarm) }
@media (max-width: 40rem) {
  .tessella-why td { white-space: normal }
  .tessella-why .pictures { grid-template-columns: 1fr 1fr }
  .tessella-why figure:nth-child(3) { grid-column: 1 / 3 } }
@media (prefers-color-scheme: dark) {
  .tessella-why { --ink: #ececec; --soft: #b0b0b0; --line: #444; --paper: #1c1c1e; --alarm: #ff9c8f } }
""".replace("GRADIENT", ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in ANCHORS))
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 1rem auto; padding: 0 1rem; max-width: 74rem }}
h1 {{ font-size: 1.4rem }}
{style}
</style></head>
<body><main><h1>{title}</h1>
{legend}
{cards}
</main></body></html>
"""
_OF_CLASS = "Yellow, enclosed by a solid line: supports the class. Blue, enclosed by a dashed line: contradicts it."
_OF_DIFFERENCE = (
    "Yellow, enclosed by a solid line: supports the class that is explained. Blue, enclosed by a dashed line: supports "
    "the class that it is compared with."
)
_OF_SCORES = (
    "Scores are compared with those of random maps that are as smooth (↑: higher is better, ↓: lower is better); a map "
    "that is not better is marked as not faithful here."
)


def card(facts: ExplanationFacts) -> str:
    """Return the HTML of one explanation, without its style: pictures, scores, and how they were made."""
    scale = scale_of(facts.map.values)
    rows, columns = facts.map.values.shape
    pixels, target = facts.pixels, html_text(facts.target.label)
    pictures = (
        (pixels, "the image as the model sees it", f"image, {pixels.shape[1]}×{pixels.shape[0]} px", ""),
        (colorize(facts.map.values, scale), f"attribution map for {target}", f"map, {columns}×{rows}", ""),
        (
            overlay(pixels, facts.map.values, SIDE),
            f"attribution map for {target} over the image",
            f"{_averaged(facts)}overlay",
            "smooth",
        ),
    )
    parts = (
        (colorize(part.values), f"{html_text(part.name)} of the map for {target}", _part_caption(part), "")
        for part in facts.parts
    )
    least, most = (f"−{scale:.3g}", f"+{scale:.3g}") if facts.map.values.any() else ("", "zero everywhere")
    versus = "" if facts.versus is None else f" and not {html_text(facts.versus.label)}"
    return (
        f'<article class="tessella-why"><h2>Why {target}{versus}?</h2>'
        f'<p class="soft">{html_text(facts.key)}</p><div class="columns">'
        f'<div class="pictures">{"".join(_figure(*picture) for picture in (*pictures, *parts))}</div>'
        f'<div class="facts">{_verdict(facts)}{_scores(facts.scores)}'
        f"<p>probabilities: {_predictions(facts)}</p>"
        f'<p class="soft">{html_text(facts.map.method)}: {html_text(facts.reason)}</p>'
        f'<p class="soft">{html_text(facts.model)}, fingerprint {html_text(facts.fingerprint)}</p>'
        f'<div class="scale"></div><div class="ends soft"><span>{least}</span><span>{html_text(facts.unit)}</span>'
        f"<span>{most}</span></div></div></div></article>"
    )


def failure_card(key: str, status: str, message: str) -> str:
    """Return the HTML of an image that could not be explained."""
    return (
        f'<article class="tessella-why"><h2>{html_text(key)}</h2>'
        f'<p class="doubtful">{html_text(status)}: {html_text(message)}</p></article>'
    )


def picture_card(title: str, key: str, picture: bytes, text: str) -> str:
    """Return the HTML of a PNG file with a title and a text."""
    return (
        f'<article class="tessella-why"><h2>{html_text(title)}</h2><p class="soft">{html_text(key)}</p>'
        f'<img class="smooth" alt="{html_text(text)}" src="data:image/png;base64,{b64encode(picture).decode()}">'
        f"<p>{html_text(text)}</p></article>"
    )


def legend(facts: ExplanationFacts) -> tuple[str, ...]:
    """Return what a reader of a card has to know, as texts: what the colors mean, and the scores if there are any."""
    colors = _OF_CLASS if facts.versus is None else _OF_DIFFERENCE
    return (colors, _OF_SCORES) if facts.scores else (colors,)


def write_page(path: str | Path, cards: Sequence[str], title: str, legend: Iterable[str] = ()) -> None:
    """Write a page with these cards, below the texts of the legend, to a .html file, atomically.

    Raises UsageError `bad_argument` for another suffix, OutputError `output_failed`.
    """
    texts = "\n".join(f"<p>{html_text(text)}</p>" for text in legend)
    page = _PAGE.format(title=html_text(title), style=STYLE, legend=texts, cards="\n".join(cards))
    write_bytes(check_output(path, [".html"]), encode_text(page))


def _part_caption(part: MapPart) -> str:
    share = part.share and f": {_minus(part.share)}"
    colors = f"colors to ±{scale_of(part.values):.3g}" if part.values.any() else "zero everywhere"
    return f"{html_text(part.name)}, {part.grid}{share}; {colors}"


def _minus(text: str) -> str:
    """Return a text of numbers with real minus signs."""
    return text.replace("-", "−")


def _averaged(facts: ExplanationFacts) -> str:
    return "averaged " if is_averaged(facts.map.values) else ""


def _figure(pixels: Pixels, alt: str, caption: str, kind: str) -> str:
    data = b64encode(encode_png(pixels)).decode()
    # alt texts are already escaped
    image = f'<img class="{kind}" alt="{alt}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _verdict(facts: ExplanationFacts) -> str:
    kind = "verdict doubtful" if facts.is_doubtful else "verdict"
    reason = f'<p class="soft">{html_text(facts.verdict_reason)}</p>' if facts.verdict_reason else ""
    return f'<p class="{kind}">{html_text(facts.verdict)}</p>{reason}'


def _scores(lines: Iterable[ScoreLine]) -> str:
    rows = "".join(
        f'<tr><th scope=row title="{line.goal} is better">{line.name} {_ARROWS[line.goal]}</th>'
        f"<td>{_minus(f'{line.value:.2f}')}</td><td>{_minus(f'{line.low:.2f} to {line.high:.2f}')}</td>"
        f"<td>{line.comparison}</td></tr>"
        for line in lines
    )
    names = ("score", "this map", "95 % of random maps", "result")
    head = f"<tr>{''.join(f'<th scope=col>{name}</th>' for name in names)}</tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _predictions(facts: ExplanationFacts) -> str:
    shares = (f"{html_text(p.label)} {100 * p.probability:.1f} %" for p in facts.predictions)
    return ", ".join(shares)
