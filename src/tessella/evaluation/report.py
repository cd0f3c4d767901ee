"""Write a report on a trained or evaluated model: a folder with report.md, report.json and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict

from ..data.datasets import LabelledImages
from ..data.decode import Pixels, decode
from ..errors import ImageError
from ..plots.figures import SHEET, contact_sheet, curves, draw_or_warn, plain, thumbnail, warn_without_matplotlib
from ..storage import create_output_folder, remove_file, write_bytes
from ..text import encode_text
from .figures import calibration, confusion, coverage_curve
from .markdown import counts_text, escape_line, json_bytes, percent, table
from .metrics import Answers, Metrics, as_dict, confused, coverage, worst_mistakes

LISTED_CLASSES = 50  # longer tables of classes show those with the lowest F1
LISTED = 25  # rows of the other tables


class FailedImage(NamedTuple):
    """An image that could not be read, with the error."""

    key: str
    code: str
    message: str


class Mistake(TypedDict):
    """A misclassified image."""

    key: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class ReportHeader:
    """The title of a report, and information about the measurement.

    command: the command line that reproduces the report. conditions: everything else that the
    figures depend on, by name. notes: sentences below the title.
    """

    title: str
    command: str
    conditions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


# --- the folder -------------------------------------------------------------------------------------------------------


def prepare_folder(folder: str | Path) -> Path:
    """Create the folder, and warn if matplotlib is not installed; to be called before the work starts.

    Raises OutputError `output_failed`.
    """
    warn_without_matplotlib()
    return create_output_folder(folder)


def write_report(
    folder: str | Path,
    measured: Metrics,
    header: ReportHeader,
    *,
    answers: Answers | None = None,
    images: LabelledImages | None = None,
    failed: Sequence[FailedImage] = (),
    history: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write report.md, report.json and the figures; return the path of report.md.

    answers: the answers that `measured` was computed from, for the coverage curve. images: the data that
    `answers.index` refers to, for a contact sheet of the worst mistakes. failed: images that could not be read.
    history: rows of the training log, see `plots.figures.curves`.

    A figure that cannot be drawn is omitted, with a warning. Raises the errors of `prepare_folder`.
    """
    folder = create_output_folder(folder)
    draws: dict[str, Callable[[], bytes]] = {
        "confusion.png": lambda: confusion(measured.confusion, measured.classes),
        "calibration.png": lambda: calibration(measured.bins, measured.ece),
    }
    mistakes: list[Mistake] = []
    if answers is not None:
        draws["coverage.png"] = lambda: coverage_curve(coverage(answers))
        if images is not None:
            mistakes, pictures = _worst_mistakes(answers, measured.classes, images)
            if pictures:
                draws["mistakes.png"] = lambda: contact_sheet(pictures)
    if history:
        draws["curves.png"] = lambda: curves(history)
    facts = dict(
        title=header.title,
        command=header.command,
        conditions=dict(header.conditions),
        notes=list(header.notes),
        metrics=as_dict(measured),
        mistakes=mistakes,
        unread=[image._asdict() for image in failed],
        history=[dict(row) for row in history],
    )
    write_bytes(folder / "report.json", json_bytes(facts))

    def write_page(figures: Sequence[str]) -> None:
        page = _page(header, measured, mistakes, failed, figures)
        write_bytes(folder / "report.md", encode_text("\n".join(page)))

    write_page([])  # first without figures, so that the report exists even if drawing them fails
    write_page(_write_figures(folder, draws))
    return folder / "report.md"


def _write_figures(folder: Path, draws: Mapping[str, Callable[[], bytes]]) -> list[str]:
    """Write the figures that can be drawn, delete old versions of those that cannot, and return the names."""
    drawn = []
    for name, draw in draws.items() if warn_without_matplotlib() else ():
        if data := draw_or_warn(f"{name} of the report", draw):
            write_bytes(folder / name, data)
            drawn.append(name)
        else:
            remove_file(folder / name)
    return drawn


def _worst_mistakes(
    answers: Answers, classes: Sequence[str], images: LabelledImages
) -> tuple[list[Mistake], list[tuple[Pixels, str]]]:
    """Return the most confident mistakes, and their images with captions for the contact sheet."""
    mistakes: list[Mistake] = []
    pictures: list[tuple[Pixels, str]] = []
    limit = SHEET[0] * SHEET[1]
    for row in worst_mistakes(answers)[: 3 * limit]:  # more than are shown, as files may have been deleted
        index = int(answers.index[row])
        true, predicted = classes[answers.label[row]], classes[answers.predicted[row]]
        confidence = float(answers.confidence[row])
        try:
            pixels = thumbnail(decode(images.read(index)))
        except ImageError:
            continue
        mistakes.append(Mistake(key=images.key(index), true=true, predicted=predicted, probability=confidence))
        pictures.append((pixels, f"true: {plain(true)}\npredicted: {plain(predicted)}\n{100 * confidence:.1f} %"))
        if len(pictures) == limit:
            break
    return mistakes, pictures


