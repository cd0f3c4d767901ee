"""What a command line names -> images: files, folders, globs, tar archives, Parquet, lists, URLs of object stores."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from ..errors import ImageError
from .decode import DEFAULT_LIMITS, Limits, read_file
from .remote import is_object, is_url, listed, opened, read_url

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)


Wanted: TypeAlias = Callable[[str], bool]  # of a file's name


@dataclass(frozen=True)
class Source:
    """One input: `key` is what the user sees, `read()` its bytes. Picklable; nothing is open between reads."""

    key: str
    path: str
    offset: int | None = None  # of a member inside its tar archive, in bytes
    size: int | None = None  # bytes
    error: ImageError | None = None  # what `read` raises for an input that names no image

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """The bytes of the file or member, for `decode`; ImageError if they cannot be had."""
        if self.error is not None:
            raise self.error
        if self.offset is None or self.size is None:
            return read_url(self.path, limits) if is_url(self.path) else read_file(self.path, limits)
        if self.size > limits.bytes:
            raise ImageError("too_many_bytes", f"the member has {self.size:,} bytes, the limit is {limits.bytes:,}")
        if is_url(self.path):
            data = read_url(self.path, limits, self.offset, self.size)
        else:
            with opened(self.path) as archive:
                archive.seek(self.offset)
                data = archive.read(self.size)
        if len(data) < self.size:
            raise ImageError("unreadable", f"{self.path!r} ends inside this member")
        return data


def iter_sources(inputs: Sequence[str], stdin: Iterable[str] | None = None) -> Iterator[Source]:
    """The images that `inputs` name, one after the other, as they are found; an input that names none is one error.

    A file is taken whatever its name is. Folders (with all below them), globs (`**` reaches all folders) and .tar
    archives give the files with an image's suffix, in natural order (a2 before a10; an archive's own order), without
    hidden ones; a .parquet file gives its rows, a folder without images what its archives and .parquet files hold. All
    of these may be URLs of object stores. "-" reads one input a line from `stdin`, "@FILE" from a file.
    """
    for given in inputs:
        if given == "-":
            yield from _in_lines(stdin or ())
        elif given.startswith("@") and not os.path.lexists(given):
            yield from _or_error(_in_list(given[1:]), given, f"no input in the list {given[1:]!r}")
        else:
            yield from _expand(given)


def _in_lines(lines: Iterable[str]) -> Iterator[Source]:
    for line in lines:
        if path := line.rstrip("\r\n"):
            yield from _expand(path)


def _in_list(path: str) -> Iterator[Source]:
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            yield from _in_lines(file)
    except OSError as error:
        yield Source(path, path, error=ImageError("unreadable", f"{path!r} could not be read: {error.strerror}"))


def _expand(given: str) -> Iterator[Source]:
    if is_url(given):
        yield from _or_error(_in_store(given), given, f"no image below {given!r}")
    elif Path(given).is_dir():
        yield from _or_error(_first_of(_in_folder, given), given, f"no image in the folder {given!r}")
    elif glob.has_magic(given) and not os.path.lexists(given):
        found = sorted(glob.iglob(given, recursive=True), key=natural)  # noqa: PTH207 - patterns may be absolute
        yield from _or_error(_among(found), given, f"no image matches {given!r}")
    else:
        yield from _in_file(given)


def _first_of(listing: Callable[[str, Wanted], Iterator[Source]], folder: str) -> Iterator[Source]:
    """Its images; of a folder without, what its archives and tables hold."""
    empty = True
    for source in listing(folder, _is_image):
        empty = False
        yield source
    if empty:
        for archive in listing(folder, _is_archive):
            yield from _in_file(archive.path) if archive.error is None else (archive,)


def _among(paths: Iterable[str]) -> Iterator[Source]:
    for path in paths:
        if _is_image(path) or _is_archive(path):
            yield from _in_file(path)


def _in_store(url: str) -> Iterator[Source]:
    """One object, all below a folder, or those that a pattern matches."""
    try:
        if is_object(url):
            yield from _in_file(url)
        elif glob.has_magic(url):
            yield from _among(sorted(listed(url), key=natural))
        else:
            yield from _first_of(_below, url)
    except ImageError as error:
        yield Source(url, url, error=error)


def _below(url: str, wanted: Wanted) -> Iterator[Source]:
    return (Source(name, name) for name in sorted(listed(url), key=natural) if wanted(name))


def _in_file(path: str) -> Iterator[Source]:
    there = is_url(path) or Path(path).is_file()
    if path.lower().endswith(".tar") and there:
        yield from _or_error(_in_tar(path), path, f"no image in the archive {path!r}")
    elif path.lower().endswith(".parquet") and there:
        from .stores import parquet_rows

        yield from _or_error(parquet_rows(path), path, f"no row in {path!r}")
    else:
        yield Source(path, path)


def _in_folder(folder: str, wanted: Wanted) -> Iterator[Source]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: natural(e.name))
    except OSError as error:
        yield Source(
            folder, folder, error=ImageError("unreadable", f"{folder!r} could not be listed: {error.strerror}")
        )
        return
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):  # a linked folder could lead back here
            yield from _in_folder(entry.path, wanted)
        elif wanted(entry.name) and entry.is_file():
            yield Source(entry.path, entry.path)


def _in_tar(path: str) -> Iterator[Source]:
    """Members by their offset in the uncompressed archive: nothing is extracted, a member's name is only a label."""
    damaged = ImageError("unreadable", f"{path!r} is cut off, damaged, or not an uncompressed tar archive")
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                hidden = any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in parts)
                if member.isreg() and not member.issparse() and not hidden and _is_image(member.name):
                    yield Source(f"{path}::{member.name}", path, member.offset_data, member.size)
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member it has passed
            if file.seek(0, os.SEEK_END) % tarfile.BLOCKSIZE:  # tarfile takes half a header for the end
                yield Source(path, path, error=damaged)
    except (tarfile.TarError, ImageError, OSError, ValueError, EOFError):
        yield Source(path, path, error=damaged)


def _or_error(sources: Iterator[Source], key: str, message: str) -> Iterator[Source]:
    empty = True
    for source in sources:
        empty = False
        yield source
    if empty:
        yield Source(key, key, error=ImageError("not_found", message))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a million Path objects cost seconds


def _is_archive(name: str) -> bool:
    return name.lower().endswith((".tar", ".parquet"))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which numbers count as numbers: a2 before a10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
