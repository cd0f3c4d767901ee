"""Render the docstrings of the package: plain text in which `name: meaning.` describes a parameter or a field.

    Return embeddings of unit length.

    images: paths, bytes or arrays. top: number of classes, best first. Raises ImageError `corrupt_image`.

becomes a list of parameters with links from error classes and error codes to their description.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
from typing import Any, NamedTuple

from sphinx.application import Sphinx

from tessella import errors

ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")]
_ERROR = re.compile(rf"(?<![\w`.])({'|'.join(ERRORS)})(?![\w`])")
_CODE = re.compile(r"`(\w+)`")
_SPLIT = re.compile(r"(`+[^`]+`+)")
_RAISES = re.compile(r"(?:(?<=^)|(?<=[.;:)] ))(?=Raises? [A-Z`])")


class Entry(NamedTuple):
    """What a docstring says about parameters or fields that it describes together."""

    names: tuple[str, ...]
    text: str


class Parts(NamedTuple):
    """A docstring in parts: paragraphs, entries and the paragraph about errors."""

    paragraphs: list[str]
    entries: list[Entry]
    raises: str


def split_docstring(text: str, names: set[str]) -> Parts:
    """Return the parts of a docstring; names: those of the parameters or fields."""
    paragraphs: list[str] = []
    entries: list[Entry] = []
    raises = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith(("- ", " ")):
            paragraphs.append(paragraph)
            continue
        flat = " ".join(paragraph.split())
        before, found, error = _split_paragraph(flat, names)
        if before:
            paragraphs.append(before)
        entries += found
        raises = f"{raises} {error}".strip()
    return Parts(paragraphs, entries, raises)


def _split_paragraph(text: str, names: set[str]) -> tuple[str, list[Entry], str]:
    raising = _RAISES.search(text)
    raises = ""
    if raising:
        text, raises = text[: raising.start()].strip(), text[raising.start() :]
    if not names:
        return text, [], raises
    word = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    starts = list(re.finditer(rf"(?:(?<=^)|(?<=[.;)] ))((?:{word})(?:(?:, | and )(?:{word}))*): ", text))
    if not starts:
        return text, [], raises
    ends = [*(match.start() for match in starts[1:]), len(text)]
    entries = [
        Entry(tuple(re.split(r", | and ", match[1])), text[match.end() : end].strip().removesuffix(";"))
        for match, end in zip(starts, ends, strict=True)
    ]
    return text[: starts[0].start()].strip(), entries, raises


def to_rst(text: str) -> str:
    """Return plain text as reStructuredText, with links from error classes and error codes to their description."""
    parts = []
    for number, part in enumerate(_SPLIT.split(text)):
        if number % 2 == 0:
            part = re.sub(r"(?<=\w)_(?!\w)|(?<!\w)_(?=\w)|[*\\]|(?<=[^\n])\|", lambda match: "\\" + match[0], part)
            part = _ERROR.sub(r":py:exc:`\1 <tessella.errors.\1>`", part)
        elif (code := _CODE.fullmatch(part)) and code[1] in errors.CODES:
            part = f":ref:`{code[1]} <error-{code[1]}>`"
        parts.append(part)
    return "".join(parts)


def is_record(value: object) -> bool:
    """Return whether a class has fields: a dataclass or a NamedTuple."""
    return isinstance(value, type) and (dataclasses.is_dataclass(value) or hasattr(value, "_fields"))


def field_names(cls: type) -> list[str]:
    """Return the names of the public fields of a dataclass or a NamedTuple."""
    names = [item.name for item in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else list(cls._fields)  # type: ignore[attr-defined]
    return [name for name in names if not name.startswith("_")]


@functools.cache
def field_comments(cls: type) -> dict[str, str]:
    """Return the comments beside or above the fields of a class, by the name of the field."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("tessella."):
            found |= _own_comments(base)
    return found


def _own_comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    lines = source.splitlines()
    return {
        item.target.id: comment
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if (comment := comment_at(lines, item.lineno, item.end_lineno or item.lineno))
    }


def comment_at(lines: list[str], first: int, last: int) -> str:
    """Return the comment at the end of an assignment, or those in the lines above it.

    lines: of the source. first, last: line numbers of the assignment, from 1.
    """
    for number in (last, first):
        _, mark, comment = lines[number - 1].rpartition("  # ")
        if mark and not comment.startswith("type: "):
            return comment.strip()
    above = []
    for line in reversed(lines[: first - 1]):
        if not line.lstrip().startswith("# "):
            break
        above.insert(0, line.lstrip()[2:])
    return " ".join(above)


def field_entries(cls: type) -> dict[str, str]:
    """Return what the docstring and the comments of a class say about each of its fields."""
    names = field_names(cls)
    described = {
        name: text
        for entry in split_docstring(cls.__doc__ or "", set(names)).entries
        for name, text in ((name, entry.text) for name in entry.names)
    }
    comments = field_comments(cls)
    return {name: described.get(name) or comments.get(name, "") for name in names}


def parameter_names(value: Any) -> set[str]:
    """Return the names of the parameters of a function or a class; none if it has no signature."""
    try:
        return set(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return set()


def process(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Replace a docstring by its reStructuredText, in place."""
    if not getattr(value, "__module__", "tessella").startswith("tessella") or not "".join(lines).strip():
        return
    record = is_record(value)
    names = set(field_names(value)) if record else parameter_names(value)
    parts = split_docstring("\n".join(lines), names)
    out: list[str] = []
    for paragraph in parts.paragraphs:
        out += [*(to_rst(line) for line in paragraph.splitlines()), ""]
    if record:
        out += _fields(value, parts)
    else:
        out += [f":param {', '.join(entry.names)}: {to_rst(entry.text)}" for entry in parts.entries]
        out += [""] if parts.entries else []
    if parts.raises:
        out += [to_rst(parts.raises), ""]
    lines[:] = out


def _fields(cls: type, parts: Parts) -> list[str]:
    """Return the list of fields; those that are described together share an item."""
    comments = field_comments(cls)
    grouped = {name: entry for entry in parts.entries for name in entry.names}
    out, done = [], set()
    for name in field_names(cls):
        entry = grouped.get(name) or (Entry((name,), comments[name]) if name in comments else None)
        if entry is None or name in done:
            continue
        done |= set(entry.names)
        out.append(f"* {', '.join(f'``{part}``' for part in entry.names)} – {to_rst(entry.text)}")
    return [".. rubric:: Fields", "", *out, ""] if out else []


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what Python itself documents: the fields of named tuples, and members of other packages."""
    if str(getattr(value, "__doc__", "") or "").startswith("Alias for field number"):
        return True
    home = getattr(inspect.unwrap(value) if callable(value) else value, "__module__", None)
    return True if isinstance(home, str) and home in sys.modules and not home.startswith("tessella") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
