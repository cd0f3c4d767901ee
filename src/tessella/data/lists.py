"""Lists of inputs as text, one name per entry, as any system writes them.

Encodings: UTF-8 with or without a byte order mark (bytes that are not UTF-8 are kept, as in file names), UTF-16 and
UTF-32 with one; UTF-16 without one where the first four characters are ASCII or Latin-1. Entries end with LF or CR LF;
with CR alone where the list has no LF; or with NUL (`find -print0`) where NUL is the separator: then names may contain
line breaks.
"""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import ImageError
from .remote import is_url

LONGEST_ENTRY = 1 << 16  # characters; no file system has longer paths
_CHUNK = 1 << 16  # bytes
_BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32 (little-endian) begins like UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def encoding_of(start: bytes) -> tuple[str, str, int]:
    """(encoding, error handler, length of the byte order mark) of a text that starts with these bytes."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding, "surrogateescape" if encoding == "utf-8" else "replace", len(mark)
    for encoding, zeros, others in (
        ("utf-16-le", start[1:8:2], start[0:8:2]),
        ("utf-16-be", start[0:8:2], start[1:8:2]),
    ):
        if zeros == bytes(4) and all(others) and _DOT_OR_SLASH[encoding].search(start):
            return encoding, "replace", 0
    return "utf-8", "surrogateescape", 0


# In a list of names of one character that NUL separates, none of them is a dot or a slash
_DOT_OR_SLASH = {"utf-16-le": re.compile(rb"[./]\0"), "utf-16-be": re.compile(rb"\0[./]")}


def decode_text(data: bytes) -> str:
    """Text of a small file that is held in memory, by its byte order mark; UnicodeDecodeError if it is damaged."""
    encoding, _, mark = encoding_of(data)
    return data[mark:].decode(encoding)


def existing_name(entry: str, folder: str = "") -> str:
    """The name that an entry of a list means: as written, or in the form under which there is such a file.

    Other systems leave spaces at the end of lines, write names in another Unicode normal form, or in the encoding of
    Windows. folder: that a relative name starts from.
    """

    def exists(name: str) -> bool:
        return os.path.lexists(os.path.join(folder, name) if folder else name)  # noqa: PTH118 - names need not be text

    if is_url(entry) or exists(entry):
        return entry
    stripped = entry.strip()
    forms = [stripped]
    if not stripped.isascii():
        forms += [unicodedata.normalize(form, stripped) for form in ("NFC", "NFD")]
        forms.append(os.fsencode(stripped).decode("cp1252", "replace") if _has_odd_bytes(stripped) else entry)
    return next((form for form in forms if form != entry and exists(form)), entry)


def _has_odd_bytes(name: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in name)


def entries(stream: Any) -> Iterator[str | ImageError]:
    """The entries of an open list, as they arrive; ImageError for one that is too long.

    stream: a binary stream, a text stream over one (standard input), or any iterable of lines.
    """
    binary = getattr(stream, "buffer", stream)
    read: Callable[[int], bytes] | None = getattr(binary, "read1", None) or getattr(binary, "read", None)
    if read is None or hasattr(binary, "encoding"):
        yield from _lines(stream)
    else:
        yield from _split(_decoded(read))


def _lines(lines: Iterable[Any]) -> Iterator[str | ImageError]:
    for line in lines:
        text = line.decode("utf-8", "surrogateescape") if isinstance(line, bytes) else line
        if not isinstance(text, str):
            yield ImageError("unreadable", f"an entry of the list is a {type(line).__name__}, expected text")
        elif text := text.rstrip("\r\n"):
            yield text


def _decoded(read: Callable[[int], bytes]) -> Iterator[str]:
    start = b""
    while (len(start) < 4 or (len(start) < 8 and b"\0" in start)) and (more := read(_CHUNK)):  # tells the encoding
        start += more
    encoding, errors, mark = encoding_of(start)
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    yield decoder.decode(start[mark:])
    while data := read(_CHUNK):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def _split(chunks: Iterator[str]) -> Iterator[str | ImageError]:
    pending, separator, too_long = "", None, False
    for chunk in chunks:
        pending += chunk
        if separator is None and (separator := _separator(pending)) is None and len(pending) <= LONGEST_ENTRY:
            continue
        *whole, pending = (separator or _LINE_FEED).split(pending)
        for entry in whole:
            if too_long:
                too_long = False  # the end of the entry that was given up
            elif entry:
                yield _bounded(entry)
        if len(pending) > LONGEST_ENTRY:
            if not too_long:
                yield _bounded(pending)
            pending, too_long = "", True
    if pending and not too_long:
        for entry in (separator or _ANY_LINE_END).split(pending):
            if entry:
                yield _bounded(entry)


_NUL, _LINE_FEED, _ANY_LINE_END = re.compile("\0"), re.compile("\r?\n"), re.compile("\r\n|\r|\n")


def _separator(text: str) -> re.Pattern[str] | None:
    """What ends an entry, judged by the beginning of the list; None if there is nothing yet to judge by."""
    nuls, line_feeds = text.count("\0"), text.count("\n")
    if nuls > line_feeds or (nuls and nuls == line_feeds and text.endswith("\0")):
        return _NUL
    if line_feeds:
        return _LINE_FEED
    return _ANY_LINE_END if "\r" in text[:-1] else None


def _bounded(entry: str) -> str | ImageError:
    if len(entry) <= LONGEST_ENTRY:
        return entry
    return ImageError(
        "unreadable", f"an entry of the list has more than {LONGEST_ENTRY:,} characters: {entry[:40]!r}..."
    )
