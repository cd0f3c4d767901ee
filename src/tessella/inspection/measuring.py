"""One pass over the images: hash, size, embedding, statistics and a tile of each, stored in parts that survive a kill.

A part holds the results of consecutive images and is written atomically. An interrupted inspection continues with the
first part that is missing; since a part is a whole number of batches, its numbers are those of an uninterrupted one.
A part is computed again if its files were modified, or if an image that could not be read then can be read now.
Everything is computed from the pixels that the model sees, so each image is read and decoded once. Only images of pairs
whose tiles are similar are read again later, see `picture_reader`.

Letters for shapes: N images, D width of the embedding, F statistics, S side of a tile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bulk.shards import decoder_of
from ..data.all_splits import SplitImages
from ..data.changes import MODEL_STATUS, is_any_readable, modification_marks
from ..data.decode import Pixels
from ..data.isolated import Decoded, IsolatedDecoder
from ..errors import ImageError
from ..pipeline import map_values
from ..predictor import Predictor
from ..records import npz_bytes
from ..results import l2_normalize
from ..storage import create_output_folder, folder_lock, open_regular, write_bytes
from .detail import picture_of, spec_of_pictures
from .pixel_statistics import STATISTICS, TILE, statistics_of, tile_of
from .settings import ProgressCallback

PARTS = "parts"  # the folder of the parts, inside that of the inspection
PART_IMAGES = 1_024  # images per part, rounded up to whole batches; a kill costs at most this many
CONTENTS = "1"  # version of what a part contains
MAPPED_IMAGES = 100_000  # tiles of more images are kept in a temporary file instead of memory


@dataclass
class Measurements:
    """What is known of N images, in the order of the data.

    status: (N,) "ok" or an error code. messages: of those that could not be read. sha256: (N,32) uint8, zeros if an
    image could not be read. bytes, width, height: (N,), 0 if unknown. vectors: (N,D) float16 of unit length, zeros if
    there is no embedding. statistics: (N,F) float32, in the order of STATISTICS. tiles: (N,S,S,3) uint8.
    """

    status: NDArray[np.str_]
    sha256: NDArray[np.uint8]
    bytes: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    vectors: NDArray[np.float16]
    statistics: NDArray[np.float32]
    tiles: NDArray[np.uint8]
    messages: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int, width: int) -> Measurements:
        """Return measurements of `count` images, of which none has been read. width: of an embedding."""
        shape = (count, TILE, TILE, 3)
        if count > MAPPED_IMAGES:
            with tempfile.TemporaryFile() as file:  # the mapping keeps the file until it is no longer used
                file.truncate(count * TILE * TILE * 3)
                tiles: NDArray[np.uint8] = np.memmap(file, np.uint8, "r+", shape=shape)
        else:
            tiles = np.zeros(shape, np.uint8)
        return cls(
            status=np.full(count, "ok", "<U24"),
            sha256=np.zeros((count, 32), np.uint8),
            bytes=np.zeros(count, np.int64),
            width=np.zeros(count, np.int64),
            height=np.zeros(count, np.int64),
            vectors=np.zeros((count, width), np.float16),
            statistics=np.zeros((count, len(STATISTICS)), np.float32),
            tiles=tiles,
        )

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Whether each image was read and has an embedding, (N,)."""
        return self.status == "ok"


class _Facts(NamedTuple):
    """What every part records, so that parts of another model or other data are not used."""

    model: str
    data: str
    contents: str
    part_images: int
    modified: str = ""


_ARRAYS = ("status", "sha256", "bytes", "width", "height", "vectors", "statistics", "tiles")


