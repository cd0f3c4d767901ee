"""The cases: a command line or a Python call, most of its arguments good, one or two of them wrong, drawn from a seed.

Commands and their options are read from the command line itself, functions from what the package exports, so that new
ones are covered without a line here; `GOOD` only says which values work.
"""

from __future__ import annotations

import functools
import inspect
import random
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from .values import (
    CALLS,
    ENVIRONMENT,
    GOOD,
    NUMBERS,
    PREAMBLE,
    RECORDS,
    STDIN,
    STDOUT,
    TEXTS,
    VALUES,
    WHERE,
    Kind,
    kind_of,
    namespace,
)


@dataclass(frozen=True)
class Surroundings:
    """What a process finds: variables (None: not set), standard streams by name, a deleted folder, few file handles."""

    variables: Mapping[str, str | None] = field(default_factory=dict)
    stdin: str = "nothing"
    stdout: str = "file"
    stderr: str = "file"
    deleted: bool = False
    handles: int = 0  # `ulimit -n`; 0: as it is


@dataclass(frozen=True)
class Case:
    """arguments: of `tessella`; or code: a Python expression after `PREAMBLE`. fresh: in a new interpreter."""

    seed: int
    number: int
    arguments: tuple[str, ...] = ()
    code: str = ""
    fresh: bool = False
    around: Surroundings = Surroundings()
    limit: float = 20.0  # seconds; more where the machine is shared, see `server.allowance`

    @property
    def target(self) -> str:
        return self.arguments[0] if self.arguments else self.code.partition("(")[0]

    def shell(self, here: str, python: str = "python") -> str:
        """The same by hand, in the folder `here`."""
        around = self.around
        variables = "".join(
            f" -u {name}" if value is None else f" {shlex.quote(f'{name}={value.format(here=here)}')}"
            for name, value in sorted(around.variables.items(), key=lambda item: item[1] is not None)
        )
        lines = [f"cd {shlex.quote(here)}"]
        if around.deleted:
            lines.append("mkdir gone && cd gone && rmdir ../gone")
        if around.handles:
            lines.append(f"ulimit -n {around.handles}")
        program = ["-c", f"{PREAMBLE}\nlook({self.code})"] if self.code else ["-m", "tessella", *self.arguments]
        streams = f"{STDIN[around.stdin]} {STDOUT[around.stdout]}".format(here=here)
        errors = "2>&-" if around.stderr == "closed" else ""
        lines.append(f"env{variables} {python} {shlex.join(program)} {streams} {errors}".rstrip())
        return "; ".join(lines)


