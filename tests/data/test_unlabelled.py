"""Unlabelled images: what is accepted, and their fingerprint."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tessella.data.datasets import open_labelled
from tessella.data.unlabelled import ImagePool, TrainingImages, open_unlabelled
from tessella.errors import ImageError, UsageError

from ..training.small_runs import make_images


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """The same five images in a folder, an archive and a table, each with one that is broken."""
    images = {f"a/{i}.png": picture(i) for i in range(4)} | {"b/9.png": b"broken"}
    for name, data in images.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "folder", "folder")
    cells = [dict(bytes=data, path=name) for name, data in images.items()]
    pq.write_table(pa.table(dict(image=cells, caption=["x"] * 5)), tmp_path / "all.parquet", row_group_size=2)
    return dict(folder=tmp_path / "folder", tar=tmp_path / "all.tar", parquet=tmp_path / "all.parquet")


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_folders_archives_and_tables(inputs: dict[str, Path], kind: str) -> None:
    images = open_unlabelled([inputs[kind]])
    assert (len(images), images.counts) == (5, (5,))
    again = pickle.loads(pickle.dumps(images))
    for i in (3, 0, 2, 1):  # in any order
        assert images.read(i) == again.read(i) == picture(i)
    assert str(inputs[kind]) in images.key(0)
    assert images.read(4) == b"broken"


def test_several_inputs_and_globs(inputs: dict[str, Path]) -> None:
    images = open_unlabelled([inputs["tar"], str(inputs["folder"] / "a" / "[12].png"), inputs["parquet"]])
    assert images.counts == (5, 2, 5)
    assert [images.read(i) for i in (5, 6, 7)] == [picture(1), picture(2), picture(0)]
    assert images.origin.count(" and ") == 2


def test_the_fingerprint_depends_on_the_images_and_not_on_their_place(inputs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(inputs["folder"], tmp_path / "elsewhere")
    prints = {kind: open_unlabelled([path]).fingerprint for kind, path in inputs.items()}
    assert len(set(prints.values())) == 3
    assert open_unlabelled([tmp_path / "elsewhere"]).fingerprint == prints["folder"]
    assert open_unlabelled([inputs["folder"]] * 2).fingerprint != prints["folder"]
    image = tmp_path / "elsewhere" / "a" / "0.png"
    image.write_bytes(image.read_bytes() + b"0")
    assert open_unlabelled([tmp_path / "elsewhere"]).fingerprint != prints["folder"]


def test_what_has_no_images_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "cut.tar").write_bytes(inputs["tar"].read_bytes()[:300])
    (tmp_path / "cut.parquet").write_bytes(inputs["parquet"].read_bytes()[:-20])
    pq.write_table(pa.table(dict(number=[1, 2])), tmp_path / "numbers.parquet")
    for name, code in (
        ("absent", "not_found"),
        ("nothing", "not_found"),
        ("*.bmp", "not_found"),
        ("cut.tar", "corrupt_archive"),
        ("cut.parquet", "corrupt_archive"),
        ("numbers.parquet", "unreadable"),
    ):
        with pytest.raises(UsageError) as caught:
            open_unlabelled([inputs["folder"], tmp_path / name])
        assert (name, caught.value.code) == (name, code)


def test_a_pool_numbers_labelled_images_first(inputs: dict[str, Path], tmp_path: Path) -> None:
    labelled = open_labelled(make_images(tmp_path / "data", count=6), "train")
    unlabelled = open_unlabelled([inputs["tar"]])
    pool = TrainingImages(labelled, labelled, unlabelled).pool
    assert isinstance(pool, ImagePool)
    assert pool.labels.tolist() == [*labelled.labels, *[-1] * 5]
    assert (len(pool), pool.key(2), pool.key(6)) == (11, labelled.key(2), unlabelled.key(0))
    assert (pool.read(2), pool.read(7)) == (labelled.read(2), picture(1))
    inputs["tar"].write_bytes(b"")
    with pytest.raises(ImageError):
        pool.read(6)
    assert TrainingImages(labelled, labelled).pool is labelled
    assert np.array_equal(labelled.labels, pool.labels[:6])
