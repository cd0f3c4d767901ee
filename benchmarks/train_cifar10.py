"""Train the built-in classifiers for CIFAR-10: `python benchmarks/train_cifar10.py cifar10-train.parquet OUT`.

Only the training images are read. They are copied to OUT/data, because test images beside them would be used for
validation. Instead, a tenth of them, chosen by a hash of their keys, is held out for validation. The settings in
benchmarks/cifar10_models were chosen by the accuracy on this tenth.

ConvMixer is trained in the style of its authors' run for CIFAR-10: with a large learning rate, and without mixing,
random erasing and label smoothing. It is the teacher of the four other models, which are trained with Muon. These see
the same crops of the images, so its outputs are computed once, for the first of them. Every model is trained from
random weights in OUT/ARCHITECTURE. A model with a second file of settings, ARCHITECTURE-2.json, is then trained from
these weights in OUT/ARCHITECTURE-2, with stronger augmentation. Every run keeps the weights of its last step. The
accuracies on the held-out images are printed at the end. Run the same command again to resume.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    # read when PyTorch is imported: idle threads would keep the cores of other threads and processes busy
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tessella.cli.progress import TrainingProgress
from tessella.data.datasets import open_split
from tessella.errors import TessellaError
from tessella.training import train
from tessella.training.config import TrainConfig, read_config
from tessella.training.distillation import OUTPUTS

SETTINGS = Path(__file__).resolve().parent / "cifar10_models"
TEACHER = "convmixer_256_8_ks5_p2"
SECOND = "-2"  # ends the names of runs that start from the weights of a first one
STUDENTS = ("mixer_ti_p4_32", "gmixer_ti_p4_32", "crossvit_ti_dagger_p4_32", "convit_ti_p4_32")


def read_settings(run: str, **changes: object) -> TrainConfig:
    """Return the settings of a run.

    run: an architecture, followed by `SECOND` for its second run. changes: paths on this machine.
    """
    return TrainConfig.from_dict(read_config(SETTINGS / f"{run}.json") | changes)


def copy_data(file: Path, folder: Path) -> Path:
    """Copy a file with training images to a folder where nothing is beside it, and return the copy.

    The copy has the name of the published file, since the keys, which decide what is held out, contain it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.copyfile(file, partial)
    return partial.replace(folder / "cifar10-train.parquet")


def last_run(name: str) -> str:
    """Return the name of the last run of an architecture."""
    return f"{name}{SECOND}" if (SETTINGS / f"{name}{SECOND}.json").exists() else name


def run_names() -> list[str]:
    """Return the names of the folders of all runs, in order: those that others start from or learn from are first."""
    first = (TEACHER, *STUDENTS)
    return list(dict.fromkeys((*first, *map(last_run, first))))


def configs(out: Path) -> Iterator[tuple[str, TrainConfig]]:
    """Yield the name of the folder and the settings of every run, in order."""
    for run in run_names():
        name = run.removesuffix(SECOND)
        changes = dict(teacher=f"local-dir:{out / TEACHER}") if name in STUDENTS else {}
        if run != name:
            changes["init_from"] = str(out / name / "model.safetensors")
        yield run, read_settings(run, **changes)


def share_teacher_outputs(out: Path, name: str) -> None:
    """Let the run of a student read the teacher's outputs for crops that an earlier student has seen, and add others.

    The file is a link in the folder of each run, which is deleted when the run is done. A row has a checksum of its
    crop, so rows of other crops are never used.
    """
    shared, run = out / OUTPUTS, out / name
    if (run / OUTPUTS).exists() or (run / "model.safetensors").exists():
        return
    run.mkdir(exist_ok=True)
    shared.touch()
    with suppress(OSError):  # a file system without links: the outputs are computed again
        os.link(shared, run / OUTPUTS)


def train_models(file: Path, out: Path) -> None:
    """Train all models, as far as they have not been trained yet, and print their accuracies."""
    images = open_split(str(copy_data(file, out / "data")))
    trained = []
    for name, config in configs(out):
        print(f"{name}:", flush=True)
        if name in STUDENTS:
            share_teacher_outputs(out, name)
        with TrainingProgress() as progress:
            train(images, out / name, config, on_event=progress)
        trained.append(name)
    (out / OUTPUTS).unlink(missing_ok=True)
    for name in trained:
        found = json.loads((out / name / "report" / "report.json").read_text())["metrics"]
        print(f"{name}: {100 * found['top1']:.2f} % of {found['count']:,} held-out images")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="TRAIN", help="cifar10-train.parquet")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the runs")
    args = parser.parse_args()
    try:
        train_models(args.file, args.out.resolve())
    except TessellaError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
