"""tessella verify, replay: proof that a copy is right."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..errors import CODES
from ..text import count_of, printable
from .console import Command, complain, echo_json, new_table, notice, print_table
from .options import argument, json_option, option

if TYPE_CHECKING:
    from ..verification import Verification

_weights_option = option(
    "-m",
    "--model",
    "weights_model",
    group="Model",
    metavar="NAME",
    help="Model that a weight file belongs to, if neither its name nor its folder says so.",
)


@click.command(
    cls=Command,
    examples=[
        "tessella verify convmixer_768_32.in1k",
        "tessella verify runs/photos",
        "tessella verify exported --receipt exported.json",
    ],
)
@argument(
    "target",
    metavar="TARGET",
    help="Name of a model, a weight file, or the folder of a saved model, export, run, index or training run.",
)
@_weights_option
@option(
    "--receipt",
    group="Output",
    metavar="FILE.json",
    help="If all checks pass, write a receipt that `tessella replay` checks on another machine.",
)
@json_option
def verify(target: str, weights_model: str | None, receipt: str | None, as_json: bool) -> None:
    """Check that a model, an export, a run or an index is what it should be: files, hashes, and answers to photographs.

    Nothing but the receipt is written. The exit status is 4 or 6 if a check failed.
    """
    from ..verification import check_receipt_path, write_receipt
    from ..verification import verify as verify_target

    if receipt is not None:
        check_receipt_path(receipt, target)
    found = verify_target(target, model=weights_model)
    _show(found, as_json)
    if receipt is not None and not found.failed:
        digest = write_receipt(found, receipt)
        notice(printable(f"wrote {receipt}; its hash: {digest}"))
    _finish(found)


@click.command(
    cls=Command,
    examples=["tessella replay exported.json", "tessella replay exported.json /media/copy/exported"],
)
@argument("receipt", metavar="RECEIPT", help="Receipt of `tessella verify --receipt`.")
@argument("target", metavar="[TARGET]", required=False, help="The copy.  [default: the name or path in the receipt]")
@_weights_option
@json_option
def replay(receipt: str, target: str | None, weights_model: str | None, as_json: bool) -> None:
    """Compare a copy with a receipt: files exactly, answers within the tolerance. Nothing is written.

    The exit status is 6 if anything differs from the receipt. Other versions and another machine are shown, too.
    """
    from ..verification import read_receipt
    from ..verification import replay as replay_receipt

    digest = read_receipt(receipt).sha256
    found = replay_receipt(receipt, target, model=weights_model)
    _show(found, as_json)
    notice(f"hash of the receipt: {digest}")
    _finish(found)


def _show(found: Verification, as_json: bool) -> None:
    if as_json:
        rows = [finding._asdict() for finding in found.findings]
        echo_json(asdict(found) | dict(findings=rows, passed=not found.failed))
        return
    table = new_table("check", "expected", "found", "verdict")
    for finding in found.findings:
        table.add_row(*finding[:4])
    print_table(table)


def _finish(found: Verification) -> None:
    """Print the verdict; exit with the status of the first check that failed."""
    what = printable(f"{found.target} ({found.kind})")
    passed = sum(finding.verdict == "passed" for finding in found.findings)
    if not found.failed:
        notice(f"{what}: {count_of(passed, 'check')} passed, none failed")
        return
    complain(f"{what}: {len(found.failed)} of {count_of(passed + len(found.failed), 'check')} failed")
    if found.kind in ("run", "index") and found.code == "damaged_run":
        notice("`tessella verify-run RUN --repair` repairs a run, and `tessella index RUN` makes its index again")
    raise click.exceptions.Exit(CODES[found.code].exit_code)
