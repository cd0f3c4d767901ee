"""Names, tags, lists and published figures, all without torch."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tessella.errors import UsageError
from tessella.models import ARCHITECTURES
from tessella.weights import catalogue
from tessella.weights.catalogue import (
    BUILTIN_FOLDER,
    CATALOGUE,
    DEFAULT_MODELS,
    DEPRECATED,
    OWN_ARCHITECTURES,
    default_model,
    full_name,
    get_arch_pretrained_cfgs,
    is_model,
    list_models,
    list_modules,
    list_pretrained,
    published_accuracy,
    resolve,
)

PUBLISHED = [row for row in CATALOGUE.values() if row.architecture not in OWN_ARCHITECTURES]


def test_reading_the_catalogue_needs_neither_torch_nor_the_models() -> None:
    program = (
        "import sys; from tessella.weights import list_models, resolve; assert list_models(); resolve('mixer_b16_224');"
        "print([name for name in ('torch', 'numpy', 'huggingface_hub', 'tessella.models') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_32_architectures_and_43_checkpoints_are_published() -> None:
    assert len(PUBLISHED) == 43
    assert len({row.architecture for row in PUBLISHED}) == 32
    assert sum(row.has_weights for row in PUBLISHED) == 36
    assert all(row.hf_hub_id == f"timm/{row.name}" for row in PUBLISHED if row.has_weights)


def test_the_listed_names_can_be_built() -> None:
    assert set(list_models()) == set(ARCHITECTURES)


def test_built_in_files_have_their_recorded_hash() -> None:
    for row in json.loads((BUILTIN_FOLDER / "builtin.json").read_text()):
        checkpoint = CATALOGUE[row["name"]]
        assert checkpoint.architecture in OWN_ARCHITECTURES
        if checkpoint.tag == "untrained":
            assert checkpoint.file is checkpoint.sha256 is None
            continue
        assert checkpoint.file is not None
        assert (BUILTIN_FOLDER / checkpoint.file).is_file()
        assert checkpoint.sha256 is not None
        assert len(checkpoint.sha256) == 64


def test_a_row_of_each_kind_is_read(tmp_path: Path) -> None:
    row = {
        "name": "convmixer_256_8_ks3_p4.mine",
        "num_classes": 2,
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "fixed_input_size": False,
        "first_conv": "stem.0",
        "classifier": "head",
        "license": "apache-2.0",
        "file": "mine.safetensors",
        "sha256": "0" * 64,
        "label_names": ["cat", "dog"],
    }
    (tmp_path / "builtin.json").write_text(json.dumps([row]))
    (read,) = catalogue._read_rows(tmp_path / "builtin.json")
    assert (read.name, read.file, read.label_names) == (row["name"], "mine.safetensors", ("cat", "dog"))
    assert read.has_weights
    assert "hf_hub_id" not in read.to_dict()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixer_b16_224", "mixer_b16_224.goog_in21k_ft_in1k"),
        ("mixer_l16_224", "mixer_l16_224.goog_in21k_ft_in1k"),
        ("resmlp_12_224", "resmlp_12_224.fb_in1k"),
        ("resmlp_big_24_224", "resmlp_big_24_224.fb_in1k"),
        ("convit_base", "convit_base.fb_in1k"),
        ("gmixer_12_224", "gmixer_12_224.untrained"),
        ("mixer_b16_224.miil_in21k", "mixer_b16_224.miil_in21k"),
    ],
)
def test_a_name_without_a_tag_is_the_default_checkpoint(name: str, expected: str) -> None:
    arch, row = resolve(name)
    assert row is not None
    assert (arch, row.name) == (expected.partition(".")[0], expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mixer_b16_224_in21k", "mixer_b16_224.goog_in21k"),
        ("mixer_l16_224_in21k", "mixer_l16_224.goog_in21k"),
        ("resmlp_12_224_dino", "resmlp_12_224.fb_dino"),
        ("resmlp_24_224_dino", "resmlp_24_224.fb_dino"),
    ],
)
def test_old_names_that_timm_remaps_keep_their_original_weights(
    old: str, new: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _, row = resolve(old)
    assert row is not None
    assert row.name == new
    assert old in caplog.text
    assert "timm loads" in caplog.text


def test_every_old_name_leads_to_weights_and_is_not_listed() -> None:
    for old in DEPRECATED:
        row = resolve(old)[1]
        assert row is not None
        assert row.has_weights
        assert is_model(old)
    assert not set(DEPRECATED) & set(list_models(include_tags=False))


@pytest.mark.parametrize(
    ("name", "code", "shown"),
    [
        ("mixr_b16_224", "unknown_model", "mixer_b16_224"),
        ("resnet50", "unknown_model", "tessella list"),
        ("", "unknown_model", "tessella list"),
        ("mixer_b16_224.goog_in21", "unknown_tag", "did you mean goog_in21k?"),
        ("mixer_b16_224.x", "unknown_tag", "miil_in21k_ft_in1k"),
        ("timm/mixer_b16_224", "bad_argument", "hf-hub:"),
        ("folder\\model", "bad_argument", "local-dir:"),
        ("http:model", "bad_argument", "local-dir:"),
    ],
)
def test_an_unknown_name_is_an_error_with_suggestions(name: str, code: str, shown: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(name)
    assert error.value.code == code
    assert shown in str(error.value)


def test_lists_are_in_natural_order() -> None:
    assert list_models("crossvit_*_240") == [
        "crossvit_9_240",
        "crossvit_9_dagger_240",
        "crossvit_15_240",
        "crossvit_15_dagger_240",
        "crossvit_18_240",
        "crossvit_18_dagger_240",
        "crossvit_base_240",
        "crossvit_small_240",
        "crossvit_tiny_240",
    ]


def test_a_filter_without_a_tag_matches_all_tags() -> None:
    tags = ["goog_in21k", "goog_in21k_ft_in1k", "miil_in21k", "miil_in21k_ft_in1k"]
    assert list_models("mixer_b16_224", pretrained=True) == [f"mixer_b16_224.{tag}" for tag in tags]
    assert list_models("mixer_b16_224.goog*", pretrained=True) == [f"mixer_b16_224.{tag}" for tag in tags[:2]]
    assert list_models("mixer_b16_224.*") == []
    assert list_models("mixer_b16_224", pretrained=True, exclude_filters="*.miil*") == [
        f"mixer_b16_224.{tag}" for tag in tags[:2]
    ]


def test_several_filters_can_be_combined() -> None:
    assert list_models(["gmixer_*_224", "gmlp_s*"], exclude_filters=["*_12_*"]) == ["gmixer_24_224", "gmlp_s16_224"]


def test_models_without_weights_are_listed_unless_pretrained() -> None:
    assert list_models("gmixer*_224", pretrained=True) == ["gmixer_24_224.ra3_in1k"]
    assert list_models("gmixer*_224", pretrained=True, include_tags=False) == ["gmixer_24_224"]
    assert list_models("gmixer_*_224*", include_tags=True) == ["gmixer_12_224.untrained", "gmixer_24_224.ra3_in1k"]
    assert list_pretrained("gmlp*") == ["gmlp_s16_224.ra3_in1k"]
    parts = (set(list_models(pattern, pretrained=True)) for pattern in ("*_224.*", "c*", "*_32.*"))
    assert set().union(*parts) == set(list_pretrained())


def test_modules_are_timms() -> None:
    assert list_modules() == ["convit", "convmixer", "crossvit", "mlp_mixer"]
    assert list_models(module="convit") == ["convit_base", "convit_small", "convit_ti_p4_32", "convit_tiny"]
    assert set(list_models(module="mlp_mixer")) == set(list_models(["mixer*", "gmixer*", "resmlp*", "gmlp*"]))
    with pytest.raises(UsageError) as error:
        list_models(module="vision_transformer")
    assert error.value.code == "bad_argument"


def test_is_model_and_is_model_pretrained() -> None:
    assert is_model("convit_base")
    assert is_model("convit_base.any_tag")
    assert not is_model("resnet50")
    assert list(get_arch_pretrained_cfgs("convit_base")) == ["convit_base.fb_in1k"]
    assert get_arch_pretrained_cfgs("resnet50") == {}
    assert set(list_models(name_matches_cfg=True)) >= {row.architecture for row in PUBLISHED}


def test_known_errors_of_published_checkpoints_are_noted() -> None:
    assert "ImageNet-1k alone" in CATALOGUE["mixer_b16_224.goog_in21k_ft_in1k"].note
    assert "less accurate" in CATALOGUE["mixer_l16_224.goog_in21k_ft_in1k"].note
    large, base = (published_accuracy(f"mixer_{size}16_224")["imagenet"].top1 for size in "lb")
    assert large < base


def test_published_accuracy() -> None:
    figures = published_accuracy("mixer_b16_224.miil_in21k_ft_in1k")
    assert figures["imagenet"] == (82.314, 95.71, 224)
    assert "imagenet-real" in figures
    assert published_accuracy("gmixer_12_224") == {}
    assert published_accuracy("mixer_b16_224_miil") == figures


def test_preprocessing_matches_the_reference() -> None:
    row = CATALOGUE["crossvit_9_240.in1k"]
    assert row.first_conv == ("patch_embed.0.proj", "patch_embed.1.proj")
    assert row.classifier == ("head.0", "head.1")
    assert row.input_size == (3, 240, 240)
    assert CATALOGUE["mixer_b16_224.miil_in21k"].interpolation == "bilinear"
    assert {row.num_classes for row in PUBLISHED} == {1000, 21843, 11221}


def test_a_default_model_is_built_in_and_a_former_one_is_kept_by_what_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for task, names in DEFAULT_MODELS.items():
        assert all(CATALOGUE[name].file for name in names)
        assert default_model(task) == names[0]
    monkeypatch.setattr(catalogue, "DEFAULT_MODELS", dict(classify=("a",), embed=("new", "old")))
    assert default_model() == default_model("embed") == default_model("embed", "new") == "new"
    assert default_model("embed", "old") == "old"
    assert default_model("embed", "a") == "new"
    assert default_model("classify", "old") == "a"


def test_the_full_name_has_the_tag_of_the_default_weights() -> None:
    assert full_name("convmixer_384_8_ks5_p8") == "convmixer_384_8_ks5_p8.photographs"
    assert full_name("mixer_b16_224") == "mixer_b16_224.goog_in21k_ft_in1k"
    assert full_name("mixer_b16_224_miil") == "mixer_b16_224.miil_in21k_ft_in1k"  # an old name
    no_reference = ("mixer_s32_224", "mixer_s9", "hf-hub:org/mixer_b16_224", "local-dir:mixer_b16_224", "")
    for name in (*CATALOGUE, *no_reference):
        assert full_name(name) == name


def test_a_default_that_was_recorded_without_its_tag_is_kept() -> None:
    for name in DEFAULT_MODELS["embed"]:
        assert default_model("embed", name.partition(".")[0]) == name
