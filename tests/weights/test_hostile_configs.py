"""A config.json with each field replaced by invalid values gives a coded error or a working model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tessella.data.spec import InputSpec
from tessella.errors import TessellaError, UsageError, WeightsError
from tessella.models.base import ImageModel
from tessella.weights import create_model, save_pretrained
from tessella.weights.config import check_cfg, read_config
from tessella.weights.open import open_network

from ..models.tiny import images, tiny

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(
        None,
        True,
        "",
        "x" * 1000,
        "\ud800",
        "../..",
        0,
        -1,
        10**6,
        10**12,
        10**400,
        -(10**400),
        0.5,
        1e300,
        float("inf"),
    ),
    *(float("nan"), [], {}, [None], [[]], {"a": 1}, [1, 2, 3], [10**400] * 3, [float("nan")] * 3, ["a"] * 3, DEEP),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field of nested objects and lists."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(root: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of `root` with `value` at `path`."""
    if not path:
        return value
    copy = dict(root) if isinstance(root, dict) else list(root)
    copy[path[0]] = changed(root[path[0]], path[1:], value)
    return copy


@pytest.fixture(scope="module", params=["mixer", "convit", "crossvit", "convmixer"])
def saved_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    overrides = dict(label_names=tuple("abcde"), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 32, 32))
    if request.param == "crossvit":
        overrides["input_size"] = (3, 120, 120)
    folder = save_pretrained(tiny(request.param), tmp_path_factory.mktemp(request.param), config_overrides=overrides)
    return folder, json.loads((folder / "config.json").read_text())


def test_every_field_replaced_by_every_value(saved_folder: tuple[Path, dict[str, Any]]) -> None:
    folder, good = saved_folder
    rng = random.Random(7)
    refused = 0
    for path in places(good):
        for value in rng.sample(VALUES, 6):
            (folder / "config.json").write_text(json.dumps(changed(good, path, value)))
            read_alone = can_be_read(folder)  # without PyTorch
            try:
                made = create_model(f"local-dir:{folder}", pretrained=True)
                InputSpec.from_cfg(made.pretrained_cfg)
            except TessellaError:
                assert not read_alone
                refused += 1
                continue
            assert read_alone
            assert isinstance(made, ImageModel)
            with torch.no_grad():
                assert made.eval()(images(made, 1)).isfinite().all()
    assert refused > 60


def can_be_read(folder: Path) -> bool:
    try:
        InputSpec.from_cfg(open_network(f"local-dir:{folder}").pretrained_cfg)
    except TessellaError:
        return False
    return True


def test_unknown_fields_are_ignored(saved_folder: tuple[Path, dict[str, Any]]) -> None:
    folder, good = saved_folder
    for value in VALUES:
        (folder / "config.json").write_text(json.dumps({**good, "surprise": value}))
        create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_deep_nesting_is_refused(saved_folder: tuple[Path, dict[str, Any]], depth: int) -> None:
    folder, good = saved_folder
    text = json.dumps(changed(good, ("pretrained_cfg", "mean"), "HERE"))
    for brackets in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        (folder / "config.json").write_text(text.replace('"HERE"', brackets))
        with pytest.raises(TessellaError) as error:
            create_model(f"local-dir:{folder}")
        assert error.value.code == "bad_config"


def test_numbers_keep_their_type_and_lists_become_tuples() -> None:
    checked = check_cfg(dict(crop_pct=1, mean=[0, 0.5, 1], file=Path("a.pth"), label_descriptions={0: "x"}, note=None))
    assert checked == dict(crop_pct=1, mean=(0, 0.5, 1), file="a.pth", label_descriptions={0: "x"})
    assert [type(value) for value in (checked["crop_pct"], *checked["mean"])] == [int, int, float, int]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("mean", {0.1, 0.2, 0.3}, "one number per channel"),
        ("mean", b"abc", "one number per channel"),
        ("mean", (True, 0.5, 0.5), "one number per channel"),
        ("std", (0.5, 0.0, 0.5), "one positive number per channel"),
        ("crop_pct", "0.9", "a positive number"),
        ("num_classes", 10.0, "a count, or -1 for unknown"),
        ("fixed_input_size", 1, "true or false"),
        ("input_size", (3, 224), "three positive integers: channels, height, width"),
        ("label_names", "cat", "one name per class"),
        ("sha256", b"00", "hexadecimal digits"),
    ],
)
def test_no_value_is_converted_to_the_type_of_its_field(field: str, value: object, expected: str) -> None:
    with pytest.raises(UsageError, match=f"^{field} is .*, expected {expected}$"):
        check_cfg({field: value})


def test_a_huge_number_of_classes_with_named_ones_is_refused_at_once(tmp_path: Path) -> None:
    root = dict(architecture="mixer_ti_p4_32", num_classes=10**11, label_names={"0": "cat"})
    (tmp_path / "config.json").write_text(json.dumps(root))
    with pytest.raises(WeightsError, match="num_classes is 100000000000") as caught:
        read_config(tmp_path / "config.json")
    assert caught.value.code == "bad_config"
