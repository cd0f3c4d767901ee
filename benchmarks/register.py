"""Put trained models into the package: `python benchmarks/register.py RUN ...`, each the folder of a finished run.

A run's weights go to src/tessella/weights/builtin as ARCHITECTURE.cifar10, with a row in builtin.json and a card that
has the run's figures and every epoch; its settings go to benchmarks/cifar10/ARCHITECTURE.json, which makes it again.
`tests/test_builtin.py` then wants `python -m tests.test_builtin`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tessella.atomic import write_atomic
from tessella.tasks.info import info
from tessella.tasks.recipes import TrainConfig
from tessella.weights.catalogue import BUILTIN_FOLDER

CONFIGS = Path(__file__).parent / "cifar10"
TAG, MOST_BYTES = "cifar10", 3_000_000
NOTE = "trained by this project on a JPEG copy of CIFAR-10: it knows these ten classes only, at 32 px"


def register(run: Path, begun: str) -> str:
    """Returns the name of the model, whose weights, row, card and settings are new or replaced."""
    told = json.loads((run / "config.json").read_text())
    name = f"{told['architecture']}.{TAG}"
    weights = run / "model.safetensors"
    if weights.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{weights} has {weights.stat().st_size:,} bytes, what is shipped has {MOST_BYTES:,} at most")
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
    settings = json.loads((run / "train.json").read_text())["config"]
    usual = TrainConfig().as_dict()
    chosen = {key: value for key, value in settings.items() if value != usual[key]}
    write_atomic(CONFIGS / f"{told['architecture']}.json", (json.dumps(chosen, indent=1) + "\n").encode())
    write_atomic(BUILTIN_FOLDER / f"{name}.md", card(run, told, settings, begun).encode())
    return name


def card(run: Path, told: dict[str, Any], settings: dict[str, Any], begun: str) -> str:
    report = json.loads((run / "report" / "report.json").read_text())
    metrics, history, conditions = report["metrics"], report["history"], report["conditions"]
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
        f"Trained on the 50,000 training images, from {begun}, seed {settings['seed']}:", "",
        f"    tessella train cifar10-train.parquet --config benchmarks/cifar10/{architecture}.json --out RUN", "",
        f"{conditions['hardware']}; {conditions['versions'].split(', openvino')[0]}; {hours:.1f} hours, other work "
        "beside it. The test images were looked at after each epoch to report progress and chose nothing: the weights "
        f"are those of the last step{', averaged over the last ones' if settings['ema'] else ''}.", "",
        "| epoch | training loss | test loss | test top-1 | seconds |", "| ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for row in history:
        lines.append(
            f"| {row['epoch'] + 1} | {row['loss']:.3f} | {row['val_loss']:.3f} | {100 * row['val_top1']:.2f} % "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--begun", default="random weights", help="what training began with, for the card")
    args = parser.parse_args()
    for run in args.runs:
        print(register(run, args.begun))


if __name__ == "__main__":
    main()
