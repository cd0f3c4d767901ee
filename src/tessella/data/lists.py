"""Text lists of inputs, one name per entry, as any system writes them.

Encodings: UTF-8 with or without a byte order mark (bytes that are not UTF-8 are kept, as in file names), UTF-16 and
UTF-32 with a mark, and UTF-16 without one if the first four characters are ASCII or Latin-1. Entries end with LF or
CR LF; with CR alone if the list has no LF; or with NUL (`find -print0`) if NUL is the separator, in which case names
may contain line breaks.
"""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from ..errors import ImageError
from .remote import is_url

LONGEST_ENTRY = 1 << 16  # characters; no file system allows longer paths
_CHUNK = 1 << 16  # bytes
_BYTE_ORDER_MARKS = (  # longer marks first: UTF-32 (little-endian) begins like UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# A list of one-character names separated by NUL looks like UTF-16, but has no dot or slash among its characters.
_DOT_OR_SLASH = {"utf-16-le": re.compile(rb"[./]\0"), "utf-16-be": re.compile(rb"\0[./]")}


def detect_encoding(start: bytes) -> tuple[str, str, int]:
    """Return (encoding, error handler, length of the byte order mark) of a text from its first bytes."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding, "surrogateescape" if encoding == "utf-8" else "replace", len(mark)
    for encoding, high_bytes, low_bytes in (
        ("utf-16-le", start[1:8:2], start[0:8:2]),
        ("utf-16-be", start[0:8:2], start[1:8:2]),
    ):
        if high_bytes == bytes(4) and all(low_bytes) and _DOT_OR_SLASH[encoding].search(start):
            return encoding, "replace", 0
    return "utf-8", "surrogateescape", 0


def decode_text(data: bytes) -> str:
    """Decode a small text file by its byte order mark. Raises UnicodeDecodeError if it is damaged."""
    encoding, _, mark_length = detect_encoding(data)
    return data[mark_length:].decode(encoding)


def resolve_name(entry: str, folder: str = "") -> str:
    """Return the file name that an entry of a list refers to: as written, or in another form that exists on disk.

    Other systems leave spaces at the end of lines, or write names in another Unicode normal form or in the encoding of
    Windows. folder: what relative names are relative to.
    """

    def exists(name: str) -> bool:
        return os.path.lexists(os.path.join(folder, name) if folder else name)  # noqa: PTH118 - names need not be text

    if is_url(entry) or exists(entry):
        return entry
    stripped = entry.strip()
    candidates = [stripped]
    if not stripped.isascii():
        candidates += [unicodedata.normalize(form, stripped) for form in ("NFC", "NFD")]
        if _has_undecoded_bytes(stripped):
            candidates.append(os.fsencode(stripped).decode("cp1252", "replace"))
    return next((name for name in candidates if name != entry and exists(name)), entry)


def _has_undecoded_bytes(name: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in name)


def read_entries(stream: Iterable[object]) -> Iterator[str | ImageError]:
    """Yield the entries of an open list as they arrive; an ImageError for an entry that is too long or not text.

    stream: a binary stream, a text stream over one (standard input), or any iterable of lines.
    """
    binary = getattr(stream, "buffer", stream)
    read: Callable[[int], bytes] | None = getattr(binary, "read1", None) or getattr(binary, "read", None)
    if read is None or hasattr(binary, "encoding"):
        yield from _read_lines(stream)
    else:
        yield from _split(_decode_chunks(read))


def _read_lines(lines: Iterable[object]) -> Iterator[str | ImageError]:
    for line in lines:
        text = line.decode("utf-8", "surrogateescape") if isinstance(line, bytes) else line
        if not isinstance(text, str):
            yield ImageError("unreadable", f"an entry of the list is a {type(line).__name__}, expected text")
        elif text := text.rstrip("\r\n"):
            yield text


def _decode_chunks(read: Callable[[int], bytes]) -> Iterator[str]:
    start = b""
    while (len(start) < 4 or (len(start) < 8 and b"\0" in start)) and (more := read(_CHUNK)):  # to detect the encoding
        start += more
    encoding, errors, mark_length = detect_encoding(start)
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    yield decoder.decode(start[mark_length:])
    while data := read(_CHUNK):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def _split(chunks: Iterator[str]) -> Iterator[str | ImageError]:
    pending, separator, is_too_long = "", None, False
    for chunk in chunks:
        pending += chunk
        if separator is None and (separator := _detect_separator(pending)) is None and len(pending) <= LONGEST_ENTRY:
            continue
        *complete, pending = (separator or _LINE_FEED).split(pending)
        for entry in complete:
            if is_too_long:
                is_too_long = False  # this is the end of the entry that was reported as too long
            elif entry:
                yield _check_length(entry)
        if len(pending) > LONGEST_ENTRY:
            if not is_too_long:
                yield _check_length(pending)
            pending, is_too_long = "", True
    if pending and not is_too_long:
        for entry in (separator or _ANY_LINE_END).split(pending):
            if entry:
                yield _check_length(entry)


_NUL, _LINE_FEED, _ANY_LINE_END = re.compile("\0"), re.compile("\r?\n"), re.compile("\r\n|\r|\n")


def _detect_separator(text: str) -> re.Pattern[str] | None:
    """Return what ends an entry, judging by the beginning of the list; None if it has no separator yet."""
    nuls, line_feeds = text.count("\0"), text.count("\n")
    if nuls > line_feeds or (nuls and nuls == line_feeds and text.endswith("\0")):
        return _NUL
    if line_feeds:
        return _LINE_FEED
    return _ANY_LINE_END if "\r" in text[:-1] else None


def _check_length(entry: str) -> str | ImageError:
    if len(entry) <= LONGEST_ENTRY:
        return entry
    return ImageError(
        "unreadable", f"an entry of the list has more than {LONGEST_ENTRY:,} characters: {entry[:40]!r}..."
    )
