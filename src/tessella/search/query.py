"""The rows of a run that are most like an image, a row, a vector, or the mean of several of these.

Letters for shapes: N rows of a file, D width of the embedding, K neighbours.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np

from ..bulk.manifest import as_text
from ..bulk.run_folder import read_run, row_sources
from ..checks import as_path, check_count, checked
from ..errors import UsageError
from ..plots.sheet import Panel, write_sheet
from ..predictor import AnyImage, Predictor, is_single, key_of, load, unit_length
from ..text import escape
from .index import COLUMNS, HOME, TABLE, lance_errors, no_index, open_seal, open_table, sealed_rows
from .nearest import SCAN_ROWS, Approximate, Floats, exact, nearest_of, vectors_of

MOST_ROWS = 1_000_000  # in an answer
IN_MEMORY_ROWS = 20_000  # of an index that is searched without LanceDB, whose import takes seconds
MOST_BYTES = 1 << 30  # of a file that is a query, unpacked
MOST_SQL = 100_000  # characters of a condition
MOST_OPERATORS = 500  # in one; some thousands would overflow the stack of the engine that works on it


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
    image: Any | None = None


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
        self.out = as_path("the run", out)
        self.facts = read_run(self.out)
        if not (self.out / HOME).is_dir():
            raise no_index(self.out)
        self._seal = open_seal(self.out / HOME)
        self.rows, self.plan = self._seal.rows, self._seal.plan
        few = self.rows <= IN_MEMORY_ROWS and not self.plan.probes
        self._memory: Any = sealed_rows(self.out, self.facts, self._seal) if few else None
        self._approximate: Approximate | None = None
        if self._memory is None:
            with self._reading():
                _ = self._table  # in the state that it has now
                if self.plan.probes:
                    self._approximate = Approximate(self.out / HOME, TABLE, self._seal.version)
        if predictor is not None:
            check_fingerprint(self.facts, predictor.fingerprint, predictor.name)
            self.predictor = predictor

    @functools.cached_property
    def _table(self) -> Any:
        """The table of LanceDB in the state of the seal."""
        table, _ = open_table(self.out / HOME, self.facts)
        with self._reading():
            table.checkout(self._seal.version)
        return table

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
        check_count("top", top, MOST_ROWS)
        if not given:
            raise UsageError("bad_argument", "no query was given", hint="give an image, the key of a row, or a vector")
        asked = [one if isinstance(one, Query) else self.query(one) for one in given]
        own = {one.row for one in asked}
        mean_D = np.stack([one.vector for one in asked]).mean(0)
        if np.linalg.norm(mean_D) < 1e-6:
            raise UsageError("bad_argument", "the queries cancel each other out: their mean is zero", hint="give fewer")
        query_D = unit_length(mean_D[None])[0]
        condition = self._condition(where)
        self._check_label(label)
        count = top + len(asked)
        with self._reading():
            in_memory = self._memory is not None and not condition
            if in_memory:
                (scores,), (ids,) = nearest_of(self._memory.to_batches(SCAN_ROWS), query_D[None], count, label)
            elif condition or label is not None or all_rows or self._approximate is None:
                (scores,), (ids,) = exact(self._table, query_D[None], count, condition, label)
            else:
                scores, ids = self._approximate.search(query_D, count, self.plan.probes)
            if in_memory:
                found = self._memory.take(ids).select([*COLUMNS, "_rowid"]).to_pylist()
            else:
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
        name = given.removeprefix("key:")
        for key in dict.fromkeys((name, escape(name), as_text(name))):  # as a run shows it, or as the file is called
            if (not key.isascii() and key != as_text(key)) or "\0" in key:
                continue  # no text, so no key
            found = self._of_key(key)
            if found.num_rows:
                (vector_D,) = vectors_of(found["vector"], self.facts["width"])
                return Query(key, self._checked(vector_D), found["row"][0].as_py())
        if not given.startswith("key:"):
            return None
        hint = "keys are those of `tessella run`; an input that was an error has no embedding"
        raise UsageError("not_found", f"the index of {self.out} has no row {name!r}", hint=hint)

    def _of_key(self, key: str) -> Any:
        """Columns row and vector of the row with this key, if there is one."""
        import pyarrow.compute as pc

        if self._memory is not None:
            return self._memory.filter(pc.equal(self._memory["key"], key)).select(["row", "vector"])
        with self._reading():
            return self._table.search().where(f"key = {quoted(key)}").select(["row", "vector"]).limit(1).to_arrow()

    def _checked(self, vector: Any) -> Floats:
        """Anything -> (D,) float32 of unit length."""
        width = self.facts["width"]
        if vector.shape == (width,) and vector.dtype.kind in "fiu":
            with np.errstate(over="ignore", invalid="ignore"):
                vector_D = vector.astype(np.float64)
                length = np.linalg.norm(vector_D)
            if 0 < length < np.inf:
                return np.asarray(vector_D / length, np.float32)
        raise UsageError(
            "bad_argument",
            f"the query is an array of shape {vector.shape} and type {vector.dtype}, expected ({width},) finite "
            "numbers, not all of them zero, as the embeddings of this run",
        )

    def _check_label(self, label: str | None) -> None:
        if label is not None and label not in self.facts["labels"]:
            import difflib

            near = difflib.get_close_matches(label, self.facts["labels"], 3, 0.5) or self.facts["labels"][:3]
            hint = f"classes are such as {', '.join(map(repr, near))}"
            raise UsageError("bad_argument", f"{self.facts['model']} has no class {label!r}", hint=hint)

    def _condition(self, where: str | None) -> str:
        """The user's SQL in parentheses, so that all of it counts: LanceDB ignores what follows a whole expression."""
        if where is None:
            return ""
        what = f"the condition {where[:200]!r} cannot be used"
        hint = f"""columns are {", ".join(COLUMNS)}; for example "label = 'cat' AND width >= 640\""""
        condition = f"({where}\n)"  # a comment in it ends with its line
        if len(where) > MOST_SQL or not _closed(where):
            raise UsageError("bad_argument", what, hint=hint)
        with lance_errors("bad_argument", what, hint, "it is not true or false for every row"):
            try:
                self._table.count_rows(condition)
            except ValueError as error:
                unknown = re.search(r"No field named (\S+?)\.(?:\s|$)", str(error))
                if not unknown:
                    raise
                raise UsageError("bad_argument", f"{what}: there is no column {unknown[1]!r}", hint=hint) from error
        return condition

    def _from_file(self, path: Path) -> Any:
        """The vector in a .npy file, or the mean of those in a .npz."""
        what = f"{str(path)!r} contains no embeddings"
        hint = "give a vector as .npy, or what `tessella embed --out FILE.npz` writes"
        if not path.is_file():
            if not os.path.lexists(path):
                raise UsageError("not_found", f"there is no file {str(path)!r}")
            raise UsageError("special_file", f"{str(path)!r} is not a regular file", hint=hint)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a mean of no rows at all is refused later; headers of Python 2
                if path.suffix.lower() == ".npy":
                    _check_size(path, path.stat().st_size)
                    return read_array(io.BytesIO(path.read_bytes()), path.stat().st_size)
                with ZipFile(path) as file:
                    _check_size(path, sum(member.file_size for member in file.infolist()))
                    fingerprint, model, vectors_ND = (
                        read_array(io.BytesIO(file.read(f"{name}.npy")), file.getinfo(f"{name}.npy").file_size)
                        for name in ("fingerprint", "model", "embeddings")
                    )
                check_fingerprint(self.facts, str(fingerprint), f"{path}, {model}")
                if vectors_ND.ndim != 2 or vectors_ND.dtype.kind != "f":
                    raise UsageError("bad_argument", what, hint=hint)
                return np.nanmean(vectors_ND, 0)  # an input that was an error is NaN
        except UsageError:
            raise
        except Exception:  # a damaged header raises whatever NumPy, zipfile and Python's own tokenizer do
            raise UsageError("bad_argument", what, hint=hint) from None


