"""Find the images that inputs name: files, folders, globs, tar archives, Parquet files, lists, URLs of object stores.

Everything found becomes a source, possibly one with an error, or is counted in `Skipped`. A bad entry never affects
the next one.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from ..checks import check_type
from ..errors import ImageError, TessellaError
from ..storage import open_regular, special_kind
from . import tar
from .files import unreadable_file
from .formats.signatures import detect_format
from .lists import detect_encoding, read_entries, resolve_name
from .names import PACKED, Skipped, is_archive, is_image, natural_key, path_ignore_reason
from .remote import is_object, is_url, list_objects, open_input
from .source import Source
from .walk import Entry, special_file, split_pattern, walk

_LISTS = (".csv", ".tsv", ".txt", ".lst", ".list")  # suffixes of files that are lists rather than images
_LOOKED_AT = 512  # bytes


def iter_sources(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    stdin: Iterable[str | bytes] | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Source]:
    """Yield the images that `inputs` name, as they are found; an input that names no image yields one error.

    A file that is named directly is accepted whatever its suffix. Folders (recursively, following links), globs (`**`
    matches any number of folders) and .tar archives yield the files with an image suffix, in natural order (a2 before
    a10) or in the order of the archive. A .parquet file yields its rows. Folders and globs also yield what the archives
    and .parquet files in them hold. All of these may be URLs of object stores. "-" reads one input per line from
    `stdin`, "@FILE" from a file; see `tessella.data.lists` for encodings and separators.

    skipped: counts what is left out (hidden files, other suffixes, system files or folders, links that lead back).
    Raises UsageError `missing_dependency` for a URL of a store whose package is not installed, `bad_argument` for
    inputs of another type.
    """
    check_type("inputs", inputs, str | bytes | os.PathLike | Iterable)
    check_type("skipped", skipped, Skipped | None)
    skipped = Skipped() if skipped is None else skipped
    for item in [inputs] if isinstance(inputs, str | bytes | os.PathLike) else inputs:
        if not isinstance(item, str | bytes | os.PathLike):
            kind = type(item).__name__
            problem = ImageError("unreadable", f"the input {str(item)[:80]!r} is a {kind}, expected a path or a URL")
            yield Source(str(item), "", error=problem)
            continue
        name = os.fsdecode(item)
        if name == "-":
            yield from _from_list(stdin if stdin is not None else (), "-", skipped)
        elif name.startswith("@") and not os.path.lexists(name):
            yield from _from_list_file(name, skipped)
        else:
            yield from _from_name(name, skipped)


# --- lists ------------------------------------------------------------------------------------------------------------


def _from_list_file(name: str, skipped: Skipped) -> Iterator[Source]:
    path = name[1:]
    try:
        file = open_regular(path)
    except (OSError, ValueError) as error:
        problem = unreadable_file(path, error)
        if problem.code == "special_file":
            problem = ImageError(problem.code, f"{problem.message}; write - and send the list to standard input")
        yield Source(path, path, error=problem)
        return
    with file:
        yield from _or_error(_from_list(file, path, skipped), name, f"no input in the list {path!r}")


def _from_list(stream: Iterable[object], name: str, skipped: Skipped) -> Iterator[Source]:
    entries = read_entries(stream)
    while True:
        try:
            entry = next(entries, None)
        except (OSError, ValueError) as error:  # a failing disk, or standard input that was closed
            reason = getattr(error, "strerror", None) or "it is closed"
            yield Source(name, name, error=ImageError("unreadable", f"the list {name!r} could not be read: {reason}"))
            return
        if entry is None:
            return
        if isinstance(entry, ImageError):
            yield Source(name, name, error=entry)
            continue
        try:
            yield from _from_name(resolve_name(entry), skipped)
        except TessellaError as error:  # such as a store whose package is missing: the other entries are still read
            yield Source(entry, entry, error=ImageError(error.code, str(error)))


# --- files, folders and patterns --------------------------------------------------------------------------------------


def _from_name(name: str, skipped: Skipped) -> Iterator[Source]:
    if is_url(name):
        yield from _from_store(name, skipped)
        return
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - a million Path objects cost seconds
    except (OSError, ValueError):
        mode = 0  # reading the file reports the reason
    if stat.S_ISDIR(mode):
        sources = _from_entries(walk(name, skipped), skipped)
        yield from _or_error(sources, name, f"no image in the folder {name!r}", skipped)
    elif not mode and glob.has_magic(name) and not os.path.lexists(name):
        base, pattern = split_pattern(name)
        sources = _from_entries(walk(base, skipped, pattern), skipped)
        yield from _or_error(sources, name, f"no image matches {name!r}", skipped)
    elif mode and (kind := special_kind(mode)):
        yield Source(name, name, error=special_file(name, kind))
    else:
        yield from _from_file(name, bool(mode), skipped)


def _from_entries(entries: Iterator[Entry], skipped: Skipped) -> Iterator[Source]:
    """Yield the sources of those entries of a folder that are images or contain images."""
    for entry in entries:
        if entry.kind == "folder":
            continue
        if entry.kind == "broken" or (entry.kind == "special" and is_image(entry.path)):
            yield Source(entry.path, entry.path, error=entry.error)
        elif entry.kind == "file" and is_image(entry.path):
            yield Source(entry.path, entry.path)
        elif entry.kind == "file" and is_archive(entry.path):
            yield from _from_archive_in_folder(entry.path, entry.beside_images, skipped)
        else:
            skipped.add("packed_archive" if PACKED.fullmatch(entry.path) else "other_suffix", entry.path)


def _from_archive_in_folder(path: str, beside_images: bool, skipped: Skipped) -> Iterator[Source]:
    """Yield the sources of an archive found in a folder, where a Parquet file need not be a table of images."""
    if path.lower().endswith(".parquet"):
        from .parquet import not_images_reason

        reason = not_images_reason(path)
        if reason == "own_result" or (reason and beside_images):
            skipped.add(reason, path)
            return
    yield from _from_file(path, True, skipped)


def _from_file(path: str, exists: bool, skipped: Skipped) -> Iterator[Source]:
    lower = path.lower()
    if exists and lower.endswith(".tar"):
        yield from _or_error(_from_tar(path, skipped), path, f"no image in the archive {path!r}", skipped)
    elif exists and lower.endswith(".parquet"):
        from .parquet import iter_rows

        yield from _or_error(iter_rows(path), path, f"no row in {path!r}")
    elif exists and PACKED.fullmatch(path):
        yield Source(path, path, error=_packed_archive(path))
    elif exists and (problem := list_as_image(path)):
        yield Source(path, path, error=problem)
    else:
        yield Source(path, path)


def list_as_image(path: str) -> ImageError | None:
    """Return the error for a text file with the suffix of a list, which is given as an image; None for other files.

    An empty file and one that cannot be read are others, too: reading them reports the reason.
    """
    if is_url(path) or not path.lower().endswith(_LISTS):
        return None
    try:
        with open_regular(path) as file:
            start = file.read(_LOOKED_AT)
    except (OSError, ValueError):
        return None
    encoding, errors, mark_length = detect_encoding(start)
    text = start[mark_length:].decode(encoding, errors)
    if not text or "\0" in text or detect_format(start):
        return None
    return ImageError(
        "unsupported_format",
        f"{path!r} is a text file, expected an image; if it lists inputs, one per line, give {'@' + path!r} instead",
    )


def _packed_archive(path: str) -> ImageError:
    return ImageError(
        "unsupported_format",
        f"{path!r} is an archive that cannot be read in place, expected a folder, .tar or .parquet; "
        "unpack it and use the folder as the input",
    )


# --- object stores ----------------------------------------------------------------------------------------------------


def _from_store(url: str, skipped: Skipped) -> Iterator[Source]:
    """Yield the sources of one object, of everything below a folder, or of the matches of a pattern."""
    try:
        if is_object(url):
            objects: list[tuple[str, str]] | None = None
        else:
            objects = sorted(list_objects(url), key=lambda item: (natural_key(item[0]), item[0]))
    except ImageError as error:
        yield Source(url, url, error=error)
        return
    if objects is None:
        yield from _from_file(url, True, skipped)
    else:
        sources = _from_entries(_object_entries(objects, skipped), skipped)
        yield from _or_error(sources, url, f"no image below {url!r}", skipped)


def _object_entries(objects: list[tuple[str, str]], skipped: Skipped) -> Iterator[Entry]:
    """Yield objects as the entries of a folder. objects: (URL, path relative to the folder)."""
    archives = {url[:-4] for url, _ in objects if url.lower().endswith(".tar")}
    image_folders = {url.rpartition("/")[0] for url, _ in objects if is_image(url)}
    for url, name in objects:
        if reason := path_ignore_reason(name):
            skipped.add(reason, url)
        else:
            beside = url.rpartition(".")[0] in archives or url.rpartition("/")[0] in image_folders
            yield Entry(url, name, "file", beside_images=beside)


# --- archives ---------------------------------------------------------------------------------------------------------


def _from_tar(path: str, skipped: Skipped) -> Iterator[Source]:
    """Yield the images in an archive, and an error at the end if it is damaged. Repeated names get a number."""
    counts: dict[int, int] = {}  # by the hash of the name: the names themselves would take much memory
    try:
        with open_input(path) as file:
            for member in tar.iter_members(file, path):
                if member.kind == "folder":
                    continue
                if reason := _member_skip_reason(member):
                    skipped.add(reason, f"{path}::{member.name}")
                    continue
                count = counts[hash(member.name)] = counts.get(hash(member.name), 0) + 1
                key = f"{path}::{member.name}" + (f" ({count})" if count > 1 else "")
                yield Source(key, path, member.offset, member.size, _member_error(path, member))
            if tar.has_data_after_end(file):
                skipped.add("data_after_end", path)
    except ImageError as error:
        yield Source(path, path, error=error)
    except OSError as error:
        yield Source(path, path, error=unreadable_file(path, error))


def _member_skip_reason(member: tar.Member) -> str:
    if reason := path_ignore_reason(member.name):
        return reason
    if member.kind == "other" and is_image(member.name):
        return "special_member"
    return "" if is_image(member.name) else "other_suffix"


def _member_error(path: str, member: tar.Member) -> ImageError | None:
    if member.kind == "truncated":
        return ImageError("corrupt_archive", f"{path!r} ends inside this member")
    if member.kind == "sparse":
        return ImageError("unsupported_format", "the member is stored as a sparse file, which cannot be read in place")
    return None


def _or_error(sources: Iterator[Source], key: str, message: str, skipped: Skipped | None = None) -> Iterator[Source]:
    """Yield the sources; if there are none, one error, which also reports what was skipped meanwhile."""
    before = skipped.counts if skipped else {}
    empty = True
    for source in sources:
        empty = False
        yield source
    if empty:
        lines = list(skipped.lines()) if skipped is not None and skipped.counts != before else []
        yield Source(key, key, error=ImageError("not_found", "; ".join([message, *lines])))
