"""Names that are not UTF-8, and text for a terminal."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.text import count_of, encode_text, escape, escape_line, finite, html_text, printable, unescape

NAMES = st.one_of(
    st.text(st.characters()),  # lone surrogates included
    st.binary().map(os.fsdecode),
    st.text(alphabet="\\xu0f9da\udcff\ud800é"),  # looks like an escape
)


@given(NAMES)
def test_an_escaped_name_is_utf8_and_can_be_restored(name: str) -> None:
    text = escape(name)
    assert text.encode("utf-8").decode() == text
    assert unescape(text) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jpg", "a.jpg"), ("é.jpg", "é.jpg"), ("a\udcff", r"a\xff"), (r"a\xff", r"a\\xff"), ("\ud800", r"\ud800")],
)
def test_escape(name: str, text: str) -> None:
    assert escape(name) == text


@pytest.mark.parametrize(
    ("text", "displayed"),
    [
        ("tabby cat", "tabby cat"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\r", r"two\x0alines\x0d"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("\x9b1m", r"\x9b1m"),
        ("b\udce9.png", r"b\xe9.png"),
        ("猫 🐈\u200d⬛", "猫 🐈\u200d⬛"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_printable(text: str, displayed: str) -> None:
    assert printable(text) == displayed


@given(NAMES)
def test_printable_text_has_no_control_characters(name: str) -> None:
    displayed = printable(name)
    assert displayed.encode("utf-8").decode() == displayed
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in displayed)


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("\x1b[31mred\x07", r"\x1b\[31mred\x07"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("two\nlines", "two lines"),
        ("b\udce9.png", r"b\xe9.png"),
    ],
)
def test_markdown_has_no_control_characters(text: str, markdown: str) -> None:
    assert escape_line(text) == markdown


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("<b> & 'c'", "&lt;b&gt; &amp; &#x27;c&#x27;"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("\u05d7\u05ea 92.3 %", "\u2068\u05d7\u05ea\u2069 92.3 %"),
        ("a \u0635\u0648 \u0631\u0629 12.jpg", "a \u2068\u0635\u0648 \u0631\u0629\u2069 12.jpg"),
        ("\u05d0 or \u05d1", "\u2068\u05d0\u2069 or \u2068\u05d1\u2069"),
        ("\u2068a\u2069", r"\u2068a\u2069"),
    ],
)
def test_html_text(text: str, markup: str) -> None:
    assert html_text(text) == markup


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (2_000, "2,000 rows")])
def test_count_of(count: int, text: str) -> None:
    assert count_of(count, "row") == text


def test_readable_text_keeps_backslashes_and_is_utf8() -> None:
    assert encode_text("caf\udce9 é a\\b") == "caf\\xe9 é a\\b".encode()


def test_json_values_are_finite() -> None:
    value = dict(a=float("nan"), b=(1.5, [float("-inf"), "x"]), c=True, d=None)
    assert finite(value) == dict(a=None, b=[1.5, [None, "x"]], c=True, d=None)
