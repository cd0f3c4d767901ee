"""File names: images, archives, system files or folders, and results written by Tessella.

Every listing (folders, patterns, object stores, archive members, training data) uses the tables in this module.
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
# These cannot be read in place: a member would have to be decompressed from the beginning of the archive.
PACKED = re.compile(
    r".*(\.tgz|\.tbz2?|\.txz|\.tzst|\.tar\.(gz|bz2|xz|zst|lz4|lzma|br|z)|\.zip|\.7z|\.rar|\.cpio)", re.I | re.S
)

# By-products of macOS, Windows, Linux, NAS systems and tools. Names that begin with a dot are skipped in any case.
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


def suffix_of(name: str) -> str:
    """Return the file name extension in lower case, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million Path objects cost seconds


def is_image(name: str) -> bool:
    """Return whether the file name has the suffix of an image format."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_archive(name: str) -> bool:
    """Return whether the file name is that of a container read in place: a tar archive or a Parquet file."""
    return suffix_of(name) in ARCHIVE_SUFFIXES


def ignore_reason(name: str) -> str:
    """Return why a file or folder of this name is skipped: "by_product", "hidden", or "" if it is not."""
    if _BY_PRODUCTS.fullmatch(name):
        return "by_product"
    return "hidden" if name.startswith(".") and name not in (".", "..") else ""


def path_ignore_reason(path: str) -> str:
    """Return the first `ignore_reason` of the components of a path, which are separated by "/"."""
    return next((reason for component in path.split("/") if (reason := ignore_reason(component))), "")


def is_missing_path(name: str) -> bool:
    """Return whether an input is a plain path that does not exist; False for URLs, globs, lists and "-"."""
    special = name == "-" or name.startswith("@") or "://" in name or glob.has_magic(name)
    return not special and not os.path.lexists(name)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that compares digits by value: a2 comes before a10."""
    return [_component_key(component) for component in re.split(r"(\d+)", name)]


def _component_key(text: str) -> tuple[int, int, str]:
    if not text.isdecimal():
        return (1, 0, text)
    if len(text) < 1000:
        return (0, int(text), "")
    digits = text.lstrip("0")  # int() refuses thousands of digits; shorter numbers come first
    return (0, 10 ** len(digits), digits)


