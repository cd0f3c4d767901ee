"""Text lists of inputs, as other systems write them: encodings, separators and errors."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessella.data.lists import LONGEST_ENTRY, read_entries
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.errors import ImageError

NAMES = ["a b.jpg", "é.jpg", "日本.png"]


def split(text: bytes, chunk: int = 1 << 16) -> list[str]:
    """Return the entries of a list that arrives in chunks of this size."""

    class ChunkedStream(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = text

        def read(self, size: int = -1) -> bytes:
            data, self.rest = self.rest[:chunk], self.rest[chunk:]
            return data

    entries = list(read_entries(ChunkedStream()))
    assert not [entry for entry in entries if isinstance(entry, ImageError)]
    return [str(entry) for entry in entries]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\0"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b""), ("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff"),
     ("utf-32-le", b"\xff\xfe\0\0")],
)  # fmt: skip
@pytest.mark.parametrize("last", [False, True])
def test_encodings_and_line_endings(encoding: str, mark: bytes, end: str, last: bool, chunk: int) -> None:
    text = end.join(NAMES) + end * last
    assert split(mark + text.encode(encoding), chunk) == NAMES


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n\r\n\n", []),
        (b"\xef\xbb\xbf", []),
        (b"a.jpg", ["a.jpg"]),
        ("\u00e9ab.jpg\r\n\u65e5.jpg".encode("utf-16-le"), ["\u00e9ab.jpg", "\u65e5.jpg"]),  # without a byte order mark
        ("photos/\u65e5.jpg\n".encode("utf-16-be"), ["photos/\u65e5.jpg"]),
        (b"a\0b\0c\0d\0ef.jpg\0", ["a", "b", "c", "d", "ef.jpg"]),  # names that resemble UTF-16
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),  # find -print0
        (b"a\nb.jpg\0", ["a\nb.jpg"]),
        (b"one\na\0b\ntwo\n", ["one", "a\0b", "two"]),  # an invalid name in a list separated by lines
        (b"a\rb.jpg\nc.jpg\n", ["a\rb.jpg", "c.jpg"]),
        (b"a\r\n\r\nb\r\n", ["a", "b"]),
        ("a\x85b\u2028c\x0b.jpg\nd".encode(), ["a\x85b\u2028c\x0b.jpg", "d"]),
        (b"\xff\xfe", []),
        (b"b\xe9.jpg\nc", [os.fsdecode(b"b\xe9.jpg"), "c"]),
        (b" a.jpg \nb", [" a.jpg ", "b"]),
    ],
)
def test_separators_of_entries(data: bytes, expected: list[str]) -> None:
    assert split(data) == split(data, 40) == expected


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_an_endless_entry_is_one_error_in_bounded_memory(end: str) -> None:
    longest = "x" * LONGEST_ENTRY
    entries = list(read_entries(io.BytesIO(f"a{end}{longest * 5}{end}{longest}{end}b{end}".encode())))
    assert [isinstance(entry, ImageError) for entry in entries] == [False, True, False, False]
    assert (entries[0], entries[2], entries[3]) == ("a", longest, "b")
    assert len(list(read_entries(io.BytesIO(longest.encode() * 3)))) == 1


def test_entries_arrive_before_the_list_ends() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stream, os.fdopen(write_end, "wb", buffering=0) as writer:
        writer.write(b"a.jpg\nb.j")
        entries = read_entries(stream)
        assert next(entries) == "a.jpg"
        writer.write(b"pg\n")
        assert next(entries) == "b.jpg"


def test_lines_are_text_or_bytes() -> None:
    assert list(read_entries(["a\n", b"b\r\n", "", "c"])) == ["a", "b", "c"]
    assert isinstance(next(read_entries([3])), ImageError)
    assert list(read_entries(io.StringIO("a\nb\n"))) == ["a", "b"]
    as_latin = io.TextIOWrapper(io.BytesIO("é\n".encode()), encoding="latin-1")  # the bytes are read, not the text
    assert list(read_entries(as_latin)) == ["é"]


def keys(*inputs: str, stdin: Any = None) -> list[str]:
    return [source.key for source in iter_sources(inputs, stdin)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("through", ["file", "stdin"])
def test_an_invalid_entry_is_one_error_and_the_rest_of_the_list_is_read(folder: Path, through: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_bytes(b"x")
    invalid = ["n" * 300, "nul\0.jpg", "x" * (LONGEST_ENTRY + 1), "nowhere://x", "@gone", "-", "*.gif", "q/" * 9000]
    data = "\n".join(["a.jpg", *invalid, "b.jpg"]).encode()
    Path("list").write_bytes(data)
    sources = list(iter_sources(["@list"])) if through == "file" else list(iter_sources(["-"], io.BytesIO(data)))
    assert len(sources) == len(invalid) + 2
    for source in sources[1:-1]:
        with pytest.raises(ImageError):
            source.read()
    assert (sources[0].read(), sources[-1].read()) == (b"x", b"x")


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_listed_names_in_another_form_are_found(folder: Path, on_disk: Any) -> None:
    name = unicodedata.normalize(on_disk, "Café ü.jpg")
    Path(name).write_bytes(b"x")
    Path("spaces .jpg ").write_bytes(b"x")
    forms = [unicodedata.normalize(form, "Café ü.jpg").encode() for form in ("NFC", "NFD")]
    lines = [*forms, forms[0] + b"  ", b"spaces .jpg "]
    if on_disk == "NFC":
        lines.append("Café ü.jpg".encode("cp1252"))
    Path("list").write_bytes(b"\r\n".join(lines))
    assert keys("@list") == [name] * 3 + ["spaces .jpg "] + [name] * (on_disk == "NFC")


def test_a_read_error_in_a_list_is_one_error(folder: Path) -> None:
    class Failing(io.RawIOBase):
        count = 0

        def read(self, size: int = -1) -> bytes:
            self.count += 1
            if self.count > 1:
                raise OSError(5, "Input/output error")
            return b"a.jpg\n"

    sources: list[Source] = list(iter_sources(["-", "b.jpg"], Failing()))
    assert [source.key for source in sources] == ["a.jpg", "-", "b.jpg"]
    assert sources[1].error is not None
    assert sources[1].error.code == "unreadable"


def test_closed_standard_input_is_one_error(folder: Path) -> None:
    def closed() -> Iterator[Any]:
        stream = io.BytesIO()
        stream.close()
        yield stream

    (source,) = iter_sources(["-"], next(closed()))
    assert source.error is not None
    assert "closed" in source.error.message
    assert list(iter_sources(["-"], None)) == []
    assert sys.stdin is None or not sys.stdin.closed
