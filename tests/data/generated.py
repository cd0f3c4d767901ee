"""Write image files of every layout that the formats allow from arrays, without Pillow.

A case holds the file, the samples it was made of, and the pixels that `tessella.data.decode` must return by the rules
at the top of that module, computed here with plain arithmetic.
"""

from __future__ import annotations

import itertools
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A generated file and its expected pixels."""

    name: str
    data: bytes = field(repr=False)
    samples: Array = field(repr=False)  # as stored: (H, W) or (H, W, S)
    expected: Array = field(repr=False)  # (H, W, 3) in 0..255, not rounded
    tolerance: float = 0.5  # maximum difference of a value; 0.5: rounding only
    mean: float = 255.0  # maximum of the mean difference
    may_be_refused: bool = False  # a rare layout, for which `unsupported_format` is allowed
    oracles: tuple[str, ...] = ()  # independent decoders that read `samples` or `expected` from the file


# --- expected pixels --------------------------------------------------------------------------------------------------


def over_white(colour: Array, alpha: Array) -> Array:
    """Return (H, W, 3) in 0..255; colour: (H, W, 3) in 0..255; alpha: (H, W) in 0..1."""
    return colour * alpha[..., None] + 255 * (1 - alpha[..., None])


def rgb_of_grey(grey: Array) -> Array:
    return np.repeat(np.asarray(grey, np.float64)[..., None], 3, axis=2)


def levels(samples: Array, bits: int) -> Array:
    """Scale unsigned samples to 0..255."""
    return samples.astype(np.float64) * (255 / (2**bits - 1))


def lab_to_rgb(lab: Array) -> Array:
    """Convert CIE L*a*b* (D50, L in 0..100) to sRGB in 0..255; shape (..., 3)."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1.0, 0.82521]
    linear = (
        xyz
        @ np.array(  # Bradford-adapted sRGB, D50
            [
                [3.1338561, -1.6168667, -0.4906146],
                [-0.9787684, 1.9161415, 0.0334540],
                [0.0719453, -0.2289914, 1.4052427],
            ]
        ).T
    )
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def ycc_to_rgb(ycc: Array) -> Array:
    y, cb, cr = np.moveaxis(ycc.astype(np.float64), -1, 0)
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return rgb.clip(0, 255)


