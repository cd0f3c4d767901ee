"""Train the built-in classifiers for CIFAR-10: `python benchmarks/train_cifar10.py cifar10-train.parquet OUT`.

Only the training images are read. They are copied to OUT/data, because test images beside them would be used for
validation. Instead, a tenth of them, chosen by a hash of their keys, is held out for validation. The settings in
benchmarks/cifar10_models were chosen by the accuracy on this tenth.

ConvMixer is trained in two stages: a narrow one, with 128 channels and kernels of 3 x 3, in OUT/convmixer-1, and then
one with 256 channels and kernels of 5 x 5 in OUT/convmixer-2. The second stage starts from the weights of the first
one, which are widened without changing the function (OUT/widened.safetensors). The result is the teacher of four
models, which are trained in OUT/ARCHITECTURE. Every model has the weights of the last step. The accuracies on
the held-out images are printed at the end. Run the same command again to resume.
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
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from tessella.cli.progress import TrainingProgress
from tessella.data.datasets import open_split
from tessella.errors import TessellaError
from tessella.models.configs import configure
from tessella.models.configs.convmixer import ConvMixerConfig
from tessella.training import train
from tessella.training.config import TrainConfig, read_config

SETTINGS = Path(__file__).resolve().parent / "cifar10_models"
STAGES = ("convmixer-1", "convmixer-2")  # names of files with settings, and of folders in OUT
STUDENTS = ("mixer_ti_p4_32", "gmixer_ti_p4_32", "crossvit_ti_dagger_p4_32", "convit_ti_p4_32")


def read_settings(name: str, **changes: object) -> TrainConfig:
    """Return the settings of a model or stage. changes: paths on this machine."""
    return TrainConfig.from_dict(read_config(SETTINGS / f"{name}.json") | changes)


def copy_data(file: Path, folder: Path) -> Path:
    """Copy a file with training images to a folder where nothing is beside it, and return the copy.

    The copy has the name of the published file, since the keys, which decide what is held out, contain it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.copyfile(file, partial)
    return partial.replace(folder / "cifar10-train.parquet")


def widen(weights: Path, architecture: ConvMixerConfig, out: Path) -> None:
    """Write the weights of a ConvMixer that is wider and has larger kernels, but is the same function.

    As in Net2Net (arXiv:1511.05641), channel i is a copy of channel i modulo the narrow width, and the weights that
    read the copies are random parts of the original weight, so that the copies learn different things. Kernels are
    padded with zeros.
    """
    narrow = load_file(weights)
    source_D = torch.arange(architecture.dim) % len(narrow["stem.0.bias"])
    generator = torch.Generator().manual_seed(0)
    wide = {}
    for name, tensor in narrow.items():
        if tensor.ndim and not name.startswith("head."):
            tensor = tensor[source_D]
        if tensor.ndim == 4 and tensor.shape[1] == 1:
            tensor = pad(tensor, ((architecture.kernel_size - tensor.shape[-1]) // 2,) * 4)
        elif name.endswith("weight") and tensor.ndim > 1 and name != "stem.0.weight":
            tensor = divided(tensor, source_D, generator)
        wide[name] = tensor.contiguous()
    partial = out.with_name(f"{out.name}.partial")
    save_file(wide, partial)
    partial.replace(out)


def divided(weight: Tensor, source_D: Tensor, generator: torch.Generator) -> Tensor:
    """Return weights (O,D,...) that read copies of inputs (I,): those of the copies of an input sum to its weight.

    weight: (O,I,...). source_D: the input of which each of the D inputs is a copy.
    """
    part_OD = torch.rand(len(weight), len(source_D), generator=generator) * 0.6 + 0.2
    sum_OI = torch.zeros(len(weight), weight.shape[1]).index_add_(1, source_D, part_OD)
    part_OD /= sum_OI[:, source_D]
    return weight[:, source_D] * part_OD.reshape(*part_OD.shape, *[1] * (weight.ndim - 2))


def architecture_of(config: TrainConfig) -> ConvMixerConfig:
    """Return the architecture of a stage."""
    architecture = configure(config.model, **config.model_args)
    assert isinstance(architecture, ConvMixerConfig)
    return architecture


def configs(out: Path) -> Iterator[tuple[str, TrainConfig]]:
    """Yield the name and the settings of every training in order; each one needs those before it to be done."""
    first, second = STAGES
    yield first, read_settings(first)
    start = out / "widened.safetensors"
    config = read_settings(second, init_from=str(start))
    widen(out / first / "model.safetensors", architecture_of(config), start)
    yield second, config
    for name in STUDENTS:
        yield name, read_settings(name, teacher=f"local-dir:{out / second}")


def train_models(file: Path, out: Path) -> None:
    """Train all models, as far as they have not been trained yet, and print their accuracies."""
    images = open_split(str(copy_data(file, out / "data")))
    trained = []
    for name, config in configs(out):
        print(f"{name}:", flush=True)
        with TrainingProgress() as progress:
            train(images, out / name, config, on_event=progress)
        trained.append(name)
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
