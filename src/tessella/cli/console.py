"""What every command shares: standard streams whose failures are coded errors, -q and -v, text, tables, progress.

Results go to standard output, everything else to standard error. A result that cannot be written is an error
(`output_failed`); a message that cannot be written is dropped.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..errors import OutputError, TessellaError, UsageError
from ..extras import check_installed
from ..text import any_of, finite, printable
from . import preflight

if TYPE_CHECKING:
    import rich.table

_WITHOUT_WEIGHTS = ("no_weights", "offline", "hub_unavailable")  # codes of errors whose hint has ALTERNATIVES
_MESSAGES, _VERBOSE = "tessella.messages", "tessella.verbose"  # keys of the click context


# --- standard streams -------------------------------------------------------------------------------------------------


class ReaderGoneError(Exception):
    """The reader of standard output has closed the pipe, as in `tessella ... | head`.

    Not an OSError, because rich and click end the program with status 1 on EPIPE.
    """


class _Results(io.FileIO):
    """Standard output; a write that fails raises OutputError or ReaderGoneError, once."""

    closed_by_caller = dropped = False

    def write(self, data: Any) -> int:
        if self.dropped:  # Python flushes once more when it ends
            return memoryview(data).nbytes
        if self.closed_by_caller:
            self.dropped = True
            raise OutputError(
                "output_failed", "standard output is closed", hint="redirect it to a file, or to /dev/null"
            )
        try:
            return super().write(data)
        except OSError as error:
            self.dropped = True
            if error.errno == errno.EPIPE:
                raise ReaderGoneError from None
            reason = error.strerror or str(error)
            raise OutputError("output_failed", f"standard output could not be written: {reason}") from None


class _Messages(io.FileIO):
    """Standard error; a message that cannot be written is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Put our own standard streams in place of Python's; streams that a caller has replaced are left alone.

    Characters that the encoding lacks are written as \\xNN or \\uNNNN. Descriptors that the caller has closed are
    opened on the null device, so that no file of ours gets their numbers.
    """
    closed = {number for number in range(3) if not _is_open(number)}
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - lives as long as the process
    elif sys.stdin is sys.__stdin__ and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")  # lines are file names
    if sys.stdout is None or _is_ours_to_replace(sys.stdout, sys.__stdout__, 1):
        results = _Results(1, "w", closefd=False)
        results.closed_by_caller = 1 in closed
        sys.stdout = _text_stream(results, sys.stdout)
    if sys.stderr is None or _is_ours_to_replace(sys.stderr, sys.__stderr__, 2):
        sys.stderr = _text_stream(_Messages(2, "w", closefd=False), sys.stderr)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _is_ours_to_replace(stream: TextIO, original: TextIO | None, descriptor: int) -> bool:
    return stream is original and isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor


def _text_stream(raw: io.FileIO, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=True)


class PrintableFormatter(logging.Formatter):
    """For log records, which may name files."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, with control characters escaped."""
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def flush_results(status: int) -> int:
    """Flush standard output; return the exit status, that of `output_failed` if this fails."""
    try:
        sys.stdout.flush()
    except ReaderGoneError:
        return status
    except OutputError as error:
        if not status:
            show_error(error.message, error.hint)
        return status or error.exit_code
    return status


# --- commands ---------------------------------------------------------------------------------------------------------

# headings of the help, in order
GROUPS = (
    "Arguments",
    "Input",
    "Model",
    "Explanation",
    "Network",
    "Distillation",
    "Training",
    "Output",
    "Advanced",
    "Other",
)


