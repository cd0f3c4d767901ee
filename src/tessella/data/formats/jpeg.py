"""JPEG: read the frame header and the scans, and drop metadata that does not affect the pixels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from . import damaged, too_complex, unsupported

_MAX_SEGMENTS = 100_000  # before the first scan; a camera writes about ten
# Each scan visits all coefficients, at about 2 ns per pixel and scan: two to three seconds at most. The few dozen scans
# of the most elaborate encoders are allowed at any size.
_MAX_SCANS, _SCANS_AT_ANY_SIZE, _PIXELS_TIMES_SCANS = 1_000, 32, 1_000_000_000
_FILL = re.compile(rb"\xff+")  # before a marker
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.S)
_UNSUPPORTED = {
    0xC3: "lossless coding",
    0xC5: "hierarchical coding",
    0xC6: "hierarchical coding",
    0xC7: "hierarchical coding",
    0xC8: "extended coding",
    0xCB: "lossless arithmetic coding",
    0xCD: "hierarchical coding",
    0xCE: "hierarchical coding",
    0xCF: "hierarchical coding",
    0xF7: "JPEG-LS coding",
}
_MAX_EXIF = 16  # segments, which are read as one
# Segments kept of APP0, APP1 and APP14: the meaning of the components, and the orientation; all but EXIF only once
_KEPT = {0xE0: (b"JFIF\0",), 0xE1: (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"), 0xEE: (b"Adobe",)}
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)


@dataclass(frozen=True)
class Jpeg:
    """The structure of a JPEG; sizes in pixels."""

    data: bytes  # the file without its profiles and private segments
    height: int  # as stored
    width: int
    progressive: bool
    arithmetic: bool  # arithmetic coding instead of Huffman coding
    identifiers: bytes  # of the components, one byte each
    oriented: bool  # it has a segment that can hold an orientation
    scans: int  # where the scans start in `data`

    @property
    def end(self) -> int:
        """Return where the pixels end in `data`: at the end marker, or at the end of the file."""
        at = self.scans
        while (found := _NEXT_MARKER.search(self.data, at)) is not None:
            if found[1] == b"\xd9":
                return found.start()
            at = found.end() + int.from_bytes(self.data[found.end() : found.end() + 2], "big")
        return len(self.data.rstrip(b"\xff"))  # without half of an end marker

    @property
    def has_all_components(self) -> bool:
        """Return whether every color component is in some scan."""
        if self.data[self.scans + 4 : self.scans + 5] == bytes((len(self.identifiers),)):  # in the first scan
            return True
        return all(bits[0] >= 0 for bits in self._missing_bits().values())

    @property
    def has_all_scans(self) -> bool:
        """Return whether the scans add up to every bit of every coefficient; their contents are not examined.

        Encoders may leave scans out, so this matters only for a file without its end marker.
        """
        return not any(bits for coefficients in self._missing_bits().values() for bits in coefficients)

    def _missing_bits(self) -> dict[int, list[int]]:
        """Return for each component how many low bits of each coefficient are in no scan, -1 for all of them."""
        missing = {component: [-1] * (64 if self.progressive else 1) for component in self.identifiers}
        at = self.scans
        while (found := _NEXT_MARKER.search(self.data, at)) is not None and found[1] != b"\xd9":
            at = found.end()
            end = at + int.from_bytes(self.data[at : at + 2], "big")
            if found[1] == b"\xda" and end <= len(self.data) and end - at >= 6:
                first, last, bits = self.data[end - 3 : end]
                span = range(first, min(last, 63) + 1) if self.progressive else range(1)
                for component in self.data[at + 3 : end - 3 : 2]:
                    for i in span if component in missing else ():
                        missing[component][i] = bits & 15 if self.progressive else 0
            at = max(at, end)
        return missing


def read(data: bytes) -> Jpeg | None:
    """Return the structure of a JPEG, or None if it is irregular and the decoder has to decide.

    Raises ImageError for an unsupported coding, and for more scans than can be decoded in a few seconds.
    """
    at, frame = 2, None
    dropped: list[tuple[int, int]] = []
    kept: list[bytes] = []
    for _ in range(_MAX_SEGMENTS):
        if data[at : at + 2] == b"\xff\xff" and (fill := _FILL.match(data, at)):
            dropped.append((at, fill.end() - 1))
            at = fill.end() - 1
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            _check_irregular(data)
            return None
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _UNSUPPORTED:
            raise unsupported("JPEG", _UNSUPPORTED[marker])
        if marker in _FRAMES and frame is None:
            frame = _frame(data, at, end)
        elif marker == 0xDA:
            if frame is None:
                _check_irregular(data)
                return None
            _check_scans(data, at, *frame[:2])
            clean = _without(data, dropped)
            return Jpeg(clean, *frame, not set(_KEPT[0xE1]).isdisjoint(kept), at - len(data) + len(clean))
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            known = next((name for name in _KEPT.get(marker, ()) if data.startswith(name, at + 4)), None)
            if known is None or kept.count(known) >= (_MAX_EXIF if known == b"Exif\0" else 1):
                dropped.append((at, end))
            else:
                kept.append(known)
        elif marker not in (0xC4, 0xCC, 0xDB, 0xDD):  # tables, restart interval
            _check_irregular(data)
            return None
        at = max(end, at + 4)
    raise too_complex("JPEG", f"more than {_MAX_SEGMENTS:,} segments before its pixels")


def _check_irregular(data: bytes) -> None:
    """Raise ImageError if the decoder, which searches byte by byte for markers, would take long to find the pixels."""
    begin = data.find(b"\xff\xda")
    head = data[: begin if begin >= 0 else len(data)]
    if head.count(b"\xff\xff") + head.count(b"\xff\0") > _MAX_SEGMENTS:
        raise too_complex("JPEG", f"more than {_MAX_SEGMENTS:,} bytes before its pixels that are not markers")
    if begin >= 0 and data.count(b"\xff\xda", begin) > _SCANS_AT_ANY_SIZE:
        _check_count(_count_scans(data, begin, _SCANS_AT_ANY_SIZE), _SCANS_AT_ANY_SIZE)


def _frame(data: bytes, at: int, end: int) -> tuple[int, int, bool, bool, bytes] | None:
    """Return height, width, whether it is progressive, whether it is arithmetic, and the component identifiers."""
    if end - at < 13 or end > len(data):
        return None
    bits, components = data[at + 4], data[at + 9]
    height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
    if bits in (12, 16):
        raise unsupported("JPEG", f"{bits} bits per sample")
    if bits != 8 or end - at != 10 + 3 * components:
        return None
    if components not in (1, 3, 4):
        raise unsupported("JPEG", f"{components} color components")
    return height, width, data[at + 1] in (0xC2, 0xCA), data[at + 1] in (0xC9, 0xCA), data[at + 10 : end : 3]


def _check_scans(data: bytes, at: int, height: int, width: int) -> None:
    if not height or not width:
        raise damaged("JPEG", "its header states no size")
    allowed = min(_MAX_SCANS, max(_SCANS_AT_ANY_SIZE, _PIXELS_TIMES_SCANS // (height * width)))
    markers = np.count_nonzero(np.frombuffer(data, np.uint8, offset=at) == 0xDA)  # 20 times as fast as bytes.count
    if markers > allowed and data.count(b"\xff\xda", at) > allowed:
        _check_count(_count_scans(data, at, allowed), allowed, f" of {width:,} x {height:,} pixels")


def _check_count(scans: int, allowed: int, size: str = "") -> None:
    if scans > allowed:
        raise too_complex("JPEG", f"more than {allowed:,} scans{size}")


def _count_scans(data: bytes, at: int, enough: int) -> int:
    """Count the scans from the one at `at`, until there are more than `enough`."""
    scans = 0
    while (found := _NEXT_MARKER.search(data, at)) is not None and scans <= enough:
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _without(data: bytes, dropped: list[tuple[int, int]]) -> bytes:
    if not dropped:
        return data
    begins = [0, *(end for _, end in dropped)]
    ends = [*(begin for begin, _ in dropped), len(data)]
    return b"".join(data[begin:end] for begin, end in zip(begins, ends, strict=True))
