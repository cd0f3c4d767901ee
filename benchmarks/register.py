"""Add trained models to the package: `python benchmarks/register.py RUN ...`, each the folder of a finished run.

The weights are written to src/tessella/weights/builtin as ARCHITECTURE.cifar10, with a row in builtin.json and a card
with the run's figures and every epoch; the settings are written to benchmarks/cifar10/ARCHITECTURE.json, from which the
run can be reproduced. A run that started from the weights of another run is described as a chain, with the settings and
epochs of all runs. RUN0 stands for the weights that are replaced, if the chain started from them. Run
`python -m tests.test_builtin` afterwards, to update what tests/test_builtin.py expects.
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


def register(run: Path, begun: str) -> str:
    """Write or replace the weights, row, card and settings of a model, and return its name."""
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
    place, row = next((i, row) for i, row in enumerate(rows) if row["name"].partition(".")[0] == told["architecture"])
    prepared = {key: told["pretrained_cfg"][key] for key in ("input_size", "interpolation", "crop_pct", "mean", "std")}
    rows[place] = row | prepared | dict(
        name=name, num_classes=told["num_classes"], label_names=told["label_names"], file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(), note=NOTE,
    )  # fmt: skip
    write_atomic(table, (json.dumps(rows, indent=1) + "\n").encode())
    CONFIGS.mkdir(exist_ok=True)
    usual, runs = TrainConfig().as_dict(), chain(run)
    stages = []
    for number, (one, settings) in enumerate(runs, 1):
        chosen = {key: value for key, value in settings.items() if key == "model" or value != usual[key]}
        if number > 1 or settings["model"] == name:  # the name would refer to the new weights
            chosen["model"] = f"{FOLDER}RUN{number - 1}"
        file = CONFIGS / f"{told['architecture']}{f'-{number}' if len(runs) > 1 else ''}.json"
        write_atomic(file, (json.dumps(chosen, indent=1) + "\n").encode())
        out = f"RUN{number}" if len(runs) > 1 else "RUN"
        command = f"tessella train cifar10-train.parquet --config benchmarks/cifar10/{file.name} --out {out}"
        stages.append(Stage(command, settings, json.loads((one / "report" / "report.json").read_text())))
    write_atomic(BUILTIN_FOLDER / f"{name}.md", card(stages, told, begun).encode())
    return name


@dataclass(frozen=True)
class Stage:
    """A run of a chain: the command that reproduces it, its settings and its report."""

    command: str
    settings: dict[str, Any]
    report: dict[str, Any]


def chain(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the runs that `run` was started from, the first one first, and the run itself, each with its settings."""
    settings = read_config(run / "train.json")
    before = settings["model"].startswith(FOLDER)
    return [*(chain(Path(settings["model"].removeprefix(FOLDER))) if before else []), (run, settings)]


def card(stages: list[Stage], told: dict[str, Any], begun: str) -> str:
    report = stages[-1].report
    metrics, conditions = report["metrics"], report["conditions"]
    history = [row for stage in stages for row in stage.report["history"]]
    architecture, hours = told["architecture"], sum(row["seconds"] for row in history) / 3600
    found = info(architecture)
    papers = ", ".join(f"arXiv:{paper.arxiv}" for paper in found.papers)
    lines = [
        f"# {architecture}.{TAG}", "",
        f"{found.family} ({papers}) for 32 x 32 pixel images: {found.cost.params:,} parameters, "
        f"{found.cost.macs / 1e6:.0f} million multiply-adds an image, Apache-2.0. It knows ten classes: "
        f"{', '.join(told['label_names'])}. On anything else it gives the nearest of these words, with a confidence "
        "that means little.", "",
        f"On all {metrics['count']:,} CIFAR-10 test images: top-1 {100 * metrics['top1']:.2f} %, top-5 "
        f"{100 * metrics['top5']:.2f} %, loss {metrics['loss']:.4f}, calibration error {metrics['ece']:.4f}. The data "
        "is a JPEG copy of CIFAR-10, so the figures sit a little under what the original pixels would give.", "",
        f"Trained on the 50,000 training images, from {begun}, seed {stages[-1].settings['seed']}, "
        "with cifar10-test.parquet beside them (or a tenth of them would be held out):", "",
        *(f"    {stage.command}" for stage in stages), "",
        f"{conditions['hardware']}; {conditions['versions'].split(', openvino')[0]}; {hours:.1f} hours, other work "
        "beside it. The test images were looked at after each epoch to report progress"
        f"{', and after a run to decide whether another one follows' if len(stages) > 1 else ''}; the weights "
        f"are those of the last step{', averaged over the last ones' if stages[-1].settings['ema_decay'] else ''}.", "",
        "| epoch | training loss | test loss | test top-1 | seconds |", "| ---: | ---: | ---: | ---: | ---: |",
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
    parser.add_argument("--begun", default="random weights", help="what training started from, for the card")
    args = parser.parse_args()
    for run in args.runs:
        print(register(run, args.begun))


if __name__ == "__main__":
    main()
