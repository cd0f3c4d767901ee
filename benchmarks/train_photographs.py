"""Train the built-in model for photographs as it ships: `python benchmarks/train_photographs.py DATA OUT`.

DATA is a folder with clothing.tar, unlabelled.tar, cifar10-train.parquet and teacher/. The model is trained in two
stages, whose settings are in benchmarks/photograph_model. The first one learns from MobileNetV2 on a schedule for 24
epochs and is stopped after 5,092 steps. The second one continues from its averaged weights for an epoch, with the
combined teacher. The runs are written to OUT/1 and OUT/2, the averaged weights and the teacher next to them. Run the
same command again to resume.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    # read when PyTorch is imported: idle threads of PyTorch would keep OpenVINO's cores busy
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from snapshot import write_snapshot

from tessella.cli.progress import TrainingProgress
from tessella.data.datasets import open_split
from tessella.data.unlabelled import TrainingImages, open_unlabelled
from tessella.errors import TrainingError
from tessella.training import checkpoint, train
from tessella.training.config import TrainConfig
from tessella.training.events import StepEvent, TrainingEvent

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (ROOT / "benchmarks" / "photograph_model" / "1.json", ROOT / "benchmarks" / "photograph_model" / "2.json")
STEPS = 5_092  # of the first stage, whose schedule has 21,576


def read_settings(file: Path, **changes: object) -> TrainConfig:
    """Return the settings of a stage, with paths on this machine."""
    return TrainConfig.from_dict(json.loads(file.read_text()) | changes)


def train_until(images: TrainingImages, run: Path, config: TrainConfig, steps: int) -> None:
    """Train until exactly `steps` steps of a run are done and saved, although its schedule is longer."""

    def on_event(event: TrainingEvent) -> None:
        progress(event)
        if isinstance(event, StepEvent) and event.step == steps - 1:
            signal.raise_signal(signal.SIGINT)  # the next step is the last one, after which the state is saved

    with TrainingProgress() as progress:
        try:
            train(images, run, config, on_event=on_event)
        except TrainingError as error:
            if error.code != "interrupted" or steps_done(run) != steps:
                raise


def steps_done(run: Path) -> int:
    """Return the steps of the newest checkpoint of a run; 0 if there is none."""
    saved = checkpoint.read_newest(run, print) if run.is_dir() else None
    return int(saved.state["step"]) if saved else 0


def write_averaged(run: Path, folder: Path) -> None:
    """Write the averaged weights of a run as a model folder, which appears when it is complete."""
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_snapshot(run, partial)
        partial.rename(folder)


def train_stages(data: Path, out: Path, images: TrainingImages) -> None:
    """Train both stages, as far as they have not been trained yet."""
    teacher, averaged, combined = data / "teacher", out / "1-averaged", out / "teacher"
    mobilenet = teacher / "mobilenet_v2_1.0_224_quant.tflite"
    if not averaged.is_dir():
        if steps_done(out / "1") < STEPS:
            labels = dict(teacher=str(mobilenet), teacher_labels=str(teacher / "imagenet_labels.txt"))
            train_until(images, out / "1", read_settings(SETTINGS[0], **labels), STEPS)
        write_averaged(out / "1", averaged)
    if not (combined / "tessella.json").is_file():
        shutil.rmtree(combined, ignore_errors=True)
        inputs = [str(data / name) for name in ("unlabelled.tar", "cifar10-train.parquet")]
        script = str(ROOT / "benchmarks" / "combined_teacher.py")
        subprocess.run([sys.executable, script, str(mobilenet), str(combined), "--images", *inputs], check=True)
    config = read_settings(SETTINGS[1], model=f"local-dir:{averaged}", teacher=str(combined))
    with TrainingProgress() as progress:
        train(images, out / "2", config, on_event=progress)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    inputs = (args.data / "unlabelled.tar", args.data / "cifar10-train.parquet", ROOT / "src/tessella/data/photographs")
    images = TrainingImages(*open_split(str(args.data / "clothing.tar")), open_unlabelled(tuple(map(str, inputs))))
    train_stages(args.data, args.out.resolve(), images)


if __name__ == "__main__":
    main()
