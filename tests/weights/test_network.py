"""Networks are opened without PyTorch and equal the models of `create_model`, with the same errors."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from tessella.data.spec import InputSpec
from tessella.errors import TessellaError, UsageError, WeightsError
from tessella.fingerprint import arrays_hash, identify, weights_hash
from tessella.models import ARCHITECTURES, build
from tessella.models.base import ImageModel
from tessella.models.layout import state_layout
from tessella.weights import create_model, save_pretrained
from tessella.weights.catalogue import CATALOGUE
from tessella.weights.files import read_state_dict
from tessella.weights.load import load_weights
from tessella.weights.network import Network
from tessella.weights.open import open_network
from tessella.weights.tensors import float8_values, read_tensors

from ..models.tiny import NUM_CLASSES, TINY, size_of, tiny
from .hub import FakeHub
from .test_factory import builtin as builtin
from .test_factory import edit_config, files_of, model_of
from .test_factory import folder as folder
from .test_factory import hub as hub
from .test_files import BAD, BAD_PTH, mutants, saved


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make imports of PyTorch fail, as if it was not installed."""
    monkeypatch.setitem(sys.modules, "torch", None)


def check(name: str, **options: Any) -> Network:
    """Compare a network opened by name with the model of `create_model`."""
    model_args = options.pop("model_args", {})
    model = model_of(name, True, **options, **model_args).eval()
    network = open_network(name, **options, model_args=model_args)
    assert network.module is None
    assert (network.arch, network.config, network.num_classes) == (model.arch, model.config, model.num_classes)
    assert type(network.config) is type(model.config)
    assert (network.global_pool, network.width) == (model.global_pool, model.head_hidden_size)
    assert network.pretrained_cfg == model.pretrained_cfg
    same_tensors(network.tensors, model)
    if "input_size" in network.pretrained_cfg and network.config.in_chans == 3:
        spec = InputSpec.from_cfg(network.pretrained_cfg)
        assert identify(network, spec) == identify(model, spec)
    return network


def same_tensors(tensors: Any, model: ImageModel) -> None:
    expected = model.state_dict()
    assert list(tensors) == list(expected)
    for key, value in expected.items():
        assert str(value.dtype) == f"torch.{tensors[key].dtype}"
        np.testing.assert_array_equal(tensors[key], value.numpy())
        assert isinstance(tensors[key], np.ndarray)
        assert tensors[key].flags.aligned
    assert arrays_hash(tensors) == weights_hash(model)


def shallow(arch: str) -> dict[str, Any]:
    """Return arguments with which an architecture has few blocks; all widths stay."""
    config = ARCHITECTURES[arch][1]
    if arch.startswith("crossvit"):
        return dict(depth=config.depth[:1])
    if arch.startswith("convit"):
        return dict(depth=2, local_up_to_layer=1)
    return dict(depth=1) if arch.startswith("convmixer") else dict(num_blocks=1)


def randomized(arch: str, **overrides: Any) -> ImageModel:
    model = build(arch, **overrides)
    noise = torch.Generator().manual_seed(7)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.normal_(generator=noise)
        else:
            value.fill_(123456789012)
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(arch: str, tmp_path: Path) -> None:
    model = randomized(arch, **shallow(arch))
    network = check(f"local-dir:{save_pretrained(model, tmp_path)}")
    same_tensors(network.tensors, model)
    module = network.to_module()
    assert network.to_module() is module
    assert not module.training
    assert module.arch == arch
    assert module.config == network.config
    assert module.pretrained_cfg == network.pretrained_cfg
    same_tensors(network.tensors, module)
    first = next(iter(module.state_dict().values())).numpy()
    assert not np.shares_memory(first, next(iter(network.tensors.values())))  # graphs may read the arrays


@pytest.mark.parametrize("case", TINY)
def test_a_module_of_a_network_computes_the_same(case: str, tmp_path: Path) -> None:
    model = tiny(case)
    network = check(f"local-dir:{save_pretrained(model, tmp_path)}")
    size = size_of(model)
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.to_module()(noise), model(noise))


