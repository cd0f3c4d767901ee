"""Write results of `evaluate` as rows, a table, a figure and a folder of reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.datasets import LabelledImages
from ..errors import UsageError
from ..plots.figures import STYLES, draw_or_warn, label_point, new_figure, plain, render, style_speed_axis
from ..records import csv_table, short_name, slug
from ..storage import write_bytes
from ..text import count_of, encode_text
from .evaluator import Evaluation, Trust
from .markdown import escape_line, json_bytes, percent, table
from .report import ReportHeader, describe_errors, prepare_folder, write_report

COLUMNS = (
    *("model", "engine", "precision", "status", "note", "images", "measured", "unread", "unlabelled", "classes"),
    *("top1", "top5", "top1_of_all", "top5_of_all", "loss", "ece", "macro_precision", "macro_recall", "macro_f1"),
    *("coverage", "promised_coverage", "set_size", "unknown"),
    *("dataset", "published_top1", "published_top5", "images_per_second", "seconds", "batch_size", "conditions"),
)
# columns with figures, and the attributes of Metrics with their values
_FIGURES = {name: name for name in ("top1", "top5", "top1_of_all", "top5_of_all", "loss", "ece")}
_FIGURES |= {f"macro_{name}": name for name in ("precision", "recall", "f1")}

HEADER = (
    *("model", "engine", "precision", "images", "top-1 %", "top-5 %", "published", "loss", "ECE %", "macro F1 %"),
    *("images/s", ""),
)
_BROKEN = {"coverage": "the coverage is lower", "unknown": "more images are called unknown"}
LISTED = 5  # unreadable images that the remarks list


def as_dict(row: Evaluation) -> dict[str, object]:
    """Return a row for CSV and JSON with COLUMNS; accuracies are 0 to 1, figures that were not measured None."""
    measured, published = row.metrics, row.published
    values: dict[str, object] = dict(
        model=row.model,
        engine=row.engine,
        precision=row.precision,
        status=row.status,
        note=row.note,
        images=row.images,
        measured=measured.count if measured else 0,
        unread=len(row.failed),
        unlabelled=row.unlabelled,
        classes=row.classes,
        dataset=row.dataset,
        published_top1=round(published.top1 / 100, 6) if published else None,
        published_top5=round(published.top5 / 100, 6) if published else None,
        images_per_second=_four_digits(row.images_per_second),
        seconds=_four_digits(row.seconds),
        batch_size=row.batch_size,
        conditions=dict(row.conditions),
    )
    trust = row.trust
    values |= dict(
        coverage=trust and trust.coverage,
        promised_coverage=trust and trust.promised,
        set_size=trust and trust.set_size,
        unknown=trust and trust.unknown,
    )
    values |= {column: getattr(measured, name) if measured else None for column, name in _FIGURES.items()}
    return {name: values[name] for name in COLUMNS}


def _four_digits(value: float | None) -> float | None:
    return float(f"{value:.4g}") if value else value


def csv_bytes(rows: Sequence[Evaluation]) -> bytes:
    """Return a CSV file with COLUMNS and one line per row; the conditions are one cell ("name: value; ...")."""
    return csv_table(
        COLUMNS,
        (
            as_dict(row) | dict(conditions="; ".join(f"{name}: {value}" for name, value in row.conditions.items()))
            for row in rows
        ),
    )


def cells(row: Evaluation) -> tuple[str, ...]:
    """Return the cells of a row for the printed table, under HEADER; `published` is top-1 / top-5."""
    name = (row.model, row.engine, row.precision)
    measured = row.metrics
    if measured is None:
        return (*name, row.status, *[""] * 8)  # the message is a remark: it would make the table too wide
    rate = row.images_per_second or 0
    return (
        *name,
        f"{measured.count:,}" if measured.count == row.images else f"{measured.count:,} of {row.images:,}",
        f"{100 * measured.top1:.2f}",
        "" if measured.top5 is None else f"{100 * measured.top5:.2f}",
        "" if row.published is None else f"{row.published.top1:.2f} / {row.published.top5:.2f}",
        f"{measured.loss:.4f}",
        f"{100 * measured.ece:.2f}",
        f"{100 * measured.f1:.2f}",
        f"{rate:.3g}" if rate < 100 else f"{rate:.0f}",
        row.note.partition(":")[0],
    )


def remarks(rows: Sequence[Evaluation]) -> Iterator[str]:
    """Yield sentences about the conditions of the measurement."""
    for row in rows:
        if row.metrics is None:
            yield f"{row.model}: {row.note}"
    measured = [(row, row.metrics) for row in rows if row.metrics]
    yield from dict.fromkeys(describe_errors(metrics) for _, metrics in measured)
    if measured:
        first = measured[0][0]
        for image in first.failed[:LISTED]:
            yield f"{image.key}: {image.code}: {image.message}"
        if len(first.failed) > LISTED:
            yield f"and {len(first.failed) - LISTED:,} more, which the report lists (--out FOLDER)"
        if first.unlabelled:
            verb = "is" if first.unlabelled == 1 else "are"
            yield f"{count_of(first.unlabelled, 'image')} without a ReaL label {verb} excluded."
    for row, _ in measured:
        if row.trust is not None:
            yield f"{row.model}, {row.precision}: {_trust_text(row.trust)}."
            if row.trust.same_images:
                yield (
                    f"{row.model}, {row.precision}: the calibration was made from these images, so its figures, loss "
                    "and ECE are too good."
                )
            elif row.trust.broken:
                yield (
                    f"{row.model}, {row.precision}: {' and '.join(_BROKEN[name] for name in row.trust.broken)} than "
                    "chance explains: these images are probably unlike those of the calibration; calibrate with "
                    "labeled images like these (`tessella calibrate`)."
                )
    for description in dict.fromkeys(row.classes for row, _ in measured):
        yield f"Classes: {description}."
    if any(row.published for row, _ in measured):
        sets = ", ".join(dict.fromkeys(row.dataset for row, _ in measured))
        yield f"Published: top-1 / top-5 on {sets}, with timm's image preprocessing."
    if measured:
        shared = ("transform", "decode policy", "device", "threads", "hardware")
        yield "; ".join(f"{name} {first.conditions[name]}" for name in shared) + "."


def _trust_text(trust: Trust) -> str:
    """Return what a calibration said as a sentence without its end."""
    unknown = f"{percent(trust.unknown)} called unknown (promised at most {100 * trust.false_alarms:g} %)"
    parts = [f"{trust.set_size:.2f} classes per prediction set", unknown]
    if trust.coverage is not None:
        parts.insert(0, f"coverage {percent(trust.coverage)} (promised {100 * trust.promised:g} %)")
    return f"calibrated: {', '.join(parts)}"


def markdown(rows: Sequence[Evaluation]) -> str:
    """Return the table and the remarks as Markdown."""
    lines = [*table(HEADER, (cells(row) for row in rows))]
    return "\n".join([*lines, *(f"- {escape_line(line)}" for line in remarks(rows)), ""])


def draw(rows: Sequence[Evaluation], suffix: str = ".png") -> bytes:
    """Plot accuracy against speed, with hollow markers for published accuracies; suffix: .png or .svg.

    Raises UsageError `missing_dependency`, or `bad_argument` if no model was measured.
    """
    figure = new_figure(7, 5)
    measured = [(row, row.metrics, row.images_per_second) for row in rows if row.metrics and row.images_per_second]
    if not measured:
        raise UsageError("bad_argument", "no model was measured, so there is nothing to draw")
    panel = figure.subplots()
    series = list(dict.fromkeys((row.engine, row.precision) for row, _, _ in measured))
    for index, name in enumerate(series):
        color, marker = STYLES[index % len(STYLES)]
        points = [(rate, 100 * metrics.top1) for row, metrics, rate in measured if (row.engine, row.precision) == name]
        rates, accuracies = zip(*points, strict=True)
        panel.scatter(rates, accuracies, s=45, color=color, marker=marker, label=", ".join(name), zorder=2)
    for model in dict.fromkeys(row.model for row, _, _ in measured):
        points = sorted((rate, 100 * metrics.top1) for row, metrics, rate in measured if row.model == model)
        panel.plot(*zip(*points, strict=True), color="0.8", linewidth=1, zorder=1)
        label_point(panel, plain(short_name(model)[-40:], 40), points[-1])
    label = "published"
    for row, metrics, rate in measured:
        if row.published:
            top1 = row.published.top1
            panel.plot((rate, rate), (100 * metrics.top1, top1), color="0.8", linewidth=1, zorder=1)
            panel.scatter(rate, top1, s=45, facecolors="white", edgecolors="0.5", zorder=1, label=label)
            label = ""  # only once in the legend
    style_speed_axis(panel)
    panel.set_xlabel("speed (images per second, from file to prediction)")
    panel.set_ylabel("top-1 accuracy (%)")
    first, metrics, _ = measured[0]
    panel.set_title(f"{metrics.count:,} images; {first.conditions['hardware']}", fontsize=9)
    panel.legend(fontsize=8)
    return render(figure, suffix)


def write_results(
    folder: str | Path,
    rows: Sequence[Evaluation],
    *,
    command: str,
    images: LabelledImages | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write evaluation.md, .csv, .json and .png for all rows and a report per model; return the path of evaluation.md.

    The report of a single model is written to the folder itself, those of several models to subfolders.
    command: the command line that reproduces the results. images: the evaluated images, for the contact sheets.
    notes: sentences for the reports. Raises the errors of `write_report`.
    """
    folder = prepare_folder(folder)
    write_bytes(folder / "evaluation.csv", csv_bytes(rows))
    write_bytes(folder / "evaluation.json", json_bytes(dict(command=command, rows=[as_dict(row) for row in rows])))
    measured = [(number, row, row.metrics) for number, row in enumerate(rows, 1) if row.metrics]
    links = []
    for number, row, metrics in measured:
        name = f"{number}-{slug(row.model)[-80:]}-{row.engine}-{row.precision}"
        page = write_report(
            folder / name if len(rows) > 1 else folder,
            metrics,
            _header(row, command, notes),
            answers=row.answers,
            images=images,
            failed=row.failed,
        )
        title = escape_line(f"{row.model}, {row.engine}, {row.precision}")
        links.append(f"- [{title}]({page.relative_to(folder).as_posix()})")
    figure = []
    if measured and (data := draw_or_warn("evaluation.png", lambda: draw(rows))):
        write_bytes(folder / "evaluation.png", data)
        figure = ["![Accuracy against speed](evaluation.png)", ""]
    lines = ["# Evaluation", "", markdown(rows), *figure, "## Reports", "", *links, ""]
    lines += ["## Reproduce", "", "```sh", command, "```", ""]
    write_bytes(folder / "evaluation.md", encode_text("\n".join(lines)))
    return folder / "evaluation.md"


def _header(row: Evaluation, command: str, notes: Sequence[str]) -> ReportHeader:
    notes = [*notes, f"Classes: {row.classes}."]
    if row.published:
        top1, top5 = percent(row.published.top1 / 100), percent(row.published.top5 / 100)
        notes.append(f"Published on {row.dataset}: {top1} top-1, {top5} top-5.")
    return ReportHeader(
        title=f"{row.model} on {row.conditions['data']}",
        command=command,
        conditions=dict(row.conditions) | {"images/s": f"{row.images_per_second:.4g}"},
        notes=[*notes, *filter(None, [row.note])],
    )
