"""Contact sheets: thumbnails with captions, as a .png or a self-contained .html file."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from ..data.decode import ImageSource, Pixels, decode
from ..data.source import Source
from ..errors import ImageError
from ..storage import check_output, write_bytes
from ..text import html_text
from .figures import contact_sheet, draw_or_warn, plain, thumbnail

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
    """An image with its caption, as lines of text.

    group: title of the group; adjacent panels with the same title form one group. "" for no group.
    """

    image: Source | ImageSource
    lines: tuple[str, ...]
    group: str = ""


def write_sheet(path: str | Path, panels: Sequence[Panel], title: str, columns: int = 5) -> None:
    """Draw the panels in order, `columns` per row; an image that cannot be read is replaced by its error code.

    The panels of a group share a box in .html, and start a new row in .png. If the sheet cannot be drawn, a warning is
    logged and nothing is written. Raises UsageError `bad_argument` for other suffixes, OutputError `output_failed`.
    """
    path = check_output(path, SUFFIXES)
    if data := draw_or_warn(str(path), lambda: _draw(path, panels, title, columns)):
        write_bytes(path, data)


def _draw(path: Path, panels: Sequence[Panel], title: str, columns: int) -> bytes:
    grouped = groupby(panels, lambda panel: panel.group)
    groups = [(group, [_picture(panel) for panel in members]) for group, members in grouped]
    if path.suffix.lower() == ".png":
        texts: list[tuple[Pixels, str]] = []
        for group, pictures in groups:
            heading = [group] if group else []
            texts += [(pixels, "\n".join(plain(line) for line in [*heading, *lines])) for pixels, lines in pictures]
            texts += [(_BLANK, "")] * (-len(texts) % columns if group else 0)
        return contact_sheet(texts, columns)
    figures = []
    for group, pictures in groups:
        figures += [f"<section><h2>{html_text(group)}</h2>"] if group else []
        figures += [
            f'<figure><img alt="" src="data:image/png;base64,{b64encode(encode_png(pixels)).decode()}">'
            f"<figcaption>{'<br>'.join(map(html_text, lines))}</figcaption></figure>"
            for pixels, lines in pictures
        ]
        figures += ["</section>"] if group else []
    page = _PAGE.format(title=html_text(title), width=181 * columns, figures="\n".join(figures))
    return page.encode("utf-8", "backslashreplace")  # a file name may not be valid text


def _picture(panel: Panel) -> tuple[Pixels, tuple[str, ...]]:
    try:
        image = panel.image
        return thumbnail(decode(image.read() if isinstance(image, Source) else image)), panel.lines
    except ImageError as error:
        return np.full((120, 160, 3), 225, np.uint8), (*panel.lines, f"no picture: {error.code}")


def encode_png(pixels: Pixels) -> bytes:
    """Return pixels (H,W,3) uint8 as a PNG file; no drawing library is needed."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))  # 0: no filter
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),  # 8 bits, RGB
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
