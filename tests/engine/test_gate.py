"""Lossy precisions are compared with float32 before use, and replaced if they change the outputs."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella
from tessella.data.samples import sample_images
from tessella.data.spec import InputSpec
from tessella.engine import agreement, gate, judging, make_plan, open_engine
from tessella.engine.agreement import BOUNDS, Bounds, compare
from tessella.engine.base import Engine
from tessella.engine.gate import one_step_down, open_gated
from tessella.weights.catalogue import CATALOGUE
from tessella.weights.network import Network

from ..models.tiny import images as images_of
from ..models.tiny import tiny
from ..test_builtin import CIFAR10_MODEL

SIZE, BATCH = (32, 32), 50


@functools.cache
def builtin() -> Any:
    return tessella.create_model(CIFAR10_MODEL, pretrained=True).eval()


def spec() -> InputSpec:
    return InputSpec.from_cfg(builtin().pretrained_cfg)


@functools.cache
def test_images(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all CIFAR-10 test images (10000,32,32,3) and their labels."""
    import pyarrow.parquet as pq

    from tessella.data.decode import decode

    table = pq.read_table(shared_data / "cifar10-test.parquet")
    images = [decode(row["bytes"]) for row in table["image"].to_pylist()]
    return np.stack(images), np.array(table["label"].to_pylist())


test_images.__test__ = False  # type: ignore[attr-defined]


@functools.cache
def engine_of(name: str, engine: str, precision: str) -> tuple[Engine, list[Any]]:
    """Return an engine of a built-in model, and its outputs for batches of test images, which `answers` adds to.

    int8 is calibrated with the default images.
    """
    model = tessella.create_model(name, pretrained=True).eval()
    plan = make_plan("cpu", precision, engine, BATCH)
    return open_engine(model, plan, SIZE, spec(), judging.split(None, spec())[1]), []


