"""GIF: drop everything before the first frame except its transparency, and read its position on the canvas."""

from __future__ import annotations

from dataclasses import dataclass

from . import damaged, too_complex

_MAX_BLOCKS = 200_000  # before the first frame; about a tenth of a second of work
_EXTENSION, _FRAME, _END = 0x21, 0x2C, 0x3B


@dataclass(frozen=True)
class Gif:
    """The structure of a GIF; sizes in pixels."""

    data: bytes  # the file without comments and other extensions before its first frame
    height: int  # of the canvas
    width: int
    frame: tuple[int, int, int, int]  # top, left, bottom, right of the first frame
    background: tuple[int, int, int]  # RGB of the canvas around the frame: white if it is transparent


def read(data: bytes) -> Gif:
    """Return the structure of a GIF up to its first frame. Raises ImageError if it has none."""
    if len(data) < 13:
        raise damaged("GIF", "it is truncated in its header")
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    tables_end = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    at, control = tables_end, b""
    for _ in range(_MAX_BLOCKS):
        if at >= len(data) or data[at] in (_FRAME, _END):
            break
        if data[at] != _EXTENSION:  # some programs write surplus zeros
            at += 1
            continue
        end = _end_of_extension(data, at)
        if data[at + 1 : at + 3] == b"\xf9\x04":  # graphic control with the transparency; the last one applies
            control = data[at:end]
        at = end
    else:
        raise too_complex("GIF", f"more than {_MAX_BLOCKS:,} extensions before its first frame")
    if data[at : at + 1] != bytes((_FRAME,)) or at + 10 > len(data):
        raise damaged("GIF", "it has no first frame")
    left, top, frame_width, frame_height = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (1, 3, 5, 7))
    head, frame = data[:tables_end], data[at:]
    if data[at + 9] & 0x80:  # Pillow confuses a local gray palette with the global one: make it global
        size = 3 << (data[at + 9] & 7) + 1
        head = data[:10] + bytes((data[10] & 0x78 | data[at + 9] & 0x87,)) + data[11:13] + frame[10 : 10 + size]
        frame = frame[:9] + bytes((frame[9] & 0x78,)) + frame[10 + size :]
    clean = b"".join([head, control, frame])
    entry = 13 + 3 * data[11]
    opaque = not (control[3:4] or b"\0")[0] & 1 and entry + 3 <= tables_end
    background = (data[entry], data[entry + 1], data[entry + 2]) if opaque else (255, 255, 255)
    return Gif(clean, height, width, (top, left, top + frame_height, left + frame_width), background)


def _end_of_extension(data: bytes, at: int) -> int:
    """Return where an extension ends: two bytes, then blocks that start with their length, the last of length 0."""
    at += 2
    for _ in range(_MAX_BLOCKS):
        if at >= len(data) or not data[at]:
            return at + 1
        at += 1 + data[at]
    raise too_complex("GIF", f"an extension of more than {_MAX_BLOCKS:,} blocks")