def _check_size(path: Path, size: int) -> None:
    """Refuse a file that would fill the memory, such as an archive of zeros."""
    if size > MOST_BYTES:
        raise UsageError(
            "bad_argument", f"{str(path)!r} has {size:,} bytes, the limit of a query is {MOST_BYTES:,}",
            hint="give the embeddings of fewer images, or their mean as .npy",
        )  # fmt: skip


def read_array(file: IO[bytes], size: int) -> Any:
    """An array of numbers or text from a .npy file of `size` bytes; ValueError where its header asks for more."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > size:
        raise ValueError("not an array of numbers, or cut off")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


_SQL = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/|(?<!:):[a-zA-Z_]|[][()+*/%|&^<>=!~:?$-]""", re.DOTALL
)


def _closed(sql: str) -> bool:
    """Whether every parenthesis outside of text and comments is closed, and none that was not opened.

    False also where there is a placeholder (?, $1, :name), at which LanceDB panics.
    """
    parts = _SQL.findall(sql)
    if any(part in ("?", "$") or (part[0] == ":" and len(part) == 2) for part in parts):
        return False
    depth = 0
    for part in parts:
        depth += (part == "(") - (part == ")")
        if depth < 0:
            return False
    return depth == 0 and sum(len(part) == 1 for part in parts) <= MOST_OPERATORS


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
