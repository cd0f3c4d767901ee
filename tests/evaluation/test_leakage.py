"""Evaluations exclude images that a model was trained on, warn about others, and tolerate missing records."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tessella.data.datasets import LabelledImages, open_labelled, open_split
from tessella.errors import OutputError, UsageError
from tessella.evaluation import leakage
from tessella.evaluation.leakage import choose_images, read_image_record, write_image_record

from ..training.small_runs import make_images


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 images in two class folders."""
    folder = tmp_path_factory.mktemp("seen")
    make_images(folder / "made", 48)
    return (folder / "made" / "train").rename(folder / "images")


@pytest.fixture
def run(data: Path, tmp_path: Path) -> tuple[Path, LabelledImages, LabelledImages]:
    """Return a folder with a record, the images that the model was trained on, and those that were held out."""
    train, held_out = open_split(data, val_fraction=0.25)
    (tmp_path / "run").mkdir()
    write_image_record(tmp_path / "run", train, held_out)
    return tmp_path / "run", train, held_out


Run = tuple[Path, LabelledImages, LabelledImages]


def keys(images: LabelledImages) -> list[str]:
    return [images.key(i) for i in range(len(images))]


@pytest.mark.parametrize("split", [None, "val"])
def test_an_evaluation_uses_the_images_that_the_run_held_out(data: Path, run: Run, split: leakage.Split | None) -> None:
    folder, _, held_out = run
    images, remarks = choose_images(data, [f"local-dir:{folder}"], split)
    assert keys(images) == keys(held_out)
    origin = f"the {len(held_out)} images of {data} that {folder} held out"
    assert remarks == (f"{origin} (--split all evaluates all 48)",)
    assert images.origin == origin


def test_a_validation_split_that_does_not_exist_is_refused(data: Path, run: Run, tmp_path: Path) -> None:
    """As for a model without a record, unless the run held out some of the images."""
    folder, _, _ = run
    make_images(tmp_path / "both", 8, seed=9)
    for name in (f"local-dir:{folder}", "mixer_s32_224"):
        with pytest.raises(UsageError, match="has no val split") as caught:
            choose_images(tmp_path / "both" / "train", [name], "val")
        assert caught.value.code == "not_found"
    images, remarks = choose_images(tmp_path / "both", [f"local-dir:{folder}"], "val")
    assert images.origin == f"{tmp_path / 'both'} (val)"
    assert remarks == ()


def test_evaluating_training_images_is_a_warning(data: Path, run: Run) -> None:
    folder, train, _ = run
    images, (remark,) = choose_images(data, [f"local-dir:{folder}"], "all")
    assert len(images) == 48
    assert remark == (
        f"warning: {folder} was trained on {len(train)} of the 48 images of {data}, so the figures are too high"
    )
    images, (remark,) = choose_images(data, [f"local-dir:{folder}"], "train")
    assert keys(images) == keys(train)
    assert "--split train" in remark