# --- the page ---------------------------------------------------------------------------------------------------------


def describe_errors(measured: Metrics) -> str:
    """Return a sentence about the images that could not be read, and how they are counted."""
    if not measured.errors:
        return f"All {measured.total:,} images were read."
    codes = counts_text(measured.errors)
    top5 = "" if measured.top5_of_all is None else f" and top-5 {percent(measured.top5_of_all)}"
    return (
        f"{measured.total - measured.count:,} of {measured.total:,} images could not be read ({codes}) and are "
        f"excluded; counted as wrong, top-1 is {percent(measured.top1_of_all)}{top5}."
    )


def _page(
    header: ReportHeader,
    measured: Metrics,
    mistakes: Sequence[Mistake],
    failed: Sequence[FailedImage],
    figures: Sequence[str],
) -> Iterator[str]:
    yield from (f"# {escape_line(header.title)}", "")
    for note in header.notes:
        yield from (escape_line(note), "")
    yield from _summary_section(measured)
    yield from ("## Reproduce", "", "```sh", header.command, "```", "")
    yield from table(("condition", "value"), header.conditions.items())
    yield from ("## Confusion", "")
    yield from _figure("confusion.png", "Confusion matrix", figures)
    if pairs := confused(measured, LISTED):
        rows = ((pair["true"], pair["predicted"], pair["count"], percent(pair["fraction"])) for pair in pairs)
        yield from table(("true", "predicted", "images", "of the true class"), rows)
    yield from _classes_section(measured)
    if "calibration.png" in figures:
        yield from ("## Calibration", "", *_figure("calibration.png", "Reliability diagram", figures))
    if "coverage.png" in figures:
        yield from ("Accuracy if only images above a confidence threshold are answered:", "")
        yield from _figure("coverage.png", "Coverage and accuracy", figures)
    if mistakes:
        yield from ("## Worst mistakes", "", "The wrong predictions with the highest confidence.", "")
        yield from _figure("mistakes.png", "Worst mistakes", figures)
        yield from table(
            ("image", "true", "predicted", "probability"),
            ((row["key"], row["true"], row["predicted"], percent(row["probability"])) for row in mistakes),
        )
    if "curves.png" in figures:
        yield from ("## Training", "", *_figure("curves.png", "Training curves", figures))
    if failed:
        yield from ("## Images that could not be read", "")
        if len(failed) > LISTED:
            yield from (f"The first {LISTED}; all are in report.json.", "")
        yield from table(("image", "code", "message"), failed[:LISTED])


def _figure(name: str, title: str, figures: Sequence[str]) -> Iterator[str]:
    if name in figures:
        yield from (f"![{title}]({name})", "")


def _summary_section(measured: Metrics) -> Iterator[str]:
    known = sum(row["count"] > 0 for row in measured.per_class)
    figures = {
        "images": f"{measured.count:,}",
        "classes": f"{len(measured.classes):,}"
        + ("" if known == len(measured.classes) else f", {known:,} with examples"),
        "top-1": percent(measured.top1),
        "top-5": percent(measured.top5),
        "loss (negative log-likelihood)": f"{measured.loss:.4f}",
        "expected calibration error (15 bins)": percent(measured.ece),
        "precision, macro average": percent(measured.precision),
        "recall, macro average": percent(measured.recall),
        "F1, macro average": percent(measured.f1),
    }
    yield from table(("figure", "value"), ((name, value) for name, value in figures.items() if value))
    yield from (escape_line(describe_errors(measured)), "")


def _classes_section(measured: Metrics) -> Iterator[str]:
    yield from ("## Classes", "")
    listed = [row for row in measured.per_class if row["count"]]
    if len(listed) > LISTED_CLASSES:
        yield from (f"The {LISTED_CLASSES} classes with the lowest F1; the others are in report.json.", "")
        listed = sorted(listed, key=lambda row: row["f1"] or 0)[:LISTED_CLASSES]
    rows = (
        (row["label"], row["count"], percent(row["precision"]), percent(row["recall"]), percent(row["f1"]))
        for row in listed
    )
    yield from table(("class", "images", "precision", "recall", "F1"), rows)
