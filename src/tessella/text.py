"""Text borders: file names that are not UTF-8, and text from outside that is shown on a terminal.

Inside the package a name is what `os.fsdecode` gives: bytes that are not UTF-8 are lone surrogates, which no file,
table or terminal accepts. `escape` makes a string that is valid UTF-8 of it, and `unescape` restores the name.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4}))")


def escape(name: str) -> str:
    """Text that is valid UTF-8 and belongs to this name alone.

    A backslash is doubled, a byte that is not UTF-8 becomes `\\xNN`, any other lone surrogate `\\uNNNN`; so the byte
    0xff and the four characters `\\xff` give different results.
    """
    if "\\" not in name and name.isascii():  # nearly always
        return name
    name = name.replace("\\", "\\\\")
    return re.sub("[\ud800-\udfff]", _escape_surrogate, name)


def _escape_surrogate(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def unescape(text: str) -> str:
    """The name that `escape` was given."""

    def restore(match: re.Match[str]) -> str:
        if match[1]:
            return chr(0xDC00 + int(match[1], 16))
        return chr(int(match[2], 16)) if match[2] else "\\"

    return _ESCAPED.sub(restore, text) if "\\" in text else text


def printable(text: str) -> str:
    """Text without control characters, for a terminal: neither escape sequences nor line breaks take effect.

    Control, format and surrogate characters (terminal escapes, line breaks, bidirectional overrides) are replaced by
    their `\\xNN` or `\\uNNNN` form; spaces and all visible characters stay. Not reversible, for display only.
    """
    if text.isascii() and text.isprintable():  # nearly always
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in "\u200c\u200d":
        return character  # the joiners are part of emoji and of words in Indic scripts and Persian
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2,000 images"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def html_text(value: object) -> str:
    """Text for an HTML page: escaped, without control characters."""
    return html.escape(printable(str(value)))


def html_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table for Jupyter; every cell is escaped."""
    head = "".join(f"<th>{html_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