@pytest.mark.parametrize("name", [row.name for row in CATALOGUE.values() if row.file])
def test_a_built_in_model(name: str) -> None:
    network = check(name)
    assert network.pretrained_cfg["sha256"] == CATALOGUE[name].sha256
    assert ("label_names" in network.pretrained_cfg) == (network.pretrained_cfg["num_classes"] == 10)


@pytest.mark.parametrize("case", TINY)
@pytest.mark.parametrize("change", [dict(num_classes=0), dict(in_chans=1), dict(drop_rate=0.5)])
def test_other_settings(case: str, change: dict[str, Any], tmp_path: Path) -> None:
    network = check(f"local-dir:{save_pretrained(tiny(case, **change), tmp_path)}")
    assert network.tensors.keys() == tiny(case, **change).state_dict().keys()


def test_a_checkpoint_of_a_known_architecture(tmp_path: Path) -> None:
    arch, small = TINY["gmlp"]
    path = tmp_path / "best.safetensors"
    safetensors.torch.save_file({f"module.{k}": v for k, v in tiny("gmlp").state_dict().items()}, path)
    check(arch, checkpoint_path=path, model_args=dict(**small, num_classes=NUM_CLASSES, no_jit=True, drop_rate=None))
    with pytest.raises(WeightsError) as caught:
        open_network(arch, checkpoint_path=path, model_args=dict(**small, num_classes=3))
    assert caught.value.code == "wrong_shape"


def test_a_config_of_the_caller(tmp_path: Path) -> None:
    arch, small = TINY["mixer"]
    path = tmp_path / "best.safetensors"
    safetensors.torch.save_file(tiny("mixer").state_dict(), path)
    cfg = dict(file=path, num_classes=NUM_CLASSES, input_size=(3, 32, 32), mean=(0.5,) * 3)
    check(arch, model_args=dict(**small, pretrained_cfg=cfg))
    check(arch, model_args=dict(**small, num_classes=NUM_CLASSES, pretrained_cfg_overlay=cfg))


# --- the same errors --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["convmixer", "crossvit_dagger"])
def good(request: pytest.FixtureRequest) -> tuple[ImageModel, bytes]:
    model = tiny(request.param)
    return model, safetensors.torch.save(model.state_dict(), {"format": "pt"})


def outcome(read: Any) -> tuple[str, str, str] | None:
    """Return the error of a call; None if it succeeds."""
    try:
        read()
    except WeightsError as error:
        return error.code, error.message, error.hint
    return None


def outcomes(path: Path, model: ImageModel) -> tuple[Any, Any]:
    """Return what reading a file gives without and with PyTorch."""
    layout = state_layout(model.config)
    return (
        outcome(lambda: read_tensors(path, layout, arch=model.arch)),
        outcome(lambda: load_weights(model, read_state_dict(path), source=path)),
    )


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gives_the_same_error(good: tuple[ImageModel, bytes], kind: str, tmp_path: Path) -> None:
    code, spoil = BAD[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(good[1]))
    ours, theirs = outcomes(path, good[0])
    assert ours == theirs
    assert ours[0] == code


@pytest.mark.parametrize("kind", BAD_PTH)
def test_a_bad_file_of_pytorch_is_left_to_pytorch(kind: str, tmp_path: Path) -> None:
    code, content = BAD_PTH[kind]
    path = tmp_path / "model.pth"
    path.write_bytes(content())
    ours, theirs = outcomes(path, tiny("convmixer"))
    assert theirs is not None
    assert theirs[0] == code
    assert ours in (None, theirs)


