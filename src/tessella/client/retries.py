"""When a request is repeated, and how long to wait before: the same rules for both clients, without any I/O."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ..errors import TessellaError

TEMPORARY = frozenset({429, 502, 503})
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0  # seconds; doubled from one to the other while the server names none


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. headers: with names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Attempts:
    """The attempts at one request: how much time is left, and whether and when there is another one."""

    def __init__(self, timeout: float, retries: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the time of a request. timeout: seconds for all attempts. retries: attempts after the first one."""
        self._clock, self._retries, self._count = clock, retries, 0
        self.deadline = clock() + timeout

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; not negative."""
        return max(0.0, self.deadline - self._clock())

    def delay_after(self, error: TessellaError, reply: Reply | None) -> float:
        """Return the seconds to wait before the next attempt; raise `error` if there is none.

        reply: the answer, None if there was none. The delay is the one of the header Retry-After, or doubles with each
        attempt; a random part keeps clients that failed together from returning together. All requests of this package
        may be repeated: they change nothing on the server.
        """
        delay = None if reply is None else retry_after(reply.headers)
        if delay is None:
            delay = min(FIRST_DELAY * 2**self._count, LONGEST_DELAY) * random.uniform(0.5, 1.0)
        else:
            delay += random.uniform(0.0, FIRST_DELAY + delay / 4)
        is_temporary = reply is None or reply.status in TEMPORARY
        if not is_temporary or self._count >= self._retries or delay >= self.remaining:
            raise error
        self._count += 1
        return delay


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait for, None if it does not say; a date becomes seconds from now."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a number with very many digits
        return None
    if date.tzinfo is None:  # "-0000"
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
