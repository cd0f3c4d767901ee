"""How good models are on labelled images, side by side: every image is counted, by every engine and precision.

N images in are N outcomes out: answers, and images that could not be read by the code of their error. Such an image is
left out of the accuracy, which is told beside the one that counts it as wrong.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .._version import __version__
from ..checks import checked
from ..data.datasets import LabelledImages
from ..data.decode import Mode, Policy
from ..data.labels import labels_for
from ..errors import ImageError, TessellaError, UsageError
from ..machine import hardware, other_versions
from ..plots.figures import STYLES, draw_or_warn, matplotlib, plain, render
from ..predictor import Predictor, load
from ..records import short_name, slug
from ..storage import read_regular, write_bytes
from ..weights.catalogue import Accuracy, published_accuracy, resolve
from .leakage import Split, choose_images
from .leakage import open_data as open_data
from .metrics import Answers, Ints, Metrics, join, judge, metrics_of
from .report import Unread, cell, json_bytes, percent, prepare_folder, rule, table, text_bytes, write_report

log = logging.getLogger(__name__)

CHUNK = 256  # images whose logits are held
REAL_IMAGES = 50_000  # of ImageNet's validation set, one list of labels each
Progress = Callable[[str, int, int], None]  # model, images done, images in all


# --- classes ----------------------------------------------------------------------------------------------------------


class Match(NamedTuple):
    """Which of the model's classes take part, and which of these each class of the data is."""

    columns: Ints  # (K,) indices into the logits, ascending
    place: Ints  # (C,) of each class of the data, its position among `columns`
    naming: str  # of the data: "synsets", "indices" or "names"
    how: str  # a sentence for people


def match_classes(classes: Sequence[str], predictor: Predictor, restrict: bool | None = None) -> Match:
    """The classes of the data in the model's terms: by name, by WordNet id (n01440764), or by index (0, 1, ...).

    restrict: whether only the data's classes can be predicted; None does so for WordNet ids, as figures for ImageNet
    variants with fewer classes are published. Raises UsageError `bad_argument` where the model lacks one of them.
    """
    labels, model = predictor.labels, predictor.name
    if not predictor.num_classes:
        raise UsageError("bad_argument", f"{model} has no classifier", hint="`tessella probe` makes one for it")
    if tuple(classes) == labels:
        known, naming = {name: i for i, name in enumerate(classes)}, "names"
        found: list[int | None] = list(range(len(classes)))
    else:
        known, naming = _known(classes, predictor)
        found = [known.get(name) for name in classes]
    missing = [name for name, index in zip(classes, found, strict=True) if index is None]
    if missing:
        raise UsageError(
            "bad_argument",
            f"{model} has no class for {len(missing):,} of the {len(classes):,} in the data, such as {_some(missing)}; "
            f"its {len(labels):,} classes are such as {_some([*known])}",
            hint="name a model that knows these classes, or `tessella train` one",
        )
    own = np.array(found, np.int64)
    fewer = len(classes) < predictor.num_classes
    if restrict is None:
        restrict = naming == "synsets"
    every = np.arange(predictor.num_classes)
    columns = np.sort(own) if restrict else every
    by = {"synsets": "WordNet id", "indices": "index", "names": "name"}[naming]
    told = f"{len(classes):,} of the model's {predictor.num_classes:,}, by {by}"
    if fewer:
        told += ", no other can be predicted" if restrict else ", the others count as wrong"
    return Match(columns, np.searchsorted(columns, own), naming, told)


def _known(classes: Sequence[str], predictor: Predictor) -> tuple[dict[str, int], str]:
    """The model's classes as the data may call them, and what sort of names that is."""
    counts = Counter(predictor.labels)  # ImageNet has two cranes: such a name says nothing
    names = {name: i for i, name in enumerate(predictor.labels) if counts[name] == 1}
    if all(name in names for name in classes):
        return names, "synsets" if _are_synsets(classes) else "names"
    if predictor.synsets and _are_synsets(classes):
        return {synset: i for i, synset in enumerate(predictor.synsets)}, "synsets"
    indices = {str(i): i for i in range(predictor.num_classes)}
    if set(classes) == set(indices):  # as ImageNetV2's folders; fewer could be anything
        return indices, "indices"
    return names, "names"


def _are_synsets(classes: Iterable[str]) -> bool:
    return all(re.fullmatch(r"n\d{8}", name) for name in classes)


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


