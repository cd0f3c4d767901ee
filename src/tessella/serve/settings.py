"""The settings of a server, checked before anything is loaded or bound."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from ..checks import check_count, check_fields, check_number, check_seconds
from ..data.decode import Mode, Policy
from ..data.limits import Limits
from ..engine.plan import check_batch
from ..errors import UsageError

MIB = 1 << 20
MAX_IMAGES = 4096  # in a request
MAX_QUEUED = 1_000_000  # images
MAX_BYTES = 1 << 50
MAX_PROCESSES = 1024
MAX_SECONDS = 24 * 3600.0
MAX_IDLE_MINUTES = 366 * 24 * 60.0
IMAGE_BYTES = 20_000_000  # encoded bytes of one image


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of `tessella serve`; the defaults suit one machine that only its own users can reach.

    models: names as for `tessella.load`; without any, the default models of `classify` and `embed`. The first one is
    the default of every request that names none. index: folder of a run with a search index. port: 0 for any free one.
    token: required on every route but health; without it, only a loopback address can be bound. allowed_hosts: names
    of this server in the Host header, besides `host` and those of the loopback interface. allow_urls: read images from
    public URLs. device, precision, engine, transform, policy: as in `tessella.load`. calibrated: use the calibrations
    that models have; False gives the plain softmax. batch_size: None for that of the plan. deadline: seconds until a
    request is given up; a request may only shorten it. max_delay: seconds that an incomplete batch waits for more
    images; 0 starts it as soon as the model is free. queue_images, queue_bytes: limits on the images of all requests
    together, encoded and decoded; None for four batches, at least `max_images` and 64. max_body_bytes, max_images:
    limits per request. body_timeout: seconds to receive a body. decode_processes: None for one per core, at most 8.
    decode_timeout: seconds to decode one image. drain_delay: seconds in which requests are still accepted after the
    server was asked to stop. drain_timeout: seconds for the requests that are left then. idle_minutes: unload a model
    that nobody has used for this time, except the first; None for never. memory_limit: bytes of memory for all models
    together; None for half of the machine's. explain: answer requests for explanations. explain_deadline: seconds until
    such a request is given up. explain_idle_minutes: end the process that computes explanations when nobody has used it
    for this time.
    """

    models: tuple[str, ...] = ()
    index: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allow_urls: bool = False
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    transform: Mode = "exact"
    policy: Policy = "tessella"
    calibrated: bool = True
    batch_size: int | None = None
    deadline: float = 10.0
    max_delay: float = 0.0
    queue_images: int | None = None
    queue_bytes: int = 256 * MIB
    max_body_bytes: int = 64 * MIB
    max_images: int = 64
    body_timeout: float = 10.0
    decode_processes: int | None = None
    decode_timeout: float = 5.0
    drain_delay: float = 5.0
    drain_timeout: float = 30.0
    idle_minutes: float | None = 30.0
    memory_limit: int | None = None
    explain: bool = True
    explain_deadline: float = 120.0
    explain_idle_minutes: float = 5.0

    def __post_init__(self) -> None:
        """Raise UsageError `bad_argument` for a value of the wrong type, out of range, or unsafe."""
        check_fields(self)
        check_batch(self.batch_size)
        check_count("port", self.port, 65_535, least=0)
        check_count("max_images", self.max_images, MAX_IMAGES)
        check_count("max_body_bytes", self.max_body_bytes, MAX_BYTES)
        check_count("queue_bytes", self.queue_bytes, MAX_BYTES, least=self.max_body_bytes)
        if self.queue_images is not None:
            check_count("queue_images", self.queue_images, MAX_QUEUED, least=self.max_images)
        if self.decode_processes is not None:
            check_count("decode_processes", self.decode_processes, MAX_PROCESSES)
        if self.memory_limit is not None:
            check_count("memory_limit", self.memory_limit, MAX_BYTES)
        for name in ("deadline", "body_timeout", "decode_timeout", "explain_deadline"):
            check_seconds(name, getattr(self, name), MAX_SECONDS)
        for name in ("max_delay", "drain_delay", "drain_timeout"):
            check_number(name, getattr(self, name), least=0, most=MAX_SECONDS)
        if self.idle_minutes is not None:
            check_number("idle_minutes", self.idle_minutes, above=0, most=MAX_IDLE_MINUTES)
        check_number("explain_idle_minutes", self.explain_idle_minutes, above=0, most=MAX_IDLE_MINUTES)
        self._check_access()

    def _check_access(self) -> None:
        token = self.token
        if token is not None and not (token and token == token.strip() and token.isascii() and token.isprintable()):
            raise UsageError(
                "bad_argument",
                "the token is empty, begins or ends with a space, or has characters other than printable ASCII",
            )
        if self.token is None and not self.is_loopback:
            raise UsageError(
                "bad_argument",
                f"host {self.host!r} can be reached from other machines, which needs a token",
                hint="give --token-file FILE, or set the environment variable TESSELLA_TOKEN",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether `host` can be reached from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def limits(self) -> Limits:
        """Limits on one image."""
        return Limits(bytes=min(IMAGE_BYTES, self.max_body_bytes))

    def queue_images_for(self, batch_size: int) -> int:
        """Return the limit on the images of all requests together, for the largest batch size of the models."""
        return self.queue_images or max(4 * batch_size, 64, self.max_images)
