"""Folders and patterns: links, special files, names that cannot be, by-products; nothing that is seen is lost."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessella.data.names import Skipped, ignore_reason, natural_key, normalize_class_name
from tessella.data.sources import Source, iter_sources
from tessella.errors import ImageError

from .labelled import BY_PRODUCTS


def listing(*inputs: str) -> tuple[dict[str, str], dict[str, int]]:
    """Key -> the code of its error ("" where the file can be read), and what was skipped."""
    skipped = Skipped()
    return {source.key: code_of(source) for source in iter_sources(inputs, skipped=skipped)}, skipped.counts


def code_of(source: Source) -> str:
    try:
        source.read()
    except ImageError as error:
        return error.code
    return ""


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def special(here: Path) -> Iterator[Path]:
    """A folder with an image, a pipe, a socket and a link to a device."""
    put(here, "odd/a.jpg")
    os.mkfifo("odd/pipe.jpg")
    os.mkfifo("odd/pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("odd/socket.jpg")
        Path("odd/zero.jpg").symlink_to("/dev/zero")
        yield here / "odd"


# --- links ------------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_for_each_link(here: Path) -> None:
    put(here, "disk2/x.jpg", "photos/a.jpg")
    for name in ("first", "second"):
        Path("photos", name).symlink_to("../disk2")
    found, skipped = listing("photos")
    assert found == {"photos/a.jpg": "", "photos/first/x.jpg": "", "photos/second/x.jpg": ""}
    assert skipped == {}


def test_links_to_containing_folders_are_counted(here: Path) -> None:
    put(here, "photos/a/x.jpg", "other/b/y.jpg")
    Path("photos/a/up").symlink_to("..")
    Path("photos/a/here").symlink_to(".")
    Path("photos/other").symlink_to("../other")
    Path("other/b/photos").symlink_to("../../photos")
    found, skipped = listing("photos")
    assert found == {"photos/a/x.jpg": "", "photos/other/b/y.jpg": ""}
    assert skipped == {"link_loop": 3}


def test_folders_that_all_link_to_each_other_are_listed_in_bounded_time(here: Path) -> None:
    count = 10
    put(here, *(f"net/{i}/x.jpg" for i in range(count)))
    for i, j in itertools.permutations(range(count), 2):
        Path(f"net/{i}/to{j}").symlink_to(f"../{j}")
    found, skipped = listing("net")
    once, behind_one = [f"net/{i}/x.jpg" for i in range(count)], count * (count - 1)
    assert set(once) < found.keys()
    assert len(found) <= count + behind_one + count
    assert skipped["linked_again"] > 0
    assert skipped["link_loop"] > 0
    assert listing("net/**/*.jpg")[0].keys() == found.keys()


@pytest.mark.parametrize("named", [False, True])
def test_broken_links_are_errors(here: Path, named: bool) -> None:
    put(here, "photos/a.jpg")
    Path("photos/self.jpg").symlink_to("self.jpg")
    Path("photos/gone.jpg").symlink_to("/nowhere/x.jpg")
    Path("photos/disk2").symlink_to("/nowhere/disk2")
    names = ["photos/a.jpg", "photos/disk2", "photos/gone.jpg", "photos/self.jpg"]
    found, _ = listing(*names) if named else listing("photos")
    assert found == dict(zip(names, ["", "not_found", "not_found", "unreadable"], strict=True))


# --- special files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["folder", "named", "glob", "list"])
def test_special_files_are_errors_and_are_never_opened(special: Path, given: str) -> None:
    names = ["odd/a.jpg", "odd/pipe.jpg", "odd/socket.jpg", "odd/zero.jpg"]
    Path("list.txt").write_text("\n".join(names))
    inputs = {"folder": ["odd"], "named": names, "glob": ["odd/*.jpg"], "list": ["@list.txt"]}
    found, skipped = listing(*inputs[given])
    assert found == dict.fromkeys(names, "special_file") | {"odd/a.jpg": ""}
    assert skipped == ({"other_suffix": 1} if given == "folder" else {})


def test_a_file_replaced_by_a_pipe_is_not_opened(here: Path) -> None:
    put(here, "photos/a.jpg", "photos/b.jpg")
    first, second = iter_sources(["photos"])
    Path("photos/a.jpg").unlink()
    os.mkfifo("photos/a.jpg")
    Path("photos/b.jpg").unlink()
    assert (code_of(first), code_of(second)) == ("special_file", "not_found")


@pytest.mark.parametrize("suffix", ["", ".tar", ".parquet"])
def test_a_named_pipe_is_refused_as_a_list_or_an_archive(here: Path, suffix: str) -> None:
    os.mkfifo(f"pipe{suffix}")
    put(here, "a.jpg")
    given = f"pipe{suffix}" if suffix else "@pipe"
    found, _ = listing(given, "a.jpg")
    assert list(found.values()) == ["special_file", ""]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["n" * 300 + ".jpg", "n\0.jpg", "x/" * 3000 + "a.jpg", "", "?" * 300, "[\0]*"])
@pytest.mark.parametrize("through", ["arguments", "list"])
def test_an_invalid_name_is_one_error_and_later_inputs_are_read(here: Path, bad: str, through: str) -> None:
    put(here, "a.jpg", "b.jpg")
    inputs = ["a.jpg", bad, "b.jpg"]
    if through == "list":
        if not bad:
            return  # a blank line is no entry
        Path("list").write_text("\n".join(inputs) + "\n")
        inputs = ["@list"]
    found, _ = listing(*inputs)
    assert list(found) == ["a.jpg", bad, "b.jpg"]
    assert found["a.jpg"] == found["b.jpg"] == ""
    assert found[bad] in ("unreadable", "not_found")


def test_folders_beyond_the_recursion_and_path_limits(here: Path) -> None:
    """Beyond Python's stack, and beyond the longest path that the system takes."""
    for depth, name in ((1200, "d"), (30, "n" * 200)):
        root = os.open(here, os.O_RDONLY)
        os.mkdir(f"deep{depth}", dir_fd=root)
        inner = os.open(f"deep{depth}", os.O_RDONLY, dir_fd=root)
        os.close(root)
        for _ in range(depth):
            os.mkdir(name, dir_fd=inner)
            below = os.open(name, os.O_RDONLY, dir_fd=inner)
            os.close(inner)
            inner = below
        os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(inner)
        put(here, f"deep{depth}/z.jpg")
    found, _ = listing("deep1200", "deep30")
    assert found["deep1200/" + "d/" * 1200 + "x.jpg"] == ""
    assert [code for key, code in found.items() if key.startswith("deep30")] == ["unreadable", ""]
    assert found["deep30/z.jpg"] == ""
    subprocess.run(["rm", "-rf", "deep1200", "deep30"], check=True)  # which pytest cannot remove


