"""The built-in model is the one that was evaluated: its recorded answers and its accuracy are measured again.

`python -m tests.test_builtin` records them anew, from the data beside the checkout, after the model was replaced.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.predictor import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "golden" / "builtin_cifar10.json"
COMMITTED = sorted([*(ROOT / "examples").glob("*.jpg"), *(ROOT / "tests" / "golden" / "images").iterdir()])


def recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text())


def evaluate(parquet: Path, rows: int | None = None) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """The images' bytes, their labels, and the built-in model's probabilities, through the whole Predictor."""
    import pyarrow.parquet as pq

    table = pq.read_table(parquet).slice(0, rows)
    images = [row["bytes"] for row in table["image"].to_pylist()]
    scores = tessella.load(batch_size=100).predict(images)
    return images, np.array(table["label"].to_pylist()), scores.probabilities


def test_it_is_the_default_and_offline() -> None:
    predictor = tessella.load()
    assert predictor.name == DEFAULT_MODEL
    assert len(predictor.labels) == 10
    assert predictor.model.pretrained_cfg["sha256"] == recorded()["weights_sha256"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_recorded_answers_on_committed_images(path: Path) -> None:
    expected = recorded()["committed"][path.name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["sha256"]
    probabilities = tessella.load().predict(path).probabilities[0]
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=2e-5)


def test_recorded_answers_on_a_subset(shared_data: Path) -> None:
    subset = recorded()["subset"]
    images, labels, probabilities = evaluate(shared_data / "cifar10-test.parquet", len(subset))
    for row, image, label, scores in zip(subset, images, labels, probabilities, strict=True):
        assert hashlib.sha256(image).hexdigest()[:16] == row[0]
        assert int(label) == row[1]
        assert scores[row[2]] == pytest.approx(row[3], abs=1e-4)
        assert scores.max() - scores[row[2]] < 1e-4  # the recorded class is still the best
    hits = sum(row[1] == row[2] for row in subset)
    assert hits / len(subset) == recorded()["subset_top1"]


@pytest.mark.slow
def test_accuracy_on_all_test_images(shared_data: Path) -> None:
    _, labels, probabilities = evaluate(shared_data / "cifar10-test.parquet")
    assert len(labels) == 10_000
    top1 = float((probabilities.argmax(1) == labels).mean())
    assert top1 >= 0.86
    assert top1 == pytest.approx(recorded()["top1"], abs=5e-4)  # at most five of 10,000 ties may fall the other way


def record() -> None:
    data = ROOT.parent / "shared" / "data"
    images, labels, probabilities = evaluate(data / "cifar10-test.parquet")
    best = probabilities.argmax(1)
    subset = [
        [
            hashlib.sha256(images[i]).hexdigest()[:16],
            int(labels[i]),
            int(best[i]),
            round(float(probabilities[i].max()), 6),
        ]
        for i in range(1000)
    ]
    predictor = tessella.load()
    order = np.argsort(-probabilities, axis=1)
    facts = dict(
        what="answers of the built-in model; subset: the first 1,000 CIFAR-10 test images as "
        "[sha256 of the file's bytes, label, predicted class, its probability]",
        model=DEFAULT_MODEL,
        weights_sha256=predictor.model.pretrained_cfg["sha256"],
        images=len(labels),
        top1=float((best == labels).mean()),
        top5=float((order[:, :5] == labels[:, None]).any(1).mean()),
        subset_top1=sum(row[1] == row[2] for row in subset) / len(subset),
        committed={
            path.name: dict(
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                probabilities=[round(float(p), 6) for p in predictor.predict(path).probabilities[0]],
            )
            for path in COMMITTED
        },
    )
    rows = ",\n".join("  " + json.dumps(row) for row in subset)
    head = json.dumps(facts, indent=1)[:-2]
    RECORDED.write_text(f'{head},\n "subset": [\n{rows}\n ]\n}}\n')
    print(f"top-1 {facts['top1']:.4f}, top-5 {facts['top5']:.4f} on {facts['images']} images")


if __name__ == "__main__":
    record()