def answers(name: str, engine: str, precision: str, count: int, shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of a built-in model for CIFAR-10 test images; none is computed again for a larger number."""
    images = test_images(shared_data)[0]
    opened, outputs = engine_of(name, engine, precision)
    outputs += opened.imap(images[i : i + BATCH] for i in range(BATCH * len(outputs), count, BATCH))
    logits, embeddings = zip(*outputs[: count // BATCH], strict=True)
    return np.concatenate(logits), np.concatenate(embeddings)


CLASSIFIERS = [row.name for row in CATALOGUE.values() if row.tag == "cifar10"]  # of the images in `shared_data`


@pytest.mark.parametrize(
    ("name", "engine", "precision", "points", "count"),
    [
        # with 2,000 images, six changed answers are more than 0.3 %, and that many occur by chance
        *((name, "openvino", "int8", 0.5, 4_000) for name in CLASSIFIERS),
        *(pytest.param(name, "openvino", "int8", 0.3, 10_000, marks=pytest.mark.slow) for name in CLASSIFIERS),
        # slow on a CPU without native bfloat16
        pytest.param(CIFAR10_MODEL, "rewritten", "bfloat16", 0.1, 2_000, marks=pytest.mark.slow),
    ],
)
def test_the_accuracy_of_the_built_in_classifiers_does_not_change(
    name: str, engine: str, precision: str, points: float, count: int, shared_data: Path
) -> None:
    labels = test_images(shared_data)[1][:count]
    exact = answers(name, "openvino", "float32", count, shared_data)
    lossy = answers(name, engine, precision, count, shared_data)
    accuracy = [100 * (logits.argmax(1) == labels).mean() for logits, _ in (exact, lossy)]
    assert accuracy[1] >= accuracy[0] - points
    verdict = compare(lossy, exact)
    assert verdict.counts_answers
    assert verdict.agreement >= 0.997
    assert verdict.passes(precision)


@pytest.mark.parametrize(("engine", "precision"), [("rewritten", "bfloat16"), ("openvino", "int8")])
def test_a_precision_that_passes_is_used_and_the_plan_has_the_figures(engine: str, precision: str) -> None:
    opened = open_gated(builtin(), make_plan("cpu", precision, engine), SIZE, spec())
    assert opened.plan.precision == precision
    row = opened.plan.choice("precision")
    assert row.chosen == precision
    assert "100.0 % same top class" in row.reason
    assert "requested" in row.reason


def test_a_precision_that_fails_is_replaced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(BOUNDS, "bfloat16", Bounds(1.0, 1.1))
    with caplog.at_level(logging.WARNING):
        opened = open_gated(builtin(), make_plan("cpu", "bfloat16", "rewritten"), SIZE, spec())
    assert opened.plan.precision == "float32"
    assert "float32 instead of bfloat16" in caplog.text
    row = opened.plan.choice("precision")
    assert row.chosen == "float32"
    assert "a cosine of 1.1 is required" in row.reason
    images = sample_images(spec(), 4)
    exact = open_engine(builtin(), make_plan("cpu", "float32", "rewritten"), SIZE, spec())
    np.testing.assert_array_equal(opened(images)[0], exact(images)[0])


def test_int8_is_replaced_by_bfloat16_only_if_that_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("cpu", "int8", "openvino")
    for native, next_one in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(gate, "has_native_bfloat16", lambda device, native=native: native)
        assert one_step_down(plan).precision == next_one


def test_a_verdict_is_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    first = open_gated(builtin(), make_plan("cpu", "bfloat16", "rewritten"), SIZE, spec())
    monkeypatch.setattr(judging, "run_all", lambda *_: pytest.fail("measured again"))
    again = open_gated(builtin(), make_plan("cpu", "bfloat16", "rewritten"), SIZE, spec())
    assert again.plan.choices == first.plan.choices


def of_noise(count: int) -> list[np.ndarray]:
    """Return distinct images (40,40,3) with contrast."""
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, 40, 40, 3), np.uint8))


def test_the_images_of_the_user_are_compared(caplog: pytest.LogCaptureFixture) -> None:
    images = of_noise(judging.MIN_USEFUL)
    black = np.zeros((40, 40, 3), np.uint8)
    predictor = tessella.load(CIFAR10_MODEL, precision="bfloat16", images=[*images, black, images[0], b"no image"])
    reason = predictor.plan.choice("precision").reason
    assert "on 32 images" in reason  # a third of them is for the calibration of int8
    assert "of the package" not in reason + caplog.text
    with pytest.raises(tessella.UsageError, match="none of the images"):
        tessella.load(precision="bfloat16", images=[b"no image"])


PHOTOGRAPH = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"
USELESS: dict[str, tuple[list[Any], str, int]] = {
    "black": ([np.zeros((40, 40, 3), np.uint8)] * 40, "no image with contrast given", 0),
    "colors": ([np.full((40, 40, 3), (0, i, 255), np.uint8) for i in range(60)], "no image with contrast given", 0),
    "one": ([PHOTOGRAPH], "only 1 distinct image with contrast given", 1),
    "copies": ([PHOTOGRAPH] * 50, "only 1 distinct image with contrast given", 1),
    "few": ([*of_noise(47), of_noise(1)[0]], "only 47 distinct images with contrast given", 32),
}


@pytest.mark.parametrize("precision", ["int8", "fast"])
@pytest.mark.parametrize("case", USELESS)
def test_photographs_are_added_to_images_that_show_too_little(
    case: str, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    images, found, compared = USELESS[case]
    seen: set[int] = set()
    judge = judging.judge

    def counted(network: Any, engine: Any, pixels: Any, recipe: InputSpec) -> agreement.Verdict:
        seen.add(len(pixels))
        return judge(network, engine, pixels, recipe)

    def calibrated(network: Any, plan: Any, size: Any, spec: Any, samples: Any = None) -> Any:
        if plan.precision == "int8":
            assert len(samples) == judging.CALIBRATION + (15 if case == "few" else 0)
        return open_engine(network, plan, size, spec, samples)

    monkeypatch.setattr(judging, "judge", counted)
    monkeypatch.setattr(judging, "open_engine", calibrated)
    plan = tessella.load(CIFAR10_MODEL, precision=precision, images=images).plan
    note = f"{found}, so photographs of the package were added"
    assert plan.choice("precision").reason.count(note) == 1
    assert caplog.text.count(note) == 1
    assert seen == {judging.SAMPLES + compared}


def test_the_answers_for_photographs_stay_if_the_images_show_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    photographs = sorted((PHOTOGRAPH.parents[1] / "clothing").rglob("*.jpg"))
    exact = tessella.load(CIFAR10_MODEL, precision="float32").predict(photographs)
    lossy = tessella.load(CIFAR10_MODEL, precision="int8", images=[np.zeros((40, 40, 3), np.uint8)] * 40)
    top = [[int(row.argmax()) for row in outputs.probabilities] for outputs in (exact, lossy.predict(photographs))]
    assert len(photographs) > 50
    assert (np.array(top[0]) != np.array(top[1])).sum() <= 10  # 44 if black images alone calibrate and judge


def test_a_model_in_training_mode_is_not_changed() -> None:
    net = tiny("convmixer").train()
    net.pretrained_cfg = dict(input_size=(3, 32, 32), num_classes=5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fast = tessella.optimize(net, precision="bfloat16")
    assert net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])  # including the statistics of batch norms
    x = images_of(net)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net.eval()(x), rtol=0.1, atol=0.05)


def test_a_model_without_classes_is_compared_by_its_embeddings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    seen: list[tuple[int, ...]] = []

    def watched(actual: tuple[np.ndarray, np.ndarray], *_: object) -> agreement.Verdict:
        seen.append(actual[0].shape)
        return compare(actual, actual)

    monkeypatch.setattr(judging, "compare", watched)
    net = tiny("convmixer_relu", num_classes=0)
    net.pretrained_cfg = dict(input_size=(3, 32, 32), num_classes=0)
    open_gated(net, make_plan("cpu", "bfloat16", "rewritten"), SIZE, InputSpec(height=32, width=32))
    assert seen == [(judging.SAMPLES, 0)]


def test_normalised_batches_pass_the_gate_too() -> None:
    fast = tessella.optimize(builtin(), precision="bfloat16")
    assert fast.plan.precision == "bfloat16"
    assert any("same top class" in row.reason for row in fast.plan.choices)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "fast"])
def test_maps_instead_of_vectors_cannot_be_compared(precision: str) -> None:
    with pytest.raises(tessella.UsageError, match="gives no vector per image") as caught:
        tessella.load(CIFAR10_MODEL, global_pool="", precision=precision)
    assert (caught.value.code, caught.value.hint) == ("bad_argument", "use precision 'float32'")
    assert tessella.load(CIFAR10_MODEL, global_pool="").plan.precision == "float32"


# --- the comparison ---------------------------------------------------------------------------------------------------


def made(logits: list[list[float]], embeddings: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(logits, np.float32), np.array(embeddings, np.float32)


def many(count: int, decided: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs for `count` images with four classes and random embeddings; the first `decided` have a margin."""
    rng = np.random.default_rng(seed)
    logits = np.zeros((count, 4), np.float32)
    logits[np.arange(count), rng.integers(4, size=count)] = np.where(np.arange(count) < decided, 5.0, 0.01)
    return logits, rng.normal(size=(count, 8)).astype(np.float32)


def test_equal_outputs_agree() -> None:
    exact = many(40, 30)
    verdict = compare(exact, exact)
    assert (verdict.agreement, verdict.error, verdict.recall, verdict.ties_changed) == (1.0, 0.0, 1.0, 0)
    assert (verdict.images, verdict.decided, verdict.counts_answers) == (40, 30, True)
    assert verdict.cosine == pytest.approx(1.0)
    assert verdict.passes("bfloat16")


def test_a_changed_answer_counts_only_if_it_was_decided() -> None:
    exact = many(40, 30)
    ties, answers = exact[0].copy(), exact[0].copy()
    ties[30:] = ties[30:, ::-1] * np.float32(0.5)
    answers[:3] = np.roll(answers[:3], 1, axis=1)
    changed = compare((ties, exact[1]), exact)
    assert changed.agreement == 1.0
    assert 0 < changed.ties_changed <= 10
    assert f"{changed.ties_changed} of 10 ties changed" in str(changed)
    assert changed.passes("int8")
    harmed = compare((answers, exact[1]), exact)
    assert harmed.agreement == pytest.approx(0.9)
    assert "99 % of the decided answers" in harmed.shortfalls("int8")


def test_without_decided_answers_logits_and_embeddings_are_judged() -> None:
    exact = many(40, 3)
    verdict = compare(exact, exact)
    assert not verdict.counts_answers
    assert "not judged by classes, as only 3 answers are decided" in str(verdict)
    assert verdict.passes("int8")
    logits = exact[0].copy()
    logits[:3] = np.roll(logits[:3], 1, axis=1)
    changed = compare((logits, exact[1]), exact)
    assert changed.agreement == 0.0
    assert changed.shortfalls("int8") == ["a logit error of at most 0.1"]


def test_the_logit_error_is_relative_to_the_spread_over_the_classes() -> None:
    exact = many(40, 30)
    noise = np.random.default_rng(1).normal(size=exact[0].shape).astype(np.float32)
    noise -= noise.mean(1, keepdims=True)
    spread = (exact[0] - exact[0].mean(1, keepdims=True)).std()
    logits = 7 + exact[0] + 0.05 * spread * noise / noise.std()  # what all logits share does not count
    assert compare((logits, exact[1]), exact).error == pytest.approx(0.05, rel=1e-3)


def test_a_single_image_is_not_a_plural() -> None:
    verdict = compare(many(1, 1), many(1, 1))
    assert "as only 1 answer is decided" in str(verdict)
    assert str(verdict).endswith("on 1 image")
    assert "as only 2 answers are decided" in str(compare(many(3, 2), many(3, 2)))
    exact = many(40, 39)
    assert "0 of 1 tie changed" in str(compare(exact, exact))


def test_other_embeddings_have_other_neighbors() -> None:
    exact = many(40, 30)
    other = compare((exact[0], many(40, 30, seed=1)[1]), exact)
    assert other.recall is not None
    assert other.recall < 0.5  # 10 of 39 by chance
    assert {"a cosine of 0.99", "80 % of the neighbors"} <= set(other.shortfalls("int8"))
    assert compare(many(20, 20), many(20, 20)).recall is None


@pytest.mark.parametrize("part", [0, 1])
def test_values_that_are_not_numbers_fail(part: int) -> None:
    exact = many(40, 30)
    broken = [exact[0].copy(), exact[1].copy()]
    broken[part][0, 0] = np.nan
    verdict = compare((broken[0], broken[1]), exact)
    assert not verdict.passes("int8")


def test_outputs_without_classes_are_compared_by_their_embeddings() -> None:
    exact = many(40, 30)
    verdict = compare((exact[0][:, :0], exact[1]), (exact[0][:, :0], exact[1]))
    assert verdict.passes("bfloat16")
    assert "class" not in str(verdict)


def test_samples_are_deterministic_and_have_the_size_of_the_model() -> None:
    wide = InputSpec(height=24, width=40)
    images = sample_images(wide, 6)
    assert images.shape == (6, 24, 40, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, sample_images(wide, 6))
    assert len({image.tobytes() for image in images}) == 6
    grey = InputSpec(height=8, width=8, channels=1, mean=(0.5,), std=(0.5,))
    assert sample_images(grey, 2).shape == (2, 8, 8, 1)


# --- networks whose activations overflow ------------------------------------------------------------------------------


def overflowing(case: str) -> Any:
    """Return a small network with finite weights, but activations that are not."""
    net = tiny(case)
    net.pretrained_cfg = dict(input_size=(3, 32, 32), num_classes=5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 1e30
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    return net


@pytest.mark.parametrize("case", ["convmixer_relu", "mixer"])
@pytest.mark.parametrize("precision", ["int8", "fast"])
def test_a_network_whose_activations_overflow_stays_in_float32(
    case: str, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    net = overflowing(case)
    plan = make_plan("cpu", precision, "openvino", 8)
    opened = open_gated(net, plan, SIZE, InputSpec(height=32, width=32))
    assert opened.plan.precision == "float32"
    row = opened.plan.choice("precision")
    assert row.chosen == "float32"
    assert "int8 is not possible: the activations of" in row.reason
    assert "overflow in" in row.reason
    assert ("instead of int8: int8 is not possible" in caplog.text) == (precision == "int8")
    with pytest.raises(tessella.WeightsError, match="overflow in") as caught:
        open_engine(net, make_plan("cpu", "int8", "openvino"), SIZE, spec(), sample_images(spec(), 8))
    assert caught.value.code == "conversion_failed"


def test_a_precision_that_a_runtime_cannot_build_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(network: Any, plan: Any, *rest: Any) -> Any:
        if plan.precision == "bfloat16":
            raise RuntimeError("Exception from somewhere:\nCheck failed:\ncould not append an operation\n\n")
        return open_engine(network, plan, *rest)

    monkeypatch.setattr(judging, "open_engine", failing)
    opened = open_gated(builtin(), make_plan("cpu", "bfloat16", "rewritten"), SIZE, spec())
    assert opened.plan.precision == "float32"
    reason = opened.plan.choice("precision").reason
    assert reason.endswith("bfloat16 is not possible: RuntimeError: could not append an operation")


def test_an_error_of_the_cache_is_not_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise tessella.WeightsError("cache_failed", "the disk is full")

    monkeypatch.setattr(judging, "open_engine", full)
    with pytest.raises(tessella.WeightsError, match="the disk is full"):
        open_gated(builtin(), make_plan("cpu", "bfloat16", "rewritten"), SIZE, spec())


def test_exact_answers_of_another_version_of_the_runtime_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = tiny("mixer")
    recipe = InputSpec(height=32, width=32)
    engine = open_engine(net, make_plan("cpu", "float32", "openvino", 2), SIZE, recipe)
    pixels = np.zeros((2, *SIZE, 3), np.uint8)
    computed: list[int] = []

    def run_all(*_: object) -> tuple[np.ndarray, np.ndarray]:
        computed.append(len(computed))
        return np.zeros((2, 5), np.float32), np.zeros((2, 16), np.float32)

    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    monkeypatch.setattr(judging, "run_all", run_all)
    network = Network.of(net)
    for version in ("1.0", "1.0", "2.0"):
        monkeypatch.setattr(judging, "versions", lambda version=version: dict(openvino=version))
        judging.reference(network, engine, pixels, recipe)
    assert computed == [0, 1]
