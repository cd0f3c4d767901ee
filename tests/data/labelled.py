"""Helpers for tests of labelled data: writes small data sets in every layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data.datasets import LabelledImages
from tessella.errors import UsageError

CLASSES = ("a2", "a10", "b")


def image_bytes(name: str) -> bytes:
    """Return bytes in place of an image: these tests read images without decoding them."""
    return b"bytes of " + name.encode()


def write(root: Path, *names: str) -> Path:
    """Write files below `root`, each with the `image_bytes` of its name, and return `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(name))
    return root


def write_parquet(
    path: Path,
    labels: Sequence[Any],
    names: Sequence[str] | None = CLASSES,
    *,
    plain: bool = False,
    kind: Any = None,
    images: Sequence[bytes | None] | None = None,
    rows_per_group: int = 2,
) -> Path:
    """Write a table in Hugging Face's layout: row i of x.parquet holds image_bytes("x:i").

    names: the class list in the metadata; plain: a column of bytes instead of structs; kind: the type of the labels.
    """
    data = [image_bytes(f"{path.stem}:{i}") for i in range(len(labels))] if images is None else list(images)
    if plain:
        column = pa.array(data, pa.binary())
    else:
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([dict(bytes=image, path=f"{i}.jpg") for i, image in enumerate(data)], struct)
    table = pa.table(dict(image=column, label=pa.array(labels, kind)))
    if names is not None:
        features = dict(image=dict(_type="Image"), label=dict(_type="ClassLabel", names=list(names)))
        table = table.replace_schema_metadata({"huggingface": json.dumps(dict(info=dict(features=features)))})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write an archive of members (name -> content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(labels: Iterable[str], first: int = 0, **others: bytes) -> dict[str, bytes]:
    """Return the members of an archive: one image and one .cls per label, and `others`, with "_" for a dot."""
    members = {name.replace("_", "."): data for name, data in others.items()}
    for i, label in enumerate(labels, first):
        members |= {f"{i}.jpg": image_bytes(f"{i}"), f"{i}.cls": f"{label}\n".encode()}
    return members


def keys(data: LabelledImages) -> list[str]:
    return [data.key(i) for i in range(len(data))]


def class_names(data: LabelledImages) -> list[str]:
    return [data.classes[label] for label in data.labels]


def refusal(code: str, call: Callable[[], Any]) -> str:
    """Return the message and the hint of the UsageError that the call must raise."""
    with pytest.raises(UsageError) as error:
        call()
    assert error.value.code == code, str(error.value)
    return str(error.value)


BY_PRODUCTS = [
    "@eaDir/x.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg", "._a.jpg", "#recycle/a.jpg", ".DS_Store",
    "$RECYCLE.BIN/a.jpg", "System Volume Information/a.jpg", "lost+found/a.jpg", ".Trash-1000/a.jpg", "Thumbs.db",
    "desktop.ini", "@Recycle/a.jpg", ".@__thumb/a.jpg", ".ipynb_checkpoints/a.jpg", "a.jpg:Zone.Identifier",
    "a.jpg@SynoEAStream",
]  # fmt: skip
