"""Attribution methods by name: which apply to which model, which is chosen, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tessella
from tessella.errors import ImageError, UsageError
from tessella.explain import methods
from tessella.explain.methods import METHODS, RANKING, WITH_CAPTUM, attribute, choose_method, methods_for
from tessella.explain.subject import PreparedImage, Subject, family_of
from tessella.models.base import ImageModel

BUILT_IN = [
    "convmixer_384_8_ks5_p8.photographs",
    "convmixer_256_8_ks3_p4.cifar10",
    "mixer_ti_p4_32.cifar10",
    "gmixer_ti_p4_32.cifar10",
    "convit_ti_p4_32.cifar10",
    "crossvit_ti_dagger_p4_32.cifar10",
]


def small(arch: str, global_pool: str = "avg") -> ImageModel:
    model = tessella.create_model(arch, img_size=32, patch_size=16, num_classes=3, global_pool=global_pool)
    return model.eval()


def one_image(subject: Subject) -> PreparedImage:
    ((_, image),) = subject.prepare("examples/cat.jpg")
    assert not isinstance(image, ImageError)
    return image


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_explains_every_built_in_model_it_applies_to(name: str) -> None:
    subject = Subject(tessella.load(name))
    image = one_image(subject)
    height, width = image.x.shape[2:]
    for method in methods_for(subject.model):
        found = attribute(subject, image, 3, method)
        assert found.method == method
        assert found.values.dtype == np.float32
        rows, columns = found.values.shape
        assert height % rows == width % columns == 0
        assert np.isfinite(found.values).all()
        assert found.values.std() > 0


# attention keeps only positive parts
@pytest.mark.parametrize("method", ["exact", "grad-cam", "integrated-gradients", "occlusion"])
def test_the_difference_of_two_classes_changes_its_sign_with_their_order(method: str) -> None:
    subject = Subject(tessella.load("mixer_ti_p4_32.cifar10"))
    image = one_image(subject)
    found, swapped = (attribute(subject, image, a, method, versus=b).values for a, b in ((3, 5), (5, 3)))
    assert np.allclose(found, -swapped, atol=1e-4 * np.abs(found).max())


def test_maps_are_the_same_every_time() -> None:
    subject = Subject(tessella.load("crossvit_ti_dagger_p4_32.cifar10"))
    image = one_image(subject)
    for method in methods_for(subject.model):
        first, second = (attribute(subject, image, 3, method).values for _ in range(2))
        assert np.array_equal(first, second), method


def test_the_best_method_is_the_default() -> None:
    model = tessella.load("convit_ti_p4_32.cifar10").model.requires_grad_(False)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, best = methods.map_image(model, x, 1), methods.map_image(model, x, 1, RANKING["convit"][0])
    assert found.method == best.method == choose_method(model)
    assert np.array_equal(found.values, best.values)


def test_attention_applies_to_models_that_have_it() -> None:
    with_attention = {name for name in BUILT_IN if "attention" in methods_for(tessella.load(name).model)}
    assert with_attention == {"convit_ti_p4_32.cifar10", "crossvit_ti_dagger_p4_32.cifar10"}
    subject = Subject(tessella.load("mixer_ti_p4_32.cifar10"))
    with pytest.raises(UsageError, match="MlpMixer has no attention") as caught:
        attribute(subject, one_image(subject), 0, "attention")
    best = choose_method(subject.model)
    assert caught.value.hint.startswith(f"the next best method is {best}, which 'auto' chooses; others: ")
    assert "grad-cam" in caught.value.hint


def test_a_model_without_classifier_has_no_next_best_method() -> None:
    model = small("resmlp_12_224").eval()
    model.reset_classifier(0)
    for method in (*METHODS, "auto"):
        with pytest.raises(UsageError, match="no class to explain") as caught:
            methods.map_image(model, torch.zeros(1, 3, 32, 32), 0, method)
        assert caught.value.code == "bad_argument"


def test_the_exact_method_applies_to_models_that_pool_positions() -> None:
    exact = {name for name in BUILT_IN if "exact" in methods_for(tessella.load(name).model)}
    assert exact == set(BUILT_IN[:4])
    subject = Subject(tessella.load("convit_ti_p4_32.cifar10"))
    with pytest.raises(UsageError, match="class token"):
        attribute(subject, one_image(subject), 0, "exact")
    image = one_image(subject := Subject(tessella.load("mixer_ti_p4_32.cifar10")))
    found = attribute(subject, image, 2, "exact")
    assert found.total == pytest.approx(float(found.values.sum()), abs=1e-4)
    assert found.total == pytest.approx(float(subject.logits(image.x)[0, 2]), abs=1e-4)


def test_unknown_methods_and_classes_are_refused() -> None:
    subject = Subject(tessella.load("mixer_ti_p4_32.cifar10"))
    image = one_image(subject)
    for target, method, versus in ((0, "grad_cam", None), (10, "auto", None), (-1, "auto", None), (3, "auto", 3)):
        with pytest.raises(UsageError) as caught:
            attribute(subject, image, target, method, versus=versus)
        assert caught.value.code == "bad_argument"


def test_every_family_has_a_ranking_of_its_methods() -> None:
    models = [tessella.load(name).model for name in BUILT_IN] + [small("resmlp_12_224"), small("gmlp_ti16_224")]
    assert {family_of(model) for model in models} == set(RANKING)
    for model in models:
        assert set(methods_for(model)) <= set(RANKING[family_of(model)])
        assert len(set(RANKING[family_of(model)])) == len(RANKING[family_of(model)])


def test_a_model_without_a_classifier_has_no_methods() -> None:
    for model in (small("resmlp_12_224", global_pool=""), tessella.create_model("resmlp_12_224", num_classes=0)):
        assert methods_for(model) == ()
        with pytest.raises(UsageError, match="no class to explain"):
            choose_method(model)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_chosen_method_is_the_first_whose_package_is_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tessella.load(name).model
    ranking = [method for method in RANKING[family_of(model)] if method in methods_for(model)]
    assert choose_method(model) == ranking[0]
    monkeypatch.setattr(methods, "is_installed", lambda package: False)
    assert choose_method(model) == next(method for method in ranking if method not in WITH_CAPTUM)
