"""A report on a trained or evaluated model: a folder with report.md, report.json and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict

from ..data.datasets import LabelledImages
from ..data.decode import Pixels, decode
from ..errors import ImageError
from ..plots.figures import SHEET, contact_sheet, curves, draw_or_warn, plain, thumbnail, warn_without_matplotlib
from ..storage import create_output_folder, write_bytes
from ..text import encode_text
from .figures import calibration, confusion, coverage_curve
from .markdown import escape_line, json_bytes, percent, table
from .metrics import Answers, Metrics, as_dict, confused, coverage, worst_mistakes

LISTED_CLASSES = 50  # longer tables of classes show those with the lowest F1
LISTED = 25  # rows of the other tables


class FailedImage(NamedTuple):
    """An image without an answer, because it could not be read."""

    key: str
    code: str
    message: str


class Mistake(TypedDict):
    """An image that was classified wrongly."""

    key: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class ReportHeader:
    """What a report says about the measurement itself.

    title: of the page. command: the command line that reproduces the report. conditions: everything else that the
    figures depend on, by name. notes: sentences below the title.
    """

    title: str
    command: str
    conditions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


# --- the folder -------------------------------------------------------------------------------------------------------


def prepare_folder(folder: str | Path) -> Path:
    """Create the folder if it is missing, and warn if matplotlib is; to be called before the work starts.

    Raises OutputError `output_failed`.
    """
    warn_without_matplotlib()
    return create_output_folder(folder)


def write_report(
    folder: str | Path,
    found: Metrics,
    header: ReportHeader,
    *,
    answers: Answers | None = None,
    images: LabelledImages | None = None,
    failed: Sequence[FailedImage] = (),
    history: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write report.md, report.json and the figures; return the path of report.md.

    answers: the answers that `found` was computed from, for the coverage curve. images: the data that `answers.index`
    refers to, for a contact sheet of the worst mistakes. failed: images without an answer. history: rows of the
    training log, see `plots.figures.curves`.

    A figure that cannot be drawn is left out, with a warning. Raises as `prepare_folder`.
    """
    folder = create_output_folder(folder)
    draws: dict[str, Callable[[], bytes]] = {
        "confusion.png": lambda: confusion(found.confusion, found.classes),
        "calibration.png": lambda: calibration(found.bins, found.ece),
    }
    mistakes: list[Mistake] = []
    if answers is not None:
        draws["coverage.png"] = lambda: coverage_curve(coverage(answers))
        if images is not None:
            mistakes, pictures = _worst_mistakes(answers, found.classes, images)
            if pictures:
                draws["mistakes.png"] = lambda: contact_sheet(pictures)
    if history:
        draws["curves.png"] = lambda: curves(history)
    facts = dict(
        title=header.title,
        command=header.command,
        conditions=dict(header.conditions),
        notes=list(header.notes),
        metrics=as_dict(found),
        mistakes=mistakes,
        unread=[image._asdict() for image in failed],
        history=[dict(row) for row in history],
    )
    write_bytes(folder / "report.json", json_bytes(facts))

    def write_page(figures: Sequence[str]) -> None:
        page = _page(header, found, mistakes, failed, figures)
        write_bytes(folder / "report.md", encode_text("\n".join(page)))

    write_page([])  # figures come last, so that the report exists even if drawing them fails
    write_page(_write_figures(folder, draws))
    return folder / "report.md"


def _write_figures(folder: Path, draws: Mapping[str, Callable[[], bytes]]) -> list[str]:
    """Write the figures that can be drawn, remove those of an earlier report that cannot, and return the names."""
    drawn = []
    for name, draw in draws.items() if warn_without_matplotlib() else ():
        if data := draw_or_warn(f"{name} of the report", draw):
            write_bytes(folder / name, data)
            drawn.append(name)
        else:
            (folder / name).unlink(missing_ok=True)
    return drawn


