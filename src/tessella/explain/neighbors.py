"""Why the results of a search are similar to the queries: the part of each query in a score, and links between images.

The score of a result is the cosine similarity of its embedding v with the weighted sum m of the embeddings of the
queries, of which negative ones have negative weights: score = sum_i w_i (u_i . v) / |m|. Each term is the part of one
query, and the parts sum to the score. The similarity u_i . v of a query that is an image is then divided into links.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bulk.run_folder import row_sources
from ..data.source import Source
from ..errors import ImageError, UsageError
from ..extras import require
from ..inputs import AnyImage
from ..plots.sheet import SUFFIXES
from ..search.query import NEGATIVE_WEIGHT, Index, Neighbor, Query, mean_vector
from ..storage import check_output, write_bytes
from ..text import html_text, printable
from .link_figures import LinkRow, about_links, draw_link_rows, draw_links
from .links import Links, PositionVectors, link_vectors, links_problem, position_vectors
from .subject import PreparedImage, Subject

MAX_EXPLAINED = 20  # results in one file, which would otherwise become too long to look at
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 sans-serif; margin: 1.5em auto; max-width: 900px; padding: 0 1em }}
section {{ border-top: 1px solid #bbb; margin-top: 1.5em }}
h2 {{ font-size: 16px; overflow-wrap: anywhere }}
figure {{ margin: 0 0 1em }}
img {{ max-width: 100% }}
figcaption {{ overflow-wrap: anywhere }}
</style></head>
<body><main><h1>{title}</h1><p>{about}</p>
{sections}
</main></body></html>
"""


@dataclass(frozen=True)
class QueryPart:
    """The part of one query in the score of a result, and its links with the result.

    part: a term of the score. negative: whether results should not resemble the query. image: None if the query is a
    vector, or if its image cannot be read; the error then says why. links: None if either image is missing.
    """

    name: str
    part: float
    negative: bool
    image: PreparedImage | None = None
    links: Links | None = None
    error: ImageError | None = None

    @property
    def caption(self) -> str:
        """What the query has to do with the score, in words."""
        sign = "\N{MINUS SIGN}" if self.part < 0 else ""
        reason = f", no image: {self.error.code}" if self.error else ", a vector" if self.image is None else ""
        return f"{self.name}{' (negative)' if self.negative else ''}: {sign}{abs(self.part):.4f} of the score{reason}"


@dataclass(frozen=True)
class NeighborLinks:
    """Why a result was found: the parts of the queries, which sum to its score, and the links with each.

    image: the result as the model sees it; None with an error if it cannot be read. about: how the links were found.
    """

    neighbor: Neighbor
    parts: tuple[QueryPart, ...]
    image: PreparedImage | None
    error: ImageError | None
    about: str


def check_explainable(index: Index, queries: Sequence[Query]) -> None:
    """Check that the results of a search can be explained, before it is made.

    Raises UsageError: `bad_argument` if no query is an image or a row of the run, or if the model of the run is an
    exported one; `missing_dependency` without matplotlib.
    """
    if not any(query.image is not None or query.row is not None for query in queries):
        names = ", ".join(printable(query.name) for query in queries)
        raise UsageError(
            "bad_argument",
            f"the results cannot be explained, because no query is an image: {names} has only a vector",
            hint="give an image or the key of a row",
        )
    require("matplotlib.figure", "drawing figures")
    _ = index.predictor.model


def explain_neighbors(
    index: Index, queries: Sequence[Query], neighbors: Sequence[Neighbor], *, negative: Sequence[Query] = ()
) -> Iterator[NeighborLinks]:
    """Explain the results of `index.search(queries, negative=negative)` in order, each when it is needed.

    A result whose image is gone, has changed or cannot be read has an error; the others are explained.
    Raises UsageError as `check_explainable`, and ImageError if the image of no query can be read.
    """
    check_explainable(index, queries)
    subject = Subject(index.predictor)
    rows = [query.row for query in (*queries, *negative) if query.row is not None]
    sources = row_sources(index.out, index.facts, [*rows, *(neighbor.row for neighbor in neighbors)])
    images = [_query_image(subject, query, sources) for query in (*queries, *negative)]
    read = [image for image in images if isinstance(image, _Prepared)]
    errors = [image for image in images if isinstance(image, ImageError)]
    if not read:
        raise errors[0]
    about = about_links(exact=read[0].vectors.exact, problem=links_problem(subject.model))
    norm = float(np.linalg.norm(mean_vector(queries, negative)))
    weights = [1 / len(queries)] * len(queries) + [-float(NEGATIVE_WEIGHT) / max(len(negative), 1)] * len(negative)
    stored = index.vectors([neighbor.row for neighbor in neighbors]) if neighbors else ()
    for neighbor, vector_D in zip(neighbors, stored, strict=True):
        found = _prepare(subject, sources[neighbor.row], neighbor.key)
        image = found if isinstance(found, _Prepared) else None
        parts = tuple(
            _part(query, weight * float(query.vector @ vector_D) / norm, weight < 0, of_query, image)
            for query, weight, of_query in zip((*queries, *negative), weights, images, strict=True)
        )
        error = found if isinstance(found, ImageError) else None
        yield NeighborLinks(neighbor, parts, None if image is None else image.prepared, error, about)


