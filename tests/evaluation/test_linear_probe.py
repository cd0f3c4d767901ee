"""The probe: every image embedded once, choices on held-out images, figures on others, and a head that attaches."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from tessella.data.datasets import LabelledImages, open_labelled
from tessella.data.sources import Source
from tessella.engine import make_plan
from tessella.errors import TessellaError, UsageError
from tessella.evaluation import classifiers
from tessella.evaluation.classifiers import (
    DRAWS,
    NEIGHBOURS,
    STRENGTHS,
    Scale,
    choose_neighbours,
    choose_strength,
    few_shot,
    fit,
    minimise,
    neighbours,
    vote,
)
from tessella.evaluation.embeddings import embed
from tessella.evaluation.head import Head, attach
from tessella.evaluation.linear_probe import find_threshold, probe
from tessella.evaluation.metrics import Coverage
from tessella.evaluation.settings import ProbeSettings
from tessella.predictor import Output, Predictor
from tessella.results import l2_normalize, softmax

from ..data.test_isolated import FaultySource
from ..models.tiny import TINY, size_of, tiny

NO_SHOTS = ProbeSettings(shots=())
COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}


def picture(rng: np.random.Generator, colour: tuple[int, ...], noise: int = 50) -> bytes:
    pixels = np.array(colour) + rng.integers(-noise, noise + 1, (8, 8, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_images(root: Path, count: int, seed: int = 0) -> Path:
    """`count` noisy pictures of each colour."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(picture(rng, colour))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 training and 10 validation images of each of three classes; one of each split is none."""
    write_images(tmp_path / "data" / "train", 24)
    write_images(tmp_path / "data" / "val", 10, seed=1)
    (tmp_path / "data" / "train" / "green" / "7.png").write_bytes(b"no image")
    (tmp_path / "data" / "val" / "blue" / "3.png").write_bytes(b"")
    return tmp_path / "data"


def predictor_of(case: str, **overrides: Any) -> Predictor:
    net = tiny(case, **overrides)
    size = size_of(net)
    net.pretrained_cfg = dict(input_size=(3, *size), num_classes=net.num_classes, tag="old", label_names=tuple("abcde"))
    return Predictor(net, plan=make_plan("cpu", engine="eager", model=net, size=size))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of("mixer")


