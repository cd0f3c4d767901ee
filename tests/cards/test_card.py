"""Model cards: the Hub accepts them, their examples run, and they say what is right."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants

import tessella
from tessella.cards import card
from tessella.errors import TessellaError, UsageError
from tessella.models import build
from tessella.weights import sources
from tessella.weights.card_text import HUB_LICENSES, saved_facts
from tessella.weights.card_text import render as render_card
from tessella.weights.catalogue import CATALOGUE, published_accuracy
from tessella.weights.costs import read_costs
from tessella.weights.fetch import fetch_config, fetch_model
from tessella.weights.origins import FAMILIES, known_errors, origin_of, sentence
from tessella.weights.save import save_pretrained

from ..models.tiny import tiny
from ..weights.card_rules import LICENSES, problems
from ..weights.hub import FakeHub, online

CAT = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"
BUILTIN = "convmixer_256_8_ks3_p4.cifar10"


@functools.cache
def card_of(name: str) -> str:
    return card(name)


def metadata(text: str) -> dict[str, object]:
    data: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return data


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_card_of_every_checkpoint_is_valid_and_has_its_figures(name: str) -> None:
    text, row, facts = card_of(name), CATALOGUE[name], read_costs()[name]
    assert problems(text) == []
    assert text.count(f"# Model card for {name}") == 1
    assert f"Params (M): {facts['params'] / 1e6:.1f}" in text or facts["params"] < 1e6
    assert f"Image size: {row.input_size[2]} x {row.input_size[1]}" in text
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    results = data.eval_results or []
    tested = {key: figures.top1 for key, figures in published_accuracy(name).items() if "clean" not in key}
    published = {top1 for key, top1 in tested.items() if key != "imagenet-real"}
    assert {result.metric_value for result in results if "Top-1" in str(result.metric_name)} == published
    assert all(result.source_url for result in results) is (row.hf_hub_id is not None) or not results
    assert all(f"- {sentence(note)}"[:30] in text for note in (row.note, row.class_warning) if note)


@pytest.mark.parametrize("name", CATALOGUE)
def test_citations_are_those_of_the_family(name: str) -> None:
    family, papers = FAMILIES[name.partition("_")[0]]
    cited = re.findall(r"eprint = \{([\d.]+)\}", card_of(name))
    assert cited == [paper.arxiv for paper in (*papers, *origin_of(CATALOGUE[name]).methods)]
    assert family in card_of(name)


def test_original_repositories_are_the_authors() -> None:
    repositories = {
        "convmixer_1536_20.in1k": "https://github.com/locuslab/convmixer",
        "mixer_b16_224.goog_in21k_ft_in1k": "https://github.com/google-research/vision_transformer",
        "mixer_b16_224.miil_in21k": "https://github.com/Alibaba-MIIL/ImageNet21K",
        "gmlp_s16_224.ra3_in1k": "https://github.com/huggingface/pytorch-image-models",
        "resmlp_12_224.fb_dino": "https://github.com/facebookresearch/deit",
    }
    for name, url in repositories.items():
        assert f"- **Original:** {url}\n" in card_of(name)


def test_known_errors_are_stated() -> None:
    assert "which does not exist" in card_of("mixer_b16_224.goog_in21k_ft_in1k")
    assert "which does not exist" not in card_of("mixer_b16_224.miil_in21k_ft_in1k")
    assert "less accurate than the smaller" in card_of("mixer_l16_224.goog_in21k_ft_in1k")
    assert "that of the CrossViT paper" in card_of("convmixer_768_32.in1k")
    assert "timm loads resmlp_12_224.fb_in1k for resmlp_12_224_dino" in card_of("resmlp_12_224.fb_dino")
    assert "CC-BY-NC" in card_of("convit_tiny.fb_in1k")
    assert known_errors(CATALOGUE["crossvit_tiny_240.in1k"])
    assert "## Known errors" not in card_of("resmlp_12_224.fb_in1k")


def test_a_card_says_what_was_published_and_what_was_measured() -> None:
    assert "Published by timm" in card_of("convit_tiny.fb_in1k")
    assert "Measured by this project on all test images" in card_of(BUILTIN)
    assert "No accuracy is published" in card_of("resmlp_12_224.fb_dino")
    assert "random weights" in card_of("gmlp_b16_224.untrained")
    assert "### Image classification" not in card_of("convmixer_384_8_ks5_p8.photographs")


def test_the_comparison_has_the_family_and_marks_the_model() -> None:
    text = card_of("convit_tiny.fb_in1k")
    assert "| **convit_tiny.fb_in1k** | 5.7 |" in text
    assert "| convit_base.fb_in1k | 86.5 |" in text
    assert "| convit_ti_p4_32.cifar10 |" not in text
    assert "| **convit_ti_p4_32.cifar10** |" in card_of("convit_ti_p4_32.cifar10")


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    online(monkeypatch, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub() as hub:
        for fetch in (fetch_config, fetch_model):
            monkeypatch.setattr(sources, fetch.__name__, functools.partial(fetch, endpoint=hub.url))
        yield hub


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_client_of_the_hub_validates_cards(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    folder = save_pretrained(tiny("gmlp"), tmp_path / "saved", config_overrides={"license": "Mine, all mine: v1"})
    texts = [card_of("crossvit_9_240.in1k"), card_of(BUILTIN), card(folder), (folder / "README.md").read_text()]
    for text in texts:
        ModelCard(text).validate()
    assert hub.count("POST", "/api/validate-yaml") == len(texts)
    assert metadata(texts[2])["license"] == "other"
    assert metadata(texts[2])["license_name"] == "mine-all-mine-v1"
    with pytest.raises(ValueError, match="license"):
        ModelCard(texts[0].replace("license: apache-2.0", "license: nonsense")).validate()


def test_our_licenses_are_licenses_of_the_hub() -> None:
    assert set(LICENSES) >= HUB_LICENSES
    assert {row.license for row in CATALOGUE.values()} <= HUB_LICENSES


def test_the_card_of_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    folder = save_pretrained(tiny("mixer"), tmp_path / "saved", config_overrides={"label_names": list("abcde")})
    hub.add("org/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
    text = card("hf-hub:org/tiny")
    assert problems(text) == []
    assert "- **Classes:** 5: a, b, c, d, e\n" in text


# --- examples ---------------------------------------------------------------------------------------------------------


def run_examples(text: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the Python examples of a card in a folder with a photograph; return their number."""
    shutil.copy(CAT, place / "photo.jpg")
    monkeypatch.chdir(place)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        exec(block.replace("import timm\n", "import tessella as timm\n"), {})
    return len(blocks)


