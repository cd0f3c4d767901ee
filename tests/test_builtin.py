"""The recorded outputs and accuracies of the built-in models are reproduced.

After a model was replaced, `python -m tests.test_builtin` records them from the data next to the checkout.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tessella
from tessella.data.labels import labels_for
from tessella.weights.catalogue import BUILTIN_FOLDER, CATALOGUE, default_model

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "golden" / "builtin_cifar10.json"
COMMITTED = sorted([*(ROOT / "examples").glob("*.jpg"), *(ROOT / "tests" / "golden" / "images").iterdir()])
CIFAR10_MODEL = "convmixer_256_8_ks3_p4.cifar10"
PHOTOGRAPH_MODEL = "convmixer_384_8_ks5_p8.photographs"
BUILTIN = [row.name for row in CATALOGUE.values() if row.file and row.tag == "cifar10"]
SUBSET = 1000
LEAST = {"convmixer": 0.88}  # top-1 targets of the training of each family
recorded = functools.cache(lambda: json.loads(RECORDED.read_text()))


def cifar10(parquet: Path, rows: int | None = None) -> tuple[list[bytes], NDArray[np.int64]]:
    import pyarrow.parquet as pq

    table = pq.read_table(parquet).slice(0, rows)
    return [row["bytes"] for row in table["image"].to_pylist()], np.array(table["label"].to_pylist())


def probabilities(name: str, images: list[bytes]) -> NDArray[np.float32]:
    """Return the probabilities (N,classes) that the complete Predictor gives without a calibration."""
    actual: NDArray[np.float32] = tessella.load(name, batch_size=100, calibration=None).predict(images).probabilities
    return actual


def test_the_default_is_built_in_and_offline() -> None:
    predictor = tessella.load()
    assert predictor.name == default_model()
    assert CATALOGUE[predictor.name].file


@pytest.mark.parametrize("name", BUILTIN)
def test_the_package_contains_the_built_in_files(name: str) -> None:
    row = CATALOGUE[name]
    file = BUILTIN_FOLDER / str(row.file)
    assert file.stat().st_size <= 3_000_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row.sha256 == recorded()["models"][name]["weights_sha256"]
    assert f"{100 * recorded()['models'][name]['top1']:.2f} %" in (BUILTIN_FOLDER / f"{name}.md").read_text()


def test_the_photograph_model_is_small_and_has_a_card() -> None:
    row = CATALOGUE[PHOTOGRAPH_MODEL]
    file = BUILTIN_FOLDER / str(row.file)
    assert file.stat().st_size <= 6_000_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row.sha256
    card = (BUILTIN_FOLDER / f"{PHOTOGRAPH_MODEL}.md").read_text()
    command = "python benchmarks/train_photographs.py ../shared/data RUN\n"
    for text in (command, "CC0", "MIT", "Apache-2.0", PHOTOGRAPH_MODEL):
        assert text in card
    assert tessella.load(PHOTOGRAPH_MODEL).labels == labels_for("imagenet-1k").names


def test_the_photograph_model_tells_clothing_apart() -> None:
    """Its nearest neighbors are better than those of the CIFAR-10 model. It has seen these images, but no labels."""
    images = sorted((ROOT / "clothing").glob("*/*.jpg"))
    classes = np.array([path.parent.name for path in images])

    def accuracy(name: str) -> float:
        vectors = tessella.load(name).embed(images)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -1)
        return float((classes[cosines.argmax(1)] == classes).mean())

    assert accuracy(PHOTOGRAPH_MODEL) >= 0.9 > accuracy(CIFAR10_MODEL)


@pytest.mark.parametrize("name", BUILTIN)
def test_recorded_outputs_on_committed_images(name: str) -> None:
    predictor = tessella.load(name, calibration=None)
    for path in COMMITTED:
        expected = recorded()["models"][name]["committed"][path.name]
        np.testing.assert_allclose(predictor.predict(path).probabilities[0], expected, atol=2e-5, err_msg=path.name)


@pytest.mark.parametrize("name", BUILTIN)
def test_recorded_outputs_on_a_subset(name: str, shared_data: Path) -> None:
    expected = recorded()["models"][name]
    images, labels = cifar10(shared_data / "cifar10-test.parquet", SUBSET)
    assert hashlib.sha256(b"".join(images)).hexdigest() == recorded()["subset_sha256"]
    actual = probabilities(name, images)
    predicted = np.array(list(map(int, expected["predicted"])))
    chosen = actual[np.arange(SUBSET), predicted]
    np.testing.assert_allclose(chosen, expected["probability"], atol=1e-4)
    assert (actual.max(1) - chosen < 1e-4).all()  # the recorded class is still the best
    assert (predicted == labels).mean() == expected["subset_top1"]


@pytest.mark.slow
def test_accuracy_on_all_test_images(shared_data: Path) -> None:
    images, labels = cifar10(shared_data / "cifar10-test.parquet")
    assert len(labels) == 10_000
    top1 = float((probabilities(CIFAR10_MODEL, images).argmax(1) == labels).mean())
    # at most five ties among 10,000 images may differ
    assert top1 == pytest.approx(recorded()["models"][CIFAR10_MODEL]["top1"], abs=5e-4)


def test_accuracy_reaches_the_target_of_training() -> None:
    top1 = {name: figures["top1"] for name, figures in recorded()["models"].items()}
    assert sorted(top1) == sorted(BUILTIN)
    for name, reached in top1.items():
        assert reached >= LEAST.get(name.partition("_")[0], 0.75), name
    mixers = {name: reached for name, reached in top1.items() if name.startswith("convmixer")}
    assert mixers[CIFAR10_MODEL] == max(mixers.values())


def record() -> None:
    images, labels = cifar10(ROOT.parent / "shared" / "data" / "cifar10-test.parquet")
    models: dict[str, Any] = {}
    for name in BUILTIN:
        actual = probabilities(name, images)
        order = np.argsort(-actual, axis=1)
        correct = order[:, :5] == labels[:, None]
        predictor = tessella.load(name, calibration=None)
        models[name] = dict(
            weights_sha256=CATALOGUE[name].sha256,
            top1=float(correct[:, 0].mean()),
            top5=float(correct.any(1).mean()),
            subset_top1=float(correct[:SUBSET, 0].mean()),
            predicted="".join(map(str, order[:SUBSET, 0])),
            probability=[round(float(p), 5) for p in actual[:SUBSET].max(1)],
            committed={
                path.name: [round(float(p), 6) for p in predictor.predict(path).probabilities[0]] for path in COMMITTED
            },
        )
        print(f"{name}: top-1 {models[name]['top1']:.4f}, top-5 {models[name]['top5']:.4f} of {len(labels)} images")
    facts = dict(
        what=f"answers of the built-in models: to the committed images, and to the first {SUBSET} of the CIFAR-10 test "
        "images the class (a digit each) and its probability; top1 and top5 are of all 10,000",
        subset_sha256=hashlib.sha256(b"".join(images[:SUBSET])).hexdigest(),
    )
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(figures)}" for name, figures in models.items())
    RECORDED.write_text(f'{json.dumps(facts, indent=1)[:-2]},\n "models": {{\n{rows}\n }}\n}}\n')


if __name__ == "__main__":
    record()
