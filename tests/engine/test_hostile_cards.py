"""Changed fields in tessella.json and manifest.json of a sealed exported folder only give errors with codes."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import tessella
from tessella.engine.artefacts import MANIFEST, find_damaged, seal
from tessella.engine.exported import FILE, open_exported, read_card, write_card
from tessella.errors import TessellaError, WeightsError
from tessella.export import export

from ..weights.test_hostile_configs import VALUES, changed, places

CAT = str(Path(__file__).resolve().parents[2] / "examples" / "cat.jpg")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        tessella.load("convmixer_256_8_ks3_p4.cifar10", engine="openvino"),
        tmp_path_factory.mktemp("exported") / "model",
    )


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def write(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text)
    seal(folder, {"card": FILE})


def test_every_field_replaced_by_every_value(folder: Path) -> None:
    good = json.loads((folder / FILE).read_text())
    rng = random.Random(3)
    refused = 0
    for path in places(good):
        for value in rng.sample(VALUES, 12):
            write(folder, json.dumps(changed(good, path, value)))
            try:
                card = read_card(folder)
            except WeightsError as error:
                assert error.code == "bad_config"  # noqa: PT017
                refused += 1
            else:
                assert len(card.labels) == card.num_classes
    assert refused > 100


WRONG: dict[str, Any] = {
    "fewer classes": dict(num_classes=3, labels=list("abc"), synsets=[]),
    "more classes": dict(num_classes=11, labels=list("abcdefghijk"), synsets=[]),
    "no classes": dict(num_classes=0, labels=[], synsets=[]),
    "another width": dict(width=7),
    "other sizes": dict(spec=dict(input_size=[3, 8, 8])),
    "one channel": dict(spec=dict(input_size=[1, 32, 32])),
    "a huge input": dict(spec=dict(input_size=[3, 10**6, 10**6])),
    "the other engine": dict(engine="onnxruntime"),
    "labels that are numbers": dict(labels=list(range(10))),
    "labels as one text": dict(labels="abcdefghij"),
    "a name that is a number": dict(name=3),
    "an unknown precision": dict(precision="float4"),
    "an older format": dict(format="1"),
}


def test_a_card_keeps_labels_that_are_not_valid_unicode(folder: Path) -> None:
    card = read_card(folder)
    labels = ("größe", "猫", "\udce9t\udce9", *card.labels[3:])
    write_card(folder, dataclasses.replace(card, labels=labels))
    assert read_card(folder).labels == labels


def test_an_exported_model_uses_the_threads_that_the_user_requests(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert open_exported(folder)[1].plan.threads == 3


@pytest.mark.parametrize("kind", WRONG)
def test_a_card_that_does_not_fit_the_graph_is_refused_when_opened(folder: Path, kind: str) -> None:
    good = json.loads((folder / FILE).read_text())
    write(folder, json.dumps(good | WRONG[kind]))
    with pytest.raises(WeightsError) as error:
        tessella.load(f"local-dir:{folder}").classify(CAT)
    assert error.value.code in ("bad_config", "hash_mismatch")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"1e999"]
)
@pytest.mark.parametrize("name", [FILE, MANIFEST])
def test_files_that_are_not_a_card_or_manifest(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    if name == FILE:
        seal(folder, {"card": FILE})
    with pytest.raises(WeightsError) as error:
        read_card(folder)
    assert error.value.code in ("bad_config", "hash_mismatch")


def test_every_field_of_the_manifest(folder: Path) -> None:
    good = json.loads((folder / MANIFEST).read_text())
    for path in places(good):
        if path[0] == "facts":
            continue
        for value in VALUES:
            (folder / MANIFEST).write_text(json.dumps(changed(good, path, value)))
            assert find_damaged(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file"])
def test_a_manifest_lists_files_of_its_own_folder_only(folder: Path, name: str) -> None:
    good = json.loads((folder / MANIFEST).read_text())
    good["files"][name] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(good))
    assert find_damaged(folder) == MANIFEST


def test_a_manifest_without_the_graph_its_weights_or_the_card(folder: Path) -> None:
    good = json.loads((folder / MANIFEST).read_text())
    for name in ("model.xml", "model.bin", FILE):
        files = {key: value for key, value in good["files"].items() if key != name}
        (folder / MANIFEST).write_text(json.dumps(good | {"files": files}))
        with pytest.raises(WeightsError) as error:
            read_card(folder)
        assert error.value.code == "hash_mismatch"


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_damaged_graph_that_was_sealed_again(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\0" * 1000, b"<net/>"):
        (folder / name).write_bytes(damaged)
        seal(folder, {"card": FILE})
        with pytest.raises(TessellaError) as error:
            tessella.load(f"local-dir:{folder}")
        assert error.value.code == "bad_config"
