"""Ratios, goals, picture and the README's section from a file of `scripts/bench cpu`: `scripts/bench report FILE.csv`.

With --readme, the section on speed in README.md is replaced; a test compares it with the file that it names.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessella.plots.figures import STYLES, new_figure, render
from tessella.text import count_of
from tessella.weights.costs import read_costs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "pictures" / "speed.png"
EAGER, TESSELLA = "eager", "Tessella"
STREAMS = "stock OpenVINO, streams"  # files before 2026-11-30 do not have it
BASELINES = ("stock OpenVINO", STREAMS, "stock ONNX Runtime", "torch.compile")
TITLES = {
    "convmixer_768_32": "ConvMixer-768/32", "convit_base": "ConViT-B", "gmixer_24_224": "gMixer-24",
    "mixer_b16_224": "Mixer-B/16", "crossvit_9_240": "CrossViT-9",
}  # fmt: skip
BEGIN, END = "<!-- speed: begin, from {} by scripts/bench report --readme -->", "<!-- speed: end -->"
SECTION = re.compile(r"<!-- speed: begin, from (\S+) by [^>]*-->\n(.*?)<!-- speed: end -->", re.S)
START_GOALS = {  # seconds
    "tessella --help": 0.25, "tessella list": 0.5, "tessella info convit_base.fb_in1k": 0.5,
    "tessella classify photo.jpg": 1.2, "tessella embed photo.jpg": 1.2, "tessella search, in a small run": 1.5,
}  # fmt: skip

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Read the rows of a file as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def gmacs_of(name: str) -> float:
    """Return the cost of a model in 10^9 multiply-adds per image, or 0 if it is not in the table of costs."""
    rows = read_costs()
    found = next((row for key, row in rows.items() if key.partition(".")[0] == name.partition(".")[0]), None)
    return found["macs"] / 1e9 if found else 0.0


# --- figures ----------------------------------------------------------------------------------------------------------


def models_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows if row["kind"] == "speed"))


def batches_of(rows: Sequence[Row]) -> list[int]:
    return list(dict.fromkeys(int(row["batch"]) for row in rows if row["kind"] == "speed"))


def best(rows: Iterable[Row], model: str, batch: int, wanted: Callable[[Row], bool]) -> Row | None:
    """Return the fastest row of a model and batch size that `wanted` accepts, or None."""
    found = [
        row
        for row in rows
        if row["kind"] == "speed"
        and row["value"]
        and (row["model"], row["batch"]) == (model, str(batch))
        and wanted(row)
    ]
    return max(found, key=lambda row: float(row["value"]), default=None)


def is_eager(row: Row) -> bool:
    return row["candidate"] == EAGER


def is_stock(row: Row) -> bool:
    """Return whether the row is the unchanged model in an engine that anyone can use, in float32."""
    return row["candidate"] in BASELINES and row["precision"] == "float32"


def is_default(row: Row) -> bool:
    return row["candidate"] == TESSELLA and row["precision"] == "float32"


def is_gated(row: Row) -> bool:
    """Return whether the row is Tessella in a precision that is exact or passed the gate."""
    return row["candidate"] == TESSELLA and (row["precision"] == "float32" or row["gate"].startswith("passed"))


def is_ours(row: Row) -> bool:
    return row["candidate"] == TESSELLA


RATIOS: dict[str, tuple[Callable[[Row], bool], Callable[[Row], bool]]] = {
    "default / eager PyTorch": (is_default, is_eager),
    "default / best stock float32 engine": (is_default, is_stock),
    "fastest precision that passes the gate / eager PyTorch": (is_gated, is_eager),
    "fastest precision, gate bypassed / eager PyTorch": (is_ours, is_eager),
}
GOALS = {  # (ratio, batch size): the least geometric mean, the least of each model
    ("default / eager PyTorch", 8): (1.30, 1.05),
    ("default / best stock float32 engine", 8): (1.1, 1.0),
    ("default / best stock float32 engine", 1): (1.1, 1.0),
    ("fastest precision that passes the gate / eager PyTorch", 8): (2.5, 0.0),
}


def ratio(rows: Sequence[Row], name: str, model: str, batch: int) -> float | None:
    over, under = (best(rows, model, batch, wanted) for wanted in RATIOS[name])
    return float(over["value"]) / float(under["value"]) if over and under else None


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Return None if a value is missing, because a mean over fewer models would not be comparable."""
    known = [value for value in values if value]
    return math.exp(sum(map(math.log, known)) / len(known)) if known and len(known) == len(values) else None


