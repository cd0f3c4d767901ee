"""Walking folders and matching patterns: links are followed but never in a circle, and nothing is lost silently."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

from ..errors import ImageError
from ..storage import special_kind
from .names import Skipped, ignored, is_begun, is_image, is_result_folder, natural, result_names

Kind = Literal["file", "folder", "special", "broken"]


class Seen(NamedTuple):
    """One entry below a root. special: a pipe, socket or device; broken: a link or folder that cannot be followed."""

    path: str
    name: str  # from the root, with "/"
    kind: Kind
    entry: os.DirEntry[str] | None = None  # None for the root itself
    error: ImageError | None = None  # of a special or a broken entry
    beside_images: bool = False  # the folder has image files, or a .tar of the same stem


class _Folder(NamedTuple):
    entries: Iterator[os.DirEntry[str]]
    path: str
    name: str
    matched: frozenset[int]  # how many parts of the pattern the path of this folder may have matched
    identity: tuple[int, int]  # device and inode
    links: int  # symbolic links in its path, from the root on
    results: set[str]  # names of entries that Tessella wrote
    archives: set[str]  # stems of the .tar files
    has_images: bool


class _Guard(NamedTuple):
    """What keeps a walk along links finite."""

    above: set[tuple[int, int]]  # device and inode of the folders that contain the root
    behind_links: set[tuple[tuple[int, int], frozenset[int]]]  # folders listed behind two or more links in a row


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """A pattern as the folder before its first wildcard ("" for the current one), and the parts from there on."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:first]) or ("/" if first and pattern.startswith("/") else "")
    return base, [part for part in parts[first:] if part not in ("", ".")]


def walk(root: str, skipped: Skipped, pattern: Sequence[str] = ()) -> Iterator[Seen]:
    """Everything below `root` in natural order, depth first; with a pattern, what matches it.

    pattern: one part per level; "**" stands for any number of levels. What lies in a matching folder matches too.
    Hidden entries, by-products of other systems and results of Tessella are counted in `skipped`, as are links that
    lead back to a folder above them. A folder behind several links in a row is listed once: folders that all link to
    each other have more paths than could ever be listed. A folder that cannot be listed is "broken".
    """
    end = len(pattern)
    guard = _Guard(_identities_above(root), set())
    top = _open(root, "", _closure(pattern, {0}), skipped, [], guard)
    if isinstance(top, Seen):
        yield top
    stack = [top] if isinstance(top, _Folder) else []
    while stack:
        folder = stack[-1]
        entry = next(folder.entries, None)
        if entry is None:
            stack.pop()
            continue
        path = entry.path if folder.path else entry.name
        matched = _advance(pattern, folder.matched, entry.name)
        if not matched or _is_skipped(entry, path, folder, pattern, end in matched, skipped):
            continue
        name = f"{folder.name}/{entry.name}" if folder.name else entry.name
        seen = _look(entry, path, name, folder)
        if seen.kind != "folder":
            if end in matched:
                yield seen
            continue
        below = _open(path, name, matched, skipped, stack, guard, entry.is_symlink())
        if isinstance(below, _Folder):
            stack.append(below)
            if end in matched:
                yield seen
        elif below is not None:
            yield below


def _closure(pattern: Sequence[str], matched: set[int]) -> frozenset[int]:
    """With those that follow where "**" stands for no level."""
    for i in sorted(matched):
        while i < len(pattern) and pattern[i] == "**":
            i += 1
            matched.add(i)
    return frozenset(matched)


def _advance(pattern: Sequence[str], matched: frozenset[int], name: str) -> frozenset[int]:
    if not pattern:
        return matched
    hidden = name.startswith(".")
    after = set()
    for i in matched:
        if i == len(pattern):
            after.add(i)
        elif pattern[i] == "**":
            after |= set() if hidden else {i}
        elif fnmatch.fnmatchcase(name, pattern[i]) and (not hidden or pattern[i].startswith(".")):
            after.add(i + 1)
    return _closure(pattern, after)


def _is_skipped(
    entry: os.DirEntry[str], path: str, folder: _Folder, pattern: Sequence[str], counts: bool, skipped: Skipped
) -> bool:
    """Whether the name alone says that the entry is left out; a pattern may name it all the same."""
    reason = "own_result" if entry.name in folder.results else ignored(entry.name)
    if not reason or entry.name in pattern:
        return False
    if reason == "hidden" and len(pattern) not in folder.matched:  # "*/.*" asks for hidden ones
        return False
    if counts:
        skipped.add(reason, path)
    return True