def make_case(seed: int, number: int) -> Case:
    """Case `number` of `seed`: commands and functions take turns."""
    rng = random.Random(f"{seed}-{number}")
    if number % 2 == 0:
        names = sorted(commands())
        arguments = command_line(rng, names[number // 2 % len(names)])
        around = surroundings(rng) if rng.random() < 0.4 else Surroundings()
        return Case(seed, number, arguments=arguments, fresh=rng.random() < 0.12, around=around)
    names = sorted(functions())
    around = surroundings(rng, streams=False) if rng.random() < 0.1 else Surroundings()
    return Case(seed, number, code=call(rng, names[number // 2 % len(names)]), around=around)


def commands() -> dict[str, click.Command]:
    from tessella.cli.program import cli

    return {name: command for name, command in cli.commands.items() if name != "serve"}  # it runs until a signal


@functools.cache
def functions() -> dict[str, dict[str, tuple[str, ...]]]:
    """What can be called, by expression, with good values: `CALLS`, and all else that the package exports."""
    names = namespace()
    targets = dict(CALLS)
    for module in ("tessella", "data"):
        for name in names[module].__all__:
            value = getattr(names[module], name)
            if callable(value) and not (isinstance(value, type) and issubclass(value, Exception)):
                targets.setdefault(f"{module}.{name}", {})
    return {name: targets[name] for name in targets if name not in RECORDS}


# --- a command line ---------------------------------------------------------------------------------------------------


def command_line(rng: random.Random, name: str) -> tuple[str, ...]:
    """A command with good values, of which one or two (rarely all) are replaced, and some further options."""
    command = commands()[name]
    good = GOOD.get(name, {})
    params = [param for param in command.params if param.name != "help"]
    keyed = {param.name or "": param for param in params}
    chosen: dict[str, list[str]] = {}
    for key, param in keyed.items():
        if key in good and (param.required or isinstance(param, click.Argument) or rng.random() < 0.9):
            chosen[key] = list(rng.choice(good[key]))
        elif param.required:
            chosen[key] = [value_of(rng, param)]
    further = [key for key in keyed if key not in chosen]
    for key in rng.sample(further, k=min(len(further), rng.choice((0, 0, 1, 2, 4)))):
        chosen[key] = [value_of(rng, keyed[key])]
    wrong = len(keyed) if rng.random() < 0.05 else rng.choice((1, 1, 1, 2))
    for key in rng.sample(list(keyed), k=min(len(keyed), wrong)):
        chosen[key] = [value_of(rng, keyed[key]) for _ in range(rng.choice((1, 1, 1, 3)) if _many(keyed[key]) else 1)]
    return (name, *_words(rng, keyed, chosen))


def _many(param: click.Parameter) -> bool:
    return param.nargs == -1 or param.multiple


def _words(rng: random.Random, keyed: Mapping[str, click.Parameter], chosen: Mapping[str, list[str]]) -> list[str]:
    options: list[str] = []
    arguments: list[str] = []
    for key, values in chosen.items():
        param = keyed[key]
        if isinstance(param, click.Argument):
            arguments += values
        elif isinstance(param, click.Option) and (param.is_flag or param.count):
            options.append(rng.choice([*param.opts, *param.secondary_opts]))
        else:
            for value in values:
                options += [param.opts[-1], value]
    dashed = any(value.startswith("-") and value != "-" for value in arguments)
    separator = ["--"] if dashed and rng.random() < 0.8 else []
    return [*options, *separator, *arguments]


def value_of(rng: random.Random, param: click.Parameter) -> str:
    """Mostly of the sort that the option takes, good or bad; sometimes anything."""
    if rng.random() < 0.15:
        return rng.choice(TEXTS[rng.choice(list(TEXTS))])
    if isinstance(param.type, click.Choice):
        return rng.choice([*map(str, param.type.choices), *TEXTS[Kind.WORD]])
    if isinstance(param.type, click.types.IntParamType | click.types.FloatParamType):
        return rng.choice(NUMBERS)
    return rng.choice(TEXTS[kind_of(param.name or "")])


def surroundings(rng: random.Random, streams: bool = True) -> Surroundings:
    """One or two things that are unusual."""
    fields: dict[str, Any] = dict(variables={})
    for _ in range(rng.choice((1, 1, 2))):
        what = rng.choice(("variables", "variables", "variables", "stdin", "stdout", "stdout", "stderr", "other"))
        if what == "variables":
            name = rng.choice(list(ENVIRONMENT))
            fields["variables"][name] = rng.choice(ENVIRONMENT[name])
        elif what == "other":
            fields |= rng.choice((dict(deleted=True), dict(handles=rng.choice((12, 24, 64)))))
        elif streams:
            pools: dict[str, Sequence[str]] = dict(stdin=list(STDIN), stdout=list(STDOUT), stderr=["closed"])
            fields[what] = rng.choice(pools[what])
    return Surroundings(**fields)


# --- a call -----------------------------------------------------------------------------------------------------------


def call(rng: random.Random, target: str) -> str:
    """An expression that calls `target` with good values, of which one or two are replaced."""
    good = functions()[target]
    names = [name for name in parameters(target) if name not in WHERE]
    values = {name: rng.choice(value) for name, value in good.items() if value}
    optional = [name for name in names if name not in values]
    for name in rng.sample(optional, k=min(len(optional), rng.choice((0, 0, 1, 2)))):
        values[name] = rng.choice(VALUES)
    changed = rng.choice((1, 1, 1, 2)) if names else 0
    for name in rng.sample(names, k=min(len(names), changed)):
        values[name] = rng.choice(VALUES)
    if rng.random() < 0.05:
        values[rng.choice(("devic", "nonsense", "self"))] = rng.choice(VALUES)
    return f"{target}({', '.join(f'{name}={value}' for name, value in values.items())})"


def parameters(target: str) -> list[str]:
    """Names of what a function can be called with by name; **kwargs are left to `GOOD`."""
    try:
        signature = inspect.signature(function(target))
    except ValueError:  # written in C
        return list(functions()[target])
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [
        name for name, param in signature.parameters.items() if param.kind in kinds and name not in ("self", "cls")
    ]
    return [*names, *(name for name in functions()[target] if name not in names)]


def function(target: str) -> Callable[..., Any]:
    """What an expression such as `predictor().classify` calls, without making a predictor."""
    names = namespace()
    owner, dot, method = target.rpartition("().")
    callee = eval(f"{owner}.of.{method}" if dot else target, names)
    assert callable(callee), target
    return callee
