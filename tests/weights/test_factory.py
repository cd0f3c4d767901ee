"""`create_model`: names, configs and sources of weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from torch import nn

from tessella.errors import HubError, UsageError, WeightsError
from tessella.models.base import ImageModel
from tessella.models.configs import CONFIGS
from tessella.models.features import FeatureExtractor
from tessella.weights import catalogue, create_model, factory, save_pretrained, sources
from tessella.weights.catalogue import CATALOGUE
from tessella.weights.fetch import fetch_config, fetch_model

from ..models.tiny import NUM_CLASSES, TINY, images, size_of, tiny
from .hub import FakeHub, online
from .test_files import legacy, state_hash

BUILTIN = CATALOGUE["convmixer_768_32.in1k"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(tiny("mixer"), tmp_path / "saved")


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        section, _, key = name.rpartition("__")
        (config[section] if section else config)[key] = value
    path.write_text(json.dumps(config))


def model_of(*args: Any, **kwargs: Any) -> ImageModel:
    model = create_model(*args, **kwargs)
    assert isinstance(model, ImageModel)
    return model


# --- names ---


@pytest.mark.parametrize("name", ["mixer_s16_224", "gmixer_12_224.untrained", "crossvit_tiny_240.in1k"])
def test_a_model_by_name(name: str) -> None:
    model = model_of(name)
    arch, row = catalogue.resolve(name)
    assert row is not None
    assert model.arch == model.pretrained_cfg["architecture"] == arch
    assert model.pretrained_cfg["tag"] == row.tag
    assert model.pretrained_cfg["mean"] == row.mean
    assert model.pretrained_cfg["input_size"] == row.input_size
    assert model.training
    assert model.num_classes == 1000
    assert "sha256" not in model.pretrained_cfg


def test_an_architecture_of_this_project_by_name() -> None:
    assert model_of("convmixer_256_8_ks3_p4").num_classes == 10


def test_a_tag_determines_the_number_of_classes() -> None:
    arch, small = TINY["mixer"]
    assert model_of("mixer_b16_224.miil_in21k", num_blocks=1, embed_dim=8).num_classes == 11221
    by_tag = model_of("mixer_b16_224", pretrained_cfg="goog_in21k", num_blocks=1, embed_dim=8)
    assert by_tag.num_classes == 21843
    by_row = model_of("mixer_b16_224", pretrained_cfg=CATALOGUE["mixer_b16_224.miil_in21k"], num_blocks=1, embed_dim=8)
    assert by_row.pretrained_cfg["interpolation"] == "bilinear"
    assert model_of(arch, **small, pretrained_cfg={"num_classes": 3}).num_classes == 3


def test_arguments_that_are_none_count_as_not_given() -> None:
    arch, small = TINY["convmixer"]
    model = model_of(arch, **small, num_classes=None, scriptable=None, exportable=None, no_jit=None, drop_rate=None)
    assert model.num_classes == 1000


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (dict(model_name="resnet50"), "unknown_model"),
        (dict(model_name="mixer_b16_224.nope"), "unknown_tag"),
        (dict(model_name="mixer_b16_224", pretrained_cfg="nope"), "unknown_tag"),
        (dict(model_name="timm/mixer_b16_224"), "bad_argument"),
        (dict(model_name="hf:timm/mixer_b16_224"), "bad_argument"),
        (dict(model_name="hf-hub:"), "bad_argument"),
        (dict(model_name="local-dir:"), "bad_argument"),
        (dict(model_name="local-dir:x", pretrained_cfg="tag"), "bad_argument"),
        (dict(model_name="hf-hub:a/../b"), "bad_argument"),
        (dict(model_name="gmixer_12_224", pretrained=True), "no_weights"),
        (dict(model_name="mixer_s16_224.untrained", pretrained=True), "no_weights"),
        (dict(model_name="convmixer_768_32", img_size=224), "bad_argument"),
        (dict(model_name="convmixer_768_32", out_indices=(1,)), "bad_argument"),
        (dict(model_name="mixer_s16_224", img_size=100), "bad_argument"),
        (dict(model_name="mixer_s16_224", pretrained_cfg={"mean": "grey"}), "bad_argument"),
        (dict(model_name="mixer_s16_224", pretrained_cfg_overlay={"url": "https://a/b.pth"}), "bad_argument"),
    ],
)
def test_unsupported_requests_are_usage_errors(call: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as error:
        create_model(**call)
    assert error.value.code == code


# --- folders ---


@pytest.mark.parametrize("case", TINY)
def test_a_saved_model_is_loaded_and_adapted(case: str, tmp_path: Path) -> None:
    source = tiny(case)
    name = f"local-dir:{save_pretrained(source, tmp_path)}"
    again = model_of(name, pretrained=True)
    assert state_hash(again) == state_hash(source)
    assert torch.equal(again.eval()(images(source)), source(images(source)))
    assert state_hash(model_of(name)) != state_hash(source)

    other = model_of(name, pretrained=True, num_classes=3, in_chans=1)
    assert other.eval()(images(other)).shape == (2, 3)
    assert other.pretrained_cfg["input_size"][0] == 1
    if not case.startswith("convmixer"):
        large = model_of(name, pretrained=True, img_size=[2 * side for side in size_of(source)])
        assert large.eval()(images(large)).shape == (2, NUM_CLASSES)
        assert large.pretrained_cfg["input_size"] == (3, *size_of(large))


def test_a_head_that_is_not_loaded_is_initialized_as_usual(folder: Path) -> None:
    for _ in range(3):  # uninitialized memory would differ sometimes
        head = model_of(f"local-dir:{folder}", pretrained=True, num_classes=3).get_classifier()
        assert isinstance(head, nn.Linear)
        assert not head.weight.any()
        assert not head.bias.any()


@pytest.mark.parametrize("case", TINY)
def test_no_parameter_remains_on_the_meta_device(case: str, tmp_path: Path) -> None:
    model = model_of(f"local-dir:{save_pretrained(tiny(case), tmp_path)}", pretrained=True)
    fresh = tiny(case)
    for ours, theirs in zip(
        [*model.named_parameters(), *model.named_buffers()],
        [*fresh.named_parameters(), *fresh.named_buffers()],
        strict=True,
    ):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
        assert ours[1].requires_grad == theirs[1].requires_grad


def test_building_elsewhere_is_not_affected_by_loading() -> None:
    with factory._SkipInitialization():
        layer = nn.Linear(2, 2)
    assert layer.weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


def test_labels_are_kept_unless_the_classes_changed(tmp_path: Path) -> None:
    names = ("cat", "dog", "emu", "fox", "gnu")
    folder = save_pretrained(tiny("mixer"), tmp_path, config_overrides={"label_names": names})
    assert model_of(f"local-dir:{folder}").pretrained_cfg["label_names"] == names
    assert "label_names" not in model_of(f"local-dir:{folder}", num_classes=3).pretrained_cfg


def test_sparse_labels_are_filled_with_numbers(folder: Path) -> None:
    edit_config(folder, label_names={"0": "cat", "3": "dog"})
    assert model_of(f"local-dir:{folder}").pretrained_cfg["label_names"] == ("cat", "1", "2", "dog", "4")


def test_the_older_flat_config_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_args"].pop("num_classes")
    flat = {"architecture": config["architecture"], "model_args": config["model_args"], **config["pretrained_cfg"]}
    (folder / "config.json").write_text(json.dumps({**flat, "labels": list("abcde")}))
    model = model_of(f"local-dir:{folder}", pretrained=True)
    assert state_hash(model) == state_hash(tiny("mixer"))
    assert model.pretrained_cfg["label_names"] == tuple("abcde")


def test_a_config_as_timm_writes_it_is_read(tmp_path: Path) -> None:
    text = """{"architecture": "crossvit_9_240", "num_classes": 4, "num_features": 384, "global_pool": "avg",
     "model_args": {"in_chans": 1, "num_classes": 4, "global_pool": "avg", "img_size": [120, 240]},
     "pretrained_cfg": {"tag": "in1k", "custom_load": false, "input_size": [3, 240, 240], "fixed_input_size": true,
       "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
       "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000, "pool_size": null,
       "first_conv": ["patch_embed.0.proj", "patch_embed.1.proj"], "classifier": ["head.0", "head.1"],
       "license": "apache-2.0", "paper_ids": "arXiv:2103.14899", "url": "https://example.com/a.pth"}}"""
    (tmp_path / "config.json").write_text(text)
    model = model_of(f"local-dir:{tmp_path}")
    assert model.num_classes == model.pretrained_cfg["num_classes"] == 4
    assert model.global_pool == "avg"
    assert model.pretrained_cfg["input_size"] == (1, 120, 240)
    assert "url" not in model.pretrained_cfg


def test_explicit_arguments_override_those_of_the_folder(folder: Path) -> None:
    assert model_of(f"local-dir:{folder}", num_blocks=1).config.num_blocks == 1


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "unknown architecture": dict(architecture="resnet50"),
    "an import path": dict(architecture="os:system"),
    "no architecture": dict(architecture=None),
    "classes as text": dict(num_classes="5"),
    "negative classes": dict(num_classes=-5),
    "classes that disagree": dict(num_classes=6),
    "too few labels": dict(label_names=["a"]),
    "labels that are numbers": dict(label_names=[1, 2, 3, 4, 5]),
    "a label of no class": dict(label_names={"5": "a"}),
    "a label index that is text": dict(label_names={"first": "a"}),
    "config that is a list": dict(pretrained_cfg=[1]),
    "arguments that are a list": dict(model_args=[1]),
    "unknown argument": dict(model_args__hidden=3),
    "argument as text": dict(model_args__embed_dim="wide"),
    "negative argument": dict(model_args__embed_dim=-8),
    "argument as list": dict(model_args__num_blocks=[1]),
    "size the patches do not divide": dict(model_args__img_size=33),
    "unknown pool": dict(model_args__global_pool="mean"),
    "mean of two": dict(pretrained_cfg__mean=[0.5, 0.5]),
    "mean and std of other lengths": dict(pretrained_cfg__mean=[0.5]),
    "mean of NaN": dict(pretrained_cfg__mean=[float("nan")] * 3),
    "std of zero": dict(pretrained_cfg__std=[0.5, 0.0, 0.5]),
    "input size of two": dict(pretrained_cfg__input_size=[32, 32]),
    "input size as text": dict(pretrained_cfg__input_size="3x32x32"),
    "crop of zero": dict(pretrained_cfg__crop_pct=0),
    "crop mode": dict(pretrained_cfg__crop_mode="middle"),
    "interpolation": dict(pretrained_cfg__interpolation=3),
    "fixed size as number": dict(pretrained_cfg__fixed_input_size=1),
    "hash as number": dict(weights_sha256=5),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_bad_config_is_refused_by_field(kind: str, folder: Path) -> None:
    edit_config(folder, **BAD_CONFIGS[kind])
    with pytest.raises(WeightsError) as error:
        create_model(f"local-dir:{folder}", pretrained=True)
    assert error.value.code == "bad_config"
    assert "config.json" in error.value.message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 9999]
)
def test_a_config_that_is_not_a_json_object_is_refused(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(WeightsError) as error:
        create_model(f"local-dir:{folder}")
    assert error.value.code == "bad_config"


def test_a_folder_without_its_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert model_of(f"local-dir:{folder}").num_classes == NUM_CLASSES
    for missing, code in (("config.json", "weights_not_found"), ("", "bad_config")):
        with pytest.raises(WeightsError) as error:
            create_model(f"local-dir:{folder}", pretrained=True)
        assert error.value.code == code
        (folder / missing).unlink() if missing else None
    with pytest.raises(WeightsError) as error:
        create_model(f"local-dir:{folder / 'nowhere'}")
    assert error.value.code == "weights_not_found"


def test_a_changed_bit_in_a_saved_folder_is_detected(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        create_model(f"local-dir:{folder}", pretrained=True)
    assert error.value.code == "hash_mismatch"


def test_a_pickle_in_a_folder_is_read_only_without_safetensors(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    model_of(f"local-dir:{folder}", pretrained=True)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(legacy(tiny("mixer").state_dict()))
    assert state_hash(model_of(f"local-dir:{folder}", pretrained=True)) == state_hash(tiny("mixer"))


# --- files, built-in checkpoints ---


def test_a_checkpoint_path_is_loaded_strictly(tmp_path: Path) -> None:
    arch, small = TINY["gmlp"]
    path = tmp_path / "best.safetensors"
    safetensors.torch.save_file(tiny("gmlp").state_dict(), path)
    for pretrained in (False, True):  # True: no request to the Hub
        model = model_of(arch, pretrained=pretrained, checkpoint_path=path, **small, num_classes=NUM_CLASSES)
        assert state_hash(model) == state_hash(tiny("gmlp"))
    with pytest.raises(WeightsError) as error:
        create_model(arch, checkpoint_path=path, **small, num_classes=3)
    assert error.value.code == "wrong_shape"


def test_an_overlay_adapts_a_local_file(tmp_path: Path) -> None:
    arch, small = TINY["gmlp"]
    path = tmp_path / "best.safetensors"
    safetensors.torch.save_file(tiny("gmlp").state_dict(), path)
    overlay = dict(file=path, num_classes=-1, input_size=(3, 32, 32))
    model = model_of(arch, pretrained=True, pretrained_cfg_overlay=overlay, **small, num_classes=3, in_chans=1)
    assert torch.equal(model.state_dict()["norm.weight"], tiny("gmlp").state_dict()["norm.weight"])


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a built-in checkpoint of a small model under a name of its own."""
    arch, small = TINY["convmixer"]
    monkeypatch.setitem(CONFIGS, arch, dataclasses.replace(CONFIGS[arch], **small))
    path = tmp_path / "mine.safetensors"
    sha256 = save_and_hash(path)
    row = dataclasses.replace(
        BUILTIN, architecture=arch, tag="mine", num_classes=NUM_CLASSES, hf_hub_id=None, file=path.name, sha256=sha256
    )
    monkeypatch.setattr(sources, "BUILTIN_FOLDER", tmp_path)
    monkeypatch.setitem(CATALOGUE, row.name, row)
    return path


