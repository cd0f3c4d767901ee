"""`push_to_hub` with the real huggingface_hub client against a hub on loopback, and loading with `create_model`."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tessella import push_to_hub
from tessella.errors import HubError, UsageError
from tessella.models import build
from tessella.models.base import ImageModel
from tessella.weights import create_model
from tessella.weights.fetch import fetch_model

from .hub import FakeHub, online

# the client passes its HTTP library a file in an argument that the library renamed
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "org/mine"
TOKEN = "hf_secretOfTheTest"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    online(monkeypatch, tmp_path)
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def model() -> ImageModel:
    torch.manual_seed(0)
    return build("convmixer_768_32", dim=8, depth=2, kernel_size=3, patch_size=4, num_classes=5).eval()


def files_at(hub: FakeHub, revision: str) -> dict[str, bytes]:
    repo = hub.repos[REPO]
    return repo.commits[repo.refs[revision]]


def check_loads(hub: FakeHub, revision: str, model: ImageModel, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Check that a model loaded from the repository has the logits of `model`."""
    fetch_model(REPO, revision, cache_dir=cache, endpoint=hub.url)
    with patch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        loaded = create_model(f"hf-hub:{REPO}@{revision}", pretrained=True, cache_dir=cache).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


def test_push_then_load(hub: FakeHub, model: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = push_to_hub(model, REPO, token=TOKEN, endpoint=hub.url)
    files = files_at(hub, "main")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(files["config.json"])["architecture"] == "convmixer_768_32"
    assert url == f"{hub.url}/{REPO}/commit/{hub.repos[REPO].refs['main']}"
    check_loads(hub, "main", model, tmp_path, monkeypatch)


def test_push_again_replaces_the_weights(
    hub: FakeHub, model: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(model, REPO, token=TOKEN, endpoint=hub.url)
    check_loads(hub, "main", model, tmp_path, monkeypatch)
    model.reset_classifier(7)
    push_to_hub(model, REPO, token=TOKEN, endpoint=hub.url)
    check_loads(hub, "main", model, tmp_path, monkeypatch)


def test_push_to_a_branch_does_not_change_main(
    hub: FakeHub, model: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(model, REPO, token=TOKEN, revision="v2", endpoint=hub.url)
    assert files_at(hub, "main") == {}
    check_loads(hub, "v2", model, tmp_path, monkeypatch)


def test_create_pr_opens_a_pull_request(
    hub: FakeHub, model: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = push_to_hub(model, REPO, token=TOKEN, create_pr=True, endpoint=hub.url)
    assert url == f"{hub.url}/{REPO}/discussions/1"
    assert files_at(hub, "main") == {}
    check_loads(hub, "refs/pr/1", model, tmp_path, monkeypatch)


def test_the_token_and_the_privacy_are_sent(hub: FakeHub, model: ImageModel) -> None:
    push_to_hub(model, REPO, token=TOKEN, private=True, endpoint=hub.url)
    assert hub.repos[REPO].private
    for verb, path, headers in hub.requests:
        sent = {key.lower(): value for key, value in headers.items()}.get("authorization")
        assert sent == (None if verb == "PUT" else f"Bearer {TOKEN}"), (verb, path)


@pytest.mark.parametrize(
    ("method", "name", "status", "code"),
    [
        ("POST", "/api/repos/create", 401, "hub_denied"),
        ("POST", "/api/repos/create", 403, "hub_denied"),
        ("POST", "/preupload/main", 503, "hub_unavailable"),
        ("POST", "/objects/batch", 429, "hub_unavailable"),
        ("POST", "/commit/main", 500, "hub_unavailable"),
        ("POST", "/commit/main", 403, "hub_denied"),
        ("PUT", "", 403, "hub_denied"),
    ],
)
def test_a_push_that_fails_is_a_coded_error(
    method: str, name: str, status: int, code: str, hub: FakeHub, model: ImageModel
) -> None:
    hub.fault("status", name, method=method, status=status, times=99)
    with pytest.raises(HubError) as caught:
        push_to_hub(model, REPO, token=TOKEN, endpoint=hub.url)
    assert caught.value.code == code
    assert REPO in caught.value.message
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert REPO not in hub.repos or files_at(hub, "main") == {}


def test_push_needs_a_network_and_a_name(hub: FakeHub, model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError):
        push_to_hub(model, "../mine", token=TOKEN, endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as caught:
        push_to_hub(model, REPO, token=TOKEN, endpoint=hub.url)
    assert caught.value.code == "offline"
    assert not hub.requests