def measure(
    images: SplitImages, predictor: Predictor, out: Path | None = None, *, progress: ProgressCallback | None = None
) -> Measurements:
    """Read every image once.

    out: folder for the parts, from which an interrupted call continues; None keeps everything in memory. progress:
    called with ("images", images done, number of images). Raises UsageError `busy` if another process uses the folder,
    OutputError `output_failed`.
    """
    batch = predictor.plan.batch_size
    size = -(-PART_IMAGES // batch) * batch
    facts = _Facts(predictor.fingerprint, images.images.fingerprint, CONTENTS, size)
    result = Measurements.empty(len(images), predictor.width)
    starts = range(0, len(images), size)
    with nullcontext() if out is None else folder_lock(out):
        done: set[int] = set()
        parts: list[_Facts] = []
        if out is not None:
            create_output_folder(out / PARTS)
            marks = modification_marks((images.images.source(i) for i in range(len(images))), size)
            parts = [facts._replace(modified=mark) for mark in marks]
            done = _read_parts(out, parts, images, predictor, result)
        counted = sum(min(start + size, len(images)) - start for start in done)
        todo = [i for start in starts if start not in done for i in range(start, min(start + size, len(images)))]
        for count, i in enumerate(_compute(images, todo, predictor, result), counted + 1):
            if progress:
                progress("images", count, len(images))
            if out is not None and ((i + 1) % size == 0 or i + 1 == len(images)):
                _write_part(out, i // size, parts[i // size], result)
    return result


def _compute(images: SplitImages, todo: list[int], predictor: Predictor, result: Measurements) -> Iterator[int]:
    """Read the images `todo` and yield each index when its results are in place."""
    with decoder_of(predictor) as decoder:

        def decoded() -> Iterator[tuple[int, Pixels | ImageError]]:
            sources = ((i, images.images.source(i)) for i in todo)
            for i, image in map_values(decoder.decoded, sources):
                _record(result, i, image)
                yield i, image.outcome

        for i, outcome in predictor.decoded_outputs(decoded(), split_batch=False):
            if isinstance(outcome, ImageError):
                result.status[i], result.messages[i] = outcome.code, outcome.message
            else:
                vector_1D = l2_normalize(outcome.embedding[None])
                if np.isfinite(vector_1D).all():
                    result.vectors[i] = vector_1D[0]
                else:
                    result.status[i] = MODEL_STATUS
                    result.messages[i] = "the embedding contains NaN or infinity"
            yield i


def _record(result: Measurements, i: int, image: Decoded) -> None:
    """Store what is known of an image before the model has seen it."""
    if image.sha256:
        result.sha256[i] = np.frombuffer(bytes.fromhex(image.sha256), np.uint8)
    result.bytes[i], result.width[i], result.height[i] = image.bytes, image.width, image.height
    if image.pixels is not None:
        result.statistics[i] = statistics_of(image.pixels)
        result.tiles[i] = tile_of(image.pixels)


ReadPictures = Callable[[Sequence[int]], dict[int, Pixels]]  # from indices of images to pictures (F,F,3)


@contextmanager
def picture_reader(images: SplitImages, predictor: Predictor) -> Iterator[ReadPictures]:
    """Yield a function that reads images again, at the resolution of `detail`; it leaves out those it cannot read."""
    with IsolatedDecoder(
        spec_of_pictures(predictor.spec), policy=predictor.policy, mode=predictor.transform, limits=predictor.limits
    ) as decoder:

        def read(indices: Sequence[int]) -> dict[int, Pixels]:
            sources = (images.images.source(i) for i in indices)
            decoded = zip(indices, decoder.decoded(sources), strict=True)
            return {i: picture_of(image.pixels).copy() for i, image in decoded if image.pixels is not None}

        yield read


# --- parts ------------------------------------------------------------------------------------------------------------


def _part_path(out: Path, number: int) -> Path:
    return out / PARTS / f"part-{number:06d}.npz"


def _write_part(out: Path, number: int, facts: _Facts, result: Measurements) -> None:
    rows = slice(number * facts.part_images, (number + 1) * facts.part_images)
    arrays: dict[str, ArrayLike] = {name: getattr(result, name)[rows] for name in _ARRAYS}
    first = rows.start
    messages = {i - first: text for i, text in result.messages.items() if first <= i < first + facts.part_images}
    arrays["message_rows"] = np.array([*messages], np.int64)
    arrays["messages"] = np.array([text.encode("utf-8", "surrogateescape") for text in messages.values()], np.bytes_)
    write_bytes(_part_path(out, number), npz_bytes(arrays | {k: np.array(v) for k, v in facts._asdict().items()}))


def _read_parts(
    out: Path, parts: Sequence[_Facts], images: SplitImages, predictor: Predictor, result: Measurements
) -> set[int]:
    """Copy all parts that can be used into the result, and return the first image of each of them."""
    with decoder_of(predictor) as decoder:  # it starts no process before an image is decoded

        def is_repaired(failed: Sequence[int]) -> bool:
            return is_any_readable(decoder, (images.images.source(i) for i in failed))

        starts = [number * facts.part_images for number, facts in enumerate(parts)]
        return {
            start
            for number, (start, facts) in enumerate(zip(starts, parts, strict=True))
            if _read_part(_part_path(out, number), facts, result, start, is_repaired)
        }


def _read_part(
    path: Path, facts: _Facts, result: Measurements, start: int, is_repaired: Callable[[Sequence[int]], bool]
) -> bool:
    """Copy a part into the result; return False if it is missing, damaged, or of other data or another model.

    is_repaired: tells whether one of the images that could not be read can be read now; such a part is not used.
    """
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as part:
            if any(str(part[name]) != str(value) for name, value in facts._asdict().items()):
                return False
            arrays = {name: part[name] for name in _ARRAYS}
            texts = [text.decode("utf-8", "surrogateescape") for text in part["messages"].tolist()]
            rows = part["message_rows"].tolist()
    except Exception:  # damaged zip files raise exceptions of many types; the part is computed again
        return False
    targets = {name: getattr(result, name)[start : start + facts.part_images] for name in _ARRAYS}
    if any(arrays[name].shape != target.shape for name, target in targets.items()):
        return False
    failed = np.flatnonzero(~np.isin(arrays["status"], ("ok", MODEL_STATUS)))
    if len(failed) and is_repaired((start + failed).tolist()):
        return False
    for name, target in targets.items():
        target[:] = arrays[name]
    result.messages.update(zip((start + row for row in rows), texts, strict=True))
    return True