def _look(entry: os.DirEntry[str], path: str, name: str, folder: _Folder) -> Seen:
    """What an entry is; only links cost a system call."""
    try:
        if entry.is_symlink():
            mode = os.stat(path).st_mode  # noqa: PTH116 - a million Path objects cost seconds
        elif entry.is_file(follow_symlinks=False):
            mode = stat.S_IFREG
        elif entry.is_dir(follow_symlinks=False):
            mode = stat.S_IFDIR
        else:
            mode = entry.stat(follow_symlinks=False).st_mode
    except OSError as error:
        return Seen(path, name, "broken", entry, _broken_link(path, error))
    if stat.S_ISDIR(mode):
        return Seen(path, name, "folder", entry)
    if kind := special_kind(mode):
        return Seen(path, name, "special", entry, special_file(path, kind))
    beside = folder.has_images or (bool(folder.archives) and entry.name.rpartition(".")[0] in folder.archives)
    return Seen(path, name, "file", entry, None, beside)


def special_file(path: str, kind: str) -> ImageError:
    return ImageError("special_file", f"{path!r} was not opened: it is {kind}, not a regular file")


def _broken_link(path: str, error: OSError) -> ImageError:
    try:
        target = f" to {os.readlink(path)!r}"  # noqa: PTH115 - as above
    except OSError:
        target = ""
    if isinstance(error, FileNotFoundError):
        return ImageError("not_found", f"{path!r} is a link{target}, which does not exist")
    return ImageError("unreadable", f"{path!r} is a link{target}, which cannot be followed: {error.strerror}")


def _identities_above(root: str) -> set[tuple[int, int]]:
    """Device and inode of the folders that contain `root`: a link to one of them leads back as well."""
    found = set()
    try:
        path = os.path.realpath(root or ".")
    except (OSError, ValueError):  # the current folder was deleted; a name with a null character
        return set()
    while (parent := os.path.dirname(path)) != path:  # noqa: PTH120 - as below
        path = parent
        with suppress(OSError):
            status = os.stat(path)  # noqa: PTH116 - as below
            found.add((status.st_dev, status.st_ino))
    return found


def _open(
    path: str,
    name: str,
    matched: frozenset[int],
    skipped: Skipped,
    stack: Sequence[_Folder],
    guard: _Guard,
    is_link: bool = False,
) -> _Folder | Seen | None:
    """The sorted entries of a folder; Seen if it cannot be listed, None if it is left out.

    stack: the folders that lead to it.
    """
    links = stack[-1].links + is_link if stack else 0
    try:
        here = os.stat(path or ".")  # noqa: PTH116 - as above
        identity = here.st_dev, here.st_ino
        if stack and (identity in guard.above or any(identity == folder.identity for folder in stack)):
            skipped.add("link_loop", path)
            return None
        if links > 1 and (identity, matched) in guard.behind_links:
            skipped.add("linked_again", path)
            return None
        with os.scandir(path or ".") as found:
            entries = sorted(found, key=lambda entry: (natural(entry.name), entry.name))
    except (OSError, ValueError) as error:
        if not stack and isinstance(error, FileNotFoundError | NotADirectoryError):
            return None  # the folder before a pattern: nothing matches
        reason = getattr(error, "strerror", None) or "not a valid file name"
        problem = ImageError("unreadable", f"the folder {path!r} could not be listed: {reason}")
        return Seen(path, name, "broken", None, problem)
    marks = [entry.name for entry in entries if entry.name.endswith((".json", ".jsonl", ".md")) or
             entry.name in ("manifest.parquet", "checkpoints")]  # fmt: skip
    begun = bool(entries) and all(is_begun(entry.name) for entry in entries)
    if stack and (begun or is_result_folder(marks)):
        skipped.add("own_result", path)
        return None
    if links > 1:
        guard.behind_links.add((identity, matched))
    archives = {entry.name[:-4] for entry in entries if entry.name.lower().endswith(".tar")}
    has_images = any(is_image(entry.name) for entry in entries)
    return _Folder(iter(entries), path, name, matched, identity, links, result_names(marks), archives, has_images)
