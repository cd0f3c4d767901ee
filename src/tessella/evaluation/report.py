"""What a person reads about a trained or evaluated model: pictures, and a folder with report.md and report.json.

Pictures are PNG bytes, drawn without pyplot, so that threads and a program's own figures are left alone.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.datasets import LabelledImages
from ..data.decode import Pixels, decode
from ..errors import ImageError, OutputError
from ..plots.figures import (
    SHEET,
    contact_sheet,
    curves,
    draw_or_warn,
    matplotlib,
    plain,
    render,
    thumbnail,
    warn_without_matplotlib,
)
from ..storage import make_folders, write_bytes
from ..text import escape as escape_name
from .metrics import Answers, Bin, Coverage, Ints, Metrics, as_dict, confused, coverage, worst_mistakes

log = logging.getLogger(__name__)

NAMED_CLASSES = 30  # a confusion matrix of no more has names and counts in it
CELLS = 250  # of a larger one's side: neighbouring classes share a cell
PAIRS = 25  # confused pairs beside a large matrix
LISTED_CLASSES = 50  # a table of more shows those of lowest F1
LISTED = 25  # rows of the other tables
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.75"  # people of all colour vision can tell them apart


class Unread(NamedTuple):
    """An image that gave no answer."""

    key: str
    code: str
    message: str


# --- pictures ---------------------------------------------------------------------------------------------------------


def confusion(counts_KK: Ints, classes: Sequence[str]) -> bytes:
    """Rows are true classes, columns predicted ones. Up to 30 classes have their names and counts; more are shown as
    a map, with the pairs that are confused most often beside it.
    """
    occurs = np.flatnonzero(counts_KK.any(0) | counts_KK.any(1)) if len(classes) > NAMED_CLASSES else slice(None)
    counts = counts_KK[occurs][:, occurs]
    names = np.array(classes, dtype=object)[occurs].tolist()
    return _small_confusion(counts, names) if len(names) <= NAMED_CLASSES else _large_confusion(counts, names)


def _small_confusion(counts_KK: Ints, classes: Sequence[str]) -> bytes:
    size = len(classes)
    side = 2.5 + 0.5 * size
    figure = matplotlib().Figure(figsize=(side + 0.8, side), layout="constrained")
    panel = figure.subplots()
    shares = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    image = panel.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    for true, predicted in np.argwhere(counts_KK):
        colour = "white" if shares[true, predicted] > 0.6 else "black"
        panel.text(predicted, true, f"{counts_KK[true, predicted]}", ha="center", va="center", fontsize=8, color=colour)
    names = [plain(name) for name in classes]
    panel.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    panel.set_yticks(range(size), names, fontsize=8)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    figure.colorbar(image, ax=panel, shrink=0.7, label="of the true class (%)")
    return render(figure)


def _large_confusion(counts_KK: Ints, classes: Sequence[str]) -> bytes:
    size = len(classes)
    each = math.ceil(size / CELLS)  # classes a cell
    starts = np.arange(0, size, each)
    cells = np.add.reduceat(np.add.reduceat(counts_KK, starts, 0), starts, 1)
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    figure = matplotlib().Figure(figsize=(15, 8), layout="constrained")
    panel, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    # a root shows what is rare: of a thousand classes a confusion is a point among many
    norm = matplotlib("colors").PowerNorm(0.4, 0, 100)
    image = panel.imshow(100 * shares, cmap="Blues", norm=norm, extent=(0, size, size, 0), interpolation="nearest")
    together = f", {each} classes a cell" if each > 1 else ""
    panel.set_xlabel(f"predicted class (index{together})")
    panel.set_ylabel("true class (index)")
    figure.colorbar(image, ax=panel, shrink=0.8, label="of the true class (%)")
    true, predicted = counts_KK.nonzero()
    wrong = true != predicted
    true, predicted = true[wrong], predicted[wrong]
    worst = np.argsort(-counts_KK[true, predicted], kind="stable")[:PAIRS]
    pairs = [f"{plain(classes[true[i]])} → {plain(classes[predicted[i]])}" for i in worst]
    bars.barh(range(len(pairs)), counts_KK[true[worst], predicted[worst]], color=BLUE)
    bars.set_yticks(range(len(pairs)), pairs, fontsize=8)
    bars.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
    bars.set_xlabel("images")
    bars.set_title("most often confused: true → predicted" if pairs else "no mistakes", fontsize=10)
    return render(figure)


def calibration(bins: Sequence[Bin], ece: float) -> bytes:
    """Reliability: accuracy against confidence above, how many images have such a confidence below."""
    figure = matplotlib().Figure(figsize=(5.5, 6.5), layout="constrained")
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [one for one in bins if one.images]
    width = bins[0].upper - bins[0].lower
    centres = [(one.lower + one.upper) / 2 for one in filled]
    panel.bar(centres, [one.accuracy for one in filled], width * 0.92, color=BLUE, label="accuracy")
    points = ([one.confidence for one in filled], [one.accuracy for one in filled])
    panel.plot(*points, "o", color=ORANGE, ms=5, clip_on=False, label="at mean confidence")
    panel.plot((0, 1), (0, 1), "--", color="black", linewidth=1, label="as accurate as confident")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_ylabel("accuracy")
    panel.set_title(f"calibration error {100 * ece:.2f} %", fontsize=10)
    panel.legend(loc="upper left", fontsize=8)
    below.bar(centres, [one.images for one in filled], width * 0.92, color=GREY)
    below.set_xlabel("confidence in the predicted class")
    below.set_ylabel("images")
    return render(figure)


def answered(curve: Coverage, thresholds: Sequence[float] = (0.5, 0.8, 0.95)) -> bytes:
    """Accuracy of the images that are answered, when those of low confidence are not; some thresholds are marked."""
    figure = matplotlib().Figure(figsize=(6, 4.5), layout="constrained")
    panel = figure.subplots()
    panel.plot(100 * curve.coverage, 100 * curve.accuracy, color=BLUE)
    for threshold, shape in zip(thresholds, "osD^vP", strict=False):
        share, accuracy = curve.at(threshold)
        if accuracy is not None:
            told = f"from {threshold:g}: {100 * share:.1f} % answered, {100 * accuracy:.1f} % correct"
            panel.plot(100 * share, 100 * accuracy, shape, color=ORANGE, label=told)
    if len(panel.lines) > 1:
        panel.legend(title="probability", title_fontsize=8, fontsize=8)
    panel.set_xlim(0, 102)
    panel.margins(y=0.12)
    panel.grid(color="0.92")
    panel.set_xlabel("images answered, the most confident first (%)")
    panel.set_ylabel("of these right (%)")
    return render(figure)


# --- the folder -------------------------------------------------------------------------------------------------------


def prepare_folder(folder: str | Path) -> Path:
    """Create the folder if it is missing; called before the work starts.

    Without matplotlib a warning says that there will be no pictures. Raises OutputError `output_failed`.
    """
    warn_without_matplotlib()
    return _made(Path(folder))


def _made(folder: Path) -> Path:
    try:
        make_folders(folder)
    except OSError as error:
        raise OutputError(
            "output_failed", f"the folder {str(folder)!r} could not be made: {error.strerror}", hint="name another one"
        ) from None
    return folder


def write_report(
    folder: str | Path,
    found: Metrics,
    *,
    title: str,
    command: str,
    conditions: Mapping[str, str],
    answers: Answers | None = None,
    images: LabelledImages | None = None,
    unread: Sequence[Unread] = (),
    history: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write report.md, report.json and the pictures; returns the path of report.md.

    A picture that cannot be drawn is left out, with a warning.

    title: of the page. command: to type for the same again. conditions: what else decides the figures, by name.
    answers: those that `found` was made of, for the coverage curve; with images, whose positions `answers.index` are,
    also for a contact sheet of the worst mistakes. unread: images that gave no answer. history: rows of the training
    log, see `curves`. notes: sentences under the title. Raises as `prepare_folder`.
    """
    folder = _made(Path(folder))
    draws: dict[str, Callable[[], bytes]] = {
        "confusion.png": lambda: confusion(found.confusion, found.classes),
        "calibration.png": lambda: calibration(found.bins, found.ece),
    }
    worst: list[dict[str, Any]] = []
    if answers is not None:
        draws["coverage.png"] = lambda: answered(coverage(answers))
        if images is not None:
            worst, sheet = _worst(answers, found.classes, images)
            if sheet:
                draws["mistakes.png"] = lambda: contact_sheet(sheet)
    if history:
        draws["curves.png"] = lambda: curves(history)
    facts = dict(
        title=title, command=command, conditions=dict(conditions), notes=list(notes), metrics=as_dict(found),
        mistakes=worst, unread=[one._asdict() for one in unread], history=[dict(row) for row in history],
    )  # fmt: skip
    write_bytes(folder / "report.json", json_bytes(facts))

    def write_page(pictures: Sequence[str]) -> None:
        page = _page(found, title, command, conditions, notes, worst, unread, pictures)
        write_bytes(folder / "report.md", text_bytes("\n".join(page)))

    write_page([])  # pictures come last: whatever becomes of them, the report is there
    drawn = []
    for name, draw in draws.items() if warn_without_matplotlib() else ():
        if data := draw_or_warn(f"{name} of the report", draw):
            write_bytes(folder / name, data)
            drawn.append(name)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier report
    write_page(drawn)
    return folder / "report.md"


