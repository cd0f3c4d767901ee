"""Admission: how many images the server holds at a time, how many bytes of them, and how much work they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ServeError

_USABLE = 0.8  # of the time to the deadline; the rest is for decoding and for errors of the estimate
_WAITING = 0.5  # of the places; the others are left for models that have been loaded


class Admission:
    """Places for the images of all requests, from their arrival to their answer. Used in the event loop only.

    A request is admitted as a whole or refused at once, so memory is bounded and nobody waits for a queue to empty.
    seconds: that the models will take for all of it.
    """

    def __init__(self, *, max_images: int, max_bytes: int):
        self.max_images, self.max_bytes = max_images, max_bytes
        self.images = self.bytes = 0
        self.waiting = 0  # images whose model is being loaded
        self.seconds = 0.0

    @property
    def is_full(self) -> bool:
        """Whether not even one image would be admitted."""
        return self.images >= self.max_images or self.bytes >= self.max_bytes

    def admit(self, images: int, size: int) -> Ticket:
        """Take places for the images of a request; size: their bytes.

        Raises ServeError `overloaded` if there are not enough now, `too_many_images` if there never are.
        """
        if images > self.max_images or size > self.max_bytes:
            raise ServeError(
                "too_many_images",
                f"{images} images with {size:,} bytes, expected at most {self.max_images} with {self.max_bytes:,}",
            )
        ticket = Ticket(self)
        ticket.add(images, size)
        return ticket


class Ticket:
    """The places of one request; a context manager that gives them back, once, however its block ends.

    is_waiting: the model of the request is being loaded.
    """

    def __init__(self, admission: Admission):
        self._admission = admission
        self.images = self.bytes = 0
        self.seconds = 0.0
        self.is_waiting = False

    def add(self, images: int, size: int) -> None:
        """Take more places. Raises ServeError `overloaded` if there are not enough."""
        admission = self._admission
        if admission.images + images > admission.max_images or admission.bytes + size > admission.max_bytes:
            raise ServeError(
                "overloaded",
                f"{admission.images} images with {admission.bytes:,} bytes are in work, the limits are "
                f"{admission.max_images} and {admission.max_bytes:,}",
            )
        self.images += images
        self.bytes += size
        admission.images += images
        admission.bytes += size

    def expect(self, seconds: float, deadline: float) -> None:
        """Add to the work of the models, in seconds.

        Raises ServeError `overloaded` if the request would have to wait for others until it is almost too late: its
        images would take the time of the models and then be thrown away. deadline: seconds that it has.
        """
        admission = self._admission
        if admission.images > self.images and admission.seconds + seconds > _USABLE * deadline:
            raise ServeError(
                "overloaded", f"there is work for {admission.seconds:.1f} s, the deadline is {deadline:g} s"
            )
        self.seconds += seconds
        admission.seconds += seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the images as waiting while the block loads their model. Raises ServeError `not_ready`.

        Loading may take longer than the deadline of many requests. They must not take all places meanwhile.
        """
        admission = self._admission
        if admission.waiting and admission.waiting + self.images > _WAITING * admission.max_images:
            raise ServeError("not_ready", f"{admission.waiting} images are waiting for models to be loaded")
        admission.waiting += self.images
        self.is_waiting = True
        try:
            yield
            self.is_waiting = False
        finally:
            admission.waiting -= self.images

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.images -= self.images
        self._admission.bytes -= self.bytes
        self._admission.seconds -= self.seconds
        self.images = self.bytes = 0
        self.seconds = 0.0
