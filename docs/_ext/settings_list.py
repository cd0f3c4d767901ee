"""The directive `settings`: the fields of a dataclass with their types, defaults and meaning."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re

from docstrings import Parts, field_entries, field_names, split_docstring, to_rst
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Settings(SphinxDirective):
    """List the fields of a dataclass. bounds: dotted name of a table of the smallest and largest values."""

    required_arguments = 1
    option_spec = {"bounds": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        cls = import_name(self.arguments[0])
        bounds = import_name(self.options["bounds"]) if "bounds" in self.options else {}
        assert isinstance(cls, type)
        assert isinstance(bounds, dict)
        self.env.note_dependency(str(inspect.getsourcefile(cls)))
        parts = split_docstring(cls.__doc__ or "", set(field_names(cls)))
        text = [line for part in intro(parts) for line in (to_rst(part), "")]
        entries = field_entries(cls)
        for field in dataclasses.fields(cls):
            if not field.name.startswith("_"):
                text += describe(field, entries[field.name], bounds.get(field.name))
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *text, "```"]))


def intro(parts: Parts) -> list[str]:
    """Return the paragraphs of the docstring that are not about single fields."""
    return [*parts.paragraphs, *([parts.raises] if parts.raises else [])]


def describe(field: dataclasses.Field[object], meaning: str, bounds: tuple[float, float] | None) -> list[str]:
    """Return a field as an item of a definition list in reStructuredText."""
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    kind = re.sub(r"\bLiteral\[(.*?)\]", lambda match: match[1].replace(", ", " | "), kind)
    default = default_text(field)
    out = [f"``{field.name}`` : ``{kind}``, " + (f"default ``{default}``" if default else "required")]
    sentences = [meaning[:1].upper() + meaning[1:]] if meaning else []
    if bounds is not None:
        sentences.append(f"From {number(bounds[0])} to {number(bounds[1])}.")
    text = " ".join(sentence if sentence.endswith((".", ")")) else f"{sentence}." for sentence in sentences)
    return [*out, f"    {to_rst(text) or '..'}", ""]


def number(value: float) -> str:
    """Return a bound as text, such as 1,000,000 or 1e9."""
    if value == 2**63 - 1:
        return "2^63 - 1"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e8 else f"{value:g}"


def default_text(field: dataclasses.Field[object]) -> str:
    """Return the default value of a field as Python code; "" if it has none."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is dataclasses.MISSING:
        return ""
    return repr(field.default_factory()) if field.default_factory in (dict, tuple, list) else f"{field.type}()"


def import_name(dotted: str) -> object:
    """Return what a dotted name refers to."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
