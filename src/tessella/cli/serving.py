"""tessella serve: the HTTP server."""

from __future__ import annotations

import logging
import sys
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ServeError, UsageError
from ..extras import install_command
from ..text import any_of, printable
from .console import Command, PrintableFormatter, echo, notice
from .options import (
    MAX_PROCESSES,
    batch_size_option,
    device_option,
    engine_option,
    option,
    options,
    policy_option,
    precision_option,
    read_token,
    transform_option,
)
from .preflight import count_type

if TYPE_CHECKING:
    from ..serve import ServeSettings
    from ..serve.prove import Promise
    from ..serve.runner import Started

_PACKAGES = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")
_MIB = 1 << 20
_SECONDS = click.FloatRange(min=0, min_open=True)
_DELAY = click.FloatRange(min=0)

_network_options = options(
    option(
        "--host",
        group="Network",
        metavar="ADDRESS",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on. One that other machines can reach needs a token.",
    ),
    option(
        "--port",
        group="Network",
        type=count_type(0, 65_535),
        default=8000,
        show_default=True,
        help="Port to listen on; 0 for any free one.",
    ),
    option(
        "--token-file",
        group="Network",
        metavar="FILE",
        help="File with the token that requests must have; the environment variable TESSELLA_TOKEN can have it "
        "instead.",
    ),
    option(
        "--allow-host",
        "allowed_hosts",
        group="Network",
        multiple=True,
        metavar="NAME",
        help="Additional host name under which clients reach this server, such as that of a proxy; can be repeated.",
    ),
    option("--allow-urls", group="Network", is_flag=True, help="Fetch images from public URLs that requests name."),
    option("--log-requests", group="Network", is_flag=True, help="Write one JSON object per request to stderr."),
)
_limit_options = options(
    option(
        "--deadline",
        group="Advanced",
        type=_SECONDS,
        metavar="SECONDS",
        default=10.0,
        show_default=True,
        help="Time after which a request is given up.",
    ),
    option(
        "--max-delay",
        group="Advanced",
        type=_DELAY,
        metavar="SECONDS",
        default=0.0,
        show_default=True,
        help="Time that an incomplete batch waits for more images.",
    ),
    option(
        "--queue-images",
        group="Advanced",
        type=count_type(),
        help="Most images in all requests together; more are refused.  [default: four batches, but at least 64 and "
        "the value of --max-images]",
    ),
    option(
        "--max-images",
        group="Advanced",
        type=count_type(),
        default=64,
        show_default=True,
        help="Images per request.",
    ),
    option(
        "--max-body",
        "max_body_mib",
        group="Advanced",
        type=count_type(most=65_536),
        metavar="MIB",
        default=64,
        show_default=True,
        help="Size of the body of a request, in MiB.",
    ),
    option(
        "--body-timeout",
        group="Advanced",
        type=_SECONDS,
        metavar="SECONDS",
        default=10.0,
        show_default=True,
        help="Time in which the body of a request must arrive.",
    ),
    option(
        "--processes",
        "decode_processes",
        group="Advanced",
        type=count_type(most=MAX_PROCESSES),
        help="Processes that decode images.  [default: one per core, at most 8]",
    ),
    option(
        "--drain-delay",
        group="Advanced",
        type=_DELAY,
        metavar="SECONDS",
        default=5.0,
        show_default=True,
        help="After the signal to stop, time in which requests are still accepted.",
    ),
    option(
        "--drain-timeout",
        group="Advanced",
        type=_DELAY,
        metavar="SECONDS",
        default=30.0,
        show_default=True,
        help="Time limit for finishing the remaining requests after the drain delay.",
    ),
    option(
        "--idle-minutes",
        group="Advanced",
        type=_SECONDS,
        metavar="MINUTES",
        default=30.0,
        show_default=True,
        help="Unload a model, except the first one, after this many minutes without requests.",
    ),
    option(
        "--memory",
        "memory_mib",
        group="Advanced",
        type=count_type(),
        metavar="MIB",
        help="Memory for all models together.  [default: half of the machine's]",
    ),
    option(
        "--no-explain",
        group="Advanced",
        is_flag=True,
        help="Do not explain classes. Explanations are computed on request, in a process of their own with PyTorch.",
    ),
    option(
        "--explain-deadline",
        group="Advanced",
        type=_SECONDS,
        metavar="SECONDS",
        default=120.0,
        show_default=True,
        help="Time after which a request for explanations is given up.",
    ),
)


