"""What both clients are told when they are made: where the server is, and how patient and how busy they are."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .._version import __version__
from ..checks import check_count, check_seconds
from ..errors import UsageError
from .protocol import Served, ServedCalibration

if TYPE_CHECKING:
    import httpx2

    from .retries import Attempts

MAX_SECONDS = 24 * 3600
CONNECT_SECONDS = 5.0  # of an attempt, so that a server which is restarted is found again
MAX_ANSWER = 1 << 30  # bytes


class ClientBase:
    """The settings and the state that `Client` and `AsyncClient` have in common.

    url: of the server. model: the model that is asked for; None for the server's default.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        model: str | None,
        timeout: float,
        retries: int,
        concurrency: int,
        max_images: int,
        max_body: int,
    ) -> None:
        """Check the settings, which the clients describe. Raises UsageError `bad_argument`."""
        self.url = _check_url(url)
        check_seconds("timeout", timeout, MAX_SECONDS)
        check_count("retries", retries, 1000, least=0)
        check_count("concurrency", concurrency, 256)
        check_count("max_images", max_images, 4096)
        check_count("max_body", max_body, 1 << 31, least=4096)
        if token is not None and not (token and token == token.strip() and token.isascii() and token.isprintable()):
            raise UsageError(
                "bad_argument",
                "the token is empty, begins or ends with a space, or has characters other than printable ASCII",
            )
        self.model = model
        self.timeout, self.retries = timeout, retries
        self.concurrency, self.max_images, self.max_body = concurrency, max_images, max_body
        self._token = token
        self._served: Served | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.url}>"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that gave the latest results; "" before the first ones."""
        return self._served.fingerprint if self._served else ""

    @property
    def served_model(self) -> str:
        """The name of the model that gave the latest results; "" before the first ones."""
        return self._served.model if self._served else ""

    @property
    def calibration(self) -> ServedCalibration | None:
        """What the probabilities and sets of the latest results mean; None for plain softmax and for embeddings."""
        return self._served.calibration if self._served else None

    @property
    def _server(self) -> str:
        """The name of the server in messages."""
        return f"the server at {self.url}"

    @property
    def _is_local(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"tessella/{__version__}"}
        return headers if self._token is None else {**headers, "Authorization": f"Bearer {self._token}"}

    def _timeouts(self, attempts: Attempts) -> httpx2.Timeout:
        import httpx2

        return httpx2.Timeout(attempts.remaining, connect=min(attempts.remaining, CONNECT_SECONDS))


def request_headers(attempts: Attempts, content_type: str) -> dict[str, str]:
    """Return the headers of an attempt: the server need not finish an answer that comes after the deadline."""
    milliseconds = max(1, int(attempts.remaining * 1000))
    headers = {"X-Tessella-Deadline-Ms": str(milliseconds)}
    return {**headers, "Content-Type": content_type} if content_type else headers


def _check_url(url: str) -> str:
    """Return the URL of a server without a slash at its end."""
    hint = "write it as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError("bad_argument", f"{url!r} is not the URL of a server", hint=hint) from None
    if "@" in parts.netloc:
        raise UsageError("bad_argument", "the URL of the server contains a user name", hint="use a token instead")
    is_clean = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        is_clean = False
    if not (is_clean and port_is_valid):
        raise UsageError("bad_argument", f"{url!r} is not the URL of a server", hint=hint)
    return url.rstrip("/")
