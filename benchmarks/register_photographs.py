"""Add the model for photographs to the package: `python benchmarks/register_photographs.py RUN ... --figures CSV`.

The RUNs are OUT/1 and OUT/2 of benchmarks/train_photographs.py: a chain, in which each one started from the weights of
the one before. Of a run that was stopped, the averaged weights of its newest checkpoint are taken. --settings are the
files with their settings.

The weights are written to src/tessella/weights/builtin as ARCHITECTURE.photographs in float16, with a row in
builtin.json and a card. CSV is a result of `scripts/bench photographs` whose rows are shown in the card; the row
ARCHITECTURE.photographs, or ARCHITECTURE before there is one, has the figures of the model. Afterwards run `python -m
tests.test_builtin` and `python -m tests.test_fingerprints`, which record what is expected.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshot import write_snapshot

from tessella import create_model, save_pretrained
from tessella.info import info
from tessella.storage import write_atomic
from tessella.training import checkpoint
from tessella.training.config import TrainConfig, differences, read_config
from tessella.weights.catalogue import BUILTIN_FOLDER

PATHS = ("model", "teacher", "teacher_labels")  # settings that name files, which may be elsewhere
TAG, MOST_BYTES = "photographs", 6_000_000
CROP_PCT = 1.0  # of the center crop: the whole shorter side is seen
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tuple(ROOT / "benchmarks" / "photograph_model" / f"{number}.json" for number in (1, 2))
COMMAND = "python benchmarks/train_photographs.py ../shared/data RUN"
SOURCES = (
    (
        "photographs of clothing, train split of clothing.tar",
        "3,068",
        "alexeygrigorev/clothing-dataset-small",
        "CC0 1.0",
    ),
    ("more photographs of clothing, in unlabelled.tar", "1,975", "alexeygrigorev/clothing-dataset", "CC0 1.0"),
    ("photographs of waste, in unlabelled.tar", "2,527", "TrashNet, garythung/trashnet", "MIT"),
    ("CIFAR-10, training images", "50,000", "Krizhevsky 2009", "not stated by its author"),
    ("photographs in the package, see examples/README.md", "4", "sample data of scikit-image", "CC0, public domain"),
)
TEACHER = (
    "of two models, whose embeddings are concatenated (benchmarks/combined_teacher.py): MobileNetV2 1.0 for 224 x 224 "
    "pixels, quantized (google-coral/test_data, Apache-2.0, trained on ImageNet-1k), and "
    "`convmixer_256_8_ks3_p4.cifar10` of this package"
)


NOTE = "distilled by this project for embeddings of photographs"


def class_warning(figures: dict[str, str]) -> str:
    """Return the warning that commands print with predicted classes."""
    top1 = percent(figures["photos_top1"])
    return f"its predicted class is correct for only {top1} of photographs that do not show clothing"


@dataclass(frozen=True)
class Stage:
    """A run of a chain: its settings, its epochs, and its steps, done and planned."""

    settings: dict[str, Any]
    epochs: list[dict[str, Any]]
    step: int
    steps: int

    @classmethod
    def read(cls, run: Path, file: Path) -> Stage:
        """Read the files of a run. Exits if its settings are not those in `file`."""
        expected = TrainConfig.from_dict(json.loads(file.read_text()))
        settings = TrainConfig.from_dict(read_config(run / "train.json"))
        if changed := [key for key in differences(expected, settings) if key not in PATHS]:
            raise SystemExit(f"{run} was not made with {file}: {', '.join(changed)} differ")
        history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        epochs = [row for row in history if row["kind"] == "epoch"]
        done = steps = history[-1]["step"]
        if not finished(run) and (saved := checkpoint.read_newest(run, print)) is not None:
            done, steps = saved.state["step"], next(row["steps"] for row in history if row["kind"] == "step")
        return cls(settings.as_dict(), [row for row in epochs if row["step"] <= done], done, steps)


def finished(run: Path) -> bool:
    """Return whether a run has written its model."""
    return (run / "model.safetensors").is_file()


def register(runs: Sequence[Path], figures: Path, settings: Sequence[Path] = SETTINGS) -> str:
    """Write or replace the weights, the row and the card of the model, and return its name."""
    stages = [Stage.read(run, file) for run, file in zip(runs, settings, strict=True)]
    architecture = stages[0].settings["model"]
    name = f"{architecture}.{TAG}"
    rows = {row["model"]: row for row in csv.DictReader(figures.read_text().splitlines())}
    file = BUILTIN_FOLDER / f"{name}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        saved = runs[-1] if finished(runs[-1]) else write_snapshot(runs[-1], Path(folder) / "full")
        model = create_model(f"local-dir:{saved}", pretrained=True)
        half = save_pretrained(model.half(), Path(folder) / "half") / "model.safetensors"
        if half.stat().st_size > MOST_BYTES:
            raise SystemExit(f"the weights have {half.stat().st_size:,} bytes, the limit is {MOST_BYTES:,}")
        shutil.copyfile(half, file)
    prepared = {key: model.pretrained_cfg[key] for key in ("input_size", "interpolation", "mean", "std")}
    replace_row(
        dict(name=name, num_classes=model.num_classes, **prepared, crop_pct=CROP_PCT, crop_mode="center",
             fixed_input_size=False, first_conv="stem.0", classifier="head", license="apache-2.0",
             note=NOTE, class_warning=class_warning(rows.get(name) or rows[architecture]), file=file.name,
             sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    )  # fmt: skip
    write_atomic(BUILTIN_FOLDER / f"{name}.md", card(name, stages, rows).encode())
    return name


def replace_row(row: dict[str, Any]) -> None:
    """Add a row to builtin.json, or replace the one with its name."""
    table = BUILTIN_FOLDER / "builtin.json"
    others = [other for other in json.loads(table.read_text()) if other["name"] != row["name"]]
    write_atomic(table, (json.dumps([*others, row], indent=1) + "\n").encode())


def percent(fraction: str | float) -> str:
    return f"{100 * float(fraction):.1f} %"


def card(name: str, stages: Sequence[Stage], rows: dict[str, dict[str, str]]) -> str:
    """Return the card as Markdown."""
    architecture, first = name.partition(".")[0], stages[0].settings
    found, side = info(architecture), first["img_size"]
    epochs = [row for stage in stages for row in stage.epochs]
    seen = sum(stage.step * stage.settings["batch_size"] for stage in stages)
    hours = sum(row["seconds"] for row in epochs) / 3600
    lines = [
        f"# {name}", "",
        f"{found.family} ({', '.join(f'arXiv:{paper.arxiv}' for paper in found.papers)}) for photographs at {side} x "
        f"{side} pixels: {found.cost.params:,} parameters, {found.cost.macs / 1e6:,.0f} million multiply-adds per "
        "image, Apache-2.0. It is made for embeddings: nearest neighbors, duplicates, linear probes, fine-tuning. Its "
        "1,000 classes are those of ImageNet-1k, but it has seen few of them in training, so most of its predictions "
        "for pictures of other things than clothing are wrong.", "",
        "## Figures", "",
        "Clothing is the validation split (341 photographs, ten classes), with the train split as the bank. "
        "Photographs are 1,000 that are far from the training images, one per class of ImageNet-1k; neighbors are the "
        "fraction of the teacher's ten nearest neighbors that are among ten of the model's. The weights are stored in "
        f"float16: `{architecture}` is the model before rounding.", "",
        "| model | clothing, nearest neighbors | clothing, linear probe | photographs, neighbors | top-1 | top-5 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(figures_row(row) for row in rows.values()), "",
        "## Training", "",
        "Distilled from random weights, without labels: cosine with the teacher's centered embedding through a linear "
        "layer that is dropped afterwards, and the divergence of the logits. The teacher sees the same crop. The first "
        f"stage learns from MobileNetV2 alone, the second from a teacher that is made {TEACHER}. In the root of the "
        "repository:", "",
        f"    {COMMAND}", "",
        f"Seed {first['seed']}, {seen:,} images, {hours:.1f} hours on a CPU with 2 cores, with other work beside it. "
        + " ".join(
            f"Stage {number} was stopped after {stage.step:,} of {stage.steps:,} steps; its averaged weights were used."
            for number, stage in enumerate(stages, 1) if stage.step < stage.steps
        )
        + " The validation split was used to choose the settings.", "",
        "| images | number | source | license |", "| --- | ---: | --- | --- |",
        *(f"| {' | '.join(source)} |" for source in SOURCES), "",
        "| epoch | training loss | validation loss | agreement with the teacher | seconds |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(f"| {number} | {row['loss']:.3f} | {row['val_loss']:.3f} | {percent(row['val_top1'])} "
          f"| {row['seconds']:.0f} |" for number, row in enumerate(epochs, 1)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def figures_row(row: dict[str, str]) -> str:
    """Return a row of a table in Markdown; figures that were not measured are left out."""
    columns = ("clothing_knn", "clothing_linear", "photos_recall", "photos_top1", "photos_top5")
    return f"| `{row['model']}` | " + " | ".join(percent(row[key]) if row[key] else "" for key in columns) + " |"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of `tessella train`")
    parser.add_argument(
        "--figures", type=Path, required=True, metavar="CSV", help="result of scripts/bench photographs"
    )
    parser.add_argument("--settings", type=Path, nargs="+", default=SETTINGS, metavar="FILE", help="of each run")
    args = parser.parse_args()
    print(register(args.runs, args.figures, [file.resolve() for file in args.settings]))


if __name__ == "__main__":
    main()