def test_names_that_are_not_utf_8_are_kept(here: Path) -> None:
    name = os.fsdecode(b"b\xe9\n\x1b[31m.jpg")
    Path("photos").mkdir()
    Path("photos", name).write_bytes(b"x")
    assert listing("photos") == ({f"photos/{name}": ""}, {})
    assert listing(f"photos/{name}") == ({f"photos/{name}": ""}, {})


def test_a_folder_that_cannot_be_listed_is_one_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here, "photos/b/x.jpg", "photos/c/y.jpg")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if path == "photos/b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for given in ("photos", "photos/*/*.jpg", "photos/**/*.jpg"):
        skipped = Skipped()
        sources = list(iter_sources([given], skipped=skipped))
        assert [(source.key, source.error and source.error.code) for source in sources] == [
            ("photos/b", "unreadable"), ("photos/c/y.jpg", None),
        ]  # fmt: skip


def test_numbers_in_names_are_sorted_by_value() -> None:
    names = ["a10", "a2", "a" + "9" * 5000, "a" + "1" * 5001, "a02"]
    assert sorted(names, key=natural_key) == ["a2", "a02", "a10", "a" + "9" * 5000, "a" + "1" * 5001]


@pytest.mark.parametrize("given", [Path("photos"), "photos", b"photos"])
def test_a_single_input_need_not_be_in_a_list(here: Path, given: object) -> None:
    put(here, "photos/a.jpg")
    assert [source.key for source in iter_sources(given)] == ["photos/a.jpg"]  # type: ignore[arg-type]


