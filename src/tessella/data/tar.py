"""Members of tar archives by their offset: nothing is extracted, and a name is only a label.

A reader of its own rather than `tarfile`, which trusts sizes that an archive states, recurses once per extended header,
and holds every member it has seen. Formats: v7, ustar, GNU (long names), pax. Every loop moves forward in the file, so
the work is bounded by its size, and the memory by the limits below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

from ..errors import ImageError

BLOCK = 512
_LONGEST_NAME = 1 << 16  # bytes of a long name
_LARGEST_PAX = 1 << 24  # bytes of a pax header: resource forks of macOS take megabytes
_MOST_HEADERS = 64  # extended headers of one member; writers use three at most
_MOST_SPARSE = 10_000  # further blocks with the map of a sparse member
_AFTER_END = 1 << 16  # bytes that are looked at after the end marker: longer than any padding

_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\3\4", "ZIP"),
    (b"7z\xbc\xaf", "7-Zip"),
    (b"Rar!", "RAR"),
)


class Member(NamedTuple):
    """kind: "file", "cut" (its data end before they should), "sparse" (stored in pieces), "folder", "other"."""

    name: str
    offset: int  # of its data, in bytes
    size: int  # bytes
    kind: Literal["file", "cut", "sparse", "folder", "other"]


class _Headers(NamedTuple):
    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def compression_of(start: bytes) -> str:
    """The format of a compressed archive by its first bytes, "" if it is none that is known."""
    return next((name for magic, name in _COMPRESSED if start.startswith(magic)), "")


def members(file: IO[bytes], name: str) -> Iterator[Member]:
    """All members of an open archive, in its order.

    Raises ImageError `unsupported_format` for a compressed archive, `corrupt_archive` for a damaged one, after the
    members before the damage.
    """
    end = file.seek(0, 2)
    file.seek(0)
    extended, count, at = _Headers(), 0, 0
    while True:
        block = file.read(BLOCK)
        if not block and at and not count:
            return  # no end marker, which some writers leave out
        if len(block) < BLOCK:
            raise _damaged(name, "it is cut off") if at else _not_tar(name, block)
        if block.count(0) == BLOCK:
            if count:
                raise _damaged(name, "it ends after an extended header")
            return
        if not _has_checksum(block):
            raise _damaged(name, f"there is no valid header at byte {at:,}") if at else _not_tar(name, block)
        size = _number(block[124:136])
        if size < 0:
            raise _damaged(name, f"the header at byte {at:,} states the size {size}")
        kind, data = block[156:157], at + BLOCK
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            count += 1
            if count > _MOST_HEADERS:
                raise _damaged(name, f"it has more than {_MOST_HEADERS} extended headers in a row at byte {at:,}")
            extended = _extend(file, name, kind, size, min(end - data, size), extended)
        else:
            member, data_size = _member(file, block, kind, data, size, extended, end)
            yield member
            if member.kind == "cut" or member.offset + data_size > end:
                raise _damaged(name, "it is cut off")
            extended, count, size, data = _Headers(), 0, data_size, member.offset
        at = data + -(-size // BLOCK) * BLOCK
        if at > end:  # in the padding
            raise _damaged(name, "it is cut off")
        file.seek(at)


def has_data_after_end(file: IO[bytes]) -> bool:
    """Whether something follows the end marker, such as another archive; call it after `members`."""
    return bool(file.read(_AFTER_END).strip(b"\0"))


def _member(
    file: IO[bytes], block: bytes, kind: bytes, data: int, size: int, extended: _Headers, end: int
) -> tuple[Member, int]:
    """A member, and the bytes that its data take in the archive."""
    raw = extended.name if extended.name is not None else _name(block)
    name = raw.rstrip(b"\0").decode("utf-8", "surrogateescape")
    if kind in (b"1", b"2", b"3", b"4", b"6"):  # links and special files have no data
        return Member(name, data, 0, "other"), 0
    if kind == b"5" or (kind == b"\0" and name.endswith("/")):
        return Member(name, data, 0, "folder"), 0
    size = size if extended.size is None else extended.size
    if kind == b"S":
        data += _sparse_map(file, block)
    if kind == b"S" or extended.sparse:
        return Member(name, data, size, "sparse"), size
    if kind not in (b"0", b"\0", b"7"):  # volume labels, parts of other volumes, attributes
        return Member(name, data, size, "other"), size
    return Member(name, data, size, "file" if data + size <= end else "cut"), size


def _sparse_map(file: IO[bytes], block: bytes) -> int:
    """Bytes of the blocks that continue the map of a sparse member (GNU)."""
    extra, more = 0, block[482]
    while more and extra < _MOST_SPARSE * BLOCK:
        following = file.read(BLOCK)
        extra += BLOCK
        more = following[504] if len(following) == BLOCK else 0
    return extra


def _extend(file: IO[bytes], name: str, kind: bytes, size: int, there: int, before: _Headers) -> _Headers:
    """What a long name or a pax header says about the member that follows."""
    if there < size:
        raise _damaged(name, "it is cut off inside an extended header")
    if kind in (b"K", b"g"):  # the target of a link, and what holds for all members: neither name nor size
        return before
    if size > (_LONGEST_NAME if kind == b"L" else _LARGEST_PAX):
        raise _damaged(name, f"it has an extended header of {size:,} bytes")
    content = file.read(size)
    if kind == b"L":
        return before._replace(name=content.rstrip(b"\0"))
    for key, value in _records(content, name):
        if key == b"path" and not before.sparse:
            before = before._replace(name=value)
        elif key == b"GNU.sparse.name":
            before = before._replace(name=value, sparse=True)
        elif key.startswith(b"GNU.sparse."):
            before = before._replace(sparse=True)
        elif key == b"size":
            if not re.fullmatch(rb"\d{1,18}", value):
                raise _damaged(name, f"a pax header states the size {value[:20]!r}")
            before = before._replace(size=int(value))
    return before


def _records(content: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each line "LENGTH key=value" of a pax header."""
    at = 0
    while at < len(content) and content[at]:
        match = re.compile(rb"(\d{1,9}) ").match(content, at)
        end = at + int(match[1]) if match else 0
        if not match or end <= match.end() or end > len(content) or content[end - 1 : end] != b"\n":
            raise _damaged(name, "a pax header is damaged")
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not equals:
            raise _damaged(name, "a pax header is damaged")
        yield key, value
        at = end


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int:
    """A size: octal digits, or binary with the first bit set; -1 if it is neither."""
    if field[0] & 0x80:
        bits = 8 * len(field)
        value = int.from_bytes(field, "big") - (1 << (bits - 1 if field[0] == 0x80 else bits))
        return value if value < 1 << 62 else -1
    digits = field.split(b"\0", 1)[0].strip()
    return -1 if not re.fullmatch(rb"[0-7]*", digits) else int(digits or b"0", 8)


def _has_checksum(block: bytes) -> bool:
    stated = _number(block[148:156])
    others = block[:148] + 8 * b" " + block[156:]
    return stated in (sum(others), sum(others) - 256 * sum(byte > 127 for byte in others))


def _damaged(name: str, what: str) -> ImageError:
    return ImageError("corrupt_archive", f"the archive {name!r} is damaged: {what}")


def _not_tar(name: str, start: bytes) -> ImageError:
    if packed := compression_of(start):
        return ImageError(
            "unsupported_format",
            f"{name!r} is a compressed archive ({packed}), expected an uncompressed tar archive: "
            "members are read in place, at their offset; unpack it, or decompress it to .tar first",
        )
    return _damaged(name, "it is not a tar archive")
