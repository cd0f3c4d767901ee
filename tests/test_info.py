"""The facts of `tessella info`, compared with the published model cards and PyTorch's operation counter."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tessella.errors import UsageError
from tessella.info import describe, info
from tessella.models import ARCHITECTURES
from tessella.weights.catalogue import ARCHITECTURE_NAMES, OWN_ARCHITECTURES
from tessella.weights.costs import COSTS
from tessella.weights.counting import cost, facts_of, table_names
from tessella.weights.origins import FAMILIES
from tessella.weights.save import save_pretrained

from .models.tiny import TINY, images, size_of, tiny

known = functools.cache(info)

with (Path(__file__).parent / "published_cost.csv").open(newline="") as table:
    PUBLISHED = {row["arch"]: (row["mparams"], row["gmacs"], row["macts"]) for row in csv.DictReader(table)}

CARDS = {  # as published: million parameters, GMACs, million activations
    "convmixer_768_32": ("21.1", "19.5", "26.0"),
    "convit_base": ("86.5", "17.5", "31.8"),
    "gmixer_24_224": ("24.7", "5.3", "14.5"),
    "mixer_b16_224": ("59.9", "12.6", "14.5"),
    "crossvit_9_240": ("8.6", "1.8", "9.5"),
}


@pytest.mark.parametrize("arch", CARDS)
def test_model_cards(arch: str) -> None:
    actual = known(arch).cost
    figures = (actual.params / 1e6, actual.card_macs / 1e9, actual.card_activations / 1e6)
    assert tuple(f"{figure:.1f}" for figure in figures) == CARDS[arch]


@pytest.mark.parametrize("arch", PUBLISHED)
def test_benchmark_table(arch: str) -> None:
    """All figures match timm's benchmark file, which has two decimals."""
    actual = known(arch).cost
    figures = (actual.params / 1e6, actual.card_macs / 1e9, actual.card_activations / 1e6)
    assert figures == pytest.approx([float(text) for text in PUBLISHED[arch]], abs=0.00501)


@pytest.mark.parametrize("name", table_names())
def test_the_table_of_costs_matches_the_models(name: str) -> None:
    """`python -m tessella.weights.counting` updates the table."""
    assert json.loads(COSTS.read_text())[name] == facts_of(name)


def test_the_table_of_costs_has_nothing_else() -> None:
    assert list(json.loads(COSTS.read_text())) == table_names()


def test_the_table_has_every_architecture() -> None:
    assert set(PUBLISHED) == set(ARCHITECTURES) - set(OWN_ARCHITECTURES)


def test_true_cost_includes_the_depthwise_convolutions() -> None:
    actual = known("convmixer_768_32").cost
    depthwise = 32 * 768 * 7 * 7 * 32 * 32  # blocks, channels, kernel, map
    assert f"{actual.macs / 1e9:.2f}" == "20.68"
    norms = 2 * 65 * 768 * 32 * 32
    assert actual.card_macs == actual.macs - depthwise + norms
    assert actual.card_activations == actual.activations - 32 * 768 * 32 * 32


@pytest.mark.parametrize("case", TINY)
def test_macs_agree_with_the_counter_of_pytorch(case: str) -> None:
    """PyTorch counts kernels, we count calls, so an operation that one of them misses causes a difference."""
    model = tiny(case)
    # plain attention, because PyTorch's counter does not know the fused kernel of the CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images(model, batch=1))
    positions = 0
    if hasattr(model, "rel_pos"):  # the only linear layer that is computed elementwise
        positions = 3 * model.rel_pos[..., 0].numel() * model.config.num_heads * model.num_local
    assert cost(model, (model.config.in_chans, *size_of(model))).macs == counter.get_total_flops() // 2 + positions


class OneConvolution(nn.Module):
    """2 -> 4 channels, kernel 3."""

    def __init__(self, padding: str | int):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_model_cards_omit_convolutions_with_same_padding() -> None:
    work, outputs = 5 * 7 * 4 * 2 * 9, 5 * 7 * 4
    for padding, seen in ((1, 1), ("same", 0)):
        actual = cost(OneConvolution(padding), (2, 5, 7))  # type: ignore[arg-type]
        assert (actual.macs, actual.activations) == (work, outputs)
        assert (actual.card_macs, actual.card_activations) == (seen * work, seen * outputs)


@pytest.mark.parametrize("case", TINY)
def test_counting_does_not_change_the_model(case: str) -> None:
    model = tiny(case).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cost(model, (model.config.in_chans, *size_of(model)))
    after = model.state_dict()
    assert model.training
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_wrong_image_size_raises_the_models_error() -> None:
    model = tiny("mixer")
    height, width = size_of(model)
    with pytest.raises(UsageError) as caught:
        cost(model, (3, height * 2, width))
    assert caught.value.code == "wrong_input_size"


