"""Add trained models to the package: `python benchmarks/register.py RUN ... --test FILE`, each RUN of a finished run.

A run was made without the test images: a tenth of cifar10-train.parquet was held out, and recipes were chosen by it.
FILE is what the test images gave, once, after all choices:

    tessella evaluate cifar10-test.parquet --engine rewritten --precision float32 --no-calibration --json \\
        -m local-dir:RUN ... > FILE

The weights are written to src/tessella/weights/builtin as ARCHITECTURE.cifar10, with a row in builtin.json and a card
with the run's figures and every epoch; the settings are written to benchmarks/cifar10/ARCHITECTURE.json, from which the
run can be reproduced. A run that started from the weights of another run is described as a chain, with the settings and
epochs of all runs. RUN0 stands for the weights that are replaced, if the chain started from them. Afterwards run
`scripts/bench calibration make`, `python -m tessella.weights.counting`, `scripts/bench golden`,
`python -m tests.test_builtin` and `python -m tests.test_fingerprints`, which update what depends on the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessella.info import info
from tessella.storage import write_atomic
from tessella.training.config import TrainConfig, read_config
from tessella.weights.catalogue import BUILTIN_FOLDER

CONFIGS = Path(__file__).parent / "cifar10"
TAG, MOST_BYTES, FOLDER = "cifar10", 3_000_000, "local-dir:"
NOTE = "trained by this project on a JPEG copy of CIFAR-10: it knows these ten classes only, at 32 px"


def register(run: Path, begun: str, test: dict[str, Any]) -> str:
    """Write or replace the weights, row, card and settings of a model, and return its name.

    test: what `tessella evaluate` gave for the test images.
    """
    told = json.loads((run / "config.json").read_text())
    name = f"{told['architecture']}.{TAG}"
    weights = run / "model.safetensors"
    if weights.stat().st_size > MOST_BYTES:
        raise SystemExit(
            f"{weights} has {weights.stat().st_size:,} bytes, more than {MOST_BYTES:,}, the limit for built-in models"
        )
    file = BUILTIN_FOLDER / f"{name}.safetensors"
    shutil.copyfile(weights, file)

    table = BUILTIN_FOLDER / "builtin.json"
    rows: list[dict[str, Any]] = json.loads(table.read_text())
    places = {row["name"].partition(".")[0]: place for place, row in enumerate(rows)}
    if told["architecture"] not in places:  # as the first of its family
        place = next(i for i, row in enumerate(rows) if row["name"].split("_")[0] == told["architecture"].split("_")[0])
        rows.insert(place, rows[place])
    else:
        place = places[told["architecture"]]
    prepared = {key: told["pretrained_cfg"][key] for key in ("input_size", "interpolation", "crop_pct", "mean", "std")}
    accuracy = {key: round(100 * test[key], 2) for key in ("top1", "top5")} | dict(img_size=prepared["input_size"][1])
    rows[place] = rows[place] | prepared | dict(
        name=name, num_classes=told["num_classes"], label_names=told["label_names"], file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(), note=NOTE, accuracy={TAG: accuracy},
    )  # fmt: skip
    write_atomic(table, (json.dumps(rows, indent=1) + "\n").encode())
    CONFIGS.mkdir(exist_ok=True)
    usual, runs = TrainConfig().as_dict(), chain(run)
    stages = []
    for number, (one, settings) in enumerate(runs, 1):
        chosen = {key: value for key, value in settings.items() if key == "model" or value != usual[key]}
        if number > 1 or settings["model"] == name:  # the name would refer to the new weights
            chosen["model"] = f"{FOLDER}RUN{number - 1}"
        if chosen.get("teacher"):
            chosen["teacher"] = f"{FOLDER}TEACHER"
        file = CONFIGS / f"{told['architecture']}{f'-{number}' if len(runs) > 1 else ''}.json"
        write_atomic(file, (json.dumps(chosen, indent=1) + "\n").encode())
        out = f"RUN{number}" if len(runs) > 1 else "RUN"
        command = f"tessella train cifar10-train.parquet --config benchmarks/cifar10/{file.name} --out {out}"
        stages.append(Stage(command, settings, json.loads((one / "report" / "report.json").read_text())))
    write_atomic(BUILTIN_FOLDER / f"{name}.md", card(stages, told, begun, test).encode())
    return name


@dataclass(frozen=True)
class Stage:
    """A run of a chain: the command that reproduces it, its settings and its report."""

    command: str
    settings: dict[str, Any]
    report: dict[str, Any]


def architecture_of(name: str) -> str:
    """Return the architecture of the model in a `local-dir:` folder."""
    return str(json.loads((Path(name.removeprefix(FOLDER)) / "config.json").read_text())["architecture"])


def chain(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the runs that `run` was started from, the first one first, and the run itself, each with its settings."""
    settings = read_config(run / "train.json")
    before = settings["model"].startswith(FOLDER)
    return [*(chain(Path(settings["model"].removeprefix(FOLDER))) if before else []), (run, settings)]


