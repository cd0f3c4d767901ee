"""A small kit for the figures of the model families: boxes, wires and patch grids as SVG, in one look.

Units are those of the view box, `WIDTH` across. A figure has a card as its background, and its colors follow the
color scheme of the reader's system, so that it is legible on any page. Text is checked against the room that it has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, SCALE = 440, 1.25  # view box; pixels per unit at full size: at phone width the figure shrinks to the column
NORMAL, SMALL = 13.5, 11.5  # font sizes
NARROW, WIDE = frozenset("ijltfrI.,:;'()| -"), frozenset("mwMWGOQ@%&+=")  # characters
ROW, GAP = 29, 13  # height of a box, distance between boxes

Point = tuple[float, float]
COLORS = {  # name: (light, dark)
    "card": ("#fbfbfd", "#1b1f27"),
    "edge": ("#d9dde5", "#39404d"),
    "text": ("#1d2430", "#e8ebf1"),
    "soft": ("#566072", "#a4afc0"),
    "wire": ("#7b8698", "#8b96a8"),
    "panel": ("#f1f3f8", "#232935"),
    "plain": ("#ffffff", "#2d3440"),
    "plain-edge": ("#b9c1ce", "#566072"),
    "space": ("#d5e7fb", "#173f66"),
    "space-edge": ("#2f7fd1", "#5aa9f5"),
    "channel": ("#fde3c8", "#5c3a15"),
    "channel-edge": ("#d9822b", "#f0a35a"),
    "gate": ("#e6dcf8", "#3d2f63"),
    "gate-edge": ("#8257c9", "#b294ea"),
}
KINDS = ("plain", "space", "channel", "gate")
LEGEND = (("space", "mixes positions"), ("channel", "mixes channels"), ("plain", "per value or norm"))
_TIMES = re.compile(r"(^| )x (?=\w)")  # between numbers or letters


def _style() -> str:
    def rules(which: int) -> str:
        color = {name: pair[which] for name, pair in COLORS.items()}
        boxes = "".join(f".{kind}{{fill:{color[kind]};stroke:{color[f'{kind}-edge']}}}" for kind in KINDS)
        heats = "".join(
            f".heat-{kind}{{fill:{color['soft' if kind == 'plain' else f'{kind}-edge']}}}" for kind in KINDS
        )
        return (
            f".card{{fill:{color['card']};stroke:{color['edge']}}}.panel{{fill:{color['panel']};stroke:{color['edge']}}}"
            f"text{{fill:{color['text']}}}.soft{{fill:{color['soft']}}}"
            f".wire{{stroke:{color['wire']};fill:none}}.head{{fill:{color['wire']}}}.sum{{fill:{color['card']};"
            f"stroke:{color['wire']}}}.cell{{fill:{color['plain']};stroke:{color['edge']}}}{boxes}{heats}"
        )

    fonts = "'Helvetica Neue',Helvetica,Arial,'Liberation Sans',sans-serif"
    return (
        f"<style>text{{font:{NORMAL}px {fonts};text-anchor:middle;dominant-baseline:central}}"
        f".small,.soft{{font-size:{SMALL}px}}.title{{font-size:16px;font-weight:600;text-anchor:start}}"
        f".left{{text-anchor:start}}.wire,.sum{{stroke-width:1.5}}.plain,.space,.channel,.gate{{stroke-width:1.2}}"
        f".cell{{stroke-width:.7}}{rules(0)}@media(prefers-color-scheme:dark){{{rules(1)}}}</style>"
    )


def text_width(text: str, size: float) -> float:
    """Return the width of a line in Helvetica or Arial, estimated from four kinds of characters."""
    ems = (0.28 if c in NARROW else 0.8 if c in WIDE else 0.68 if c.isupper() else 0.54 for c in text)
    return size * sum(ems)


def number(value: float) -> str:
    """Return a coordinate without needless digits."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass
