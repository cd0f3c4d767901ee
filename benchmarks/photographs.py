"""Measure models on photographs and on CIFAR-10: `scripts/bench photographs --clothing CLOTHING --photos PHOTOS ...`.

Every data set is optional; a figure that needs a missing one is left out.

    --clothing  labeled photographs in train, validation and test/CLASS/, as a folder or a .tar of one: `tessella probe`
                on the validation images (nearest neighbors and linear probe), with --test also on the test images
    --photos    photographs named by WordNet id, one per class of ImageNet-1k: top-1 and top-5 of models with these
                classes; with --teacher, the recall of its ten nearest neighbors among ten of the model's
    --cifar     cifar10-train.parquet, beside cifar10-test.parquet: `tessella probe` on the test images, and retrieval,
                where every test image is the query among all others
    --teacher   classifier of ImageNet-1k as a .tflite file (see teacher.py), the first row

Neighbors are ranked by the cosine of the embeddings; those of the teacher are centered by their mean over the
photographs first (`photos_recall_centered`: those of the model as well). Images per second are those of the default
engine on decoded pixels, in rounds in which all models take turns. --sheet draws the nearest neighbors of ten
photographs. A model is a name, local-dir:FOLDER, or run:RUN for the newest checkpoint of `tessella train`; LABEL=
before it names its row. Rows are written to benchmarks/results as a CSV file, and printed as tables in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import run_model
from neighbors import CLASS_OF, QUERIES, Ints, centered, draw_neighbors, name_of, nearest, outputs_of, recall
from snapshot import write_snapshot
from table import RESULTS, write_table
from teacher import CROP, export_teacher

from tessella.data.datasets import LabelledImages, open_labelled, open_split
from tessella.data.sources import iter_sources
from tessella.engine.artefacts import GRAPHS
from tessella.evaluation.embeddings import embed
from tessella.evaluation.linear_probe import probe
from tessella.evaluation.settings import ProbeSettings
from tessella.predictor import Predictor, load
from tessella.results import FloatArray
from tessella.search.retrieval_metrics import retrieval
from tessella.weights.catalogue import BUILTIN_FOLDER, CATALOGUE, resolve
from tessella.weights.names import local_folder

# Python before 3.11.4 has no filters
EXTRACTION: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
BUILTIN = tuple(name for name, row in CATALOGUE.items() if row.file)
K = (1, 5, 10, 20)  # of retrieval, as in search.py
LOCAL, RUN = "local-dir:", "run:"
PERCENT = ("clothing", "photos", "cifar")  # prefixes of columns with fractions
CIFAR_KINDS = {  # classes of ImageNet-1k that are one of CIFAR-10's; it has no deer
    "airplane": (404, 895), "automobile": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)), "cat": tuple(range(281, 286)),
    "dog": tuple(range(151, 269)), "frog": (30, 31, 32), "horse": (339,),
    "ship": (484, 510, 554, 625, 628, 724, 780, 814, 833, 871, 914), "truck": (555, 569, 675, 717, 864, 867),
}  # fmt: skip
TABLES: tuple[dict[str, str], ...] = (  # title of each column in Markdown; a table without figures is not printed
    dict(model="model", clothing_knn="clothing, nearest neighbors", clothing_linear="clothing, linear probe",
         clothing_test_knn="test, nearest neighbors", clothing_test_linear="test, linear probe",
         photos_recall="neighbors of the teacher", photos_top1="top-1 of 1,000", photos_top5="top-5",
         photos_cifar_kinds="CIFAR-10's classes"),
    dict(model="model", cifar_linear="linear probe", cifar_probe_knn="nearest neighbors", cifar_knn_20="kNN of 20",
         cifar_recall_1="recall@1", cifar_map="mAP"),
    dict(model="model", input="input, px", width="width", file_mb="file, MB", images_per_second="images/s"),
)  # fmt: skip


class Clothing:
    """Labeled photographs with splits; a .tar file is unpacked into `folder`."""

    def __init__(self, path: Path, folder: Path):
        if path.is_file():
            with tarfile.open(path) as archive:
                archive.extractall(folder, **EXTRACTION)
            path = next(entry.parent for entry in sorted(folder.rglob("train")) if entry.is_dir())
        self.train, self.validation = open_split(path)
        self._path = path

    def splits(self, with_test: bool) -> dict[str, LabelledImages]:
        """Return the images to measure on, by the prefix of their columns."""
        splits = dict(clothing=self.validation)
        if with_test:
            splits["clothing_test"] = open_labelled(self._path / "test", classes=self.train.classes)
        return splits


class Photos:
    """Photographs named by WordNet id. neighbors: (N,k) positions of the teacher's, None without a teacher."""

    def __init__(self, path: Path, teacher: Predictor | None):
        self.sources = [*iter_sources([path])]
        self.labels = np.array([CLASS_OF[name_of(source)] for source in self.sources])
        self._outputs: dict[str, tuple[FloatArray, FloatArray]] = {}
        self.neighbors: Ints | None = None
        if teacher is not None:
            self.neighbors = nearest(centered(self.outputs(teacher)[1]))[0]

    def outputs(self, predictor: Predictor) -> tuple[FloatArray, FloatArray]:
        """Return the logits (N,K) and embeddings (N,D), which are computed once for each model."""
        if predictor.fingerprint not in self._outputs:
            self._outputs[predictor.fingerprint] = outputs_of(predictor, self.sources)
        return self._outputs[predictor.fingerprint]

    def measure(self, predictor: Predictor) -> dict[str, float]:
        """Return the figures of a model."""
        logits_NK, vectors_ND = self.outputs(predictor)
        figures: dict[str, float] = {}
        if self.neighbors is not None:
            figures["photos_recall"] = recall(self.neighbors, nearest(vectors_ND)[0])
            figures["photos_recall_centered"] = recall(self.neighbors, nearest(centered(vectors_ND))[0])
        if predictor.num_classes == len(CLASS_OF):
            figures |= {f"photos_top{k}": top_k(logits_NK, self.labels, k) for k in (1, 5)}
        return figures | cifar_kinds(logits_NK, self.labels, predictor.labels)


