"""Checkpoints written by other programs: prefixes, containers, objects other than tensors, unusual data types."""

from __future__ import annotations

import datetime
import io
import pathlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tessella.errors import UsageError, WeightsError
from tessella.weights import create_model
from tessella.weights.convert import convert
from tessella.weights.files import read_state_dict
from tessella.weights.load import load_weights

from ..models.tiny import TINY, tiny
from .test_files import legacy, saved, state_hash

ARCH, SMALL = TINY["mixer"]
PACKS: dict[str, Callable[[object], bytes]] = {"zip": saved, "legacy": legacy}


def good_state() -> dict[str, Tensor]:
    return dict(tiny("mixer").state_dict())


def loaded(path: Path) -> str:
    return state_hash(create_model(ARCH, checkpoint_path=path, num_classes=5, **SMALL))


EXPECTED = state_hash(tiny("mixer"))


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "student.backbone.", "module.model.", "anything."])
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
def test_a_prefix_of_all_keys_is_removed_and_logged(
    prefix: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"m.{suffix}"
    state = {prefix + key: value for key, value in good_state().items()}
    path.write_bytes(safetensors.torch.save(state) if suffix == "safetensors" else saved(state))
    assert loaded(path) == EXPECTED
    assert repr(prefix.removeprefix("module.")) in caplog.text


@pytest.mark.parametrize("case", TINY)
def test_no_family_mistakes_its_own_keys_for_a_prefix(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(case)
    load_weights(model, dict(model.state_dict()))
    assert not caplog.records
    load_weights(model, {f"net.{key}": value for key, value in model.state_dict().items()})
    assert state_hash(model) == state_hash(tiny(case))


def test_a_prefix_that_only_some_keys_have_is_not_removed() -> None:
    state = {f"model.{key}": value for key, value in good_state().items()}
    state["norm.weight"] = state.pop("model.norm.weight")
    with pytest.raises(WeightsError) as error:
        load_weights(tiny("mixer"), state)
    assert error.value.code == "wrong_keys"


def test_convert_removes_a_prefix_too(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(saved({f"net.{key}": value for key, value in good_state().items()}))
    converted = convert(path, ARCH, tmp_path / "out", **SMALL)
    assert loaded(converted.folder / "model.safetensors") == EXPECTED


CONTAINERS = [
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "backbone", "weights"),
    *("params", "model_ema", "state_dict_ema", "ema_state_dict", "checkpoint"),
]


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("container", [*CONTAINERS, "checkpoint.state_dict", "trainer.model.module"])
def test_weights_are_found_inside_a_container(container: str, pack: str, tmp_path: Path) -> None:
    checkpoint: Any = OrderedDict(good_state())
    for name in reversed(container.split(".")):
        checkpoint = {"epoch": 3, name: checkpoint, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}}
    (tmp_path / "m.pt").write_bytes(PACKS[pack](checkpoint))
    assert loaded(tmp_path / "m.pt") == EXPECTED


def test_a_container_with_another_name_is_used_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved({"mixer_weights": good_state(), "loss": 0.1, "args": {"lr": 1.0}}))
    assert loaded(path) == EXPECTED
    assert "mixer_weights" in caplog.text