# --- text -------------------------------------------------------------------------------------------------------------


def table_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def figure(value: float) -> str:
    """Return a number with three significant digits and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{float(f'{value:.3g}'):g}"


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Yield lines of Markdown: conditions, speeds, ratios with their goals, starts."""
    yield conditions(rows)
    models = models_of(rows)
    for batch in batches_of(rows):
        here = [row for row in rows if row["kind"] == "speed" and row["batch"] == str(batch)]
        yield f"\nImages per second at batch size {batch}, median (share of the matrix product's rate):\n"
        yield table_line(["candidate", "precision", *models])
        yield table_line(["---", "---", *["--:"] * len(models)])
        for name, precision in dict.fromkeys((row["candidate"], row["precision"]) for row in here):
            same = [best_or_failed(here, model, name, precision) for model in models]
            yield table_line([name, precision, *map(cell, same)])
        yield f"\nRatios of medians at batch size {batch}:\n"
        yield table_line(["ratio", *models, "geometric mean", "goal: mean, each"])
        yield table_line(["---", *["--:"] * (len(models) + 2)])
        for name in RATIOS:
            values = [ratio(rows, name, model, batch) for model in models]
            yield table_line([name, *map(number, values), number(geometric_mean(values)), goal(name, batch, values)])
    yield from verdicts(rows)
    starts = [row for row in rows if row["kind"] in ("start", "size", "fresh")]
    if starts:
        yield "\n| | median | lowest | highest | n | goal |\n| --- | --: | --: | --: | --: | --: |"
    for row in starts:
        least = START_GOALS.get(row["candidate"])
        shown = [f"{row[key]} {row['unit']}" if row[key] else row["status"] for key in ("value", "lowest", "highest")]
        yield table_line([f"{row['candidate']}, {row['note']}", *shown, row["n"], f"< {least} s" if least else ""])


def goal(name: str, batch: int, values: Sequence[float | None]) -> str:
    """Return the goal of a ratio and whether it is met, or "" if there is none."""
    if (name, batch) not in GOALS:
        return ""
    mean, each = GOALS[name, batch]
    found = geometric_mean(values)
    met = found is not None and found >= mean and all(value is not None and value >= each for value in values)
    return f"{mean}, {each or '-'}: {'met' if met else 'missed'}"


