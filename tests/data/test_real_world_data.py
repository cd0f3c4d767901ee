"""Training data as people have them: by-products, links, contests, results of earlier runs, names of other systems."""

from __future__ import annotations

import functools
import os
import subprocess
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data.datasets import open_labelled, open_split
from tessella.errors import ImageError, UsageError

from .test_datasets import content, keys, named, refused, shard, write, write_parquet, write_tar
from .test_walk import BY_PRODUCTS

E_COMPOSED, E_DECOMPOSED = "caf\u00e9", "cafe\u0301"


# --- what is beside the images ----------------------------------------------------------------------------------------


def test_by_products_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", *BY_PRODUCTS, *(f"cat/{name}" for name in BY_PRODUCTS))
    data = open_labelled(tmp_path)
    assert (data.classes, keys(data)) == (("cat", "dog"), ["cat/1.jpg", "dog/1.jpg"])
    tops = {name.split("/")[0] for name in BY_PRODUCTS}
    assert data.skipped.counts == {"by_product": 2 * len(tops)}


def test_a_contest_has_unlabelled_test_images_beside_the_training_folder(tmp_path: Path) -> None:
    write(tmp_path, *(f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(40)))
    write(tmp_path, "test/1.png", "test/2.png", "sample_submission.csv")
    for given in (tmp_path, tmp_path / "train"):
        for fraction in (0.1, 0.3):
            train, held_out = open_split(given, val_fraction=fraction)
            assert len(train) + len(held_out) == 80
            assert train.skipped.example("unlabelled") == str(tmp_path / "test")
            assert "by a hash" in held_out.origin
            assert "test" in held_out.origin
        assert len(open_labelled(given)) == 80
    assert len(open_labelled(tmp_path, "train")) == 80


def test_a_test_folder_of_one_unknown_class_is_unlabelled_too(tmp_path: Path) -> None:
    write(tmp_path, *(f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(40)), "test/unknown/1.jpg")
    for given in (tmp_path, tmp_path / "train"):
        train, held_out = open_split(given)
        assert len(train) + len(held_out) == 80
        assert str(tmp_path / "test") in held_out.origin
    write(tmp_path, "test/cat/1.jpg")
    assert "'unknown'" in refused("bad_argument", lambda: open_split(tmp_path))  # now it is a mistake in the data


def test_validation_images_beside_an_unlabelled_test_folder_are_used(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "valid") for name in ("cat", "dog")), "test/1.png")
    for given in (tmp_path, tmp_path / "train"):
        assert len(open_split(given)[1]) == 2


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


@pytest.mark.parametrize("left", [[".train.lock"], [".lock", ".manifest.parquet.x.tmp"], ["train.json", ".train.lock"]])
def test_a_run_that_ended_before_it_began_is_no_empty_class(tmp_path: Path, left: list[str]) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", *(f"run/{name}" for name in left))
    data = open_labelled(tmp_path)
    assert (data.classes, data.skipped.counts) == (("cat", "dog"), {"own_result": 1})


def test_measurements_beside_the_classes_are_no_empty_class(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "a/report.json", "a/report.md", "a/confusion.png", "b/probe.json")
    write(tmp_path, "c/evaluation.json", "c/evaluation.md", "c/evaluation.png", "c/m/report.json", "c/m/report.md")
    data = open_labelled(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.skipped.counts["own_result"] >= 3


def test_a_run_in_the_data_folder_itself(tmp_path: Path) -> None:
    write(
        tmp_path, *(f"{name}/1.jpg" for name in ("cat", "dog")), "train.json", "metrics.jsonl", "checkpoints/1/x.json"
    )
    write(tmp_path, "report.json", "report.md", "confusion.png", "curves.png")
    assert open_labelled(tmp_path).classes == ("cat", "dog")


def test_lists_beside_images_and_metadata_beside_archives_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", "cat/1.jpg", "dog/1.jpg", "labels.csv", "cat/x.txt", "set.zip")
    assert open_labelled(tmp_path / "a").skipped.counts == {"other_suffix": 1, "packed_archive": 1, "unused_list": 1}
    write_tar(tmp_path / "b" / "00000.tar", shard("01"))
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
    found = {}
    for i in range(len(data)):
        try:
            found[data.key(i)] = data.read(i).decode()
        except ImageError as error:
            found[data.key(i)] = error.code
    assert found == {
        "cat/1.jpg": content("cat/1.jpg").decode(), "cat/2.jpg": "special_file", "cat/3.jpg": "unreadable",
        "dog/1.jpg": content("dog/1.jpg").decode(), "dog/2.jpg": "special_file",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["pipe.tar", "pipe.csv", "pipe.parquet", "pipe"])
def test_a_named_pipe_is_no_data(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refused("special_file", lambda: open_labelled(tmp_path / name))


@pytest.mark.parametrize("name", ["n" * 300, "x/" * 3000, ""])
def test_a_name_that_cannot_be_is_not_found(name: str) -> None:
    refused("not_found", lambda: open_labelled(name))


def test_a_name_with_a_null_character_is_refused() -> None:
    refused("bad_argument", lambda: open_labelled("nul\0"))


def test_deep_folders_are_walked(tmp_path: Path) -> None:
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
        subprocess.run(["rm", "-rf", deep], check=True)  # which pytest cannot remove


# --- names of classes -------------------------------------------------------------------------------------------------


def test_unicode_forms_of_one_name_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, f"train/{E_COMPOSED}/1.jpg", "train/dog/1.jpg", f"val/{E_DECOMPOSED}/1.jpg", "val/dog/1.jpg")
    train, val = open_split(tmp_path)
    assert train.classes == val.classes == (E_COMPOSED, "dog")
    assert val.labels.tolist() == [0, 1]
    for wanted in (E_COMPOSED, E_DECOMPOSED):  # such as the class list of an earlier run
        data = open_labelled(tmp_path, "train", classes=("dog", wanted))
        assert (data.classes, data.labels.tolist()) == (("dog", wanted), [1, 0])


def test_two_class_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, f"{E_COMPOSED}/1.jpg", f"{E_DECOMPOSED}/1.jpg", "dog/1.jpg")
    assert "different Unicode forms" in refused("bad_argument", lambda: open_labelled(tmp_path))


