"""Large weight files are hashed and checked once, and again whenever they may have changed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tessella.errors import WeightsError
from tessella.fingerprint import arrays_hash
from tessella.models.layout import state_layout
from tessella.weights import network, remembered, tensors
from tessella.weights.files import read_state_dict
from tessella.weights.open import open_network
from tessella.weights.tensors import FileTensors

from ..models.tiny import NUM_CLASSES, TINY, tiny

HOUR = 3600
ARCH, SMALL = TINY["mixer"]


class Calls(list[str]):
    """The names of the expensive functions that were called."""

    def watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "SMALLEST", 1000)
    return tmp_path / "cache" / remembered.FOLDER


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    calls.watch(monkeypatch, hashlib, "file_digest")
    calls.watch(monkeypatch, tensors, "check_finite")
    calls.watch(monkeypatch, network, "arrays_hash")
    return calls


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a file that was last changed an hour ago."""
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(tiny("mixer").state_dict(), path)
    age(path)
    return path


def age(path: Path, seconds: float = HOUR) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path, digest: str | None = None) -> FileTensors:
    result = tensors.read_tensors(path, state_layout(tiny("mixer").config), sha256=digest or sha256(path))
    assert result is not None
    return result


def hash_of(path: Path) -> str:
    arguments = dict(**SMALL, num_classes=NUM_CLASSES, pretrained_cfg=dict(file=path, sha256=sha256(path)))
    return open_network(ARCH, model_args=arguments).weights_hash


def test_a_file_is_hashed_and_checked_once(weights: Path, cache: Path, calls: Calls) -> None:
    first = hash_of(weights)
    assert sorted(calls) == ["arrays_hash", "check_finite", "file_digest"]
    assert first == arrays_hash(read(weights))
    for _ in range(2):
        calls.clear()
        assert hash_of(weights) == first
        assert calls == []
    assert len(list(cache.iterdir())) == 1
    read_state_dict(weights, sha256=sha256(weights))
    assert calls == []


def test_another_expected_hash_is_still_refused(weights: Path, cache: Path, calls: Calls) -> None:
    read(weights)
    with pytest.raises(WeightsError) as caught:
        read(weights, "00" * 32)
    assert caught.value.code == "hash_mismatch"
    assert calls.count("file_digest") == 1


def rewrite(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def touch(path: Path) -> None:
    rewrite(path, -1)
    age(path, HOUR - 1)


def replace(path: Path) -> None:
    times = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    rewrite(copy, -1)
    copy.replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_the_header(path: Path) -> None:
    times = path.stat()
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, replace, change_the_header])
def test_a_changed_file_is_hashed_again(change: Any, weights: Path, cache: Path, calls: Calls) -> None:
    good = sha256(weights)
    read(weights)
    change(weights)
    assert sha256(weights) != good
    with pytest.raises(WeightsError) as caught:
        read(weights, good)
    assert caught.value.code == "hash_mismatch"
    assert calls.count("file_digest") == 2


def test_another_size_is_another_file(weights: Path, cache: Path, calls: Calls) -> None:
    read(weights)
    times = weights.stat()
    weights.write_bytes(weights.read_bytes() + b"0")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(WeightsError) as caught:
        read(weights)
    assert caught.value.code == "truncated"


def test_values_that_are_not_finite_are_found_again(weights: Path, cache: Path) -> None:
    state = tiny("mixer").state_dict()
    state["head.bias"][0] = float("nan")
    safetensors.torch.save_file(state, weights)
    age(weights)
    for _ in range(2):
        with pytest.raises(WeightsError) as caught:
            read(weights)
        assert caught.value.code == "non_finite"


@pytest.mark.parametrize("seconds", [0, 1, -HOUR])
def test_a_file_that_changed_just_now_is_not_remembered(
    seconds: float, weights: Path, cache: Path, calls: Calls
) -> None:
    """It may change again within the same time stamp."""
    age(weights, seconds)
    hash_of(weights)
    assert not cache.exists()


def test_a_small_file_is_not_remembered(
    weights: Path, cache: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SMALLEST", weights.stat().st_size + 1)
    hash_of(weights)
    assert not cache.exists()


def test_a_link_leads_to_the_facts_of_its_target(weights: Path, cache: Path, calls: Calls) -> None:
    link = weights.with_name("link.safetensors")
    link.symlink_to(weights)
    first = hash_of(link)
    calls.clear()
    assert hash_of(weights) == first
    assert calls == []


def test_a_cache_that_cannot_be_written_is_no_error(weights: Path, cache: Path, calls: Calls) -> None:
    cache.parent.write_text("a file in place of the folder")
    first = hash_of(weights)
    assert hash_of(weights) == first
    assert calls.count("file_digest") == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b"[" * 100_000, b'{"file": 1}'])
def test_a_damaged_record_is_replaced(content: bytes, weights: Path, cache: Path, calls: Calls) -> None:
    first = hash_of(weights)
    (record,) = cache.iterdir()
    record.write_bytes(content)
    calls.clear()
    assert hash_of(weights) == first
    assert "file_digest" in calls
    calls.clear()
    assert hash_of(weights) == first
    assert calls == []


def test_each_layout_has_its_own_hash(weights: Path, cache: Path, calls: Calls) -> None:
    """The same file under another order of names, as another architecture might have."""
    values = read(weights)
    facts = values.facts
    facts.remember_tensors("one", "1" * 64)
    facts.remember_tensors("two", "2" * 64)
    again = read(weights).facts
    assert (again.tensors_hash("one"), again.tensors_hash("two"), again.tensors_hash("three")) == (
        "1" * 64,
        "2" * 64,
        None,
    )


def test_weights_that_were_changed_in_memory_are_not_those_of_the_file(weights: Path, cache: Path) -> None:
    """A network with other tensors has another hash, although they come from a file with a known one."""
    opened = open_network(ARCH, model_args=dict(**SMALL, num_classes=NUM_CLASSES, pretrained_cfg=dict(file=weights)))
    before = opened.weights_hash
    changed = dataclasses.replace(opened, tensors={**opened.tensors, "head.bias": np.ones(5, np.float32)})
    assert changed.weights_hash == arrays_hash(changed.tensors) != before


def test_a_name_that_is_not_unicode(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff.safetensors")
    safetensors.torch.save_file(tiny("mixer").state_dict(), tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(path)
    age(path)
    assert torch.equal(torch.from_numpy(read(path)["head.bias"]), tiny("mixer").state_dict()["head.bias"])
