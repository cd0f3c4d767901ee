"""`explain`: one result per image and class, in order, with the numbers of the model and of its parts."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from tessella.errors import UsageError
from tessella.explain import Explanation, FailedExplanation, Subject, explain, explainer
from tessella.explain.faithfulness import Score, score_map
from tessella.explain.methods import WITH_CAPTUM, attribute, choose_method, methods_for
from tessella.results import FloatArray

from .made import DOG, make_branches, make_explanation, make_scores

CIFAR = "convmixer_256_8_ks3_p4.cifar10"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CAT, COFFEE = str(EXAMPLES / "cat.jpg"), str(EXAMPLES / "coffee.jpg")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tessella.load(CIFAR, engine="eager"))


def one(results: Iterator[Explanation | FailedExplanation]) -> Explanation:
    (result,) = results
    assert isinstance(result, Explanation)
    return result


def test_the_predicted_class_is_explained(subject: Subject) -> None:
    result = one(explain(CAT, subject, score=False))
    predictions = subject.predictor.classify(CAT, top=5)
    assert [one.label for one in result.predictions] == [one.label for one in predictions]
    assert np.allclose([p.probability for p in result.predictions], [p.probability for p in predictions], atol=1e-6)
    assert result.target == result.predictions[0]
    assert (result.key, result.model, result.versus, result.faithfulness) == (CAT, CIFAR, None, None)
    assert result.fingerprint == tessella.load(CIFAR).fingerprint  # whatever the engine
    assert result.map.method == choose_method(subject.model)
    assert "ConvMixer" in result.reason


def test_pixels_are_what_the_model_sees(subject: Subject) -> None:
    ((_, prepared),) = subject.prepare([CAT])
    assert np.array_equal(one(explain(CAT, subject, score=False)).pixels, prepared.pixels)  # type: ignore[union-attr]


def test_maps_and_scores_are_those_of_the_parts(subject: Subject) -> None:
    result = one(explain(CAT, subject, classes="dog", versus="cat", method="grad-cam", seed=3))
    ((_, image),) = subject.prepare([CAT])
    expected = attribute(subject, image, 5, "grad-cam", versus=3, seed=3)  # type: ignore[arg-type]
    assert np.array_equal(result.map.values, expected.values)
    scores = score_map(subject, image, expected, 5, versus=3, seed=3)  # type: ignore[arg-type]
    assert result.faithfulness is not None
    assert (result.faithfulness.deletion, result.faithfulness.correlation) == (scores.deletion, scores.correlation)
    assert result.reason == "requested"
    assert result.versus is not None
    assert (result.target.label, result.versus.label) == ("dog", "cat")


def test_results_keep_the_order_of_images_and_classes(subject: Subject) -> None:
    images = [CAT, "missing.jpg", b"no image", np.zeros((40, 40, 3), np.uint8), None, COFFEE]
    results = list(explain(images, subject, classes=["cat", 5, "cat"], score=False))
    shown = [(one.key, one.status, one.target.index if isinstance(one, Explanation) else None) for one in results]
    assert shown == [
        (CAT, "ok", 3),
        (CAT, "ok", 5),
        ("missing.jpg", "not_found", None),
        ("2", "unsupported_format", None),
        ("3", "ok", 3),
        ("3", "ok", 5),
        ("4", "bad_argument", None),
        (COFFEE, "ok", 3),
        (COFFEE, "ok", 5),
    ]


def test_keys_are_given_by_the_caller(subject: Subject) -> None:
    results = explain([CAT, COFFEE], subject, keys=["a", "b"], score=False)
    assert [result.key for result in results] == ["a", "b"]


def test_images_are_read_as_they_are_needed(subject: Subject) -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield CAT

    results = explain(endless(), subject, score=False)
    assert not taken
    assert next(results).status == "ok"
    assert len(taken) < 50
    results.close()  # type: ignore[attr-defined]


def test_an_image_that_is_predicted_as_the_class_to_compare_with_is_one_failure(subject: Subject) -> None:
    first, second = explain([CAT, COFFEE], subject, versus="bird", score=False)
    assert (first.status, second.status) == ("ok", "ok")
    first, second = explain([CAT, np.zeros((40, 40, 3), np.uint8)], subject, versus="cat", score=False)
    assert isinstance(first, FailedExplanation)
    assert first.status == "bad_argument"
    assert "'cat'" in first.message


def test_images_without_finite_outputs_are_failures(subject: Subject) -> None:
    broken = Subject(tessella.load(CIFAR, engine="eager"))
    with torch.no_grad():
        broken.model.head.bias[0] = float("nan")  # type: ignore[operator]
    results = list(explain([CAT, "missing.jpg"], broken))
    assert [result.status for result in results] == ["non_finite", "not_found"]


def test_images_whose_scores_are_not_finite_are_failures() -> None:
    broken = Subject(tessella.load(CIFAR, engine="eager"))
    logits = broken.logits

    def overflow(x_BCHW: torch.Tensor) -> FloatArray:
        return logits(x_BCHW) * (1 if len(x_BCHW) == 1 else np.float32(np.nan))

    broken.logits = overflow  # type: ignore[method-assign]
    first, second = explain([CAT, "missing.jpg"], broken, method="exact")
    assert (first.status, second.status) == ("non_finite", "not_found")
    assert isinstance(first, FailedExplanation)
    assert "NaN or infinity" in first.message


def test_a_uniform_image_is_as_random(subject: Subject) -> None:
    """Removing a part of it changes nothing but the rounding of the logits."""
    result = one(explain(np.full((64, 64, 3), 90, np.uint8), subject, versus="dog", method="exact"))
    assert [line.comparison for line in result.scores] == ["no better than random"] * 3
    assert not result.faithfulness.faithful  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(classes="cta"), "similar names: cat"),
        (dict(classes=10), "classes 0 to 9"),
        (dict(classes=[]), "classes is empty"),
        (dict(versus="nobody"), "no class"),
        (dict(classes=["dog", "cat"], versus=3), "compared with itself"),
        (dict(method="magic"), "grad-cam"),
        (dict(method="attention"), "attention"),
        (dict(method=3), "method"),
        (dict(seed="x"), "seed"),
        (dict(score="yes"), "score"),
        (dict(classes=1.5), "classes"),
    ],
)
def test_wrong_arguments_are_refused_at_once(changes: dict[str, object], said: str, subject: Subject) -> None:
    with pytest.raises(UsageError) as caught:
        explain([CAT], subject, **changes)  # type: ignore[arg-type]
    assert caught.value.code == "bad_argument"
    assert said in str(caught.value)


def test_a_model_without_classes_is_refused() -> None:
    model = tessella.create_model("mixer_ti_p4_32", num_classes=0)
    with pytest.raises(UsageError, match="classifier"):
        explain([CAT], tessella.Predictor(model, name="none"))


def test_models_are_given_by_name_or_as_a_predictor_of_any_engine(subject: Subject) -> None:
    expected = one(explain(CAT, subject, score=False)).map.values
    for model in (None, CIFAR, tessella.load(CIFAR)):  # the last one runs in OpenVINO
        assert np.array_equal(one(explain(CAT, model, score=False)).map.values, expected)


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("convmixer_768_32", dict(dim=32, depth=2)),
        ("resmlp_12_224", dict(img_size=32)),
        ("gmlp_s16_224", dict(img_size=32)),
        ("crossvit_ti_dagger_p4_32", {}),
        ("convit_ti_p4_32", dict(global_pool="avg")),
    ],
)
def test_models_of_every_family_and_size(arch: str, settings: dict[str, Any]) -> None:
    model = tessella.create_model(arch, num_classes=3, **settings).eval()
    result = one(explain(CAT, tessella.Predictor(model, name=arch), score=False))
    assert result.map.values.ndim == 2
    assert np.isfinite(result.map.values).all()
    assert result.map.method in methods_for(model)
    assert result.figure().startswith(b"\x89PNG")


def test_exact_maps_of_models_with_a_class_token_are_refused_with_the_next_best() -> None:
    for name in ("convit_ti_p4_32.cifar10", "crossvit_ti_dagger_p4_32.cifar10"):
        with pytest.raises(UsageError) as caught:
            explain(CAT, name, method="exact")
        assert "class token" in str(caught.value)
        assert (
            f"the next best method is {choose_method(tessella.load(name, engine='eager').model)}" in caught.value.hint
        )


def test_the_reason_says_if_the_best_method_cannot_be_used(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explainer, "choose_method", lambda model: "occlusion")
    monkeypatch.setattr(explainer, "RANKING", {"convmixer": ("grad-cam", "occlusion")})
    assert "of those that can be used here" in explainer.decide_method(subject, "auto")[1]


def test_without_captum_other_methods_are_used(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tessella.extras", "tessella.explain.methods"):
        monkeypatch.setattr(f"{module}.is_installed", lambda package: package != "captum")
    chosen, reason = explainer.decide_method(subject, "auto")
    assert chosen not in WITH_CAPTUM
    assert "of those that can be used here" in reason
    with pytest.raises(UsageError) as caught:
        explain([CAT], subject, method="occlusion")
    assert (caught.value.code, caught.value.hint) == ("missing_dependency", "pip install captum")


# --- what an explanation offers ---------------------------------------------------------------------------------------


def test_overlays_and_figures() -> None:
    explanation = make_explanation()
    assert explanation.overlay(100).shape == (80, 100, 3)
    assert Image.open(io.BytesIO(explanation.figure())).format == "PNG"


def test_words() -> None:
    explanation = make_explanation()
    assert (explanation.question, explanation.verdict) == ("cat (75.0 %)", "faithful")
    assert make_explanation(versus=DOG).question == "cat (75.0 %), not dog (12.5 %)"
    doubtful = make_explanation(faithfulness=make_scores(faithful=False))
    assert (doubtful.verdict, doubtful.is_doubtful) == ("not faithful here", True)
    assert [line.comparison for line in doubtful.scores] == ["no better than random"] * 3
    unscored = make_explanation(faithfulness=None)
    assert (unscored.verdict, unscored.is_doubtful, unscored.scores) == ("not scored", False, ())


def test_json_has_the_parts_of_a_map() -> None:
    row = make_explanation(map=make_branches()).as_dict()
    assert {name: np.shape(rows) for name, rows in row["parts"].items()} == {"branch 0": (4, 6), "branch 1": (2, 3)}  # type: ignore[attr-defined]
    assert row["shares"] == {"branch 0": 0.75, "branch 1": -0.25}
    assert not {"parts", "shares"} & set(make_explanation().as_dict())


def test_json_has_no_numbers_that_are_not_finite() -> None:
    bad = Score(float("nan"), float("-inf"), float("inf"), float("nan"), False)
    scores = dataclasses.replace(make_scores(), deletion=bad)
    row = json.loads(json.dumps(make_explanation(faithfulness=scores).as_dict(), allow_nan=False))
    assert row["scores"]["deletion"] == dict(value=None, random=[None, None], is_better=False)


def test_json_has_everything_but_the_pixels() -> None:
    row = json.loads(json.dumps(make_explanation(versus=DOG).as_dict(), allow_nan=False))
    assert row["status"] == "ok"
    assert row["target"] == dict(index=3, label="cat", probability=0.75)
    assert row["versus"]["label"] == "dog"
    assert np.array(row["map"]).shape == (4, 5)
    assert row["scores"]["deletion"] == dict(value=0.5, random=[1.0, 2.0], is_better=True)
    assert (row["verdict"], row["method"], row["total"]) == ("faithful", "exact", 1.25)
    assert "pixels" not in row
    failed = FailedExplanation("caf\udce9", "not_found", "no \udce9").as_dict()
    assert failed == dict(key="caf\\xe9", status="not_found", message="no \\udce9")
