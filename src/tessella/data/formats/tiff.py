"""TIFF: read and check the tags that affect the pixels, and make them the only directory that the decoder sees.

Of several pages, the first is decoded; if it is marked as a reduced version of another page, that page.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from . import damaged, too_complex, unsupported

_MAX_ENTRIES = 4_096  # per directory; a page has about 20
_MAX_PAGES = 64  # searched for one that is not a thumbnail
_MAX_VALUES = 500_000  # per tag: offsets of strips or tiles, colors of a palette
_MAX_PARTS = 200_000  # strips or tiles; the decoder needs up to 10 us for each
_MAX_SCANS = 32  # per strip or tile that is a JPEG
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS = 317, 320, 322, 323, 324, 325, 330
INK_SET, EXTRA, SAMPLE_FORMAT, YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, REFERENCE = 332, 338, 339, 529, 530, 532
_JPEG_TABLES, _XMP = 347, 700  # XMP: the decoder reads the orientation there if it has no tag
_MAX_XMP = 1 << 20  # bytes; a larger one is dropped
_KEPT = frozenset(
    (
        WIDTH,
        HEIGHT,
        BITS,
        COMPRESSION,
        PHOTOMETRIC,
        FILL_ORDER,
        STRIP_OFFSETS,
        ORIENTATION,
        SAMPLES,
        ROWS_PER_STRIP,
        STRIP_COUNTS,
        PLANAR,
        292,
        293,
        PREDICTOR,
        COLOR_MAP,
        TILE_WIDTH,
        TILE_HEIGHT,
        TILE_OFFSETS,
        TILE_COUNTS,
        EXTRA,
        SAMPLE_FORMAT,
        _JPEG_TABLES,
        512,
        513,
        514,
        515,
        517,
        518,
        519,
        520,
        521,
        YCBCR_COEFFICIENTS,
        YCBCR_SUBSAMPLING,
        531,
        REFERENCE,
        _XMP,
    )
)

_OPTIONAL = frozenset((SUBFILE, SUB_IFDS, INK_SET, ORIENTATION, _XMP))  # a damaged one is ignored
_COMPRESSIONS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "Deflate",
    32771: "word-aligned",
    32773: "PackBits",
    32809: "ThunderScan",
    32946: "Deflate",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv 24",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_DECODED = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)
_PHOTOMETRICS = {
    0: "white-is-zero gray",
    1: "gray",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "color filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 4: "untyped", 5: "complex integers", 6: "complex"}
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}


class _DirectoryEntry(NamedTuple):
    raw: bytes  # the entry as stored in the directory
    kind: int
    length: int  # number of values
    value: bytes  # its values, also if they are stored elsewhere


@dataclass
class _Directory:
    entries: dict[int, _DirectoryEntry]
    order: str  # "<" or ">"
    following: int  # offset of the next directory

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        entry = self.entries.get(tag)
        if entry is None or not entry.length:
            return default
        if entry.kind not in _INTEGERS:
            raise damaged("TIFF", f"tag {tag} does not hold integers")
        letter = _INTEGERS[entry.kind]
        count = len(entry.value) // struct.calcsize(f"<{letter}")
        return struct.unpack(f"{self.order}{count}{letter}", entry.value)

    def integer(self, tag: int, default: int) -> int:
        return self.integers(tag, (default,))[0]


@dataclass(frozen=True)
class Tiff:
    """The structure of a TIFF, and what the decoder reads wrongly; sizes in pixels."""

    data: bytes  # the file, with a directory of only the tags that affect the pixels
    width: int  # as stored
    height: int
    bits: int
    sample_format: int  # 1 unsigned, 2 signed, 3 float
    inverted: bool  # white is zero, but `data` declares that black is
    swapped: bool  # the decoder returns signed integers and floats in the wrong byte order
    palette: bytes | None  # RGB of each index, if the decoder would read it wrongly


def read(data: bytes, check_size: Callable[[int, int], None], *, corrected: bool = True) -> Tiff:
    """Return the structure of the decoded page. Raises ImageError if it is damaged or its layout is not supported.

    check_size: a function that refuses a height and width over the limits; called before the pixels are located.
    corrected: False selects the first page, even a thumbnail, and leaves it as Pillow reads it.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    page = _decoded_page(data, order, big, corrected)
    layout = _Layout.of(page)
    if what := layout.problem():
        raise unsupported("TIFF", what)
    tile = page.integer(TILE_HEIGHT, 0), page.integer(TILE_WIDTH, 0)
    check_size(layout.height, layout.width)
    check_size(max(tile[0], 1), max(tile[1], 1))  # a tile is decoded completely, even if little of it is visible
    _check_parts(page, layout, len(data))
    if layout.compression in (6, 7) and data.count(b"\xff\xda") > _MAX_SCANS * layout.parts:
        raise too_complex("TIFF", f"more than {_MAX_SCANS} JPEG scans in each strip or tile")
    # Declare layouts that the decoder inverts wrongly or takes for signed as ones that it reads correctly
    inverted = corrected and layout.photometric == 0 and layout.bits >= 8
    changed = {PHOTOMETRIC: 1} if inverted else {}
    if corrected and layout.bits in (8, 32) and layout.sample_format < 3 and layout.photometric < 2:
        changed[SAMPLE_FORMAT] = 1 if layout.bits == 8 else 2
    return Tiff(
        _with_directory(data, page, big, changed),
        layout.width,
        layout.height,
        layout.bits,
        layout.sample_format,
        inverted,
        page.order == ">" and layout.compression != 1 and sys.byteorder == "little",
        _palette(page, layout.bits) if layout.photometric == 3 else None,
    )


