"""Tar archives: those of `tarfile` and GNU tar are read, and hostile ones cost bounded time and memory."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from tessella.data import tar
from tessella.data.names import Skipped
from tessella.data.source import Source
from tessella.data.sources import iter_sources
from tessella.errors import ImageError

END = bytes(1024)


def header(
    name: bytes = b"a.jpg",
    size: int | bytes = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    for at, value in ((0, name), (124, field), (156, kind), (257, magic), (345, prefix), (148, b" " * 8)):
        block[at : at + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes = b"a.jpg", data: bytes = b"data", kind: bytes = b"0", **more: bytes) -> bytes:
    return header(name, len(data), kind, **more) + data + bytes(-len(data) % 512)


def pax(**records: bytes) -> bytes:
    content = b""
    for key, value in records.items():
        rest = b" " + key.replace("_", ".").encode() + b"=" + value + b"\n"
        length = len(rest) + len(str(len(rest) + 3))
        content += str(length).encode() + rest if len(str(length)) + len(rest) == length else b""
        assert content
    return member(b"pax", content, b"x")


def read(path: Path, data: bytes | None = None) -> tuple[list[Source], dict[str, int]]:
    if data is not None:
        path.write_bytes(data)
    skipped = Skipped()
    return list(iter_sources([str(path)], skipped=skipped)), skipped.counts


def codes(sources: list[Source]) -> list[str]:
    return [source.error.code if source.error else "" for source in sources]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("end", [True, False])
def test_members_are_those_of_tarfile(tmp_path: Path, format: int, end: bool) -> None:
    rng = random.Random(0)
    names = [
        "a.jpg", "d/b.png", "long/" + "n" * 90 + "/c.jpg", "p" * 99 + ".jpg"[:1], "é.jpg", "../up.jpg", "/abs.jpg",
        "x/" * 60 + "deep.jpg",
    ]  # fmt: skip
    if format != tarfile.USTAR_FORMAT:
        names += ["n" * 250 + ".jpg", "x/" * 300 + "y.jpg"]
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = rng.choice([0, 1, 511, 512, 513, 5000])
            archive.addfile(info, io.BytesIO(rng.randbytes(info.size)))
    if not end:
        data = (tmp_path / "x.tar").read_bytes()
        (tmp_path / "x.tar").write_bytes(data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512))
    with tarfile.open(tmp_path / "x.tar") as archive, (tmp_path / "x.tar").open("rb") as file:
        expected = [(info.name, info.offset_data, info.size) for info in archive]
        assert [(entry.name, entry.offset, entry.size) for entry in tar.iter_members(file, "x.tar")] == expected


def test_hard_links_and_sparse_files_of_gnu_tar(tmp_path: Path) -> None:
    """Hard links are stored once, and sparse files in pieces; neither affects the next member."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpg").write_bytes(b"a")
    os.link(tmp_path / "d" / "a.jpg", tmp_path / "d" / "b.jpg")
    with (tmp_path / "d" / "c.jpg").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"c")
    (tmp_path / "d" / "z.jpg").write_bytes(b"z")
    for format in ("gnu", "pax"):
        subprocess.run(
            ["tar", "--sparse", f"--format={format}", "--sort=name", "-cf", "x.tar", "d"], cwd=tmp_path, check=True
        )
        sources, skipped = read(tmp_path / "x.tar")
        names = [source.key.rpartition("::")[2] for source in sources]
        assert names == ["d/a.jpg", "d/c.jpg", "d/z.jpg"]
        assert codes(sources) == ["", "unsupported_format", ""]
        assert (sources[0].read(), sources[2].read()) == (b"a", b"z")
        assert skipped == {"special_member": 1}


def test_sizes_above_eight_gigabytes_are_read(tmp_path: Path) -> None:
    """Sizes are binary numbers, as in GNU tar, or in a pax header. The data are a hole in the file."""
    size = 9 << 30
    binary = b"\x80" + size.to_bytes(11, "big")
    for first in (header(b"big.bin", binary), pax(size=str(size).encode()) + header(b"big.bin", 0)):
        with (tmp_path / "x.tar").open("wb") as file:
            file.write(first)
            file.seek(size, os.SEEK_CUR)
            file.write(member() + END)
        sources, _ = read(tmp_path / "x.tar")
        assert [source.read() for source in sources] == [b"data"]


