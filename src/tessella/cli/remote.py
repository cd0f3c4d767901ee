"""A model of `tessella serve`, with those parts of a Predictor that `classify` and `embed` use."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from click.core import ParameterSource

from ..client import Client, ServedCalibration, ServerModel
from ..errors import UsageError
from ..text import printable
from .console import is_verbose, notice
from .options import read_token

if TYPE_CHECKING:
    from ..data.source import Source
    from ..results import Record
    from ..weights.catalogue import Task

# Parameters that say how a model is loaded and run, which the server has decided
_LOCAL = ("head", "checkpoint", "device", "precision", "engine", "mode", "batch_size", "images", "transform", "policy")
_LOCAL_CALIBRATION = ("calibration", "no_calibration")
FIRST_RETRIES = 2  # of the first request


def open_remote(arguments: dict[str, Any], task: Task) -> RemoteModel:
    """Return the model of the server that the options name.

    task: what the server's default model is used for. Raises UsageError `bad_argument` for options that the server has
    decided, and UsageError, ServeError as `Client.models`; a wrong address is reported at once, while a server that
    fails later gets the time that `Client` gives it.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name, option = parameter.name or "", parameter.opts[-1]
        if context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        if name in _LOCAL:
            hint = f"remove {option}"
        elif name in _LOCAL_CALIBRATION:
            hint = f"remove {option}: the server decides, and gives plain softmax if it runs with --no-calibration"
        else:
            continue
        raise UsageError("bad_argument", f"{option} cannot be combined with --server", hint=hint)
    url, token, name = arguments["server"], read_token(arguments["token_file"]), arguments["model"]
    with Client(url, token=token, retries=FIRST_RETRIES) as client:
        models = client.models()
    facts = next((model for model in models if (model.name == name if name else task in model.default_for)), None)
    if is_verbose():
        notice(printable(f"server: {client.url}, model: {facts.name if facts else name}"))
    return RemoteModel(Client(url, token=token, model=name), facts)


class RemoteModel:
    """A model of a server. client: asks for it. facts: what the server says about it, None if it does not list it."""

    def __init__(self, client: Client, facts: ServerModel | None):
        """Describe a model; nothing is sent yet."""
        self._client, self._facts = client, facts

    @functools.cached_property
    def num_classes(self) -> int:
        """The number of classes. Raises ServeError, UsageError."""
        if self._facts is not None and self._facts.num_classes is not None:
            return self._facts.num_classes
        return len(self._client.classify(_GRAY, top=1_000_000_000))  # the server loads the model and so learns it

    @functools.cached_property
    def width(self) -> int:
        """The width of the embeddings. Raises ServeError, UsageError."""
        if self._facts is not None and self._facts.width is not None:
            return self._facts.width
        return len(self._client.embed(_GRAY))

    @property
    def name(self) -> str:
        """The name of the model that gave the results; before the first ones that of the server's list."""
        return self._client.served_model or (self._facts.name if self._facts else self._client.model or "")

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that gave the results; "" before the first ones."""
        return self._client.fingerprint

    @functools.cached_property
    def calibration(self) -> ServedCalibration | None:
        """What probabilities and prediction sets mean; None for plain softmax. Raises ServeError, UsageError."""
        if self._facts is not None and self._facts.fingerprint is not None:
            return self._facts.calibration
        self._client.classify(_GRAY, top=1)  # the server loads the model
        return self._client.calibration

    def records(self, sources: Iterable[Source], *, top: int, embed: bool) -> Iterator[Record]:
        """Yield one Record per source, in order, as `Client.records`. Raises ServeError, UsageError."""
        with self._client:
            yield from self._client.records(sources, top=top, embed=embed)


_GRAY = np.full((8, 8, 3), 128, np.uint8)
