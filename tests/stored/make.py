"""Make the stored artefacts again: `python -m tests.stored.make`; see README.md.

Everything is made in ROOT and copied here afterwards, so that no file contains the path of a checkout.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import tessella
from tessella.bulk import RunEvent, RunSettings, ShardFinished, run
from tessella.models.base import ImageModel
from tessella.training import StepEvent, TrainConfig, TrainingEvent, train

from ..golden_rule import fill_golden

HERE = Path(__file__).resolve().parent
Event: TypeAlias = "dict[str, Any]"

ROOT = Path("/tmp/tessella-stored")
KEPT = ("README.md", "__init__.py", "make.py")

SAVED: dict[str, tuple[str, dict[str, Any]]] = {  # a small model of each family: architecture, arguments
    "convmixer": ("convmixer_1024_20_ks9_p14", dict(dim=16, depth=2, kernel_size=3, patch_size=4)),
    "convit": ("convit_tiny", dict(embed_dim=4, num_heads=4, depth=2, local_up_to_layer=1, patch_size=8, img_size=32)),
    "mixer": ("mixer_s16_224", dict(embed_dim=16, num_blocks=2, patch_size=8, img_size=32)),
    "crossvit": ("crossvit_9_240", dict(embed_dim=(8, 16), num_heads=(2, 2), depth=((1, 1, 0),), patch_size=(8, 8),
                                        img_size=32, img_scale=(1, 0.5))),
}  # fmt: skip
MODEL = "local-dir:saved/convmixer"  # used by the runs, the exports, the probe and the tune record
IMAGE = "images/val/bright/0.png"
INPUTS = ["images/val", "broken.png", "archive.tar", "table.parquet"]
RUN = [*INPUTS, "-m", MODEL, "--engine", "eager", "--batch-size", "4", "--shard-rows", "4"]
TRAIN = ["images", "--config", "config.json", "--workers", "0", "--device", "cpu"]
CONFIG: dict[str, Any] = dict(
    model="mixer_s32_224", model_args=dict(embed_dim=8, num_blocks=2, patch_size=4, img_size=16), start="scratch",
    epochs=2, batch_size=8, lr=3e-3, ema=0.9, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25],
)  # fmt: skip


def images(folder: Path) -> None:
    """Write 16 training and 8 validation images of each class, dark and bright: 16 pixels of noise on a colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for place, name in enumerate(("dark", "bright")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, 3) + rng.integers(0, 50, (16, 16, 3)) + 105 * place
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")


def inputs() -> None:
    """Write the other inputs of the runs: a broken image, a tar archive and a Parquet table."""
    (ROOT / "broken.png").write_bytes((ROOT / IMAGE).read_bytes()[:100])
    paths = [f"images/train/dark/{i}.png" for i in range(6)]
    with tarfile.open(ROOT / "archive.tar", "w") as archive:
        for path in paths[:3]:
            data = (ROOT / path).read_bytes()
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    rows = [(ROOT / path).read_bytes() for path in paths[3:]]
    pq.write_table(pa.table(dict(image=rows)), ROOT / "table.parquet")


def saved(name: str) -> ImageModel:
    """Return a small model with the golden weights, five classes and inputs of 32 pixels."""
    arch, small = SAVED[name]
    model = tessella.create_model(arch, num_classes=5, **small)
    assert isinstance(model, ImageModel)
    fill_golden(model)
    model.pretrained_cfg = dict(
        input_size=(3, 32, 32), interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3,
        label_names=tuple("abcde"), num_classes=5,
    )  # fmt: skip
    return model


def training_checkpoint(model: ImageModel) -> dict[str, Any]:
    """Return a checkpoint as timm's training script saves it: averaged weights beside others, and the optimizer."""
    averaged = model.state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return dict(
        epoch=3, arch=model.arch, state_dict={key: torch.zeros_like(value) for key, value in averaged.items()},
        state_dict_ema=averaged, optimizer=optimizer.state_dict(), version=2, metric=0.5,
    )  # fmt: skip


