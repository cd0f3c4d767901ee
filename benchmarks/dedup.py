"""Measure the threshold of `tessella dedup`: `scripts/bench dedup PHOTOS --others CLOTHING --models NAME...`.

Copies are made of every photograph in PHOTOS: crops at a random place, flips, recompressed and resized copies, and
combinations. For each threshold, `recall` is the fraction of photographs that are joined with their copy. PHOTOS, and
the images of each --others, are assumed to be different pictures: `false_pairs` of them are joined, and `false_images`
are in a cluster with others. Embeddings are rounded to float16 as in a run.

Rows are written to benchmarks/results as a CSV file: one per model, threshold and kind of copy, and one for each set of
different pictures. The summary shows the threshold at which --recall of the recompressed and resized copies are found,
the lowest one without a false pair, and the most similar pairs of different pictures, which may be true duplicates.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from neighbors import outputs_of
from numpy.typing import NDArray
from PIL import Image, ImageOps
from table import RESULTS, write_table

from tessella.data.decode import Pixels, decode
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.predictor import Predictor, load
from tessella.results import FloatArray, l2_normalize
from tessella.search.duplicates import SimilarityThreshold, join
from tessella.weights.catalogue import default_model

Edit: TypeAlias = Callable[[Image.Image, np.random.Generator], Image.Image]

THRESHOLDS = (*(round(0.7 + 0.01 * i, 2) for i in range(30)), 0.995)
QUALITY = 95  # of the JPEG file of a copy that is not about compression
SHOWN = 10  # most similar pairs of different pictures


def crop(fraction: float) -> Edit:
    """Return a function that keeps this fraction of each side, at a random place."""

    def edit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (max(round(fraction * side), 1) for side in image.size)
        left, top = (int(rng.integers(0, rest + 1)) for rest in (image.width - width, image.height - height))
        return image.crop((left, top, left + width, top + height))

    return edit


def scale(fraction: float) -> Edit:
    """Return a function that resizes both sides to this fraction."""

    def edit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return image.resize([max(round(fraction * side), 1) for side in image.size], Image.Resampling.BICUBIC)

    return edit


def flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the mirror image."""
    return ImageOps.mirror(image)


class Kind(NamedTuple):
    """A kind of copy. same: it shows the same picture in full, recompressed or resized."""

    edits: tuple[Edit, ...]
    quality: int = QUALITY
    same: bool = False


KINDS = {
    "JPEG 75": Kind((), 75, True),
    "JPEG 50": Kind((), 50, True),
    "JPEG 30": Kind((), 30, True),
    "1/2 size": Kind((scale(1 / 2),), same=True),
    "1/4 size": Kind((scale(1 / 4),), same=True),
    "1/2 size, JPEG 50": Kind((scale(1 / 2),), 50, True),
    "1/4 size, JPEG 30": Kind((scale(1 / 4),), 30, True),
    "crop 90 %": Kind((crop(0.9),)),
    "crop 80 %": Kind((crop(0.8),)),
    "crop 70 %": Kind((crop(0.7),)),
    "flip": Kind((flip,)),
    "crop 90 %, JPEG 75": Kind((crop(0.9),), 75),
    "crop 80 %, 1/2 size, JPEG 50": Kind((crop(0.8), scale(1 / 2)), 50),
    "flip, 1/2 size, JPEG 75": Kind((flip, scale(1 / 2)), 75),
    "crop 90 %, flip": Kind((crop(0.9), flip)),
}


def make_copy(pixels: Pixels, kind: Kind, rng: np.random.Generator) -> bytes:
    """Return the JPEG file of a copy of an image (H,W,3)."""
    image = Image.fromarray(pixels)
    for edit in kind.edits:
        image = edit(image, rng)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=kind.quality)
    return file.getvalue()


def embed(predictor: Predictor, images: Sequence[Source | bytes]) -> FloatArray:
    """Return embeddings (N,D) of length 1 as `dedup` compares them."""
    return l2_normalize(outputs_of(predictor, images)[1].astype(np.float16).astype(np.float32))


def copies(predictor: Predictor, photos: Sequence[Source], units_ND: FloatArray) -> dict[str, NDArray[np.float32]]:
    """Return the (N,) cosines of the photographs and their copies by kind. units_ND: embeddings of the photographs."""
    cosines = {}
    for name, kind in KINDS.items():
        files = [make_copy(decode(source.read()), kind, np.random.default_rng(i)) for i, source in enumerate(photos)]
        cosines[name] = np.einsum("nd,nd->n", units_ND, embed(predictor, files))
    return cosines