def clouds(count: int, spread: float, seed: int = 0, classes: int = 3, width: int = 6) -> tuple[Any, Any]:
    """(N,D) points about a centre for each class, and their labels."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    points = centres[labels] + spread * rng.normal(size=(count, width))
    return points.astype(np.float32), labels


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_probe(data: Path, tmp_path: Path, predictor: Predictor) -> None:
    seen: list[tuple[str, int, int]] = []
    settings = ProbeSettings(accuracy=0.9, shots=(1, 20, 24))
    found = probe(data, predictor, settings, out=tmp_path / "out" / "deep", progress=lambda *what: seen.append(what))
    assert seen == [
        *(("training images", i, 72) for i in range(1, 73)),
        *(("validation images", i, 30) for i in range(1, 31)),
    ]
    assert found.classes == ("blue", "green", "red")
    assert (found.train_count, found.train_errors) == (71, {"unsupported_format": 1})
    for figures in (found.knn, found.linear):
        assert (figures.count, figures.errors, figures.total) == (29, {"empty": 1}, 30)
        assert figures.top1 > 0.9
        assert figures.top5 is None
    assert found.neighbours in NEIGHBOURS
    assert found.strength in STRENGTHS
    assert [one.shots for one in found.few_shot] == [1, 20]
    assert 0.5 < found.few_shot[0].top1 <= 1
    assert found.few_shot[1].top1 > 0.9
    assert found.notes == ("no result for 24 examples per class: 'green' has 23",)
    assert found.threshold is not None
    assert found.threshold.accuracy >= 0.9
    # rows are those of the data: image 3, which could not be read, is in none
    val = open_labelled(data, "val")
    assert found.answers.index.tolist() == [i for i in range(30) if val.key(i) != "val/blue/3.png"]
    assert found.answers.label.tolist() == val.labels[found.answers.index].tolist()
    told = json.loads((tmp_path / "out" / "deep" / "probe.json").read_text())
    assert told == json.loads(json.dumps(found.as_dict()))
    assert told["linear"]["top1"] == found.linear.top1
    assert (told["fingerprint"], told["data_fingerprints"][1]) == (predictor.fingerprint, val.fingerprint)
    again = probe(data, predictor, settings)
    assert again.as_dict() == found.as_dict()
    assert np.array_equal(again.head.weight, found.head.weight)


def test_without_validation_images_a_part_is_split_off(data: Path, predictor: Predictor) -> None:
    found = probe(data / "train", predictor, ProbeSettings(val_fraction=0.3, shots=()))  # val lies beside
    assert found.linear.total == 30
    (data / "val").rename(data / "other")
    found = probe(data / "train", predictor, ProbeSettings(val_fraction=0.3, shots=()))
    assert 10 < found.linear.total < 35
    assert found.linear.total + found.train_count + sum(found.train_errors.values()) == 72
    assert (found.few_shot, found.threshold, found.asked_accuracy) == ((), None, None)
    assert probe(data / "train", predictor, NO_SHOTS, val=data / "other").linear.total == 30


def test_arguments_that_are_refused(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    for wrong in (dict(shots=(0,)), dict(shots=(1, 2.5)), dict(accuracy=0), dict(accuracy=95)):
        with pytest.raises(UsageError) as error:
            probe(data, predictor, ProbeSettings(**wrong))
        assert error.value.code == "bad_argument"
    (tmp_path / "file").touch()
    for place in ("out", "attach_to"):
        with pytest.raises(TessellaError) as failed:
            probe(data, predictor, **{place: tmp_path / "file"})  # type: ignore[arg-type]
        assert failed.value.code == "output_failed"


def test_classes_and_splits_that_cannot_be_read(data: Path, predictor: Predictor) -> None:
    for path in (data / "train" / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="no training image of the class 'red' could be read"):
        probe(data, predictor)
    write_images(data / "new", 5)
    for path in (data / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="no validation image could be read"):
        probe(data / "new", predictor, val=data / "val")


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_rows_stay_with_their_images(data: Path, predictor: Predictor) -> None:
    images = open_labelled(data, "train")
    found = embed(images, predictor)
    bad = [i for i in range(72) if images.key(i) == "train/green/7.png"]
    assert np.flatnonzero(~found.ok).tolist() == bad
    assert found.errors == {"unsupported_format": 1}
    assert not found.vectors[bad].any()
    good = np.flatnonzero(found.ok)[::5]
    expected = predictor.embed([images.read(int(i)) for i in good])
    assert np.allclose(l2_normalize(found.vectors[good]), expected, atol=1e-6)
    assert not np.allclose(found.vectors[good], expected, atol=1e-3)  # as the model gives them


def test_an_image_that_ends_its_process_costs_a_row(data: Path, predictor: Predictor) -> None:
    class Deadly(LabelledImages):
        def source(self, index: int) -> Source:
            return FaultySource("deadly", "", fault="segv") if index == 5 else super().source(index)

    images = open_labelled(data, "val")
    whole = embed(images, predictor)
    images.__class__ = Deadly
    found = embed(images, predictor)
    assert found.errors == {"decoder_crashed": 1} | whole.errors
    assert np.flatnonzero(found.ok != whole.ok).tolist() == [5]
    assert np.array_equal(found.vectors[found.ok], whole.vectors[found.ok])


def test_embeddings_are_kept(data: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "e.npz"
    images = open_labelled(data, "val")
    first = embed(images, predictor, cache)
    assert not first.cached
    passes = 0

    def outputs(self: Predictor, decoded: Iterable[Any], **settings: Any) -> Iterator[Any]:
        nonlocal passes
        passes += 1
        return original(self, decoded, **settings)

    original = Predictor.decoded_outputs
    monkeypatch.setattr(Predictor, "decoded_outputs", outputs)
    again = embed(images, predictor, cache)
    assert (passes, again.cached) == (0, True)
    assert np.array_equal(again.vectors, first.vectors)
    assert np.array_equal(again.status, first.status)
    # another model, other data, a damaged file: made again, and kept
    other = predictor_of("mixer", num_blocks=1)
    for count, (set_, model) in enumerate([(images, other), (images.subset(range(9)), other)], 1):
        assert not embed(set_, model, cache).cached
        assert embed(set_, model, cache).cached
        assert passes == count
    whole = cache.read_bytes()
    for data_ in (whole[:-40], b"", whole.replace(b"vectors", b"victors")):
        cache.write_bytes(data_)
        assert not embed(images.subset(range(9)), other, cache).cached
    assert embed(images.subset(range(9)), other, cache).cached


def test_vectors_that_are_not_finite_are_errors(
    data: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(self: Predictor, decoded: Iterable[Any], **settings: Any) -> Iterator[Any]:
        for i, (key, outcome) in enumerate(original(self, decoded, **settings)):
            if isinstance(outcome, Output) and i < 2:
                yield key, Output(outcome.logits, outcome.embedding * np.float32("nan"))
            else:
                yield key, outcome

    original = Predictor.decoded_outputs
    monkeypatch.setattr(Predictor, "decoded_outputs", outputs)
    found = embed(open_labelled(data, "train"), predictor)
    assert found.errors == {"non_finite": 2, "unsupported_format": 1}
    assert np.isfinite(found.vectors).all()


# --- choices ----------------------------------------------------------------------------------------------------------


def test_what_is_held_out() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 2, 1, 0]
    many = classifiers.hold_out(np.repeat([0, 1], 40_000), np.random.default_rng(0))
    assert many.sum() == classifiers.MOST_HELD_OUT
    assert many[:40_000].sum() == many[40_000:].sum()


def test_with_one_image_a_class_there_is_nothing_to_choose_on() -> None:
    x, _ = clouds(3, 0)
    labels = np.arange(3)
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    assert not held.any()
    assert choose_neighbours(x, labels, held, 3) == 1
    assert choose_strength(x, labels, held, 3) == pytest.approx(0.4 * 6)


def test_the_number_of_neighbours_is_chosen() -> None:
    x, labels = clouds(900, 0.05)
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    assert choose_neighbours(x, labels, held, 3) == 1  # all are right: the fewest
    wrong = np.random.default_rng(1).random(900) < 0.35
    labels = np.where(wrong, (labels + 1) % 3, labels)
    assert choose_neighbours(x, labels, held, 3) >= 10  # a third of the labels is wrong: many must be asked
    few = np.flatnonzero(np.arange(900) < 8)
    assert choose_neighbours(x[few], labels[few], np.arange(8) < 2, 3) <= 6


def test_the_penalty_is_chosen() -> None:
    x, labels = clouds(600, 4.0, width=40)
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    chosen = choose_strength(x, labels, held, 3)
    assert 1e-2 < chosen < 1e4
    chance = np.random.default_rng(5).integers(0, 3, 600)
    assert choose_strength(x, chance, held, 3) > 10 * chosen


def test_the_penalty_of_many_images_is_chosen_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clouds(2000, 1.5)
    order = np.argsort(labels)  # as in folders
    x, labels = x[order], labels[order]
    held = classifiers.hold_out(labels, np.random.default_rng(0))
    chosen = choose_strength(x, labels, held, 3)
    sizes = []

    def counted(z_ND: torch.Tensor, labels_N: Any, *rest: Any) -> torch.Tensor:
        sizes.append((len(z_ND), len(set(labels_N))))
        return minimise(z_ND, labels_N, *rest)

    monkeypatch.setattr(classifiers, "minimise", counted)
    monkeypatch.setattr(classifiers, "MOST_LEARNED", 500)
    assert 0.1 <= choose_strength(x, labels, held, 3) / chosen <= 10
    assert {(400, 3)} == set(sizes)
    sizes.clear()
    chance = np.random.default_rng(5).integers(0, 3, 2000)
    choose_strength(x, chance, held, 3)
    assert 1 < len(sizes) < len(STRENGTHS)  # not on to the weakest, once the loss has risen


# --- nearest neighbours -----------------------------------------------------------------------------------------------


def test_neighbours_are_the_nearest_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, _), (bank, labels) = clouds(50, 1, 1), clouds(70, 1, 2)
    cosines = l2_normalize(x) @ l2_normalize(bank).T
    order = np.argsort(-cosines, 1)[:, :5]
    whole = neighbours(x, bank, labels, 5)
    assert np.allclose(whole[0].numpy(), np.take_along_axis(cosines, order, 1), atol=1e-6)
    assert np.array_equal(whole[1].numpy(), labels[order])
    assert neighbours(x, bank, labels, 500)[0].shape == (50, 70)


def test_votes_weigh_by_cosine() -> None:
    cosines, labels = torch.tensor([[0.9, 0.8, 0.79]]), torch.tensor([[2, 0, 0]])
    shares = softmax(vote(cosines, labels, 4))[0]
    votes = np.exp(np.array([[0.8, 0.79], [0.9, -np.inf]]) / 0.07).sum(1)
    assert shares[[0, 2]] == pytest.approx(votes / votes.sum(), rel=3e-3)
    assert shares.argmax() == 2  # nearer than both others together
    assert 0 < shares[1] == shares[3] < 1e-3  # no vote, and yet a finite loss


# --- the linear classifier --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [100.0, 1.0])
def test_the_minimum_is_found(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clouds(300, 1.5)
    z = Scale.of(x)(x)
    solution = minimise(z, labels, 3, strength)
    weight, bias = solution[:, :-1], solution[:, -1]
    excess = (z @ weight.T + bias).softmax(1) - torch.eye(3, dtype=torch.float64)[labels]
    # where the gradient of the mean is zero
    assert (excess.T @ z + strength * weight).abs().max() / 300 < 1e-5
    assert excess.sum(0).abs().max() / 300 < 1e-5
    monkeypatch.setattr(classifiers, "CHUNK", 64)
    in_parts = minimise(z, labels, 3, strength, start=solution + 1)
    assert torch.allclose(in_parts[:, :-1], weight, atol=2e-3)


def test_the_scale_folds_into_the_head() -> None:
    x, labels = clouds(200, 0.5)
    x *= np.array([1e-3, 1, 1e3, 1, 1, 1], np.float32)
    x[:, 3] = 7 + 1e-6 * np.random.default_rng(0).normal(size=200)  # the noise of float32 about a constant
    scale = Scale.of(x)
    z = scale(x)
    assert z[:, [0, 1, 2, 4, 5]].mean(0).abs().max() < 1e-5
    assert (z[:, [0, 1, 2, 4, 5]].std(0, correction=0) - 1).abs().max() < 1e-5
    assert not z[:, 3].any()
    head = fit(x, labels, 3, 1.0)
    assert not head.weight[:, 3].any()
    expected = classifiers.logits_of(z, minimise(z, labels, 3, 1.0)).numpy()
    assert np.abs(head(x) - expected).max() < 1e-3 * np.abs(expected).max()
    together = Scale.of(x, by_component=False)
    assert len(set(together.factor[together.factor > 0])) == 1


def test_few_shot_figures() -> None:
    (x, labels), (seen, seen_labels) = clouds(400, 1.2), clouds(400, 1.2, seed=1)
    names = ("x", "y", "z")
    rng = np.random.default_rng(0)
    figures, notes = few_shot(x, labels, seen, seen_labels, (1, 10, 100), names, rng)
    assert not notes
    assert [(one.shots, one.draws) for one in figures] == [(1, DRAWS), (10, DRAWS), (100, DRAWS)]
    assert 1 / 3 < figures[0].top1 < figures[1].top1 < figures[2].top1
    assert figures[0].spread > figures[2].spread > 0
    assert figures[2].top1 > (fit(x, labels, 3, 1.0)(seen).argmax(1) == seen_labels).mean() - 0.03
    few = np.concatenate([np.flatnonzero(labels == 0)[:3], np.flatnonzero(labels > 0)])
    figures, notes = few_shot(x[few], labels[few], seen, seen_labels, (3, 4, 5), names, rng)
    assert [one.shots for one in figures] == [3]
    assert notes == [f"no result for {n} examples per class: 'x' has 3" for n in (4, 5)]
    assert few_shot(x, labels, seen, seen_labels, (1000,), names, rng)[0] == []
    same, other = (
        few_shot(x, labels, seen, seen_labels, (1,), names, np.random.default_rng(seed))[0] for seed in (7, 8)
    )
    assert same == few_shot(x, labels, seen, seen_labels, (1,), names, np.random.default_rng(7))[0] != other


def test_thresholds() -> None:
    curve = Coverage(np.array([0.9, 0.8, 0.6, 0.5]), np.array([0.1, 0.4, 0.7, 1.0]), np.array([0.5, 0.9, 0.8, 0.7]))
    found = find_threshold(curve, 0.75)
    assert found is not None
    assert dataclasses.astuple(found) == (0.6, 0.7, 0.8)
    assert dataclasses.astuple(find_threshold(curve, 0.5) or found) == (0.5, 1.0, 0.7)
    assert dataclasses.astuple(find_threshold(curve, 0.9) or found) == (0.8, 0.4, 0.9)
    assert find_threshold(curve, 0.95) is None


# --- a model with the new head ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TINY)
def test_the_attached_model_answers_as_the_probe(case: str, data: Path, tmp_path: Path) -> None:
    predictor = predictor_of(case)
    before = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    found = probe(data, predictor, NO_SHOTS, attach_to=tmp_path / "model")
    assert found.attached == tmp_path / "model"
    again = tessella.load(f"local-dir:{tmp_path / 'model'}", engine="eager")
    assert again.labels == ("blue", "green", "red")
    assert again.spec == predictor.spec
    val = open_labelled(data, "val")
    outputs = list(again.outputs([val.source(int(i)) for i in found.answers.index]))
    logits = np.stack([one.logits for one in outputs if isinstance(one, Output)])
    vectors = np.stack([one.embedding for one in outputs if isinstance(one, Output)])
    assert np.abs(logits - found.head(vectors)).max() < 1e-4 * max(np.abs(logits).max(), 1)
    assert logits.argmax(1).tolist() == found.answers.predicted.tolist()
    assert softmax(logits).max(1) == pytest.approx(found.answers.confidence, abs=1e-3)
    tops = again.classify([val.read(int(i)) for i in found.answers.index], top=1)
    assert [top[0].index for top in tops] == found.answers.predicted.tolist()
    # nothing of the old head's names is left, and the old model is as it was
    assert "tag" not in again.model.pretrained_cfg
    after = predictor.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_head_with_as_many_classes_has_its_own_names(predictor: Predictor, tmp_path: Path) -> None:
    width = predictor.width
    head = Head(np.ones((5, width), np.float32), np.arange(5, dtype=np.float32))
    attach(predictor, head, tuple("vwxyz"), tmp_path / "model")
    again = tessella.load(f"local-dir:{tmp_path / 'model'}", engine="eager")
    assert again.labels == tuple("vwxyz")
    assert again.classify(np.zeros((32, 32, 3), np.uint8), top=1)[0].label == "z"


def test_an_exported_model_is_refused_before_any_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of("mixer")
    assert predictor.fingerprint
    monkeypatch.setattr(predictor.engine, "model", None)  # as of an exported one
    with pytest.raises(UsageError, match="exported model") as error:
        probe(data, predictor, attach_to=tmp_path / "model", progress=lambda *_: pytest.fail("work was done"))
    assert error.value.code == "bad_argument"


def test_cifar10(shared_data: Path, tmp_path: Path) -> None:
    """The built-in model, on images that it was not trained on."""
    images = open_labelled(shared_data / "cifar10-test.parquet")
    for label, name in enumerate(images.classes):
        for i in np.flatnonzero(images.labels == label)[:60].tolist():
            path = tmp_path / "data" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images.read(i))
    found = probe(tmp_path / "data", settings=ProbeSettings(val_fraction=0.4, shots=(1, 5), accuracy=0.95))
    assert found.linear.top1 > 0.78
    assert found.knn.top1 > 0.78
    assert found.linear.top5 is not None
    assert found.linear.top5 > 0.97
    assert found.few_shot[0].top1 < found.few_shot[1].top1
    assert found.threshold is not None
    assert found.threshold.coverage > 0.5
