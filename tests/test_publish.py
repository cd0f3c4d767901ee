"""`push_to_hub` uploads the calibration of a model, and `load` finds it; that of other weights is not uploaded."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import tessella
from tessella import create_model, push_to_hub
from tessella.calibration import write_calibration
from tessella.calibration.finding import beside
from tessella.calibration.storage import calibration_hash, read_calibration
from tessella.errors import UsageError
from tessella.models.base import ImageModel
from tessella.text import without_folders
from tessella.weights import sources
from tessella.weights.catalogue import BUILTIN_FOLDER
from tessella.weights.fetch import fetch_config, fetch_model

from .calibration.made import calibration_for, made_calibration
from .weights.hub import FakeHub, online

# the client passes its HTTP library a file in an argument that the library renamed
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

STORED = Path(__file__).resolve().parent / "stored"
IMAGE = STORED.parent.parent / "examples" / "cat.jpg"
REPO = "org/mine"
NAME = f"hf-hub:{REPO}"
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    online(monkeypatch, tmp_path)
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "tessella"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub() as hub:
        for fetch in (fetch_config, fetch_model):
            monkeypatch.setattr(sources, fetch.__name__, functools.partial(fetch, endpoint=hub.url))
        yield hub


@pytest.fixture
def folder(tmp_path: Path, hub: FakeHub) -> Path:
    """A model folder with a calibration."""
    folder = Path(shutil.copytree(STORED / "saved" / "convmixer", tmp_path / "model"))
    write_calibration(beside(folder), calibration_for(tessella.load(f"local-dir:{folder}", calibration=None)))
    return folder


def model_in(folder: Path) -> ImageModel:
    return create_model(f"local-dir:{folder}", pretrained=True)


def uploaded(hub: FakeHub) -> dict[str, bytes]:
    repo = hub.repos[REPO]
    return repo.commits[repo.refs["main"]]


def test_the_calibration_beside_the_weights_is_uploaded_and_found(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(model_in(folder), REPO, token="t", endpoint=hub.url)
    files = uploaded(hub)
    assert sorted(files) == sorted([*FILES, "calibration.safetensors"])
    assert files["calibration.safetensors"] == beside(folder).read_bytes()
    assert b"Probabilities are calibrated" in files["README.md"]
    local = tessella.load(f"local-dir:{folder}").classify(IMAGE)
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        predictor = tessella.load(NAME)
        assert "beside the weights" in predictor.plan.choice("calibration").reason
        assert predictor.classify(IMAGE) == local


def test_the_examples_of_the_card_name_the_repository(hub: FakeHub, folder: Path) -> None:
    for revision, name in ((None, NAME), ("v2", f"{NAME}@v2")):
        push_to_hub(model_in(folder), REPO, token="t", revision=revision, endpoint=hub.url)
        repo = hub.repos[REPO]
        text = repo.commits[repo.refs[revision or "main"]]["README.md"].decode()
        assert "local-dir:" not in text
        assert set(re.findall(r'(?:load|create_model)\("([^"]+)"', text)) == {name}


def with_report(folder: Path, data: str) -> None:
    """Write a report of the model in a folder, with files and texts of this machine."""
    predictor = tessella.load(f"local-dir:{folder}", calibration=None)
    conditions = {"model": predictor.name, "fingerprint": predictor.fingerprint, "data": f"{data} (val)"}
    settings = {"transform": predictor.transform, "decode policy": predictor.policy, "precision": "float32"}
    rows = [{"label": "a", "recall": 0.25, "count": 4}, {"label": "b", "recall": 0.75, "count": 4}]
    metrics = {"count": 8, "top1": 0.5, "ece": 0.125, "per_class": rows}
    report = {
        "command": f"tessella train {data} -o {folder}",
        "conditions": conditions | settings,
        "metrics": metrics,
        "mistakes": [{"key": f"{data}/a/me.jpg"}],
    }
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text(json.dumps(report))
    (folder / "report" / "mistakes.png").write_bytes(b"pictures")
    (folder / "train.json").write_text("{}")
    card = folder / "README.md"
    card.write_text(f"{card.read_text()}\n## Training\n\n[report](report/report.md)\n\n    {report['command']}\n")


def test_no_folder_of_this_machine_is_uploaded(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    data = f"{tmp_path}/my own/photos"
    with_report(folder, data)
    calibration = read_calibration(beside(folder))
    calibration = dataclasses.replace(
        calibration, model=f"local-dir:{folder}", data=calibration.data._replace(origin=f"10% of {data} (val), chosen")
    )
    write_calibration(beside(folder), calibration)
    push_to_hub(model_in(folder), REPO, token="t", endpoint=hub.url)
    files = uploaded(hub)
    assert sorted(files) == sorted([*FILES, "calibration.safetensors"])
    for name, content in files.items():
        for secret in (str(tmp_path), str(Path.home()) + "/", "my own", "me.jpg", "/tmp/"):
            assert secret.encode() not in content, (name, secret)
    loaded = tessella.load(NAME).calibration
    assert loaded is not None
    assert loaded.data.origin == "10% of photos (val), chosen"
    assert loaded.model == "local-dir:model"
    assert read_calibration(beside(folder)).data.origin == calibration.data.origin


def test_the_card_of_a_trained_model_has_its_figures_and_no_broken_links(hub: FakeHub, folder: Path) -> None:
    with_report(folder, "photos")
    push_to_hub(model_in(folder), REPO, token="t", endpoint=hub.url)
    text = uploaded(hub)["README.md"].decode()
    assert "| top-1 accuracy | 50.00 % |" in text
    assert "on 8 images of photos (val)" in text
    assert 'metric_name: "Top-1 accuracy (%)"' in text or "name: Top-1 accuracy (%)" in text
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in links if "://" not in link and link not in uploaded(hub)] == []


def test_a_changed_model_has_no_figures_of_the_report(hub: FakeHub, folder: Path) -> None:
    with_report(folder, "photos")
    model = model_in(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    push_to_hub(model, REPO, token="t", endpoint=hub.url)
    assert "## Evaluation" not in uploaded(hub)["README.md"].decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/my photos/pets (val)", "pets (val)"),
        ("the 5 images of /a/b that /c/d was not trained on", "the 5 images of b that d was not trained on"),
        ("local-dir:/home/me/run", "local-dir:run"),
        ("~/photos/", "photos/"),
        ("~me/photos", "photos"),
        ("../../me/photos, without the 10% held out", "photos, without the 10% held out"),
        ("s3://bucket/photos and https://host/a/b", "s3://bucket/photos and https://host/a/b"),
        ("photos/pets (val), images/s and/or 3 / 4", "photos/pets (val), images/s and/or 3 / 4"),
    ],
)
def test_folders_are_removed_from_texts(text: str, expected: str) -> None:
    assert without_folders(text) == expected


def test_a_repository_without_a_calibration_gives_the_plain_softmax(hub: FakeHub, folder: Path) -> None:
    push_to_hub(model_in(folder), REPO, token="t", calibration=None, endpoint=hub.url)
    assert sorted(uploaded(hub)) == FILES
    assert b"Probabilities are calibrated" not in uploaded(hub)["README.md"]
    assert tessella.load(NAME).calibration is None


def test_a_copy_of_a_repository_keeps_the_calibration(hub: FakeHub, folder: Path) -> None:
    push_to_hub(model_in(folder), REPO, token="t", endpoint=hub.url)
    model = create_model(NAME, pretrained=True)
    hub.repos.pop(REPO)
    push_to_hub(model, REPO, token="t", endpoint=hub.url)
    assert uploaded(hub)["calibration.safetensors"] == beside(folder).read_bytes()


@pytest.mark.parametrize("change", ["weights", "classes", "mean"])
def test_a_calibration_of_another_model_is_not_uploaded_and_a_warning_says_so(
    change: str, hub: FakeHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_in(folder)
    overrides: dict[str, object] | None = None
    if change == "weights":
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
    elif change == "classes":
        model.reset_classifier(3)
    else:
        overrides = {"mean": (0.1, 0.2, 0.3)}
    with pytest.raises(UsageError) as caught:
        push_to_hub(model, REPO, token="t", config_overrides=overrides, calibration=beside(folder), endpoint=hub.url)
    assert caught.value.code == "other_calibration"
    assert not hub.requests
    with caplog.at_level(logging.WARNING):
        push_to_hub(model, REPO, token="t", config_overrides=overrides, endpoint=hub.url)
    assert f"no calibration is uploaded to {REPO}" in caplog.text
    assert sorted(uploaded(hub)) == FILES


def test_a_predictor_is_uploaded_with_its_calibration(hub: FakeHub, folder: Path) -> None:
    plain = tessella.load(f"local-dir:{folder}", calibration=None)
    push_to_hub(plain, REPO, token="t", endpoint=hub.url)
    assert sorted(uploaded(hub)) == FILES
    other = calibration_for(plain, coverage=0.5)
    push_to_hub(plain.with_calibration(other), REPO, token="t", endpoint=hub.url)
    assert calibration_hash(tessella.load(NAME).calibration) == calibration_hash(other)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="fingerprint"):
        push_to_hub(plain, REPO, token="t", calibration=made_calibration(100), endpoint=hub.url)


def test_a_built_in_model_is_uploaded_with_its_calibration(hub: FakeHub) -> None:
    name = "mixer_ti_p4_32.cifar10"
    weights = BUILTIN_FOLDER / f"{name}.safetensors"
    model = create_model(name, pretrained=True)
    assert model.source == weights
    push_to_hub(model, REPO, token="t", endpoint=hub.url)
    published = read_calibration(beside(weights))
    assert calibration_hash(tessella.load(NAME).calibration) == calibration_hash(published)  # type: ignore[arg-type]


def test_only_the_weights_of_a_name_have_a_source(folder: Path) -> None:
    name, weights = f"local-dir:{folder}", folder / "model.safetensors"
    assert model_in(folder).source == folder
    assert create_model(name).source is None
    assert create_model(name, checkpoint_path=weights).source is None
    assert create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}).source is None