def card(stages: list[Stage], told: dict[str, Any], begun: str, test: dict[str, Any]) -> str:
    report = stages[-1].report
    metrics, conditions = report["metrics"], report["conditions"]
    settings = stages[-1].settings
    history = [row for stage in stages for row in stage.report["history"]]
    architecture, hours = told["architecture"], sum(row["seconds"] for row in history) / 3600
    found = info(architecture)
    papers = ", ".join(f"arXiv:{paper.arxiv}" for paper in found.papers)
    lines = [
        f"# {architecture}.{TAG}", "",
        f"{found.family} ({papers}) for 32 x 32 pixel images: {found.cost.params:,} parameters, "
        f"{found.cost.macs / 1e6:.0f} million multiply-adds per image, Apache-2.0. It knows ten classes: "
        f"{', '.join(told['label_names'])}. On anything else it gives the nearest of these words, with a confidence "
        "that means little.", "",
        f"On all {test['images']:,} CIFAR-10 test images, evaluated once, after training: top-1 "
        f"{100 * test['top1']:.2f} %, top-5 {100 * test['top5']:.2f} %, loss {test['loss']:.4f}, calibration error "
        f"{test['ece']:.4f} before its calibration. The data is a JPEG copy of CIFAR-10, so the figures are slightly "
        "lower than those for the original pixels.", "",
        f"Trained on 90 % of the 50,000 training images, from {begun}, seed {settings['seed']}; the recipe was chosen "
        f"by the accuracy on the other {metrics['count']:,} images, {100 * metrics['top1']:.2f} % at the end. With "
        "cifar10-train.parquet alone in a folder (cifar10-test.parquet beside it would be used for validation):", "",
        *(f"    {stage.command}" for stage in stages), "",
        *([f"TEACHER is the run of `{architecture_of(settings['teacher'])}`.", ""] if settings["teacher"] else []),
        f"{conditions['hardware']}; {conditions['versions'].split(', openvino')[0]}; {hours:.1f} hours, other work "
        f"at the same time. The weights are those of the last step"
        f"{', averaged exponentially over the steps' if settings['ema_decay'] else ''}.", "",
        "| epoch | training loss | held-out loss | held-out top-1 | seconds |", "| ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for number, row in enumerate(history, 1):
        lines.append(
            f"| {number} | {row['loss']:.3f} | {row['val_loss']:.3f} | {100 * row['val_top1']:.2f} % "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--test", type=Path, required=True, metavar="FILE", help="evaluation of the runs, as JSON lines"
    )
    parser.add_argument("--begun", default="random weights", help="what training started from, for the card")
    args = parser.parse_args()
    rows = map(json.loads, args.test.read_text().splitlines())
    evaluations = {Path(row["model"].removeprefix(FOLDER)).resolve(): row for row in rows}
    for run in args.runs:
        print(register(run, args.begun, evaluations[run.resolve()]))


if __name__ == "__main__":
    main()
