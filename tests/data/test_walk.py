"""Folders and patterns: links, special files, invalid names, by-products; every entry is an input or is counted."""

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

from tessella.data.names import Skipped
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.data.walk import split_pattern
from tessella.errors import ImageError

from .labelled import BY_PRODUCTS


def listing(*inputs: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return key -> error code ("" if the source can be read), and the counts of what was skipped."""
    skipped = Skipped()
    return {source.key: code_of(source) for source in iter_sources(inputs, skipped=skipped)}, skipped.counts


def code_of(source: Source) -> str:
    try:
        source.read()
    except ImageError as error:
        return error.code
    return ""


def put(root: Path, *names: str) -> None:
    """Write files below `root`, each with its name as the content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def special(folder: Path) -> Iterator[Path]:
    """A folder with an image, a pipe, a socket and a link to a device."""
    put(folder, "odd/a.jpg")
    os.mkfifo("odd/pipe.jpg")
    os.mkfifo("odd/pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("odd/socket.jpg")
        Path("odd/zero.jpg").symlink_to("/dev/zero")
        yield folder / "odd"


# --- links ------------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_for_each_link(folder: Path) -> None:
    put(folder, "disk2/x.jpg", "photos/a.jpg")
    for name in ("first", "second"):
        Path("photos", name).symlink_to("../disk2")
    codes, skipped = listing("photos")
    assert codes == {"photos/a.jpg": "", "photos/first/x.jpg": "", "photos/second/x.jpg": ""}
    assert skipped == {}


def test_links_to_containing_folders_are_counted(folder: Path) -> None:
    put(folder, "photos/a/x.jpg", "other/b/y.jpg")
    Path("photos/a/up").symlink_to("..")
    Path("photos/a/here").symlink_to(".")
    Path("photos/other").symlink_to("../other")
    Path("other/b/photos").symlink_to("../../photos")
    codes, skipped = listing("photos")
    assert codes == {"photos/a/x.jpg": "", "photos/other/b/y.jpg": ""}
    assert skipped == {"link_loop": 3}


def test_folders_that_all_link_to_each_other_are_listed_in_bounded_time(folder: Path) -> None:
    count = 10
    put(folder, *(f"net/{i}/x.jpg" for i in range(count)))
    for i, j in itertools.permutations(range(count), 2):
        Path(f"net/{i}/to{j}").symlink_to(f"../{j}")
    codes, skipped = listing("net")
    direct, behind_one_link = [f"net/{i}/x.jpg" for i in range(count)], count * (count - 1)
    assert set(direct) < codes.keys()
    assert len(codes) <= count + behind_one_link + count
    assert skipped["linked_again"] > 0
    assert skipped["link_loop"] > 0
    assert listing("net/**/*.jpg")[0].keys() == codes.keys()


@pytest.mark.parametrize("named", [False, True])
def test_broken_links_are_errors(folder: Path, named: bool) -> None:
    put(folder, "photos/a.jpg")
    Path("photos/self.jpg").symlink_to("self.jpg")
    Path("photos/broken.jpg").symlink_to("/nowhere/x.jpg")
    Path("photos/disk2").symlink_to("/nowhere/disk2")
    names = ["photos/a.jpg", "photos/broken.jpg", "photos/disk2", "photos/self.jpg"]
    codes, _ = listing(*names) if named else listing("photos")
    assert codes == dict(zip(names, ["", "not_found", "not_found", "unreadable"], strict=True))


# --- special files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_kind", ["folder", "named", "glob", "list"])
def test_special_files_are_errors_and_are_never_opened(special: Path, input_kind: str) -> None:
    names = ["odd/a.jpg", "odd/pipe.jpg", "odd/socket.jpg", "odd/zero.jpg"]
    Path("list.txt").write_text("\n".join(names))
    inputs = {"folder": ["odd"], "named": names, "glob": ["odd/*.jpg"], "list": ["@list.txt"]}
    codes, skipped = listing(*inputs[input_kind])
    assert codes == dict.fromkeys(names, "special_file") | {"odd/a.jpg": ""}
    assert skipped == ({"other_suffix": 1} if input_kind == "folder" else {})


def test_a_file_replaced_by_a_pipe_is_not_opened(folder: Path) -> None:
    put(folder, "photos/a.jpg", "photos/b.jpg")
    first, second = iter_sources(["photos"])
    Path("photos/a.jpg").unlink()
    os.mkfifo("photos/a.jpg")
    Path("photos/b.jpg").unlink()
    assert (code_of(first), code_of(second)) == ("special_file", "not_found")


@pytest.mark.parametrize("suffix", ["", ".tar", ".parquet"])
def test_a_named_pipe_is_refused_as_a_list_or_an_archive(folder: Path, suffix: str) -> None:
    os.mkfifo(f"pipe{suffix}")
    put(folder, "a.jpg")
    name = f"pipe{suffix}" if suffix else "@pipe"
    codes, _ = listing(name, "a.jpg")
    assert list(codes.values()) == ["special_file", ""]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("invalid", ["n" * 300 + ".jpg", "n\0.jpg", "x/" * 3000 + "a.jpg", "", "?" * 300, "[\0]*"])
@pytest.mark.parametrize("through", ["arguments", "list"])
def test_an_invalid_name_is_one_error_and_later_inputs_are_read(folder: Path, invalid: str, through: str) -> None:
    put(folder, "a.jpg", "b.jpg")
    inputs = ["a.jpg", invalid, "b.jpg"]
    if through == "list":
        if not invalid:
            return  # a blank line is not an entry
        Path("list").write_text("\n".join(inputs) + "\n")
        inputs = ["@list"]
    codes, _ = listing(*inputs)
    assert list(codes) == ["a.jpg", invalid, "b.jpg"]
    assert codes["a.jpg"] == codes["b.jpg"] == ""
    assert codes[invalid] in ("unreadable", "not_found")


def test_folders_beyond_the_recursion_and_path_limits(folder: Path) -> None:
    """Folders deeper than Python's stack, and paths longer than the system accepts."""
    for depth, name in ((1200, "d"), (30, "n" * 200)):
        root = os.open(folder, os.O_RDONLY)
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
        put(folder, f"deep{depth}/z.jpg")
    codes, _ = listing("deep1200", "deep30")
    assert codes["deep1200/" + "d/" * 1200 + "x.jpg"] == ""
    assert [code for key, code in codes.items() if key.startswith("deep30")] == ["unreadable", ""]
    assert codes["deep30/z.jpg"] == ""
    subprocess.run(["rm", "-rf", "deep1200", "deep30"], check=True)  # pytest cannot remove them


def test_names_that_are_not_utf_8_are_kept(folder: Path) -> None:
    name = os.fsdecode(b"b\xe9\n\x1b[31m.jpg")
    Path("photos").mkdir()
    Path("photos", name).write_bytes(b"x")
    assert listing("photos") == ({f"photos/{name}": ""}, {})
    assert listing(f"photos/{name}") == ({f"photos/{name}": ""}, {})


def test_a_folder_that_cannot_be_listed_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "photos/b/x.jpg", "photos/c/y.jpg")
    scandir = os.scandir

    def failing_scandir(path: str) -> object:
        if path == "photos/b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing_scandir)
    for name in ("photos", "photos/*/*.jpg", "photos/**/*.jpg"):
        skipped = Skipped()
        sources = list(iter_sources([name], skipped=skipped))
        assert [(source.key, source.error and source.error.code) for source in sources] == [
            ("photos/b", "unreadable"), ("photos/c/y.jpg", None),
        ]  # fmt: skip


@pytest.mark.parametrize("single", [Path("photos"), "photos", b"photos"])
def test_a_single_input_need_not_be_in_a_list(folder: Path, single: object) -> None:
    put(folder, "photos/a.jpg")
    assert [source.key for source in iter_sources(single)] == ["photos/a.jpg"]  # type: ignore[arg-type]


def test_an_input_of_another_type_is_one_error(folder: Path) -> None:
    put(folder, "a.jpg")
    sources = list(iter_sources([None, "a.jpg", 3]))  # type: ignore[list-item]
    assert [code_of(source) for source in sources] == ["unreadable", "", "unreadable"]


# --- by-products and counts -------------------------------------------------------------------------------------------


def test_by_products_are_skipped_in_folders_patterns_archives_and_stores(folder: Path) -> None:
    put(folder, "photos/good/a.jpg", *(f"photos/good/{name}" for name in BY_PRODUCTS))
    with tarfile.open("some.tar", "w") as archive:
        archive.add("photos/good", "good")
    tops = {name.split("/")[0] for name in BY_PRODUCTS}
    assert listing("photos") == ({"photos/good/a.jpg": ""}, {"by_product": len(tops)})
    assert listing("photos/**/*.jpg")[0] == {"photos/good/a.jpg": ""}
    assert listing("photos/*/*/*.jpg")[0] == {"photos/*/*/*.jpg": "not_found"}
    assert listing("some.tar") == ({"some.tar::good/a.jpg": ""}, {"by_product": len(BY_PRODUCTS)})
    codes, skipped = listing(f"file://{folder}/photos")
    assert list(codes.values()) == [""]
    assert skipped == {"by_product": len(BY_PRODUCTS)}


def test_named_inputs_are_read_even_if_a_folder_would_skip_them(folder: Path) -> None:
    put(folder, ".cache/a.jpg", "@eaDir/b.jpg", ".c.jpg")
    codes, _ = listing(".cache", "@eaDir", ".c.jpg", "./@eaDir/*.jpg")
    assert list(codes) == [".cache/a.jpg", "@eaDir/b.jpg", ".c.jpg", "./@eaDir/b.jpg"]


def test_the_error_for_an_empty_folder_says_what_was_skipped(folder: Path) -> None:
    put(folder, "photos/x.txt")
    (source,) = iter_sources(["photos"])
    assert source.error is not None
    assert source.error.message == (
        "no image in the folder 'photos'; skipped 1 file without an image suffix (.txt), such as photos/x.txt"
    )


# --- archives and tables in folders -----------------------------------------------------------------------------------


def write_table(path: str, **columns: list[object]) -> None:
    pq.write_table(pa.table(columns), path)


def test_archives_beside_images_are_read(folder: Path) -> None:
    put(folder, "src/1.jpg", "photos/preview.png")
    with tarfile.open("photos/all.tar", "w") as archive:
        archive.add("src/1.jpg", "1.jpg")
    write_table("photos/more.parquet", image=[b"x", b"y"])
    assert list(listing("photos")[0]) == [
        "photos/all.tar::1.jpg", "photos/more.parquet:0", "photos/more.parquet:1", "photos/preview.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["set", "set/*", "file://{folder}/set"])
def test_the_metadata_tables_of_img2dataset_are_skipped(folder: Path, name: str) -> None:
    put(folder, "set/00000_stats.json", "src/1.jpg")
    with tarfile.open("set/00000.tar", "w") as archive:
        archive.add("src/1.jpg", "000000000.jpg")
        archive.add("src/1.jpg", "000000000.json")
    write_table("set/00000.parquet", url=["http://x/1.jpg"], key=["000000000"], status=["success"])
    codes, skipped = listing(name.format(folder=folder))
    assert [key.rpartition("/")[2] for key in codes] == ["00000.tar::000000000.jpg"]
    assert skipped == {"metadata_table": 1, "other_suffix": 2}


def test_a_table_of_paths_beside_its_images_is_skipped(folder: Path) -> None:
    put(folder, "set/1.jpg")
    write_table("set/metadata.parquet", file_name=["1.jpg"], label=[1])
    assert listing("set") == ({"set/1.jpg": ""}, {"metadata_table": 1})
    assert listing("set/metadata.parquet") == ({"set/metadata.parquet:0": ""}, {})


def test_results_of_tessella_are_not_read_as_data(folder: Path) -> None:
    put(folder, "photos/a.jpg", "photos/run/run.json", "photos/run/manifest.parquet", "photos/run/shards/x.parquet")
    put(folder, "photos/fit/train.json", "photos/fit/metrics.jsonl", "photos/fit/curves.png")
    put(folder, "photos/scores/report.json", "photos/scores/report.md", "photos/scores/confusion.png")
    put(folder, "photos/mine/report.json", "photos/mine/confusion.png")  # without report.md, Tessella did not write it
    table = pa.table(dict(key=["a"], status=["ok"])).replace_schema_metadata({"tessella": "{}"})
    pq.write_table(table, "photos/out.parquet")
    codes, skipped = listing("photos")
    assert codes == {"photos/a.jpg": "", "photos/mine/confusion.png": ""}
    assert skipped["own_result"] == 4


def test_explanations_are_not_read_as_data_unless_they_are_named(folder: Path) -> None:
    names = [f"photos/out/{name}" for name in ("a.explained.png", "a.explained.npz", "a.links.png", "a.links.npz")]
    put(folder, "photos/a.jpg", "photos/b.explained.png", *names)  # the arrays of the second one are not there
    codes, skipped = listing("photos")
    assert codes == {"photos/a.jpg": "", "photos/b.explained.png": ""}
    assert skipped == {"own_result": 4}
    assert listing("photos/out/a.explained.png") == ({"photos/out/a.explained.png": ""}, {})
    assert listing("photos/*/a.explained.png")[0] == {"photos/out/a.explained.png": ""}


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.zip"])
def test_the_error_for_a_compressed_archive_says_to_unpack_it(folder: Path, name: str) -> None:
    put(folder, name)
    (source,) = iter_sources([name])
    with pytest.raises(ImageError, match="unpack") as error:
        source.read()
    assert error.value.code == "unsupported_format"


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns(folder: Path) -> None:
    put(folder, "p/a1.jpg", "p/a2.jpg", "p/b/c.png", "p/b/.d.jpg", "p/b/e/f.jpg", "p/g.txt")
    assert list(listing("p/*")[0]) == [
        "p/a1.jpg",
        "p/a2.jpg",
        "p/b/c.png",
        "p/b/e/f.jpg",
    ]  # matching folders are read completely
    assert list(listing("p/**/*.jpg")[0]) == ["p/a1.jpg", "p/a2.jpg", "p/b/e/f.jpg"]
    assert list(listing("p/**")[0]) == list(listing("p")[0])
    assert list(listing("**/e/*")[0]) == ["p/b/e/f.jpg"]
    assert list(listing("p/b/.*")[0]) == ["p/b/.d.jpg"]
    assert list(listing(f"{folder}/p/?[!1].jpg")[0]) == [f"{folder}/p/a2.jpg"]
    assert list(listing("*/b/*.png", "./p/b/[c].png")[0]) == ["p/b/c.png", "./p/b/c.png"]
    assert listing("q/*.jpg", "p/g.txt/*.jpg")[0] == {"q/*.jpg": "not_found", "p/g.txt/*.jpg": "not_found"}
    Path("p/b/loop").symlink_to(".")
    assert list(listing("p/**/*.png")[0]) == ["p/b/c.png"]


@pytest.mark.parametrize(
    ("pattern", "base", "parts"),
    [
        ("C:\\photos\\**\\*.jpg", "C:/photos", ["**", "*.jpg"]),
        ("C:\\*.jpg", "C:/", ["*.jpg"]),
        ("C:/*.jpg", "C:/", ["*.jpg"]),
        ("photos\\*.jpg", "photos", ["*.jpg"]),
        ("*.jpg", "", ["*.jpg"]),
        ("\\*.jpg", "/", ["*.jpg"]),
    ],
)
def test_patterns_of_windows(pattern: str, base: str, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sep", "\\")
    monkeypatch.setattr(os, "altsep", "/")
    assert split_pattern(pattern) == (base, parts)


def test_a_backslash_in_a_pattern_is_part_of_a_name_elsewhere() -> None:
    assert split_pattern("a\\b/*.jpg") == ("a\\b", ["*.jpg"])
    assert split_pattern("/*.jpg") == ("/", ["*.jpg"])
    assert split_pattern("//*.jpg") == ("/", ["*.jpg"])
