"""Saving: the written files, their completeness after failures, and their permissions."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tessella.errors import OutputError, TessellaError, UsageError, WeightsError
from tessella.models.base import ImageModel
from tessella.models.features import FeatureExtractor
from tessella.storage import write_atomic
from tessella.weights import create_model, save_pretrained
from tessella.weights.config import model_args, read_config

from ..models.tiny import NUM_CLASSES, TINY, tiny
from .test_files import state_hash

TIMM_FIELDS = set(
    re.findall(
        r"\w+",
        "url file hf_hub_id hf_hub_filename source architecture tag custom_load input_size test_input_size "
        "min_input_size fixed_input_size interpolation crop_pct test_crop_pct crop_mode mean std num_classes "
        "label_offset label_names label_descriptions pool_size test_pool_size first_conv classifier license "
        "description origin_url paper_name paper_ids notes",
    )
)


def loaded(folder: Path) -> ImageModel:
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert isinstance(model, ImageModel)
    return model


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize("case", TINY)
def test_the_config_has_timms_layout(case: str, tmp_path: Path) -> None:
    model = tiny(case)
    config = config_of(save_pretrained(model, tmp_path))
    assert config["architecture"] == TINY[case][0]
    assert config["num_classes"] == config["model_args"]["num_classes"] == NUM_CLASSES
    assert config["num_features"] == model.num_features
    assert config["global_pool"] == config["model_args"]["global_pool"] == model.global_pool
    assert config["model_args"]["in_chans"] == 3
    assert set(config["pretrained_cfg"]) <= TIMM_FIELDS
    assert not {"file", "hf_hub_id", "url", "source", "sha256"} & set(config["pretrained_cfg"])
    if not case.startswith("convmixer"):
        assert tuple(config["model_args"]["img_size"]) == tuple(config["pretrained_cfg"]["input_size"][1:])


@pytest.mark.parametrize("case", TINY)
def test_changes_after_creation_are_saved(case: str, tmp_path: Path) -> None:
    pool = "" if case.startswith(("mixer", "gm", "resmlp")) else "avg"
    model = tiny(case, in_chans=1, drop_path_rate=0.1)
    model.reset_classifier(3, pool)
    again = loaded(save_pretrained(model, tmp_path))
    assert state_hash(again) == state_hash(model)
    assert (again.num_classes, again.global_pool, again.config.in_chans) == (3, pool, 1)
    assert again.config.drop_path_rate == 0
    assert model_args(again) == model_args(model)


def test_a_model_without_a_head(tmp_path: Path) -> None:
    model = tiny("crossvit")
    model.reset_classifier(0)
    assert state_hash(loaded(save_pretrained(model, tmp_path))) == state_hash(model)


def test_a_saved_model_saved_again_is_the_same(tmp_path: Path) -> None:
    overrides = {"label_names": list("abcde"), "tag": "mine", "license": "mit"}
    first = save_pretrained(tiny("gmixer"), tmp_path / "1", config_overrides=overrides)
    second = save_pretrained(loaded(first), tmp_path / "2")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_labels_and_tag_are_removed_if_the_classes_change(tmp_path: Path) -> None:
    first = save_pretrained(tiny("mixer"), tmp_path / "1", config_overrides={"label_names": list("abcde"), "tag": "x"})
    assert config_of(first)["label_names"] == list("abcde")
    assert config_of(first)["pretrained_cfg"]["tag"] == "x"
    model = loaded(first)
    model.reset_classifier(3)
    config = config_of(save_pretrained(model, tmp_path / "2"))
    assert "label_names" not in config
    assert "tag" not in config["pretrained_cfg"]


def test_the_source_of_the_original_weights_is_not_written(tmp_path: Path) -> None:
    model = create_model("mixer_b16_224.goog_in21k_ft_in1k", num_blocks=1, embed_dim=8)
    assert isinstance(model, ImageModel)
    assert model.pretrained_cfg["hf_hub_id"]
    cfg = read_config(save_pretrained(model, tmp_path) / "config.json").pretrained_cfg
    assert cfg["tag"] == "goog_in21k_ft_in1k"
    assert cfg["mean"] == (0.5, 0.5, 0.5)
    assert not {"hf_hub_id", "note"} & set(cfg)


def test_precision_is_kept_and_can_be_loaded_into_any_other(tmp_path: Path) -> None:
    model = tiny("mixer").bfloat16()
    folder = save_pretrained(model, tmp_path)
    again = loaded(folder)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.float())


def pruned() -> ImageModel:
    model = tiny("mixer")
    model.prune_intermediate_layers([0])
    return model


def diverged() -> ImageModel:
    model = tiny("mixer")
    with torch.no_grad():
        model.get_parameter("norm.weight")[0] = float("nan")
    return model


def nameless() -> ImageModel:
    model = tiny("mixer")
    return type(model)(model.config)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (pruned, "bad_argument"),
        (nameless, "bad_argument"),
        (lambda: FeatureExtractor(tiny("mixer")), "bad_argument"),
        (lambda: nn.Linear(2, 2), "bad_argument"),
        (diverged, "non_finite"),
    ],
)
def test_a_model_that_could_not_be_loaded_is_not_saved(make: Callable[[], Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(TessellaError) as error:
        save_pretrained(make(), tmp_path / "out")
    assert error.value.code == code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "overrides",
    [{"mean": "grey"}, {"no_such_field": 1}, {"label_names": ["a"]}, {"std": [0, 0, 0]}, {"crop_mode": "x"}],
)
def test_invalid_config_overrides_are_refused(overrides: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        save_pretrained(tiny("mixer"), tmp_path / "out", config_overrides=overrides)
    assert error.value.code == "bad_argument"
    assert not (tmp_path / "out").exists()


def test_the_model_card(tmp_path: Path) -> None:
    overrides = {"license": "apache-2.0", "tag": "mine"}
    card = (save_pretrained(tiny("gmlp"), tmp_path, config_overrides=overrides) / "README.md").read_text()
    _, front, body = card.split("---\n")
    assert "library_name: timm" in front
    assert "license: apache-2.0" in front
    assert "# Model card for gmlp_ti16_224.mine" in body
    assert "Image size: 32 x 32" in body
    (tmp_path / "README.md").write_text("my own words")
    save_pretrained(tiny("gmlp"), tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_the_model_card_has_the_classes_of_a_new_classifier(tmp_path: Path) -> None:
    model = tiny("mixer")
    model.reset_classifier(3)
    card = (save_pretrained(model, tmp_path, config_overrides={"label_names": list("abc")}) / "README.md").read_text()
    assert "- **Classes:** 3: a, b, c\n" in card


def test_fields_cannot_add_content_to_the_model_card(tmp_path: Path) -> None:
    overrides = {"license": "mit\nbase_model: evil"}
    card = (save_pretrained(tiny("gmlp"), tmp_path, config_overrides=overrides) / "README.md").read_text()
    assert "\nbase_model" not in card


# --- complete or not written -


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    old = os.umask(mask)
    try:
        folder = save_pretrained(tiny("mixer"), tmp_path / "out")
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask


class Crash(BaseException):
    """Simulates the end of the process: only cleanup code runs after it."""


def count_steps(patch: pytest.MonkeyPatch, fail_at: int, error: BaseException) -> list[str]:
    """Make the `fail_at`-th system call of a save fail; return the list of the names of the calls."""
    done: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) - 1 == fail_at:
                raise error
            return real(*args, **kwargs)

        return call

    patch.setattr(os, "fsync", counted("fsync", os.fsync))
    patch.setattr(Path, "replace", counted("replace", Path.replace))
    patch.setattr(Path, "open", counted("open", Path.open))
    patch.setattr(os, "open", counted("os.open", os.open))
    return done


def outcome(folder: Path) -> int | str:
    """Return the number of classes of the model in `folder`, or the code of the error."""
    try:
        return loaded(folder).num_classes
    except WeightsError as refused:
        return refused.code


def save_steps(patch: pytest.MonkeyPatch, folder: Path) -> int:
    with patch.context() as counting:
        done = count_steps(counting, -1, Crash())
        save_pretrained(tiny("mixer"), folder)
    return len(done)


@pytest.mark.parametrize("error", [Crash(), OSError(errno.ENOSPC, "No space"), OSError(errno.EIO, "I/O")])
def test_a_failure_at_any_step_leaves_old_or_complete_new_files(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = save_steps(monkeypatch, tmp_path / "count")
    assert steps == 15  # for each of three files: create, sync, rename, and open and sync the folder
    new_model = tiny("mixer", num_classes=3)
    new = save_pretrained(new_model, tmp_path / "new")
    outcomes = set()
    for step in range(10):  # the card is not written again
        folder = save_pretrained(tiny("mixer"), tmp_path / f"{step}")
        old = {path.name: path.read_bytes() for path in folder.iterdir()}
        with monkeypatch.context() as failing:
            count_steps(failing, step, error)
            with pytest.raises(Crash if isinstance(error, Crash) else OutputError) as raised:
                save_pretrained(new_model, folder)
        if isinstance(raised.value, OutputError):
            assert raised.value.code == "output_failed"
        assert {path.name for path in folder.iterdir()} == set(old)
        for name in ("model.safetensors", "config.json"):
            assert (folder / name).read_bytes() in (old[name], (new / name).read_bytes())
        outcomes.add(outcome(folder))
    assert outcomes == {NUM_CLASSES, 3, "hash_mismatch"}  # a crash between the two files is detected


def test_files_are_replaced_only_after_the_data_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError) as error:
            save_pretrained(tiny("mixer"), folder)
        assert error.value.code == "output_failed"