@click.command(
    cls=Command,
    examples=[
        "tessella serve",
        "tessella serve --model mixer_b16_224.goog_in21k_ft_in1k --index runs/photos --port 8080",
        "tessella serve --host 0.0.0.0 --token-file token.txt --allow-host images.example.com",
        "tessella serve --prove",
    ],
)
@option(
    "-m",
    "--model",
    "models",
    group="Model",
    multiple=True,
    metavar="NAME",
    help="Model to serve; can be repeated. The first one is the default and is always loaded, the others are loaded "
    "when they are asked for.  [default: the built-in models]",
)
@option("--index", group="Input", metavar="RUN", help="Output folder of `tessella run` to search; it needs an index.")
@option(
    "--prove",
    group="Advanced",
    is_flag=True,
    help="Do not serve: start a server with these options on a free port, test it under load and with faults, and "
    "print which promises it keeps.",
)
@_network_options
@option(
    "--no-calibration",
    group="Model",
    is_flag=True,
    help="Return the plain softmax of all models, without prediction sets and the detection of unknown images.",
)
@transform_option
@policy_option
@device_option
@precision_option
@engine_option
@batch_size_option
@_limit_options
def serve(
    token_file: str | None,
    index: str | None,
    max_body_mib: int,
    memory_mib: int | None,
    log_requests: bool,
    prove: bool,
    no_explain: bool,
    **arguments: Any,
) -> None:
    """Serve classification and embeddings of images over HTTP.

    The API is described at /openapi.json. The server can only be reached from this machine, unless it has a token and
    --host names another address. SIGTERM or Ctrl-C ends it once all accepted requests are answered.
    """
    _check_packages()
    from ..serve import ServeSettings
    from ..serve.runner import serve as run

    if index is not None and not Path(index).is_dir():
        raise UsageError(
            "bad_argument", f"there is no run {index!r}", hint="RUN is the output folder of `tessella run`"
        )
    settings = ServeSettings(
        index=None if index is None else Path(index),
        token=read_token(token_file),
        max_body_bytes=max_body_mib * _MIB,
        queue_bytes=max(256, max_body_mib) * _MIB,
        memory_limit=memory_mib and memory_mib * _MIB,
        explain=not no_explain,
        calibrated=not arguments.pop("no_calibration"),
        **arguments,
    )
    if prove:
        _prove(settings)
        return
    if log_requests:
        _log_requests()
    run(settings, on_ready=_report, on_stop=_announce_stop, log_requests=log_requests)


def _prove(settings: ServeSettings) -> None:
    """Print each promise as it is measured. Raises ServeError `promise_broken` if one was not kept."""
    from ..serve.prove import prove

    promises = prove(settings, on_promise=_print_promise)
    if broken := [promise.name for promise in promises if promise.kept is False]:
        raise ServeError(
            "promise_broken",
            f"not kept: {', '.join(broken)}",
            hint="other programs on this machine may be the reason: repeat it when the machine is idle",
        )


def _print_promise(promise: Promise) -> None:
    verdict = {True: "kept", False: "not kept", None: "not checked"}[promise.kept]
    echo(f"{verdict:<12} {promise.name:<31} {promise.measured}")
    if promise.kept is False:
        echo(f"{'':<12} {'':<31} expected: {promise.expected}")


def _check_packages() -> None:
    """Raise UsageError `missing_dependency` if a package of the server is not installed."""
    missing = [name for name in _PACKAGES if util.find_spec(name) is None]
    if missing:
        names = any_of(missing).replace(" or ", " and ")
        verb = "is" if len(missing) == 1 else "are"
        hint = install_command(list(_PACKAGES))
        raise UsageError("missing_dependency", f"the server needs {names}, which {verb} not installed", hint=hint)


def _log_requests() -> None:
    """Write the log of requests to standard error as it is: each line is one JSON object."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger = logging.getLogger("tessella.serve.security.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _report(started: Started) -> None:
    """Print the address and what is loaded, in one line."""
    echo(printable(f"serving {', '.join(started.models)} at {started.url}"))


def _announce_stop(seconds: float) -> None:
    notice(f"stopping: at most {seconds:g} s for requests that were accepted; a second signal stops at once")
