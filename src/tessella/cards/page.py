"""The comparison as one HTML page: a table that readers sort and filter, without a server and without third-party code.

The table is plain HTML, so it can be read without JavaScript. The Content Security Policy allows exactly the script and
the style sheet of the page, by their hashes, and no connection to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from ..text import html_text
from ..weights.costs import in_units
from .comparison import MACHINES, SETS, Machine, ModelRow, pareto_front

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1b1b1b, #ececec); --soft: light-dark(#5a5a5a, #b0b0b0);
  --line: light-dark(#d3d3d3, #444); --paper: light-dark(#fff, #1c1c1e); --mark: light-dark(#fff3d6, #3a3220);
  --link: light-dark(#00558c, #7cc4f5) }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1rem auto;
  padding: 0 1rem; max-width: 110rem }
h1 { font-size: 1.4rem }
a { color: var(--link) }
form { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: end; margin: 1rem 0 }
label { display: grid; gap: .2rem; color: var(--soft) }
label.check { display: flex; align-items: center; gap: .4rem; min-height: 2rem }
input, select { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 4px; padding: .3rem .4rem }
input[type=number] { width: 6rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  background: var(--paper) }
th[scope=row], th[data-kind=text], td.text { text-align: left }
th[scope=row], th:first-child { position: sticky; left: 0; z-index: 1 }
th button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0; cursor: pointer }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
tr.front th[scope=row] { background: var(--mark) }
td.note { white-space: normal; min-width: 40rem }
:focus-visible { outline: 2px solid var(--link); outline-offset: 1px }
.soft { color: var(--soft) }
@media (max-width: 40rem) { th[scope=row], th:first-child { min-width: 9rem; max-width: 9rem;
  overflow-wrap: anywhere; white-space: normal } }
"""
SCRIPT = """
"use strict";
const table = document.querySelector("table");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const form = document.querySelector("form");
const count = document.querySelector("#count");

function filter() {
  const wanted = new FormData(form);
  const words = wanted.get("text").toLowerCase().split(/\\s+/);
  const atLeast = (row, name) => wanted.get(name) === "" || Number(row.dataset.top1) >= Number(wanted.get(name));
  const atMost = (row, name) => wanted.get(name) === "" || Number(row.dataset.params) <= Number(wanted.get(name)) * 1e6;
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(words.every((word) => text.includes(word))
      && ["", row.dataset.family].includes(wanted.get("family"))
      && ["", row.dataset.license].includes(wanted.get("license"))
      && atLeast(row, "accuracy") && atMost(row, "params")
      && (!wanted.has("front") || row.classList.contains("front")));
    shown += row.hidden ? 0 : 1;
  }
  count.textContent = `${shown} of ${rows.length} models`;
}

function sortBy(header) {
  const column = header.cellIndex;
  const next = header.getAttribute("aria-sort") === header.dataset.first
    ? { ascending: "descending", descending: "ascending" }[header.dataset.first] : header.dataset.first;
  const sign = next === "ascending" ? 1 : -1;
  const numeric = header.dataset.kind === "number";
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === "" || b === "") return (a === "") - (b === "");  // unknown values stay at the end
    return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", next);
  body.append(...rows);
}

for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{script_hash}'; \
style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'">
<title>{title}</title>
<style>{style}</style></head>
<body><main><h1>{title}</h1>
<p>{intro}</p>
<form hidden>
<label>Text <input type="search" name="text"></label>
<label>Family <select name="family">{families}</select></label>
<label>License <select name="license">{licenses}</select></label>
<label>Accuracy from (%) <input type="number" name="accuracy" min="0" max="100" step="any"></label>
<label>Parameters up to (M) <input type="number" name="params" min="0" step="any"></label>
<label class="check"><input type="checkbox" name="front"> Pareto front only</label>
<span id="count" role="status"></span>
</form>
<div class="scroll" role="region" aria-label="Comparison of models" tabindex="0"><table>
<thead><tr>{header}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
<p class="soft">{notes}</p>
</main>
<script>{script}</script>
</body></html>
"""


class _Column(NamedTuple):
    """A column of the table. first: the order of the first click on its header."""

    title: str
    is_number: bool = True
    first: str = "descending"