def test_all_facts_about_one_checkpoint() -> None:
    model_info = known("mixer_b16_224")
    assert model_info.name == "mixer_b16_224.goog_in21k_ft_in1k"
    assert model_info.tag_is_default
    assert (model_info.architecture, model_info.tag, model_info.family) == (
        "mixer_b16_224",
        "goog_in21k_ft_in1k",
        "MLP-Mixer",
    )
    assert [paper.arxiv for paper in model_info.papers] == ["2105.01601"]
    assert (model_info.input_size, model_info.interpolation, model_info.crop_pct) == ((3, 224, 224), "bicubic", 0.875)
    assert model_info.mean == model_info.std == (0.5, 0.5, 0.5)
    assert (model_info.num_classes, model_info.embedding_width, model_info.licence) == (1000, 768, "apache-2.0")
    assert model_info.sources == ("hf-hub:timm/mixer_b16_224.goog_in21k_ft_in1k",)
    assert model_info.accuracy["imagenet"] == {"top1": 76.616, "top5": 92.25, "img_size": 224}
    assert set(model_info.other_tags) == {"goog_in21k", "miil_in21k", "miil_in21k_ft_in1k"}
    assert any("despite its tag" in note and "ImageNet-1k alone" in note for note in model_info.notes)


def test_a_tag_determines_classes_and_preprocessing() -> None:
    model_info = info("mixer_b16_224.miil_in21k")
    assert not model_info.tag_is_default
    assert model_info.notes == ()
    assert (model_info.num_classes, model_info.interpolation, model_info.mean) == (11221, "bilinear", (0.0, 0.0, 0.0))


def test_untrained_architecture() -> None:
    model_info = known("mixer_s32_224")
    assert model_info.tag == "untrained"
    assert model_info.sources == ()
    assert model_info.accuracy == {}
    assert dict(describe(model_info))["weights"] == "none published"


def test_builtin_model_names_its_file() -> None:
    model_info = info("convmixer_256_8_ks3_p4.cifar10")
    assert model_info.sources == ("built in: convmixer_256_8_ks3_p4.cifar10.safetensors",)
    assert model_info.input_size == (3, 32, 32)
    assert model_info.num_classes == 10


def test_old_name_has_a_note_about_timm() -> None:
    model_info = info("mixer_b16_224_in21k")
    assert model_info.name == "mixer_b16_224.goog_in21k"
    assert not model_info.tag_is_default
    assert any("timm loads mixer_b16_224.goog_in21k_ft_in1k" in note for note in model_info.notes)


@pytest.mark.parametrize(
    ("name", "code"),
    [("convmixer_769_32", "unknown_model"), ("convit_base.nope", "unknown_tag"), ("some/model", "bad_argument")],
)
def test_unknown_names(name: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        info(name)
    assert caught.value.code == code
    assert caught.value.hint


def test_local_folder(tmp_path: Path) -> None:
    model = tiny("convmixer")
    save_pretrained(model, tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    (tmp_path / "model" / "model.safetensors").unlink()  # the facts do not need the weights
    model_info = info(name)
    assert model_info.name == name
    assert model_info.sources == (name,)
    assert model_info.architecture == model.arch
    assert model_info.cost == cost(model, model_info.input_size)
    assert model_info.num_classes == model.num_classes
    assert model_info.accuracy == {}
    assert model_info.other_tags == ()


@pytest.mark.parametrize("case", TINY)
def test_pytorch_is_not_needed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of any folder follow from its config; those of the catalog are in a table."""
    model = tiny(case, in_chans=1)
    overrides = dict(input_size=(1, *size_of(model)))
    name = f"local-dir:{save_pretrained(model, tmp_path / 'model', config_overrides=overrides)}"
    expected = cost(model, (1, *size_of(model)))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert info(name).cost == expected
    assert info(name).embedding_width == model.head_hidden_size
    assert info(model.arch).architecture == model.arch


def test_every_architecture_has_a_family() -> None:
    assert {arch.partition("_")[0] for arch in ARCHITECTURE_NAMES} == set(FAMILIES)


def test_result_is_json() -> None:
    model_info = known("gmixer_24_224")
    copy = json.loads(json.dumps(dataclasses.asdict(model_info)))
    assert copy["cost"]["params"] == model_info.cost.params
    assert copy["papers"][0]["year"] == 2021


def test_description_prints_both_figures_and_every_note() -> None:
    rows = list(describe(known("convmixer_768_32")))
    text = dict(rows)
    assert text["model"] == "convmixer_768_32.in1k (the default of convmixer_768_32)"
    assert text["parameters"] == "21.1 M"
    assert text["cost per image"] == "20.7 GMACs, 51.1 M activations"
    assert text["cost on model cards"].startswith("19.5 GMACs, 26.0 M activations")
    convit = list(describe(known("convit_tiny")))
    assert any(label == "note" and "CC-BY-NC" in value for label, value in convit)
