"""`gallery`: the images of an index as one HTML file that needs no server: gallery, search by an image, map, filters.

The file holds the page of `tessella serve` (its modules joined to one script), thumbnails, and the embeddings in 8 bits
per number, by which the page itself searches. Its Content Security Policy allows exactly this script and this style
sheet, by their hashes, and no connection to anywhere. All data is JSON in which "<" is escaped, so no label and no name
can end the element that contains it; the page shows text as text only.

Letters for shapes: N images, D width of the embedding, Q images that are compared.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bulk.run_folder import RunFacts, read_run, row_sources
from ..checks import as_path, checked
from ..data.decode import Pixels
from ..data.isolated import Decoded, IsolatedDecoder
from ..data.resize import resize_exact
from ..data.source import Source
from ..data.spec import InputSpec
from ..data.turbo import encode_jpeg
from ..errors import UsageError
from ..machine import require_fork
from ..records import finite_or_none
from ..results import FloatArray, l2_normalize
from ..storage import check_output, write_bytes
from .columns import ASSESSED_NAMES
from .duplicates import SimilarityThreshold
from .index import HOME, index_command, map_file_of, no_index, open_seal, sealed_rows
from .nearest import ArrowTable, vectors_of
from .projection import project, read_map

MAX_IMAGES = 10_000  # more would make a file that browsers open slowly
SIDE = 160  # pixels of the longer side of a thumbnail
QUALITY = 72  # of its JPEG file
COMPARED, NEIGHBORS = 200, 10  # images and neighbors by which the loss of 8 bits is measured
TEMPLATE, MAIN, STYLE = "gallery.html", "local_main.js", "style.css"
_IMPORT = re.compile(r'^import (?:\{[^}]*\} from )?"\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


@dataclass(frozen=True)
class GalleryReport:
    """The result of `gallery`.

    images: number of images. missing: number of those without a thumbnail, because they could not be read again.
    bytes: size of the file. recall: fraction of the ten nearest images that searches with 8 bits find, of up to 200
    images. error: largest difference of a similarity among these.
    """

    images: int
    missing: int
    bytes: int
    recall: float
    error: float


@checked
def gallery(out: str | Path, path: str | Path, *, log: Callable[[str], None] = lambda text: None) -> GalleryReport:
    """Write the indexed images of the run in the folder `out` to one .html file that works without a server.

    The file contains a thumbnail of every image, its key, label and size, and its embedding in 8 bits per number. The
    map is that of the index, or else a PCA. log: receives progress messages.
    Raises UsageError: `not_found` without a run or an index, `damaged_run`, `bad_argument` for more than 10,000 images
    or another suffix, `missing_dependency`, `unsupported_system`; OutputError `output_failed`.
    """
    require_fork("`tessella gallery`")
    folder, path = as_path("the run", out), check_output(as_path("the file", path), (".html",))
    facts = read_run(folder)
    table, points_N2 = _read(folder, facts)
    vectors_ND = l2_normalize(vectors_of(table["vector"], facts["width"]).astype(np.float32))
    stored_ND = quantize(vectors_ND)
    recall, error = loss(vectors_ND, stored_ND)
    rows = table["row"].to_pylist()
    log(f"making {len(rows):,} thumbnails")
    sources = row_sources(folder, facts, rows)
    pictures = list(thumbnails(sources[row] for row in rows))
    data = _columns(table, folder.resolve().name, facts["model"])
    data["threshold"] = SimilarityThreshold.of(facts["model"]).value
    data["points"] = _base64(points_N2.astype("<f4").tobytes())
    data["vectors"] = _base64(stored_ND.tobytes())
    data["pictures"] = [None if picture is None else _base64(picture) for picture in pictures]
    page = make_page(data)
    write_bytes(path, page)
    return GalleryReport(len(rows), sum(picture is None for picture in pictures), len(page), recall, error)


def quantize(vectors_ND: FloatArray) -> NDArray[np.int8]:
    """Return vectors (N,D) as int8 (N,D), each scaled such that its largest number becomes 127."""
    largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True, initial=1e-12)
    return np.rint(vectors_ND * (127 / largest_N1)).astype(np.int8)


def loss(vectors_ND: FloatArray, stored_ND: NDArray[np.int8]) -> tuple[float, float]:
    """Return the recall of ten neighbors by int8 vectors (N,D), and the largest error of a cosine.

    vectors_ND: the exact vectors (N,D), of unit length. Measured on up to 200 evenly spaced images. Neighbors that are
    as near as the tenth within 1e-6 count as found.
    """
    count = len(vectors_ND)
    top = min(NEIGHBORS, count - 1)
    if top < 1:
        return 1.0, 0.0
    sample_Q = np.unique(np.linspace(0, count - 1, COMPARED).astype(np.int64))
    rounded_ND = l2_normalize(stored_ND.astype(np.float32))
    exact_QN = vectors_ND[sample_Q] @ vectors_ND.T
    rounded_QN = rounded_ND[sample_Q] @ rounded_ND.T
    error = float(np.abs(exact_QN - rounded_QN).max())
    for cosines_QN in (exact_QN, rounded_QN):  # an image is not its own neighbor
        cosines_QN[np.arange(len(sample_Q)), sample_Q] = -2
    found_QK = np.argpartition(-rounded_QN, top - 1, axis=1)[:, :top]
    tenth_Q1 = np.partition(exact_QN, count - top, axis=1)[:, count - top, None]
    return float((np.take_along_axis(exact_QN, found_QK, 1) >= tenth_Q1 - 1e-6).mean()), error


def make_page(data: Mapping[str, object]) -> bytes:
    """Return the file for the data of a gallery."""
    sources = {
        file.name: file.read_text("utf-8") for file in (resources.files("tessella") / "serve" / "page").iterdir()
    }
    script, style = join_modules(sources, MAIN), sources[STYLE]
    values = {
        "script": script,
        "style": style,
        "script_hash": _content_hash(script),
        "style_hash": _content_hash(style),
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # one pass, so that nothing in the data is taken for a placeholder
    page = re.sub(r"@(\w+)@", lambda match: values[match[1]], sources[TEMPLATE])
    return page.encode("utf-8", "backslashreplace")


def join_modules(sources: Mapping[str, str], main: str) -> str:
    """Return a module and all that it imports as one module, each once and after those that it imports.

    A file that is opened from a disk cannot import modules. The modules of the page do not rename what they import, and
    no two of them define the same name, which a test checks.
    """
    joined: dict[str, str] = {}

    def add(name: str) -> None:
        if name in joined:
            return
        joined[name] = ""  # modules do not import each other in circles
        for other in _IMPORT.findall(sources[name]):
            add(other)
        del joined[name]
        joined[name] = _EXPORT.sub("", _IMPORT.sub("", sources[name]))

    add(main)
    return "".join(joined.values())


def _content_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read(folder: Path, facts: RunFacts) -> tuple[ArrowTable, FloatArray]:
    """Return the rows of the index by position in the listing, and the map (N,2). Raises UsageError."""
    home = folder / HOME
    if not home.is_dir():
        raise no_index(folder)
    seal = open_seal(home)
    if seal.rows > MAX_IMAGES:
        raise UsageError(
            "bad_argument",
            f"the index has {seal.rows:,} images, a gallery in one file can have up to {MAX_IMAGES:,}",
            hint=f"show them with a server: tessella serve --index {shlex.quote(str(folder))}",
        )
    table = sealed_rows(folder, facts, seal)
    if table is None:
        hint = f"update it: {index_command(folder)}"
        raise UsageError("damaged_run", f"the index of {folder} does not fit the shards of the run", hint=hint)
    table = table.sort_by("row")
    for name in map_file_of(seal):
        return table, read_map(home / name, seal.rows).points
    vectors_ND = l2_normalize(vectors_of(table["vector"], facts["width"]).astype(np.float32))
    return table, project(lambda: [vectors_ND], facts["width"], "pca").points


def _columns(table: ArrowTable, title: str, model: str) -> dict[str, object]:
    """Return the facts of the images, column by column; a label is its place in the list of labels."""
    labels = table["label"].to_pylist()
    counts: dict[str, int] = {}
    for label in labels:
        if label is not None:
            counts[label] = counts.get(label, 0) + 1
    names = sorted(counts, key=lambda label: (-counts[label], label))
    place = {name: i for i, name in enumerate(names)}
    assessed = {name: table[name].to_pylist() for name in ASSESSED_NAMES if name in table.column_names}
    return assessed | {
        "title": title,
        "model": model,
        "labels": [{"label": name, "count": counts[name]} for name in names],
        "keys": table["key"].to_pylist(),
        "label": [None if label is None else place[label] for label in labels],
        "probability": [
            None if value is None or finite_or_none(value) is None else round(value, 4)
            for value in table["probability"].to_pylist()
        ],
        "width": table["width"].to_pylist(),
        "height": table["height"].to_pylist(),
    }


def thumbnails(sources: Iterable[Source]) -> Iterator[bytes | None]:
    """Yield a JPEG file per source, or None for an image that cannot be read any more."""
    # squashed to a square, because the decoding processes make images of one size, and then to the right sides
    square = InputSpec(height=2 * SIDE, width=2 * SIDE, crop_pct=1.0, crop_mode="squash", interpolation="bilinear")
    with IsolatedDecoder(square, mode="fast") as decoder:
        for decoded in decoder.decoded(sources):
            yield None if decoded.pixels is None else encode_jpeg(_upright(decoded, decoded.pixels), QUALITY)


def _upright(decoded: Decoded, square: Pixels) -> Pixels:
    """Return the pixels of a squashed image (S,S,3) with the sides of the image, the longer one SIDE pixels."""
    scale = SIDE / max(decoded.width, decoded.height)
    height, width = (max(round(side * scale), 1) for side in (decoded.height, decoded.width))
    return resize_exact(square, height, width, slice(0, height), slice(0, width), "bilinear")
