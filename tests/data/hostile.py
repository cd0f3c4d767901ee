"""Hand-written image files whose headers declare far more than their bytes contain; they are generated quickly."""

from __future__ import annotations

import struct
import zlib


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def zeros(count: int) -> bytes:
    """Return a zlib stream of `count` zero bytes, compressed in blocks."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & ((1 << 20) - 1))), packer.flush()])


def png(width: int, height: int, *, bits: int = 8, color: int = 0, extra: bytes = b"", pixels: bool = False) -> bytes:
    """Return a gray (color 0), RGB (2) or RGBA (6) PNG with all of its black pixels, or only the first of them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    row = 1 + (width * bits * {0: 1, 2: 3, 6: 4}[color] + 7) // 8
    body = zeros(row * height) if pixels else zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND")


def gif(width: int, height: int, frame: tuple[int, int] | None = None) -> bytes:
    frame_width, frame_height = frame or (width, height)
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\2\2\x4c\1\0"
    return b"GIF89a" + screen + image + b";"


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 16, 0, 0, 54) + info + bytes(16)


def jpeg(width: int, height: int, *, progressive: bool = False) -> bytes:
    quant = b"\xff\xdb\0\x43\0" + b"\1" * 64
    frame = b"\xff\xc2" if progressive else b"\xff\xc0"
    frame += struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    codes = b"\xff\xc4\0\x14\0\1" + bytes(15) + b"\0" + b"\xff\xc4\0\x14\x10\1" + bytes(15) + b"\0"
    scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    return b"\xff\xd8" + quant + frame + codes + scan + b"\0" * 16 + b"\xff\xd9"


def webp(width: int, height: int) -> bytes:
    """Return an extended WebP: a canvas of up to 2^24 pixels per side, and a lossless frame of up to 16,384."""
    canvas = struct.pack("<I", 0x10)[:4] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    bits = (min(width, 16384) - 1) | (min(height, 16384) - 1) << 14
    frame = b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08" + bytes(8)
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + b"VP8L" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int, *, tile: int = 0, compression: int = 1, ifds: int = 1, loop: bool = False) -> bytes:
    """Return a little-endian gray TIFF with `ifds` directories; if `loop`, the last one points to the first."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (277, 3, 1)]
    if tile:
        tags += [(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, 8)]
    else:
        tags += [(273, 4, 8), (278, 4, height), (279, 4, 8)]
    tags.sort()
    length = 2 + 12 * len(tags) + 4
    out = b"II*\0" + struct.pack("<I", 16) + bytes(8)
    for i in range(ifds):
        following = 16 + length * (i + 1) if i + 1 < ifds else (16 if loop else 0)
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        out += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return out


def apng(frames: int) -> bytes:
    control = chunk(b"acTL", struct.pack(">II", frames, 0))
    return png(4, 4, extra=control, pixels=True)


MILLION = 1_000_000
HEADERS: dict[str, bytes] = {
    "png 51 MP": png(7500, 6800),
    "png 51 MP, complete": png(7500, 6800, pixels=True),
    "png 88 MP": png(9400, 9400),
    "png 88 MP, complete": png(9400, 9400, pixels=True),
    "png 180 MP": png(13500, 13500),
    "png 180 MP RGBA": png(13500, 13500, color=6),
    "png 2^31 - 1 per side": png(2**31 - 1, 2**31 - 1),
    "png 1 x 2^31 - 1": png(1, 2**31 - 1),
    "png 65,536 wide": png(65_536, 1, pixels=True),
    "png 65,536 tall": png(1, 65_536, pixels=True),
    "png no width": png(0, 10),
    "png 64 MB of text": png(4, 4, extra=chunk(b"zTXt", b"a\0\0" + zeros(64 * MILLION)), pixels=True),
    "png 10 MB profile": png(4, 4, extra=chunk(b"iCCP", b"a\0\0" + zeros(10 * MILLION)), pixels=True),
    "png broken profile": png(4, 4, extra=chunk(b"iCCP", b"a\0\0" + b"\xff" * 50), pixels=True),
    "png huge exif": png(4, 4, extra=chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 60_000), pixels=True),
    "apng of 2^31 - 1 frames": apng(2**31 - 1),
    "apng of 2^32 - 1 frames": apng(2**32 - 1),
    "gif 65,535 squared": gif(65_535, 65_535),
    "gif small canvas, huge frame": gif(1, 1, (65_535, 65_535)),
    "gif 10,000 squared frame": gif(1, 1, (10_000, 10_000)),
    "gif 65,535 x 1": gif(65_535, 1),
    "webp 16,383 squared": webp(16_383, 16_383),
    "webp 2^24 wide": webp(2**24, 1),
    "webp 2^24 x 200": webp(2**24, 200),
    "bmp 30,000 squared": bmp(30_000, 30_000),
    "bmp upside down": bmp(30_000, -30_000),
    "bmp 2^31 - 1 wide": bmp(2**31 - 1, 1),
    "bmp 5,000 squared, truncated": bmp(5_000, 5_000),
    "jpeg 65,535 squared": jpeg(65_535, 65_535),
    "jpeg 65,500 squared, progressive": jpeg(65_500, 65_500, progressive=True),
    "jpeg 51 MP": jpeg(7_500, 6_800),
    "jpeg no height": jpeg(100, 0),
    "tiff 65,535 squared": tiff(65_535, 65_535),
    "tiff 2^32 - 1 per side": tiff(2**32 - 1, 2**32 - 1),
    "tiff huge tile": tiff(16, 16, tile=60_000),
    "tiff huge deflated tile": tiff(16, 16, tile=60_000, compression=8),
    "tiff huge LZW tile": tiff(16, 16, tile=30_000, compression=5),
    "tiff 10,000 directories": tiff(4, 2, ifds=10_000),
    "tiff directories in a cycle": tiff(4, 2, ifds=3, loop=True),
    "tiff 50 MP of 8 bytes": tiff(7_000, 7_000, compression=8),
}

# (width, height): valid images that `load_pixels` refuses as too elongated, or resizes within its limit
ELONGATED = [
    (1, 300),
    (300, 1),
    (1, 1_000),
    (1_000, 1),
    (1, 5_000),
    (5_000, 1),
    (1, 20_000),
    (20_000, 1),
    (1, 65_535),
    (65_535, 1),
    (2, 65_500),
    (65_500, 2),
    (3, 30_000),
    (30_000, 3),
    (8, 65_500),
    (65_500, 8),
    (16, 4_000),
    (4_000, 16),
    (100, 30_000),
    (30_000, 100),
    (7, 1_700),
    (1_708, 7),
    (255, 65_000),
    (65_000, 255),
]