@pytest.mark.parametrize("layout", ["list", "tar", "parquet"])
def test_unicode_forms_of_labels_are_one_class(tmp_path: Path, layout: str) -> None:
    labels = [E_COMPOSED, "dog", E_DECOMPOSED]
    if layout == "list":
        write(tmp_path, "0.jpg", "1.jpg", "2.jpg")
        text = "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
        (tmp_path / "x.csv").write_text("path,label\n" + text, encoding="utf-8")
    elif layout == "tar":
        write_tar(tmp_path / "x.tar", shard(labels))
    else:
        write_parquet(tmp_path / "x.parquet", labels, names=None)
    data = open_labelled(next(tmp_path.glob("x.*")))
    assert (data.classes, named(data)) == ((E_COMPOSED, "dog"), [E_COMPOSED, "dog", E_COMPOSED])


def test_class_lists_are_compared_in_one_form(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(f"dog\n{E_DECOMPOSED}\n", encoding="utf-16")
    data = open_labelled(write_tar(tmp_path / "x.tar", shard([E_COMPOSED, "dog"])))
    assert (data.classes, data.labels.tolist()) == (("dog", E_COMPOSED), [1, 0])


def test_a_class_folder_that_is_not_utf_8_has_an_escaped_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xe9b\xe9")
    write(tmp_path, "dog/1.jpg", "odd/1.jpg")
    (tmp_path / "odd").rename(tmp_path / name)
    data = open_labelled(tmp_path)
    assert set(data.classes) == {r"b\xe9b\xe9", "dog"}
    assert "".join(data.classes).encode()
    assert [data.read(i) for i in range(2)]
    assert data.fingerprint


# --- lists of other systems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_lists_of_other_systems(tmp_path: Path, encoding: str, end: str, delimiter: str) -> None:
    write(tmp_path, "é 1.jpg", "2.jpg")
    rows = [("File_Name", "class"), ("é 1.jpg", "dög"), ("2.jpg", "cat")]
    text = "".join(delimiter.join(row) + end for row in rows)
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    data = open_labelled(tmp_path / "list.csv")
    assert (keys(data), named(data)) == (["é 1.jpg", "2.jpg"], ["dög", "cat"])
    assert data.read(0) == content("é 1.jpg")


def test_a_list_that_is_not_utf_8_says_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path,label\n1.jpg,é\n".encode("latin-1"))
    assert "UTF-16" in refused("unreadable", lambda: open_labelled(tmp_path / "list.csv"))


def test_a_list_names_files_in_another_form(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "ä.jpg")
    write(tmp_path, name, "b.jpg")
    (tmp_path / "list.csv").write_text("ä.jpg,x\nb.jpg,y\n", encoding="utf-8")
    assert open_labelled(tmp_path / "list.csv").read(0) == content(name)


# --- samples of several files -----------------------------------------------------------------------------------------


def test_the_image_with_the_plain_suffix_is_the_sample(tmp_path: Path) -> None:
    members = {
        "1.seg.png": b"mask", "1.jpg": b"one", "1.cls": b"x", "1.txt": b"a caption",
        "2.jpg": b"two", "2.depth.png": b"depth", "2.thumb.jpg": b"thumb", "2.cls": b"y",
        "3.rgb.jpg": b"three", "3.cls": b"x",
    }  # fmt: skip
    data = open_labelled(write_tar(tmp_path / "x.tar", members))
    assert [data.read(i) for i in range(3)] == [b"one", b"two", b"three"]
    assert data.skipped.counts == {"second_image": 3, "other_suffix": 1}
    for extra in ({"1.png": b"again"}, {"3.nir.png": b"another"}):
        file = write_tar(tmp_path / "y.tar", members | extra)
        assert "two images" in refused("bad_argument", functools.partial(open_labelled, file))


def test_samples_in_hidden_and_foreign_folders_are_left_out(tmp_path: Path) -> None:
    members = shard("01") | {"@eaDir/0.jpg": b"x", "__MACOSX/._0.jpg": b"x", "._1.jpg": b"x", ".x/9.jpg": b""}
    data = open_labelled(write_tar(tmp_path / "x.tar", members))
    assert (len(data), data.skipped.counts) == (2, {"by_product": 3, "hidden": 1})


@pytest.mark.parametrize("what", ["size", "names"])
def test_hostile_archives_are_refused(tmp_path: Path, what: str) -> None:
    from .test_tar import END, header, member

    hostile = {"size": header(b"b.jpg", b"\xff" * 10 + b"\xfe\x00"), "names": member(b"l", b"n", b"L") * 1500}[what]
    (tmp_path / "x.tar").write_bytes(member() + member(b"a.cls", b"1") + hostile + END)
    refused("corrupt_archive", lambda: open_labelled(tmp_path / "x.tar"))
    with pytest.raises(UsageError):
        open_split(tmp_path)
