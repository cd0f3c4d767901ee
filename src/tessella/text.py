"""Convert text at the boundaries of the package: file names that are not UTF-8, and untrusted text for display.

Inside the package, names are in the form of `os.fsdecode`: bytes that are not UTF-8 are lone surrogates, which no file,
table or terminal accepts. `escape` converts a name to valid UTF-8, and `unescape` restores it.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

# an absolute path, or one from the home or parent folder, up to its last name; "s3://" is none
_FOLDERS = re.compile(r"(?<![^\s\"'(=:])(?:~[\w.-]*|\.\.?(?:/\.\.)*)?/(?!/)(?:[^\s/](?:[^/\n]*[^\s/])?/)*(?=[^\s/])")
# words in Hebrew, Arabic and other scripts that are written from right to left
_R = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff"
_RIGHT_TO_LEFT = re.compile(rf"[{_R}](?:[{_R}\s.,'\"-]*[{_R}])?")
_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4}))")


def escape(name: str) -> str:
    """Return a name as valid UTF-8; different names give different results.

    A backslash is doubled, a byte that is not UTF-8 becomes `\\xNN`, any other lone surrogate `\\uNNNN`; therefore the
    byte 0xff and the four characters `\\xff` give different results.
    """
    if "\\" not in name and name.isascii():  # the common case
        return name
    name = name.replace("\\", "\\\\")
    return re.sub("[\ud800-\udfff]", _escape_surrogate, name)


def _escape_surrogate(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def unescape(text: str) -> str:
    """Return the original name of a result of `escape`."""

    def restore(match: re.Match[str]) -> str:
        if match[1]:
            return chr(0xDC00 + int(match[1], 16))
        return chr(int(match[2], 16)) if match[2] else "\\"

    return _ESCAPED.sub(restore, text) if "\\" in text else text


def without_folders(text: str) -> str:
    """Return a text in which absolute paths, and those that begin with ~ or dots, are only their last names.

    For texts that leave this machine. Other relative paths and addresses stay as they are.
    """
    return _FOLDERS.sub("", text)


def encode_text(text: str) -> bytes:
    """Return a text as UTF-8; bytes of file names that are not UTF-8 are written as `\\xNN`.

    Unlike `escape`, backslashes are not doubled: for files that people read.
    """
    return re.sub("[\ud800-\udfff]", _escape_surrogate, text).encode()


def finite(value: object) -> object:
    """Return a JSON value with None in place of every float that is NaN or infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [finite(member) for member in value]
    return value


def printable(text: str) -> str:
    """Return text without control characters, for a terminal: escape sequences and line breaks have no effect.

    Control, format and surrogate characters (terminal escapes, line breaks, bidirectional overrides) are replaced by
    their `\\xNN` or `\\uNNNN` form; spaces and all visible characters remain. The result is not reversible.
    """
    if text.isascii() and text.isprintable():  # the common case
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in "\u200c\u200d":
        return character  # the joiners are part of emoji and of words in Indic scripts and Persian
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape_line(text: object) -> str:
    """Return a text as one line of Markdown, with the special characters of Markdown and HTML escaped.

    Control characters are shown as in `printable`, because people also read Markdown in a terminal.
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    # _ inside a word needs no escape, and neither does a backslash before a letter
    return printable(re.sub(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line))


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2,000 images"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def html_text(value: object) -> str:
    """Return text for an HTML page: escaped, without control characters.

    Words that are written from right to left are isolated, so that they do not move the numbers beside them.
    """
    return html.escape(_RIGHT_TO_LEFT.sub("\u2068\\g<0>\u2069", printable(str(value))))


def html_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return an HTML table for Jupyter; every cell is escaped."""
    head = "".join(f"<th>{html_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def any_of(words: Sequence[str]) -> str:
    """Return the words as alternatives: "a", "a or b", "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