# --- ImageNet's sets --------------------------------------------------------------------------------------------------


class Published(NamedTuple):
    """A set that figures are published for, and how it is recognised."""

    name: str  # in the table of published figures
    naming: str
    classes: int
    images: int
    mark: str = ""  # in the data's path or the first image's key, where the numbers do not suffice


DATASETS = (
    Published("imagenet", "synsets", 1000, REAL_IMAGES, "ILSVRC2012_val_"),
    Published("imagenetv2-matched-frequency", "indices", 1000, 10_000, "matched-frequency"),  # one of three V2
    Published("sketch", "synsets", 1000, 50_889),
    Published("imagenet-r", "synsets", 200, 30_000),
    Published("imagenet-a", "synsets", 200, 7_500),
)
REAL = "imagenet-real"
SETS = (*(one.name for one in DATASETS), REAL, "imagenet-r-clean", "imagenet-a-clean")  # clean: ImageNet, same classes


def recognise(images: LabelledImages, match: Match) -> str:
    """The name of the published set that the data is, "" for any other data."""
    if not len(images):
        return ""
    texts = (images.origin, images.key(0))
    return next(
        (
            one.name
            for one in DATASETS
            if (one.naming, one.classes, one.images) == (match.naming, len(images.classes), len(images))
            and any(one.mark in text for text in texts)
        ),
        "",
    )


def published(predictor: Predictor, dataset: str) -> Accuracy | None:
    """Figures of the model's checkpoint in per cent; None where none hold for this set and image size."""
    if ":" in predictor.name:
        return None
    found = published_accuracy(predictor.name).get(dataset)
    return found if found and found.img_size == predictor.spec.height == predictor.spec.width else None


