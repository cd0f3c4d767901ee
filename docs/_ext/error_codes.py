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
        lines: list[str] = []
        for title, codes in groups():
            lines += [f".. rubric:: {title[:1].upper() + title[1:]}", ""]
            lines += [".. list-table::", "   :header-rows: 1", "   :widths: 25 10 10 55", ""]
            lines += ["   * - code", *cells("exit status", "HTTP status", "meaning")]
            for code in codes:
                kind = errors.CODES[code]
                lines += [f"   * - .. _error-{code}:", ""]
                lines += [f"       ``{code}``", *cells(str(kind.exit_code), str(kind.http_status), kind.text)]
            lines.append("")
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def cells(*texts: str) -> list[str]:
    """Return the cells of a row of a list-table after the first one."""
    return [f"     - {text}" for text in texts]


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