def text_bytes(text: str) -> bytes:
    """UTF-8 of a text that may hold bytes of a file name that are not UTF-8: these are written as `\\xNN`."""
    return re.sub("[\ud800-\udfff]", lambda match: escape_name(match[0]), text).encode()


def json_bytes(facts: Mapping[str, Any]) -> bytes:
    """A JSON object with a line for each of its members; not finite numbers are null."""
    lines = (f"{json.dumps(key)}: {json.dumps(_finite(value), ensure_ascii=False)}" for key, value in facts.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "backslashreplace")  # \\udcNN is JSON's own escape


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _worst(
    answers: Answers, classes: Sequence[str], images: LabelledImages
) -> tuple[list[dict[str, Any]], list[tuple[Pixels, str]]]:
    """The most confident mistakes, and those of them to be shown with their pictures."""
    listed: list[dict[str, Any]] = []
    shown: list[tuple[Pixels, str]] = []
    most = SHEET[0] * SHEET[1]
    for row in worst_mistakes(answers)[: 3 * most]:  # more than are shown: a file may be gone meanwhile
        index = int(answers.index[row])
        true, predicted = classes[answers.label[row]], classes[answers.predicted[row]]
        confidence = float(answers.confidence[row])
        try:
            pixels = thumbnail(decode(images.read(index)))
        except ImageError:
            continue
        listed.append(dict(key=images.key(index), true=true, predicted=predicted, probability=confidence))
        shown.append((pixels, f"true: {plain(true)}\npredicted: {plain(predicted)}\n{100 * confidence:.1f} %"))
        if len(shown) == most:
            break
    return listed, shown


