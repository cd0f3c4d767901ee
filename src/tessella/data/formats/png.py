"""PNG: keep the chunks that affect the pixels, and drop all others before the decoder sees the file.

Checksums that protect pixels are verified: those of IHDR, PLTE and tRNS must be right. If that of an IDAT chunk is
wrong, the Adler-32 checksum inside the compressed stream decides. Those of all other chunks are ignored.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from . import damaged, too_complex, unsupported

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 500_000  # about half a second of work
_PIECE = 1 << 14  # bytes inflated at once, to 16 MB at most
_SURPLUS = 1 << 24  # bytes after the last row that are searched for the checksum
_MAX_TEXT = 1 << 20  # bytes of text in a chunk that may hold the orientation; also Pillow's limit
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# ImageMagick and older tools keep EXIF in these text chunks, and XMP is an iTXt chunk: both can hold an orientation
_ORIENTATION_KEYS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class Png:
    """The structure of a PNG; sizes in pixels."""

    data: bytes  # the file without its metadata
    width: int
    height: int
    bits: int  # per sample
    color: int  # color type: 0 gray, 2 RGB, 3 palette, 4 gray + alpha, 6 RGBA
    interlaced: bool
    begin: int  # of the compressed rows in `data`, like `end`
    end: int
    has_valid_checksums: bool  # of the IDAT chunks

    @property
    def filtered_size(self) -> int:
        """Return the size in bytes of all rows with their filter bytes, before compression."""
        bits = self.bits * _CHANNELS[self.color]
        passes = ((0, 1, 0, 1),)
        total = 0
        for x, step_x, y, step_y in _ADAM7 if self.interlaced else passes:
            width, height = -(-(self.width - x) // step_x), -(-(self.height - y) // step_y)
            if width > 0 and height > 0:
                total += height * (1 + (width * bits + 7) // 8)
        return total

    def check_rows(self, *, checksum: bool = False) -> None:
        """Raise ImageError unless the compressed stream holds every row and, with `checksum`, its checksum is right.

        Takes about a third of the time of decoding, so it is called only for suspicious files.
        """
        inflater, expected, size = zlib.decompressobj(), self.filtered_size, 0
        stream = memoryview(self.data)[self.begin : self.end]
        try:
            for at in range(0, len(stream), _PIECE):
                size += len(inflater.decompress(stream[at : at + _PIECE]))
                if inflater.eof or (size >= expected and not checksum) or size > expected + _SURPLUS:
                    break
        except zlib.error:
            raise damaged("PNG", "its compressed pixels cannot be read") from None
        if size < expected:
            raise damaged("PNG", "rows are missing")
        if checksum and not inflater.eof:
            raise damaged("PNG", "the checksum of its pixels is wrong")


def read(data: bytes) -> Png:
    """Return the structure of a PNG. Raises ImageError if it is damaged or its layout is not supported."""
    pixels: list[tuple[int, int]] = []  # start and end of the body of each IDAT chunk
    kept: dict[bytes, bytes] = {}  # chunks with their length and checksum
    texts: list[bytes] = []
    valid = True  # the checksums of IDAT
    at = 8
    for _ in range(_MAX_CHUNKS):
        kind, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        begin, end = at + 8, at + 8 + length
        if len(kind) < 4 or kind == b"IEND" or not kind.isalpha():
            break  # also without IEND: missing pixels are detected in the pixels
        if at == 8:
            _check_first(kind, length)
        if kind == b"IDAT":
            pixels.append((begin, min(end, len(data))))
            valid = valid and (end + 4 > len(data) or _has_valid_checksum(data, at, end))  # truncated: see check_rows
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            if not pixels and kind not in kept:
                if not _has_valid_checksum(data, at, end):
                    raise damaged("PNG", f"the checksum of its {kind.decode()} chunk is wrong")
                kept[kind] = data[at : end + 4]
        elif (kind == b"eXIf" or _may_hold_orientation(kind, data, begin, end)) and len(texts) < 8:
            texts.append(_chunk(kind, data[begin:end]))
        at = end + 4
    else:
        raise too_complex("PNG", f"more than {_MAX_CHUNKS:,} chunks")
    if b"IHDR" not in kept or not pixels:
        raise damaged("PNG", "it has no pixels")
    return _assemble(data, kept, texts, pixels, valid)


def _check_first(kind: bytes, length: int) -> None:
    if kind == b"CgBI":
        raise unsupported("PNG", "the private layout of iOS applications (CgBI)")
    if kind != b"IHDR" or length != 13:
        raise damaged("PNG", "it does not begin with a header")


def _has_valid_checksum(data: bytes, at: int, end: int) -> bool:
    return zlib.crc32(memoryview(data)[at + 4 : end]) == int.from_bytes(data[end : end + 4].ljust(4, b"\0"), "big")


def _may_hold_orientation(kind: bytes, data: bytes, begin: int, end: int) -> bool:
    """Return whether this is a text chunk from which the decoder reads an orientation, and it is safe to read."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not 0 < end - begin <= _MAX_TEXT or end > len(data):
        return False
    key = next((key for key in _ORIENTATION_KEYS if data.startswith(key, begin)), None)
    if key is None:
        return False
    start = begin + len(key)
    if kind == b"tEXt" or (kind == b"iTXt" and data[start] == 0):
        return True
    if kind == b"zTXt":
        packed = data[start + 1 : end]
    else:  # compression flag, method, language, 0, translated key, 0, text
        packed = data[start + 2 : end].split(b"\0", 2)[-1]
    stream = zlib.decompressobj()
    try:
        stream.decompress(packed, _MAX_TEXT)
    except zlib.error:
        return False
    return not stream.unconsumed_tail


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")


def _assemble(
    data: bytes, kept: dict[bytes, bytes], texts: list[bytes], pixels: list[tuple[int, int]], valid: bool
) -> Png:
    width, height, bits, color, _, _, interlace = struct.unpack(">IIBBBBB", kept[b"IHDR"][8:21])
    if bits not in _DEPTHS.get(color, ()) or interlace > 1:
        raise damaged("PNG", "its header has values that the format does not define")
    if color == 3 and b"PLTE" not in kept:
        raise damaged("PNG", "its palette is missing")
    if color == 2 and bits == 16 and b"tRNS" in kept:  # the decoder keeps 8 bits of each channel
        raise unsupported("PNG", "a transparent color of 16 bits per channel")
    body = b"".join(data[begin:end] for begin, end in pixels)
    head = [kept[kind] for kind in (b"IHDR", b"PLTE", b"tRNS") if kind in kept]
    before = b"".join([SIGNATURE, *head, *texts])
    clean = b"".join([before, _chunk(b"IDAT", body), _chunk(b"IEND", b"")])
    begin = len(before) + 8
    return Png(clean, width, height, bits, color, interlace == 1, begin, begin + len(body), valid)