@pytest.mark.parametrize(
    ("data", "before"),
    [
        pytest.param(member() + header(b"b.jpg", b"\xff" * 11 + b"\x00") + END, 1, id="size -256"),
        pytest.param(header(b"b.jpg", b"\xff" * 10 + b"\xfe\x00") + END, 0, id="size -512"),
        pytest.param(member() + header(b"b.jpg", b"-0000001000\0") + END, 1, id="size -512 in text"),
        pytest.param(member() + header(b"b.jpg", b"99999999999\0") + END, 1, id="size that is not octal"),
        pytest.param(member() + header(b"b.jpg", b"\x80" + b"\xff" * 11) + END, 1, id="size 2^88"),
        pytest.param(member() + header(b"l", b"\xff" * 10 + b"\xfe\x00", b"L") + END, 1, id="long name of size -512"),
        pytest.param(member() + header(b"b.jpg", 1 << 30) + b"x" * 512, 2, id="truncated inside a member"),
        pytest.param(member()[:700], 1, id="truncated in the padding"),
        pytest.param(member() + header()[:100], 1, id="truncated in a header"),
        pytest.param(member() + b"garbage!" * 64, 1, id="no header"),
        pytest.param(
            member() + member(b"l", b"name", b"L") * 1500 + member(b"b.jpg") + END, 1, id="long names in a row"
        ),
        pytest.param(member() + pax(path=b"b.jpg") * 1500 + member() + END, 1, id="pax headers in a row"),
        pytest.param(member() + member(b"g", b"", b"g") * 1500 + END, 1, id="global headers in a row"),
        pytest.param(member() + header(b"l", 1 << 20, b"L") + bytes(1 << 20) + END, 1, id="name of a megabyte"),
        pytest.param(member() + header(b"x", 1 << 25, b"x") + bytes(1 << 25) + END, 1, id="pax of 32 MiB"),
        pytest.param(member() + header(b"x", 1 << 40, b"x") + END, 1, id="missing pax records"),
        pytest.param(member() + member(b"x", b"5 path=b.jpg\n", b"x") + member() + END, 1, id="wrong length in pax"),
        pytest.param(
            member() + member(b"x", b"9" * 400 + b" a=b\n", b"x") + member() + END, 1, id="long number in pax"
        ),
        pytest.param(member() + pax(size=b"-512") + member() + END, 1, id="negative size in pax"),
        pytest.param(member() + pax(size=b"9" * 18) + member() + END, 2, id="absurd size in pax"),
        pytest.param(member() + member(b"l", b"b.jpg", b"L") + END, 1, id="name without a member"),
        pytest.param(b"this is not an archive" * 100, 0, id="text"),
        pytest.param(b"", 0, id="empty"),
    ],
)
def test_damage_is_one_error_after_the_valid_members(tmp_path: Path, data: bytes, before: int) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        sources, _ = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(sources) == before + 1
    assert sources[-1].key == str(path)
    assert codes(sources)[-1] == "corrupt_archive"
    if before:
        assert sources[0].read() == b"data"
    for source in sources[1:]:
        with pytest.raises(ImageError) as error:
            source.read()
        assert error.value.code == "corrupt_archive"
    assert peak < 4_000_000


def test_archives_with_flipped_bits_are_listed_without_other_errors(tmp_path: Path) -> None:
    """Listing ends whatever a header says, and each listed source can be read or raises ImageError."""
    data = pax(path=b"p.jpg") + member() + member(b"l", b"long.jpg", b"L") + member(b"b.jpg") + END
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        sources, _ = read(tmp_path / "x.tar", bytes(damaged))
        assert sources
        for source in sources:
            try:
                source.read()
            except ImageError:
                continue


@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "gzip"), (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd")], ids=["gzip", "zstd"]
)
def test_a_compressed_archive_is_refused_with_its_format(
    tmp_path: Path, pack: Callable[[bytes], bytes], name: str
) -> None:
    sources, _ = read(tmp_path / "x.tar", pack(member() + END))
    assert codes(sources) == ["unsupported_format"]
    assert sources[0].error is not None
    assert name in sources[0].error.message


def test_repeated_member_names_get_distinct_keys(tmp_path: Path) -> None:
    sources, _ = read(
        tmp_path / "x.tar", member(data=b"1") + member(data=b"2") + member(b"b.jpg") + member(data=b"3") + END
    )
    assert [source.key.rpartition("::")[2] for source in sources] == ["a.jpg", "a.jpg (2)", "b.jpg", "a.jpg (3)"]
    assert [source.read() for source in sources] == [b"1", b"2", b"data", b"3"]


def test_member_names(tmp_path: Path) -> None:
    data = b"".join([
        member(b"b\xe9.jpg"), member(b"n.jpg", prefix=b"folder"), member(b"o.jpg", magic=b"ustar  \0", prefix=b"12345"),
        member(b"v7.jpg", magic=b"\0" * 8), member(b"dir/", b"", b"\0"), pax(path="é.jpg".encode()) + member(b"e.jpg"),
        pax(path=b"bad\xff.jpg") + member(b"f.jpg"), member(b"c.jpg", kind=b"7"), member(b"label", kind=b"V"),
    ])  # fmt: skip
    sources, _ = read(tmp_path / "x.tar", data + END)
    assert [source.key.rpartition("::")[2] for source in sources] == [
        os.fsdecode(b"b\xe9.jpg"), "folder/n.jpg", "o.jpg", "v7.jpg", "é.jpg", os.fsdecode(b"bad\xff.jpg"), "c.jpg",
    ]  # fmt: skip
    assert {source.read() for source in sources} == {b"data"}


def test_data_after_the_end_marker_are_counted(tmp_path: Path) -> None:
    sources, skipped = read(tmp_path / "x.tar", member() + END + member(b"b.jpg") + END)
    assert len(sources) == 1
    assert skipped == {"data_after_end": 1}
    assert read(tmp_path / "x.tar", member() + bytes(10240))[1] == {}


def test_signed_checksums_are_accepted(tmp_path: Path) -> None:
    block = bytearray(header(b"\xe9.jpg", 4))
    signed = sum(struct.unpack("512b", bytes(block[:148] + b" " * 8 + block[156:])))
    block[148:156] = b"%06o\0 " % signed
    sources, _ = read(tmp_path / "x.tar", bytes(block) + b"data" + bytes(508) + END)
    assert [source.read() for source in sources] == [b"data"]
