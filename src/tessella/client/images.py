"""Requests with images: what callers pass becomes files, and files become multipart bodies of a bounded size."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..data.decode import decode, encode_png
from ..data.limits import Limits
from ..errors import ImageError, UsageError
from ..inputs import image_source

PART_BYTES = 256  # of a multipart body, besides each image


def encoded_image(image: object, limits: Limits) -> bytes | ImageError:
    """Return one image of any kind as the bytes of a file, or the reason why it cannot be read.

    Paths, bytes and open files are sent as they are. Pillow images, arrays and tensors become a PNG with the pixels
    that a Predictor would see.
    """
    try:
        source = image_source(image, limits)
        if not isinstance(source, bytes | bytearray | memoryview):
            source = encode_png(decode(source, limits=limits))
        data = bytes(source)
    except ImageError as error:
        return error
    except UsageError as error:  # such as an object store whose package is not installed
        return ImageError(error.code, error.message, hint=error.hint)
    if len(data) > limits.bytes:
        return ImageError("too_many_bytes", f"the image has {len(data):,} bytes, a request at most {limits.bytes:,}")
    return data


@dataclass
class ImageGroup:
    """Some images of a call, in order.

    keys: one per image. files: (position in the call, bytes) of the images that are sent. errors: why the images at
    the other positions of `keys` are not.
    """

    first: int
    keys: list[str] = field(default_factory=list)
    files: list[tuple[int, bytes]] = field(default_factory=list)
    errors: dict[int, ImageError] = field(default_factory=dict)
    size: int = 0

    def add(self, key: str, image: bytes | ImageError) -> None:
        """Append an image."""
        position = self.first + len(self.keys)
        self.keys.append(key)
        if isinstance(image, ImageError):
            self.errors[position] = image
        else:
            self.files.append((position, image))
            self.size += len(image) + PART_BYTES

    def body(self, fields: Mapping[str, str]) -> tuple[bytes, str]:
        """Return the multipart body with the files and the fields, and its content type.

        A file is named by its position, never by its path on this machine; the answer has to repeat the name.
        """
        boundary = secrets.token_hex(16)
        parts = []
        for name, value in fields.items():
            parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        for position, data in self.files:
            head = f'Content-Disposition: form-data; name="images"; filename="{position}"'
            parts += [
                f"--{boundary}\r\n{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode(),
                data,
                b"\r\n",
            ]
        parts.append(f"--{boundary}--\r\n".encode())
        return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def make_requests(pairs: Iterable[tuple[str, object]], max_images: int, max_body: int) -> Iterator[ImageGroup]:
    """Read images and collect them in requests of at most `max_images` images and `max_body` bytes."""
    limits = Limits(bytes=max_body - 2 * PART_BYTES)
    request = ImageGroup(0)
    for key, image in pairs:
        data = encoded_image(image, limits)
        size = 0 if isinstance(data, ImageError) else len(data) + PART_BYTES
        if len(request.keys) == max_images or (request.keys and request.size + size > max_body - PART_BYTES):
            yield request
            request = ImageGroup(request.first + len(request.keys))
        request.add(key, data)
    if request.keys:
        yield request
