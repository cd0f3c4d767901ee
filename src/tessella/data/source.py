"""One input image: its key, and where its bytes are stored."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ImageError
from .files import read_file, unreadable_file
from .limits import DEFAULT_LIMITS, Limits
from .remote import is_url, open_input, read_url


@dataclass(frozen=True)
class Source:
    """One input image: `key` identifies it to the user, `read()` returns its encoded bytes.

    A source can be pickled, and keeps no file open between reads. A name that is not UTF-8 has the form that
    `os.fsdecode` returns: see `tessella.text.escape`.
    """

    key: str
    path: str
    offset: int | None = None  # of a member inside its tar archive, in bytes
    size: int | None = None  # of a member, in bytes
    error: ImageError | None = None  # raised by `read` if the input names no image

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the encoded bytes of the file or archive member, as `decode` takes them.

        Raises ImageError if they cannot be read, or if a member has more than `limits.bytes`.
        """
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
            data = self._read_member(self.offset, self.size)
        if len(data) < self.size:
            raise ImageError("corrupt_archive", f"{self.path!r} ends inside this member")
        return data

    def _read_member(self, offset: int, size: int) -> bytes:
        try:
            with open_input(self.path) as archive:
                archive.seek(offset)
                return archive.read(size)
        except OSError as error:  # reading the disk failed
            raise unreadable_file(self.path, error) from None