class Drawing:
    """A figure. title: its heading; description: for people who cannot see it."""

    title: str
    description: str
    height: float = 0.0
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, style: str = "", room: float = 0.0) -> None:
        """Add a line of text, centered or, with the style "left", starting at x. room: the width it must not exceed."""
        size = SMALL if "small" in style or "soft" in style else NORMAL
        if room and text_width(text, size) > room:
            raise ValueError(f"{text!r} is too long for {room:g} units")
        text = _TIMES.sub(lambda match: f"{match[1]}\u00d7 ", text)
        shown = f' class="{style}"' if style else ""
        self.parts.append(f'<text x="{number(x)}" y="{number(y)}"{shown}>{escape(text, quote=False)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, lines: Sequence[str] = ()) -> None:
        """Add a box with one line of text, or with two, the second one small. kind: "both" mixes both."""
        self.rect(x, y, width, height, "space" if kind == "both" else kind, radius=6)
        if kind == "both":  # the right half, over the left one
            x2, right, bottom, r = x + width / 2, x + width, y + height, 6
            path = f"M{number(x2)},{number(y)}H{number(right - r)}a{r},{r} 0 0 1 {r},{r}V{number(bottom - r)}"
            path += f"a{r},{r} 0 0 1 -{r},{r}H{number(x2)}"
            self.parts.append(f'<path class="channel" d="{path}"/>')
        for i, line in enumerate(lines):
            offset = (i - (len(lines) - 1) / 2) * 15
            self.text(x + width / 2, y + height / 2 + offset, line, "small" if i else "", room=width - 4)

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, *, radius: float = 0, opacity: float = 1
    ) -> None:
        """Add a rectangle."""
        extra = f' rx="{number(radius)}"' if radius else ""
        extra += f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        self.parts.append(f'<rect class="{style}" {place}{extra}/>')

    def wire(self, *points: Point, arrow: bool = True) -> None:
        """Add a line through points, with an arrowhead at its end."""
        path = "L".join(f"{number(x)},{number(y)}" for x, y in points)
        head = ' marker-end="url(#head)"' if arrow else ""
        self.parts.append(f'<path class="wire" d="M{path}"{head}/>')

    def operator(self, x: float, y: float, sign: str) -> None:
        """Add a circle with a plus or a times sign."""
        self.parts.append(f'<circle class="sum" cx="{number(x)}" cy="{number(y)}" r="8.5"/>')
        d = 4.5 if sign == "+" else 3.4
        lines = ((-d, 0, d, 0), (0, -d, 0, d)) if sign == "+" else ((-d, -d, d, d), (-d, d, d, -d))
        for x1, y1, x2, y2 in lines:
            self.wire((x + x1, y + y1), (x + x2, y + y2), arrow=False)

    def scene(self, x: float, y: float, side: float, patches: int) -> None:
        """Add a small picture that is cut into patches x patches."""
        s = side / 100
        shapes = (
            '<rect width="100" height="100" fill="#a9d3f2"/><circle cx="72" cy="27" r="14" fill="#ffd35c"/>'
            '<path d="M0 70L32 34 58 64 74 48 100 76V100H0Z" fill="#6d8f9e"/>'
            '<path d="M0 80Q30 62 58 78T100 74V100H0Z" fill="#5d9c59"/>'
        )
        step = 100 / patches
        grid = "".join(f"M{number(i * step)} 0V100M0 {number(i * step)}H100" for i in range(1, patches))
        self.parts.append(
            f'<g transform="translate({number(x)} {number(y)}) scale({s:.3f})">{shapes}'
            f'<path d="{grid}" stroke="#fff" stroke-width="{1.1 / s:.1f}" stroke-opacity=".8" fill="none"/></g>'
        )

    def heat_map(self, x: float, y: float, side: float, values: Sequence[Sequence[float]], kind: str = "space") -> None:
        """Add a grid of cells whose color is the stronger, the higher their values (0 to 1) are."""
        cell = side / len(values)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                place = x + column * cell, y + row * cell, cell, cell
                self.rect(*place, "cell")
                if value >= 0.02:
                    self.rect(*place, f"heat-{kind}", opacity=min(value, 0.99))

    def matrix(
        self, x: float, y: float, shape: tuple[int, int], cell: float, kind: str, marked: Iterable[Point]
    ) -> None:
        """Add a matrix of rows x columns with marked entries (row, column)."""
        chosen = set(marked)
        for row in range(shape[0]):
            for column in range(shape[1]):
                place = x + column * cell, y + row * cell, cell, cell
                self.rect(*place, "cell")
                if (row, column) in chosen:
                    self.rect(*place, f"heat-{kind}", opacity=0.85)

    def svg(self) -> str:
        """Return the figure as an SVG file, with the legend at its foot."""
        legend = Drawing("", "")
        x, y = 18.0, self.height + 22
        for kind, text in LEGEND:
            legend.rect(x, self.height + 15.5, 13, 13, kind, radius=3)
            legend.text(x + 18, y, text, "soft left")
            x += 18 + text_width(text, SMALL) + 16
        legend.operator(x + 6, y, "+")
        legend.text(x + 20, y, "residual", "soft left")
        height = self.height + 42
        size = f'width="{round(WIDTH * SCALE)}" height="{round(height * SCALE)}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {number(height)}" role="img">'
            f"<title>{escape(self.title, quote=False)}</title>"
            f"<desc>{escape(self.description, quote=False)}</desc>{_style()}"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5.5" markerHeight="5.5" '
            'orient="auto"><path class="head" d="M0 0L8 4 0 8Z"/></marker></defs>'
            f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{number(height - 1)}" rx="10"/>'
            f'<text class="title" x="18" y="24">{escape(self.title, quote=False)}</text>\n'
            + "\n".join([*self.parts, *legend.parts])
            + "\n</svg>\n"
        )


