"""What a page expects in the folder in which its reader works, and did not tell the reader to make."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

import tessella
from tessella.bulk import run
from tessella.search import build_index

from .blocks import ROOT

ANIMALS = {3: "cat", 5: "dog", 7: "horse"}  # labels of CIFAR-10
BROKEN, TOO_LARGE = 13, 2  # images among those of the guide to collections


def prepare(page: str, folder: Path, data: Path | None) -> None:
    """Fill a folder with copies of the pictures of the repository, and with what the page needs besides."""
    for name in ("examples", "clothing"):
        shutil.copytree(ROOT / name, folder / name)
    if page in ON_PICTURES:
        ON_PICTURES[page](folder)
    if page in ON_DATA:
        assert data is not None
        ON_DATA[page](folder, data)


def _collection(folder: Path) -> None:
    """Make the run and index `pictures` of the README."""
    run([str(folder / "examples"), str(folder / "clothing")], folder / "pictures", tessella.load())
    build_index(folder / "pictures")


def _trained(folder: Path) -> None:
    """Make the model folder `run` of the README in fewer epochs."""
    from tessella.training import preset_config, train

    train(str(folder / "clothing"), folder / "run", preset_config("finetune", epochs=1, trainable="head"))


def _configs(folder: Path) -> None:
    (folder / "three.json").write_text(
        '{"model": "convmixer_256_8_ks3_p4", "img_size": 32, "epochs": 3, "augmentation": {"color_jitter": 0.4}, '
        '"select": "last"}\n'
    )
    (folder / "typo.json").write_text('{"epoch": 3}\n')


def _photographs(data: Path, folder: Path, count: int) -> list[Path]:
    """Write the first photographs of the shared archive to a folder and return their paths."""
    folder.mkdir()
    with tarfile.open(data / "photos.tar") as archive:
        members = [member for member in archive if member.name.endswith(".jpg")][:count]
        archive.extractall(folder, members, filter="data")
    return [folder / member.name for member in members]


def _animals(folder: Path, data: Path, each: int) -> None:
    """Make the labeled folder `animals` of test images of CIFAR-10."""
    import pyarrow.parquet as pq

    table = pq.read_table(data / "cifar10-test.parquet")
    labels = table["label"].to_pylist()
    for label, name in ANIMALS.items():
        (folder / "animals" / name).mkdir(parents=True)
        for row in [i for i, value in enumerate(labels) if value == label][:each]:
            (folder / "animals" / name / f"{row}.jpg").write_bytes(table["image"][row].as_py()["bytes"])


def _searched(folder: Path, data: Path) -> None:
    """Make the runs of the guide to searching: clothing, and photographs of animals with copies."""
    with tarfile.open(data / "clothing.tar") as archive:
        parts = ("clothing/test/", "clothing/validation/")
        archive.extractall(folder, [member for member in archive if member.name.startswith(parts)], filter="data")
    first, second, third, *_ = _photographs(data, folder / "photos", 40)
    shutil.copy(first, first.with_name(f"copy of {first.name}"))
    with Image.open(second) as image:
        image.save(second.with_name(f"again {second.name}"), quality=50)
    with Image.open(third) as image:
        image.reduce(2).save(third.with_name(f"small {third.stem}.png"))
    with contextlib.chdir(folder):
        predictor = tessella.load()
        run(["clothing/test", "clothing/validation"], "clothes", predictor)
        run("photos", "pets", predictor)


def _calibrated(folder: Path, data: Path) -> None:
    _collection(folder)
    for name in ("cifar10-test.parquet", "photos.tar"):
        (folder / name).symlink_to(data / name)
    with tarfile.open(data / "photos.tar") as archive:
        flamingo = archive.extractfile("n02007558.jpg")
        assert flamingo is not None
        (folder / "flamingo.jpg").write_bytes(flamingo.read())


def _damaged(folder: Path, data: Path) -> None:
    """Make the photographs of the guide to collections, of which some are damaged or too large."""
    paths = _photographs(data, folder / "photos", 329 - TOO_LARGE)
    for path in paths[::24][:BROKEN]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for i in range(TOO_LARGE):
        Image.new("1", (10_000, 6_000)).save(folder / "photos" / f"poster-{i}.png")


def _compared(folder: Path, data: Path) -> None:
    """Make a run and a model whose embeddings nearly agree, and labeled images."""
    (folder / "cifar10-test.parquet").symlink_to(data / "cifar10-test.parquet")
    _animals(folder, data, 200)
    old = "mixer_ti_p4_32.cifar10"
    run(str(folder / "animals"), folder / "runs" / "photos", tessella.load(old))
    build_index(folder / "runs" / "photos")
    tessella.save_pretrained(tessella.create_model(old, pretrained=True), folder / "models" / "new")


ON_PICTURES: dict[str, Callable[[Path], None]] = {
    "docs/guide/models.md": _trained,
    "docs/guide/evaluation.md": _trained,
    "docs/guide/training.md": _configs,
}
ON_DATA: dict[str, Callable[[Path, Path], None]] = {
    "docs/guide/calibration.md": _calibrated,
    "docs/guide/collections.md": _damaged,
    "docs/guide/compare.md": _compared,
    "docs/guide/search.md": _searched,
}