def cmyk_to_rgb(cmyk: Array) -> Array:
    """Convert (..., 4) in 0..255 to (..., 3) in 0..255."""
    return (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255


def decode_with_opencv(data: bytes) -> Array:
    """Return (H, W, 3) RGB, without alpha."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels[..., ::-1]


# --- TIFF -------------------------------------------------------------------------------------------------------------

_TYPES = {"B": 1, "H": 3, "I": 4, "b": 6, "d": 12, "Q": 16}


def packed(rows: Array, bits: int, order: str) -> list[bytes]:
    """Return the bytes of each row of (H, N) samples."""
    if rows.dtype.kind == "f" or bits in (8, 16, 32, 64):
        stored = rows.astype(np.dtype(f"{order}{rows.dtype.str[1:]}"))
        return [row.tobytes() for row in stored]
    shifts = np.arange(bits - 1, -1, -1)
    return [
        np.packbits(((row[:, None].astype(np.int64) >> shifts) & 1).astype(np.uint8).ravel()).tobytes() for row in rows
    ]


def _predicted(block: Array, predictor: int, order: str) -> list[bytes]:
    """Return the bytes of each row of (H, W, S) samples, after the predictor."""
    height, _, channels = block.shape
    if predictor == 2:
        block = block.copy()
        block[:, 1:] = block[:, 1:] - block[:, :-1]
    flat = block.reshape(height, -1)
    if predictor != 3:
        return packed(flat, block.dtype.itemsize * 8, order)
    rows = []
    for row in flat:
        planes = row.astype(np.dtype(f">{row.dtype.str[1:]}")).view(np.uint8).reshape(len(row), -1).T.ravel().copy()
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
    """Return a TIFF of (H, W, S) samples. tile: height and width; rows: per strip, 0 for one strip. parts: strips."""
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
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (bits,) * channels),
        259: ("H", (compression,)),
        262: ("H", (photometric,)),
        277: ("H", (channels,)),
        284: ("H", (planar,)),
        339: ("H", (sample_format,) * channels),
    }
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
            offset = len(out)
            out += value
            value = struct.pack(order + word, offset)
        listed.append(struct.pack(order + "HH" + word, tag, _TYPES[letter], len(values)) + value.ljust(inline, b"\0"))
    out += b"\0" * (-len(out) % 8)
    struct.pack_into(order + word, out, 8 if big else 4, len(out))
    out += struct.pack(order + ("Q" if big else "H"), len(listed)) + b"".join(listed) + bytes(inline)
    return bytes(out)


# --- PNG --------------------------------------------------------------------------------------------------------------

ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _filtered(rows: list[bytes], step: int) -> bytes:
    """Return the rows with the five filter types in turn."""
    out, above = bytearray(), bytes(len(rows[0]))
    for number, row in enumerate(rows):
        kind = number % 5
        out.append(kind)
        for i, value in enumerate(row):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            estimate = left + above[i] - corner
            nearest = min((left, above[i], corner), key=lambda v: abs(estimate - v))
            out.append((value - (0, left, above[i], (left + above[i]) // 2, nearest)[kind]) & 255)
        above = row
    return bytes(out)


def png(
    samples: Array,
    bits: int,
    colour: int,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    pieces: int = 1,
) -> bytes:
    """Return a PNG of (H, W, S) samples. before, after: chunks around the pixels; pieces: number of IDAT chunks."""
    height, width, channels = samples.shape
    step, stream = max(1, bits * channels // 8), b""
    for x, step_x, y, step_y in ADAM7 if interlaced else ((0, 1, 0, 1),):
        part = samples[y::step_y, x::step_x]
        if part.size:
            stream += _filtered(packed(part.reshape(len(part), -1), bits, ">"), step)
    body = zlib.compress(stream)
    size = -(-len(body) // pieces)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    pixels = b"".join(png_chunk(b"IDAT", body[i : i + size]) for i in range(0, len(body), size))
    return PNG_SIGNATURE + header + before + pixels + after + png_chunk(b"IEND")


def uints(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> Array:
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return rng.integers(0, 2**bits, shape, dtype=np.uint64).astype(kind)


def png_cases() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    sizes = ((1, 1), (3, 2), (5, 5), (9, 4), (13, 17))
    for colour, interlaced, clear, (height, width) in itertools.product(depths, (False, True), (False, True), sizes):
        for bits in depths[colour]:
            if clear and colour in (4, 6):
                continue
            channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
            samples = uints(rng, (height, width, channels), bits)
            chunks, expected = _expected_png(rng, samples, bits, colour, clear)
            name = f"PNG colour {colour}, {bits} bits, {height}x{width}{', Adam7' * interlaced}{', tRNS' * clear}"
            # the high byte of 16 bits is kept, of the colour and of its alpha
            rounding = 0.5 if bits < 16 or colour == 0 else 2.0 if colour in (4, 6) else 1.0
            data = png(samples, bits, colour, interlaced=interlaced, before=chunks, pieces=1 + height % 3)
            may_be_refused = clear and colour == 2 and bits == 16
            yield Case(
                name, data, samples, expected, rounding, may_be_refused=may_be_refused, oracles=("pypng", "vips")
            )


def _expected_png(rng: np.random.Generator, samples: Array, bits: int, colour: int, clear: bool) -> tuple[bytes, Array]:
    """Return the chunks to write before the pixels, and the expected picture."""
    value = levels(samples, bits)
    if colour == 3:
        table = rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        chunks, expected = png_chunk(b"PLTE", table.tobytes()), table[samples[..., 0]].astype(np.float64)
        if clear:  # for some colours only: the others are opaque
            alphas = np.full(2**bits, 255, np.uint8)
            alphas[: 2**bits - 1] = rng.integers(0, 256, 2**bits - 1)
            chunks += png_chunk(b"tRNS", alphas[:-1].tobytes())
            expected = over_white(expected, alphas[samples[..., 0]] / 255)
        return chunks, expected
    if colour in (4, 6):
        rgb = value[..., :3] if colour == 6 else np.repeat(value[..., :1], 3, 2)
        return b"", over_white(rgb, value[..., -1] / 255)
    rgb = np.repeat(value, 3, 2) if colour == 0 else value
    if not clear:
        return b"", rgb
    chosen = samples[0, 0]
    hidden = (samples == chosen).all(axis=2)
    return png_chunk(b"tRNS", chosen.astype(">u2").tobytes()), np.where(hidden[..., None], 255, rgb)


# --- BMP --------------------------------------------------------------------------------------------------------------

MASKS = {
    16: (
        (0xF800, 0x7E0, 0x1F, 0),
        (0x7C00, 0x3E0, 0x1F, 0),
        (0xF00, 0xF0, 0xF, 0),
        (0xF00, 0xF0, 0xF, 0xF000),
        (0x7C00, 0x3E0, 0x1F, 0x8000),
        (0x1F, 0x7E0, 0xF800, 0),
        (0xE0, 0x1C, 0x3, 0),
    ),
    32: (
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF, 0xFF00, 0xFF0000, 0),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0x7C00, 0x3E0, 0x1F, 0),
    ),
}


def bmp(
    rows: list[bytes],
    width: int,
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    palette: Array | None = None,
    top_down: bool = False,
    colours: int = 0,
    body: bytes | None = None,
) -> bytes:
    """Return a BMP. rows: from the top, without padding; palette: (N, 3) RGB; body: coded pixels instead of rows."""
    height = len(rows)
    if body is None:
        body = b"".join(row + bytes(-len(row) % 4) for row in (rows if top_down else rows[::-1]))
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        signed = -height if top_down else height
        info = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, compression, len(body), 0, 0, colours, 0)
        fields = b"".join(struct.pack("<I", mask) for mask in masks)
        info += fields if header == 40 else fields.ljust(header - 40, b"\0")[: header - 40]
    table = b""
    if palette is not None:
        table = b"".join(bytes(colour[::-1]) + (b"" if header == 12 else b"\0") for colour in palette.astype(np.uint8))
    begin = 14 + len(info) + len(table)
    return b"BM" + struct.pack("<IHHI", begin + len(body), 0, 0, begin) + info + table + body


def rle(samples: Array, bits: int, literal: bool) -> bytes:
    """Return the run-length coding of (H, W) indices, from the bottom; with `literal`, in literal runs."""
    out = bytearray()
    for row in samples[::-1]:
        at = 0
        while at < len(row):
            part = row[at : at + 200]
            if literal and len(part) >= 3:
                stored = bytes(part) if bits == 8 else packed(part[None], 4, ">")[0]
                out += bytes((0, len(part))) + stored + bytes(len(stored) % 2)
                at += len(part)
            else:
                count = 1
                while at + count < len(row) and count < 255 and row[at + count] == row[at]:
                    count += 1
                out += bytes((count, row[at] if bits == 8 else row[at] * 17))
                at += count
        out += b"\0\0"
    return bytes(out[:-2] + b"\0\1")


def bmp_cases() -> Iterator[Case]:
    rng = np.random.default_rng(2)
    for bits, header, (height, width) in itertools.product(
        (1, 4, 8), (12, 40, 52, 56, 64, 108, 124), ((1, 1), (7, 5), (6, 33))
    ):
        for top_down, grey in itertools.product((False, True), (False, True)):
            if header == 12 and top_down:
                continue
            count = 2**bits if width != 5 or header == 12 else max(2, 2**bits - 3)
            samples = rng.integers(0, count, (height, width), dtype=np.uint8)
            table = rng.integers(0, 256, (count, 3), dtype=np.uint8)
            if grey:  # for which Pillow drops the palette
                table = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 3, 1)
            colours = count % 2**bits
            options: dict[str, Any] = dict(header=header, palette=table, top_down=top_down, colours=colours)
            data = bmp(packed(samples, bits, ">"), width, bits, **options)
            name = f"BMP {bits} bits, header {header}, {height}x{width}{', top down' * top_down}{', grey' * grey}"
            yield Case(name, data, samples, table[samples].astype(np.float64), oracles=("opencv",))
    yield from _bmp_colour_cases(rng)
    for bits, literal, (height, width) in itertools.product((4, 8), (False, True), ((1, 1), (5, 3), (4, 300), (9, 64))):
        samples = np.sort(rng.integers(0, 2**bits, (height, width), dtype=np.uint8), axis=1)
        table = rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        body = rle(samples, bits, literal)
        data = bmp([b""] * height, width, bits, compression=1 if bits == 8 else 2, palette=table, body=body)
        name = f"BMP RLE{bits}, {height}x{width}{', literal' * literal}"
        yield Case(name, data, samples, table[samples].astype(np.float64), oracles=("opencv",))


def _bmp_colour_cases(rng: np.random.Generator) -> Iterator[Case]:
    for header, (height, width), top_down in itertools.product((12, 40, 52, 108, 124), ((1, 1), (5, 7)), (False, True)):
        if header == 12 and top_down:
            continue
        options: dict[str, Any] = {"header": header, "top_down": top_down}
        name = f"header {header}, {height}x{width}{', top down' * top_down}"
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        data = bmp([row[:, ::-1].tobytes() for row in rgb], width, 24, **options)
        yield Case(f"BMP 24 bits, {name}", data, rgb, rgb * 1.0, oracles=("opencv",))
        spare = np.dstack([rgb[..., ::-1], rng.integers(0, 256, (height, width), dtype=np.uint8)])
        data = bmp([row.tobytes() for row in spare], width, 32, **options)
        yield Case(f"BMP 32 bits, {name}", data, rgb, rgb * 1.0, oracles=("opencv",))
        small = rng.integers(0, 2**15, (height, width), dtype=np.uint16)
        expected = np.stack([levels(small >> shift & 31, 5) for shift in (10, 5, 0)], 2)
        yield Case(f"BMP 16 bits, {name}", bmp(packed(small, 16, "<"), width, 16, **options), small, expected)
    for bits, header, top_down in itertools.product((16, 32), (40, 52, 56, 108, 124), (False, True)):
        for masks, clear in itertools.product(MASKS[bits], (False, True)):
            with_alpha = masks[3] and header >= 56
            values = uints(rng, (6, 5), bits)
            if clear and masks[3]:  # by convention, an alpha of 0 everywhere is opaque
                values &= ~np.array(masks[3], values.dtype)
            parts = [_masked(values, mask) for mask in masks]
            expected = np.stack(parts[:3], 2)
            if with_alpha and parts[3].any():
                expected = over_white(expected, parts[3] / 255)
            used = masks if header >= 56 else masks[:3]
            data = bmp(packed(values, bits, "<"), 5, bits, header=header, compression=3, masks=used, top_down=top_down)
            mask_text = " ".join(f"{mask:x}" for mask in used)
            name = f"BMP {bits} bits, header {header}, masks {mask_text}{', top down' * top_down}{', alpha 0' * clear}"
            yield Case(name, data, values, expected, 1.01 if with_alpha else 0.5)


def _masked(values: Array, mask: int) -> Array:
    shift = (mask & -mask).bit_length() - 1 if mask else 0
    highest = mask >> shift
    return ((values & mask) >> shift) * (255 / highest) if highest else values * 0.0


# --- GIF --------------------------------------------------------------------------------------------------------------


def lzw(indices: bytes, bits: int) -> bytes:
    """Return GIF's LZW, with the table cleared so often that the codes keep their initial size."""
    size, clear = bits + 1, 1 << bits
    codes = []
    for at in range(0, len(indices), clear - 2 or 1):
        codes += [clear, *indices[at : at + (clear - 2 or 1)]]
    codes.append(clear + 1)
    number = sum(code << (size * i) for i, code in enumerate(codes))
    body = number.to_bytes((size * len(codes) + 7) // 8, "little")
    blocks = b"".join(bytes((len(body[i : i + 255]),)) + body[i : i + 255] for i in range(0, len(body), 255))
    return bytes((bits,)) + blocks + b"\0"


def gif_frame(
    samples: Array,
    bits: int,
    left: int,
    top: int,
    table: Array | None,
    interlaced: bool,
    clear: int | None,
    disposal: int,
) -> bytes:
    height, width = samples.shape
    rows = list(range(height))
    if interlaced:
        rows = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4), *range(1, height, 2)]
    flags = (0x80 | (bits - 1) if table is not None else 0) | (0x40 if interlaced else 0)
    control = b"\x21\xf9\x04" + bytes((disposal << 2 | (clear is not None), 0, 0, clear or 0, 0))
    descriptor = b"," + struct.pack("<HHHHB", left, top, width, height, flags)
    body = b"" if table is None else table.astype(np.uint8).tobytes()
    return control + descriptor + body + lzw(samples[rows].astype(np.uint8).tobytes(), max(bits, 2))


