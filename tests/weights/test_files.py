"""Bad weight files of all kinds, for every family: the exact code, and an unchanged model."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tessella.errors import WeightsError
from tessella.models.base import ImageModel
from tessella.weights.files import MAX_HEADER, find_weights, read_state_dict
from tessella.weights.load import load_weights

from ..models.tiny import TINY, tiny

State = dict[str, Tensor]


def state_hash(model: ImageModel) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def with_header(good: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the same data with a header that `edit` changed in place or replaced."""
    end = 8 + int.from_bytes(good[:8], "little")
    header = json.loads(good[8:end])
    header.pop("__metadata__", None)
    edited = edit(header)
    raw = edited if isinstance(edited, bytes) else json.dumps(header if edited is None else edited).encode()
    return len(raw).to_bytes(8, "little") + raw + good[end:]


def edit_entry(**fields: Any) -> Callable[[bytes], bytes]:
    """Change fields of the first tensor; functions are called with the old value."""

    def change(header: dict[str, Any]) -> None:
        entry = next(iter(header.values()))
        for key, value in fields.items():
            entry[key] = value(entry[key]) if callable(value) else value

    return lambda good: with_header(good, change)


def edit_state(change: Callable[[State], object]) -> Callable[[bytes], bytes]:
    def rewrite(good: bytes) -> bytes:
        state = safetensors.torch.load(good)
        change(state)
        return safetensors.torch.save(state)

    return rewrite


def first_weight(state: State) -> str:
    return next(name for name in sorted(state) if name.endswith("weight"))


def poison(value: float) -> Callable[[State], None]:
    return lambda state: state[first_weight(state)].view(-1)[-1:].fill_(value)  # type: ignore[return-value]


def flip_a_bit(good: bytes) -> bytes:
    return good[:-1] + bytes([good[-1] ^ 1])


def duplicate_key(header: dict[str, Any]) -> bytes:
    raw = json.dumps(header)
    first = json.dumps({name: header[name] for name in [next(iter(header))]})
    return (first[:-1] + "," + raw[1:]).encode()


