"""BMP: read header, palette, color masks and both run-length codings, some of which Pillow reads wrongly.

Pillow treats an alpha channel that is zero everywhere as transparency (by convention such an image is opaque), supports
few color masks, and reads gray palettes of fewer than 256 colors as samples of another depth.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import damaged, too_complex, unsupported

_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_MAX_CODES = 2_000_000  # runs of equal pixels, literal runs and moves: about two seconds of work
_NIBBLE_OF_DIGIT = bytes(int(chr(i), 16) if chr(i) in "0123456789abcdef" else 0 for i in range(256))
_DEFAULT_MASKS = {
    16: (0x7C00, 0x3E0, 0x1F, 0),
    24: (0xFF0000, 0xFF00, 0xFF, 0),
    32: (0xFF0000, 0xFF00, 0xFF, 0),
}
_COMPRESSIONS = {4: "JPEG inside", 5: "PNG inside", 11: "CMYK", 12: "CMYK", 13: "CMYK"}


@dataclass(frozen=True)
class Bmp:
    """The header of a BMP; sizes in pixels."""

    width: int
    height: int
    top_down: bool
    bits: int  # per pixel
    compression: int  # 0 none, 1 RLE8, 2 RLE4, 3 and 6 color masks
    masks: tuple[int, int, int, int]  # red, green, blue, alpha; for 16 bits and more
    palette: bytes  # entries of 3 or 4 bytes, blue first
    entry: int  # bytes per palette entry
    begin: int  # offset of the pixels

    def pixels(self, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Return (H,W,3) RGB, and (H,W) alpha or None if there is none. Raises ImageError if rows are missing."""
        if self.compression in (1, 2):
            index_HW = self._runs(data)
        else:
            rows = self._rows(data)
            if self.bits > 8:
                rgb, alpha = self._masked(rows)
                return (rgb, alpha) if self.top_down else (rgb[::-1], None if alpha is None else alpha[::-1])
            index_HW = self._indices(rows)
        table = np.zeros((256, 3), np.uint8)
        entries = np.frombuffer(self.palette, np.uint8).reshape(-1, self.entry)[:256, 2::-1]
        table[: len(entries)] = entries
        rgb = table[index_HW]
        return (rgb if self.top_down else rgb[::-1]), None

    def _rows(self, data: bytes) -> NDArray[np.uint8]:
        """Return the (H,stride) bytes as stored."""
        stride, used = (self.width * self.bits + 31) // 32 * 4, (self.width * self.bits + 7) // 8
        body = data[self.begin : self.begin + stride * self.height]
        if len(body) < stride * (self.height - 1) + used:
            raise damaged("BMP", "rows are missing")
        return np.frombuffer(body.ljust(stride * self.height, b"\0"), np.uint8).reshape(self.height, stride)

    def _indices(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.bits == 8:
            return rows[:, : self.width]
        per_byte, mask = 8 // self.bits, (1 << self.bits) - 1
        shifts = np.arange(per_byte - 1, -1, -1, dtype=np.uint8) * np.uint8(self.bits)
        spread = (rows[:, :, None] >> shifts) & np.uint8(mask)
        return spread.reshape(len(rows), -1)[:, : self.width]

    def _masked(self, rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        size = self.bits // 8
        usual = self.masks[:3] == (0xFF0000, 0xFF00, 0xFF)
        if usual and size > 2:
            pixels = rows[:, : self.width * size].reshape(self.height, self.width, size)
            rgb = np.ascontiguousarray(pixels[:, :, 2::-1])
            alpha = pixels[:, :, 3] if self.masks[3] == 0xFF000000 else None
        else:
            values = rows[:, : self.width * size].copy().view(f"<u{size}").astype(np.uint32)
            rgb = np.stack([_channel(values, mask) for mask in self.masks[:3]], axis=2)
            alpha = _channel(values, self.masks[3]) if self.masks[3] else None
        if alpha is not None and not alpha.any():
            alpha = None
        return rgb, alpha

    def _runs(self, data: bytes) -> NDArray[np.uint8]:
        """Return the (H,W) palette indices of run-length coded pixels; skipped pixels have index 0."""
        coded, at, size = memoryview(data)[self.begin :], 0, self.height * self.width
        out = bytearray(size)
        x = y = 0
        for _ in range(_MAX_CODES):
            if y >= self.height:
                break
            if at + 2 > len(coded) or (coded[at] == 0 and coded[at + 1] == 1):
                # the end marker may be missing, pixels may not
                if y * self.width + x < size:
                    raise damaged("BMP", "rows are missing")
                break
            count, value = coded[at], coded[at + 1]
            at += 2
            if count:
                run = self._run(value, count)
            elif value == 0:
                x, y = 0, y + 1
                continue
            elif value == 2:
                step = bytes(coded[at : at + 2]).ljust(2, b"\0")
                x, y, at = x + step[0], y + step[1], at + 2
                if x > self.width or y >= self.height:
                    raise damaged("BMP", "it has pixels outside of the image")
                continue
            else:
                count, length = value, value if self.compression == 1 else (value + 1) // 2
                run = bytes(coded[at : at + length])
                if len(run) < length:
                    raise damaged("BMP", "rows are missing")
                run = run if self.compression == 1 else run.hex().encode().translate(_NIBBLE_OF_DIGIT)
                at += length + length % 2
            if (visible := min(count, self.width - x)) > 0:
                begin = y * self.width + x
                out[begin : begin + visible] = run[:visible]
            x += count
        else:
            raise too_complex("BMP", f"more than {_MAX_CODES:,} runs")
        return np.frombuffer(out, np.uint8).reshape(self.height, self.width)

    def _run(self, value: int, count: int) -> bytes:
        if self.compression == 1:
            return bytes((value,)) * count
        return bytes((value >> 4, value & 15)) * ((count + 1) // 2)


def _channel(values: NDArray[np.uint32], mask: int) -> NDArray[np.uint8]:
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    highest = mask >> shift
    part = (values & np.uint32(mask)) >> np.uint32(shift)
    if highest == 255:
        return part.astype(np.uint8)
    return np.rint(part.astype(np.float64) * (255 / highest)).astype(np.uint8)


def read(data: bytes) -> Bmp:
    """Return the header of a BMP. Raises ImageError if it is damaged or its layout is not supported."""
    if len(data) < 26:
        raise damaged("BMP", "it is truncated in its header")
    begin, size = struct.unpack_from("<II", data, 10)
    if size not in _HEADERS:
        raise unsupported("BMP", f"a header of {size:,} bytes")
    if len(data) < 14 + size:
        raise damaged("BMP", "it is truncated in its header")
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = colors = 0
    else:
        width, height, _, bits, compression, _, _, _, colors = struct.unpack_from("<iiHHIIiiI", data, 18)
    if width < 1 or height == 0:
        raise damaged("BMP", "its header states no size")
    _check_layout(size, bits, compression)
    entry = 3 if size == 12 else 4
    masks = _masks(data, size, bits, compression)
    table = 14 + size + (4 * (3 if compression == 3 else 4) if size == 40 and compression in (3, 6) else 0)
    palette = b""
    if bits <= 8:
        if colors > 65_536:
            raise damaged("BMP", f"its header states a palette of {colors:,} colors")
        length = entry * (colors or 1 << bits)
        if begin > 14 + size:  # the palette ends where the pixels start, whatever its stated size
            length = min(entry << bits, begin - table)
        palette = data[table : table + max(length, 0) // entry * entry]
        if begin == 14 + size:  # some programs do not count the palette
            begin += len(palette)
    return Bmp(
        width,
        abs(height),
        height < 0,
        bits,
        compression,
        masks,
        palette[: entry * 256],
        entry,
        begin or table + len(palette),
    )


def _check_layout(size: int, bits: int, compression: int) -> None:
    if compression in _COMPRESSIONS or (size == 64 and compression == 3):
        raise unsupported("BMP", _COMPRESSIONS.get(compression, "OS/2 compression"))
    if compression not in (0, 1, 2, 3, 6):
        raise unsupported("BMP", f"the compression {compression}")
    if bits not in (1, 2, 4, 8, 16, 24, 32):
        raise unsupported("BMP", f"{bits} bits per pixel")
    depths = {0: (1, 2, 4, 8, 16, 24, 32), 1: (8,), 2: (4,), 3: (16, 24, 32), 6: (16, 24, 32)}
    if bits not in depths[compression]:
        raise unsupported("BMP", f"{bits} bits per pixel with the compression {compression}")


def _masks(data: bytes, size: int, bits: int, compression: int) -> tuple[int, int, int, int]:
    usual = _DEFAULT_MASKS.get(bits, (0, 0, 0, 0))
    if compression not in (3, 6) or bits <= 8:
        return usual
    count = 4 if compression == 6 or size >= 56 else 3
    values = struct.unpack_from(f"<{count}I", data.ljust(14 + 40 + 16, b"\0"), 14 + 40)
    red, green, blue, alpha = (*values, 0)[:4]
    if not (red or green or blue or alpha):
        return (*usual[:3], 0xFF000000 if bits == 32 else 0)
    used = 0
    for mask in (red, green, blue, alpha):
        if mask & used or mask >> bits or (mask and (mask // (mask & -mask) + 1) & (mask // (mask & -mask))):
            raise unsupported("BMP", "non-contiguous color masks")
        used |= mask
    return red, green, blue, alpha