def save_and_hash(path: Path) -> str:
    safetensors.torch.save_file(tiny("convmixer").state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_built_in_checkpoint_needs_no_network(builtin: Path) -> None:
    name = f"{TINY['convmixer'][0]}.mine"
    model = model_of(name, pretrained=True)
    assert state_hash(model) == state_hash(tiny("convmixer"))
    assert model.pretrained_cfg["sha256"] == CATALOGUE[name].sha256
    assert "file" not in model.pretrained_cfg
    assert name in catalogue.list_pretrained()


def test_a_damaged_built_in_checkpoint_is_refused(builtin: Path) -> None:
    content = bytearray(builtin.read_bytes())
    content[-1] ^= 1
    builtin.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        create_model(f"{TINY['convmixer'][0]}.mine", pretrained=True)
    assert error.value.code == "hash_mismatch"


# --- the created model ---


def test_features_only(folder: Path) -> None:
    net = create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(0, 1))
    assert isinstance(net, FeatureExtractor)
    assert [tuple(y.shape) for y in net(images(tiny("mixer")))] == [(2, 16, 4, 4)] * 2
    assert net.feature_info.channels() == [16, 16]


def test_device_and_precision(folder: Path) -> None:
    model = create_model(f"local-dir:{folder}", pretrained=True, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in create_model("mixer_s32_224", device="meta").parameters()} == {"meta"}


