"""Models are found by parts of their names, and saved models by their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessella.errors import TessellaError, UsageError
from tessella.weights import catalogue
from tessella.weights.catalogue import CATALOGUE
from tessella.weights.factory import create_model
from tessella.weights.names import find_models, headline_accuracy, local_folder


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("conv", {"convmixer_768_32.in1k", "convit_tiny.fb_in1k", "convmixer_256_8_ks3_p4.cifar10"}),
        ("B16", {"mixer_b16_224.goog_in21k", "gmlp_b16_224.untrained"}),
        ("cifar", {"convmixer_256_8_ks3_p4.cifar10", "mixer_ti_p4_32.cifar10"}),
        ("convit_tiny", {"convit_tiny.fb_in1k"}),
        ("convit*", {"convit_tiny.fb_in1k"}),
    ],
)
def test_models_are_found_by_part_of_their_name(pattern: str, names: set[str]) -> None:
    actual = find_models([pattern])
    assert names <= set(actual)
    assert all(pattern.lower().strip("*") in name for name in actual)


def test_a_pattern_that_matches_nothing_is_refused_with_similar_names() -> None:
    for pattern, says in (("convmixr", "convmixer_768_32"), ("resnet50", "the supported families are convmixer,")):
        with pytest.raises(UsageError) as caught:
            find_models([pattern])
        assert caught.value.code == "unknown_model"
        assert says in caught.value.hint
    with pytest.raises(UsageError) as caught:
        find_models(["gmixer_12"], pretrained=True)
    assert caught.value.code == "no_weights"


def test_an_architecture_without_checkpoints_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = find_models([])
    monkeypatch.setattr(catalogue, "ARCHITECTURE_NAMES", (*catalogue.ARCHITECTURE_NAMES, "mixer_own_96"))
    assert find_models([]) == listed
    assert set(listed) <= set(CATALOGUE)
    assert find_models(["mixer_"]) == [name for name in listed if "mixer_" in name]
    with pytest.raises(UsageError, match="no weights are published for mixer_own") as caught:
        find_models(["mixer_own"])
    assert caught.value.code == "no_weights"
    assert "tessella info" in caught.value.hint


def test_models_in_this_package_have_an_accuracy_with_its_data_set() -> None:
    assert headline_accuracy("convmixer_256_8_ks3_p4.cifar10") == (88.18, "CIFAR-10")
    assert headline_accuracy("mixer_b16_224.miil_in21k_ft_in1k") == (82.314, "ImageNet-1k")
    assert headline_accuracy("gmixer_12_224") is None
    assert all(headline_accuracy(name) for name, row in CATALOGUE.items() if row.tag == "cifar10")


def test_a_folder_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert local_folder("local-dir:~/model") == tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("local-dir:", "bad_argument"),
        ("local-dir:~nobody-of-this-name/x", "bad_argument"),
        ("local-dir:absent", "weights_not_found"),
        (f"local-dir:{'a' * 300}", "weights_not_found"),
        ("local-dir:a\0b", "weights_not_found"),
    ],
)
def test_a_missing_folder_is_a_coded_error(name: str, code: str) -> None:
    for call in (local_folder, create_model):
        with pytest.raises(TessellaError) as caught:
            call(name)
        assert caught.value.code == code
