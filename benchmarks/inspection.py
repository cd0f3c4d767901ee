"""Measure what `tessella inspect` finds: `scripts/bench inspect labels|copies|audit|judged|scale DATA...`.

labels: a part of the labels is changed at random, and the findings are compared with what was changed. Precision counts
every other finding as wrong, also true label errors of the data. copies: copies of images (crops, mirror images,
recompressed and resized ones) are put into a test split; `recall` is the fraction of each kind that is found, and
`other_pairs` the pairs that were found without having been planted, some of which may be true duplicates of the data.
`compared` tells whose similarity counts: that of the tiles alone, or that of the images of pairs with similar tiles.
audit: all pairs of a test and a training image are scored; with --known, the recall of a published list of pairs
(columns TestID, TrainID, Judgment), and a random sample of each band of scores as pictures, for judging by eye. judged:
the precision and recall, scaled to all pairs, for the sample of an earlier audit that has been judged (--judgments).
scale: the time and memory of the command itself.

Rows are written to benchmarks/results as CSV files.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dedup import KINDS, make_copy
from numpy.typing import NDArray
from table import RESULTS, write_table

from tessella.data.all_splits import SplitImages, open_all_splits
from tessella.data.decode import decode
from tessella.data.resize import resize_exact
from tessella.inspection.alignment import compare_tiles
from tessella.inspection.copies import CANDIDATE, LIKELY, Copies, compare_details, find_copies
from tessella.inspection.label_errors import find_label_errors
from tessella.inspection.measuring import Measurements, measure, picture_reader
from tessella.inspection.neighbors import Neighbors, find_neighbors
from tessella.inspection.outliers import NEIGHBORS
from tessella.inspection.pixel_statistics import tile_of
from tessella.inspection.settings import InspectionSettings
from tessella.plots.sheet import encode_png
from tessella.predictor import Predictor, load
from tessella.weights.catalogue import default_model

MARGINS = (0.0, 0.25, 0.5, 0.75, 0.9)  # cuts of the findings
BANDS = (0.45, 0.6, 0.7, 0.8, 0.9, 1.01)  # of scores, for the sample that is judged by eye
NEAR = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.84, 0.86, 0.9, 0.95)  # similarities of images
NEAR_TILES = (0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98)  # similarities of tiles
SAME = "same picture"  # a judgment
SIDE, ACROSS = 96, 6  # pixels of a picture in a sheet, and pairs per row


def measured_of(images: SplitImages, predictor: Predictor, cache: Path | None) -> tuple[Measurements, Neighbors]:
    """Return the measurements of images, all of which have to be readable, and their neighbors."""
    measured = measure(images, predictor, cache)
    if not measured.ok.all():
        raise SystemExit("some images cannot be read")
    return measured, find_neighbors(measured.vectors, NEIGHBORS)


# --- label errors -----------------------------------------------------------------------------------------------------


def flip_labels(
    labels_N: NDArray[np.int64], classes: int, fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return labels (N,) of which a fraction is replaced by another class at random, and which ones (N,)."""
    changed = np.zeros(len(labels_N), bool)
    changed[rng.permutation(len(labels_N))[: round(fraction * len(labels_N))]] = True
    moved = (labels_N + rng.integers(1, classes, len(labels_N))) % classes
    return np.where(changed, moved, labels_N), changed


