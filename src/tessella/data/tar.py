"""List the members of tar archives with their offsets. Nothing is extracted, and names are only labels.

This reader replaces `tarfile`, which trusts the sizes in an archive, recurses once per extended header and keeps every
member in memory. Formats: v7, ustar, GNU (long names), pax. Every loop moves forward in the file, so the work is
bounded by the file size, and the memory by the limits below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

from ..errors import ImageError

BLOCK = 512
_MAX_NAME = 1 << 16  # bytes of a long name
_MAX_PAX = 1 << 24  # bytes of a pax header: resource forks of macOS take megabytes
_MAX_HEADERS = 64  # extended headers per member; writers use three at most
_MAX_SPARSE = 10_000  # additional blocks with the map of a sparse member
_AFTER_END = 1 << 16  # bytes inspected after the end marker: more than any padding

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
    """A member of an archive.

    kind: "file"; "truncated", whose data end too early; "sparse", which is stored in pieces; "folder"; or "other".
    """

    name: str
    offset: int  # of the data, in bytes
    size: int  # bytes
    kind: Literal["file", "truncated", "sparse", "folder", "other"]


class _Extended(NamedTuple):
    """What extended headers state about the member that follows them; None if they do not."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def _detect_compression(start: bytes) -> str:
    """Return the compression format of a file from its first bytes; "" if it is not a known one."""
    return next((name for magic, name in _COMPRESSED if start.startswith(magic)), "")


def iter_members(file: IO[bytes], name: str) -> Iterator[Member]:
    """Yield the members of an open archive in their order. name: the archive, for messages.

    Raises ImageError `unsupported_format` for a compressed archive, and `corrupt_archive` for a damaged one after
    yielding the members before the damage.
    """
    end = file.seek(0, 2)
    file.seek(0)
    extended, header_count, at = _Extended(), 0, 0
    while True:
        block = file.read(BLOCK)
        if not block and at and not header_count:
            return  # some writers omit the end marker
        if len(block) < BLOCK:
            raise _damaged(name, "it is truncated") if at else _not_tar(name, block)
        if block.count(0) == BLOCK:
            if header_count:
                raise _damaged(name, "it ends after an extended header")
            return
        if not _has_checksum(block):
            raise _damaged(name, f"there is no valid header at byte {at:,}") if at else _not_tar(name, block)
        size = _parse_size(block[124:136])
        if size < 0:
            raise _damaged(name, f"the header at byte {at:,} states the size {size}")
        kind, offset = block[156:157], at + BLOCK
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            header_count += 1
            if header_count > _MAX_HEADERS:
                raise _damaged(name, f"it has more than {_MAX_HEADERS} extended headers in a row at byte {at:,}")
            extended = _extend(file, name, kind, size, min(end - offset, size), extended)
        else:
            member, data_size = _parse_member(file, block, kind, offset, size, extended, end)
            yield member
            if member.kind == "truncated" or member.offset + data_size > end:
                raise _damaged(name, "it is truncated")
            extended, header_count, size, offset = _Extended(), 0, data_size, member.offset
        at = offset + -(-size // BLOCK) * BLOCK
        if at > end:  # the padding is incomplete
            raise _damaged(name, "it is truncated")
        file.seek(at)


def has_data_after_end(file: IO[bytes]) -> bool:
    """Return whether data, such as another archive, follow the end marker. Call it after `iter_members` has ended."""
    return bool(file.read(_AFTER_END).strip(b"\0"))


def _parse_member(
    file: IO[bytes], block: bytes, kind: bytes, offset: int, size: int, extended: _Extended, end: int
) -> tuple[Member, int]:
    """Return a member, and the number of bytes that its data occupy in the archive."""
    raw = extended.name if extended.name is not None else _header_name(block)
    name = raw.rstrip(b"\0").decode("utf-8", "surrogateescape")
    if kind in (b"1", b"2", b"3", b"4", b"6"):  # links and special files have no data
        return Member(name, offset, 0, "other"), 0
    if kind == b"5" or (kind == b"\0" and name.endswith("/")):
        return Member(name, offset, 0, "folder"), 0
    size = size if extended.size is None else extended.size
    if kind == b"S":
        offset += _sparse_map_size(file, block)
    if kind == b"S" or extended.sparse:
        return Member(name, offset, size, "sparse"), size
    if kind not in (b"0", b"\0", b"7"):  # volume labels, continuations of other volumes, attributes
        return Member(name, offset, size, "other"), size
    return Member(name, offset, size, "file" if offset + size <= end else "truncated"), size


def _sparse_map_size(file: IO[bytes], block: bytes) -> int:
    """Return the size in bytes of the blocks that continue the map of a sparse member (GNU)."""
    map_size, is_continued = 0, block[482]
    while is_continued and map_size < _MAX_SPARSE * BLOCK:
        continuation = file.read(BLOCK)
        map_size += BLOCK
        is_continued = continuation[504] if len(continuation) == BLOCK else 0
    return map_size


def _extend(file: IO[bytes], name: str, kind: bytes, size: int, available: int, extended: _Extended) -> _Extended:
    """Return `extended` with what a long name or a pax header states about the member that follows it."""
    if available < size:
        raise _damaged(name, "it is truncated inside an extended header")
    if kind in (b"K", b"g"):  # the target of a link, and global records: neither contains a name or a size
        return extended
    if size > (_MAX_NAME if kind == b"L" else _MAX_PAX):
        raise _damaged(name, f"it has an extended header of {size:,} bytes")
    content = file.read(size)
    if kind == b"L":
        return extended._replace(name=content.rstrip(b"\0"))
    for key, value in _pax_records(content, name):
        if key == b"path" and not extended.sparse:
            extended = extended._replace(name=value)
        elif key == b"GNU.sparse.name":
            extended = extended._replace(name=value, sparse=True)
        elif key.startswith(b"GNU.sparse."):
            extended = extended._replace(sparse=True)
        elif key == b"size":
            if not re.fullmatch(rb"\d{1,18}", value):
                raise _damaged(name, f"a pax header states the size {value[:20]!r}")
            extended = extended._replace(size=int(value))
    return extended


def _pax_records(content: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) for each record "LENGTH key=value" of a pax header."""
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


def _header_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _parse_size(field: bytes) -> int:
    """Parse a size, in octal digits or in binary with the first bit set; -1 if it is neither."""
    if field[0] & 0x80:
        bits = 8 * len(field)
        value = int.from_bytes(field, "big") - (1 << (bits - 1 if field[0] == 0x80 else bits))
        return value if value < 1 << 62 else -1
    digits = field.split(b"\0", 1)[0].strip()
    return -1 if not re.fullmatch(rb"[0-7]*", digits) else int(digits or b"0", 8)


def _has_checksum(block: bytes) -> bool:
    stated = _parse_size(block[148:156])
    others = block[:148] + 8 * b" " + block[156:]
    return stated in (sum(others), sum(others) - 256 * sum(byte > 127 for byte in others))


def _damaged(name: str, problem: str) -> ImageError:
    return ImageError("corrupt_archive", f"the archive {name!r} is damaged: {problem}")


def _not_tar(name: str, start: bytes) -> ImageError:
    if compression := _detect_compression(start):
        return ImageError(
            "unsupported_format",
            f"{name!r} is a compressed archive ({compression}), expected an uncompressed tar archive: "
            "members are read in place, at their offsets; unpack it, or decompress it to .tar first",
        )
    return _damaged(name, "it is not a tar archive")
