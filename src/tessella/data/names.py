"""What the names of files say: images, archives, by-products of other systems, results of Tessella.

Every listing (folders, patterns, object stores, members of archives, training data) uses the tables in this file.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ..text import escape, printable

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
ARCHIVE_SUFFIXES = frozenset((".tar", ".parquet"))
# cannot be read in place: a member would have to be decompressed from the beginning of the archive
PACKED = re.compile(
    r".*(\.tgz|\.tbz2?|\.txz|\.tzst|\.tar\.(gz|bz2|xz|zst|lz4|lzma|br|z)|\.zip|\.7z|\.rar|\.cpio)", re.I | re.S
)

# of macOS, Windows, Linux, NAS systems and tools; names that begin with a dot are skipped in any case
_BY_PRODUCTS = re.compile(
    r"__MACOSX|\._.*|\.DS_Store|\.AppleDouble|\.AppleDB|\.AppleDesktop|\.Spotlight-V100|\.fseventsd|\.TemporaryItems"
    r"|\.Trashes|Network Trash Folder|Temporary Items|Icon\r"  # macOS
    r"|Thumbs\.db(:encryptable)?|ehthumbs(_vista)?\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information"
    r"|found\.\d{3}|.*:Zone\.Identifier"  # Windows
    r"|lost\+found|\.Trash(-\d+)?|\.thumbnails|\.directory|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+"  # Linux
    r"|@eaDir|#recycle|#snapshot|@SynoResource|.+@Syno(Resource|EAStream)|SYNO(PHOTO|FILE|INDEX|VIDEO)[:_].*"  # NAS
    r"|@Recycle|@Recently-Snapshot|\.?@__thumb|~snapshot|\.zfs|\.snapshots?|LOST\.DIR|\.thumbdata.*"  # other storage
    r"|\.ipynb_checkpoints|__pycache__",
    re.I | re.S,
)


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a million Path objects cost seconds


def is_archive(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ARCHIVE_SUFFIXES  # noqa: PTH122 - as above


def ignored(name: str) -> str:
    """Why a file or folder of this name is skipped: "by_product", "hidden", or "" if it is not."""
    if _BY_PRODUCTS.fullmatch(name):
        return "by_product"
    return "hidden" if name.startswith(".") and name not in (".", "..") else ""


def ignored_path(path: str) -> str:
    """As `ignored`, for any part of a path with "/" between its parts."""
    return next((reason for part in path.split("/") if (reason := ignored(part))), "")


def is_missing_path(name: str) -> bool:
    """Return whether an input is a plain path that does not exist; False for URLs, globs, lists and "-"."""
    special = name == "-" or name.startswith("@") or "://" in name or glob.has_magic(name)
    return not special and not os.path.lexists(name)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which numbers count as numbers: a2 before a10."""
    return [_part(part) for part in re.split(r"(\d+)", name)]


def _part(part: str) -> tuple[int, int, str]:
    if not part.isdecimal():
        return (1, 0, part)
    if len(part) < 1000:
        return (0, int(part), "")
    digits = part.lstrip("0")  # int() refuses thousands of digits; shorter numbers come first
    return (0, 10 ** len(digits), digits)


def class_name(name: str) -> str:
    """The name of a class, as it is stored: in Unicode normal form C, escaped where it is not UTF-8.

    Systems store the same word in different forms (macOS decomposes accents): these are one class.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        name = escape(name)
    return unicodedata.normalize("NFC", name)


# --- results of Tessella, which are not read as data ------------------------------------------------------------------

_RESULT_FOLDERS = (  # all files that mark such a folder, and what lies in it
    ({"train.json", "metrics.jsonl"}, {"checkpoints"}),
    ({"train.json", "checkpoints"}, {"checkpoints"}),
    ({"run.json", "manifest.parquet"}, {"manifest.parquet", "shards", "copy", "index"}),
    ({"tessella.json", "manifest.json"}, set[str]()),
)
_RESULT_FILES = (  # files that mark a report, and the others that were written with it
    ({"report.json", "report.md"},
     {"confusion.png", "calibration.png", "coverage.png", "mistakes.png", "curves.png"}),
    ({"evaluation.json", "evaluation.md"}, {"evaluation.png", "evaluation.csv"}),
)  # fmt: skip


MEASURED = ("report.json", "evaluation.json", "probe.json")  # one of these is in a folder of measurements


def is_result_folder(names: Collection[str]) -> bool:
    """Whether a folder with these entries was written by Tessella: a training run, a bulk run, an exported model."""
    return any(marks <= set(names) for marks, _ in _RESULT_FOLDERS)


def is_begun(name: str) -> bool:
    """Whether this is the first file that a run writes; a folder with no other files is a new run, not user data."""
    return name in (".lock", ".train.lock", "train.json") or (name.startswith(".") and name.endswith(".tmp"))


def result_names(names: Collection[str]) -> set[str]:
    """Those of a folder's entries that Tessella wrote, where user data may be beside them."""
    tables = (*_RESULT_FOLDERS, *_RESULT_FILES)
    return {name for marks, written in tables if marks <= set(names) for name in written}