def top_k(logits_NK: FloatArray, labels_N: Ints, k: int) -> float:
    """Return the fraction of images whose class has one of the k highest logits; of equal ones the first counts."""
    best_Nk = np.argsort(-logits_NK, axis=1, kind="stable")[:, :k]
    return float((best_Nk == labels_N[:, None]).any(1).mean())


def cifar_kinds(logits_NK: FloatArray, labels_N: Ints, classes: Sequence[str]) -> dict[str, float]:
    """Return the accuracy on photographs of what CIFAR-10 has classes for, empty if `classes` are of another set.

    A model with the classes of ImageNet-1k gives a kind the sum of the probabilities of its classes. labels_N: classes
    of ImageNet-1k.
    """
    own = {label: [place] for place, label in enumerate(classes)}
    members = CIFAR_KINDS if len(classes) == len(CLASS_OF) else own
    shown_N = np.array([next((kind for kind in CIFAR_KINDS if label in CIFAR_KINDS[kind]), "") for label in labels_N])
    if not members.keys() >= CIFAR_KINDS.keys() or not (shown_N != "").any():
        return {}
    odds_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
    odds = np.stack([odds_NK[:, list(places)].sum(1) for places in members.values()], 1)
    found_N = np.array([*members])[odds.argmax(1)]
    return dict(photos_cifar_kinds=float((found_N == shown_N)[shown_N != ""].mean()))


def measure_labeled(
    predictor: Predictor, train: LabelledImages, splits: dict[str, LabelledImages], folder: Path
) -> dict[str, float]:
    """Return the accuracy of `tessella probe` on each split; `folder` keeps the embeddings."""
    figures = {}
    for prefix, images in splits.items():
        found = probe((train, images), predictor, ProbeSettings(shots=()), out=folder)
        figures |= {f"{prefix}_knn": found.knn.top1, f"{prefix}_linear": found.linear.top1}
    return figures