class Pairs(NamedTuple):
    """All pairs of N different pictures, the highest cosine first."""

    count: int  # N
    first: NDArray[np.int64]  # (P,)
    second: NDArray[np.int64]  # (P,)
    cosines: NDArray[np.float32]  # (P,)

    @classmethod
    def of(cls, units_ND: FloatArray) -> Pairs:
        """Return the pairs of embeddings (N,D) of length 1."""
        first, second = np.triu_indices(len(units_ND), 1)
        cosines = (units_ND @ units_ND.T)[first, second]
        order = np.argsort(-cosines, kind="stable")
        return cls(len(units_ND), first[order], second[order], cosines[order])

    def joined(self, threshold: float) -> tuple[int, int]:
        """Return the number of pairs that reach the threshold, and of pictures in a cluster with others."""
        pairs = int((self.cosines >= threshold).sum())
        root_N = join(np.arange(self.count), self.first[:pairs], self.second[:pairs])
        sizes_N = np.bincount(root_N, minlength=self.count)
        return pairs, int(sizes_N[sizes_N > 1].sum())


def threshold_for(cosines_N: NDArray[np.float32], recall: float) -> float:
    """Return the highest threshold, in steps of 0.01, at which this fraction of the cosines is reached."""
    reached = float(np.sort(cosines_N)[::-1][math.ceil(recall * len(cosines_N)) - 1])
    return math.floor(100 * reached) / 100


def lowest_without(pairs: Pairs) -> float:
    """Return the lowest threshold, in steps of 0.01, at which no pair of different pictures is joined."""
    return (math.floor(100 * float(pairs.cosines[0])) + 1) / 100


def measure(
    name: str, photos: Sequence[Source], others: dict[str, list[Source]], recall: float
) -> list[dict[str, Any]]:
    """Return the rows of a model, and print its summary."""
    predictor = load(name)
    units_ND = embed(predictor, photos)
    cosines = copies(predictor, photos, units_ND)
    sets = dict(photographs=(photos, Pairs.of(units_ND)))
    sets |= {label: (sources, Pairs.of(embed(predictor, sources))) for label, sources in others.items()}
    rows = []
    for threshold in THRESHOLDS:
        facts = dict(model=predictor.name, fingerprint=predictor.fingerprint, threshold=threshold)
        empty = dict(recall=None, images=None, false_pairs=None, false_images=None)
        for kind, cosines_N in cosines.items():
            found = float((cosines_N >= threshold).mean())
            rows.append(facts | dict(of=kind) | empty | dict(recall=round(found, 4), images=len(photos)))
        for label, (_, pairs) in sets.items():
            false_pairs, false_images = pairs.joined(threshold)
            counts = dict(images=pairs.count, false_pairs=false_pairs, false_images=false_images)
            rows.append(facts | dict(of=f"different {label}") | empty | counts)
    summarize(predictor.name, cosines, sets, recall)
    return rows


def summarize(
    name: str,
    cosines: dict[str, NDArray[np.float32]],
    sets: dict[str, tuple[Sequence[Source], Pairs]],
    recall: float,
) -> None:
    """Print the recall and false joins of a model at the thresholds that matter."""
    same = [cosines_N for kind, cosines_N in cosines.items() if KINDS[kind].same]
    present = SimilarityThreshold.of(name).value
    wanted = {
        f"present threshold {present}": present,
        f"{recall:.0%} of recompressed and resized copies": threshold_for(np.concatenate(same), recall),
        f"{recall:.0%} of each of their kinds": min(threshold_for(cosines_N, recall) for cosines_N in same),
        **{f"no false pair of {label}": lowest_without(pairs) for label, (_, pairs) in sets.items()},
    }
    print(f"\n{name}\n")
    print("| | " + " | ".join(f"{title}: {threshold:.2f}" for title, threshold in wanted.items()) + " |")
    print("| --- |" + " ---: |" * len(wanted))
    for kind, cosines_N in cosines.items():
        cells = (f"{(cosines_N >= threshold).mean():.1%}" for threshold in wanted.values())
        print(f"| {kind} | {' | '.join(cells)} |")
    for label, (_, pairs) in sets.items():
        joined = map(pairs.joined, wanted.values())
        print(f"| false pairs, images of {pairs.count} {label} | {' | '.join(f'{p}, {i}' for p, i in joined)} |")
    for label, (sources, pairs) in sets.items():
        print(f"\nthe most similar of {label}:")
        for i, j, cosine in zip(*(column[:SHOWN].tolist() for column in pairs[1:]), strict=True):
            print(f"  {cosine:.4f} {sources[i].key} {sources[j].key}")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", metavar="PHOTOS", help="different photographs: a folder, glob or archive")
    parser.add_argument("--others", nargs="*", default=[], metavar="INPUT", help="more different pictures")
    parser.add_argument("--part", default="", help="use only the images of --others with this text in their names")
    parser.add_argument("--models", nargs="+", default=[default_model()], metavar="NAME", help="models to measure")
    parser.add_argument("--recall", type=float, default=0.95, help="of copies, for the summary [default: 0.95]")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    photos = [*iter_sources([args.photos])]
    others = {
        Path(name).stem: [source for source in iter_sources([name]) if args.part in source.key] for name in args.others
    }
    rows = [row for name in args.models for row in measure(name, photos, others, args.recall)]
    write_table("dedup", rows, args.out)


if __name__ == "__main__":
    main()