class Argument(click.Argument):
    """A positional argument with a help text, shown under the heading `Arguments`."""

    group = "Arguments"

    def __init__(self, *args: Any, help: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help_text = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the name of the argument and its help text."""
        return self.make_metavar(ctx), self.help_text


class Option(click.Option):
    """An option that the help shows under the heading `group`; its value is shown as N if it is a count.

    aliases: former names, which keep working but are not shown. resumes: whether the command resumes if it is run again
    with the same value.
    """

    def __init__(
        self, *args: Any, group: str = "Other", aliases: Sequence[str] = (), resumes: bool = False, **kwargs: Any
    ) -> None:
        assert group in GROUPS
        super().__init__(*args, **kwargs)
        self.group, self.aliases, self.resumes = group, tuple(aliases), resumes
        if isinstance(self.type, click.IntRange):
            self.metavar = self.metavar or "N"
        elif isinstance(self.type, click.FloatRange):
            self.metavar = self.metavar or "NUMBER"

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Show the allowed range of fractions only: the limits of counts are technical, and far from usual values."""
        extra = super().get_help_extra(ctx)
        if getattr(self.type, "max", None) != 1:
            extra.pop("range", None)
        return extra

    def add_to_parser(self, parser: click.parser._OptionParser, ctx: click.Context) -> None:
        """Register the option under its names and its aliases."""
        shown = self.opts
        self.opts = [*shown, *self.aliases]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown


class Command(click.Command):
    """A command with -q and -v, options in groups, and examples at the end of its help.

    With -q, only errors, warnings and bad inputs are shown on standard error. Arguments are checked before the command
    imports anything slow. examples: whole command lines. needs_torch: what the command needs PyTorch for, such as
    "training"; it is then refused if PyTorch is not installed.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), needs_torch: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.needs_torch = needs_torch
        self.params += [
            Option(["-q", "--quiet"], is_flag=True, help="Show results and errors only."),
            Option(["-v", "--verbose"], is_flag=True, help="Also show what was chosen and why."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises click's UsageError, and our UsageError `bad_argument` for an option that does not exist if `instead_of`
        knows what to type.
        """
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            if hint := self.instead_of(name.lstrip("-").replace("-", "_"), ctx):
                raise UsageError("bad_argument", f"`{ctx.command_path}` has no option {name}", hint=hint) from None
            raise click.NoSuchOption(name, possibilities=self.option_names(ctx), ctx=ctx) from None

    def option_names(self, ctx: click.Context) -> list[str]:
        """Return the names of the options, without the former ones."""
        return [name for param in self.get_params(ctx) if isinstance(param, click.Option) for name in param.opts]

    def instead_of(self, word: str, ctx: click.Context) -> str:
        """Return what to type instead of an option that does not exist; "" if only similar options can be suggested.

        word: the name of the option, with underscores.
        """
        resumable = any(isinstance(param, Option) and param.resumes for param in self.params)
        return "run the same command again to resume" if word == "resume" and resumable else ""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the arguments and run the command; advice about missing weights names the options of the command.

        Raises click's UsageError if -q and -v are combined, our UsageError `missing_dependency` without PyTorch.
        """
        try:
            return self._invoke(ctx)
        except TessellaError as error:
            if error.code in _WITHOUT_WEIGHTS:
                from ..weights.catalogue import ALTERNATIVES

                error.hint = error.hint.replace(ALTERNATIVES, self._alternatives_to_missing_weights(ctx))
            raise

    def _alternatives_to_missing_weights(self, ctx: click.Context) -> str:
        options = self.option_names(ctx)
        ways = ["give --checkpoint FILE for your own weights"] if "--checkpoint" in options else []
        ways.append(f"{'' if ways else 'give '}local-dir:FOLDER as the name of a saved model")
        ways += [f"{name} for random weights" for name in ("--scratch", "--random-weights") if name in options]
        return any_of(ways)

    def _invoke(self, ctx: click.Context) -> Any:
        preflight.check(ctx.params)
        if self.needs_torch:
            check_installed("torch", self.needs_torch)
        quiet, verbose = ctx.params.pop("quiet"), ctx.params.pop("verbose")
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose cannot be combined", ctx)
        ctx.meta[_VERBOSE] = verbose
        logging.getLogger("tessella").setLevel(logging.INFO if verbose else logging.WARNING)
        logging.getLogger("tessella.engine").setLevel(logging.WARNING if quiet else logging.INFO)  # what takes long
        if not quiet:
            return super().invoke(ctx)
        ctx.meta[_MESSAGES] = sys.stderr
        with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stderr(nothing):  # noqa: PTH123
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments and options under the headings of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and record[1]:
                groups[getattr(parameter, "group", "Other")].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def is_verbose() -> bool:
    """Return whether the current command was called with --verbose."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_VERBOSE))


# --- text -------------------------------------------------------------------------------------------------------------


def echo(text: str = "") -> None:
    """Print a line of the result."""
    print(text, file=sys.stdout)


def notice(text: str) -> None:
    """Print a message on standard error; not shown with --quiet."""
    print(text, file=sys.stderr)


def complain(text: str) -> None:
    """Print a warning or error on standard error; shown with --quiet, too."""
    context = click.get_current_context(silent=True)
    stream = context.meta.get(_MESSAGES) if context is not None else None
    print(text, file=stream or sys.stderr)


def show_error(message: str, hint: str = "") -> None:
    """The error that ends a command. Names in it may come from outside; its own line breaks are kept."""
    for prefix, text in (("error: ", message), ("       ", hint)):
        if text:
            complain(prefix + "\n       ".join(printable(line) for line in text.split("\n")))


def echo_json(value: Any) -> None:
    """One line of JSON, in ASCII; NaN and infinity, which JSON does not have, become null."""
    echo(json.dumps(finite(value), allow_nan=False))


# --- tables and progress ----------------------------------------------------------------------------------------------


_NAMES = {"name", "key", "file", "model"}  # headers of columns whose cells are never broken
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( [%sMG]B?)?|")


@dataclass
class Table:
    """Rows of text under headers; without headers if all of them are empty."""

    headers: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row; control characters in its cells are shown escaped."""
        self.rows.append([printable(cell) for cell in cells])


def new_table(*headers: str, header: bool = True) -> Table:
    """Return an empty table. header: False for a table without headers."""
    return Table(headers if header else [""] * len(headers))


def table_of(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of `rows`, without the columns that are empty in all of them."""
    used = [index for index in range(len(headers)) if any(row[index] for row in rows)]
    table = new_table(*(headers[index] for index in used))
    for row in rows:
        table.add_row(*(row[index] for index in used))
    return table


def print_table(table: Table) -> None:
    """Print the table, unless it has no rows; columns of numbers are aligned to the right.

    On a terminal that is too narrow for the longest names, the cells of a row are printed below each other.
    """
    if not table.rows:
        return
    from rich.console import Console
    from rich.measure import Measurement

    shown = _rich_table(table)
    console = Console(highlight=False, markup=False, emoji=False)
    wide = Console(highlight=False, markup=False, emoji=False, width=100_000)
    needed = Measurement.get(wide, wide.options, shown)
    if not console.is_terminal:  # pipes and files have no width: lines are not broken
        Console(highlight=False, markup=False, emoji=False, width=needed.maximum).print(shown)
        return
    if needed.minimum <= console.width:
        console.print(shown)
        return
    for first, *rest in table.rows:
        echo(first)
        for header, text in zip(table.headers[1:], rest, strict=False):
            if text:
                echo(f"  {header}: {text}" if header else f"  {text}")


def _rich_table(table: Table) -> rich.table.Table:
    """Convert to a table of rich in which names and single words are never broken."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as RichTable

    has_header = any(table.headers)
    shown = RichTable(
        box=box.SIMPLE_HEAD if has_header else None, show_header=has_header, show_edge=False, pad_edge=False
    )
    for header, cells in zip(table.headers, zip(*table.rows, strict=True), strict=True):
        words = [cell if header in _NAMES else word for cell in cells for word in cell.split() or [""]]
        shown.add_column(
            header,
            overflow="fold",
            no_wrap=header in _NAMES or all(" " not in cell for cell in cells),
            min_width=max(map(cell_len, words)),
            justify="right" if all(map(_NUMBER.fullmatch, cells)) else "left",
        )
    for row in table.rows:
        shown.add_row(*row)
    return shown


def show_progress(items: Iterable[Any], total: int | None, unit: str) -> Iterator[Any]:
    """Pass items through, with a bar on standard error once a second has passed; only on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    start = time.perf_counter()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    console = Console(stderr=True)
    # rich would send what is printed meanwhile to standard error, too
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("", total=total, rate="", visible=False)
        for done, item in enumerate(items, 1):
            passed = time.perf_counter() - start
            progress.update(task, completed=done, visible=passed > 1, rate=f"{done / max(passed, 1e-9):.0f} {unit}/s")
            yield item