def best_or_failed(rows: Sequence[Row], model: str, name: str, precision: str) -> Row | None:
    mine = (row for row in rows if (row["model"], row["candidate"], row["precision"]) == (model, name, precision))
    return next(mine, None)


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    if not row["value"]:
        return row["status"]
    share = f" ({100 * float(row['share_of_product']):.0f} %)" if row["share_of_product"] else ""
    return f"{figure(float(row['value']))}{share}"


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the verdicts of the gate and the reasons of failed candidates."""
    for row in rows:
        if row["kind"] == "speed" and (row["gate"] or row["status"] != "ok"):
            what = f"gate {row['gate']}" if row["gate"] else f"{row['status']}: {row['note']}"
            yield f"\n{row['model']}, batch {row['batch']}, {row['candidate']} {row['precision']}: {what}"


def conditions(rows: Sequence[Row]) -> str:
    first = next(row for row in rows if row["kind"] == "speed")
    rounds = [int(row["n"]) for row in rows if row["kind"] == "speed" and row["value"]]
    rates = [f"{row['precision']} {row['value']} GFLOP/s" for row in rows if row["kind"] == "product"]
    products = f"; product of large matrices: {', '.join(rates)}" if rates else ""
    threads = count_of(int(first["threads"]), "thread")
    return (
        f"{first['cpu']} ({first['cpu_class']}), {threads}, {first['versions']}, {first['date']}; "
        f"{min(rounds)} to {max(rounds)} alternating rounds{products}"
    )


def readme_section(rows: Sequence[Row]) -> str:
    """Return the text between the markers in README.md: speeds at batch size 8, ratios, and starts."""
    models, first = models_of(rows), next(row for row in rows if row["kind"] == "speed")
    batch = batches_of(rows)[0]
    lines = [
        f"Images per second at batch size {batch} on an {first['cpu']} (`{first['cpu_class']}`) with "
        f"{count_of(int(first['threads']), 'thread')}, random weights, medians of alternating rounds, each model in "
        "one run ([conditions](docs/guide/speed.md#measured)). `tessella tune MODEL` finds the fastest settings for "
        "your machine.",
        "",
        table_line(["", *(TITLES.get(model, model) for model in models)]),
        table_line(["---", *["--:"] * len(models)]),
    ]
    streams = "" if any(row["candidate"] == STREAMS for row in rows) else " with one stream"
    kinds = {
        "eager PyTorch, as in timm": is_eager,
        f"best of OpenVINO{streams}, ONNX Runtime, torch.compile; float32": is_stock,
        "**Tessella, default, float32**": is_default,
        "**Tessella, fastest precision that passes the gate**": is_gated,
    }
    for title, wanted in kinds.items():
        found = [best(rows, model, batch, wanted) for model in models]
        lines.append(table_line([title, *(figure(float(row["value"])) if row else "" for row in found)]))
    told = []
    for name in list(RATIOS)[:3]:
        means = [
            (size, geometric_mean([ratio(rows, name, model, size) for model in models])) for size in batches_of(rows)
        ]
        known = " and ".join(f"{number(mean)} (batch size {size})" for size, mean in means if mean)
        told.append(f"{name} {known or 'not measured'}")
    lines += [
        "",
        f"Geometric means of the ratios ([picture]({PICTURE.relative_to(ROOT).as_posix()})): {'; '.join(told)}.",
    ]
    starts = [row for row in rows if row["kind"] == "start" and row["note"] == "later" and row["value"]]
    if starts:
        short = [row for row in starts if "," not in row["candidate"]]
        seconds = ", ".join(f"`{row['candidate']}` {float(row['value']):.2f} s" for row in short)
        lines[-1] += f" Starts: {seconds}."
    return "\n".join(lines) + "\n"


def write_readme(path: Path) -> None:
    """Replace the section of README.md by that of the file at `path`, and draw its picture."""
    text, rows = README.read_text(), read(path)
    section = BEGIN.format(path.name) + "\n" + readme_section(rows) + END
    changed, count = SECTION.subn(lambda _: section, text)
    if count != 1:
        raise SystemExit(f"{README} has {count} sections between {BEGIN.format('FILE')} and {END}")
    README.write_text(changed)
    draw(rows, PICTURE)


# --- picture ----------------------------------------------------------------------------------------------------------

SERIES: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("torch.compile", lambda row: row["candidate"] == "torch.compile" and row["precision"] == "float32"),
    ("stock ONNX Runtime", lambda row: row["candidate"] == "stock ONNX Runtime"),
    ("stock OpenVINO", lambda row: row["candidate"] == "stock OpenVINO" and row["precision"] == "float32"),
    ("Tessella, default (float32)", is_default),
    ("Tessella, fastest that passes the gate", is_gated),
    ("Tessella, fastest, gate bypassed", is_ours),
)
GATED = "fastest precision that passes the gate / eager PyTorch"
GOAL_OF_SERIES = {"Tessella, default (float32)": "default / eager PyTorch", SERIES[4][0]: GATED}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the ratios to eager PyTorch, a panel per batch size, with the goals, to a .png or .svg file."""
    batches = batches_of(rows)
    drawing = new_figure(11, 1 + 4 * len(batches))
    panels = drawing.subplots(len(batches), 1, squeeze=False)[:, 0]
    for panel, batch in zip(panels, batches, strict=True):
        draw_panel(panel, rows, batch)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    drawing.suptitle(conditions(rows).partition(", tessella")[0] + "; ratios of medians in one run", fontsize=10)
    path.write_bytes(render(drawing, path.suffix.lower(), dpi=130))