def _worst_mistakes(
    answers: Answers, classes: Sequence[str], images: LabelledImages
) -> tuple[list[Mistake], list[tuple[Pixels, str]]]:
    """Return the most confident mistakes, and their pictures with captions for the contact sheet."""
    mistakes: list[Mistake] = []
    pictures: list[tuple[Pixels, str]] = []
    most = SHEET[0] * SHEET[1]
    for row in worst_mistakes(answers)[: 3 * most]:  # more than are shown, because files may have disappeared
        index = int(answers.index[row])
        true, predicted = classes[answers.label[row]], classes[answers.predicted[row]]
        confidence = float(answers.confidence[row])
        try:
            pixels = thumbnail(decode(images.read(index)))
        except ImageError:
            continue
        mistakes.append(Mistake(key=images.key(index), true=true, predicted=predicted, probability=confidence))
        pictures.append((pixels, f"true: {plain(true)}\npredicted: {plain(predicted)}\n{100 * confidence:.1f} %"))
        if len(pictures) == most:
            break
    return mistakes, pictures


# --- the page ---------------------------------------------------------------------------------------------------------


def describe_errors(found: Metrics) -> str:
    """Return a sentence on how images that could not be read are counted."""
    if not found.errors:
        return f"All {found.total:,} images were read."
    codes = ", ".join(f"{count:,} {code}" for code, count in found.errors.items())
    top5 = "" if found.top5_of_all is None else f" and top-5 {percent(found.top5_of_all)}"
    return (
        f"{found.total - found.count:,} of {found.total:,} images could not be read ({codes}) and are left out of the "
        f"figures; counted as wrong, top-1 is {percent(found.top1_of_all)}{top5}."
    )


def _page(
    header: ReportHeader,
    found: Metrics,
    mistakes: Sequence[Mistake],
    failed: Sequence[FailedImage],
    figures: Sequence[str],
) -> Iterator[str]:
    yield from (f"# {escape_line(header.title)}", "")
    for note in header.notes:
        yield from (escape_line(note), "")
    yield from _summary_section(found)
    yield from ("## Reproduce", "", "```sh", header.command, "```", "")
    yield from table(("condition", "value"), header.conditions.items())
    yield from ("## Confusion", "")
    yield from _figure("confusion.png", "Confusion matrix", figures)
    if pairs := confused(found, LISTED):
        rows = ((pair["true"], pair["predicted"], pair["count"], percent(pair["fraction"])) for pair in pairs)
        yield from table(("true", "predicted", "images", "of the true class"), rows)
    yield from _classes_section(found)
    if "calibration.png" in figures:
        yield from ("## Calibration", "", *_figure("calibration.png", "Reliability diagram", figures))
    if "coverage.png" in figures:
        yield from ("Accuracy if only images above a confidence threshold are answered:", "")
        yield from _figure("coverage.png", "Coverage and accuracy", figures)
    if mistakes:
        yield from ("## Worst mistakes", "", "The most confident ones.", "")
        yield from _figure("mistakes.png", "Worst mistakes", figures)
        yield from table(
            ("image", "true", "predicted", "probability"),
            ((each["key"], each["true"], each["predicted"], percent(each["probability"])) for each in mistakes),
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


def _summary_section(found: Metrics) -> Iterator[str]:
    known = sum(row["count"] > 0 for row in found.per_class)
    figures = {
        "images": f"{found.count:,}",
        "classes": f"{len(found.classes):,}" + ("" if known == len(found.classes) else f", {known:,} with examples"),
        "top-1": percent(found.top1),
        "top-5": percent(found.top5),
        "loss (negative log-likelihood)": f"{found.loss:.4f}",
        "expected calibration error (15 bins)": percent(found.ece),
        "precision, macro average": percent(found.precision),
        "recall, macro average": percent(found.recall),
        "F1, macro average": percent(found.f1),
    }
    yield from table(("figure", "value"), ((name, value) for name, value in figures.items() if value))
    yield from (escape_line(describe_errors(found)), "")


def _classes_section(found: Metrics) -> Iterator[str]:
    yield from ("## Classes", "")
    listed = [row for row in found.per_class if row["count"]]
    if len(listed) > LISTED_CLASSES:
        yield from (f"The {LISTED_CLASSES} classes with the lowest F1; the others are in report.json.", "")
        listed = sorted(listed, key=lambda row: row["f1"] or 0)[:LISTED_CLASSES]
    rows = (
        (row["label"], row["count"], percent(row["precision"]), percent(row["recall"]), percent(row["f1"]))
        for row in listed
    )
    yield from table(("class", "images", "precision", "recall", "F1"), rows)