def gif_cases() -> Iterator[Case]:
    rng = np.random.default_rng(3)
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    for bits, interlaced, transparent, offset, local, disposal in itertools.product(
        (1, 2, 3, 8), (False, True), (False, True), (False, True), (False, True), (0, 2, 3)
    ):
        height, width = 9, 13
        samples = rng.integers(0, 2**bits, (height, width), dtype=np.uint8)
        table = grey[: 2**bits] if disposal == 3 and bits > 2 else rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        other = rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        clear = int(samples[0, 0]) if transparent else None
        left, top = (3, 2) if offset else (0, 0)
        screen = struct.pack("<HHBBB", width + 2 * left, height + 2 * top, 0x80 | (bits - 1), 0, 0)
        frame = gif_frame(samples, bits, left, top, table if local else None, interlaced, clear, disposal)
        second = gif_frame(samples * 0, bits, 0, 0, None, False, None, 0)
        comment = b"\x21\xfe\x03abc\0"
        palette = (other if local else table).tobytes()
        data = b"GIF89a" + screen + palette + comment + frame + second + b";"
        background = 255.0 if transparent else (other if local else table)[0]
        expected = np.zeros((height + 2 * top, width + 2 * left, 3)) + background
        picture = table[samples].astype(np.float64)
        if transparent:
            picture[samples == clear] = 255
        expected[top : top + height, left : left + width] = picture
        name = f"GIF {bits} bits, disposal {disposal}" + "".join(
            f", {word}"
            for word, there in zip(
                ("interlaced", "transparent", "offset", "local palette"),
                (interlaced, transparent, offset, local),
                strict=True,
            )
            if there
        )
        # libvips and giflib leave the canvas around an opaque frame black, whatever its background colour
        yield Case(name, data, samples, expected, oracles=("opencv",) if offset and not transparent else ("vips",))