def measure_labels(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per data set, seed and cut."""
    rows = []
    predictor = load(args.model)
    for name in args.data:
        images = open_all_splits([name])
        chosen = np.arange(len(images))
        if args.part:
            chosen = np.flatnonzero([images.split_of(i) == args.part for i in range(len(images))])
        if args.images:
            chosen = np.sort(np.random.default_rng(0).permutation(chosen)[: args.images])
        measured, neighbors = measured_of(images, predictor, cache_of(args, name))
        with picture_reader(images, predictor) as read:
            group = find_copies(measured, neighbors, InspectionSettings().near, predictor.name, read).group[chosen]
        labels, classes = images.images.labels[chosen], len(images.images.classes)
        for seed in range(args.seeds):
            given, changed = flip_labels(labels, classes, args.fraction, np.random.default_rng(seed))
            found = find_label_errors(measured.vectors[chosen], given, group, classes, seed=seed)
            assert found is not None
            facts = dict(
                data=Path(name).name, images=len(chosen), model=predictor.name, seed=seed, fraction=args.fraction
            )
            facts |= dict(changed=int(changed.sum()), estimated=found.estimated, accuracy=round(found.accuracy, 4))
            cuts = {f"margin {margin}": found.confident & (found.margin >= margin) for margin in MARGINS}
            best = np.argsort(-found.margin, kind="stable")
            for times in (0.5, 1.0, 2.0):
                top = np.zeros(len(changed), bool)
                top[best[: round(times * changed.sum())]] = True
                cuts[f"first {times} x changed"] = top
            for cut, is_found in cuts.items():
                hits = int((is_found & changed).sum())
                scores = dict(
                    cut=cut,
                    found=int(is_found.sum()),
                    precision=round(hits / max(int(is_found.sum()), 1), 4),
                    recall=round(hits / int(changed.sum()), 4),
                    renamed=round(float((found.suggested == labels)[is_found & changed].mean()), 4) if hits else None,
                )
                rows.append(facts | scores)
    return rows


# --- copies -----------------------------------------------------------------------------------------------------------


def plant(images: SplitImages, chosen: NDArray[np.int64], each: int, folder: Path) -> dict[str, str]:
    """Write the chosen images as a training split and copies of them as a test split.

    Each kind of copy is made of `each` other images. Returns the kind of copy by the name of its file.
    """
    kinds = {}
    rng = np.random.default_rng(0)
    sources = iter(rng.permutation(chosen).tolist())
    for i in chosen.tolist():
        path = folder / "train" / "images" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.images.read(i))
    (folder / "test" / "images").mkdir(parents=True)
    for kind, recipe in KINDS.items():
        for _ in range(each):
            i = next(sources)
            name = f"{i}.jpg"
            (folder / "test" / "images" / name).write_bytes(make_copy(decode(images.images.read(i)), recipe, rng))
            kinds[name] = kind
    return kinds


def measure_copies(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per data set, threshold and kind of copy."""
    rows = []
    predictor = load(args.model)
    for name in args.data:
        images = open_all_splits([name])
        chosen = np.flatnonzero([not args.part or images.split_of(i) == args.part for i in range(len(images))])
        if args.images:
            chosen = np.sort(np.random.default_rng(0).permutation(chosen)[: args.images])
        with tempfile.TemporaryDirectory() as temporary:
            kinds = plant(images, chosen, args.each, Path(temporary))
            planted = open_all_splits([temporary])
            measured, neighbors = measured_of(planted, predictor, None)
            pairs = scored_pairs(planted, measured, neighbors, predictor)
        keys = [planted.images.key(i).rpartition("/")[2] for i in range(len(planted))]
        crosses = planted.split[pairs.i] != planted.split[pairs.j]
        is_planted = crosses & np.array([keys[i] == keys[j] for i, j in zip(pairs.i, pairs.j, strict=True)], bool)
        of_kind = np.array([kinds.get(keys[i], "") for i in pairs.i])
        facts = dict(data=Path(name).name, images=len(chosen), model=predictor.name, copies=args.each)
        is_exact = pairs.kind == "exact"
        similarities = {
            "tiles": (NEAR_TILES, compare_tiles(measured.tiles[pairs.i], measured.tiles[pairs.j]).score),
            "images": (NEAR, np.where(pairs.kind == "near", pairs.score, 0)),
        }
        for compared, (thresholds, similarity) in similarities.items():
            for near in thresholds:
                is_near = is_exact | (similarity >= near)
                others = int((is_near & ~is_planted).sum())
                counts = dict(other_pairs=others, other_pairs_per_1000=round(1000 * others / len(planted), 2))
                for kind in KINDS:
                    found = int((is_near & is_planted & (of_kind == kind)).sum())
                    row = dict(compared=compared, near=near, kind=kind, recall=round(found / args.each, 4))
                    rows.append(facts | row | counts)
        report_others(pairs, ~is_planted, planted)
    return rows


def scored_pairs(images: SplitImages, measured: Measurements, neighbors: Neighbors, predictor: Predictor) -> Copies:
    """Return all pairs whose images are compared, with their scores: the lowest threshold keeps all of them."""
    with picture_reader(images, predictor) as read:
        return find_copies(measured, neighbors, 1e-6, predictor.name, read)


def report_others(pairs: Copies, chosen: NDArray[np.bool_], images: SplitImages) -> None:
    """Print the most similar pairs that were not planted."""
    rows = np.flatnonzero(chosen)
    for row in rows[np.argsort(-pairs.score[rows])][:10]:
        first, second = images.images.key(int(pairs.i[row])), images.images.key(int(pairs.j[row]))
        print(f"  {pairs.score[row]:.3f} {pairs.cosine[row]:.3f} {first} {second}")


# --- audit ------------------------------------------------------------------------------------------------------------


def measure_audit(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per threshold, and write the sample. Candidates are the nearest training images of a test image."""
    predictor = load(args.model)
    images = open_all_splits(args.data)
    measured = measure(images, predictor, cache_of(args, "audit"))
    is_test = np.array([images.split_of(i) == "test" for i in range(len(images))])
    tests, trains = np.flatnonzero(is_test & measured.ok), np.flatnonzero(~is_test & measured.ok)
    cosine, nearest = nearest_of(measured.vectors[tests], measured.vectors[trains], args.candidates)
    row, column = np.nonzero(cosine >= CANDIDATE)
    pairs = Pairs(row, nearest[row, column], np.zeros(len(row), np.float32))
    step = 4_096
    for first in range(0, len(row), step):
        part = slice(first, first + step)
        ends = measured.tiles[tests[pairs.test[part]]], measured.tiles[trains[pairs.train[part]]]
        pairs.score[part] = compare_tiles(*ends).score
    is_likely = pairs.score >= LIKELY
    likely = np.flatnonzero(is_likely)
    pairs.score[likely] = score_images(images, measured, predictor, tests[row[likely]], trains[pairs.train[likely]])
    known = read_known(args.known) if args.known else {}
    rows = []
    for near in NEAR:
        found = is_likely & (pairs.score >= near)
        named = set(zip(pairs.test[found].tolist(), pairs.train[found].tolist(), strict=True))
        tested = {test for test, _ in named}
        facts = dict(model=predictor.name, near=near, compared=len(row), tests=len(tests))
        facts |= dict(pairs=len(named), test_images=len(tested))
        for judgment in sorted(set(known.values())):
            wanted = [pair for pair, value in known.items() if value == judgment]
            facts[f"recall_pairs_{judgment}"] = round(sum(pair in named for pair in wanted) / len(wanted), 4)
            facts[f"recall_images_{judgment}"] = round(sum(test in tested for test, _ in wanted) / len(wanted), 4)
        rows.append(facts)
    if args.sample:
        write_sample(args, images, pairs, tests, trains)
    return rows


def score_images(
    images: SplitImages, measured: Measurements, predictor: Predictor, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the similarity of the images of pairs (P,)."""
    with picture_reader(images, predictor) as read:
        return compare_details(read, i, j, compare_tiles(measured.tiles[i], measured.tiles[j]), None)


class Pairs(NamedTuple):
    """Pairs of a test and a training image, by their numbers in their splits, and their scores: (P,) each."""

    test: NDArray[np.int64]
    train: NDArray[np.int64]
    score: NDArray[np.float32]


def nearest_of(
    queries_QD: NDArray[np.float16], vectors_ND: NDArray[np.float16], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the cosines (Q,count) of the nearest vectors (N,D) of each query (Q,D), and their rows."""
    wide_DN = vectors_ND.astype(np.float32).T
    cosines, rows = [], []
    for first in range(0, len(queries_QD), 500):
        cosine = queries_QD[first : first + 500].astype(np.float32) @ wide_DN
        best = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        rows.append(best)
        cosines.append(np.take_along_axis(cosine, best, 1))
    return np.concatenate(cosines), np.concatenate(rows)


def read_known(path: Path) -> dict[tuple[int, int], str]:
    """Return the judgments of pairs of a test and a training image in a published list."""
    with path.open(newline="") as file:
        return {(int(row["TestID"]), int(row["TrainID"])): row["Judgment"] for row in csv.DictReader(file)}


def write_sample(
    args: argparse.Namespace,
    images: SplitImages,
    pairs: Pairs,
    tests: NDArray[np.int64],
    trains: NDArray[np.int64],
) -> None:
    """Write a sheet of pictures per band of scores, and a CSV file of its pairs with an empty judgment.

    A test image occurs once, in its strongest pair.
    """
    rng = np.random.default_rng(0)
    order = np.argsort(-pairs.score, kind="stable")
    strongest = order[np.unique(pairs.test[order], return_index=True)[1]]
    lines = []
    args.sample.mkdir(parents=True, exist_ok=True)
    for low, high in itertools.pairwise(BANDS):
        inside = strongest[(pairs.score[strongest] >= low) & (pairs.score[strongest] < high)]
        chosen = rng.permutation(inside)[: args.per_band]
        cells = []
        for pair in chosen[np.argsort(-pairs.score[chosen], kind="stable")].tolist():
            test, train = int(pairs.test[pair]), int(pairs.train[pair])
            sides = [enlarged(images.images.read(int(i))) for i in (tests[test], trains[train])]
            cells.append(np.concatenate([*sides, np.full((SIDE, 12, 3), 255, np.uint8)], 1))
            facts = dict(index_test=test, index_train=train, score=round(float(pairs.score[pair]), 4), judgment="")
            lines.append(dict(band=f"{low}-{min(high, 1.0)}", in_band=len(inside)) | facts)
        if cells:
            cells += [np.full_like(cells[0], 255)] * (-len(cells) % ACROSS)
            gap = np.full((8, cells[0].shape[1] * ACROSS, 3), 255, np.uint8)
            lines_of_cells = [np.concatenate(cells[i : i + ACROSS], 1) for i in range(0, len(cells), ACROSS)]
            sheet = np.concatenate([part for line in lines_of_cells for part in (line, gap)])
            (args.sample / f"band-{low}.png").write_bytes(encode_png(sheet))
    with (args.sample / "sample.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(f"{len(lines)} pairs in {args.sample}")


# --- judged pairs -----------------------------------------------------------------------------------------------------


def measure_judged(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per threshold: the precision and recall of the judged pairs, each weighted by its band."""
    with args.judgments.open(newline="") as file:
        lines = list(csv.DictReader(file))
    images, predictor = open_all_splits(args.data), load(args.model)
    is_test = np.array([images.split_of(i) == "test" for i in range(len(images))])
    i = np.flatnonzero(is_test)[[int(line["index_test"]) for line in lines]]
    j = np.flatnonzero(~is_test)[[int(line["index_train"]) for line in lines]]
    with picture_reader(images, predictor) as read:
        pictures = read(np.union1d(i, j).tolist())
        tiles = [np.stack([tile_of(pictures[index]) for index in side.tolist()]) for side in (i, j)]
        found = compare_tiles(*tiles)
        score = np.where(found.score >= LIKELY, compare_details(read, i, j, found, None), 0)
    is_same = np.array([line["judgment"] == SAME for line in lines])
    bands = [line["band"] for line in lines]
    weight = np.array([int(line["in_band"]) / bands.count(line["band"]) for line in lines])
    rows = []
    for compared, thresholds, similarity in (("tiles", NEAR_TILES, found.score), ("images", NEAR, score)):
        for near in thresholds:
            is_near = similarity >= near
            hits = float(weight[is_near & is_same].sum())
            counts = dict(found=int(is_near.sum()), same=int((is_near & is_same).sum()))
            parts = dict(precision=round(hits / max(float(weight[is_near].sum()), 1e-9), 4))
            parts |= dict(recall=round(hits / float(weight[is_same].sum()), 4))
            rows.append(dict(model=predictor.name, judged=len(lines), compared=compared, near=near) | counts | parts)
    return rows


def enlarged(data: bytes) -> NDArray[np.uint8]:
    """Return an encoded image as (SIDE,SIDE,3), with visible pixels."""
    return resize_exact(decode(data), SIDE, SIDE, slice(0, SIDE), slice(0, SIDE), "nearest")


# --- time and memory --------------------------------------------------------------------------------------------------


def measure_scale(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the row of one run of the command in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        out, listed = Path(temporary) / "out", Path(temporary) / "clean.csv"
        command = [sys.executable, "-m", "tessella", "inspect", *args.data, "-m", args.model, "-o", str(out)]
        start = time.perf_counter()
        done = subprocess.run([*command, "--write-list", str(listed), "--json"], capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stderr)
        facts = json.loads(done.stdout)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        stages = {f"seconds_{name}": round(value, 1) for name, value in facts["seconds"].items()}
        stored = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
        page = (out / "report" / "index.html").stat().st_size / 1e6
    row = dict(images=facts["images"], model=facts["model"], seconds=round(seconds, 1), **stages)
    return [row | dict(peak_mb=round(peak), stored_mb=round(stored, 1), report_mb=round(page, 2))]


def cache_of(args: argparse.Namespace, name: str) -> Path | None:
    return None if args.cache is None else args.cache / f"{Path(name).name}-{args.model}"


TARGETS = dict(
    labels=measure_labels, copies=measure_copies, audit=measure_audit, judged=measure_judged, scale=measure_scale
)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, help="what to measure")
    parser.add_argument("data", nargs="+", metavar="DATA", help="labeled images; audit: a training and a test file")
    parser.add_argument("--model", default=default_model(), metavar="NAME", help="model of the embeddings")
    parser.add_argument("--part", default="", metavar="SPLIT", help="use only this split [default: all images]")
    parser.add_argument("--images", type=int, metavar="N", help="use only N images, drawn at random")
    parser.add_argument("--fraction", type=float, default=0.05, help="of the labels to change [default: 0.05]")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of random draws [default: 3]")
    parser.add_argument("--each", type=int, default=50, metavar="N", help="copies of each kind [default: 50]")
    parser.add_argument("--known", type=Path, metavar="FILE", help="published list of pairs, for audit")
    parser.add_argument("--judgments", type=Path, metavar="FILE", help="judged sample of an audit, for judged")
    parser.add_argument("--sample", type=Path, metavar="FOLDER", help="write pictures of a sample, for audit")
    parser.add_argument("--candidates", type=int, default=5, metavar="N", help="neighbors to compare [default: 5]")
    parser.add_argument("--per-band", type=int, default=36, metavar="N", help="pairs of each band [default: 36]")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep embeddings there for the next call")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    rows = TARGETS[args.target](args)
    write_table(f"inspect-{args.target}", rows, args.out)


if __name__ == "__main__":
    main()
