"""Add the models of benchmarks/train_cifar10.py to the package: `python benchmarks/register.py RUN ... --test FILE`.

Each RUN is a finished run, such as OUT/mixer_ti_p4_32; of a model that is trained in two stages, it is both runs,
OUT/convmixer-1,OUT/convmixer-2. They were made without the test images: a tenth of cifar10-train.parquet was held out,
and the settings in benchmarks/cifar10_models were chosen by it. FILE has the figures of the test images, which were
evaluated once, after all choices:

    tessella evaluate cifar10-test.parquet --engine rewritten --precision float32 --no-calibration --json \\
        -m local-dir:RUN ... > FILE

The weights are written to src/tessella/weights/builtin as ARCHITECTURE.cifar10, with a row in builtin.json and a card
with the figures and every epoch of the runs. A run with other settings is refused. Afterwards run
`scripts/bench calibration make`, `python -m tessella.weights.counting`, `scripts/bench golden`,
`python -m tests.test_builtin` and `python -m tests.test_fingerprints`, which update what depends on the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train_cifar10 as recipe

from tessella.info import info
from tessella.storage import write_atomic
from tessella.training.config import TrainConfig, differences, read_config
from tessella.weights.catalogue import BUILTIN_FOLDER

TAG, MOST_BYTES, FOLDER = "cifar10", 3_000_000, "local-dir:"
COMMAND = "python benchmarks/train_cifar10.py cifar10-train.parquet OUT"
PATHS = ("init_from", "teacher")  # settings that name files, which may be elsewhere
NAMES = ("model", "model_args.dim", "model_args.kernel_size")  # an earlier stage can be described in two ways
NOTE = "trained by this project on a JPEG copy of CIFAR-10: it knows these ten classes only, at 32 px"


@dataclass(frozen=True)
class Stage:
    """A finished run: its settings, and its report."""

    settings: dict[str, Any]
    report: dict[str, Any]

    @classmethod
    def read(cls, run: Path, name: str, *, is_last: bool = True) -> Stage:
        """Read the files of a run. Exits if its settings are not those of this name in the recipe."""
        settings = TrainConfig.from_dict(read_config(run / "train.json"))
        allowed = PATHS if is_last else PATHS + NAMES
        if changed := [key for key in differences(recipe.read_settings(name), settings) if key not in allowed]:
            raise SystemExit(f"{run} was not made with the settings of {name}: {', '.join(changed)} differ")
        return cls(settings.as_dict(), json.loads((run / "report" / "report.json").read_text()))


def register(runs: Sequence[Path], test: dict[str, Any]) -> str:
    """Write or replace the weights, row and card of a model, and return its name.

    runs: the stages of its training. test: what `tessella evaluate` gave for the test images.
    """
    run = runs[-1]
    told = json.loads((run / "config.json").read_text())
    name = f"{told['architecture']}.{TAG}"
    names = recipe.STAGES if len(runs) > 1 else (told["architecture"],)
    if len(runs) != len(names):
        raise SystemExit(f"{name} has {len(runs)} runs, expected {len(names)}")
    stages = [Stage.read(one, key, is_last=one is run) for one, key in zip(runs, names, strict=True)]
    weights = run / "model.safetensors"
    if weights.stat().st_size > MOST_BYTES:
        raise SystemExit(
            f"{weights} has {weights.stat().st_size:,} bytes, more than {MOST_BYTES:,}, the limit for built-in models"
        )
    file = BUILTIN_FOLDER / f"{name}.safetensors"
    shutil.copyfile(weights, file)
    write_row(told, file, test)
    write_atomic(BUILTIN_FOLDER / f"{name}.md", card(stages, told, test).encode())
    return name


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


def card(stages: Sequence[Stage], told: dict[str, Any], test: dict[str, Any]) -> str:
    """Return the card as Markdown."""
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
        f"Trained on 90 % of the 50,000 training images, from random weights, seed {settings['seed']}; the settings "
        f"were chosen by the accuracy on the other {metrics['count']:,} images, {100 * metrics['top1']:.2f} % at the "
        f"end. {' '.join([*facts_about(stages), 'In the root of the repository:'])}", "",
        f"    {COMMAND}", "",
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


def facts_about(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield sentences about the stages and the teacher, if there are several stages or a teacher."""
    if len(stages) > 1:
        epochs = " and ".join(str(stage.settings["epochs"]) for stage in stages)
        yield (
            f"There were {len(stages)} stages of {epochs} epochs: the second one started from the weights of the first "
            "one, whose depthwise kernels were padded with zeros."
        )
    if teacher := stages[-1].settings["teacher"]:
        yield f"The teacher was `{architecture_of(teacher)}`, trained on the same images."


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a finished run, or of all stages, separated by commas"
    )
    parser.add_argument(
        "--test", type=Path, required=True, metavar="FILE", help="evaluation of the runs, as JSON lines"
    )
    args = parser.parse_args()
    rows = map(json.loads, args.test.read_text().splitlines())
    evaluations = {Path(row["model"].removeprefix(FOLDER)).resolve(): row for row in rows}
    for text in args.runs:
        runs = [Path(run) for run in text.split(",")]
        print(register(runs, evaluations[runs[-1].resolve()]))


if __name__ == "__main__":
    main()