@dataclass
class Column:
    """Boxes from top to bottom, connected by wires. x: the middle; y: the end of the last box."""

    drawing: Drawing
    x: float
    width: float
    y: float
    started: bool = False
    forks: list[float] = field(default_factory=list)
    panel: tuple[float, int, str] = (0.0, 0, "")

    def advance(self, gap: float = GAP) -> None:
        """Draw the wire to the next item."""
        if self.started:
            self.drawing.wire((self.x, self.y), (self.x, self.y + gap - 1))
            self.y += gap
        self.started = True

    def box(self, kind: str, *lines: str, gap: float = GAP) -> None:
        """Add a box."""
        self.advance(gap)
        height = ROW + 13 * (len(lines) - 1)
        self.drawing.box(self.x - self.width / 2, self.y, self.width, height, kind, lines)
        self.y += height

    def scene(self, side: float, patches: int, note: Sequence[str]) -> None:
        """Add the picture, with lines of text to its right."""
        self.drawing.scene(self.x - self.width / 2, self.y, side, patches)
        for i, line in enumerate(note):
            offset = (i - (len(note) - 1) / 2) * 15
            left = self.x - self.width / 2 + side + 8
            self.drawing.text(left, self.y + side / 2 + offset, line, "soft left", self.width - side)
        middle = self.x - self.width / 2 + side / 2
        self.drawing.wire((middle, self.y + side), (middle, self.y + side + GAP - 1))
        self.y += side + GAP
        self.started = False

    def fork(self) -> None:
        """Start a residual connection at the wire that follows."""
        self.drawing.wire((self.x, self.y), (self.x, self.y + 9), arrow=False)
        self.y += 9
        self.forks.append(self.y)

    def join(self) -> None:
        """End the residual connection in a sum."""
        top = self.forks.pop()
        middle = self.y + GAP + 7
        self.drawing.wire((self.x, self.y), (self.x, middle - 9.5))
        self.drawing.operator(self.x, middle, "+")
        left = self.x - self.width / 2 - 12
        self.drawing.wire((self.x, top), (left, top), (left, middle), (self.x - 9.5, middle))
        self.y = middle + 8.5

    def begin(self, label: str) -> None:
        """Start the panel of a block that is repeated."""
        self.drawing.wire((self.x, self.y), (self.x, self.y + 24), arrow=False)
        self.panel = self.y + 8, len(self.drawing.parts) - 1, label
        self.y += 24

    def end(self, left: float = 23, right: float = 11) -> None:
        """End the panel. left, right: its margins."""
        top, index, label = self.panel
        start, parts = self.x - self.width / 2 - left, self.drawing.parts
        before = len(parts)
        self.drawing.rect(start, top, self.width + left + right, self.y + 9 - top, "panel", radius=9)
        self.drawing.text(start + 9, top + 11, label, "small left")
        background = parts[before:]
        del parts[before:]
        parts[index:index] = background
        self.drawing.wire((self.x, self.y), (self.x, self.y + 9), arrow=False)
        self.y += 9
