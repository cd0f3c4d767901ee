"""The folder in which every case runs: good, damaged and odd inputs, all named relative to it.

`python -m tests.fuzz.world FOLDER` builds it. A case works in a copy of its own, so it may write wherever it likes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import sys
import tarfile
from collections.abc import Iterator
from contextlib import chdir, closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.training.small_runs import MIXER, make_images

LONG_NAME = "n" * 251 + ".png"
ODD_NAMES = [
    "new\nline.png",
    "esc\x1b[31m.png",
    "-dash.png",
    "sp ace.png",
    "ünï.png",
    "=1+1.png",
    os.fsdecode(b"lat\xe9.png"),
]
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7)}
TRAINING: dict[str, Any] = dict(
    model="mixer_s32_224", model_args=MIXER, epochs=1, batch_size=4, lr=3e-3, checkpoint_minutes=60,
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
)  # fmt: skip


def build(folder: Path) -> None:
    """Fill `folder`, which exists and is empty."""
    with chdir(folder):
        for name in ("home", "tmp", "cache", "empty"):
            Path(name).mkdir()
        _images()
        _special_files()
        _containers()
        _texts()
        _arrays()
        _models()
        _runs()
        _training()


def _image(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def _images() -> None:
    photos = Path("photos")
    photos.mkdir()
    for i in range(5):
        _image(i).save(photos / f"{i}.jpg")
        _image(i, 40).save(photos / f"{i}.png")
    png = (photos / "0.png").read_bytes()
    odd = Path("odd")
    (odd / "sub").mkdir(parents=True)
    for i, name in enumerate([*ODD_NAMES, LONG_NAME, "sub/inside.png"]):
        _image(20 + i).save(odd / name, "PNG")
    (odd / "cut.png").write_bytes(png[: len(png) // 2])
    (odd / "no bytes.png").touch()
    (odd / "text.jpg").write_text("no image at all")
    (odd / "zeros.jpg").write_bytes(bytes(5000))
    header = bytearray(png)
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
    (odd / "huge.png").write_bytes(header)


def _special_files() -> None:
    odd = Path("odd")
    (odd / "self.png").symlink_to("self.png")
    (odd / "dangling.png").symlink_to("nowhere.png")
    (odd / "loop").symlink_to(".")
    (odd / "linked").symlink_to("../photos")
    for path in (Path("fifo"), odd / "fifo.png"):
        os.mkfifo(path)
    Path("self").symlink_to("self")
    Path("link").symlink_to("photos")
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(odd / "socket.png"))
    for name, numbers in DEVICES.items():
        try:  # nodes of its own: a fault that replaces one must not harm the machine
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(*numbers))
        except PermissionError:
            Path(name).symlink_to(f"/dev/{name}")


def _containers() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tarfile.open("photos.tar", "w") as archive:
        archive.add("photos", "photos")
    data = Path("photos.tar").read_bytes()
    Path("cut.tar").write_bytes(data[: len(data) // 2 + 100])
    Path("text.tar").write_text("no archive")
    Path("header.tar").write_bytes(data[:124] + b"-0000001000\0" + data[136:])  # a member of negative size
    Path("empty.tar").touch()
    files = sorted(Path("photos").iterdir())
    images = [dict(bytes=path.read_bytes(), path=path.name) for path in files]
    labels = [i % 2 for i in range(len(files))]
    pq.write_table(pa.table(dict(image=images, label=labels)), "rows.parquet")
    data = Path("rows.parquet").read_bytes()
    Path("cut.parquet").write_bytes(data[: len(data) // 2])
    flipped = bytearray(data)
    flipped[len(data) - 60] ^= 0xFF  # in the footer
    Path("flipped.parquet").write_bytes(flipped)
    Path("magic.parquet").write_bytes(b"PAR1" + b"\xff" * 50 + b"\x2a\0\0\0PAR1")
    Path("encrypted.parquet").write_bytes(b"PARE" + b"\x15\x02" * 40 + b"\x20\0\0\0PARE")
    pq.write_table(pa.table(dict(image=[1, 2], label=[None, "x"])), "types.parquet")
    pq.write_table(pa.table(dict(image=images[:2])).slice(0, 0), "norows.parquet")


def _texts() -> None:
    cat, missing = "photos/0.jpg", "nowhere.jpg"
    texts: dict[str, bytes] = {
        "list.txt": f"{cat}\n{missing}\n\nphotos/1.png\n".encode(),
        "utf16.txt": f"{cat}\n".encode("utf-16"),
        "latin1.txt": b"odd/lat\xe9.png\r\n" + cat.encode(),
        "nul.txt": f"{cat}\0\n\0\n{'x' * 300}.png\n{'a/' * 3000}b.png\n{cat}\n".encode(),
        "recursive.txt": f"@recursive.txt\n-\n{cat}\n".encode(),
        "random.bin": np.random.default_rng(1).bytes(3000),
        "deep.json": b"[" * 100_000,
        "deepobject.json": b'{"model_args":' * 50_000,
        "nan.json": json.dumps(dict(TRAINING, lr=float("nan"), epochs=float("inf"))).encode(),
        "big.json": json.dumps(dict(TRAINING, seed=10**40, batch_size=10**30)).encode(),
        "digits.json": b'{"epochs": ' + b"9" * 10_000 + b"}",
        "array.json": b"[1, 2]",
        "surrogate.json": b'{"model": "\\ud800", "epochs": 1}',
        "latin1.json": b'{"model": "\xe9"}',
        "types.json": json.dumps(dict(model=[1], epochs="three", mixing=7, model_args=[])).encode(),
        "small.json": json.dumps(TRAINING).encode(),
        "labels.csv": b"path,label\nphotos/0.jpg,a\nphotos/1.jpg,b\nphotos/2.jpg,a\nphotos/3.jpg,b\n",
        "bad.csv": b'path,label\nphotos/0.jpg,"a\n\xff\xfe,\n,,,,\n' + b"x" * 200_000,
        "real.json": json.dumps([[0], [1]] * 5).encode(),
    }
    for name, data in texts.items():
        Path(name).write_bytes(data)


def _arrays() -> None:
    np.save("vector.npy", np.random.default_rng(0).standard_normal(256).astype(np.float32))
    np.save("narrow.npy", np.ones(3, np.float32))
    np.save("nan.npy", np.full(256, np.nan, np.float32))
    np.save("text.npy", np.array(["a", "b"]))
    np.save("zero-d.npy", np.float32(1))
    np.save("object.npy", np.array([dict(a=1)], dtype=object), allow_pickle=True)
    data = Path("vector.npy").read_bytes()
    Path("header.npy").write_bytes(data.replace(b"'shape'", b"'sha\xffe'"))
    Path("absurd.npy").write_bytes(data.replace(b"(256,), }        ", b"(99999999999,), }"))
    Path("cut.npz").write_bytes(b"PK\x03\x04" + data[:40])
    np.savez("arrays.npz", embeddings=np.ones((2, 256), np.float32), keys=np.array(["a", "b"]))


def _models() -> None:
    import torch

    import tessella
    from tessella.export import export

    model = tessella.create_model("convmixer_256_8_ks3_p4.cifar10", pretrained=True)
    tessella.save_pretrained(model, "weights")
    data = Path("weights/model.safetensors").read_bytes()
    small = tessella.create_model("mixer_s32_224", num_classes=2, **dict[str, Any](MIXER))
    tessella.save_pretrained(small, "tiny")
    for name in ("nohash", "badconfig", "deepconfig"):
        Path(name).mkdir()
        Path(name, "model.safetensors").write_bytes(Path("tiny/model.safetensors").read_bytes())
    Path("nohash/config.json").write_text("{}")
    Path("badconfig/config.json").write_text(
        Path("tiny/config.json").read_text().replace("224", '"x"').replace("0.5", "NaN")
    )
    Path("deepconfig/config.json").write_bytes(b'{"a":' * 100_000)
    Path("cut.safetensors").write_bytes(data[:3000])
    Path("header.safetensors").write_bytes(b"\xff" * 8 + data[8:3000])
    torch.save({"weight": torch.zeros(2)}, "weights.pth")
    export(tessella.load("local-dir:tiny", engine="openvino"), "exported")
    Path("badexport").mkdir()
    for path in Path("exported").iterdir():
        Path("badexport", path.name).write_bytes(path.read_bytes()[:-7])


def _runs() -> None:
    import tessella
    from tessella.bulk import RunSettings, run
    from tessella.search.index import build_index

    predictor = tessella.load("local-dir:tiny", engine="eager", batch_size=4)
    run(["photos", "odd/cut.png"], "run", predictor, RunSettings(shard_rows=4, processes=1))
    shutil.copytree("run", "unindexed")
    build_index("run")
    for name, file, change in _damages():
        shutil.copytree("run", name)
        path = next(path for path in sorted(Path(name).glob(file)) if path.is_file())
        path.write_bytes(change(path.read_bytes()))


def _damages() -> Iterator[tuple[str, str, Any]]:
    """(folder, pattern of a file below it, what becomes of its bytes)."""
    yield "run-cut", "shards/*0000.parquet", lambda data: data[:-100]
    yield "run-flipped", "shards/*0001.parquet", lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:]
    yield "run-ledger", "run.sqlite", lambda data: data[:100] + b"\xff" * 1000 + data[1100:]
    yield "run-facts", "run.json", lambda data: b"[" * 50_000
    yield "run-types", "run.json", lambda data: data.replace(b": 4", b': "4"').replace(b"null", b"[]")
    yield "run-manifest", "manifest.parquet", lambda data: data[:-9]
    yield "run-seal", "index/index.json", lambda data: b'{"version": "x", "rows": NaN}'
    yield "run-index", "index/**/*.lance", lambda data: data[: len(data) // 2]


def _training() -> None:
    from tessella.training.config import TrainConfig
    from tessella.training.loop import train

    make_images(Path("data"), 12)
    train("data", "trained", TrainConfig.from_dict(TRAINING), workers=0)
    for name, file, data in (
        ("trained-facts", "train.json", b'{"epochs": "x"}'),
        ("trained-weights", "model.safetensors", b"\xff" * 200),
    ):
        shutil.copytree("trained", name)
        Path(name, file).write_bytes(data)
    shutil.copytree("trained", "trained-checkpoints")
    for path in Path("trained-checkpoints/checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])


if __name__ == "__main__":
    build(Path(sys.argv[1]))