def measure_cifar(predictor: Predictor, train: LabelledImages, test: LabelledImages, folder: Path) -> dict[str, float]:
    """Return the accuracy of `tessella probe`, and retrieval in the test images; `folder` keeps the embeddings."""
    figures = measure_labeled(predictor, train, dict(cifar=test), folder)
    embedded = embed(test, predictor, folder / "embeddings-val.npz")
    found = retrieval(embedded.vectors[embedded.ok], test.labels[embedded.ok], K)
    return dict(
        cifar_linear=figures["cifar_linear"], cifar_probe_knn=figures["cifar_knn"], cifar_map=found.map,
        **{f"cifar_knn_{k}": found.knn[k] for k in K}, **{f"cifar_recall_{k}": found.recall[k] for k in K},
    )  # fmt: skip


def speeds(predictors: Sequence[Predictor], rounds: int, seconds: float) -> list[float]:
    """Return the median images per second of each model; the models take turns of this length."""
    counts = []
    for predictor in predictors:
        few = 4 * predictor.plan.batch_size
        fastest = min(run_model(predictor, few).seconds for _ in range(2))
        counts.append(max(few, round(few / fastest * seconds)))
    rates: list[list[float]] = [[] for _ in predictors]
    for _ in range(rounds):
        for predictor, count, measured in zip(predictors, counts, rates, strict=True):
            measured.append(count / run_model(predictor, count).seconds)
    return [statistics.median(measured) for measured in rates]


