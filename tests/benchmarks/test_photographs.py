"""`scripts/bench photographs`: its figures, the export of a teacher, and the sheet of neighbors."""

from __future__ import annotations

import csv
import importlib
import shutil
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tessella
from tessella.data.sources import iter_sources

from ..training.small_runs import make_images, small
from ..training.small_runs import run as train

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mixer_ti_p4_32.cifar10"


def load(name: str) -> ModuleType:
    """Import a benchmark from the source tree."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


neighbors, photographs, teacher, snapshot = map(load, ("neighbors", "photographs", "teacher", "snapshot"))


def test_neighbors_and_their_recall() -> None:
    angles = np.radians([0, 10, 25, 90, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    order, cosines = neighbors.nearest(vectors * np.array([[1], [5], [2], [1], [3]]), 2)
    assert order.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1], [3, 2]]
    np.testing.assert_allclose(cosines[0], np.cos(np.radians([10, 25])), rtol=1e-5)
    assert neighbors.recall(order, order[:, ::-1]) == 1
    assert neighbors.recall(order, np.array([[1, 4], [3, 4], [3, 4], [2, 1], [0, 1]])) == pytest.approx(3 / 10)
    assert neighbors.centered(vectors).mean() == pytest.approx(0, abs=1e-6)


def test_top_k_counts_the_first_of_equal_logits() -> None:
    logits = np.array([[3, 1, 2], [1, 1, 0], [0, 1, 1]], np.float32)
    assert photographs.top_k(logits, np.array([0, 1, 2]), 1) == pytest.approx(1 / 3)
    assert photographs.top_k(logits, np.array([2, 1, 0]), 2) == pytest.approx(2 / 3)


def test_the_kinds_of_cifar_10_among_the_classes_of_imagenet() -> None:
    kinds = [kind for members in photographs.CIFAR_KINDS.values() for kind in members]
    assert len({*kinds}) == len(kinds) == 215
    labels = np.array([281, 151, 0, 7])  # a cat, a dog, a tench and a rooster
    logits = np.zeros((4, 1000), np.float32)
    logits[0, [282, 285, 151]] = 15, 15, 15.5  # two kinds of cats are more probable than one dog
    logits[1, 152], logits[2, 0], logits[3, 281] = 20, 20, 20
    classes = tessella.load(MODEL).labels
    assert photographs.cifar_kinds(logits, labels, [""] * 1000) == {"photos_cifar_kinds": pytest.approx(2 / 3)}
    ten = np.eye(10, dtype=np.float32)[[classes.index(label) for label in ("cat", "cat", "dog", "bird")]]
    assert photographs.cifar_kinds(ten, labels, classes) == {"photos_cifar_kinds": pytest.approx(2 / 3)}
    assert photographs.cifar_kinds(ten, labels[2:3], classes) == {}
    assert photographs.cifar_kinds(ten, labels, ["a"] * 10) == {}


def test_labels_of_models() -> None:
    assert photographs.split_label("local-dir:runs/new/") == ("new", "local-dir:runs/new/")
    assert photographs.split_label("after=local-dir:runs/new") == ("after", "local-dir:runs/new")
    assert photographs.split_label(MODEL) == (MODEL, MODEL)
    assert photographs.file_size(MODEL) == 2_432_744


def teacher_weights() -> NDArray[np.float32]:
    """Return the weights (1001,3) of the classifier of `write_teacher`."""
    return (np.random.default_rng(0).standard_normal((1001, 3)) / 255).astype(np.float32)


def write_teacher(path: Path) -> Path:
    """Write a classifier with 1,000 classes and a background, which reads one image of 224 x 224 pixels."""
    from tessella.engine.runtime import op, ov

    image = op.parameter([1, 224, 224, 3], np.uint8)
    nchw = op.transpose(op.convert(image, "f32"), op.constant(np.array([0, 3, 1, 2])))
    pooled = op.avg_pool(nchw, [1, 1], [0, 0], [0, 0], [224, 224], True)
    weights = op.constant(teacher_weights()[:, :, None, None])
    scores = op.convolution(pooled, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    scores = op.softmax(op.reshape(scores, op.constant(np.array([1, 1001], np.int32)), False), 1)
    ov.save_model(ov.Model([op.result(scores)], [image]), path, compress_to_fp16=False)
    return path


def test_a_teacher_becomes_a_model_with_logits_and_features(tmp_path: Path) -> None:
    folder = teacher.export_teacher(write_teacher(tmp_path / "teacher.xml"), tmp_path / "exported", crop_pct=1.0)
    model = tessella.load(f"local-dir:{folder}")
    images = np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), np.uint8)
    images[1] //= 4
    logits, features = neighbors.outputs_of(model, images)
    means = images.mean((1, 2))
    np.testing.assert_allclose(features, means, rtol=1e-4)
    np.testing.assert_allclose(logits, means @ teacher_weights()[1:].T, rtol=1e-3, atol=1e-4)
    assert model.synsets[:2] == ("n01440764", "n01443537")


def test_the_table_and_the_sheet_of_small_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_images(tmp_path / "clothing")
    make_images(tmp_path / "clothing" / "more").joinpath("val").rename(data / "test")
    shutil.rmtree(data / "more")
    with tarfile.open(tmp_path / "clothing.tar", "w") as archive:
        archive.add(data, "clothing")
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for synset in (*list(neighbors.CLASS_OF)[:14], neighbors.QUERIES[0]):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(photos / f"{synset}.png")
    arguments = f"--models a={MODEL} b={MODEL} --clothing {tmp_path}/clothing.tar --test --photos {photos} --rounds 1"
    arguments += f" --teacher {write_teacher(tmp_path / 'teacher.xml')} --seconds 0.01 --out {tmp_path}"
    arguments += f" --sheet {tmp_path}/sheet.html --queries {neighbors.QUERIES[0]} n01440764"
    monkeypatch.setattr(sys, "argv", ["photographs.py", *arguments.split()])
    photographs.main()
    (path,) = tmp_path.glob("photographs_*.csv")
    first, a, b = csv.DictReader(path.read_text().splitlines())
    assert (first["model"], first["width"], first["classes"]) == ("teacher.xml", "3", "1000")
    assert (a["model"], a["width"], a["file_mb"], a["photos_top1"]) == ("a", "128", "2.43", "")
    assert first["photos_recall_centered"] == "1.0"  # the teacher's own neighbors
    assert 0 < float(a["photos_recall"]) < 1
    assert a["photos_recall"] == b["photos_recall"]
    for name in ("clothing_knn", "clothing_linear", "clothing_test_knn", "clothing_test_linear"):
        assert float(a[name]) > 0.9  # dark and bright images
    assert float(a["images_per_second"]) > 0
    out = capsys.readouterr().out
    assert f"| `a` | {100 * float(a['clothing_knn']):.1f} % |" in out
    assert "kNN of 20" not in out  # of CIFAR-10
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<figure>") == 2 * 2 * 11
    assert "tench, a" in page


@pytest.mark.parametrize("model", ["mixer_s32_224", "crossvit_tiny_240"])
def test_a_checkpoint_becomes_a_model(tmp_path: Path, model: str) -> None:
    data, run = make_images(tmp_path / "data"), tmp_path / "run"
    train(data, run, small(model, epochs=1, ema_decay=0.5))
    expected = tessella.load(f"local-dir:{run}")
    found = tessella.load(f"local-dir:{snapshot.write_snapshot(run, tmp_path / 'model')}")
    image = data / "val" / "dark" / "1.png"
    np.testing.assert_array_equal(found.predict(image).probabilities, expected.predict(image).probabilities)
    assert found.labels == ("0", "1")
    with pytest.raises(SystemExit, match="has no checkpoint yet"):
        snapshot.write_snapshot(tmp_path / "data", tmp_path / "other")


def test_a_query_that_is_not_there_is_refused(tmp_path: Path) -> None:
    sources = list(iter_sources([ROOT / "examples"]))
    vectors = np.eye(len(sources), dtype=np.float32)
    with pytest.raises(SystemExit, match=r"0 of \d+ images are called 'nothing'"):
        neighbors.draw_neighbors(tmp_path / "sheet.html", sources, {"a": vectors}, ["nothing"])
