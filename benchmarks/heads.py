"""Measure the teaching of classes: `scripts/bench heads RUN`.

RUN is an indexed run of labeled images, whose folder is the class; the model should not have been trained on them. For
each class, number of marked images and draw, images are marked yes and no, and all others are ranked. The images marked
no are drawn at random from the other classes ("random"), or are those most similar to the mean of the images marked yes
("hard"), as somebody marks who looks at the first results. The measure is the mean average precision.

Methods: `head`: `tessella.search.Head`. `marked only`: the same without rows of the background. `mean`: the cosine with
the mean of the images marked yes. `mean - WEIGHT no`: the same, minus this part of the mean of those marked no.
Rows are written to benchmarks/results as a CSV file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from table import RESULTS, write_table

from tessella.results import FloatArray
from tessella.search import Index
from tessella.search.heads import background_rows, fit_linear

SHOTS = (3, 5, 10)
DRAWS = 5
WEIGHTS = (0.25, 0.5, 1.0)
Marks: TypeAlias = NDArray[np.int64]
Method: TypeAlias = Callable[[Marks, Marks], FloatArray]  # rows marked yes and no -> scores of all rows


def average_precision(scores_N: FloatArray, positive_N: NDArray[np.bool_]) -> float:
    """Return the mean precision at the places of the positive rows (N,) in the ranking by scores (N,)."""
    hits_N = positive_N[np.argsort(-scores_N, kind="stable")]
    return float((np.cumsum(hits_N) / np.arange(1, len(hits_N) + 1))[hits_N].mean())


def methods_of(index: Index, vectors_ND: FloatArray) -> dict[str, Method]:
    """Return the methods to compare. vectors_ND: the embeddings (N,D) of all rows of the index, in its order."""
    rows_N = index.columns.rows

    def head(yes: Marks, no: Marks) -> FloatArray:
        background = np.searchsorted(rows_N, background_rows(index, rows_N[np.concatenate((yes, no))].tolist()))
        return vectors_ND @ fit_linear(vectors_ND[yes], vectors_ND[no], vectors_ND[background]).weights

    def marked_only(yes: Marks, no: Marks) -> FloatArray:
        return vectors_ND @ fit_linear(vectors_ND[yes], vectors_ND[no], vectors_ND[:0]).weights

    def mean(weight: float) -> Method:
        return lambda yes, no: vectors_ND @ (vectors_ND[yes].mean(0) - np.float32(weight) * vectors_ND[no].mean(0))

    means = {f"mean - {weight:g} no": mean(weight) for weight in WEIGHTS}
    return {"head": head, "marked only": marked_only, "mean": mean(0), **means}


def marks(
    vectors_ND: FloatArray, positive_N: NDArray[np.bool_], shots: int, kind: str, rng: np.random.Generator
) -> tuple[Marks, Marks]:
    """Return the rows to mark yes and no, `shots` of each."""
    yes = rng.choice(np.flatnonzero(positive_N), shots, replace=False)
    others = np.flatnonzero(~positive_N)
    if kind == "random":
        return yes, rng.choice(others, shots, replace=False)
    similarities = vectors_ND[others] @ vectors_ND[yes].mean(0)
    return yes, others[np.argsort(-similarities, kind="stable")[:shots]]


def measure(index: Index) -> Iterator[dict[str, Any]]:
    """Yield one row per kind of marks, number of marked images and method."""
    rows = index.columns.rows
    vectors_ND = index.vectors(rows)
    labels_N = np.array([Path(row.key).parent.name for row in index.neighbors(rows)])
    classes = np.unique(labels_N)
    methods = methods_of(index, vectors_ND)
    for kind in ("random", "hard"):
        for shots in SHOTS:
            found: dict[str, list[float]] = {name: [] for name in methods}
            for label in classes:
                for draw in range(DRAWS):
                    positive_N = labels_N == label
                    yes, no = marks(vectors_ND, positive_N, shots, kind, np.random.default_rng(draw))
                    rest_N = np.ones(len(labels_N), bool)
                    rest_N[np.concatenate((yes, no))] = False
                    for name, method in methods.items():
                        found[name].append(average_precision(method(yes, no)[rest_N], positive_N[rest_N]))
            for name, values in found.items():
                conditions = dict(images=len(labels_N), classes=len(classes), draws=DRAWS, model=index.facts["model"])
                yield dict(kind=kind, marked=shots, method=name, map=round(float(np.mean(values)), 4)) | conditions


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="indexed run of labeled images")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    write_table("heads", [*measure(Index(args.run))], args.out)


if __name__ == "__main__":
    main()