def comparison_page(
    rows: Sequence[ModelRow],
    machine: Machine = "rtx-4090",
    *,
    title: str = "Comparison of all checkpoints",
    here: str = MACHINES["here"][0],
) -> str:
    """Return the comparison as an HTML page.

    machine: whose speed decides which models are on the Pareto front. here: what the machine "here" is called, for a
    page that is read elsewhere.
    """
    names = {key: here if key == "here" else name for key, (name, _) in MACHINES.items()}
    machines: list[Machine] = [name for name in MACHINES if any(row.speed(name) for row in rows)]
    front = {row.name for row in pareto_front(rows, machine)}
    return _PAGE.format(
        title=html_text(title),
        script=SCRIPT,
        style=STYLE,
        script_hash=_hash(SCRIPT),
        style_hash=_hash(STYLE),
        intro=(
            "Top-1 accuracy (%) is published by timm; that of the models for CIFAR-10 was measured by this project. "
            "Choose a column header to sort. Marked names are on the Pareto front: no other model is at least as "
            f"accurate on ImageNet-1k and as fast on {html_text(names[machine])}."
        ),
        families=_choices([row.family for row in rows]),
        licenses=_choices([row.licence for row in rows]),
        header="".join(map(_header_cell, _columns([names[key] for key in machines]))),
        rows="\n".join(_row(row, machines, row.name in front) for row in rows),
        notes=" ".join(
            f"{html_text(names[key])}: {html_text(_conditions(rows, key, MACHINES[key][1]))}." for key in machines
        ),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _choices(values: Sequence[str]) -> str:
    names = sorted(set(values), key=str.lower)
    return '<option value="">all</option>' + "".join(f"<option>{html_text(name)}</option>" for name in names)


def _conditions(rows: Sequence[ModelRow], machine: Machine, known: str) -> str:
    """Return how the speeds of a column were measured; those of "here" say it themselves if all agree."""
    found = {row.speeds[machine].conditions for row in rows if machine in row.speeds}
    return found.pop() if len(found) == 1 else known.replace("`", "")


def _columns(machines: Sequence[str]) -> list[_Column]:
    return [
        _Column("model", False, "ascending"),
        _Column("family", False, "ascending"),
        _Column("params (M)", first="ascending"),
        _Column("GMACs", first="ascending"),
        _Column("activations (M)", first="ascending"),
        _Column("px", first="ascending"),
        *map(_Column, SETS.values()),
        _Column("CIFAR-10"),
        *(_Column(f"images/s, {machine}") for machine in machines),
        _Column("license", False, "ascending"),
        _Column("note", False, "ascending"),
    ]


def _header_cell(column: _Column) -> str:
    kind = "number" if column.is_number else "text"
    title = html_text(column.title)
    return f'<th scope="col" data-kind="{kind}" data-first="{column.first}"><button type="button">{title}</button></th>'


def _row(row: ModelRow, machines: Sequence[Machine], on_front: bool) -> str:
    cifar = row.top1 if row.dataset == "CIFAR-10" else None
    name = html_text(row.name)
    link = f'<a href="https://huggingface.co/{html_text(row.weights)}">{name}</a>' if "/" in row.weights else name
    cells = [
        f'<th scope="row" data-value="{name}">{link}</th>',
        _text_cell(row.family),
        *(f'<td data-value="{value}">{in_units(value, unit)}</td>' for value, unit in _costs(row)),
        _number_cell(row.size, "d"),
        *(_number_cell(value, ".2f") for value in (*(row.accuracy.get(key) for key in SETS), cifar)),
        *(_number_cell(row.speed(machine), ",.1f") for machine in machines),
        _text_cell(row.licence),
        f'<td class="text note">{html_text(row.note)}</td>',
    ]
    data = f'data-family="{html_text(row.family)}" data-license="{html_text(row.licence)}" data-params="{row.params}"'
    top1 = row.imagenet if row.imagenet is not None else -1
    return f'<tr{" class=front" if on_front else ""} {data} data-top1="{top1}">{"".join(cells)}</tr>'


def _costs(row: ModelRow) -> tuple[tuple[int, float], ...]:
    return (row.params, 1e6), (row.macs, 1e9), (row.activations, 1e6)


def _text_cell(text: str) -> str:
    return f'<td class="text">{html_text(text)}</td>'


def _number_cell(value: float | None, form: str) -> str:
    return '<td data-value=""></td>' if value is None else f'<td data-value="{value}">{value:{form}}</td>'
