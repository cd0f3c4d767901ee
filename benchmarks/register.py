"""Add the models of benchmarks/train_cifar10.py to the package: `python benchmarks/register.py RUN ... --test FILE`.

Each RUN is the last finished run of an architecture, such as OUT/mixer_ti_p4_32, or OUT/mixer_ti_p4_32-2 if there is a
second one, which has the folder of the first beside it. They were made without the test images: a tenth of
cifar10-train.parquet was held out, and the settings in benchmarks/cifar10_models were chosen by it. FILE has the
figures of the test images, which were evaluated once, after all choices:

    tessella evaluate cifar10-test.parquet --split all --engine rewritten --precision float32 --no-calibration --json \\
        -m local-dir:RUN ... > FILE

The weights are written to src/tessella/weights/builtin as ARCHITECTURE.cifar10, with a row in builtin.json and a card
with the figures and every epoch of the runs. A run with other settings is refused. Then everything that depends on the
weights is made again: calibrations, costs, golden outputs, and what the tests compare with. This takes some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import train_cifar10 as recipe

from tessella import create_model
from tessella.info import info
from tessella.storage import write_atomic
from tessella.training.config import TrainConfig, differences, read_config
from tessella.training.metrics_log import METRICS
from tessella.weights.catalogue import BUILTIN_FOLDER
from tessella.weights.counting import cost

ROOT = Path(__file__).resolve().parent.parent
TAG, MOST_BYTES, FOLDER = "cifar10", 3_000_000, "local-dir:"
COMMAND = "python benchmarks/train_cifar10.py cifar10-train.parquet OUT"
NOTE = "trained by this project on a JPEG copy of CIFAR-10: it knows these ten classes only, at 32 px"


def register(run: Path, test: dict[str, Any]) -> str:
    """Write or replace the weights, row and card of a model, and return its name.

    test: what `tessella evaluate` gave for the test images. Exits if the run has other settings than the recipe.
    """
    told = json.loads((run / "config.json").read_text())
    architecture = told["architecture"]
    runs = stages(run, architecture)
    weights = run / "model.safetensors"
    if weights.stat().st_size > MOST_BYTES:
        raise SystemExit(
            f"{weights} has {weights.stat().st_size:,} bytes, more than {MOST_BYTES:,}, the limit for built-in models"
        )
    name = f"{architecture}.{TAG}"
    file = BUILTIN_FOLDER / f"{name}.safetensors"
    shutil.copyfile(weights, file)
    write_row(told, file, test)
    report = json.loads((run / "report" / "report.json").read_text())
    write_atomic(BUILTIN_FOLDER / f"{name}.md", card(runs, report, told, test).encode())
    return name


class Stage(NamedTuple):
    """A finished run: its settings, and the rows of its epochs."""

    settings: TrainConfig
    epochs: list[dict[str, Any]]


def stages(run: Path, architecture: str) -> list[Stage]:
    """Return a run, after the one that it started from if there is one. Exits if they are not those of the recipe."""
    first, last = run.with_name(architecture), recipe.last_run(architecture)
    if run.name != last:
        raise SystemExit(f"{run} is not the last run of {architecture}, which is {last}")
    found = []
    for folder in dict.fromkeys((first, run)):
        settings = TrainConfig.from_dict(read_config(folder / "train.json"))
        told = recipe.read_settings(folder.name, teacher=settings.teacher, init_from=settings.init_from)
        if changed := differences(told, settings):
            raise SystemExit(f"{folder} was not made with the settings of {folder.name}: {', '.join(changed)} differ")
        start, expected = settings.init_from, "scratch" if folder == first else f"{architecture}/model.safetensors"
        if start != expected and not start.endswith(f"/{expected}"):
            raise SystemExit(f"{folder} was started from {start} instead of {expected}")
        rows = map(json.loads, (folder / METRICS).read_text().splitlines())
        found.append(Stage(settings, [row for row in rows if row["kind"] == "epoch"]))
    return found


def write_row(told: dict[str, Any], file: Path, test: dict[str, Any]) -> None:
    """Replace the row of an architecture in builtin.json, or add one before the others of its family.

    told: the config.json of the model. file: its weights.
    """
    table = BUILTIN_FOLDER / "builtin.json"
    rows: list[dict[str, Any]] = json.loads(table.read_text())
    places = {row["name"].partition(".")[0]: place for place, row in enumerate(rows)}
    if told["architecture"] not in places:
        place = next(i for i, row in enumerate(rows) if row["name"].split("_")[0] == told["architecture"].split("_")[0])
        rows.insert(place, rows[place])
    else:
        place = places[told["architecture"]]
    prepared = {key: told["pretrained_cfg"][key] for key in ("input_size", "interpolation", "crop_pct", "mean", "std")}
    accuracy = {key: round(100 * test[key], 2) for key in ("top1", "top5")} | dict(img_size=prepared["input_size"][1])
    rows[place] = rows[place] | prepared | dict(
        name=file.stem, num_classes=told["num_classes"], label_names=told["label_names"], file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(), note=NOTE, accuracy={TAG: accuracy},
    )  # fmt: skip
    write_atomic(table, (json.dumps(rows, indent=1) + "\n").encode())


def architecture_of(name: str) -> str:
    """Return the architecture of the model in a `local-dir:` folder."""
    return str(json.loads((Path(name.removeprefix(FOLDER)) / "config.json").read_text())["architecture"])


def card(runs: Sequence[Stage], report: dict[str, Any], told: dict[str, Any], test: dict[str, Any]) -> str:
    """Return the card as Markdown. report: of the last run."""
    settings, metrics, conditions = runs[-1].settings, report["metrics"], report["conditions"]
    history = [row for stage in runs for row in stage.epochs]
    again = (
        f"The last {len(runs[-1].epochs)} epochs are a second run with stronger augmentation. " if len(runs) > 1 else ""
    )
    teacher = (
        f"The teacher was `{architecture_of(settings.teacher)}`, trained on the same images. "
        if settings.teacher
        else ""
    )
    architecture, hours = told["architecture"], sum(row["seconds"] for row in history) / 3600
    found = info(architecture)
    counts = cost(create_model(architecture, **told["model_args"]), tuple(told["pretrained_cfg"]["input_size"]))
    papers = ", ".join(f"arXiv:{paper.arxiv}" for paper in found.papers)
    lines = [
        f"# {architecture}.{TAG}", "",
        f"{found.family} ({papers}) for 32 x 32 pixel images: {counts.params:,} parameters, "
        f"{counts.macs / 1e6:.0f} million multiply-adds per image, Apache-2.0. It knows ten classes: "
        f"{', '.join(told['label_names'])}. On anything else it gives the nearest of these words, with a confidence "
        "that means little.", "",
        f"On all {test['images']:,} CIFAR-10 test images, evaluated once, after training: top-1 "
        f"{100 * test['top1']:.2f} %, top-5 {100 * test['top5']:.2f} %, loss {test['loss']:.4f}, calibration error "
        f"{test['ece']:.4f} before its calibration. The data is a JPEG copy of CIFAR-10, so the figures are slightly "
        "lower than those for the original pixels.", "",
        f"Trained on 90 % of the 50,000 training images, from random weights, seed {settings.seed}; the settings "
        f"were chosen by the accuracy on the other {metrics['count']:,} images, {100 * metrics['top1']:.2f} % at the "
        f"end. {again}{teacher}In the root of the repository:", "",
        f"    {COMMAND}", "",
        f"{conditions['hardware']}; {conditions['versions'].split(', openvino')[0]}; {hours:.1f} hours, other work "
        f"at the same time. The weights are those of the last step"
        f"{', averaged exponentially over the steps' if settings.ema_decay else ''}. The calibration beside them was "
        "fitted on the held-out images.", "",
        "| epoch | training loss | held-out loss | held-out top-1 | seconds |", "| ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for number, row in enumerate(history, 1):
        lines.append(
            f"| {number} | {row['loss']:.3f} | {row['val_loss']:.3f} | {100 * row['val_top1']:.2f} % "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def update(names: Sequence[str], train: Path, photos: Path) -> None:
    """Make everything that depends on the weights of these models again. train, photos: images for the calibration."""
    calibration = ["benchmarks/calibration.py", "make", "--train", str(train), "--photos", str(photos), "--models"]
    commands = [
        [*calibration, *names],
        ["-m", "tessella.weights.counting"],
        ["benchmarks/golden.py", "--out", "src/tessella/verification/golden.json"],
        ["-m", "tests.test_builtin"],
        ["-m", "tests.test_fingerprints"],
        ["-m", "tests.families"],
        ["-m", "tests.promises"],
    ]
    for command in commands:
        print("python", *command, flush=True)
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--test", type=Path, required=True, metavar="FILE", help="evaluation of the runs, as JSON lines"
    )
    parser.add_argument("--train", type=Path, required=True, help="cifar10-train.parquet")
    parser.add_argument("--photos", type=Path, required=True, metavar="INPUT", help="photographs of other things")
    args = parser.parse_args()
    rows = map(json.loads, args.test.read_text().splitlines())
    evaluations = {Path(row["model"].removeprefix(FOLDER)).resolve(): row for row in rows}
    names = [register(run, evaluations[run.resolve()]) for run in args.runs]
    update(names, args.train.resolve(), args.photos.resolve())


if __name__ == "__main__":
    main()