def zip_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def legacy(value: object) -> bytes:
    """Return a file in the format before torch 1.6: pickles followed by raw data."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tar_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model.safetensors")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def cut_header(good: bytes) -> bytes:
    return good[: 8 + int.from_bytes(good[:8], "little") // 2]


def shift(by: int) -> Callable[[list[int]], list[int]]:
    return lambda offsets: [offsets[0] + by, offsets[1] + by]


def bump(shape: list[int]) -> list[int]:
    return [*shape, 2] if shape else [2]


BAD: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": ("truncated", lambda good: b""),
    "seven bytes": ("truncated", lambda good: good[:7]),
    "the length only": ("truncated", lambda good: good[:8]),
    "cut inside the header": ("truncated", cut_header),
    "last byte missing": ("truncated", lambda good: good[:-1]),
    "half a file": ("truncated", lambda good: good[: (len(good) + 8 + int.from_bytes(good[:8], "little")) // 2]),
    "one extra byte": ("truncated", lambda good: good + b"\0"),
    "header of 2^63": ("bad_format", lambda good: (2**63).to_bytes(8, "little") + good[8:]),
    "header of 100 MB + 1": ("bad_format", lambda good: (100 * 2**20 + 1).to_bytes(8, "little") + good[8:]),
    "header over our limit": ("bad_format", lambda good: (MAX_HEADER + 1).to_bytes(8, "little") + good[8:]),
    "overlap": ("bad_format", edit_entry(data_offsets=shift(-4))),
    "hole": ("bad_format", edit_entry(data_offsets=shift(4))),
    "offsets reversed": ("bad_format", edit_entry(data_offsets=lambda old: old[::-1])),
    "offsets that are fractions": ("bad_format", edit_entry(data_offsets=[0.0, 4.0])),
    "three offsets": ("bad_format", edit_entry(data_offsets=[0, 4, 8])),
    "duplicate key": ("bad_format", lambda good: with_header(good, duplicate_key)),
    "shape overflow": ("bad_format", edit_entry(shape=[2**40, 2**40])),
    "shape of many numbers": ("bad_format", edit_entry(shape=[2**60] * 10_000)),
    "negative dimension": ("bad_format", edit_entry(shape=[-1, 4])),
    "shape that is no list": ("bad_format", edit_entry(shape=4)),
    "shape of truth values": ("bad_format", edit_entry(shape=[True])),
    "unknown dtype": ("bad_format", edit_entry(dtype="F7")),
    "dtype that is a list": ("bad_format", edit_entry(dtype=["F32"])),
    "entry that is a number": ("bad_format", lambda good: with_header(good, lambda h: {**h, "x": 1})),
    "no tensors": ("bad_format", lambda good: with_header(good, lambda h: {})),
    "header not JSON": ("bad_format", lambda good: with_header(good, lambda h: b"{" * 50)),
    "header not UTF-8": ("bad_format", lambda good: with_header(good, lambda h: b'{"\xff\xfe": 1}')),
    "header nested deeply": ("bad_format", lambda good: with_header(good, lambda h: b'{"a":' * 100_000)),
    "header with a huge number": ("bad_format", lambda good: with_header(good, lambda h: b'{"a":' + b"9" * 9999)),
    "random bytes": ("bad_format", lambda good: random.Random(0).randbytes(1000)),
    "pickle": ("unsafe_format", lambda good: pickle.dumps({"a": [1.0] * 10}, protocol=4)),
    "PyTorch zip": ("unsafe_format", lambda good: saved(safetensors.torch.load(good))),
    "PyTorch legacy": ("unsafe_format", lambda good: legacy(safetensors.torch.load(good))),
    "HTML 404 page": ("not_weights", lambda good: b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "HTML in capitals": ("not_weights", lambda good: b"<HTML><BODY>Forbidden</BODY></HTML>"),
    "JSON error": ("not_weights", lambda good: b'{"error": "Repository not found"}'),
    "git-LFS pointer": (
        "not_weights",
        lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
    ),
    "zip without torch": ("not_weights", lambda good: zip_of(config=b"{}", weights=b"\0" * 100)),
    "Keras archive": ("not_weights", lambda good: zip_of(**{"config.json": b"{}", "model.weights.h5": b"\x89HDF"})),
    "npz": ("not_weights", lambda good: npz()),
    "npy": ("not_weights", lambda good: b"\x93NUMPY\x01\x00" + b"\0" * 100),
    "HDF5": ("not_weights", lambda good: b"\x89HDF\r\n\x1a\n" + b"\0" * 100),
    "gzip": ("not_weights", gzip.compress),
    "tar": ("not_weights", tar_of),
    "NaN": ("non_finite", edit_state(poison(float("nan")))),
    "infinity": ("non_finite", edit_state(poison(float("inf")))),
    "minus infinity": ("non_finite", edit_state(poison(float("-inf")))),
    "missing tensor": ("wrong_keys", edit_state(lambda state: state.pop(first_weight(state)))),
    "extra tensor": ("wrong_keys", edit_state(lambda state: state.update(extra=torch.zeros(3)))),
    "renamed tensor": ("wrong_keys", edit_state(lambda state: state.update(x=state.pop(first_weight(state))))),
    "wrong shape": ("wrong_shape", edit_state(lambda s: s.update({first_weight(s): s[first_weight(s)][None].clone()}))),
    "wrong length": ("wrong_shape", edit_state(lambda s: s.update({first_weight(s): s[first_weight(s)][1:].clone()}))),
    "wrong dtype": ("wrong_dtype", edit_state(lambda s: s.update({first_weight(s): s[first_weight(s)].int()}))),
}


@pytest.fixture(scope="module", params=TINY)
def family(request: pytest.FixtureRequest) -> tuple[ImageModel, bytes, str]:
    """Return a model, a valid file for it, and the hash of its state."""
    model = tiny(request.param)
    return model, safetensors.torch.save(model.state_dict(), {"format": "pt"}), state_hash(model)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_with_its_code(family: tuple[ImageModel, bytes, str], kind: str, tmp_path: Path) -> None:
    model, good, before = family
    code, spoil = BAD[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(good))
    with pytest.raises(WeightsError) as error:
        load_weights(model, read_state_dict(path), source=path)
    assert error.value.code == code
    assert "model.safetensors" in error.value.message
    assert path.exists()
    assert state_hash(model) == before


def test_a_flipped_bit_is_detected_if_the_hash_is_known(family: tuple[ImageModel, bytes, str], tmp_path: Path) -> None:
    model, good, before = family
    path = tmp_path / "model.safetensors"
    path.write_bytes(flip_a_bit(good))
    sha256 = hashlib.sha256(good).hexdigest()
    with pytest.raises(WeightsError) as error:
        load_weights(model, read_state_dict(path, sha256=sha256))
    assert error.value.code == "hash_mismatch"
    assert sha256 in error.value.message
    assert hashlib.sha256(flip_a_bit(good)).hexdigest() in error.value.message
    assert state_hash(model) == before


def test_a_good_file_is_read_exactly(family: tuple[ImageModel, bytes, str], tmp_path: Path) -> None:
    model, good, before = family
    (tmp_path / "a.safetensors").write_bytes(good)
    (tmp_path / "b.pth").write_bytes(saved(model.state_dict()))
    (tmp_path / "c.bin").write_bytes(legacy(model.state_dict()))
    sha256 = hashlib.sha256(good).hexdigest()
    for state in (
        read_state_dict(tmp_path / "a.safetensors", sha256=sha256),
        read_state_dict(tmp_path / "a.safetensors", sha256=sha256[:8].upper()),
        read_state_dict(tmp_path / "b.pth"),
        read_state_dict(tmp_path / "c.bin"),
    ):
        assert state.keys() == model.state_dict().keys()
        load_weights(model, state)
        assert state_hash(model) == before


def test_the_name_of_a_non_finite_tensor_is_reported(tmp_path: Path) -> None:
    state = {"good": torch.ones(3), "empty": torch.ones(0), "bad.weight": torch.tensor([1.0, float("nan")])}
    safetensors.torch.save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match=r"bad\.weight"):
        read_state_dict(tmp_path / "m.safetensors")


@pytest.mark.parametrize("where", ["missing.safetensors", "."])
def test_a_file_that_cannot_be_opened(where: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        read_state_dict(tmp_path / where)
    assert error.value.code == "weights_not_found"


def mutants(good: bytes, count: int) -> Iterator[bytes]:
    """Files with random damage in the length field, the header or the first data bytes."""
    rng = random.Random(20260801)
    header_end = 8 + int.from_bytes(good[:8], "little")
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(8, header_end) if rng.random() < 0.9 else rng.randrange(8)
            match rng.randrange(5):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at] = rng.choice(b'0123456789{}[],:"-eF')
                case 2:
                    del data[at]
                case 3:
                    data.insert(at, rng.choice(b"0123456789"))
                case 4:
                    span = rng.randrange(1, 30)
                    data[at : at + span] = data[header_end - span : header_end]
        yield bytes(data)


@pytest.mark.slow
def test_a_damaged_header_never_yields_wrong_tensors(tmp_path: Path) -> None:
    model = tiny("convmixer", depth=1)
    good = safetensors.torch.save(model.state_dict())
    expected = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    refused = 0
    for mutant in mutants(good, 3000):
        path.write_bytes(mutant)
        try:
            state = read_state_dict(path)
            load_weights(model, state)
        except WeightsError:
            refused += 1
        else:
            assert {name: (value.shape, value.dtype) for name, value in state.items()} == expected
    assert refused > 2900


# --- PyTorch's own files ---


class Bomb:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.bin", "m.pth.tar", "m.safetensors", "m.ckpt", "m"])
@pytest.mark.parametrize("pack", [lambda v: pickle.dumps(v, protocol=2), lambda v: pickle.dumps(v, 5), saved, legacy])
def test_code_in_a_pickle_is_never_executed(name: str, pack: Callable[[object], bytes], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for content in (Bomb(canary), {"state_dict": {"a": torch.zeros(2)}, "args": Bomb(canary)}, {"a": Bomb(canary)}):
        (tmp_path / name).write_bytes(pack(content))
        with pytest.raises(WeightsError) as error:
            read_state_dict(tmp_path / name)
        assert error.value.code == "unsafe_format"
        assert not canary.exists()


def test_the_malicious_pickle_works_if_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def compressed(content: bytes) -> bytes:
    """Return the same zip archive with compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


