"""What a command line names -> images: files, folders, globs, tar archives, Parquet, lists, URLs of object stores.

Everything that is seen becomes a source, possibly one with an error, or is counted in `Skipped`; and no entry affects
the next one.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..checks import check_type
from ..errors import ImageError, TessellaError
from ..storage import open_regular, special_kind
from . import tar
from .files import unreadable_file
from .lists import entries, existing_name
from .names import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from .names import PACKED, ignored_path, is_archive, is_image
from .names import Skipped as Skipped
from .names import natural as natural
from .remote import is_object, is_url, listed, opened
from .source import Source as Source
from .walk import Seen, special_file, split_pattern, walk


def iter_sources(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    stdin: Iterable[str] | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Source]:
    """The images that `inputs` name, one after the other, as they are found; an input that names none is one error.

    A file is taken whatever its name is. Folders (with all below them, links included), globs (`**` reaches all
    folders) and .tar archives give the files with an image's suffix, in natural order (a2 before a10; an archive's own
    order); a .parquet file gives its rows; folders and globs also give what the archives and .parquet files in them
    hold. All of these may be URLs of object stores. "-" reads one input per line from `stdin`, "@FILE" from a file;
    see `tessella.data.lists` for encodings and separators.

    skipped: counts what is left out (hidden files, other suffixes, by-products of other systems, links that lead back).
    Raises UsageError if an input is a URL of a store whose package is missing.
    """
    check_type("inputs", inputs, str | bytes | os.PathLike | Iterable)
    check_type("skipped", skipped, Skipped | None)
    skipped = Skipped() if skipped is None else skipped
    for given in [inputs] if isinstance(inputs, str | bytes | os.PathLike) else inputs:
        if not isinstance(given, str | bytes | os.PathLike):
            kind = type(given).__name__
            problem = ImageError("unreadable", f"the input {str(given)[:80]!r} is a {kind}, expected a path or a URL")
            yield Source(str(given), "", error=problem)
            continue
        name = os.fsdecode(given)
        if name == "-":
            yield from _in_list(stdin if stdin is not None else (), "-", skipped)
        elif name.startswith("@") and not os.path.lexists(name):
            yield from _in_list_file(name, skipped)
        else:
            yield from _expand(name, skipped)


# --- lists ------------------------------------------------------------------------------------------------------------


def _in_list_file(given: str, skipped: Skipped) -> Iterator[Source]:
    path = given[1:]
    try:
        file = open_regular(path)
    except (OSError, ValueError) as error:
        problem = unreadable_file(path, error)
        if problem.code == "special_file":
            problem = ImageError(problem.code, f"{problem.message}; give - and the list on standard input")
        yield Source(path, path, error=problem)
        return
    with file:
        yield from _or_error(_in_list(file, path, skipped), given, f"no input in the list {path!r}")


def _in_list(stream: Any, name: str, skipped: Skipped) -> Iterator[Source]:
    found = entries(stream)
    while True:
        try:
            entry = next(found, None)
        except (OSError, ValueError) as error:  # a disk that fails; standard input that was closed
            reason = getattr(error, "strerror", None) or "it is closed"
            yield Source(name, name, error=ImageError("unreadable", f"the list {name!r} could not be read: {reason}"))
            return
        if entry is None:
            return
        if isinstance(entry, ImageError):
            yield Source(name, name, error=entry)
            continue
        try:
            yield from _expand(existing_name(entry), skipped)
        except TessellaError as error:  # a store whose package is missing: the other entries are none of its concern
            yield Source(entry, entry, error=ImageError(error.code, str(error)))


# --- files, folders and patterns --------------------------------------------------------------------------------------


def _expand(given: str, skipped: Skipped) -> Iterator[Source]:
    if is_url(given):
        yield from _in_store(given, skipped)
        return
    try:
        mode = os.stat(given).st_mode  # noqa: PTH116 - a million Path objects cost seconds
    except (OSError, ValueError):
        mode = 0  # reading it says why
    if stat.S_ISDIR(mode):
        found = _among(walk(given, skipped), skipped)
        yield from _or_error(found, given, f"no image in the folder {given!r}", skipped)
    elif not mode and glob.has_magic(given) and not os.path.lexists(given):
        base, pattern = split_pattern(given)
        yield from _or_error(
            _among(walk(base, skipped, pattern), skipped), given, f"no image matches {given!r}", skipped
        )
    elif mode and (kind := special_kind(mode)):
        yield Source(given, given, error=special_file(given, kind))
    else:
        yield from _in_file(given, bool(mode), skipped)


def _among(found: Iterator[Seen], skipped: Skipped) -> Iterator[Source]:
    """Those entries of folders that are images or hold some."""
    for seen in found:
        if seen.kind == "folder":
            continue
        if seen.kind == "broken" or (seen.kind == "special" and is_image(seen.path)):
            yield Source(seen.path, seen.path, error=seen.error)
        elif seen.kind == "file" and is_image(seen.path):
            yield Source(seen.path, seen.path)
        elif seen.kind == "file" and is_archive(seen.path):
            yield from _in_archive(seen.path, seen.beside_images, skipped)
        else:
            skipped.add("packed_archive" if PACKED.fullmatch(seen.path) else "other_suffix", seen.path)


def _in_archive(path: str, beside_images: bool, skipped: Skipped) -> Iterator[Source]:
    """An archive that was found in a folder, where tables may be something else than images."""
    if path.lower().endswith(".parquet"):
        from .parquet import is_metadata

        reason = is_metadata(path)
        if reason == "own_result" or (reason and beside_images):
            skipped.add(reason, path)
            return
    yield from _in_file(path, True, skipped)


def _in_file(path: str, exists: bool, skipped: Skipped) -> Iterator[Source]:
    lower = path.lower()
    if exists and lower.endswith(".tar"):
        yield from _or_error(_in_tar(path, skipped), path, f"no image in the archive {path!r}", skipped)
    elif exists and lower.endswith(".parquet"):
        from .parquet import parquet_rows

        yield from _or_error(parquet_rows(path), path, f"no row in {path!r}")
    elif exists and PACKED.fullmatch(path):
        yield Source(path, path, error=_packed(path))
    else:
        yield Source(path, path)


def _packed(path: str) -> ImageError:
    return ImageError(
        "unsupported_format",
        f"{path!r} is an archive that cannot be read in place, expected a folder, .tar or .parquet; "
        "unpack it and give the folder",
    )


# --- object stores ----------------------------------------------------------------------------------------------------


def _in_store(url: str, skipped: Skipped) -> Iterator[Source]:
    """One object, all below a folder, or those that a pattern matches."""
    try:
        if is_object(url):
            found: list[tuple[str, str]] | None = None
        else:
            found = sorted(listed(url), key=lambda one: (natural(one[0]), one[0]))
    except ImageError as error:
        yield Source(url, url, error=error)
        return
    if found is None:
        yield from _in_file(url, True, skipped)
    else:
        yield from _or_error(_among(_objects(found, skipped), skipped), url, f"no image below {url!r}", skipped)


def _objects(found: list[tuple[str, str]], skipped: Skipped) -> Iterator[Seen]:
    """As entries of a folder. found: (URL, path from the folder)."""
    archives = {url[:-4] for url, _ in found if url.lower().endswith(".tar")}
    folders = {url.rpartition("/")[0] for url, _ in found if is_image(url)}
    for url, name in found:
        if reason := ignored_path(name):
            skipped.add(reason, url)
        else:
            beside = url.rpartition(".")[0] in archives or url.rpartition("/")[0] in folders
            yield Seen(url, name, "file", beside_images=beside)


# --- archives ---------------------------------------------------------------------------------------------------------


def _in_tar(path: str, skipped: Skipped) -> Iterator[Source]:
    """Images in an archive, and an error at the end if it is damaged. A name that is there again gets a number."""
    seen: dict[int, int] = {}  # hash of a name -> how often; the names themselves would take much memory
    try:
        with opened(path) as file:
            for member in tar.members(file, path):
                if member.kind == "folder":
                    continue
                if reason := _left_out(member):
                    skipped.add(reason, f"{path}::{member.name}")
                    continue
                times = seen[hash(member.name)] = seen.get(hash(member.name), 0) + 1
                key = f"{path}::{member.name}" + (f" ({times})" if times > 1 else "")
                yield Source(key, path, member.offset, member.size, _bad_member(path, member))
            if tar.has_data_after_end(file):
                skipped.add("data_after_end", path)
    except ImageError as error:
        yield Source(path, path, error=error)
    except OSError as error:
        yield Source(path, path, error=unreadable_file(path, error))


def _left_out(member: tar.Member) -> str:
    if reason := ignored_path(member.name):
        return reason
    if member.kind == "other" and is_image(member.name):
        return "special_member"
    return "" if is_image(member.name) else "other_suffix"


def _bad_member(path: str, member: tar.Member) -> ImageError | None:
    if member.kind == "cut":
        return ImageError("corrupt_archive", f"{path!r} ends inside this member")
    if member.kind == "sparse":
        return ImageError("unsupported_format", "the member is stored as a sparse file, which cannot be read in place")
    return None


def _or_error(sources: Iterator[Source], key: str, message: str, skipped: Skipped | None = None) -> Iterator[Source]:
    """The sources, or one error if there are none, which then says what was skipped."""
    before = skipped.counts if skipped else {}
    empty = True
    for source in sources:
        empty = False
        yield source
    if empty:
        lines = list(skipped.lines()) if skipped is not None and skipped.counts != before else []
        yield Source(key, key, error=ImageError("not_found", "; ".join([message, *lines])))