def normalize_class_name(name: str) -> str:
    """Return a class name in Unicode normal form C; bytes that are not UTF-8 are escaped.

    Systems store the same word in different forms (macOS decomposes accents). These forms name the same class.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        name = escape(name)
    return unicodedata.normalize("NFC", name)


# --- results of Tessella, which are not read as data ------------------------------------------------------------------

_TRAINING_FILES = {"checkpoints"}
_BULK_FILES = {"manifest.parquet", "shards", "copy", "index"}
_REPORT_FIGURES = {"confusion.png", "calibration.png", "coverage.png", "mistakes.png", "curves.png"}
_RESULT_FOLDERS: tuple[tuple[set[str], set[str]], ...] = (  # (entries that mark such a folder, other entries in it)
    ({"train.json", "metrics.jsonl"}, _TRAINING_FILES),
    ({"train.json", "checkpoints"}, _TRAINING_FILES),
    ({"run.json", "manifest.parquet"}, _BULK_FILES),
    ({"tessella.json", "manifest.json"}, set()),
)
_RESULT_FILES: tuple[tuple[set[str], set[str]], ...] = (  # (files that mark a report, files written with it)
    ({"report.json", "report.md"}, _REPORT_FIGURES),
    ({"evaluation.json", "evaluation.md"}, {"evaluation.png", "evaluation.csv"}),
)
EXPLAINED, LINKED = ".explained", ".links"  # before the suffixes of the files of `tessella explain`
_EXPLANATION_ARRAYS = (f"{EXPLAINED}.npz", f"{LINKED}.npz")
MEASUREMENT_FILES = (
    "report.json",
    "evaluation.json",
    "probe.json",
    "inspection.json",
    "comparison.json",
)  # one of them marks a folder of measurements
_UNFINISHED: tuple[set[str], ...] = ({".inspect.lock"}, {".lock", "parts"}, {".lock", "old"})  # marks of such a folder
_PART = re.compile(r"part-\d{6,8}\.npz")
_PARTS = ("parts", "old", "new")  # folders of parts


def is_result_folder(names: Collection[str]) -> bool:
    """Return whether Tessella wrote a folder with these entries: a training run, a bulk run or an exported model."""
    return any(marks <= set(names) for marks, _ in _RESULT_FOLDERS)


def is_measurement_folder(folder: str) -> bool:
    """Return whether Tessella wrote measurements or explanations to a folder, also if it was stopped in between.

    Raises OSError if the folder cannot be listed.
    """
    names = set(os.listdir(folder))  # noqa: PTH208 - names, not Path objects
    if not names.isdisjoint(MEASUREMENT_FILES) or result_entries(names) or any(marks <= names for marks in _UNFINISHED):
        return True
    inner = [os.path.join(folder, name) for name in _PARTS if name in names]  # noqa: PTH118 - accepts invalid names
    listings = [names, *(os.listdir(path) for path in inner if os.path.isdir(path))]  # noqa: PTH112, PTH208
    return any(_PART.fullmatch(name) for listing in listings for name in listing)


def is_first_run_file(name: str) -> bool:
    """Return whether a run writes a file of this name before any other.

    A folder that holds only such files is a run that has just begun, not user data.
    """
    return name in (".lock", ".train.lock", "train.json") or (name.startswith(".") and name.endswith(".tmp"))


def result_entries(names: Collection[str]) -> set[str]:
    """Return the entries of a folder that Tessella wrote; user data may lie beside them."""
    present, tables = set(names), (*_RESULT_FOLDERS, *_RESULT_FILES)
    entries = {name for marks, others in tables if marks <= present for name in others}
    for name in present:
        if name.endswith(_EXPLANATION_ARRAYS) and (figure := f"{name.removesuffix('.npz')}.png") in present:
            entries |= {name, figure}
    return entries


def can_mark_results(name: str) -> bool:
    """Return whether `is_result_folder` and `result_entries` need to know of an entry of this name."""
    if name.endswith((".npz", ".png")):
        return name[:-4].endswith((EXPLAINED, LINKED))
    return name.endswith((".json", ".jsonl", ".md")) or name in ("manifest.parquet", "checkpoints")


# --- skipped entries --------------------------------------------------------------------------------------------------

_REASONS = {  # code -> (singular, plural)
    "other_suffix": ("file without an image suffix", "files without an image suffix"),
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "by_product": ("system file or folder", "system files or folders"),
    "link_loop": ("link to a folder that contains it", "links to folders that contain them"),
    "linked_again": ("folder already visited through a link", "folders already visited through links"),
    "metadata_table": ("metadata table next to images", "metadata tables next to images"),
    "packed_archive": (
        "archive that cannot be read in place (unpack it)",
        "archives that cannot be read in place (unpack them)",
    ),
    "special_member": ("link or special file inside an archive", "links or special files inside archives"),
    "replaced_member": (
        "member of an archive that a later one of the same name replaces",
        "members of archives that later ones of the same name replace",
    ),
    "data_after_end": ("archive with data after its end marker", "archives with data after their end marker"),
    "own_result": ("output of Tessella", "outputs of Tessella"),
    "unlabelled": ("folder of images without classes", "folders of images without classes"),
    "second_image": ("additional image of a sample", "additional images of a sample"),
    "broken_link": ("broken link", "broken links"),
    "unused_list": ("list next to a folder of images", "lists next to folders of images"),
}
_MAX_LISTED_SUFFIXES = 5  # per line
_MAX_COUNTED_SUFFIXES = 100  # per reason, to bound the memory


@dataclass
class _SkipCount:
    """The number of entries skipped for one reason."""

    count: int = 0
    example: str = ""
    suffixes: dict[str, int] = field(default_factory=dict)


class Skipped:
    """What a listing skipped: the count and the first example for each reason.

    Pass an empty instance to `iter_sources`; it is filled while the sources are iterated.
    """

    def __init__(self) -> None:
        self._tallies: dict[str, _SkipCount] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count skipped entries. reason: a key of the table above; example: the path or name of one of them."""
        assert reason in _REASONS, reason
        tally = self._tallies.setdefault(reason, _SkipCount(example=example))
        tally.count += count
        if reason in ("other_suffix", "packed_archive"):
            suffix = suffix_of(example) or "no suffix"
            if suffix in tally.suffixes or len(tally.suffixes) < _MAX_COUNTED_SUFFIXES:
                tally.suffixes[suffix] = tally.suffixes.get(suffix, 0) + count

    def merge(self, other: Skipped) -> None:
        """Add the counts of another listing."""
        for reason, added in other._tallies.items():
            tally = self._tallies.setdefault(reason, _SkipCount(example=added.example))
            tally.count += added.count
            for suffix, count in added.suffixes.items():
                tally.suffixes[suffix] = tally.suffixes.get(suffix, 0) + count

    @property
    def counts(self) -> dict[str, int]:
        """The number of skipped entries by reason, in the order in which the reasons first occurred."""
        return {reason: tally.count for reason, tally in self._tallies.items()}

    def example(self, reason: str) -> str:
        """Return the first entry skipped for this reason, or "" if there is none."""
        return self._tallies[reason].example if reason in self._tallies else ""

    def __bool__(self) -> bool:
        return bool(self._tallies)

    def lines(self) -> Iterator[str]:
        """Yield one line of printable text for each reason: the count, the reason and the first example."""
        for reason, tally in self._tallies.items():
            description = _REASONS[reason][tally.count != 1]
            ranked = sorted(tally.suffixes, key=lambda suffix: (-tally.suffixes[suffix], suffix))
            listed = ranked[:_MAX_LISTED_SUFFIXES] + ["..."] * (len(ranked) > _MAX_LISTED_SUFFIXES)
            suffixes = f" ({', '.join(listed)})" if listed else ""
            yield printable(f"skipped {tally.count:,} {description}{suffixes}, such as {tally.example}")