class Scaled(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


STATE = {"a": torch.arange(1000.0)}
BAD_PTH: dict[str, tuple[str, Callable[[], bytes]]] = {
    "cut zip": ("truncated", lambda: saved(STATE)[:-100]),
    "half a zip": ("truncated", lambda: saved(STATE)[:2000]),
    "cut pickle": ("truncated", lambda: legacy(STATE)[:30]),
    "empty": ("truncated", lambda: b""),
    "compressed": ("bad_format", lambda: compressed(saved(STATE))),
    "sparse": ("bad_format", lambda: saved({"a": torch.eye(100).to_sparse()})),
    "claims more than it has": ("bad_format", lambda: saved({"a": torch.zeros(1).expand(2**40)})),
    "both prefixes": ("bad_format", lambda: saved({"module.a": torch.zeros(1), "a": torch.zeros(1)})),
    "no pickle": ("bad_format", lambda: random.Random(1).randbytes(1000)),
    "a tensor": ("not_weights", lambda: saved(torch.zeros(3))),
    "numbers": ("not_weights", lambda: saved({"epoch": 3})),
    "a list": ("not_weights", lambda: saved([torch.zeros(3)])),
    "no tensors": ("not_weights", lambda: saved({"state_dict": {}})),
    "numbered": ("not_weights", lambda: saved({0: torch.zeros(3)})),
    "NaN": ("non_finite", lambda: saved({"a": torch.tensor(float("nan"))})),
    "whole module": ("unsafe_format", lambda: saved(torch.nn.Linear(2, 2))),
}


@pytest.mark.parametrize("kind", BAD_PTH)
@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_a_bad_pytorch_file_is_refused_with_its_code(kind: str, suffix: str, tmp_path: Path) -> None:
    code, content = BAD_PTH[kind]
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content())
    with pytest.raises(WeightsError) as error:
        read_state_dict(path)
    assert error.value.code == code
    assert str(path) in error.value.message


