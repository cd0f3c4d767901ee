"""Measure what `tessella compare` reports: `scripts/bench compare DATA --models NAME...`.

pairs: models are compared on labeled images: accuracy with its interval, agreement, shared neighbors, and the
alignment of the new embeddings with the old ones. A model can be written as NAME:PRECISION or NAME:PRECISION:TRANSFORM;
such variants are compared with the model itself only, all others in both directions with each other. Of the alignment,
`kept` is what `tessella compare` reports; `kept_centered` is the same with the means of both embeddings subtracted
before it is fitted and used. `precision_*` is the share of the ten nearest images that have the class of the query, on
the half that the alignment was not fitted to: with old embeddings, with aligned queries among old embeddings, and with
new embeddings. It shows what a share of kept neighbors is worth.

interval: how often the interval of the difference contains the true difference. The probabilities are exact sums over
all outcomes for up to 100 images, not simulations. `melded` is the interval of the package, `scaled` the limits of
Clopper and Pearson for the share of gained images among the differing ones, times the observed share of these.

Rows are written to benchmarks/results as CSV files.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from table import RESULTS, write_table

from tessella.comparison.comparer import compare_outputs
from tessella.comparison.images import ComparedImages, open_images
from tessella.comparison.neighborhoods import fit_alignment, nearest_others, shared
from tessella.comparison.outputs import ImageSample, ModelOutputs, compute_outputs
from tessella.comparison.paired import beta_cdf, paired_difference
from tessella.comparison.subjects import ComparedModel
from tessella.predictor import load
from tessella.records import slug
from tessella.results import FloatArray, l2_normalize

BUILT_IN = (
    "convmixer_256_8_ks3_p4",
    "convit_ti_p4_32",
    "crossvit_ti_dagger_p4_32",
    "gmixer_ti_p4_32",
    "mixer_ti_p4_32",
)
PRECISIONS = (f"{BUILT_IN[0]}:bfloat16", f"{BUILT_IN[0]}:int8", f"{BUILT_IN[0]}:float32:fast")
SEED = 0
EMBEDDINGS = 4_000
TAIL = 0.025
IMAGES = (20, 50, 100)  # for the interval
DIFFERING, BETTER = (0.02, 0.1, 0.3, 0.8), (0.5, 0.6, 0.8, 0.95, 1.0)


# --- pairs ------------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """A model with its outputs for all images."""

    name: str
    subject: ComparedModel
    outputs: ModelOutputs


def measure_model(text: str, images: ComparedImages, sample: ImageSample, folder: Path) -> Measured:
    """Run a model, which is written as in the options, on all images."""
    parts = [text] if text.startswith(("local-dir:", "hf-hub:")) else text.split(":")
    name, precision, transform = [*parts, *("float32", "exact")[len(parts) - 1 :]]
    predictor = load(name, precision=precision, transform=transform)
    print(f"running {text}", flush=True)
    outputs = compute_outputs(predictor, images, sample, folder / slug(text), label=text)
    return Measured(text, ComparedModel.of_predictor(predictor), outputs)


def class_precision(neighbors_Nk: Any, labels_N: Any) -> float:
    """Return the share of the neighbors (N,k) that have the class of the query; labels_N: the classes (N,)."""
    return float((labels_N[neighbors_Nk] == labels_N[:, None]).mean())


def alignment_row(old_ND: FloatArray, new_NF: FloatArray, labels_N: Any) -> dict[str, float]:
    """Return figures on the half of the images that the alignment is not fitted to, for vectors (N,D) and (N,F)."""
    order = np.random.default_rng(SEED).permutation(len(old_ND))
    fitted, judged = order[: len(order) // 2], np.sort(order[len(order) // 2 :])
    old, new, labels = old_ND[judged], new_NF[judged], labels_N[judged]
    present = nearest_others(old, old)
    aligned = l2_normalize(new @ fit_alignment(old_ND[fitted], new_NF[fitted]).T)
    old_mean, new_mean = old_ND[fitted].mean(0), new_NF[fitted].mean(0)
    matrix = fit_alignment(old_ND[fitted] - old_mean, new_NF[fitted] - new_mean)
    centered = l2_normalize((new - new_mean) @ matrix.T + old_mean)
    return dict(
        kept_centered=shared(present, nearest_others(centered, old)),
        precision_old=class_precision(present, labels),
        precision_aligned=class_precision(nearest_others(aligned, old), labels),
        precision_new=class_precision(nearest_others(new, new), labels),
    )


def pair_row(old: Measured, new: Measured, images: ComparedImages, sample: ImageSample) -> dict[str, Any]:
    """Return the row of a pair."""
    result = compare_outputs((old.subject, old.outputs), (new.subject, new.outputs), images, sample, SEED)
    accuracy, agreement, neighbors, alignment = result.accuracy, result.agreement, result.neighbors, result.alignment
    assert accuracy is not None
    assert agreement is not None
    assert neighbors is not None
    if alignment is None:
        raise SystemExit(f"{accuracy.images:,} images are too few for an alignment")
    assert images.labels is not None
    kept = (old.outputs.ok & new.outputs.ok)[sample.rows]
    labels_N = images.labels[sample.rows][kept]
    figures = dict(
        old_accuracy=accuracy.old,
        new_accuracy=accuracy.new,
        gained=accuracy.gained,
        lost=accuracy.lost,
        **accuracy.change._asdict(),
        agreement=agreement.share,
        kappa=agreement.kappa,
        total_variation=agreement.total_variation,
        neighbors=neighbors.share,
        kept=alignment.kept,
        kept_reverse=alignment.kept_reverse,
        itself=alignment.itself,
        rerun=alignment.rerun,
        **alignment_row(old.outputs.vectors[kept], new.outputs.vectors[kept], labels_N),
    )
    rounded = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in figures.items()}
    return dict(old=old.name, new=new.name, images=accuracy.images) | rounded


def measure_pairs(
    data: str, models: list[str], limit: int | None, folder: Path, embeddings: int = EMBEDDINGS
) -> list[dict[str, Any]]:
    """Return a row per ordered pair of models, of variants of a model only with that model.

    folder: keeps their outputs. embeddings: number of images whose embeddings are compared.
    """
    images = open_images(data, [], None)
    if images.labels is None:
        raise SystemExit(f"{data} has no labels: {images.notes}")
    if limit is not None:
        chosen = np.sort(np.random.default_rng(SEED).permutation(len(images))[:limit])
        subset = images.items.subset(chosen)  # type: ignore[attr-defined]  # labeled images have it
        images = ComparedImages(subset, images.origin, subset.fingerprint, images.classes, subset.labels)
    everything = ImageSample.of(len(images), len(images), len(images.classes), SEED)
    measured = []
    for name in models:
        (folder / slug(name)).mkdir(parents=True, exist_ok=True)
        measured.append(measure_model(name, images, everything, folder))
    sample = ImageSample.of(len(images), embeddings, len(images.classes), SEED)
    measured = [model._replace(outputs=reduced(model.outputs, sample)) for model in measured]
    pairs = [pair for pair in itertools.permutations(measured, 2) if is_wanted(pair[0].name, pair[1].name)]
    rows = []
    for old, new in pairs:
        rows.append(pair_row(old, new, images, sample))
        print(f"compared {old.name} and {new.name}", flush=True)
    return rows


def reduced(outputs: ModelOutputs, sample: ImageSample) -> ModelOutputs:
    """Return outputs with the embeddings and probabilities of the images of a sample."""
    assert outputs.probabilities is not None
    return replace(outputs, vectors=outputs.vectors[sample.rows], probabilities=outputs.probabilities[sample.judged])


def is_wanted(old: str, new: str) -> bool:
    """Return whether a pair is compared: two models as they are, or variants of one model, one of them as it is."""
    if "local-dir:" in old + new:
        return True
    return ":" not in old + new or (old.split(":")[0] == new.split(":")[0] and (":" not in old or ":" not in new))


# --- interval ---------------------------------------------------------------------------------------------------------


def scaled_interval(images: int, gained: int, lost: int) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson for gained / (gained + lost), scaled to a difference."""
    differing = gained + lost
    if not differing:
        return 0.0, 0.0
    low = 0.0 if not gained else beta_quantile(TAIL, gained, lost + 1)
    high = 1.0 if not lost else beta_quantile(1 - TAIL, gained + 1, lost)
    return (2 * low - 1) * differing / images, (2 * high - 1) * differing / images