# --- the Hub ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Use a hub on loopback instead of the real one."""
    online(monkeypatch, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub() as hub:
        for fetch in (fetch_config, fetch_model):
            monkeypatch.setattr(sources, fetch.__name__, functools.partial(fetch, endpoint=hub.url))
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_hub_repository_by_name_and_revision(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    commit = hub.add("org/tiny", files_of(folder))
    hub.add("org/tiny", files_of(save_pretrained(tiny("convit"), tmp_path / "convit")))
    assert model_of("hf-hub:org/tiny", pretrained=True).arch == TINY["convit"][0]
    old = model_of(f"hf_hub:org/tiny@{commit}", pretrained=True, num_classes=2)
    assert old.arch == TINY["mixer"][0]
    assert old.num_classes == 2
    assert old.pretrained_cfg["hf_hub_id"] == f"org/tiny@{commit}"
    with pytest.raises(HubError) as error:
        create_model("hf-hub:org/tiny@nowhere")
    assert error.value.code == "hub_not_found"


def test_an_untrained_model_downloads_no_weights(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", files_of(folder))
    weights = folder / "model.safetensors"
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert model_of("hf-hub:org/tiny").arch == TINY["mixer"][0]
        trained = model_of("hf-hub:org/tiny", pretrained=True, checkpoint_path=weights)
        assert state_hash(trained) == state_hash(tiny("mixer"))
        assert trained.pretrained_cfg["hf_hub_id"] == "org/tiny"
        assert "sha256" not in trained.pretrained_cfg
        assert {path.rpartition("/")[2] for _, path, _ in hub.requests} == {"config.json"}
    with pytest.raises(HubError) as error:
        create_model("hf-hub:org/other")
    assert error.value.code == "offline"


def test_a_published_checkpoint_is_loaded_from_its_repository(
    hub: FakeHub, builtin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{TINY['convmixer'][0]}.mine"
    row = dataclasses.replace(CATALOGUE[name], file=None, sha256=None, hf_hub_id=f"timm/{name}")
    monkeypatch.setitem(CATALOGUE, name, row)
    hub.add(f"timm/{name}", {"model.safetensors": builtin.read_bytes()})
    model = model_of(name, pretrained=True)
    assert state_hash(model) == state_hash(tiny("convmixer"))
    assert len(model.pretrained_cfg["sha256"]) == 64
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert state_hash(model_of(name, pretrained=True)) == state_hash(model)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize(("at", "code"), [(-1, "hash_mismatch"), (7, "bad_format")])
def test_a_cached_file_that_was_altered_is_refused(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, at: int, code: str
) -> None:
    """The client always returns the same file, so the hint states which file to delete; then loading succeeds."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    hub.add("org/tiny", files_of(folder))
    good = state_hash(model_of("hf-hub:org/tiny", pretrained=True))
    (cached,) = (tmp_path / "cache").rglob("model.safetensors")
    assert cached.is_symlink() == links
    rotten = cached.resolve()
    content = bytearray(rotten.read_bytes())
    content[at] ^= 1
    rotten.write_bytes(content)
    for _ in range(2):
        with pytest.raises(WeightsError) as error:
            create_model("hf-hub:org/tiny", pretrained=True)
        assert error.value.code == code
        assert f"delete {rotten} " in error.value.hint
    rotten.unlink()
    assert state_hash(model_of("hf-hub:org/tiny", pretrained=True)) == good


def test_a_repository_without_a_config_is_refused(hub: FakeHub, folder: Path) -> None:
    hub.add("org/bare", {"model.safetensors": (folder / "model.safetensors").read_bytes()})
    with pytest.raises(WeightsError) as error:
        create_model("hf-hub:org/bare", pretrained=True)
    assert error.value.code == "bad_config"


def test_a_folder_without_a_config_is_refused_with_what_to_give(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="so it is not the folder of a model") as error:
        create_model(f"local-dir:{folder}", pretrained=True)
    assert error.value.code == "bad_config"
    assert "`tessella train`" in error.value.hint