def test_images_are_recognised_by_their_content(data: Path, run: Run, tmp_path: Path) -> None:
    folder, train, held_out = run
    other = tmp_path / "renamed"
    for number, key in enumerate([*keys(train)[:6], *keys(train)[-6:]]):
        (other / Path(key).parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(data / key, other / Path(key).parent / f"copy-{number}.png")
    images, (remark,) = choose_images(other, [f"local-dir:{folder}"])
    assert len(images) == 12  # none was held out: all are evaluated, with a warning
    assert "was trained on 12 of the 12 images" in remark
    for key in keys(held_out):
        shutil.copy(data / key, other / Path(key).parent / f"held-out-{Path(key).name}")
    make_images(tmp_path / "new", 4, seed=9)
    shutil.copytree(tmp_path / "new" / "train", other, dirs_exist_ok=True)
    images, (remark,) = choose_images(other, [f"local-dir:{folder}"])
    assert len(images) == len(held_out) + 4
    assert f"{len(held_out)} that {folder} held out, 4 that are new" in remark


def test_models_are_compared_on_images_that_none_was_trained_on(data: Path, run: Run, tmp_path: Path) -> None:
    folder, _, held_out = run
    (tmp_path / "other").mkdir()
    half = len(held_out) // 2
    everything = open_labelled(data)
    at = {key: i for i, key in enumerate(keys(everything))}
    first = [at[key] for key in keys(held_out)[:half]]
    rest = [i for i in range(48) if i not in first]
    write_image_record(tmp_path / "other", everything.subset(rest), everything.subset(first))
    images, _ = choose_images(data, [f"local-dir:{folder}", f"local-dir:{tmp_path / 'other'}", "mixer_s32_224"])
    assert keys(images) == keys(held_out)[:half]
    _, remarks = choose_images(data, [f"local-dir:{folder}", f"local-dir:{tmp_path / 'other'}"], "all")
    assert f"{tmp_path / 'other'} were trained on " in remarks[-1]


def test_training_images_of_the_initial_model_are_included(data: Path, run: Run, tmp_path: Path) -> None:
    folder, train, held_out = run
    (tmp_path / "second").mkdir()
    write_image_record(tmp_path / "second", held_out, train, f"local-dir:{folder}")  # the other way round
    images, (remark,) = choose_images(data, [f"local-dir:{tmp_path / 'second'}"])
    assert len(images) == 48
    assert "was trained on 48 of the 48 images" in remark


def test_a_record_that_leaves_out_the_initial_model_says_so(
    data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, train, held_out = run
    (tmp_path / "second").mkdir()
    assert write_image_record(tmp_path / "second", held_out, train, f"local-dir:{folder}") == ""
    monkeypatch.setattr(leakage, "MAX_BYTES", 100)
    warning = write_image_record(tmp_path / "second", held_out, train, f"local-dir:{folder}")
    assert f"leaves out those of local-dir:{folder}" in warning
    assert "has hashes of the contents of images, this one hashes of the names of images" in warning


def test_the_split_of_the_data_is_reported(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "data")
    (tmp_path / "run").mkdir()
    write_image_record(tmp_path / "run", *open_split(folder))
    images, (remark,) = choose_images(folder, [f"local-dir:{tmp_path / 'run'}"])
    assert len(images) == 24
    assert f"held out 24 of the 24 images of {folder} (val)" in remark


def test_without_a_record_all_images_are_evaluated(data: Path, run: Run, tmp_path: Path) -> None:
    assert choose_images(data, ["mixer_s32_224"]).remarks == ()
    assert choose_images(data, [f"local-dir:{tmp_path / 'model'}"]).remarks == ()  # not trained by Tessella
    folder, _, _ = run
    (folder / "train.json").write_text("{}")
    for damage in (b"", b"PK", (folder / leakage.RECORD).read_bytes()[:200]):
        (folder / leakage.RECORD).write_bytes(damage)
        images, (remark,) = choose_images(data, [f"local-dir:{folder}"])
        assert len(images) == 48
        assert "has no record of the images that it was trained on" in remark


def test_large_collections_are_recognised_by_their_keys(
    data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, train, held_out = run
    monkeypatch.setattr(leakage, "MAX_BYTES", 100)
    write_image_record(tmp_path, train, held_out)
    record = read_image_record(tmp_path)
    assert record is not None
    assert record.by == "key"
    assert keys(choose_images(data, [f"local-dir:{tmp_path}"]).images) == keys(held_out)


def test_an_image_that_cannot_be_read_equals_no_other(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    images = open_labelled(tmp_path / "data")
    for key in keys(images)[:2]:
        (tmp_path / "data" / key).unlink()
    record = leakage.ImageRecord("content", np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    trained, held_out = leakage.find_recorded(images, [record])
    assert not trained.any()
    assert not held_out.any()


def test_the_home_folder_of_an_unknown_user_has_no_record(data: Path, tmp_path: Path) -> None:
    name = "local-dir:~no-such-user/model"
    images, remarks = choose_images(data, [name])
    assert len(images) == len(open_labelled(data))
    assert not remarks
    write_image_record(tmp_path, images, images.subset(np.arange(2)), name)
    assert read_image_record(tmp_path) is not None


def test_errors_are_coded(data: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="split is 'both'"):
        choose_images(data, [], "both")  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        choose_images(tmp_path / "absent", [f"local-dir:{run[0]}"], "val")
    assert caught.value.code == "not_found"
    with pytest.raises(OutputError) as failed:
        write_image_record(tmp_path / "absent", run[1], run[2])
    assert failed.value.code == "output_failed"
