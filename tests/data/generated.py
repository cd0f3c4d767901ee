"""Image files of every layout that the formats allow, written by hand from arrays; Pillow writes none of them.

A case carries the file, the samples it was made of, and what `tessella.data.decode` has to make of them by the rules at
the top of that module, worked out here with plain arithmetic.
"""

from __future__ import annotations

import itertools
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes = field(repr=False)
    samples: Array = field(repr=False)  # as stored: (H, W) or (H, W, S)
    want: Array = field(repr=False)  # (H, W, 3), 0..255, not rounded
    tolerance: float = 0.5  # 0.5: rounding only
    refusable: bool = False  # a rare layout: `unsupported_format` is an answer, too
    oracle: str = ""  # the independent decoder that reads `samples` from the file, "" for none


# --- what the pixels are to become ------------------------------------------------------------------------------------


def on_white(colour: Array, alpha: Array) -> Array:
    """colour: (H, W, 3) of 0..255; alpha: (H, W) of 0..1."""
    return colour * alpha[..., None] + 255 * (1 - alpha[..., None])


def rgb_of_grey(grey: Array) -> Array:
    return np.repeat(np.asarray(grey, np.float64)[..., None], 3, axis=2)


def levels(samples: Array, bits: int) -> Array:
    """Unsigned samples -> 0..255."""
    return samples.astype(np.float64) * (255 / (2**bits - 1))


def lab_to_rgb(lab: Array) -> Array:
    """CIE L*a*b* of D50 -> sRGB of 0..255; (..., 3), L in 0..100."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1.0, 0.82521]
    linear = xyz @ np.array(  # Bradford-adapted sRGB, D50
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    ).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def ycc_to_rgb(ycc: Array) -> Array:
    y, cb, cr = np.moveaxis(ycc.astype(np.float64), -1, 0)
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return rgb.clip(0, 255)


def cmyk_to_rgb(cmyk: Array) -> Array:
    """(..., 4) of 0..255."""
    return (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255


# --- TIFF -------------------------------------------------------------------------------------------------------------

_TYPES = {"B": 1, "H": 3, "I": 4, "b": 6, "d": 12, "Q": 16}


def packed(rows: Array, bits: int, order: str) -> list[bytes]:
    """(H, N) samples -> the bytes of each row."""
    if rows.dtype.kind == "f" or bits in (8, 16, 32, 64):
        stored = rows.astype(rows.dtype.newbyteorder(order))
        return [row.tobytes() for row in stored]
    places = np.arange(bits - 1, -1, -1)
    return [np.packbits(((row[:, None].astype(np.int64) >> places) & 1).astype(np.uint8).ravel()).tobytes() for row in rows]


def _predicted(block: Array, predictor: int, order: str) -> list[bytes]:
    """(H, W, S) -> bytes of each row."""
    height, _, channels = block.shape
    if predictor == 2:
        block = block.copy()
        block[:, 1:] = block[:, 1:] - block[:, :-1]
    flat = block.reshape(height, -1)
    if predictor != 3:
        return packed(flat, block.dtype.itemsize * 8, order)
    rows = []
    for row in flat:
        planes = row.astype(row.dtype.newbyteorder(">")).view(np.uint8).reshape(len(row), -1).T.ravel().copy()
        planes[channels:] -= planes[:-channels].copy()
        rows.append(planes.tobytes())
    return rows


def _compressed(rows: list[bytes], compression: int) -> bytes:
    body = b"".join(rows)
    if compression == 5:
        return bytes(imagecodecs.lzw_encode(body))
    if compression in (8, 32946):
        return zlib.compress(body)
    if compression == 32773:
        return b"".join(bytes(imagecodecs.packbits_encode(row)) for row in rows)
    if compression == 34925:
        return lzma.compress(body)
    if compression == 50000:
        return bytes(imagecodecs.zstd_encode(body))
    return body


REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def tiff(
    samples: Array,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    big: bool = False,
    planar: int = 1,
    compression: int = 1,
    predictor: int = 1,
    fill_order: int = 1,
    tile: tuple[int, int] | None = None,
    rows: int = 0,
    tags: dict[int, tuple[str, tuple[int, ...]]] | None = None,
    parts: list[bytes] | None = None,
) -> bytes:
    """samples: (H, W, S). tile: height and width; rows: per strip, 0 for one strip. parts: strips made elsewhere."""
    height, width, channels = samples.shape
    sample_format = {"u": 1, "i": 2, "f": 3, "b": 1}[samples.dtype.kind]
    block = tile or (rows or height, width)
    bodies = []
    for plane in [samples] if planar == 1 else [samples[..., i : i + 1] for i in range(channels)]:
        for y, x in itertools.product(range(0, height, block[0]), range(0, width, block[1])):
            piece = plane[y : y + block[0], x : x + block[1]]
            if tile:
                piece = np.pad(piece, [(0, block[0] - piece.shape[0]), (0, block[1] - piece.shape[1]), (0, 0)], "edge")
            if predictor == 1:
                lines = packed(piece.reshape(len(piece), -1), bits, order)
            else:
                lines = _predicted(piece, predictor, order)
            body = _compressed(lines, compression)
            bodies.append(body.translate(REVERSED) if fill_order == 2 else body)
    bodies = bodies if parts is None else parts
    entries: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (bits,) * channels), 259: ("H", (compression,)),
        262: ("H", (photometric,)), 277: ("H", (channels,)), 284: ("H", (planar,)),
        339: ("H", (sample_format,) * channels),
    }  # fmt: skip
    if fill_order != 1:
        entries[266] = "H", (fill_order,)
    if predictor != 1:
        entries[317] = "H", (predictor,)
    if tile:
        entries |= {322: ("I", (tile[1],)), 323: ("I", (tile[0],))}
    else:
        entries[278] = "I", (block[0],)
    entries |= tags or {}
    return _tiff_file(bodies, entries, order, big, tiled=tile is not None)


def _tiff_file(
    bodies: list[bytes], entries: dict[int, tuple[str, tuple[int, ...]]], order: str, big: bool, tiled: bool
) -> bytes:
    word = "Q" if big else "I"
    out = bytearray(b"II" if order == "<" else b"MM")
    out += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    offsets = []
    for body in bodies:
        offsets.append(len(out))
        out += body + b"\0" * (len(body) % 2)
    entries = entries | {
        324 if tiled else 273: (word, tuple(offsets)),
        325 if tiled else 279: (word, tuple(len(body) for body in bodies)),
    }
    inline, listed = (8, []) if big else (4, [])
    for tag in sorted(entries):
        letter, values = entries[tag]
        value = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(value) > inline:
            out += b"\0" * (len(out) % 2)
            place = len(out)
            out += value
            value = struct.pack(order + word, place)
        listed.append(struct.pack(order + "HH" + word, tag, _TYPES[letter], len(values)) + value.ljust(inline, b"\0"))
    out += b"\0" * (-len(out) % 8)
    struct.pack_into(order + word, out, 8 if big else 4, len(out))
    out += struct.pack(order + ("Q" if big else "H"), len(listed)) + b"".join(listed) + bytes(inline)
    return bytes(out)