def read_real(path: str | Path) -> list[list[int]]:
    """ReaL's labels: of each image of ImageNet's validation set the classes 0..999 that are right, often one or none.

    Raises UsageError `bad_argument`.
    """
    try:
        found = json.loads(read_regular(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise UsageError("bad_argument", f"the ReaL labels {str(path)!r} could not be read: {reason}") from None
    good = isinstance(found, list) and all(
        isinstance(row, list) and all(type(one) is int and 0 <= one < 1000 for one in row) for row in found
    )
    if not good or len(found) != REAL_IMAGES:
        raise UsageError(
            "bad_argument",
            f"{str(path)!r} does not hold ReaL labels, expected {REAL_IMAGES:,} lists of numbers from 0 to 999",
            hint="the file is real.json of the reassessed-imagenet repository",
        )
    return found


def _real_choices(images: LabelledImages, match: Match, real: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of each image the classes that are right, as positions among the match's columns."""
    choices = []
    for i in range(len(images)):
        number = re.search(r"ILSVRC2012_val_(\d{8})", images.key(i))
        if not number or not 1 <= int(number[1]) <= len(real):
            raise UsageError(
                "bad_argument",
                f"ReaL labels go by the file names of ImageNet's validation set, and {images.key(i)!r} is none",
                hint="give the folder of ILSVRC2012_val_00000001.JPEG and the others",
            )
        choices.append(sorted(int(match.place[one]) for one in real[int(number[1]) - 1]))
    return choices


# --- one model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What became of one model on the data; without `metrics` it failed, and `status` and `note` say why."""

    model: str
    status: str = "ok"  # or the code of the error
    note: str = ""  # the error, or that another precision was used than the one asked for
    engine: str = ""  # used; asked for, where the model failed
    precision: str = ""
    metrics: Metrics | None = None
    answers: Answers | None = None
    unread: tuple[Unread, ...] = ()
    unlabelled: int = 0  # images without a ReaL label: not looked at
    classes: str = ""  # how those of the data were matched
    dataset: str = ""  # a name of SETS, "" for data of one's own
    published: Accuracy | None = None  # in per cent
    seconds: float | None = None  # from the images' bytes to the answers; loading the model left out
    batch_size: int = 0
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def images(self) -> int:
        """All that were given: measured + not read + without a label."""
        return (self.metrics.total if self.metrics else 0) + self.unlabelled

    @property
    def images_per_second(self) -> float | None:
        return self.metrics.total / self.seconds if self.metrics and self.seconds else None


def measure(
    predictor: Predictor,
    images: LabelledImages,
    *,
    real: Sequence[Sequence[int]] | None = None,
    dataset: str | None = None,
    restrict: bool | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run the model over all images, once each. real: of `read_real`; the others as in `evaluate`.

    Raises UsageError `bad_argument` where classes do not fit, ImageError `unreadable` where no image can be read,
    WeightsError `non_finite`.
    """
    classes = images.classes if real is None else labels_for("imagenet-1k").synsets
    match = match_classes(classes, predictor, restrict)
    choices = None if real is None else _real_choices(images, match, real)
    positions = [i for i in range(len(images)) if choices is None or choices[i]]
    set_name = _set_name(images, match, dataset, real is not None)

    def truth(position: int, logits: Any) -> int:
        if choices is None:
            return int(match.place[images.labels[position]])
        return choices[position][int(np.argmax(logits[choices[position]]))]  # the one that the model ranks best

    # what is made at first use does not count
    height, width, batch = predictor.spec.height, predictor.spec.width, predictor.plan.batch_size
    deque(predictor.outputs([np.zeros((height, width, 3), np.uint8)] * min(batch, len(positions))), maxlen=0)
    started = time.perf_counter()
    answers, unread = _run(predictor, images, positions, match.columns, truth, progress)
    seconds = time.perf_counter() - started
    errors = dict(Counter(one.code for one in unread))
    if not len(answers.label):
        raise ImageError(
            "unreadable" if unread else "not_found",
            f"none of the {len(images):,} images could be read ({errors})" if unread else "there are no images",
            hint=f"the first is {unread[0].key!r}: {unread[0].message}" if unread else "",
        )
    names = [predictor.labels[i] for i in match.columns]
    return Evaluation(
        model=predictor.name,
        engine=predictor.plan.engine,
        precision=predictor.plan.precision,
        metrics=metrics_of(answers, names, errors=errors),
        answers=answers,
        unread=tuple(unread),
        unlabelled=len(images) - len(positions),
        classes=match.how,
        dataset=set_name,
        published=published(predictor, set_name) if len(match.columns) == len(classes) else None,
        seconds=seconds,
        batch_size=batch,
        conditions=_conditions(predictor, images),
    )


def _run(
    predictor: Predictor,
    images: LabelledImages,
    positions: Sequence[int],
    columns: Ints,
    truth: Callable[[int, Any], int],
    progress: Progress | None,
) -> tuple[Answers, list[Unread]]:
    """One outcome of each position, in order."""
    parts = [judge(np.empty((0, len(columns))), np.empty(0, np.int64))]
    held: list[tuple[int, int, Any]] = []  # position, label, logits
    unread: list[Unread] = []

    def judge_held() -> None:
        if held:
            where, labels, logits = zip(*held, strict=True)
            parts.append(judge(np.stack(logits), np.array(labels), np.array(where)))
            held.clear()

    outcomes = predictor.outputs(images.source(i) for i in positions)
    for done, (i, outcome) in enumerate(zip(positions, outcomes, strict=True), 1):  # strict: none added, none dropped
        if isinstance(outcome, ImageError):
            unread.append(Unread(images.key(i), outcome.code, outcome.message))
        else:
            logits = outcome.logits[columns]
            held.append((i, truth(i, logits), logits))
        if len(held) == CHUNK:
            judge_held()
        if progress:
            progress(predictor.name, done, len(positions))
    judge_held()
    return join(parts), unread


def _set_name(images: LabelledImages, match: Match, dataset: str | None, real: bool) -> str:
    if dataset is None and real:
        return REAL if len(images) == REAL_IMAGES else ""
    if dataset is None:
        return recognise(images, match)
    return "" if dataset == "none" else dataset


def _conditions(predictor: Predictor, images: LabelledImages) -> dict[str, str]:
    plan, spec = predictor.plan, predictor.spec
    return {
        "model": predictor.name,
        "fingerprint": predictor.fingerprint,
        "data": images.origin,
        "data fingerprint": images.fingerprint,
        "engine": plan.engine,
        "precision": plan.precision,
        "device": plan.device,
        "batch": str(plan.batch_size),
        "input": f"{spec.width} x {spec.height} px, {spec.interpolation}, crop {spec.crop_pct:g}",
        "transform": predictor.transform,
        "decode policy": predictor.policy,
        "hardware": hardware(plan.device),
        "threads": str(plan.threads),
        "versions": f"tessella {__version__}, torch {torch.__version__}, {other_versions()}".rstrip(", "),
        "date": time.strftime("%Y-%m-%d"),
    }


# --- several ----------------------------------------------------------------------------------------------------------


@checked
def evaluate(
    data: str | Path | LabelledImages,
    names: Sequence[str | Predictor],
    *,
    split: Split | None = None,
    device: str = "auto",
    engine: str | Sequence[str] = "auto",
    precision: str | Sequence[str] = "auto",
    batch_size: int | None = None,
    transform: Mode = "exact",
    policy: Policy = "tessella",
    checkpoint_path: str | Path | None = None,
    real: str | Path | None = None,
    dataset: str | None = None,
    restrict: bool | None = None,
    progress: Progress | None = None,
) -> Iterator[Evaluation]:
    """One Evaluation for each model, engine and precision, as they are done; a model that fails is one that says why.

    data: as in `choose_images`, or images that are open. names: as in `tessella.load`, or Predictors that are loaded
    (of which the other settings are left as they are). checkpoint_path: weights in place of the published ones, for a
    single model. real: ReaL's real.json, for ImageNet's validation set: any of an image's labels is right, images
    without one are left out, and what needs one label takes the one of them that the model ranks best. dataset: the
    published set that the data is, a name of SETS, "none" for none of them; None recognises it by its classes and
    number of images. restrict: see `match_classes`. progress: is told (model, images done, images in all) after each
    image.

    Raises UsageError for what cannot be asked and for data that cannot be used, before a model is loaded; when all
    models fail, the error of the first.
    """
    if dataset not in (None, "none", *SETS):
        raise UsageError("bad_argument", f"dataset is {dataset!r}", hint=f"choose of none, {', '.join(SETS)}")
    if not names:
        raise UsageError("bad_argument", "no model was given", hint="give at least one: see `tessella list`")
    if checkpoint_path and len(names) > 1:
        raise UsageError("bad_argument", f"one checkpoint cannot be the weights of {len(names)} models")
    for name in names:
        if isinstance(name, str) and ":" not in name:
            resolve(name)
    labels = None if real is None else read_real(real)
    if isinstance(data, LabelledImages):
        opened = data
    else:
        opened, remarks = choose_images(data, [_name_of(one) for one in names], split)
        for remark in remarks:
            log.warning("%s", remark.removeprefix("warning: "))
    settings: dict[str, Any] = dict(
        device=device, batch_size=batch_size, transform=transform, policy=policy, checkpoint_path=checkpoint_path
    )
    runs: list[tuple[str, str, str, Callable[[], Predictor]]] = []
    for name in names:
        if isinstance(name, Predictor):
            runs.append((name.name, name.plan.engine, name.plan.precision, functools.partial(_same, name)))
            continue
        for one, exactness in itertools.product(_several(engine), _several(precision)):
            make = functools.partial(load, name, engine=one, precision=exactness, **settings)
            runs.append((name, one, exactness, make))

    def run(name: str, one: str, exactness: str, make: Callable[[], Predictor]) -> Evaluation:
        predictor = make()
        done = measure(predictor, opened, real=labels, dataset=dataset, restrict=restrict, progress=progress)
        if checkpoint_path:
            done = dataclasses.replace(done, published=None)
        if exactness in ("auto", predictor.plan.precision):
            return done
        _, precision_used, reason = predictor.plan.choice("precision")
        return dataclasses.replace(done, note=f"not {exactness}: {precision_used}: {reason}")

    def rows() -> Iterator[Evaluation]:
        failures: list[TessellaError] = []
        for each in runs:
            try:
                row = run(*each)
            except TessellaError as error:
                failures.append(error)
                if len(failures) == len(runs):
                    raise failures[0] from None
                row = Evaluation(model=each[0], status=error.code, note=str(error), engine=each[1], precision=each[2])
            yield row

    return rows()


def _name_of(model: str | Predictor) -> str:
    return model if isinstance(model, str) else model.name


def _same(predictor: Predictor) -> Predictor:
    return predictor


def _several(given: str | Sequence[str]) -> list[str]:
    return list(dict.fromkeys([given] if isinstance(given, str) else given))


# --- the result -------------------------------------------------------------------------------------------------------

COLUMNS = (
    "model", "engine", "precision", "status", "note", "images", "measured", "unread", "unlabelled", "classes",
    "top1", "top5", "top1_of_all", "top5_of_all", "loss", "ece", "macro_precision", "macro_recall", "macro_f1",
    "dataset", "published_top1", "published_top5", "images_per_second", "seconds", "batch_size", "conditions",
)  # fmt: skip


def as_dict(row: Evaluation) -> dict[str, Any]:
    """A row for CSV and JSON, with COLUMNS. Shares are 0..1, published ones too; None for what was not measured."""
    found = row.metrics
    figures = ("top1", "top5", "top1_of_all", "top5_of_all", "loss", "ece", "precision", "recall", "f1")
    measured = {
        (f"macro_{name}" if name in ("precision", "recall", "f1") else name): getattr(found, name) if found else None
        for name in figures
    }
    per_cent = row.published
    rate = row.images_per_second
    facts = dict(
        model=row.model, engine=row.engine, precision=row.precision, status=row.status, note=row.note,
        images=row.images, measured=found.count if found else 0, unread=len(row.unread), unlabelled=row.unlabelled,
        classes=row.classes, **measured, dataset=row.dataset,
        published_top1=round(per_cent.top1 / 100, 6) if per_cent else None,
        published_top5=round(per_cent.top5 / 100, 6) if per_cent else None,
        images_per_second=rate and float(f"{rate:.4g}"), seconds=row.seconds and float(f"{row.seconds:.4g}"),
        batch_size=row.batch_size, conditions=dict(row.conditions),
    )  # fmt: skip
    return {name: facts[name] for name in COLUMNS}


def csv_bytes(rows: Sequence[Evaluation]) -> bytes:
    """A header of COLUMNS and a line a row; the conditions are one cell of "name: value; ..."."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        told = "; ".join(f"{name}: {value}" for name, value in row.conditions.items())
        writer.writerow((as_dict(row) | dict(conditions=told)).values())
    return text_bytes(text.getvalue())


HEADER = (
    "model", "engine", "precision", "images", "top-1 %", "top-5 %", "published", "loss", "ECE %", "macro F1 %",
    "images/s", "",
)  # fmt: skip


def cells(row: Evaluation) -> tuple[str, ...]:
    """A row for a person to read, under HEADER; `published` is top-1 / top-5 of the same set."""
    what = (row.model, row.engine, row.precision)
    found = row.metrics
    if found is None:
        return (*what, row.status, *[""] * 7, row.note)
    told = "" if row.published is None else f"{row.published.top1:.2f} / {row.published.top5:.2f}"
    return (
        *what,
        f"{found.count:,}" if found.count == row.images else f"{found.count:,} of {row.images:,}",
        f"{100 * found.top1:.2f}",
        "" if found.top5 is None else f"{100 * found.top5:.2f}",
        told,
        f"{found.loss:.4f}",
        f"{100 * found.ece:.2f}",
        f"{100 * found.f1:.2f}",
        f"{row.images_per_second:.3g}" if (row.images_per_second or 0) < 100 else f"{row.images_per_second:.0f}",
        row.note.partition(":")[0],
    )


def remarks(rows: Sequence[Evaluation]) -> Iterator[str]:
    """What else a reader of the table must know, as sentences."""
    good = [row for row in rows if row.metrics]
    yield from dict.fromkeys(rule(row.metrics) for row in good if row.metrics)
    for row in good[:1]:
        for one in row.unread[:5]:
            yield f"{one.key}: {one.code}: {one.message}"
        if len(row.unread) > 5:
            yield f"and {len(row.unread) - 5:,} more, named in report.json"
        if row.unlabelled:
            yield f"{row.unlabelled:,} images have no ReaL label and are left out."
    for how in dict.fromkeys(row.classes for row in good):
        yield f"Classes: {how}."
    if any(row.published for row in good):
        sets = ", ".join(dict.fromkeys(row.dataset for row in good))
        yield f"Published: top-1 / top-5 on {sets}, with timm's way of preparing images."
    shared = ("transform", "decode policy", "device", "threads", "hardware")
    for row in good[:1]:
        yield "; ".join(f"{name} {row.conditions[name]}" for name in shared) + "."


def markdown(rows: Sequence[Evaluation]) -> str:
    """The table, and what a reader must know of it."""
    lines = [*table(HEADER, (cells(row) for row in rows))]
    return "\n".join([*lines, *(f"- {cell(line)}" for line in remarks(rows)), ""])


def draw(rows: Sequence[Evaluation], suffix: str = ".png") -> bytes:
    """Accuracy against speed; a hollow mark is what was published. suffix: .png or .svg.

    Raises UsageError: `missing_dependency`, `bad_argument` where no model was measured.
    """
    figure = matplotlib().Figure(figsize=(7, 5), layout="constrained")
    ticker = matplotlib("ticker")
    good = [(row, row.metrics, row.images_per_second) for row in rows if row.metrics and row.images_per_second]
    if not good:
        raise UsageError("bad_argument", "no model was measured, so there is nothing to draw")
    panel = figure.subplots()
    ways = list(dict.fromkeys((row.engine, row.precision) for row, _, _ in good))
    for index, way in enumerate(ways):
        colour, shape = STYLES[index % len(STYLES)]
        points = [(rate, 100 * found.top1) for row, found, rate in good if (row.engine, row.precision) == way]
        panel.scatter(*zip(*points, strict=True), s=45, color=colour, marker=shape, label=", ".join(way), zorder=2)
    for name in dict.fromkeys(row.model for row, _, _ in good):
        points = sorted((rate, 100 * found.top1) for row, found, rate in good if row.model == name)
        panel.plot(*zip(*points, strict=True), color="0.8", linewidth=1, zorder=1)
        panel.annotate(plain(short_name(name)[-40:], 40), points[-1], (0, 7), textcoords="offset points", ha="center",
                       fontsize=8)  # fmt: skip
    told = "published"
    for row, found, rate in good:
        if row.published:
            panel.plot((rate, rate), (100 * found.top1, row.published.top1), color="0.8", linewidth=1, zorder=1)
            panel.scatter(rate, row.published.top1, s=45, facecolors="white", edgecolors="0.5", zorder=1, label=told)
            told = ""  # in the legend once
    panel.set_xscale("log")
    panel.margins(0.2)
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("speed (images a second, from file to answer)")
    panel.set_ylabel("top-1 accuracy (%)")
    panel.set_title(f"{good[0][1].count:,} images; {good[0][0].conditions['hardware']}", fontsize=9)
    panel.legend(fontsize=8)
    return render(figure, suffix)


def write(
    folder: str | Path,
    rows: Sequence[Evaluation],
    *,
    command: str,
    images: LabelledImages | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """evaluation.md, .csv, .json and .png of all rows, and a report of each model; returns the page's path.

    The report of a single model is in the folder itself, those of several in folders below. images: those evaluated,
    for the contact sheets. command: to type for the same again. notes: sentences for the reports. Raises as
    `write_report`.
    """
    folder = prepare_folder(folder)
    write_bytes(folder / "evaluation.csv", csv_bytes(rows))
    write_bytes(folder / "evaluation.json", json_bytes(dict(command=command, rows=[as_dict(row) for row in rows])))
    good = [(number, row, row.metrics) for number, row in enumerate(rows, 1) if row.metrics]
    links = []
    for number, row, found in good:
        name = f"{number}-{slug(row.model)[-80:]}-{row.engine}-{row.precision}"
        title = f"{row.model} on {row.conditions['data']}"
        about = [*notes, f"Classes: {row.classes}."]
        if row.published:
            about.append(f"Published on {row.dataset}: {percent(row.published.top1 / 100)} top-1, "
                         f"{percent(row.published.top5 / 100)} top-5.")  # fmt: skip
        page = write_report(
            folder / name if len(rows) > 1 else folder, found, title=title, command=command, answers=row.answers,
            conditions=dict(row.conditions) | {"images/s": f"{row.images_per_second:.4g}"}, images=images,
            unread=row.unread, notes=[*about, *filter(None, [row.note])],
        )  # fmt: skip
        links.append(f"- [{cell(row.model)}, {row.engine}, {row.precision}]({page.relative_to(folder).as_posix()})")
    picture = []
    if good and (data := draw_or_warn("evaluation.png", lambda: draw(rows))):
        write_bytes(folder / "evaluation.png", data)
        picture = ["![Accuracy against speed](evaluation.png)", ""]
    text = "\n".join(["# Evaluation", "", markdown(rows), *picture, "## Reports", "", *links, "", "## Repeat", "",
                      "```sh", command, "```", ""])  # fmt: skip
    write_bytes(folder / "evaluation.md", text_bytes(text))
    return folder / "evaluation.md"
