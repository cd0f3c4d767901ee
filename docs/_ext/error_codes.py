"""The directive `error-codes`: every code with its exit status, its HTTP status and its meaning."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tessella import errors


class ErrorCodes(SphinxDirective):
    """One table for each group of codes; the groups are the comments in `errors.CODES`."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(errors.__file__)
        found: list[nodes.Node] = []
        for title, codes in groups():
            found.append(nodes.rubric("", title[:1].upper() + title[1:]))
            rows = [[nodes.literal("", code, ids=[self.note_label(code)]), *texts_of(code)] for code in codes]
            found.append(table(["code", "exit status", "HTTP status", "meaning"], rows))
        return found

    def note_label(self, code: str) -> str:
        """Make the code the target of :ref:`error-CODE`, and return its anchor."""
        anchor = nodes.make_id(f"error-{code}")
        domain = self.env.domains.standard_domain
        domain.anonlabels[f"error-{code}"] = self.env.docname, anchor
        domain.labels[f"error-{code}"] = self.env.docname, anchor, code
        return anchor


def texts_of(code: str) -> list[nodes.Node]:
    """Return what the table says about a code."""
    kind = errors.CODES[code]
    return [nodes.Text(text) for text in (str(kind.exit_code), str(kind.http_status), kind.text)]


def table(header: list[str], rows: list[list[nodes.Node]]) -> nodes.table:
    """Return a table with a heading for each column."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in header), cols=len(header))
    group += nodes.thead("", row([nodes.Text(title) for title in header]))
    group += nodes.tbody("", *map(row, rows))
    return nodes.table("", group)


def row(cells: list[nodes.Node]) -> nodes.row:
    """Return a row of a table."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def groups() -> Iterator[tuple[str, list[str]]]:
    """Yield the title and the codes of each group, in the order of the source."""
    source = inspect.getsource(errors)
    (table,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "CODES"
    )
    assert isinstance(table, ast.Dict)
    title, codes = "", []
    places = {key.lineno: str(key.value) for key in table.keys if isinstance(key, ast.Constant)}
    for number in range(table.lineno, (table.end_lineno or table.lineno) + 1):
        line = source.splitlines()[number - 1].strip()
        if line.startswith("# "):
            if codes:
                yield title, codes
            title, codes = line[2:], []
        elif number in places:
            codes.append(places[number])
    yield title, codes


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("error-codes", ErrorCodes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