# --- directories ------------------------------------------------------------------------------------------------------


def _decoded_page(data: bytes, order: str, big: bool, corrected: bool) -> _Directory:
    """Return the directory of the first page that is not a reduced version of another."""
    start = struct.unpack_from(order + ("Q" if big else "I"), data.ljust(16, b"\0"), 8 if big else 4)[0]
    first = page = _directory(data, start, order, big)
    seen = {start}
    if not corrected:
        return first
    while page.integer(SUBFILE, 0) & 1 and page.following not in seen | {0} and len(seen) < _MAX_PAGES:
        seen.add(page.following)
        page = _directory(data, page.following, order, big)
    if not page.integer(SUBFILE, 0) & 1:
        return page
    if SUB_IFDS in first.entries:  # as in DNG and other raw files of cameras
        raise unsupported("TIFF", "a thumbnail as its first page and the picture in a sub-directory")
    return first


def _directory(data: bytes, at: int, order: str, big: bool) -> _Directory:
    size, head, inline = (20, 8, 8) if big else (12, 2, 4)
    if at < 8 or at + head > len(data):
        raise damaged("TIFF", "its directory is missing")
    count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    if count > _MAX_ENTRIES:
        raise too_complex("TIFF", f"a directory of {count:,} tags")
    at += head
    entries: dict[int, _DirectoryEntry] = {}
    for begin in range(at, min(at + size * count, len(data) - size + 1), size):
        tag, kind, length = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, begin)
        if tag not in _KEPT | _OPTIONAL or tag in entries or kind not in _SIZES:
            continue
        if tag == _XMP and length > _MAX_XMP:
            continue
        if length > _MAX_VALUES and kind in _INTEGERS and tag not in (_JPEG_TABLES, _XMP):
            raise too_complex("TIFF", f"{length:,} values of tag {tag}")
        extent, offset = _SIZES[kind] * length, begin + size - inline
        if extent > inline:
            offset = struct.unpack_from(order + ("Q" if big else "I"), data, offset)[0]
        if offset + extent > len(data):
            if tag in _OPTIONAL:
                continue
            raise damaged("TIFF", f"the values of tag {tag} are truncated")
        entries[tag] = _DirectoryEntry(data[begin : begin + size], kind, length, data[offset : offset + extent])
    end = at + size * count
    following = data[end : end + inline].ljust(inline, b"\0") if end + inline <= len(data) else bytes(inline)
    return _Directory(entries, order, struct.unpack(order + ("Q" if big else "I"), following)[0])


def _with_directory(data: bytes, page: _Directory, big: bool, changed: dict[int, int]) -> bytes:
    """Return the file with one directory, at its end, of the kept entries; `changed` holds new values for some.

    A BigTIFF becomes a TIFF, since not all decoders read both in each byte order.
    """
    order, entries, values = page.order, {}, bytearray(-len(data) % 8)
    for tag, entry in page.entries.items():
        if tag not in _KEPT:
            continue
        entries[tag] = entry.raw
        if big:
            kind, value = entry.kind, entry.value
            if kind in (16, 17, 18):
                numbers = page.integers(tag)
                if not all(0 <= number < 1 << 32 for number in numbers):
                    raise damaged("TIFF", f"tag {tag} points beyond the end of the file")
                kind, value = 4, struct.pack(f"{order}{len(numbers)}I", *numbers)
            if len(value) > 4:
                offset = struct.pack(order + "I", len(data) + len(values))
                values += value + bytes(-len(value) % 8)
                value = offset
            entries[tag] = struct.pack(order + "HHI", tag, kind, entry.length) + value.ljust(4, b"\0")
    for tag, number in changed.items():
        entries[tag] = struct.pack(f"{order}HHIH2x", tag, 3, 1, number)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", len(data) + len(values))
    body = b"".join(entries[tag] for tag in sorted(entries))
    return b"".join([head, data[8:], values, struct.pack(order + "H", len(entries)), body, bytes(4)])