def test_an_input_of_another_type_is_one_error(here: Path) -> None:
    put(here, "a.jpg")
    found = list(iter_sources([None, "a.jpg", 3]))  # type: ignore[list-item]
    assert [code_of(source) for source in found] == ["unreadable", "", "unreadable"]


# --- by-products and counts -------------------------------------------------------------------------------------------


def test_by_products_are_skipped_in_folders_patterns_archives_and_stores(here: Path) -> None:
    put(here, "photos/good/a.jpg", *(f"photos/good/{name}" for name in BY_PRODUCTS))
    with tarfile.open("some.tar", "w") as archive:
        archive.add("photos/good", "good")
    tops = {name.split("/")[0] for name in BY_PRODUCTS}
    assert listing("photos") == ({"photos/good/a.jpg": ""}, {"by_product": len(tops)})
    assert listing("photos/**/*.jpg")[0] == {"photos/good/a.jpg": ""}
    assert listing("photos/*/*/*.jpg")[0] == {"photos/*/*/*.jpg": "not_found"}
    assert listing("some.tar") == ({"some.tar::good/a.jpg": ""}, {"by_product": len(BY_PRODUCTS)})
    found, skipped = listing(f"file://{here}/photos")
    assert list(found.values()) == [""]
    assert skipped == {"by_product": len(BY_PRODUCTS)}


def test_named_inputs_are_read_even_if_a_folder_would_skip_them(here: Path) -> None:
    put(here, ".cache/a.jpg", "@eaDir/b.jpg", ".c.jpg")
    found, _ = listing(".cache", "@eaDir", ".c.jpg", "./@eaDir/*.jpg")
    assert list(found) == [".cache/a.jpg", "@eaDir/b.jpg", ".c.jpg", "./@eaDir/b.jpg"]


@pytest.mark.parametrize("name", ["a.jpg", "..", ".", "recycled", "icons", "lost", "thumbs", "@home", "found.jpg"])
def test_ordinary_names_are_not_ignored(name: str) -> None:
    assert ignore_reason(name) == ""


def test_skipped_entries_are_one_line_per_reason(here: Path) -> None:
    put(here, "photos/a.jpg", "photos/x.txt", "photos/y.txt", "photos/z.json", "photos/README", "photos/.hidden")
    put(here, "photos/b.tar.gz", "photos/b.zip", "photos/\x1b[31m.txt")
    skipped = Skipped()
    assert [source.key for source in iter_sources(["photos"], skipped=skipped)] == ["photos/a.jpg"]
    assert list(skipped.lines()) == [
        r"skipped 5 files without an image suffix (.txt, .json, no suffix), such as photos/\x1b[31m.txt",
        "skipped 1 hidden file or folder, such as photos/.hidden",
        "skipped 2 archives that cannot be read in place (unpack them) (.gz, .zip), such as photos/b.tar.gz",
    ]


def test_the_error_for_an_empty_folder_says_what_was_skipped(here: Path) -> None:
    put(here, "photos/x.txt")
    (source,) = iter_sources(["photos"])
    assert source.error is not None
    assert source.error.message == (
        "no image in the folder 'photos'; skipped 1 file without an image suffix (.txt), such as photos/x.txt"
    )


# --- archives and tables in folders -----------------------------------------------------------------------------------


def write_table(path: str, **columns: list[object]) -> None:
    pq.write_table(pa.table(columns), path)