def killed_run() -> None:
    """Start the run of `RUN`, and kill the process after the first shard."""

    def kill(event: RunEvent) -> None:
        if isinstance(event, ShardFinished):
            os.kill(os.getpid(), signal.SIGKILL)

    predictor = tessella.load(MODEL, engine="eager", device="cpu", batch_size=4)
    run(INPUTS, "run-unfinished", predictor, RunSettings(shard_rows=4), on_event=kill)


def interrupted_training() -> None:
    """Start the training of `TRAIN`, and interrupt it in the second epoch."""

    def stop(event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    config = TrainConfig.from_dict(json.loads(Path("train-finished/train.json").read_text())["config"])
    train("images", "train-interrupted", config, workers=0, device="cpu", on_event=stop)


def command(*arguments: str, status: int = 0, call: str = "") -> None:
    """Run `tessella ...`, or a function of this module, in ROOT on one thread; the return code must be `status`."""
    path = os.pathsep.join(sys.path)
    environment = dict(OMP_NUM_THREADS="1", TESSELLA_CACHE=str(ROOT / "cache"), HF_HUB_OFFLINE="1", PYTHONPATH=path)
    what = ["-c", f"from tests.stored import make; make.{call}()"] if call else ["-m", "tessella", *arguments]
    done = subprocess.run([sys.executable, *what], cwd=ROOT, env=os.environ | environment, check=False)
    assert done.returncode == status, done.returncode


def strip_stack_traces(folder: Path) -> None:
    """Remove the stack traces that PyTorch writes to an ONNX file: they contain the path of the checkout."""
    import onnx

    path, manifest = folder / "model.onnx", folder / "manifest.json"
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if "stack_trace" not in entry.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)
    facts = json.loads(manifest.read_text())
    facts["files"]["model.onnx"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(facts, indent=1))


def expected() -> dict[str, Any]:
    """Return fingerprint and probabilities for IMAGE of every model."""
    found = {}
    names = [f"saved/{name}" for name in SAVED]
    for name in [*names, "train-finished", "exported/openvino", "exported/onnxruntime"]:
        engine = "auto" if name.startswith("exported") else "eager"
        predictor = tessella.load(f"local-dir:{ROOT / name}", engine=engine)
        numbers = predictor.predict(ROOT / IMAGE).probabilities[0].tolist()
        found[name] = dict(fingerprint=predictor.fingerprint, probabilities=numbers)
    return found


def make() -> None:
    """Replace the artefacts beside this file by new ones."""
    shutil.rmtree(ROOT, ignore_errors=True)
    images(ROOT / "images")
    inputs()
    for name in SAVED:
        tessella.save_pretrained(saved(name), ROOT / "saved" / name)
    torch.save(training_checkpoint(saved("convmixer")), ROOT / "checkpoint.pth.tar")
    command("run", *RUN, "-o", "run-finished")
    command("index", "run-finished")
    command(call="killed_run", status=-9)
    command("index", "run-unfinished")
    command("embed", IMAGE, "-m", MODEL, "--engine", "eager", "--out", "query.npz")
    (ROOT / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    command("train", *TRAIN, "-o", "train-finished")
    for picture in (ROOT / "train-finished" / "report").glob("*.png"):
        picture.unlink()  # large, and never read
    command(call="interrupted_training", status=1)  # TrainingError `interrupted`
    for engine in ("openvino", "onnxruntime"):
        command("export", MODEL, f"exported/{engine}", "--engine", engine)
    strip_stack_traces(ROOT / "exported" / "onnxruntime")
    command("tune", MODEL, "--engines", "rewritten", "--precision", "float32", "--seconds", "10")
    command("probe", "images", "-m", MODEL, "--shots", "1,5", "-o", "probe")
    (ROOT / "expected.json").write_text(json.dumps(expected(), indent=1) + "\n")
    (ROOT / "cache" / "tuned").rename(ROOT / "tuned")
    shutil.rmtree(ROOT / "cache")
    for path in HERE.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(ROOT, HERE, dirs_exist_ok=True)


if __name__ == "__main__":
    make()
