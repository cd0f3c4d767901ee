"""Read the bytes of image files, with errors that name the file."""

from __future__ import annotations

import os

from ..errors import ImageError
from ..storage import SpecialFileError, open_regular
from .limits import DEFAULT_LIMITS, Limits


def read_file(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the first `limits.bytes` + 1 bytes of a regular file, so that decoding can refuse a larger file.

    Raises ImageError `not_found`, `unreadable` or `special_file` (a device, pipe or socket, which is not opened).
    """
    name = os.fsdecode(path)
    try:
        with open_regular(path) as file:
            return file.read(limits.bytes + 1)
    except (OSError, ValueError) as error:
        raise unreadable_file(name, error) from None


def unreadable_file(name: str, error: OSError | ValueError) -> ImageError:
    """Return the ImageError that reports why the file `name` could not be opened or read."""
    if isinstance(error, SpecialFileError):
        return ImageError("special_file", f"{name!r} was not opened: {error.strerror}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageError("not_found", f"there is no file {name!r}")
    if isinstance(error, IsADirectoryError):
        return ImageError("unreadable", f"{name!r} is a folder, expected an image file")
    reason = getattr(error, "strerror", None) or "not a valid file name"  # ValueError: the name contains a NUL
    return ImageError("unreadable", f"{name!r} could not be read: {reason}")