def test_archives_beside_images_are_read(here: Path) -> None:
    put(here, "src/1.jpg", "photos/preview.png")
    with tarfile.open("photos/all.tar", "w") as archive:
        archive.add("src/1.jpg", "1.jpg")
    write_table("photos/more.parquet", image=[b"x", b"y"])
    assert list(listing("photos")[0]) == [
        "photos/all.tar::1.jpg", "photos/more.parquet:0", "photos/more.parquet:1", "photos/preview.png",
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["set", "set/*", "file://{here}/set"])
def test_the_metadata_tables_of_img2dataset_are_skipped(here: Path, given: str) -> None:
    put(here, "set/00000_stats.json", "src/1.jpg")
    with tarfile.open("set/00000.tar", "w") as archive:
        archive.add("src/1.jpg", "000000000.jpg")
        archive.add("src/1.jpg", "000000000.json")
    write_table("set/00000.parquet", url=["http://x/1.jpg"], key=["000000000"], status=["success"])
    found, skipped = listing(given.format(here=here))
    assert [key.rpartition("/")[2] for key in found] == ["00000.tar::000000000.jpg"]
    assert skipped == {"metadata_table": 1, "other_suffix": 2}


def test_a_table_of_paths_beside_its_images_is_skipped(here: Path) -> None:
    put(here, "set/1.jpg")
    write_table("set/metadata.parquet", file_name=["1.jpg"], label=[1])
    assert listing("set") == ({"set/1.jpg": ""}, {"metadata_table": 1})
    assert listing("set/metadata.parquet") == ({"set/metadata.parquet:0": ""}, {})


def test_results_of_tessella_are_not_read_as_data(here: Path) -> None:
    put(here, "photos/a.jpg", "photos/run/run.json", "photos/run/manifest.parquet", "photos/run/shards/x.parquet")
    put(here, "photos/fit/train.json", "photos/fit/metrics.jsonl", "photos/fit/curves.png")
    put(here, "photos/scores/report.json", "photos/scores/report.md", "photos/scores/confusion.png")
    put(here, "photos/mine/report.json", "photos/mine/confusion.png")  # there is no report.md: not ours
    table = pa.table(dict(key=["a"], status=["ok"])).replace_schema_metadata({"tessella": "{}"})
    pq.write_table(table, "photos/out.parquet")
    found, skipped = listing("photos")
    assert found == {"photos/a.jpg": "", "photos/mine/confusion.png": ""}
    assert skipped["own_result"] == 4


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.zip"])
def test_the_error_for_a_compressed_archive_says_to_unpack_it(here: Path, name: str) -> None:
    put(here, name)
    (source,) = iter_sources([name])
    with pytest.raises(ImageError, match="unpack") as error:
        source.read()
    assert error.value.code == "unsupported_format"


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns(here: Path) -> None:
    put(here, "p/a1.jpg", "p/a2.jpg", "p/b/c.png", "p/b/.d.jpg", "p/b/e/f.jpg", "p/g.txt")
    assert list(listing("p/*")[0]) == ["p/a1.jpg", "p/a2.jpg", "p/b/c.png", "p/b/e/f.jpg"]  # folders are taken whole
    assert list(listing("p/**/*.jpg")[0]) == ["p/a1.jpg", "p/a2.jpg", "p/b/e/f.jpg"]
    assert list(listing("p/**")[0]) == list(listing("p")[0])
    assert list(listing("**/e/*")[0]) == ["p/b/e/f.jpg"]
    assert list(listing("p/b/.*")[0]) == ["p/b/.d.jpg"]
    assert list(listing(f"{here}/p/?[!1].jpg")[0]) == [f"{here}/p/a2.jpg"]
    assert list(listing("*/b/*.png", "./p/b/[c].png")[0]) == ["p/b/c.png", "./p/b/c.png"]
    assert listing("q/*.jpg", "p/g.txt/*.jpg")[0] == {"q/*.jpg": "not_found", "p/g.txt/*.jpg": "not_found"}
    Path("p/b/loop").symlink_to(".")
    assert list(listing("p/**/*.png")[0]) == ["p/b/c.png"]


# --- class names ------------------------------------------------------------------------------------------------------


def test_class_names_are_normalized() -> None:
    assert normalize_class_name("e\u0301") == normalize_class_name("\u00e9") == "\u00e9"
    assert normalize_class_name(os.fsdecode(b"\xff")) == r"\xff"
    assert normalize_class_name("plain\\name") == "plain\\name"
