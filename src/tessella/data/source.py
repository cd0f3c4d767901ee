"""One input: its name and where its bytes are."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ImageError
from .files import read_file, unreadable_file
from .limits import DEFAULT_LIMITS, Limits
from .remote import is_url, opened, read_url


@dataclass(frozen=True)
class Source:
    """One input: `key` is what the user sees, `read()` its bytes. Picklable; no file of a Source is open between reads.

    A name that is not UTF-8 is kept in the form of `os.fsdecode`: see `tessella.text.escape`.
    """

    key: str
    path: str
    offset: int | None = None  # of a member inside its tar archive, in bytes
    size: int | None = None  # bytes
    error: ImageError | None = None  # what `read` raises for an input that names no image

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """The bytes of the file or member, for `decode`; ImageError if they cannot be read."""
        if self.error is not None:
            raise self.error
        if self.offset is None or self.size is None:
            return read_url(self.path, limits) if is_url(self.path) else read_file(self.path, limits)
        if self.size > limits.bytes:
            raise ImageError("too_many_bytes", f"the member has {self.size:,} bytes, the limit is {limits.bytes:,}")
        if not 0 <= self.offset < 1 << 63 or self.size < 0:
            raise ImageError("corrupt_archive", f"{self.path!r} cannot have a member at byte {self.offset}")
        if is_url(self.path):
            data = read_url(self.path, limits, self.offset, self.size)
        else:
            data = self._member(self.offset, self.size)
        if len(data) < self.size:
            raise ImageError("corrupt_archive", f"{self.path!r} ends inside this member")
        return data

    def _member(self, offset: int, size: int) -> bytes:
        try:
            with opened(self.path) as archive:
                archive.seek(offset)
                return archive.read(size)
        except OSError as error:  # of a disk that fails
            raise unreadable_file(self.path, error) from None
