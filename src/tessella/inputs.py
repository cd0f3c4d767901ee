"""The kinds of images that callers pass: single images and collections, converted to what `decode` reads.

The docstring of `Predictor` lists the kinds. Objects of other libraries may raise any exception; here it becomes an
ImageError, so that one bad item never ends the work on the others.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import IO, TYPE_CHECKING, TypeAlias, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from .checks import show
from .data.decode import ImageSource, PillowImage
from .data.limits import DEFAULT_LIMITS, Limits
from .data.names import is_archive, is_image
from .data.remote import is_object, is_url
from .data.source import Source
from .data.sources import iter_sources
from .errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

AnyImage: TypeAlias = "ImageSource | Source | IO[bytes] | Tensor"  # one image of any kind

_HINT = "give a path, bytes, an open file, a Pillow image, an array or a tensor"


def is_single(images: object) -> bool:
    """Return whether this is one image or one name, rather than a collection.

    A batch (N,H,W,C) or (N,C,H,W) is a collection. Mappings, open files and all that is not iterable count as one
    item, whether or not it is an image.
    """
    if isinstance(images, np.ndarray) or _is_tensor(images):
        return images.ndim < 4
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Source | Mapping):
        return True
    return _attribute(images, "read") is not None or not isinstance(images, Iterable)  # Pillow images are not iterable


def is_collection_name(name: str) -> bool:
    """Return whether a name refers to several images: a folder, glob, archive or list, or the URL of one of these."""
    archive = is_archive(name)
    if is_url(name):
        if archive or (is_image(name) and not glob.has_magic(name)):
            return archive
        try:
            return not is_object(name)
        except (ImageError, UsageError):  # reading it reports why
            return False
    if os.path.lexists(name):
        return archive or os.path.isdir(name)  # noqa: PTH112 - a name may be too long for Path
    return glob.has_magic(name) or (name.startswith("@") and len(name) > 1)


def list_images(images: object) -> tuple[bool, Iterable[object]]:
    """Return whether `images` is a single image, and an iterable of all images.

    A name that refers to several images is listed by `iter_sources`.
    """
    if isinstance(images, str | os.PathLike) and (name := _path_text(images)) is not None and is_collection_name(name):
        return False, iter_sources([name])
    names = isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU"
    if isinstance(images, Iterable) and (names or not is_single(images)):
        return False, images
    return True, [images]


def key_of(image: object, position: int) -> str:
    """Return the name of an image: a Source's key, a path, the name of an open file, or else its position."""
    if isinstance(image, Source):
        return image.key
    name: object = image if isinstance(image, str | os.PathLike) else None
    if name is None and _attribute(image, "read") is not None:
        name = _attribute(image, "name")
    text = _path_text(name) if isinstance(name, str | bytes | os.PathLike) else None
    return str(position) if text is None else text


def image_source(image: object, limits: Limits = DEFAULT_LIMITS) -> ImageSource:
    """Return one image of any kind as `decode` takes it. Raises ImageError, also if it is not an image at all."""
    if isinstance(image, str | os.PathLike):
        return _read_path(image, limits)
    if isinstance(image, Source):
        return image.read(limits)
    if _is_tensor(image):
        return tensor_to_array(image)
    if callable(_attribute(image, "read")):
        return _read_open_file(cast("IO[bytes]", image), limits)
    if isinstance(image, Mapping | list | tuple | set | frozenset):
        inside = " (for a row of a dataset, its image)" if isinstance(image, Mapping) else ""
        raise ImageError("bad_argument", f"a {type(image).__name__} is not an image{inside}", hint=_HINT)
    if isinstance(image, bytes | bytearray | memoryview | np.ndarray | PillowImage):
        return image
    if hasattr(image, "__array__"):  # arrays of other libraries, NumPy's own numbers
        with suppress(Exception):  # whatever another library raises: it gives no array
            return np.asarray(image)
    description = show(image) if isinstance(image, float | int | None) else f"a {type(image).__name__}"
    raise ImageError("bad_argument", f"{description} is not an image", hint=_HINT)


def tensor_to_array(image: Tensor) -> NDArray[np.generic]:
    """Convert a tensor (H,W), (1,H,W), (3,H,W) or (4,H,W) to an array with channels last; ImageError `bad_array`."""
    shape = tuple(image.shape)
    first, last = len(shape) == 3 and shape[0] in (1, 3, 4), len(shape) == 3 and shape[2] in (1, 3, 4)
    if first and last:
        raise ImageError(
            "bad_array",
            f"a tensor of shape {shape} is either {shape[0]} channels of {shape[1]}x{shape[2]} pixels, or "
            f"{shape[0]}x{shape[1]} pixels of {shape[2]} channels",
            hint="give an array (H,W,C), which is never ambiguous: image.permute(1, 2, 0).numpy() or image.numpy()",
        )
    if len(shape) != 2 and not first:
        raise ImageError(
            "bad_array",
            f"a tensor of shape {shape} is not an image, expected (H,W), (1,H,W), (3,H,W) or (4,H,W)",
            hint="channels come first in tensors: use image.permute(2, 0, 1)" if last else "",
        )
    try:
        image = image.detach().cpu()
        array: NDArray[np.generic] = (image.float() if image.is_floating_point() else image).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, without memory
        reason = str(error).partition("\n")[0]
        raise ImageError("bad_array", f"the tensor cannot be read as an array: {reason}") from None
    return array.transpose(1, 2, 0) if first else array


def _is_tensor(image: object) -> TypeGuard[Tensor]:
    """Return whether an object is a torch tensor, without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(image).__mro__)


def _path_text(path: str | bytes | os.PathLike[str]) -> str | None:
    """Return the path as text, or None if an object of a caller's class raises an exception instead."""
    try:
        return os.fsdecode(path)
    except Exception:  # whatever its __fspath__ raises
        return None


def _attribute(image: object, name: str) -> object:
    """Return an attribute; None if it is missing or a property of a caller's class raises an exception."""
    try:
        return getattr(image, name, None)
    except Exception:
        return None


def _read_path(path: str | os.PathLike[str], limits: Limits) -> bytes:
    name = _path_text(path)
    if name is None:
        raise ImageError("bad_argument", f"a {type(path).__name__} gives no path", hint=_HINT)
    if not is_url(name) and is_collection_name(name):
        raise ImageError(
            "bad_argument",
            f"{name!r} refers to several images, expected one image",
            hint="pass it by itself, not in a list",
        )
    return Source(name, name).read(limits)


def _read_open_file(file: IO[bytes], limits: Limits) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise ImageError("bad_argument", "the file is open for text, expected bytes", hint="open it with mode 'rb'")
    try:
        data = file.read(limits.bytes + 1)
    except Exception as error:  # closed, not open for reading, or whatever another library's file raises
        raise ImageError("unreadable", f"the open file could not be read: {error}") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError("bad_argument", f"the open file gives {type(data).__name__}, expected bytes")
    return bytes(data)