# --- what was skipped -------------------------------------------------------------------------------------------------

_REASONS = {  # code -> words for one, and for several
    "other_suffix": ("file without an image suffix", "files without an image suffix"),
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "by_product": ("by-product of another system", "by-products of other systems"),
    "link_loop": ("link to a folder that contains it", "links to folders that contain them"),
    "linked_again": ("folder that several links lead to again", "folders that several links lead to again"),
    "metadata_table": ("table of metadata beside images", "tables of metadata beside images"),
    "packed_archive": (
        "archive that cannot be read in place (unpack it)", "archives that cannot be read in place (unpack them)"
    ),
    "special_member": ("link or special file inside an archive", "links or special files inside archives"),
    "data_after_end": ("archive with data after its end marker", "archives with data after their end marker"),
    "own_result": ("result of Tessella", "results of Tessella"),
    "unlabelled": ("folder of images without classes", "folders of images without classes"),
    "second_image": ("further image of a sample", "further images of a sample"),
    "broken_link": ("link that leads nowhere", "links that lead nowhere"),
    "unused_list": ("list beside a folder of images", "lists beside folders of images"),
}  # fmt: skip
_MOST_SUFFIXES = 5  # named in a line


@dataclass
class _Reason:
    count: int = 0
    example: str = ""
    suffixes: dict[str, int] = field(default_factory=dict)


class Skipped:
    """What a listing skipped: a count and the first example per reason.

    Pass an empty one to `iter_sources`; it is filled while the sources are iterated.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, _Reason] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """reason: a key of the table above; example: the path or name that is left out."""
        assert reason in _REASONS, reason
        entry = self._reasons.setdefault(reason, _Reason(example=example))
        entry.count += count
        if reason in ("other_suffix", "packed_archive"):
            suffix = os.path.splitext(example)[1].lower() or "no suffix"  # noqa: PTH122 - as above
            if suffix in entry.suffixes or len(entry.suffixes) < 100:
                entry.suffixes[suffix] = entry.suffixes.get(suffix, 0) + count

    def merge(self, other: Skipped) -> None:
        """Add the counts of another listing."""
        for reason, entry in other._reasons.items():
            mine = self._reasons.setdefault(reason, _Reason(example=entry.example))
            mine.count += entry.count
            for suffix, count in entry.suffixes.items():
                mine.suffixes[suffix] = mine.suffixes.get(suffix, 0) + count

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> number, in the order in which the reasons were met."""
        return {reason: entry.count for reason, entry in self._reasons.items()}

    def example(self, reason: str) -> str:
        """The first example skipped for this reason, or "" if there is none."""
        return self._reasons[reason].example if reason in self._reasons else ""

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def lines(self) -> Iterator[str]:
        """One line of printable text per reason: the count, what it was, and the first example."""
        for reason, entry in self._reasons.items():
            words = _REASONS[reason][entry.count != 1]
            kinds = sorted(entry.suffixes, key=lambda suffix: (-entry.suffixes[suffix], suffix))
            shown = kinds[:_MOST_SUFFIXES] + ["..."] * (len(kinds) > _MOST_SUFFIXES)
            suffixes = f" ({', '.join(shown)})" if shown else ""
            yield printable(f"skipped {entry.count:,} {words}{suffixes}, such as {entry.example}")