@pytest.mark.slow
def test_a_damaged_header_never_yields_wrong_tensors(tmp_path: Path) -> None:
    model = tiny("convmixer", depth=1)
    content, path = safetensors.torch.save(model.state_dict()), tmp_path / "model.safetensors"
    refused = 0
    for mutant in mutants(content, 3000):
        path.write_bytes(mutant)
        ours, theirs = outcomes(path, model)
        assert (ours and ours[0]) == (theirs and theirs[0])
        refused += ours is not None
    assert refused > 2900


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for header in (b'{"\\ud800": {"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b'{"__metadata__": {"a": 1}}'):
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
        ours, theirs = outcomes(path, tiny("mixer"))
        assert ours[0] == theirs[0] == "bad_format"


@pytest.mark.parametrize("where", ["missing.safetensors", ".", "a\0b"])
def test_a_file_that_cannot_be_opened(where: str, tmp_path: Path) -> None:
    ours, theirs = outcomes(tmp_path / where, tiny("mixer"))
    assert ours == theirs
    assert ours[0] == "weights_not_found"


def test_a_hash_that_does_not_match(tmp_path: Path) -> None:
    model = tiny("mixer")
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    ours = outcome(lambda: read_tensors(path, state_layout(model.config), sha256="ab" * 32))
    assert ours == outcome(lambda: read_state_dict(path, sha256="ab" * 32))
    assert ours is not None
    assert ours[0] == "hash_mismatch"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
def test_other_types_are_converted_as_by_pytorch(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = tiny("convmixer"), tmp_path / "m.safetensors"
    state = {key: value.to(dtype) for key, value in model.state_dict().items()}  # batch counters, too
    safetensors.torch.save_file({f"net.{key}": value for key, value in state.items()}, path)
    with caplog.at_level(logging.WARNING):
        tensors = read_tensors(path, state_layout(model.config))
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        load_weights(model, read_state_dict(path), source=path)
    assert messages == [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 + (dtype == torch.float64)
    same_tensors(tensors, model)


@pytest.mark.parametrize(("stored", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_value_of_float8(stored: str, dtype: torch.dtype) -> None:
    expected = torch.arange(256).to(torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal(float8_values(stored), expected)


@pytest.mark.parametrize("value", [float("nan"), 1e300])
@pytest.mark.parametrize("key", ["head.bias", "stem.2.num_batches_tracked"])
def test_float64_that_float32_cannot_hold(value: float, key: str, tmp_path: Path) -> None:
    model, path = tiny("convmixer"), tmp_path / "m.safetensors"
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    state[key].view(-1)[0] = value
    safetensors.torch.save_file(state, path)
    ours, theirs = outcomes(path, model)
    assert (ours and ours[0]) == (theirs and theirs[0])
    assert key != "head.bias" or ours[0] == "non_finite"


def test_large_values_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    model, path = tiny("mixer"), tmp_path / "m.safetensors"
    state = {key: torch.full_like(value, 3e38) for key, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path)
    assert read_tensors(path, state_layout(model.config)) is not None


# --- what needs PyTorch -----------------------------------------------------------------------------------------------

ADAPTED: dict[str, tuple[dict[str, Any], str]] = {
    "classes": (dict(num_classes=3), "number of classes than the checkpoint's 5"),
    "channels": (dict(in_chans=1), "number of channels than the checkpoint's 3"),
    "size": (dict(img_size=64), "image size than the checkpoint's 32x32 px"),
    "unknown classes": (dict(pretrained_cfg_overlay=dict(num_classes=-1), num_classes=5), "unknown number of classes"),
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_weights_are_adapted_by_pytorch(kind: str, tmp_path: Path) -> None:
    overrides = dict(input_size=(3, 32, 32), fixed_input_size=True)
    name = f"local-dir:{save_pretrained(tiny('mixer'), tmp_path, config_overrides=overrides)}"
    arguments = ADAPTED[kind][0]
    torch.manual_seed(0)
    network = open_network(name, model_args=arguments)
    torch.manual_seed(0)
    model = model_of(name, True, **arguments)
    assert network.module is not None
    assert not network.module.training
    assert network.pretrained_cfg == model.pretrained_cfg
    assert network.weights_hash == weights_hash(model)


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapting_weights_without_pytorch_is_refused_before_the_download(
    kind: str, folder: Path, hub: FakeHub, without_torch: None
) -> None:
    edit_config(folder, pretrained_cfg__input_size=[3, 32, 32], pretrained_cfg__fixed_input_size=True)
    hub.add("org/tiny", files_of(folder))
    arguments, text = ADAPTED[kind]
    for name in (f"local-dir:{folder}", "hf-hub:org/tiny"):
        with pytest.raises(UsageError) as caught:
            open_network(name, model_args=arguments)
        assert caught.value.code == "missing_dependency"
        assert text in caught.value.message
        assert caught.value.hint == "pip install torch"
    assert {path.rpartition("/")[2] for _, path, _ in hub.requests} == {"config.json"}


def test_a_repository_and_a_published_model_without_pytorch(
    folder: Path, hub: FakeHub, builtin: Path, monkeypatch: pytest.MonkeyPatch, without_torch: None
) -> None:
    hub.add("org/tiny", files_of(folder))
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        network = open_network("hf-hub:org/tiny")
        assert network.arch == TINY["mixer"][0]
        assert network.pretrained_cfg["hf_hub_id"] == "org/tiny"
        assert len(network.pretrained_cfg["sha256"]) == 64
    assert open_network(f"{TINY['convmixer'][0]}.mine").arch == TINY["convmixer"][0]


def test_weights_in_a_pickle_are_not_downloaded_without_pytorch(
    hub: FakeHub, folder: Path, without_torch: None
) -> None:
    files = files_of(folder)
    hub.add("org/pickle", {"config.json": files["config.json"], "pytorch_model.bin": b"never read"})
    with pytest.raises(UsageError) as caught:
        open_network("hf-hub:org/pickle")
    assert caught.value.code == "missing_dependency"
    assert "pytorch_model.bin" in caught.value.message
    assert not any(method == "GET" and path.endswith(".bin") for method, path, _ in hub.requests)
    hub.add("org/empty", {"config.json": files["config.json"]})
    with pytest.raises(TessellaError) as missing:
        open_network("hf-hub:org/empty")
    assert missing.value.code == "hub_not_found"


def test_a_file_of_pytorch_is_read_by_pytorch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(saved(tiny("mixer").state_dict()))
    network = open_network(f"local-dir:{folder}")
    assert network.module is not None
    same_tensors(network.tensors, tiny("mixer"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pytorch_model\.bin") as caught:
        open_network(f"local-dir:{folder}")
    assert caught.value.code == "missing_dependency"


def test_random_weights_are_made_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    arch, small = TINY["resmlp"]
    torch.manual_seed(3)
    network = open_network(arch, pretrained=False, model_args=small)
    torch.manual_seed(3)
    assert network.weights_hash == weights_hash(create_model(arch, **small))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError) as caught:
        open_network(arch, pretrained=False, model_args=small)
    assert caught.value.code == "missing_dependency"


@pytest.mark.usefixtures("without_torch")
def test_a_module_needs_pytorch() -> None:
    with pytest.raises(UsageError) as caught:
        open_network("convmixer_256_8_ks3_p4.cifar10").to_module()
    assert caught.value.code == "missing_dependency"


@pytest.mark.parametrize(
    ("name", "model_args", "code"),
    [
        ("resnet50", {}, "unknown_model"),
        ("mixer_b16_224.nope", {}, "unknown_tag"),
        ("gmixer_12_224", {}, "no_weights"),
        ("mixer_b16_224", dict(pretrained_cfg="nope"), "unknown_tag"),
        ("mixer_b16_224", dict(pretrained_cfg=3), "bad_argument"),
        ("mixer_b16_224", dict(pretrained_cfg_overlay="x"), "bad_argument"),
        ("mixer_b16_224", dict(pretrained_cfg_overlay={"url": "x"}), "bad_argument"),
        ("mixer_b16_224", dict(imgsize=224), "bad_argument"),
        ("local-dir:nowhere", {}, "weights_not_found"),
        ("hf-hub:a/../b", {}, "bad_argument"),
        ("hf-hub:", {}, "bad_argument"),
    ],
)
def test_the_errors_for_wrong_arguments(name: str, model_args: dict[str, Any], code: str) -> None:
    errors = []
    for call in (lambda: open_network(name, model_args=model_args), lambda: create_model(name, True, **model_args)):
        with pytest.raises(TessellaError) as caught:
            call()
        errors.append((caught.value.code, caught.value.message))
    assert errors[0] == errors[1]
    assert errors[0][0] == code


def test_wrong_arguments_are_found_before_the_download() -> None:
    """The published weights are not in the cache, and offline mode is on."""
    with pytest.raises(UsageError) as caught:
        open_network("mixer_b16_224", model_args=dict(img_size=100))
    assert caught.value.code == "bad_argument"


def test_pytorch_is_not_imported() -> None:
    program = (
        "import sys; from tessella.weights.open import open_network\n"
        "network = open_network('convmixer_256_8_ks3_p4.cifar10')\n"
        "assert len(network.weights_hash) == 64; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
