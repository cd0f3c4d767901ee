"""Run the server in this process: bind, load, serve, drain, end.

The address is bound before models are loaded, so that /healthz answers and /readyz says that the server is loading.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ..errors import ServeError
from ..machine import require_fork
from .app import create_app
from .connection import limited_connections, refusing_connection
from .loops import garbage_frozen, loop_factory
from .service import Service

if TYPE_CHECKING:
    from .security import Gate
    from .settings import ServeSettings

BACKLOG = 2048
OPEN_FILES = 4096  # connections, the pipes of decoding processes, files of models
KEEP_ALIVE = 5  # seconds; a load balancer should close idle connections earlier
SHUTDOWN_SECONDS = 3  # for answers that are being sent when everything else is finished
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECOND_SIGNAL_STATUS = 130


@dataclass(frozen=True)
class Started:
    """A server that answers requests. models: the names of those that are loaded."""

    url: str
    models: tuple[str, ...]


def serve(
    settings: ServeSettings,
    *,
    on_ready: Callable[[Started], None] = lambda started: None,
    on_stop: Callable[[float], None] = lambda seconds: None,
    log_requests: bool = False,
) -> None:
    """Run a server until it gets SIGINT or SIGTERM, and finish the requests that it has accepted.

    on_ready: called once the models are loaded. on_stop: called at the first signal with the longest time that the
    server will take to end; a second signal ends the process at once, with status 130. log_requests: as in
    `create_app`. Raises ServeError `cannot_listen` if the address is in use, `worker_failed` if the server cannot
    recover from a failure; UsageError `unsupported_system`; the errors of `tessella.load`.
    """
    require_fork("`tessella serve`")
    with handle_signals() as stop, contextlib.closing(bind(settings.host, settings.port)) as listener:
        allow_open_files(OPEN_FILES)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            run = _Run(settings, listener, on_ready, on_stop)
            stop.connect(runner.get_loop(), run.stopping.set)
            if not runner.run(run.main(log_requests)):
                # a thread is still loading a model; its libraries abort the process if the interpreter ends meanwhile
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)


class StopSignal:
    """The signals that ask the server to stop: the first one calls a function in its event loop, the second one ends
    the process at once.
    """

    def __init__(self) -> None:
        self._is_received = False
        self._notify: Callable[[], object] = lambda: None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._is_received:
            os._exit(SECOND_SIGNAL_STATUS)
        self._is_received = True
        self._notify()

    def connect(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> None:
        """Call `stop` in the event loop at the first signal, which may have arrived already."""
        self._notify = lambda: loop.call_soon_threadsafe(stop)
        if self._is_received:
            self._notify()


@contextlib.contextmanager
def handle_signals() -> Iterator[StopSignal]:
    """Handle SIGINT and SIGTERM while the block runs; only the main thread can do that."""
    stop = StopSignal()
    previous = {}
    with contextlib.suppress(ValueError):
        previous = {number: signal.signal(number, stop.receive) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def allow_open_files(count: int) -> None:
    """Let this process have `count` open files, as each connection is one, or as many as the system allows."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is any free port. Raises ServeError `cannot_listen`."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name != "nt":  # there it would allow two servers on one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that Python cannot encode for the DNS
        reason = error.strerror or error if isinstance(error, OSError) else "it is not a valid host name"
        raise ServeError(
            "cannot_listen",
            f"the server cannot listen on {host} port {port}: {reason}",
            hint="another program may use the port: choose one with --port, or --port 0 for any free one",
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a server that listens on a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server without its handling of signals, which would end the process with the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers of signals as they are."""
        yield


class _Run:
    """One run of the server."""

    def __init__(
        self,
        settings: ServeSettings,
        listener: socket.socket,
        on_ready: Callable[[Started], None],
        on_stop: Callable[[float], None],
    ) -> None:
        self.settings, self.listener = settings, listener
        self.on_ready, self.on_stop = on_ready, on_stop
        self.stopping = asyncio.Event()

    async def main(self, log_requests: bool) -> bool:
        """Serve until a signal or a failure. Return whether loading was finished."""
        service = Service(self.settings)
        server = _Server(self._config(create_app(service, self.settings, log_requests=log_requests)))
        serving = asyncio.create_task(server.serve([self.listener]))
        sweeping = asyncio.create_task(check_connections(server))
        try:
            is_loaded = await self._load(service)
            if is_loaded:
                with garbage_frozen():
                    await self._serve_until_stopped(service)
        finally:
            server.should_exit = True
            await serving
            sweeping.cancel()
            await service.close()
        return is_loaded

    async def _load(self, service: Service) -> bool:
        """Load the models; return whether the server should continue; False if it was asked to stop meanwhile."""
        loading, stopping = asyncio.create_task(service.start()), asyncio.create_task(self.stopping.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            await asyncio.wait({loading})
            return False
        loading.result()
        gc.collect()  # what is garbage now would stay in memory, see `garbage_frozen`
        loaded = tuple(status.name for status in service.models() if status.state == "ready")
        self.on_ready(Started(url_of(self.listener), loaded))
        return True

    async def _serve_until_stopped(self, service: Service) -> None:
        """Return once all accepted requests are answered. Raises ServeError `worker_failed`."""
        stopping, failed = asyncio.create_task(self.stopping.wait()), asyncio.create_task(service.failed.wait())
        await asyncio.wait({stopping, failed}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        failed.cancel()
        if service.failed.is_set():
            raise ServeError("worker_failed", f"the server cannot continue: {service.readiness.reason}")
        self.on_stop(self.settings.drain_delay + self.settings.drain_timeout)
        await service.drain()

    def _config(self, app: Gate) -> uvicorn.Config:
        return uvicorn.Config(
            app,
            http=refusing_connection(app.refuse_at_once),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,  # a warning per malformed request would let clients fill the log
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )


async def check_connections(server: uvicorn.Server, *, every: float = 1.0) -> None:
    """Close connections whose client neither sends a request nor reads its answer. every: seconds between checks."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every)
        for connection in limited_connections(server.server_state.connections):
            connection.check(loop.time())