# --- WebP, AVIF, JPEG: compared with another decoder ------------------------------------------------------------------


def smooth(rng: np.random.Generator, height: int, width: int, channels: int, bits: int = 8) -> Array:
    """Return waves, which lossy codecs preserve well."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.02, 0.15, (channels, 3))]
    picture = np.rint((np.stack(waves, 2) * 0.5 + 0.5) * (2**bits - 1))
    return picture.astype(np.uint8 if bits == 8 else np.uint16)


def webp_animation(frames: list[bytes], boxes: list[tuple[int, int, int, int]], canvas: tuple[int, int]) -> bytes:
    """Return an animation. frames: WebP files; boxes: left, top, width, height of each; canvas: height, width."""

    def block(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    three = lambda value: int(value).to_bytes(3, "little")  # noqa: E731
    body = block(b"VP8X", bytes((0x12, 0, 0, 0)) + three(canvas[1] - 1) + three(canvas[0] - 1))
    body += block(b"ANIM", bytes(6))
    for frame, (left, top, width, height) in zip(frames, boxes, strict=True):
        box = three(left // 2) + three(top // 2) + three(width - 1) + three(height - 1) + three(100) + b"\2"
        body += block(b"ANMF", box + frame[12:])
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_cases() -> Iterator[Case]:
    rng = np.random.default_rng(4)
    for (height, width), alpha in itertools.product(((1, 1), (7, 9), (33, 20), (64, 48)), (False, True)):
        noise = rng.integers(0, 256, (height, width, 4 if alpha else 3), dtype=np.uint8)
        expected = over_white(noise[..., :3].astype(np.float64), noise[..., 3] / 255) if alpha else noise * 1.0
        data = bytes(imagecodecs.webp_encode(noise, lossless=True, level=3))
        name = f"{height}x{width}{', alpha' * alpha}"
        yield Case(f"WebP lossless {name}", data, noise, expected, oracles=("vips",))
        picture = smooth(rng, height, width, 4 if alpha else 3)
        data = bytes(imagecodecs.webp_encode(picture, lossless=False, level=90))
        seen = imagecodecs.webp_decode(data).astype(np.float64)
        expected = over_white(seen[..., :3], seen[..., 3] / 255) if seen.shape[2] == 4 else seen
        yield Case(f"WebP lossy {name}", data, picture, expected, 1.0, oracles=("vips",))
    for alpha, offset in itertools.product((False, True), (False, True)):
        frame = rng.integers(0, 256, (8, 10, 4 if alpha else 3), dtype=np.uint8)
        coded = bytes(imagecodecs.webp_encode(frame, lossless=True, level=3))
        left, top = (4, 2) if offset else (0, 0)
        data = webp_animation([coded, coded], [(left, top, 10, 8), (0, 0, 10, 8)], (8 + 2 * top, 10 + 2 * left))
        expected = np.full((8 + 2 * top, 10 + 2 * left, 3), 255.0)
        colour = frame[..., :3].astype(np.float64)
        expected[top : top + 8, left : left + 10] = over_white(colour, frame[..., 3] / 255) if alpha else colour
        yield Case(f"WebP animation{', alpha' * alpha}{', offset' * offset}", data, frame, expected, oracles=("vips",))


def avif_cases() -> Iterator[Case]:
    """Yield AVIF files; for 8 bits, the other decoder returns the same colours.

    For 10 and 12 bits, Pillow's libavif drops the low bits before it converts colours, and uses the nearest chroma
    sample, as libvips does for 4:2:0.
    """
    rng = np.random.default_rng(5)
    for (height, width), channels, bits, subsampling in itertools.product(
        ((16, 16), (33, 21)), (1, 3, 4), (8, 10, 12), ("444", "420")
    ):
        picture = smooth(rng, height, width, channels, bits)
        picture = picture[..., 0] if channels == 1 else picture
        options: dict[str, Any] = {"level": 90, "speed": 9, "bitspersample": bits, "numthreads": 1}
        if channels > 1:
            options["pixelformat"] = subsampling
        elif subsampling == "420":
            continue
        data = bytes(imagecodecs.avif_encode(picture, **options))
        seen = levels(imagecodecs.avif_decode(data, numthreads=1), bits)
        seen = rgb_of_grey(seen) if seen.ndim == 2 else seen
        expected = over_white(seen[..., :3], seen[..., 3] / 255) if seen.shape[2] == 4 else seen
        tolerance, mean = (1.0, 0.3) if bits == 8 else (20.0, 2.0)
        yield Case(
            f"AVIF {height}x{width}x{channels}, {bits} bits, {subsampling}",
            data,
            picture,
            expected,
            tolerance,
            mean,
            oracles=("vips",) if subsampling == "444" or bits > 8 else (),
        )


def jpeg_cases() -> Iterator[Case]:
    """Yield JPEG files; decoders agree, since all are libjpeg-turbo with the accurate transform, or within 2 of it."""
    rng = np.random.default_rng(6)
    samplings = {"444": 0x111111, "422": 0x211111, "420": 0x221111, "411": 0x411111, "440": 0x121111}
    for (height, width), progressive, restart, sampling, quality in itertools.product(
        ((8, 8), (33, 50), (1, 17)), (0, 1), (0, 2), samplings, (60, 95)
    ):
        picture = smooth(rng, height, width, 3)
        options = {
            cv2.IMWRITE_JPEG_QUALITY: quality,
            cv2.IMWRITE_JPEG_PROGRESSIVE: progressive,
            cv2.IMWRITE_JPEG_RST_INTERVAL: restart,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR: samplings[sampling],
        }
        flat_options = list(itertools.chain.from_iterable(options.items()))
        data = cv2.imencode(".jpg", picture[..., ::-1], flat_options)[1].tobytes()
        expected = decode_with_opencv(data).astype(np.float64)
        name = f"{height}x{width}, {sampling}, quality {quality}{', progressive' * progressive}{', restarts' * restart}"
        yield Case(f"JPEG {name}", data, picture, expected, 1.0, oracles=("vips",))
    for (height, width), space in itertools.product(((8, 8), (33, 50)), ("GRAYSCALE", "YCBCR", "RGB", "CMYK", "YCCK")):
        channels = {"GRAYSCALE": 1, "YCBCR": 3, "RGB": 3}.get(space, 4)
        picture = smooth(rng, height, width, channels)
        picture = picture[..., 0] if channels == 1 else picture
        inside = {1: "GRAYSCALE", 3: "RGB", 4: "CMYK"}[channels]
        data = bytes(imagecodecs.jpeg8_encode(picture, 95, colorspace=inside, outcolorspace=space))
        seen = imagecodecs.jpeg8_decode(data, outcolorspace=inside).astype(np.float64)
        # Adobe stores CMYK inverted, as its marker indicates
        expected = rgb_of_grey(seen) if channels == 1 else seen if channels == 3 else cmyk_to_rgb(255 - seen)
        oracles = () if channels == 4 else ("vips",)
        yield Case(f"JPEG {space}, {height}x{width}", data, picture, expected, 2.0, oracles=oracles)
    grey = smooth(rng, 16, 16, 1)[..., 0]
    wide = smooth(rng, 16, 16, 1, 12)[..., 0]
    for name, coded in (
        ("12 bits", imagecodecs.jpeg8_encode(wide, 95, bitspersample=12)),
        ("lossless", imagecodecs.jpeg8_encode(grey, lossless=True)),
        ("JPEG-LS", imagecodecs.jpegls_encode(grey)),
    ):
        yield Case(f"JPEG {name}", bytes(coded), grey, np.zeros((16, 16, 3)), 0, may_be_refused=True)


# --- TIFF cases -------------------------------------------------------------------------------------------------------

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}


def expected_tiff(
    samples: Array, bits: int, photometric: int, extra: tuple[int, ...], table: Array | None = None
) -> Array:
    count = _COLOURS[photometric]
    colours = samples[..., :count]
    if samples.dtype.kind == "f":
        value = colours.astype(np.float64) * 255
    elif samples.dtype.kind == "i":
        value = colours.clip(0, 65_535) / (1 if bits == 8 else 257)
    else:
        value = colours.clip(0, 65_535) / 257 if bits == 32 else levels(colours, bits)
    if photometric in (0, 1):
        rgb = np.repeat(255 - value if photometric == 0 else value, 3, 2)
    elif photometric == 3:
        assert table is not None
        rgb = table[samples[..., 0]].astype(np.float64)
    elif photometric == 8:
        signed = colours.astype(np.uint8).view(np.int8).astype(np.float64)
        rgb = lab_to_rgb(np.stack([value[..., 0] / 2.55, signed[..., 1], signed[..., 2]], 2))
    else:
        rgb = {2: lambda v: v, 5: cmyk_to_rgb, 6: ycc_to_rgb}[photometric](value)
    if extra and extra[0] in (1, 2):
        alpha = levels(samples[..., count], bits) / 255
        return rgb + 255 * (1 - alpha[..., None]) if extra[0] == 1 else over_white(rgb, alpha)
    return rgb


def _tiff_samples(rng: np.random.Generator, shape: tuple[int, ...], bits: int, kind: str) -> Array:
    if kind == "f":
        return rng.random(shape).astype(f"f{bits // 8}")
    if kind == "i":
        return rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(f"i{bits // 8}")
    return uints(rng, shape, bits)


def _tiff_tolerance(bits: int, photometric: int, extra: tuple[int, ...]) -> float:
    if photometric == 8:
        return 6.0  # littlecms works with 8-bit values and rounds several times
    if bits == 16 and photometric in (2, 5):  # the high byte is kept, of a colour and of its alpha or black channel
        return 3.0 if extra[:1] == (1,) or photometric == 5 else 2.0 if extra[:1] == (2,) else 1.0
    return 1.0 if extra[:1] == (1,) or photometric == 6 else 0.5


_STORED_LAYOUTS: tuple[tuple[int, str, int, tuple[int, ...]], ...] = (
    (0, "u", 1, ()),
    (0, "u", 16, ()),
    (1, "u", 8, ()),
    (1, "f", 32, ()),
    (1, "i", 16, ()),
    (2, "u", 8, ()),
    (2, "u", 16, ()),
    (2, "u", 8, (2,)),
    (3, "u", 4, ()),
)


def tiff_cases() -> Iterator[Case]:
    """Yield every layout in several forms of storage, then every form of storage for a few layouts."""
    rng = np.random.default_rng(7)
    extras: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,), (0, 0))
    kinds = (
        [("u", b) for b in (1, 2, 4, 8, 12, 16, 32)]
        + [("i", b) for b in (8, 16, 32)]
        + [("f", b) for b in (16, 32, 64)]
    )
    forms = [
        dict(order=order, planar=planar, compression=compression, fill_order=fill)
        for order, planar, compression, fill in itertools.product("<>", (1, 2), (1, 8), (1, 2))
    ]
    for photometric, (kind, bits), extra in itertools.product((0, 1, 2, 3, 5, 6, 8), kinds, extras):
        if (photometric == 3 and (kind != "u" or bits > 8)) or (photometric == 6 and kind != "u"):
            continue
        for form in forms:
            if form["planar"] == 2 and _COLOURS[photometric] + len(extra) == 1:
                continue
            yield _tiff_case(rng, photometric, kind, bits, extra, form)
    storage = itertools.product("<>", (False, True), (1, 2), (1, 5, 8, 32773, 34925, 50000), (1, 2, 3), ((), (16, 32)))
    for order, big, planar, compression, predictor, tile in storage:
        for photometric, kind, bits, extra in _STORED_LAYOUTS:
            if predictor > 1 and (compression in (1, 32773) or (predictor == 3) != (kind == "f") or bits < 8):
                continue
            if planar == 2 and photometric != 2:
                continue
            form = dict(order=order, big=big, planar=planar, compression=compression, predictor=predictor)
            yield _tiff_case(rng, photometric, kind, bits, extra, form | ({"tile": tile} if tile else {"rows": 5}))


def _tiff_case(
    rng: np.random.Generator, photometric: int, kind: str, bits: int, extra: tuple[int, ...], form: dict[str, Any]
) -> Case:
    count = _COLOURS[photometric]
    samples = _tiff_samples(rng, (13, 21, count + len(extra)), bits, kind)
    if extra[:1] == (1,):  # premultiplied
        samples[..., :count] = np.minimum(samples[..., :count], samples[..., count : count + 1])
    if photometric == 8:  # within sRGB
        samples[..., 1:3] = samples[..., 1:3] // 16 if kind != "f" else samples[..., 1:3]
    tags: dict[int, tuple[str, tuple[int, ...]]] = {338: ("H", extra)} if extra else {}
    table = None
    if photometric == 3:
        table = rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        tags[320] = "H", tuple(int(v) * 257 for v in table.T.ravel())
    if photometric == 6:
        tags[530] = "H", (1, 1)
    data = tiff(samples, bits, photometric, tags=tags, **form)
    description = ", ".join(f"{key} {value}" for key, value in form.items() if value != 1)
    name = f"TIFF photometric {photometric}, {kind}{bits}, extra {extra}, {description}"
    try:
        expected = expected_tiff(samples, bits, photometric, extra, table)
    except (IndexError, KeyError, ValueError):
        expected = np.zeros((13, 21, 3))
    tolerance = _tiff_tolerance(bits, photometric, extra)
    return Case(
        name,
        data,
        samples,
        expected,
        tolerance,
        may_be_refused=not _tiff_is_common(photometric, kind, bits, extra, form),
        oracles=("tifffile",),
    )


def _tiff_is_common(photometric: int, kind: str, bits: int, extra: tuple[int, ...], form: dict[str, Any]) -> bool:
    """Return whether the layout is so common that `unsupported_format` is not allowed."""
    if form.get("fill_order", 1) == 2 or (form.get("planar", 1) == 2 and (bits > 8 or photometric != 2 or extra)):
        return False
    if kind != "u":
        return not extra and photometric < 2 and (kind, bits) in (("i", 8), ("i", 16), ("i", 32), ("f", 32))
    if photometric < 2:
        return bits != 12 and (not extra or (bits == 8 and len(extra) == 1 and photometric == 1))
    if photometric == 2:
        return bits in (8, 16) and len(extra) < 2
    return photometric in (3, 5, 8) and not extra and bits == 8
