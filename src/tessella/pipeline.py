"""The image pipeline: read, decode, resize and crop, batch, run the engine, one result per image.

Every step takes (key, value) pairs and yields pairs with the same keys in the same order, so a result always belongs
to its input. A key is whatever the caller wants back with the result: a position, a name, an entry of a listing.

    step             yields
    (the caller)     (key, image of any kind)
    decode_images    (key, pixels (H,W,3) uint8 or ImageError); a bulk run decodes in isolated processes instead
    make_batches     ([(key, error or None), ...], pixels (N,H,W,3) of the images that could be read)
    run_engine       ([(key, error or None), ...], (logits (N,classes), embeddings (N,width)))
    split_outputs    (key, Output or ImageError)

`image_outputs` runs all steps. Steps are generators, which read a few batches ahead, whatever the number of images.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from .data.decode import Mode, Pixels, Policy
from .data.limits import DEFAULT_LIMITS, Limits
from .data.source import Source
from .data.spec import InputSpec
from .data.transforms import load_pixels
from .engine.base import Engine
from .errors import ImageError, UsageError
from .inputs import AnyImage, image_source, key_of, list_images
from .results import FloatArray, Output, Record
from .text import count_of

Key = TypeVar("Key")
Value = TypeVar("Value")
Result = TypeVar("Result")
Entries: TypeAlias = list[tuple[Key, ImageError | None]]  # key and error of each image in a batch


@dataclass(frozen=True)
class ImageReader:
    """Read images of any kind and prepare them for a model: decode, resize and crop.

    transform, policy: as in `tessella.load`. Raises UsageError `bad_argument` for unknown ones.
    """

    spec: InputSpec
    transform: Mode = "exact"
    policy: Policy = "tessella"
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        for name, value, known in (
            ("transform", self.transform, ("exact", "fast")),
            ("policy", self.policy, ("tessella", "timm")),
        ):
            if value not in known:
                raise UsageError("bad_argument", f"{name} is {value!r}, expected {' or '.join(map(repr, known))}")

    def load(self, image: object) -> Pixels:
        """Return one image of any kind as (height, width, 3) uint8. Raises ImageError, UsageError."""
        source = image_source(image, self.limits)
        return load_pixels(source, self.spec, policy=self.policy, mode=self.transform, limits=self.limits)

    def read(self, image: object) -> Pixels | ImageError:
        """Return one image of any kind as (height, width, 3) uint8, or the reason why it cannot be read."""
        try:
            return self.load(image)
        except ImageError as error:
            return error
        except UsageError as error:  # such as an object store whose package is not installed
            return ImageError(error.code, error.message, hint=error.hint)

    def load_readable(self, images: AnyImage | Iterable[AnyImage]) -> Pixels:
        """Return those images that can be read, (N,height,width,3) uint8; UsageError `bad_argument` if none can."""
        pixels = []
        for image in list_images(images)[1]:
            with suppress(ImageError):
                pixels.append(self.load(image))
        if not pixels:
            raise UsageError("bad_argument", "none of the images for the precision check can be read")
        return np.stack(pixels)


def map_values(
    function: Callable[[Iterator[Value]], Iterator[Result]], pairs: Iterable[tuple[Key, Value]]
) -> Iterator[tuple[Key, Result]]:
    """Apply a stream function to the values of (key, value) pairs, and yield each result with the key of its value.

    function: takes an iterator of values and yields one result per value, in order; it may read ahead.
    """
    keys: deque[Key] = deque()  # of values whose results are still to come

    def values() -> Iterator[Value]:
        for key, value in pairs:
            keys.append(key)
            yield value

    for result in function(values()):
        yield keys.popleft(), result


def decode_images(
    pairs: Iterable[tuple[Key, object]], reader: ImageReader, ahead: int
) -> Iterator[tuple[Key, Pixels | ImageError]]:
    """Read and decode images in threads while the model works on earlier ones; pixels are (H,W,3) uint8.

    ahead: number of images that may be decoded before they are needed, at least two per core.
    """
    cores = os.cpu_count() or 1
    waiting: deque[tuple[Key, Future[Pixels | ImageError]]] = deque()
    with ThreadPoolExecutor(min(cores, 8), "tessella-decode") as pool:
        try:
            for key, image in pairs:
                waiting.append((key, pool.submit(reader.read, image)))
                if len(waiting) >= max(ahead, 2 * cores):  # bounds memory, whatever the number of images
                    yield _resolve(*waiting.popleft())
            while waiting:
                yield _resolve(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _resolve(key: Key, future: Future[Result]) -> tuple[Key, Result]:
    return key, future.result()


def raise_first_error(
    decoded: Iterable[tuple[int, Pixels | ImageError]], *, numbered: bool
) -> Iterator[tuple[int, Pixels]]:
    """Pass pixels (H,W,3) through; raise ImageError for the first image that could not be read.

    numbered: the message begins with the position of the image.
    """
    for position, outcome in decoded:
        if isinstance(outcome, ImageError):
            prefix = f"image {position}: " if numbered else ""
            raise ImageError(outcome.code, prefix + outcome.message, hint=outcome.hint) from None
        yield position, outcome


def make_batches(
    decoded: Iterable[tuple[Key, Pixels | ImageError]], size: int, shape: tuple[int, ...]
) -> Iterator[tuple[Entries[Key], Pixels]]:
    """Collect batches of `size` images; images that could not be read count, but have no pixels.

    shape: (H,W,3) of one image, for a batch in which no image could be read.
    """
    entries: Entries[Key] = []
    pixels: list[Pixels] = []
    for key, outcome in decoded:
        if isinstance(outcome, ImageError):
            entries.append((key, outcome))
        else:
            entries.append((key, None))
            pixels.append(outcome)
        if len(entries) == size:
            yield entries, _stack(pixels, shape)
            entries, pixels = [], []
    if entries:
        yield entries, _stack(pixels, shape)


def _stack(pixels: list[Pixels], shape: tuple[int, ...]) -> Pixels:
    return np.stack(pixels) if pixels else np.empty((0, *shape), np.uint8)


def run_engine(
    batches: Iterable[tuple[Entries[Key], Pixels]], engine: Engine, *, split_batch: bool = True
) -> Iterator[tuple[Entries[Key], tuple[FloatArray, FloatArray]]]:
    """Run the model on batches: logits (N,classes) and embeddings (N,width) of the N images that could be read.

    split_batch: as in `Engine.imap`.
    """

    def run(pixels: Iterator[Pixels]) -> Iterator[tuple[FloatArray, FloatArray]]:
        return engine.imap(pixels, split_batch=split_batch)

    return map_values(run, batches)


def split_outputs(
    batches: Iterable[tuple[Entries[Key], tuple[FloatArray, FloatArray]]],
) -> Iterator[tuple[Key, Output | ImageError]]:
    """Yield the output of each image, or its error if it could not be read."""
    for entries, (logits, embeddings) in batches:
        rows = zip(logits, embeddings, strict=True)
        for key, error in entries:
            yield key, Output(*next(rows)) if error is None else error


def decoded_outputs(
    decoded: Iterable[tuple[Key, Pixels | ImageError]], engine: Engine, *, split_batch: bool = True
) -> Iterator[tuple[Key, Output | ImageError]]:
    """Run the model on decoded images (H,W,3) in batches of the plan's batch size: one result per image, in order."""
    batches = make_batches(decoded, engine.plan.batch_size, engine.shape)
    return split_outputs(run_engine(batches, engine, split_batch=split_batch))


