"""Conditions in SQL that a user gives to filter rows."""

from __future__ import annotations

import re

from ..errors import UsageError
from .index import ASSESSED, COLUMNS, lance_errors
from .nearest import LanceTable

MAX_SQL = 100_000  # characters of a condition
MAX_OPERATORS = 500  # per condition; thousands would overflow the stack of the engine that evaluates it

_TOKENS = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/|(?<!:):[a-zA-Z_]|[][()+*/%|&^<>=!~:?$-]""", re.DOTALL
)


def check_condition(table: LanceTable, where: str | None) -> str:
    """Return the user's SQL in parentheses, so that all of it counts: LanceDB ignores what follows a complete
    expression.

    Returns "" for None. Raises UsageError `bad_argument` if the condition is not one boolean expression on the columns
    of `table`.
    """
    if where is None:
        return ""
    message = f"the condition {where[:200]!r} cannot be used"
    present = set(table.schema.names)
    names = [name for name in (*COLUMNS, *ASSESSED) if name in present]
    hint = f"""columns are {", ".join(names)}; for example "label = 'cat' AND width >= 640\""""
    condition = f"({where}\n)"  # a comment in it ends with its line
    if len(where) > MAX_SQL or not _is_closed(where):
        raise UsageError("bad_argument", message, hint=hint)
    with lance_errors("bad_argument", message, hint, "it does not give true or false"):
        try:
            table.count_rows(condition)
        except ValueError as error:
            unknown = re.search(r"No field named (\S+?)\.(?:\s|$)", str(error))
            if not unknown:
                raise
            if unknown[1] in ASSESSED:
                hint = "the index has it if the run was made with a calibrated model, see `tessella calibrate`"
            raise UsageError("bad_argument", f"{message}: there is no column {unknown[1]!r}", hint=hint) from error
    return condition


def _is_closed(sql: str) -> bool:
    """Return whether the parentheses outside of strings and comments are balanced.

    Returns False also if there are placeholders (?, $1, :name), at which LanceDB panics, or too many operators.
    """
    tokens = _TOKENS.findall(sql)
    if any(token in ("?", "$") or (token[0] == ":" and len(token) == 2) for token in tokens):
        return False
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if depth < 0:
            return False
    return depth == 0 and sum(len(token) == 1 for token in tokens) <= MAX_OPERATORS


def quoted(text: str) -> str:
    """Return the text as a string literal in SQL."""
    return "'" + text.replace("'", "''") + "'"
