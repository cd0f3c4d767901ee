"""Training data as found in practice: by-products, links, competitions, results of earlier runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data.datasets import open_labelled, open_split
from tessella.errors import ImageError

from .labelled import BY_PRODUCTS, image_bytes, keys, refusal, samples, write, write_tar

# --- entries beside the images ----------------------------------------------------------------------------------------


def test_by_products_are_not_classes(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", *BY_PRODUCTS, *(f"cat/{name}" for name in BY_PRODUCTS))
    data = open_labelled(tmp_path)
    assert (data.classes, keys(data)) == (("cat", "dog"), ["cat/1.jpg", "dog/1.jpg"])
    tops = {name.split("/")[0] for name in BY_PRODUCTS}
    assert data.skipped.counts == {"by_product": 2 * len(tops)}


def test_unlabelled_test_images_of_a_competition_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, *(f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(40)))
    write(tmp_path, "test/1.png", "test/2.png", "sample_submission.csv")
    for path in (tmp_path, tmp_path / "train"):
        for fraction in (0.1, 0.3):
            train, held_out = open_split(path, val_fraction=fraction)
            assert len(train) + len(held_out) == 80
            assert train.skipped.example("unlabelled") == str(tmp_path / "test")
            assert "by a hash" in held_out.origin
            assert "test" in held_out.origin
        assert len(open_labelled(path)) == 80
    assert len(open_labelled(tmp_path, "train")) == 80


def test_a_test_folder_with_one_unknown_class_counts_as_unlabelled(tmp_path: Path) -> None:
    write(tmp_path, *(f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(40)), "test/unknown/1.jpg")
    for path in (tmp_path, tmp_path / "train"):
        train, held_out = open_split(path)
        assert len(train) + len(held_out) == 80
        assert str(tmp_path / "test") in held_out.origin
    write(tmp_path, "test/cat/1.jpg")
    assert "'unknown'" in refusal(
        "bad_argument", lambda: open_split(tmp_path)
    )  # a test folder with a known class is labelled


def test_validation_images_beside_an_unlabelled_test_folder_are_used(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "valid") for name in ("cat", "dog")), "test/1.png")
    for path in (tmp_path, tmp_path / "train"):
        assert len(open_split(path)[1]) == 2


def test_the_folder_of_an_earlier_run_is_not_read_as_data(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(20)))
    write(tmp_path, "run/train.json", "run/metrics.jsonl", "run/checkpoints/3/state.json", "run/report/confusion.png")
    write(tmp_path, "bulk/run.json", "bulk/manifest.parquet", "bulk/shards/shard-0.parquet")
    write(tmp_path, "scores/report.json", "scores/report.md", "scores/confusion.png", "scores/mistakes.png")
    table = pa.table(dict(key=["a"])).replace_schema_metadata({"tessella": "{}"})
    pq.write_table(table, tmp_path / "records.parquet")
    for _ in range(2):
        data = open_labelled(tmp_path)
        assert len(data) == 40
        assert data.skipped.counts["own_result"] == 6
    (tmp_path / "scores").rename(tmp_path / "cat" / "scores")
    data = open_labelled(tmp_path)
    assert (data.classes, len(data)) == (("cat", "dog"), 40)


@pytest.mark.parametrize(
    "files", [[".train.lock"], [".lock", ".manifest.parquet.x.tmp"], ["train.json", ".train.lock"]]
)
def test_a_run_that_ended_early_is_not_an_empty_class(tmp_path: Path, files: list[str]) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", *(f"run/{name}" for name in files))
    data = open_labelled(tmp_path)
    assert (data.classes, data.skipped.counts) == (("cat", "dog"), {"own_result": 1})


def test_folders_of_measurements_are_not_empty_classes(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "a/report.json", "a/report.md", "a/confusion.png", "b/probe.json")
    write(tmp_path, "c/evaluation.json", "c/evaluation.md", "c/evaluation.png", "c/m/report.json", "c/m/report.md")
    data = open_labelled(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.skipped.counts["own_result"] >= 3


@pytest.mark.parametrize(
    "files",
    [
        ["comparison.html", "changed.csv", "comparison.json"],
        ["old/part-00000000.npz"],
        ["new/part-00000000.npz"],
        ["parts/part-000000.npz"],
        [".lock", "parts/.part-000000.npz.x.tmp"],
        [".lock", "old/.part-00000000.npz.x.tmp"],
        [".lock", ".inspect.lock"],
    ],
)
def test_a_comparison_or_inspection_is_not_an_empty_class(tmp_path: Path, files: list[str]) -> None:
    """Those that were interrupted have parts, or only locks, and no summary."""
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", *(f"diff/{name}" for name in files))
    data = open_labelled(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.skipped.counts["own_result"] >= 1


def test_a_folder_called_like_one_of_an_inspection_can_be_an_empty_class(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "car/parts/part-one.txt", "car/old/notes.txt")
    assert "the class folder 'car' has no images" in refusal("bad_argument", lambda: open_labelled(tmp_path))


def test_folders_of_explanations_are_not_classes(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", *(f"why/1.explained.{suffix}" for suffix in ("png", "npz")))
    write(tmp_path, "cat/1.explained.png", "cat/1.explained.npz")
    data = open_labelled(tmp_path)
    assert (data.classes, keys(data)) == (("cat", "dog"), ["cat/1.jpg", "dog/1.jpg"])
    assert data.skipped.counts == {"own_result": 5}  # four files, and the folder
    write(tmp_path, "why/2.jpg")
    assert open_labelled(tmp_path).classes == ("cat", "dog", "why")


def test_a_run_inside_the_data_folder_is_not_read_as_data(tmp_path: Path) -> None:
    write(
        tmp_path, *(f"{name}/1.jpg" for name in ("cat", "dog")), "train.json", "metrics.jsonl", "checkpoints/1/x.json"
    )
    write(tmp_path, "report.json", "report.md", "confusion.png", "curves.png")
    assert open_labelled(tmp_path).classes == ("cat", "dog")


def test_lists_beside_images_and_metadata_beside_archives_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", "cat/1.jpg", "dog/1.jpg", "labels.csv", "cat/x.txt", "set.zip")
    assert open_labelled(tmp_path / "a").skipped.counts == {"other_suffix": 1, "packed_archive": 1, "unused_list": 1}
    write_tar(tmp_path / "b" / "00000.tar", samples("01"))
    pq.write_table(pa.table(dict(url=["x"], key=["0"])), tmp_path / "b" / "00000.parquet")
    write(tmp_path / "b", "00000_stats.json")
    data = open_labelled(tmp_path / "b")
    assert (len(data), data.skipped.counts) == (2, {"metadata_table": 1, "other_suffix": 1})


# --- links and special files ------------------------------------------------------------------------------------------


def test_special_files_and_broken_links_are_errors_of_one_image(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    (tmp_path / "cat" / "3.jpg").symlink_to("3.jpg")
    (tmp_path / "dog" / "2.jpg").symlink_to("/dev/zero")
    (tmp_path / "disk2").symlink_to("/nowhere")
    data = open_labelled(tmp_path)
    assert data.skipped.counts == {"broken_link": 1}
    outcomes = {}
    for i in range(len(data)):
        try:
            outcomes[data.key(i)] = data.read(i).decode()
        except ImageError as error:
            outcomes[data.key(i)] = error.code
    assert outcomes == {
        "cat/1.jpg": image_bytes("cat/1.jpg").decode(), "cat/2.jpg": "special_file", "cat/3.jpg": "unreadable",
        "dog/1.jpg": image_bytes("dog/1.jpg").decode(), "dog/2.jpg": "special_file",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["pipe.tar", "pipe.csv", "pipe.parquet", "pipe"])
def test_a_named_pipe_is_refused_as_a_data_set(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refusal("special_file", lambda: open_labelled(tmp_path / name))


@pytest.mark.parametrize("name", ["n" * 300, "x/" * 3000, ""])
def test_an_invalid_name_is_not_found(name: str) -> None:
    refusal("not_found", lambda: open_labelled(name))


def test_a_name_with_a_null_character_is_refused() -> None:
    refusal("bad_argument", lambda: open_labelled("nul\0"))


def test_deep_folders_are_read(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg")
    deep = tmp_path / "cat"
    inner = os.open(deep, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=inner)
        below = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = below
    os.close(inner)
    try:
        assert len(open_labelled(tmp_path)) == 2
    finally:
        subprocess.run(["rm", "-rf", deep], check=True)  # pytest cannot remove it