def image_outputs(
    pairs: Iterable[tuple[Key, object]], reader: ImageReader, engine: Engine
) -> Generator[tuple[Key, Output | ImageError], None, None]:
    """Run all steps: one result per image, in order, as batches finish.

    An exception that the iterable itself raises comes after the results of all images before it.
    """
    ahead = engine.plan.batch_size
    return defer_failure(pairs, lambda pairs: decoded_outputs(decode_images(pairs, reader, ahead), engine))


def defer_failure(
    items: Iterable[Value], steps: Callable[[Iterator[Value]], Iterator[Result]]
) -> Generator[Result, None, None]:
    """Run `steps`; an exception that the iterable raises comes after the results of all items before it."""
    failures: list[Exception] = []
    yield from steps(until_failure(items, failures))
    if failures:
        raise failures[0]


def until_failure(items: Iterable[Value], failures: list[Exception]) -> Iterator[Value]:
    """Yield the items before the first exception of the iterable, which is put into `failures`."""
    try:
        yield from items
    except Exception as error:  # of the caller's code: raised again after the results of earlier items
        failures.append(error)


_END = object()


def pair_with_keys(images: Iterable[Value], keys: Iterable[object]) -> Iterator[tuple[str, Value]]:
    """Pair images with the caller's keys, as strings; UsageError `bad_argument` if their numbers differ."""
    remaining = iter(keys)
    count = 0
    for count, image in enumerate(images, 1):
        key = next(remaining, _END)
        if key is _END:
            raise UsageError(
                "bad_argument", f"keys has {count_of(count - 1, 'name')} for more images", hint="give one per image"
            )
        yield str(key), image
    if next(remaining, _END) is not _END:
        raise UsageError("bad_argument", f"there are more keys than images ({count})", hint="give one per image")


def with_keys(images: AnyImage | Iterable[object], keys: Iterable[str] | None) -> Iterable[tuple[str, object]]:
    """Pair each image with its name: the caller's, or else what `inputs.key_of` gives.

    Raises UsageError `bad_argument` if `keys` are no names; when the pairs are read, also for another number of them.
    """
    if isinstance(keys, str) or not isinstance(keys, Iterable | None):
        raise UsageError("bad_argument", f"keys is {keys!r}, expected one name for each image")
    items = list_images(images)[1]
    if keys is None:
        return ((key_of(image, position), image) for position, image in enumerate(items))
    return pair_with_keys(items, keys)


def error_records(sources: Sequence[Source]) -> list[Record]:
    """Return one error record per source if none can be read, or an empty list if one may be readable.

    It reports a wrong path before a model is loaded.
    """
    records = []
    for source in sources:
        if source.error is None and ("://" in source.path or os.path.exists(source.path)):  # noqa: PTH110
            return []
        try:
            source.read()
        except ImageError as error:
            records.append(Record(source.key, error.code, str(error)))
        else:
            return []
    return records