@pytest.mark.parametrize(
    ("pack", "codes"),
    # if the old format is cut inside a name, the rest is another name that must not be looked up
    [(saved, {"truncated"}), (legacy, {"truncated", "unsafe_format"})],
)
def test_any_cut_of_a_pytorch_file_is_refused(pack: Callable[[object], bytes], codes: set[str], tmp_path: Path) -> None:
    content, path = pack(STATE), tmp_path / "m.pth"
    for length in range(0, len(content), len(content) // 50):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError) as error:
            read_state_dict(path)
        assert error.value.code in codes


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    files = {"m/data.pkl": b"\x80\x02}q\0.", "m/constants.pkl": b"\x80\x02).", "m/code/x.py": b"def forward(): pass"}
    (tmp_path / "m.pt").write_bytes(zip_of(**files))
    with pytest.raises(WeightsError) as error:
        read_state_dict(tmp_path / "m.pt")
    assert error.value.code == "unsafe_format"


def test_the_weights_of_a_training_checkpoint_are_chosen_as_in_timm(tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    order = ("state_dict_ema", "model_ema", "state_dict", "model")
    for start in range(len(order)):
        nested = {key: {"a": torch.tensor(float(i))} for i, key in enumerate(order) if i >= start}
        path.write_bytes(saved({"epoch": 3, "args": argparse.Namespace(lr=0.1), **nested}))
        assert read_state_dict(path)["a"] == start


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(prefix: str, tmp_path: Path) -> None:
    parameters = {f"{prefix}stem.module.weight": torch.nn.Parameter(torch.ones(2))}
    (tmp_path / "m.pth").write_bytes(saved(parameters))
    state = read_state_dict(tmp_path / "m.pth")
    assert list(state) == ["stem.module.weight"]
    assert not state["stem.module.weight"].requires_grad


def test_a_safetensors_file_with_the_name_of_a_pickle_is_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(safetensors.torch.save(STATE))
    assert torch.equal(read_state_dict(tmp_path / "pytorch_model.bin")["a"], STATE["a"])


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin", "model.pth"], "pytorch_model.bin"),
        (["pytorch_model.bin", "other.safetensors"], "other.safetensors"),
        (["b.safetensors", "a.safetensors"], "a.safetensors"),
        (["x.bin", "y.pth"], "y.pth"),
    ],
)
def test_safetensors_come_first_in_a_folder(present: list[str], expected: str, tmp_path: Path) -> None:
    for name in present:
        (tmp_path / name).touch()
    assert find_weights(tmp_path).name == expected


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(WeightsError) as error:
        find_weights(tmp_path)
    assert error.value.code == "weights_not_found"