# --- layouts ----------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    width: int
    height: int
    all_bits: tuple[int, ...]
    samples: int
    sample_format: int
    compression: int
    photometric: int
    planar: int
    extra: tuple[int, ...]
    fill_order: int
    subsampling: tuple[int, ...]
    page: _Directory

    @property
    def bits(self) -> int:
        return self.all_bits[0]

    @classmethod
    def of(cls, page: _Directory) -> _Layout:
        width, height = page.integer(WIDTH, 0), page.integer(HEIGHT, 0)
        if width < 1 or height < 1:
            raise damaged("TIFF", "it states no size")
        compression, photometric = page.integer(COMPRESSION, 1), page.integer(PHOTOMETRIC, 0)
        if compression == 6:  # old-style JPEG: most files do not say what their colors are
            photometric = 6
        colors = _COLORS.get(photometric, 1)
        samples = page.integer(SAMPLES, colors if compression == 6 else 1)
        bits = page.integers(BITS, (1,))[: max(samples, 1)]
        formats = set(page.integers(SAMPLE_FORMAT, (1,)))
        sample_format = formats.pop() if len(formats) == 1 else 0
        return cls(
            width,
            height,
            bits,
            samples,
            1 if sample_format == 4 else sample_format,
            compression,
            photometric,
            page.integer(PLANAR, 1),
            page.integers(EXTRA),
            page.integer(FILL_ORDER, 1),
            page.integers(YCBCR_SUBSAMPLING, (2, 2)),
            page,
        )

    @property
    def planes(self) -> int:
        """Return the number of planes that are decoded; extra planes without a meaning are ignored."""
        if self.planar != 2:
            return 1
        return self.samples if any(self.extra) else self.samples - len(self.extra)

    @property
    def parts(self) -> int:
        """Return the number of strips or tiles in all decoded planes."""
        tile_width, tile_height = self.page.integer(TILE_WIDTH, 0), self.page.integer(TILE_HEIGHT, 0)
        rows = tile_height or self.page.integer(ROWS_PER_STRIP, self.height) or self.height
        across = -(-self.width // tile_width) if tile_width else 1
        return -(-self.height // rows) * across * self.planes

    def problem(self) -> str:
        """Describe the layout if the decoder reads it wrongly or not at all; "" if it is supported."""
        name = _PHOTOMETRICS.get(self.photometric, f"the photometric interpretation {self.photometric}")
        if self.compression not in _DECODED:
            return f"the compression {_COMPRESSIONS.get(self.compression, self.compression)}"
        if len(set(self.all_bits)) > 1 or self.sample_format == 0:
            return "samples of different sizes or kinds"
        kind = _KINDS.get(self.sample_format, f"the sample format {self.sample_format}")
        layout = f"{self.samples} {'sample' if self.samples == 1 else 'samples'} of {self.bits}-bit {kind} ({name})"
        if self.photometric not in _COLORS or self.planar not in (1, 2) or self.fill_order not in (1, 2):
            return layout
        return "" if self._is_supported() else layout

    def _is_supported(self) -> bool:
        """Return whether the decoder reads the layout correctly, as a comparison with tifffile's pixels has shown."""
        colors, extra, bits = _COLORS[self.photometric], self.extra, self.bits
        chunky, packed = self.planar == 1 or self.samples == 1, self.compression != 1
        if self.samples != colors + len(extra) and not (self.photometric == 2 and self.samples == 4 and not extra):
            return self.photometric == 6 and self.samples == 1  # gray called YCbCr
        if not chunky and extra and not any(extra):
            if not packed:
                return False
            extra = ()  # planes without a meaning are ignored
        known_extra = not extra or (extra[0] in (0, 1, 2, 999) and not any(extra[1:]) and len(extra) <= 3)
        if self.fill_order == 2 and (extra or bits > 8) and not self._is_reversed_16_bit_gray(extra):
            return False
        if self.photometric in (0, 1):
            return self._is_supported_gray(extra, chunky)
        if self.sample_format != 1 or not known_extra:
            return False
        if self.photometric == 3:
            if self.fill_order == 2 and not packed and bits < 8:
                return False
            return bits in (1, 2, 4, 8) and (not extra or (bits == 8 and chunky and extra in ((0,), (2,))))
        if self.photometric == 6:
            return bits == 8 and not self.extra and self.fill_order == 1 and self._has_supported_ycc(packed, chunky)
        if self.photometric == 8:
            return bits == 8 and not extra and self.fill_order == 1 and chunky
        if self.photometric == 5 and (self.page.integer(INK_SET, 1) != 1 or any(extra) or self.fill_order == 2):
            return False
        if bits == 16:
            return (chunky or packed) and len(extra) <= (1 if self.photometric == 2 else 0)
        if not chunky and not packed and (self.fill_order == 2 or extra[:1] == (1,)):
            return False
        return bits == 8

    def _is_reversed_16_bit_gray(self, extra: tuple[int, ...]) -> bool:
        return (
            self.photometric in (0, 1)
            and (self.bits, self.sample_format) == (16, 1)
            and self.page.order == "<"
            and not extra
        )

    def _is_supported_gray(self, extra: tuple[int, ...], chunky: bool) -> bool:
        bits, kind = self.bits, self.sample_format
        if extra:
            return (bits, kind) == (8, 1) and chunky and self.photometric == 1 and extra in ((0,), (1,), (2,))
        if kind == 1:
            return bits in (1, 2, 4, 8, 16, 32) or (bits == 12 and self.page.order == "<")
        return bits in (8, 16, 32) if kind == 2 else (kind, bits) == (3, 32)

    def _has_supported_ycc(self, packed: bool, chunky: bool) -> bool:
        if self.compression in (6, 7):
            return True
        coefficients = {YCBCR_COEFFICIENTS, REFERENCE} & self.page.entries.keys()
        return packed or (chunky and self.subsampling == (1, 1) and not coefficients)


def _check_parts(page: _Directory, layout: _Layout, size: int) -> None:
    """Raise ImageError if strips or tiles are missing; they would be read from elsewhere, or stay black."""
    tiled = TILE_WIDTH in page.entries
    if layout.parts > _MAX_PARTS:
        raise too_complex("TIFF", f"{layout.parts:,} {'tiles' if tiled else 'strips'}")
    offsets = page.integers(TILE_OFFSETS if TILE_OFFSETS in page.entries else STRIP_OFFSETS)
    counts = page.integers(TILE_COUNTS if TILE_COUNTS in page.entries else STRIP_COUNTS)
    if layout.compression == 6 and not offsets:  # old-style JPEG may be one stream that another tag points to
        return
    offsets, counts = offsets[: layout.parts], counts[: layout.parts]
    if len(offsets) < layout.parts or not all(0 < offset < size for offset in offsets):
        raise damaged("TIFF", "strips or tiles are missing")
    if layout.compression == 1 and not tiled:
        samples = 1 if layout.planar == 2 else layout.samples
        rows = page.integer(ROWS_PER_STRIP, layout.height) or layout.height
        row = (layout.width * layout.bits * samples + 7) // 8
        per_plane = layout.parts // layout.planes
        expected = [row * min(rows, layout.height - rows * (i % per_plane)) for i in range(layout.parts)]
        if len(counts) > 1 and any(count < minimum for count, minimum in zip(counts, expected, strict=True)):
            raise damaged("TIFF", "strips are shorter than their rows need")
        counts = tuple(expected)  # stated counts may include padding
    # `_with_directory` appends to the file, which a decoder would read instead of missing pixels
    if any(offset + count > size for offset, count in zip(offsets, counts, strict=False)):
        raise damaged("TIFF", "strips or tiles are truncated")


def _palette(page: _Directory, bits: int) -> bytes | None:
    """Return RGB of each index if the 16-bit palette holds 8-bit values, as some old programs wrote it, else None."""
    table = page.integers(COLOR_MAP)
    if len(table) < 3 << bits:
        raise damaged("TIFF", "its palette is missing or too short")
    if max(table) > 255:
        return None
    count = len(table) // 3
    return bytes(table[channel * count + i] for i in range(1 << bits) for channel in range(3))