def write_neighbors(path: str | Path, explained: Sequence[NeighborLinks], title: str) -> None:
    """Draw explained results, at least one, to a .png or a self-contained .html file.

    Raises UsageError: `bad_argument` for other suffixes, `missing_dependency` without matplotlib; OutputError
    `output_failed`.
    """
    path = check_output(path, SUFFIXES)
    if path.suffix.lower() == ".png":
        write_bytes(path, draw_link_rows([row for rank, one in enumerate(explained, 1) for row in _rows(rank, one)]))
        return
    sections = "\n".join(_section(rank, one) for rank, one in enumerate(explained, 1))
    page = _PAGE.format(title=html_text(title), about=html_text(explained[0].about), sections=sections)
    write_bytes(path, page.encode("utf-8", "backslashreplace"))  # a file name may not be valid text


@dataclass(frozen=True)
class _Prepared:
    prepared: PreparedImage
    vectors: PositionVectors


def _prepare(subject: Subject, image: AnyImage, name: str) -> _Prepared | ImageError:
    ((_, prepared),) = subject.prepare([image], [name])
    if isinstance(prepared, ImageError):
        return prepared
    return _Prepared(prepared, position_vectors(subject.model, prepared.x))


def _query_image(subject: Subject, query: Query, sources: dict[int, Source]) -> _Prepared | ImageError | None:
    image = query.image if query.row is None else sources[query.row]
    return None if image is None else _prepare(subject, image, query.name)


def _part(
    query: Query, part: float, negative: bool, of_query: _Prepared | ImageError | None, result: _Prepared | None
) -> QueryPart:
    if not isinstance(of_query, _Prepared):
        return QueryPart(query.name, part, negative, error=of_query)
    links = None if result is None else link_vectors(of_query.vectors, result.vectors)
    return QueryPart(query.name, part, negative, of_query.prepared, links)


def _heading(rank: int, explained: NeighborLinks) -> str:
    neighbor = explained.neighbor
    label = f", {neighbor.label}" if neighbor.label else ""
    reason = f"; no image: {explained.error.code}" if explained.error is not None else ""
    return f"{rank}. {neighbor.key}{label}: score {neighbor.score:.4f}{reason}"


def _pair(part: QueryPart, explained: NeighborLinks) -> tuple[PreparedImage, PreparedImage] | None:
    return None if part.image is None or explained.image is None else (part.image, explained.image)


def _rows(rank: int, explained: NeighborLinks) -> Iterator[LinkRow]:
    heading = _heading(rank, explained)
    if len(explained.parts) == 1:
        (part,) = explained.parts
        yield LinkRow(heading, _pair(part, explained), part.links)
        return
    yield LinkRow(heading)
    for part in explained.parts:
        yield LinkRow(part.caption, _pair(part, explained), part.links, minor=True)


def _section(rank: int, explained: NeighborLinks) -> str:
    lines = [f"<section><h2>{html_text(_heading(rank, explained))}</h2>"]
    for part in explained.parts:
        caption = part.caption if len(explained.parts) > 1 else ""
        picture = ""
        if (pair := _pair(part, explained)) and part.links is not None:
            data = b64encode(draw_links(*pair, part.links)).decode()
            text = f"links between {part.name} and {explained.neighbor.key}"
            picture = f'<img alt="{html_text(text)}" src="data:image/png;base64,{data}">'
        if picture or caption:
            lines.append(f"<figure><figcaption>{html_text(caption)}</figcaption>{picture}</figure>")
    return "\n".join([*lines, "</section>"])
