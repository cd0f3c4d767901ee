"""Names of files: natural order, by-products, class names, and counts of what was skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tessella.data.names import (
    Skipped,
    can_mark_results,
    ignore_reason,
    is_first_run_file,
    is_image,
    is_result_folder,
    natural_key,
    normalize_class_name,
    path_ignore_reason,
    result_entries,
    suffix_of,
)
from tessella.data.sources import iter_sources

from .labelled import BY_PRODUCTS
from .test_walk import put


def test_numbers_in_names_are_sorted_by_value() -> None:
    names = ["a10", "a2", "a" + "9" * 5000, "a" + "1" * 5001, "a02"]
    assert sorted(names, key=natural_key) == ["a2", "a02", "a10", "a" + "9" * 5000, "a" + "1" * 5001]


@pytest.mark.parametrize("name", ["a.jpg", "..", ".", "recycled", "icons", "lost", "thumbs", "@home", "found.jpg"])
def test_ordinary_names_are_not_ignored(name: str) -> None:
    assert ignore_reason(name) == ""


def test_skipped_entries_are_one_line_per_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "photos/a.jpg", "photos/x.txt", "photos/y.txt", "photos/z.json", "photos/README", "photos/.hidden")
    put(tmp_path, "photos/b.tar.gz", "photos/b.zip", "photos/\x1b[31m.txt")
    skipped = Skipped()
    assert [source.key for source in iter_sources(["photos"], skipped=skipped)] == ["photos/a.jpg"]
    assert list(skipped.lines()) == [
        r"skipped 5 files without an image suffix (.txt, .json, no suffix), such as photos/\x1b[31m.txt",
        "skipped 1 hidden file or folder, such as photos/.hidden",
        "skipped 2 archives that cannot be read in place (unpack them) (.gz, .zip), such as photos/b.tar.gz",
    ]


def test_class_names_are_normalized() -> None:
    assert normalize_class_name("e\u0301") == normalize_class_name("\u00e9") == "\u00e9"
    assert normalize_class_name(os.fsdecode(b"\xff")) == r"\xff"
    assert normalize_class_name("plain\\name") == "plain\\name"


def test_suffixes() -> None:
    suffixes = {"a.JPG": ".jpg", "b/c.tar.gz": ".gz", "README": "", "d.x/e": "", ".png": ""}
    assert {name: suffix_of(name) for name in suffixes} == suffixes
    assert is_image("photo.JPEG")
    assert not is_image("photo.jpeg.txt")


@pytest.mark.parametrize("name", BY_PRODUCTS)
def test_by_products_have_a_reason(name: str) -> None:
    assert path_ignore_reason(f"photos/{name}") == "by_product"


def test_hidden_names_have_a_reason() -> None:
    assert ignore_reason(".cache") == "hidden"
    assert path_ignore_reason("photos/.cache/a.jpg") == "hidden"
    assert path_ignore_reason("photos/cache/a.jpg") == ""


@pytest.mark.parametrize(
    ("marks", "others"),
    [
        (["train.json", "metrics.jsonl"], {"checkpoints"}),
        (["run.json", "manifest.parquet"], {"manifest.parquet", "shards", "copy", "index"}),
        (["tessella.json", "manifest.json"], set()),
    ],
)
def test_result_folders_are_recognized_by_two_entries(marks: list[str], others: set[str]) -> None:
    assert is_result_folder([*marks, "notes.txt"])
    assert result_entries(marks) == others
    for mark in marks:
        assert not is_result_folder([mark, "notes.txt"])
        assert result_entries([mark]) == set()


def test_reports_beside_user_data_are_recognized() -> None:
    assert not is_result_folder(["report.json", "report.md"])
    assert "confusion.png" in result_entries(["report.json", "report.md", "photo.png"])
    assert "photo.png" not in result_entries(["report.json", "report.md", "photo.png"])


def test_explanations_beside_user_data_are_recognized_by_their_pairs_of_files() -> None:
    pairs = {f"{name}{suffix}" for name in ("a.explained", "b.dog.explained", "a.links") for suffix in (".npz", ".png")}
    alone = ["c.explained.png", "d.links.png", "e.explained.npz", "explained.png", "explained.npz", "f.npz", "f.png"]
    assert result_entries([*pairs, *alone, "photo.png"]) == pairs
    assert all(can_mark_results(name) for name in (*pairs, "report.json", "manifest.parquet"))
    assert not any(can_mark_results(name) for name in ("photo.png", "vectors.npz", "a.explained.jpg"))


def test_first_files_of_a_run() -> None:
    assert all(is_first_run_file(name) for name in (".lock", ".train.lock", "train.json", ".manifest.parquet.x.tmp"))
    assert not any(is_first_run_file(name) for name in ("run.json", "a.tmp", "photo.jpg"))


def test_counts_of_two_listings_are_merged() -> None:
    first, second = Skipped(), Skipped()
    assert not first
    first.add("other_suffix", "a.txt", 2)
    second.add("other_suffix", "b.csv")
    second.add("hidden", ".c")
    first.merge(second)
    assert first.counts == {"other_suffix": 3, "hidden": 1}
    assert (first.example("other_suffix"), first.example("hidden"), first.example("by_product")) == ("a.txt", ".c", "")
    assert list(first.lines()) == [
        "skipped 3 files without an image suffix (.txt, .csv), such as a.txt",
        "skipped 1 hidden file or folder, such as .c",
    ]
    assert second.counts == {"other_suffix": 1, "hidden": 1}
