"""What the scripts in this folder share. They run in an environment of their own and import nothing of the package.

A script reads {"url", "token", "model", "files"} as JSON from its standard input, calls the server as a user of the
client would, and writes what it got as JSON to its standard output. `files` are image files in base64.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from typing import NamedTuple


class Job(NamedTuple):
    """What a script does: the server, a model, and image files."""

    url: str
    token: str
    model: str
    files: list[bytes]

    @property
    def uris(self) -> list[str]:
        return [data_uri(data) for data in self.files]


def data_uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def read_job() -> Job:
    fields = json.load(sys.stdin)
    return Job(fields["url"], fields["token"], fields["model"], [base64.b64decode(text) for text in fields["files"]])


def write(results: dict[str, object]) -> None:
    json.dump(results, sys.stdout)


def failure(call: Callable[[], object], errors: type[Exception] | tuple[type[Exception], ...]) -> list[str]:
    """Return the name and the text of the error that a call must end with."""
    try:
        call()
    except errors as error:
        return [type(error).__name__, str(error)]
    return ["", "no error"]
