"""Walk folders and match patterns. Links are followed, but never in a circle; nothing is left out silently."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, TypeAlias

from ..errors import ImageError
from ..storage import special_kind
from .names import (
    Skipped,
    can_mark_results,
    ignore_reason,
    is_first_run_file,
    is_image,
    is_result_folder,
    natural_key,
    result_entries,
)

FolderId: TypeAlias = tuple[int, int]  # device and inode


class Entry(NamedTuple):
    """One entry below the root of a walk.

    kind: "file"; "folder"; "special", a pipe, socket or device; or "broken", a link that cannot be followed or a folder
    that cannot be listed.
    """

    path: str
    name: str  # path relative to the root, with "/"
    kind: Literal["file", "folder", "special", "broken"]
    dir_entry: os.DirEntry[str] | None = None  # None for a folder that cannot be listed, and for objects of a store
    error: ImageError | None = None  # of a special or broken entry
    beside_images: bool = False  # its folder has image files, or a .tar file of the same stem


class _Folder(NamedTuple):
    """A folder whose entries are being walked."""

    entries: Iterator[os.DirEntry[str]]
    path: str
    name: str
    matched: frozenset[int]  # numbers of leading parts of the pattern that the path of this folder can match
    folder_id: FolderId
    links: int  # symbolic links in its path below the root
    results: set[str]  # names of entries that Tessella wrote
    archives: set[str]  # stems of the .tar files
    has_images: bool


class _Visited(NamedTuple):
    """The folders that keep a walk along links finite."""

    above: set[FolderId]  # folders that contain the root
    behind_links: set[tuple[FolderId, frozenset[int]]]  # folders already listed behind two or more consecutive links


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """Split a pattern into the folder before its first wildcard ("" for the current one) and the remaining parts.

    On Windows, the separator is a backslash or a slash.
    """
    parts = (pattern.replace(os.sep, os.altsep) if os.altsep else pattern).split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:first])
    if first and (not base or (os.altsep and base.endswith(":"))):  # the root of a file system or of a drive
        base += "/"
    return base, [part for part in parts[first:] if part not in ("", ".")]


def walk(root: str, skipped: Skipped, pattern: Sequence[str] = ()) -> Iterator[Entry]:
    """Yield everything below `root` in natural order, depth first; with a pattern, what matches it.

    pattern: one part per level, where "**" matches any number of levels. The contents of a matching folder match,
    too. Hidden entries, system files or folders, results of Tessella and links to a folder above them are counted
    in `skipped`. A folder behind several consecutive links is listed once, because folders that all link to each other
    have more paths than can be listed. A folder that cannot be listed is an entry of kind "broken".
    """
    end = len(pattern)
    visited = _Visited(_folders_above(root), set())
    top = _open_folder(root, "", _skip_wildcards(pattern, {0}), skipped, [], visited)
    if isinstance(top, Entry):
        yield top
    stack = [top] if isinstance(top, _Folder) else []
    while stack:
        folder = stack[-1]
        dir_entry = next(folder.entries, None)
        if dir_entry is None:
            stack.pop()
            continue
        path = dir_entry.path if folder.path else dir_entry.name
        matched = _advance(pattern, folder.matched, dir_entry.name)
        if not matched or _is_skipped(dir_entry, path, folder, pattern, end in matched, skipped):
            continue
        name = f"{folder.name}/{dir_entry.name}" if folder.name else dir_entry.name
        entry = _inspect(dir_entry, path, name, folder)
        if entry.kind != "folder":
            if end in matched:
                yield entry
            continue
        below = _open_folder(path, name, matched, skipped, stack, visited, dir_entry.is_symlink())
        if isinstance(below, _Folder):
            stack.append(below)
            if end in matched:
                yield entry
        elif below is not None:
            yield below


# --- patterns ---------------------------------------------------------------------------------------------------------


def _skip_wildcards(pattern: Sequence[str], matched: set[int]) -> frozenset[int]:
    """Add the positions that follow if each "**" matches no level."""
    for i in sorted(matched):
        while i < len(pattern) and pattern[i] == "**":
            i += 1
            matched.add(i)
    return frozenset(matched)


def _advance(pattern: Sequence[str], matched: frozenset[int], name: str) -> frozenset[int]:
    """Return the positions in the pattern after an entry of this name."""
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
    return _skip_wildcards(pattern, after)


def _is_skipped(
    entry: os.DirEntry[str], path: str, folder: _Folder, pattern: Sequence[str], counts: bool, skipped: Skipped
) -> bool:
    """Return whether an entry is left out because of its name, which a pattern may override by naming it.

    counts: add it to `skipped`.
    """
    reason = "own_result" if entry.name in folder.results else ignore_reason(entry.name)
    if not reason or entry.name in pattern:
        return False
    if reason == "hidden" and len(pattern) not in folder.matched:  # "*/.*" asks for hidden entries
        return False
    if counts:
        skipped.add(reason, path)
    return True


# --- entries ----------------------------------------------------------------------------------------------------------


def _inspect(entry: os.DirEntry[str], path: str, name: str, folder: _Folder) -> Entry:
    """Return the entry with its kind; only links cost a system call."""
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
        return Entry(path, name, "broken", entry, _broken_link(path, error))
    if stat.S_ISDIR(mode):
        return Entry(path, name, "folder", entry)
    if kind := special_kind(mode):
        return Entry(path, name, "special", entry, special_file(path, kind))
    beside = folder.has_images or (bool(folder.archives) and entry.name.rpartition(".")[0] in folder.archives)
    return Entry(path, name, "file", entry, None, beside)


def special_file(path: str, kind: str) -> ImageError:
    """Return the error for a file that is not opened. kind: as `storage.special_kind` returns it."""
    return ImageError("special_file", f"{path!r} was not opened: it is {kind}, not a regular file")


def _broken_link(path: str, error: OSError) -> ImageError:
    try:
        target = f" to {os.readlink(path)!r}"  # noqa: PTH115 - as above
    except OSError:
        target = ""
    if isinstance(error, FileNotFoundError):
        return ImageError("not_found", f"{path!r} is a link{target}, which does not exist")
    return ImageError("unreadable", f"{path!r} is a link{target}, which cannot be followed: {error.strerror}")


# --- folders ----------------------------------------------------------------------------------------------------------


def _folders_above(root: str) -> set[FolderId]:
    """Return the folders that contain `root`: a link to one of them leads back, too."""
    folders = set()
    try:
        path = os.path.realpath(root or ".")
    except (OSError, ValueError):  # the current folder was deleted; a name with a null character
        return set()
    while (parent := os.path.dirname(path)) != path:  # noqa: PTH120 - as above
        path = parent
        with suppress(OSError):
            status = os.stat(path)  # noqa: PTH116 - as above
            folders.add((status.st_dev, status.st_ino))
    return folders


def _open_folder(
    path: str,
    name: str,
    matched: frozenset[int],
    skipped: Skipped,
    stack: Sequence[_Folder],
    visited: _Visited,
    is_link: bool = False,
) -> _Folder | Entry | None:
    """List a folder; an Entry if it cannot be listed, None if it is left out. stack: the folders that lead to it."""
    links = stack[-1].links + is_link if stack else 0
    try:
        status = os.stat(path or ".")  # noqa: PTH116 - as above
        folder_id = status.st_dev, status.st_ino
        if stack and (folder_id in visited.above or any(folder_id == folder.folder_id for folder in stack)):
            skipped.add("link_loop", path)
            return None
        if links > 1 and (folder_id, matched) in visited.behind_links:
            skipped.add("linked_again", path)
            return None
        with os.scandir(path or ".") as listing:
            entries = sorted(listing, key=lambda entry: (natural_key(entry.name), entry.name))
    except (OSError, ValueError) as error:
        if not stack and isinstance(error, FileNotFoundError | NotADirectoryError):
            return None  # the folder before a pattern: nothing matches
        reason = getattr(error, "strerror", None) or "not a valid file name"
        problem = ImageError("unreadable", f"the folder {path!r} could not be listed: {reason}")
        return Entry(path, name, "broken", None, problem)
    marks = [entry.name for entry in entries if can_mark_results(entry.name)]
    has_just_begun = bool(entries) and all(is_first_run_file(entry.name) for entry in entries)
    if stack and (has_just_begun or is_result_folder(marks)):
        skipped.add("own_result", path)
        return None
    if links > 1:
        visited.behind_links.add((folder_id, matched))
    archives = {entry.name[:-4] for entry in entries if entry.name.lower().endswith(".tar")}
    has_images = any(is_image(entry.name) for entry in entries)
    results = result_entries(marks)
    return _Folder(iter(entries), path, name, matched, folder_id, links, results, archives, has_images)