def test_weights_are_found_if_there_are_no_averaged_ones(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(saved({"state_dict_ema": None, "model_ema": {}, "state_dict": good_state()}))
    assert loaded(tmp_path / "m.pt") == EXPECTED


def test_use_ema_selects_between_two_state_dicts(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved({"state_dict_ema": {"a": torch.ones(1)}, "state_dict": {"a": torch.zeros(1)}}))
    assert read_state_dict(path)["a"] == 1
    assert read_state_dict(path, use_ema=False)["a"] == 0


def test_a_file_with_two_models_is_refused_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(saved({"generator": good_state(), "critic": good_state()}))
    with pytest.raises(WeightsError, match=r"'generator', 'critic'") as error:
        read_state_dict(tmp_path / "m.pt")
    assert error.value.code == "not_weights"


BESIDE: dict[str, Any] = {
    "a count": 3,
    "text": "resnet",
    "nothing": None,
    "a list": [1, 2, {"a": 1}],
    "NumPy scalar": np.float64(0.5),
    "NumPy integer": np.int64(3),
    "NumPy array": np.arange(3.0),
    "NumPy type": np.dtype("float32"),
    "a path": pathlib.PurePosixPath("/a/b"),
    "a local path": Path("/a/b"),
    "a Windows path": pathlib.PureWindowsPath("C:/a"),
    "a time": datetime.datetime(2026, 1, 1),
    "a duration": datetime.timedelta(1),
    "a set": frozenset({1}),
    "a range": range(3),
    "a counting dict": defaultdict(int, a=1),
    "lists by name": defaultdict(list, a=[1]),
    "a version": torch.torch_version.TorchVersion("2.0.0"),
    "complex": 1j,
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_objects_other_than_tensors_are_ignored(
    kind: str, pack: str, where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thing = BESIDE[kind]
    checkpoint = {**good_state(), "thing": thing} if where == "inside" else {"state_dict": good_state(), "thing": thing}
    (tmp_path / "m.pth").write_bytes(PACKS[pack](checkpoint))
    assert loaded(tmp_path / "m.pth") == EXPECTED
    assert (where == "inside") == ("thing (" in caplog.text)


class Settings:
    """A class of a training script that a checkpoint contains."""

    def __init__(self) -> None:
        self.lr = 0.1

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("code of the pickle has run")


@pytest.mark.parametrize("pack", PACKS)
def test_a_refused_object_is_reported_with_its_key_and_type(pack: str, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(PACKS[pack]({"state_dict": good_state(), "args": {"nested": [Settings()]}}))
    with pytest.raises(WeightsError) as error:
        read_state_dict(tmp_path / "m.pth")
    assert error.value.code == "unsafe_format"
    assert f"args.nested.0 ({Settings.__module__}.Settings)" in error.value.message


@pytest.mark.parametrize("pack", PACKS)
def test_a_pickled_module_is_refused_by_name(pack: str, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(PACKS[pack](torch.nn.Linear(2, 2)))
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear") as error:
        read_state_dict(tmp_path / "m.pth")
    assert error.value.code == "unsafe_format"
    assert "state_dict()" in error.value.hint


# --- number types and shapes ---


SMALL_FLOATS = [getattr(torch, name) for name in sorted(vars(torch)) if name.startswith(("float8_", "float4_"))]


@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=str)
def test_float8_is_converted_to_float32_or_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([64, 63], dtype=torch.uint8).view(dtype)
    (tmp_path / "m.pth").write_bytes(saved({"a": values}))
    if "float4" in str(dtype):
        with pytest.raises(WeightsError, match=str(dtype)) as error:
            read_state_dict(tmp_path / "m.pth")
        assert error.value.code == "wrong_dtype"
        return
    read = read_state_dict(tmp_path / "m.pth")["a"]
    assert read.dtype == torch.float32
    assert torch.equal(read, values.to(torch.float32))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64],
    ids=str,
)
def test_floating_point_types_are_converted_to_the_models(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = {key: value.to(dtype) for key, value in good_state().items()}
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(safetensors.torch.save(state) if suffix == "safetensors" else saved(state))
    model = create_model(ARCH, checkpoint_path=path, num_classes=5, **SMALL)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].to(torch.float32)), key


ODD_DTYPES = [torch.int64, torch.int8, torch.bool, torch.uint16, torch.uint64, torch.complex64]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("dtype", ODD_DTYPES, ids=str)
def test_other_types_are_refused_by_name(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = good_state()
    state["norm.weight"] = torch.ones(16).to(dtype)
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(safetensors.torch.save(state) if suffix == "safetensors" else saved(state))
    with pytest.raises(WeightsError) as error:
        loaded(path)
    assert error.value.code in ("wrong_dtype", "bad_format")
    assert "norm.weight" in error.value.message


ODD_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "0-d": lambda _: torch.tensor(1.0),
    "empty": lambda _: torch.empty(0),
    "empty in one axis": lambda t: torch.empty((0, *t.shape[1:])),
    "one axis more": lambda t: t[None],
    "many axes": lambda _: torch.ones([1] * 20),
    "infinite": lambda t: torch.full(t.shape, float("inf")),
    "huge": lambda t: torch.full(t.shape, 3e39, dtype=torch.float64),
    "repeated without memory": lambda t: torch.ones(()).expand(t.shape),
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
@pytest.mark.parametrize("case", ["convmixer", "resmlp", "crossvit_dagger"])
def test_unusual_tensors_are_coded_errors(case: str, kind: str, tmp_path: Path) -> None:
    """`convert` also removes it, before it renames and reshapes."""
    model = tiny(case)
    before = state_hash(model)
    arch, small = TINY[case]
    path = tmp_path / "m.pth"
    for key, value in model.state_dict().items():
        if key.startswith("blocks.1"):
            continue
        path.write_bytes(saved({**model.state_dict(), key: ODD_TENSORS[kind](value)}))
        try:
            load_weights(model, read_state_dict(path))
        except WeightsError:
            assert state_hash(model) == before
        else:
            assert kind in ("float8", "repeated without memory") or value.ndim == 0
            load_weights(model, tiny(case).state_dict())
    for key in list(model.state_dict())[-2:]:
        path.write_bytes(saved({**model.state_dict(), key: ODD_TENSORS[kind](model.state_dict()[key])}))
        if kind not in ("float8", "repeated without memory"):
            with pytest.raises((WeightsError, UsageError)):
                convert(path, arch, tmp_path / "out", **small)


def test_a_path_with_a_null_character_is_a_coded_error() -> None:
    with pytest.raises(WeightsError) as error:
        read_state_dict("a\0b.pth")
    assert error.value.code == "weights_not_found"


def test_the_format_follows_from_the_content_not_the_suffix(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(good_state(), buffer)
    (tmp_path / "last.ckpt").write_bytes(buffer.getvalue())
    assert loaded(tmp_path / "last.ckpt") == EXPECTED
