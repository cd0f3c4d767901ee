"""The directive `model-comparison`: the table of all checkpoints, to filter and sort, as a page inside the page."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

from tessella.cards import compare_models, comparison_page
from tessella.cards.comparison import benchmark_speeds

ROOT = Path(__file__).resolve().parents[2]
PAGE = "comparison-table.html"


def measured_file() -> Path:
    """Return the benchmark whose figures the README quotes."""
    quoted = re.search(r"<!-- speed: begin, from (\S+\.csv)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert quoted is not None, "README.md does not name the file of its section on speed"
    return ROOT / "benchmarks" / "results" / quoted[1]


class ModelComparison(SphinxDirective):
    """A frame with the comparison, and a link that opens it in a window of its own."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(measured_file()))
        address = relative_uri(f"{self.env.docname}.html", PAGE)
        return [
            nodes.raw(
                "",
                f'<p><a href="{address}">Open the table in a window of its own</a></p>\n'
                f'<iframe class="comparison" src="{address}" title="Comparison of all checkpoints"></iframe>',
                format="html",
            )
        ]


def write_page(app: Sphinx, error: Exception | None) -> None:
    """Write the comparison beside the pages."""
    if error is None and app.builder.format == "html":
        rows = compare_models(measured=benchmark_speeds(measured_file()))
        page = comparison_page(rows, here="2 cores of an AMD EPYC")
        (Path(app.outdir) / PAGE).write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("model-comparison", ModelComparison)
    app.connect("build-finished", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
