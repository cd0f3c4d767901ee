"""The rows of a run that are most like an image, a row, a vector, or the mean of several of these.

Letters for shapes: N rows of a file, D width of the embedding, K neighbours.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..checks import checked
from ..errors import UsageError
from ..predictor import AnyImage, Predictor, is_single, key_of, load, unit_length
from .bulk import read_run
from .index import COLUMNS, HOME, TABLE, lance_errors, no_index, open_table
from .manifest import as_text
from .nearest import Approximate, Floats, exact, vectors_of
from .sheet import Panel, row_sources, write_sheet


@dataclass(frozen=True)
class Neighbour:
    """A row of the run. score: cosine with the query; row: its place in the listing; label, probability: of its most
    likely class, None of a run without classes; sha256, bytes: of the file; width, height: pixels.
    """

    key: str
    score: float
    row: int
    source: str
    sha256: str
    bytes: int
    width: int
    height: int
    label: str | None
    probability: float | None


@dataclass(frozen=True)
class Query:
    """vector: (D,) float32 of unit length; row: of the run, where it is one; image: where it is one."""

    name: str
    vector: Floats
    row: int | None = None
    image: AnyImage | None = None


class Index:
    """The index of a run, open for searches, in the state that was whole when it was opened; threads may share it.

    facts: of the run; rows: their number; plan: how they are searched.
    """

    @checked
    def __init__(self, out: str | Path, predictor: Predictor | None = None):
        """predictor: embeds images; None loads the run's own model when there is an image to embed.

        Raises UsageError: not_found without run or index, damaged_run, missing_dependency; changed_run where the
        predictor's embeddings are others than the run's.
        """
        self.out = Path(out)
        self.facts = read_run(self.out)
        if not (self.out / HOME).is_dir():
            raise no_index(self.out)
        self._table, seal = open_table(self.out / HOME, self.facts)
        self.rows, self.plan = seal.rows, seal.plan
        with self._reading():
            self._table.checkout(seal.version)
            self._approximate = Approximate(self.out / HOME, TABLE, seal.version) if seal.plan.probes else None
        if predictor is not None:
            check_fingerprint(self.facts, predictor.fingerprint, predictor.name)
            self.predictor = predictor

    @functools.cached_property
    def predictor(self) -> Predictor:
        return load_model(self.facts)

    @checked
    def search(
        self, queries: AnyImage | Query | Sequence[AnyImage | Query], *, top: int = 10, where: str | None = None,
        label: str | None = None, all_rows: bool = False,
    ) -> list[Neighbour]:  # fmt: skip
        """The `top` rows nearest to a query, or to the mean of several; best first, of equal scores by key.

        A query is a key of the run ("key:NAME" is never taken for a file), a one-dimensional array, a .npy file, a .npz
        file that `tessella embed` wrote, or an image as a Predictor takes it. Rows asked for by key are not among their
        neighbours. where: a condition in SQL on the columns, such as "probability > 0.9 AND width >= 640"; label: of
        the predicted class. With a condition, or all_rows, every row is compared.

        Raises UsageError: bad_argument, not_found, changed_run, damaged_run, also after an update that ended meanwhile;
        ImageError for an image that cannot be read.
        """
        given: Sequence[Any] = [queries] if is_single(queries) else list(queries)  # type: ignore[arg-type]
        if not given or top < 1:
            raise UsageError("bad_argument", f"{len(given)} queries for {top} rows, expected one or more of both")
        asked = [one if isinstance(one, Query) else self.query(one) for one in given]
        own = {one.row for one in asked}
        mean_D = np.stack([one.vector for one in asked]).mean(0)
        if np.linalg.norm(mean_D) < 1e-6:
            raise UsageError("bad_argument", "the queries cancel each other out: their mean is zero", hint="give fewer")
        query_D = unit_length(mean_D[None])[0]
        condition = self._condition(where, label)
        count = top + len(asked)
        with self._reading():
            if condition or all_rows or self._approximate is None:
                (scores,), (ids,) = exact(self._table, query_D[None], count, condition)
            else:
                scores, ids = self._approximate.search(query_D, count, self.plan.probes)
            found = self._table.take_row_ids(ids.tolist()).select([*COLUMNS]).with_row_id().to_arrow().to_pylist()
        score = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        rows = [Neighbour(score=round(score[row.pop("_rowid")], 6), **row) for row in found]
        return sorted((one for one in rows if one.row not in own), key=lambda one: (-one.score, one.key))[:top]

    def query(self, given: AnyImage) -> Query:
        """What `search` makes of one query. Raises as it does."""
        if isinstance(given, str) and (row := self._row_of(given)):
            return row
        if isinstance(given, np.ndarray) and given.ndim == 1:
            return Query("vector", self._checked(given))
        if isinstance(given, str | os.PathLike) and os.fspath(given).lower().endswith((".npy", ".npz")):
            return Query(str(given), self._checked(self._from_file(Path(given))))
        return Query(key_of(given, 0), self.predictor.embed(given), image=given)

    def sheet(self, path: str | Path, queries: Sequence[Query], found: Sequence[Neighbour]) -> None:
        """A picture, .png or .html, of the queries that are images or rows, and of what was found, in order.

        Raises UsageError: bad_argument, output_failed, missing_dependency.
        """
        asked = [one.row for one in queries if one.row is not None]
        sources = row_sources(self.out, self.facts, [*asked, *(one.row for one in found)])
        panels = []
        for one in queries:
            image = one.image if one.row is None else sources[one.row]
            panels += [] if image is None else [Panel(image, ("query", one.name))]
        for rank, near in enumerate(found, 1):
            label = () if near.label is None else (f"{near.label} {100 * (near.probability or 0):.0f} %",)
            panels.append(Panel(sources[near.row], (f"{rank}. {near.score:.4f}", *label, near.key)))
        write_sheet(path, panels, f"Nearest in {self.out}")

    def _reading(self) -> AbstractContextManager[None]:
        what = f"{self.out / HOME} was changed after it was opened, or is damaged"
        return lance_errors("damaged_run", what, f"open it again; if that does not help: tessella index {self.out}")

    def _row_of(self, given: str) -> Query | None:
        """The row whose key this is; UsageError `not_found` where "key:NAME" says that there must be one."""
        key = as_text(given.removeprefix("key:"))
        with self._reading():
            found = self._table.search().where(f"key = {quoted(key)}").select(["row", "vector"]).limit(1).to_arrow()
        if found.num_rows:
            (vector_D,) = vectors_of(found["vector"], self.facts["width"])
            return Query(key, self._checked(vector_D), found["row"][0].as_py())
        if not given.startswith("key:"):
            return None
        hint = "keys are those of `tessella run`; an input that was an error has no embedding"
        raise UsageError("not_found", f"the index of {self.out} has no row {key!r}", hint=hint)

    def _checked(self, vector: Any) -> Floats:
        """Anything -> (D,) float32 of unit length."""
        width = self.facts["width"]
        if vector.shape == (width,) and vector.dtype.kind in "fiu":
            vector_D = vector.astype(np.float64)
            if 0 < (length := np.linalg.norm(vector_D)) < np.inf:
                return np.asarray(vector_D / length, np.float32)
        raise UsageError(
            "bad_argument",
            f"the query is an array of shape {vector.shape} and type {vector.dtype}, expected ({width},) finite "
            "numbers, not all of them zero, as the embeddings of this run",
        )

    def _condition(self, where: str | None, label: str | None) -> str:
        if label is not None and label not in self.facts["labels"]:
            import difflib

            near = difflib.get_close_matches(label, self.facts["labels"], 3, 0.5) or self.facts["labels"][:3]
            hint = f"classes are such as {', '.join(map(repr, near))}"
            raise UsageError("bad_argument", f"{self.facts['model']} has no class {label!r}", hint=hint)
        condition = [] if label is None else [f"label = {quoted(label)}"]
        if where is not None:
            condition.append(f"({where}\n)")  # a comment or a semicolon in it ends nothing
            try:
                self._table.count_rows(condition[-1])
            except (OSError, RuntimeError, ValueError):
                hint = f"""columns are {", ".join(COLUMNS)}; for example "label = 'cat' AND width >= 640\""""
                raise UsageError("bad_argument", f"the condition {where!r} cannot be used", hint=hint) from None
        return " AND ".join(condition)

    def _from_file(self, path: Path) -> Any:
        """The vector in a .npy file, or the mean of those in a .npz."""
        try:
            told = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            if isinstance(told, np.ndarray):
                return told
            fingerprint, vectors_ND = str(told["fingerprint"]), told["embeddings"]
            check_fingerprint(self.facts, fingerprint, f"{path}, {told['model']}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of no rows at all, which is refused later
                return np.nanmean(vectors_ND, 0)  # an input that was an error is NaN
        except FileNotFoundError:
            raise UsageError("not_found", f"there is no file {str(path)!r}") from None
        except UsageError:
            raise
        except (OSError, ValueError, EOFError, KeyError, BadZipFile):
            raise UsageError(
                "bad_argument", f"{str(path)!r} has no embeddings in it",
                hint="give a vector as .npy, or what `tessella embed --out FILE.npz` writes",
            ) from None  # fmt: skip


def quoted(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def check_fingerprint(facts: Mapping[str, Any], fingerprint: str, name: str) -> None:
    """Refuse embeddings that cannot be compared with those of the run: UsageError `changed_run`."""
    if fingerprint != facts["fingerprint"]:
        made = ", ".join(str(facts[name]) for name in ("model", "transform", "policy", "precision"))
        raise UsageError(
            "changed_run",
            f"the run has the fingerprint {facts['fingerprint']} ({made}), the query {fingerprint} ({name})",
            hint="embed the query with the run's model, weights and settings, or run the collection with the query's",
        )


def load_model(facts: Mapping[str, Any], name: str | None = None, checkpoint: str | None = None) -> Predictor:
    """The model of a run with its settings, for a few images. name, checkpoint: of the same model, where it lies now.

    Raises UsageError `changed_run` where it gives other embeddings; else as `tessella.load`.
    """
    from ..engine.exported import is_exported

    name = name or facts["model"]
    settings: dict[str, Any] = dict(transform=facts["transform"], policy=facts["policy"], mode="latency")
    if not (name.startswith("local-dir:") and is_exported(Path(name.removeprefix("local-dir:")))):
        lossy = facts["precision"] != "float32"  # which each engine rounds in its own way
        settings |= dict(precision=facts["precision"], engine=facts["engine"] if lossy else "eager")
    predictor = load(name, checkpoint_path=checkpoint, **settings)
    check_fingerprint(facts, predictor.fingerprint, name)
    return predictor