def rule(found: Metrics) -> str:
    """How images that could not be read are counted, as a sentence."""
    if not found.errors:
        return f"All {found.total:,} images were read."
    codes = ", ".join(f"{count:,} {code}" for code, count in found.errors.items())
    top5 = "" if found.top5_of_all is None else f" and top-5 {percent(found.top5_of_all)}"
    return (
        f"{found.total - found.count:,} of {found.total:,} images could not be read ({codes}) and are left out of the "
        f"figures; counted as wrong, top-1 is {percent(found.top1_of_all)}{top5}."
    )


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def cell(text: object) -> str:
    """Text in a Markdown table or line: neither it nor HTML sees anything in it."""
    line = escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)  # _ inside a word is only a letter


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines of a Markdown table; numbers are aligned to the right."""
    rows = [[*row] for row in rows]
    right = [all(isinstance(row[i], int | float) or str(row[i])[:1].isdigit() for row in rows if row[i] != "")
             for i in range(len(header))]  # fmt: skip
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('--:' if one else '---' for one in right)} |"
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |"
    yield ""


def _page(
    found: Metrics,
    title: str,
    command: str,
    conditions: Mapping[str, str],
    notes: Sequence[str],
    worst: Sequence[Mapping[str, Any]],
    unread: Sequence[Unread],
    pictures: Sequence[str],
) -> Iterator[str]:
    yield from (f"# {cell(title)}", "")
    for note in notes:
        yield from (cell(note), "")
    known = sum(row["count"] > 0 for row in found.per_class)
    figures = {
        "images": f"{found.count:,}",
        "classes": f"{len(found.classes):,}" + ("" if known == len(found.classes) else f", {known:,} with examples"),
        "top-1": percent(found.top1),
        "top-5": percent(found.top5),
        "loss (negative log-likelihood)": f"{found.loss:.4f}",
        "calibration error (15 bins)": percent(found.ece),
        "precision, mean of classes": percent(found.precision),
        "recall, mean of classes": percent(found.recall),
        "F1, mean of classes": percent(found.f1),
    }
    yield from table(("figure", "value"), ((name, value) for name, value in figures.items() if value))
    yield from (cell(rule(found)), "")
    yield from ("## Repeat", "", "```sh", command, "```", "")
    yield from table(("condition", "value"), conditions.items())
    yield from ("## Confusion", "")
    if "confusion.png" in pictures:
        yield from ("![Confusion matrix](confusion.png)", "")
    if pairs := confused(found, LISTED):
        rows = ((one["true"], one["predicted"], one["count"], percent(one["share"])) for one in pairs)
        yield from table(("true", "predicted", "images", "of the true class"), rows)
    yield from ("## Classes", "")
    listed = [row for row in found.per_class if row["count"]]
    if len(listed) > LISTED_CLASSES:
        yield from (f"The {LISTED_CLASSES} of lowest F1; the others are in report.json.", "")
        listed = sorted(listed, key=lambda row: row["f1"])[:LISTED_CLASSES]
    shares = ("precision", "recall", "f1")
    rows = ((row["label"], row["count"], *(percent(row[name]) for name in shares)) for row in listed)
    yield from table(("class", "images", "precision", "recall", "F1"), rows)
    if "calibration.png" in pictures:
        yield from ("## Calibration", "", "![Reliability diagram](calibration.png)", "")
    if "coverage.png" in pictures:
        yield from ("Answering only from some confidence on:", "", "![Coverage and accuracy](coverage.png)", "")
    if worst:
        yield from ("## Worst mistakes", "", "The most confident of them.", "")
        if "mistakes.png" in pictures:
            yield from ("![Worst mistakes](mistakes.png)", "")
        rows = ((one["key"], one["true"], one["predicted"], percent(one["probability"])) for one in worst)
        yield from table(("image", "true", "predicted", "probability"), rows)
    if "curves.png" in pictures:
        yield from ("## Training", "", "![Training curves](curves.png)", "")
    if unread:
        yield from ("## Images that could not be read", "")
        if len(unread) > LISTED:
            yield from (f"The first {LISTED}; all are in report.json.", "")
        yield from table(("image", "code", "message"), unread[:LISTED])