def file_size(name: str) -> int:
    """Return the bytes of the weights of a built-in, a saved or an exported model; 0 for others."""
    if name.startswith(LOCAL):
        names = ("model.safetensors", *GRAPHS.values(), *(Path(graph).with_suffix(".bin") for graph in GRAPHS.values()))
        paths = [local_folder(name) / file for file in names]
    else:
        row = resolve(name)[1]
        paths = [BUILTIN_FOLDER / row.file] if row is not None and row.file else []
    return sum(path.stat().st_size for path in paths if path.is_file())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as tables in Markdown, without columns that are empty."""
    tables = []
    for titles in TABLES:
        columns = [name for name in titles if any(row.get(name) is not None for row in rows)]
        if columns == ["model"]:
            continue
        lines = ["| " + " | ".join(titles[name] for name in columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
        lines += ["| " + " | ".join(_cell(name, row.get(name)) for name in columns) + " |" for row in rows]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column == "cifar_map":
        return f"{value:.3f}"
    if column.startswith(PERCENT):
        return f"{100 * value:.1f} %"
    if column == "file_mb":
        return f"{value:.1f}"
    if column == "model":
        return f"`{value}`"
    return f"{value:,}" if isinstance(value, int) else str(value)


def split_label(text: str) -> tuple[str, str]:
    """Return the label and the name of a model that is given as NAME or LABEL=NAME."""
    label, _, name = text.rpartition("=")
    return label or name.removeprefix(LOCAL).removeprefix(RUN).rstrip("/").rpartition("/")[2], name


class Judge:
    """The data sets, opened once, and the figures of a model on all of them."""

    def __init__(self, args: argparse.Namespace, folder: Path, teacher: Predictor | None):
        self.folder, self.test = folder, args.test
        self.clothing = Clothing(args.clothing, folder / "clothing") if args.clothing else None
        self.photos = Photos(args.photos, teacher) if args.photos else None
        self.cifar = open_split(args.cifar) if args.cifar else None
        if self.cifar and args.cifar_train:
            train, test = self.cifar
            chosen = np.random.default_rng(0).permutation(len(train))[: args.cifar_train]
            self.cifar = train.subset(np.sort(chosen)), test

    def measure(self, predictor: Predictor) -> dict[str, float]:
        """Return the figures of a model by column, as fractions."""
        figures: dict[str, float] = {}
        kept = self.folder / predictor.fingerprint
        if self.clothing:
            splits = self.clothing.splits(self.test)
            figures |= measure_labeled(predictor, self.clothing.train, splits, kept / "clothing")
        if self.photos:
            figures |= self.photos.measure(predictor)
        if self.cifar:
            figures |= measure_cifar(predictor, *self.cifar, kept / "cifar")
        return figures


def measure_models(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one row per model, the teacher first."""
    names = dict(map(split_label, args.models))
    for label, name in names.items():
        if name.startswith(RUN):
            names[label] = f"{LOCAL}{write_snapshot(Path(name.removeprefix(RUN)), folder / 'snapshots' / label)}"
    if args.teacher:
        exported = export_teacher(args.teacher, folder / "teacher", args.teacher_crop)
        names = {args.teacher.name: f"{LOCAL}{exported}"} | names
    predictors = {label: load(name) for label, name in names.items()}
    judge = Judge(args, folder, predictors[args.teacher.name] if args.teacher else None)
    rows: list[dict[str, Any]] = []
    for label, predictor in predictors.items():
        started = time.perf_counter()
        figures = {name: round(value, 4) for name, value in judge.measure(predictor).items()}
        size = args.teacher.stat().st_size if args.teacher and label == args.teacher.name else file_size(names[label])
        spec = predictor.spec
        rows.append(
            dict(model=label, input=f"{spec.width} x {spec.height}", crop_pct=spec.crop_pct, width=predictor.width,
                 classes=predictor.num_classes, file_mb=round(size / 1e6, 2) or None, engine=predictor.plan.engine,
                 precision=predictor.plan.precision, fingerprint=predictor.fingerprint, **figures)
        )  # fmt: skip
        print(f"{label}: {figures}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    if args.rounds:
        for row, rate in zip(rows, speeds([*predictors.values()], args.rounds, args.seconds), strict=True):
            row |= dict(images_per_second=round(rate), rounds=args.rounds)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if args.sheet:
        draw_sheet(args, predictors)
    return [{name: row.get(name) for name in columns} for row in rows]


def draw_sheet(args: argparse.Namespace, predictors: dict[str, Predictor]) -> None:
    """Draw the neighbors of the queries by every model except the teacher."""
    sources = [*iter_sources([args.sheet_images or args.photos])]
    shown = {label: predictor for label, predictor in predictors.items() if label != getattr(args.teacher, "name", "")}
    vectors = {label: outputs_of(predictor, sources)[1] for label, predictor in shown.items()}
    draw_neighbors(args.sheet, sources, vectors, args.queries)
    print(args.sheet)


def parse_args() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=BUILTIN, metavar="[LABEL=]NAME", help="models [default: all built-in ones]")
    add("--clothing", type=Path, metavar="DATA", help="labeled photographs, a folder or a .tar file")
    add("--test", action="store_true", help="measure on the test images of --clothing as well")
    add("--photos", type=Path, metavar="INPUT", help="photographs named by WordNet id, such as an archive of them")
    add("--cifar", type=Path, metavar="TRAIN", help="cifar10-train.parquet, beside cifar10-test.parquet")
    add("--cifar-train", type=int, metavar="N", help="train probes on N random training images [default: all]")
    add("--teacher", type=Path, metavar="FILE", help="classifier of ImageNet-1k as a .tflite file")
    add("--teacher-crop", type=float, default=CROP, help=f"fraction that its crop keeps of the side [default: {CROP}]")
    add("--rounds", type=int, default=5, help="rounds of the speed, 0 for none [default: 5]")
    add("--seconds", type=float, default=1.0, help="seconds of a model's turn in a round [default: 1]")
    add("--sheet", type=Path, metavar="FILE", help="draw nearest neighbors to a .png or .html file")
    add("--sheet-images", type=Path, metavar="INPUT", help="images of the sheet [default: --photos]")
    add("--queries", nargs="+", default=QUERIES, metavar="NAME", help="queries of the sheet [default: ten WordNet ids]")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    args = parser.parse_args()
    if args.sheet and not (args.photos or args.sheet_images):
        parser.error("--sheet needs --photos or --sheet-images")
    return args


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_models(args, Path(folder))
    write_table("photographs", rows, args.out)
    print(f"\n{markdown(rows)}")


if __name__ == "__main__":
    main()
