"""A page of small pictures with a few words to each, as .png or as one .html file with nothing outside it."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..data.decode import ImageSource, Pixels, decode
from ..data.sources import Source
from ..errors import ImageError
from ..text import printable
from .manifest import MANIFEST, Manifest
from .output import check_output, write_bytes
from .report import contact_sheet, matplotlib, plain, thumbnail

SUFFIXES = (".png", ".html")
_BLANK = np.full((120, 160, 3), 255, np.uint8)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 1.5em; max-width: {width}px }}
main {{ display: flex; flex-wrap: wrap; gap: 1em }}
section {{ display: flex; flex-wrap: wrap; gap: 1em; border: 1px solid #bbb; padding: 0 .7em .7em }}
h2 {{ flex-basis: 100%; font-size: 14px; margin: .7em 0 0 }}
figure {{ margin: 0; width: 165px }}
figcaption {{ overflow-wrap: anywhere; font-size: 12px }}
</style></head>
<body><h1>{title}</h1><main>
{figures}
</main></body></html>
"""


@dataclass(frozen=True)
class Panel:
    """group: the title of what it belongs to, the same for neighbours that belong together; "" for none."""

    image: Source | ImageSource
    lines: tuple[str, ...]
    group: str = ""


def write_sheet(path: str | Path, panels: Sequence[Panel], title: str, columns: int = 5) -> None:
    """Draw the panels in order, `columns` in a row; an image that cannot be read has its error in its place.

    Panels of one group are in one box, or begin a new row in a .png. Raises UsageError: bad_argument for another
    suffix, missing_dependency; OutputError `output_failed`.
    """
    path = check_output(path, SUFFIXES)
    matplotlib()
    groups = [(title, [_picture(panel) for panel in some]) for title, some in groupby(panels, lambda one: one.group)]
    if path.suffix.lower() == ".png":
        texts: list[tuple[Pixels, str]] = []
        for title, shown in groups:
            titled = [title] if title else []
            texts += [(pixels, "\n".join(plain(line) for line in [*titled, *lines])) for pixels, lines in shown]
            texts += [(_BLANK, "")] * (-len(texts) % columns if title else 0)
        write_bytes(path, contact_sheet(texts, columns))
        return
    figures = []
    for title, shown in groups:
        figures += [f"<section><h2>{escape(title)}</h2>"] if title else []
        figures += [
            f'<figure><img alt="" src="data:image/png;base64,{b64encode(_png(pixels)).decode()}">'
            f"<figcaption>{'<br>'.join(escape(printable(line)) for line in lines)}</figcaption></figure>"
            for pixels, lines in shown
        ]
        figures += ["</section>"] if title else []
    page = _PAGE.format(title=escape(title), width=181 * columns, figures="\n".join(figures))
    write_bytes(path, page.encode("utf-8", "backslashreplace"))  # a file's name may be no text


def _picture(panel: Panel) -> tuple[Pixels, tuple[str, ...]]:
    try:
        image = panel.image
        return thumbnail(decode(image.read() if isinstance(image, Source) else image)), panel.lines
    except ImageError as error:
        return np.full((120, 160, 3), 225, np.uint8), (*panel.lines, f"no picture: {error.code}")


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    matplotlib("image").imsave(buffer, pixels, format="png", metadata={"Software": None})
    return buffer.getvalue()


def row_sources(out: Path, facts: Mapping[str, Any], rows: Sequence[int]) -> dict[int, Source]:
    """Where the images of some rows of a run are, by row: as it listed them. Raises UsageError `damaged_run`."""
    manifest = Manifest(out / MANIFEST, facts["manifest"])
    size = facts["shard_rows"]
    listed = {shard: manifest.sources(shard) for shard in {row // size for row in rows}}
    return {row: listed[row // size][row % size] for row in rows}