def beta_quantile(level: float, a: int, b: int) -> float:
    """Return a quantile of Beta(a,b), by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(np.array([middle]), a, b)[0] < level else (low, middle)
    return low


def log_binomial(count: int, total: int, rate: float) -> float:
    """Return the logarithm of the probability of `count` successes of `total`."""
    if rate in (0.0, 1.0):
        return 0.0 if count == total * rate else -math.inf
    ways = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return ways + count * math.log(rate) + (total - count) * math.log1p(-rate)


def measure_interval(images: int) -> Iterator[dict[str, Any]]:
    """Yield the coverage and the mean width of both intervals, by the rates of differing and of better answers."""
    outcomes = [(gained, m - gained) for m in range(images + 1) for gained in range(m + 1)]
    intervals = {pair: (paired_difference(images, *pair)[1:3], scaled_interval(images, *pair)) for pair in outcomes}
    for differing, better in itertools.product(DIFFERING, BETTER):
        truth = differing * (2 * better - 1)
        covered, width = np.zeros(2), np.zeros(2)
        for (gained, lost), both in intervals.items():
            m = gained + lost
            chance = math.exp(log_binomial(m, images, differing) + log_binomial(gained, m, better))
            for i, (low, high) in enumerate(both):
                covered[i] += chance * (low - 1e-9 <= truth <= high + 1e-9)
                width[i] += chance * (high - low)
        names = ("melded", "scaled")
        figures = {f"{name}_coverage": round(float(covered[i]), 5) for i, name in enumerate(names)}
        figures |= {f"{name}_width": round(float(width[i]), 5) for i, name in enumerate(names)}
        yield dict(images=images, differing=differing, better=better, difference=round(truth, 5)) | figures


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", metavar="DATA", help="labeled images; without them, only the interval")
    parser.add_argument(
        "--models", nargs="+", default=[*BUILT_IN, *PRECISIONS], metavar="NAME", help="models to compare"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="compare N images, drawn at random")
    parser.add_argument("--embeddings", type=int, default=EMBEDDINGS, metavar="N", help="embeddings to compare")
    parser.add_argument("--outputs", type=Path, metavar="FOLDER", help="keep the outputs of the models")
    parser.add_argument("--no-interval", action="store_true", help="do not measure the interval")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV files")
    args = parser.parse_args()
    if args.data:
        with tempfile.TemporaryDirectory(prefix="tessella-compare-") as folder:
            place = args.outputs or Path(folder)
            rows = measure_pairs(args.data, args.models, args.limit, place, args.embeddings)
        write_table("compare", rows, args.out)
    if not args.no_interval:
        write_table("compare-interval", [row for images in IMAGES for row in measure_interval(images)], args.out)


if __name__ == "__main__":
    main()