def draw_panel(panel: Axes, rows: Sequence[Row], batch: int) -> None:
    """Draw a group of bars per model and one for the geometric mean; whiskers are the slowest and fastest rounds."""
    models = models_of(rows)
    labels = [*(TITLES.get(model, model) for model in models), "geometric mean"]
    width = 0.8 / len(SERIES)
    for index, (name, wanted) in enumerate(SERIES):
        color, hatch = STYLES[(1, 2, 6, 3, 5, 4)[index]][0], ("..", "//", "", "", "", "xx")[index]
        heights: list[float | None] = []
        for position, model in enumerate(models):
            x = position + (index - (len(SERIES) - 1) / 2) * width
            height = draw_bar(panel, rows, (model, batch), wanted, (x, width, color, hatch))
            heights.append(height)
            if height and name in GOAL_OF_SERIES and (each := GOALS.get((GOAL_OF_SERIES[name], batch), (0, 0))[1]):
                panel.plot([x - width / 2, x + width / 2], [each, each], color="black", linewidth=2)
        x = len(models) + (index - (len(SERIES) - 1) / 2) * width
        mean = geometric_mean(heights)
        panel.bar(x, mean or 0, width, label=name, color=color, hatch=hatch, edgecolor="white", linewidth=0)
        if mean:
            panel.annotate(f"{mean:.2f}", (x, mean), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        if (least := GOALS.get((GOAL_OF_SERIES.get(name, ""), batch), (0, 0))[0]) and mean:
            panel.plot([x - width / 2, x + width / 2], [least, least], color="black", linewidth=2)
    panel.plot([], [], color="black", linewidth=2, label="goal")
    panel.axhline(1, color="0.3", linewidth=1, zorder=0, label="eager PyTorch, float32")
    panel.set_xticks(range(len(labels)), labels)
    panel.set_ylabel("speed / eager PyTorch")
    panel.set_title(f"batch size {batch}", fontsize=10)
    panel.grid(axis="y", color="0.92")
    panel.set_axisbelow(True)


def draw_bar(
    panel: Axes,
    rows: Sequence[Row],
    group: tuple[str, int],
    wanted: Callable[[Row], bool],
    style: tuple[float, float, str, str],
) -> float | None:
    """Draw the bar of a candidate with its spread; return its height, or None if it or the eager model is missing."""
    row, base = best(rows, *group, wanted), best(rows, *group, is_eager)
    if row is None or base is None:
        return None
    x, width, color, hatch = style
    lowest, height, highest = (float(row[key]) / float(base["value"]) for key in ("lowest", "value", "highest"))
    spread = [[max(height - lowest, 0)], [max(highest - height, 0)]]
    panel.bar(x, height, width, color=color, hatch=hatch, edgecolor="white", linewidth=0)
    panel.errorbar(x, height, yerr=spread, color="0.25", linewidth=0.8, capsize=1.5)
    if wanted in (is_default, is_gated):
        panel.annotate(f"{height:.2f}", (x, highest), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    return height


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/bench report", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="a file that `scripts/bench cpu` wrote")
    parser.add_argument("--picture", type=Path, help=".png or .svg file to draw")
    parser.add_argument("--readme", action="store_true", help="write the section of README.md and its picture")
    args = parser.parse_args()
    rows = read(args.file)
    print(*summary(rows), sep="\n")
    if args.picture:
        draw(rows, args.picture)
    if args.readme:
        write_readme(args.file)


if __name__ == "__main__":
    main()
