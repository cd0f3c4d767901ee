"""Measure the faithfulness of attribution maps: `scripts/bench explain --cifar TEST --photos PHOTOS`.

For every model, images are drawn at random, the class that the model gives the highest logit is explained by every
method that applies to the model, and each map is scored beside random maps (`tessella.explain.faithfulness`). Parts of
a map, such as those of CrossViT's branches, have rows of their own. Two controls that know neither model nor class are
scored in the same way: `random`, smooth noise, whose rate of "faithful" is the rate of false alarms, and `center`, a
map that falls with the distance from the middle of the image.

    --cifar   cifar10-test.parquet, for models with ten classes
    --photos  photographs, such as an archive of them, for models with 1,000 classes

Occlusion and integrated gradients compare the image with its blurred copy, as the scores do; --removal mean shows
whether their lead depends on that. Occlusion of the cells themselves has a correlation of 1 by its definition.

Columns: part of the images where deletion, insertion and correlation are better than 97.5 % of random maps, and where
two of the three are (`faithful`); the mean rank correlation, and the mean limits of 95 % of random maps; by how much
deletion lowers and insertion raises the mean score more than random maps do, as a part of what the score loses when the
whole image is blurred; median milliseconds of a map, and of its score if it is the first of an image.
Rows are written to benchmarks/results as a CSV file and printed as a table in Markdown, best method first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from table import RESULTS, write_table

from tessella.data.sources import iter_sources
from tessella.errors import ImageError
from tessella.explain.faithfulness import REMOVALS, Faithfulness, Score, Scorer, ScoreSettings
from tessella.explain.maps import AttributionMap
from tessella.explain.methods import attribute, methods_for
from tessella.explain.random_maps import random_fields
from tessella.explain.subject import PreparedImage, Subject
from tessella.predictor import load
from tessella.weights.catalogue import CATALOGUE

BUILTIN = tuple(name for name, row in CATALOGUE.items() if row.file)
FIGURES = ("deletion", "insertion", "correlation")
CONTROLS = ("random", "center")
SMOOTHNESS = 1.0  # of the random control, as the width of a kernel in cells
TITLES = dict(
    model="model", method="method", faithful="faithful", deletion_better="deletion", insertion_better="insertion",
    correlation_better="correlation", correlation="rank correlation", correlation_random="of random maps",
    deletion_gain="deletion, gain", insertion_gain="insertion, gain", map_ms="map, ms", score_ms="score, ms",
)  # fmt: skip
SHARES = ("faithful", "deletion_better", "insertion_better", "correlation_better", "deletion_gain", "insertion_gain")


def control(name: str, image: PreparedImage, cells: tuple[int, int], seed: int) -> AttributionMap:
    """Return a map (rows,columns) that knows neither model nor class: one of CONTROLS. The image only seeds chance."""
    rows, columns = cells
    if name == "random":
        rng = np.random.default_rng((seed, zlib.crc32(image.pixels.tobytes())))
        values = random_fields(rng, 1, cells, SMOOTHNESS)[0]
    else:
        places = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
        values = -np.hypot(*places)
    return AttributionMap(values.astype(np.float32), name)


def maps_of(
    subject: Subject, image: PreparedImage, target: int, methods: Sequence[str], seed: int
) -> Iterator[tuple[AttributionMap, str, float | None]]:
    """Yield the maps of every method with their names and seconds; a part of a map has no time of its own."""
    for method in methods:
        started = time.perf_counter()
        found = attribute(subject, image, target, method, seed=seed)
        yield found, method, time.perf_counter() - started
        for part, values in found.parts.items():
            yield AttributionMap(values, method), f"{method}, {part}", None


def measure_image(
    subject: Subject, image: PreparedImage, methods: Sequence[str], settings: ScoreSettings, seed: int
) -> Iterator[tuple[str, Faithfulness, float | None, float | None]]:
    """Yield the name of each map of an image, its scores, its seconds, and those of its score without a cache."""
    target = int(subject.logits(image.x)[0].argmax())
    scorer = Scorer(subject, image, target, settings=settings, seed=seed)
    for place, (found, name, seconds) in enumerate(maps_of(subject, image, target, methods, seed)):
        started = time.perf_counter()
        scores = scorer.score(found)
        yield name, scores, seconds, None if place else time.perf_counter() - started
    for name in CONTROLS:
        yield name, scorer.score(control(name, image, scorer.cells, seed)), None, None


def gain(pairs: Sequence[tuple[Score, float]]) -> float:
    """Return by how much scores exceed those of random maps, as a part of the second numbers, all summed first."""
    return sum(score.value - score.random_mean for score, _ in pairs) / max(sum(lost for _, lost in pairs), 1e-12)


def summarize(found: Sequence[Faithfulness]) -> dict[str, float]:
    """Return the figures of one method over all images."""
    lost = [abs(float(scores.deletion_curve.values[0] - scores.deletion_curve.values[-1])) for scores in found]
    correlations = [scores.correlation for scores in found]
    return dict(
        faithful=mean(scores.faithful for scores in found),
        **{f"{name}_better": mean(getattr(scores, name).better for scores in found) for name in FIGURES},
        correlation=mean(score.value for score in correlations),
        random_low=mean(score.random_low for score in correlations),
        random_high=mean(score.random_high for score in correlations),
        deletion_gain=round(-gain([(scores.deletion, part) for scores, part in zip(found, lost, strict=True)]), 4),
        insertion_gain=round(gain([(scores.insertion, part) for scores, part in zip(found, lost, strict=True)]), 4),
        smoothness=mean(scores.smoothness for scores in found),
    )


def mean(values: Iterator[float]) -> float:
    return round(float(np.mean([*values])), 4)


def median_ms(seconds: Sequence[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return round(1000 * statistics.median(known), 1) if known else None


def measure_model(
    name: str, sources: Sequence[Any], methods: Sequence[str], settings: ScoreSettings, seed: int
) -> list[dict[str, Any]]:
    """Return one row per method of a model, the most faithful first, then the controls."""
    subject = Subject(load(name))
    applicable = [method for method in methods_for(subject.model) if not methods or method in methods]
    results: dict[str, list[tuple[Faithfulness, float | None, float | None]]] = {}
    cells, images = (0, 0), 0
    for _, image in subject.prepare(sources):
        if isinstance(image, ImageError):
            raise image
        images += 1
        for method, scores, map_s, score_s in measure_image(subject, image, applicable, settings, seed):
            results.setdefault(method, []).append((scores, map_s, score_s))
            cells = scores.cells
    conditions = dict(images=images, cells=f"{cells[0]} x {cells[1]}", **asdict(settings), seed=seed)
    score_ms = median_ms([score_s for measured in results.values() for *_, score_s in measured])
    rows: list[dict[str, Any]] = [
        dict(model=name, family=subject.family, method=method)
        | summarize([scores for scores, *_ in measured])
        | dict(map_ms=median_ms([map_s for _, map_s, _ in measured]), score_ms=score_ms)
        | conditions
        for method, measured in results.items()
    ]
    return sorted(rows, key=order)


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    """Sort methods by the part of images where they are faithful, then by the parts of the three figures."""
    return row["method"] in CONTROLS, -row["faithful"], -sum(row[f"{name}_better"] for name in FIGURES), row["method"]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| " + " | ".join(TITLES.values()) + " |", "| --- | --- |" + " ---: |" * (len(TITLES) - 2)]
    lines += ["| " + " | ".join(_cell(column, row) for column in TITLES) + " |" for row in rows]
    return "\n".join(lines)


def _cell(column: str, row: dict[str, Any]) -> str:
    if column == "correlation_random":
        return f"{row['random_low']:.2f} to {row['random_high']:.2f}"
    value = row[column]
    if value is None:
        return ""
    if column in SHARES:
        return f"{100 * value:.0f} %"
    if column == "correlation":
        return f"{value:.2f}"
    if column.endswith("_ms"):
        return f"{value:,.0f}"
    return f"`{value}`" if column == "model" else str(value)


def draw_sources(path: Path, count: int, seed: int) -> list[Any]:
    """Return `count` images of an input at random, in its order, or all if it has fewer."""
    sources = [*iter_sources([path])]
    chosen = np.random.default_rng(seed).permutation(len(sources))[:count]
    return [sources[place] for place in np.sort(chosen)]


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of all models for whose number of classes there are images."""
    for name in args.models:
        path = args.cifar if load(name).num_classes == 10 else args.photos
        if path is None:
            print(f"{name}: no images, so it is left out", file=sys.stderr)
            continue
        started = time.perf_counter()
        sources = draw_sources(path, args.images, args.seed)
        rows = measure_model(name, sources, args.methods, ScoreSettings(removal=args.removal), args.seed)
        seconds = time.perf_counter() - started
        print(f"{name}: {seconds:.0f} s\n{markdown(rows)}\n", file=sys.stderr, flush=True)
        yield from rows


def parse_args() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=BUILTIN, metavar="NAME", help="models [default: all built-in ones]")
    add("--methods", nargs="+", default=[], metavar="NAME", help="methods [default: all that apply to a model]")
    add("--images", type=int, default=200, metavar="N", help="images per model [default: 200]")
    add("--cifar", type=Path, metavar="TEST", help="cifar10-test.parquet")
    add("--photos", type=Path, metavar="INPUT", help="photographs for models with 1,000 classes")
    add("--removal", choices=REMOVALS, default="blur", help="what replaces removed cells [default: blur]")
    add("--seed", type=int, default=0, help="of the images and random maps [default: 0]")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    if not (args.cifar or args.photos):
        parser.error("needs --cifar or --photos")
    return args


def main() -> None:
    args = parse_args()
    rows = [*measure(args)]
    write_table("explain", rows, args.out)
    print(f"\n{markdown(rows)}")


if __name__ == "__main__":
    main()