@pytest.mark.parametrize("name", [BUILTIN, "convmixer_384_8_ks5_p8.photographs", "gmlp_ti16_224.untrained"])
def test_the_examples_of_models_in_the_package_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = run_examples(card_of(name), tmp_path, monkeypatch)
    assert count == (2 if name == BUILTIN else 1)
    assert capsys.readouterr().out.count("%  ") == (5 if name == BUILTIN else 0)


def test_the_examples_of_a_published_model_run(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With random weights in place of the published ones, which tests cannot download."""
    name = "convit_tiny.fb_in1k"
    torch.manual_seed(0)
    weights = safetensors.torch.save(build("convit_tiny").state_dict())
    hub.add(f"timm/{name}", {"model.safetensors": weights})
    assert run_examples(card_of(name), tmp_path, monkeypatch) == 3
    assert capsys.readouterr().out.count("%  ") == 5


def test_the_examples_of_a_saved_model_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pretrained(tiny("mixer"), tmp_path / "path/to/this/folder")
    assert run_examples((folder / "README.md").read_text(), tmp_path, monkeypatch) == 3


# --- names and text ---------------------------------------------------------------------------------------------------


def test_names_folders_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pretrained(tiny("mixer"), tmp_path / "saved")
    assert card(folder) == card(str(folder)) == card(f"local-dir:{folder}")
    assert card("convit_tiny") == card_of("convit_tiny.fb_in1k")
    monkeypatch.delitem(CATALOGUE, "gmixer_ti_p4_32.cifar10")
    for name, code in (
        ("resnet50", "unknown_model"),
        ("convit_tiny.mine", "unknown_tag"),
        ("gmixer_ti_p4_32", "no_weights"),
        ("local-dir:nowhere", "weights_not_found"),
        (str(tmp_path), "bad_config"),
    ):
        with pytest.raises(TessellaError) as caught:
            card(name)
        assert caught.value.code == code, name


def test_an_exported_folder_has_no_card() -> None:
    with pytest.raises(UsageError, match="exported") as caught:
        card(Path(__file__).parent.parent / "stored" / "exported" / "openvino")
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize(
    ("name", "text", "found", "hint"),
    [
        ("run-finished", "run.json", "the output of `tessella run`", "tessella card "),
        ("index", "index.json", "an index", "the name or the folder of a model"),
        ("train-interrupted", "train.json", "a training run without a model", "finish the training"),
    ],
)
def test_the_card_of_another_folder_of_tessella_is_refused(
    tmp_path: Path, name: str, text: str, found: str, hint: str
) -> None:
    stored = Path(__file__).parent.parent / "stored" / name
    folder = stored if stored.exists() else tmp_path
    if folder == tmp_path:
        (folder / text).write_text("{}")
    assert (folder / text).exists()
    with pytest.raises(UsageError) as caught:
        card(folder)
    assert caught.value.code == "bad_argument"
    assert found in caught.value.message
    assert hint in caught.value.hint


def test_text_of_a_config_cannot_become_metadata_or_markup(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "a\n---\nlicense: evil", "[x](javascript:1)", "| pipe", "`code`"]
    overrides = {"label_names": names, "license": "mit\nbase_model: evil", "tag": "x\n# Heading"}
    text = card(save_pretrained(tiny("gmlp"), tmp_path, config_overrides=overrides))
    assert set(metadata(text)) == {"library_name", "license", "license_name", "pipeline_tag", "tags"}
    assert problems(text) == []
    assert "<script>" not in text
    assert "\n# Heading" not in text
    assert "[x]" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("- **Classes:**"))
    assert line.count("|") == line.count("\\|")


def test_a_model_with_many_classes_names_twenty(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(30)]
    model = tiny("mixer", num_classes=30)
    facts = saved_facts(model.arch, model.config, {"label_names": names, "num_classes": 30})
    text = render_card(dataclasses.replace(facts, title="many"))
    assert "class 19 and 10 more" in text
    assert "class 20" not in text


def test_the_function_is_public() -> None:
    assert tessella.cards.card is card
