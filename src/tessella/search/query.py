"""The rows of a run that are most similar to an image, a row, a vector, or the mean of several of these.

Letters for shapes: D width of the embedding.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ..bulk.manifest import as_text
from ..bulk.run_folder import RunFacts, how_to_load, read_run, row_sources
from ..checks import as_path, check_count, checked
from ..data.decode import Mode, Policy
from ..errors import UsageError
from ..extras import need_pyarrow
from ..inputs import AnyImage, is_single, key_of
from ..plots.sheet import Panel, write_sheet
from ..predictor import Predictor, load
from ..results import l2_normalize
from ..text import escape
from . import vector_files
from .alignments import Alignment
from .columns import Columns, as_rows, names_of
from .conditions import check_condition, quoted
from .index import (
    HOME,
    TABLE,
    columns_of,
    index_command,
    is_assessed,
    lance_errors,
    map_file_of,
    no_index,
    open_seal,
    open_table,
    sealed_rows,
)
from .nearest import (
    SCAN_ROWS,
    SCORE_DIGITS,
    Approximate,
    ArrowTable,
    Condition,
    Floats,
    Ints,
    LanceTable,
    exact,
    nearest_of,
    vectors_of,
)
from .projection import Projection, read_map

MAX_ROWS = 1_000_000  # per search
NEGATIVE_WEIGHT = np.float32(0.25)  # of negative queries
TAKEN_ROWS = 10_000  # taken from LanceDB at once
IN_MEMORY_ROWS = 20_000  # an index of at most this many rows is searched without LanceDB, whose import takes seconds


@dataclass(frozen=True)
class Neighbor:
    """A row of the run that was found.

    score: cosine similarity with the query. row: position in the listing. label, probability: the most likely class;
    None if the run has no classes. sha256, bytes: of the file. width, height: in pixels. unknown, familiarity,
    set_size: what the calibration of the model says, see `Assessment`; None for a model without one.
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
    unknown: bool | None = None
    familiarity: float | None = None
    set_size: int | None = None


@dataclass(frozen=True)
class Query:
    """A query vector (D,) float32 of unit length, and what it was made from.

    row: position in the listing if the query is a row of the run. image: the image if it is one.
    """

    name: str
    vector: Floats
    row: int | None = None
    image: AnyImage | None = None


class Index:
    """The index of a run, open for searches in the state that it had when it was opened. Threads may share it.

    facts: the run's `run.json`. rows: number of rows. plan: how they are searched.
    """

    @checked
    def __init__(
        self,
        out: str | Path,
        predictor: Predictor | None = None,
        *,
        memory: int | None = None,
        alignment: Alignment | None = None,
    ):
        """Open the index of the run in the folder `out`.

        predictor: embeds images that are queries. Without it, the run's own model is loaded when it is needed.
        alignment: embed them with another model, the alignment's new one; all rows remain those of the run's model.
        memory: search in memory if the embeddings, 2 bytes per number, take at most this many bytes; None is enough for
        20,000 rows, for which LanceDB is not even imported.
        Raises UsageError: `not_found` without a run or an index, `damaged_run`, `missing_dependency`, and `changed_run`
        if the embeddings of the predictor cannot be compared with those of the run.
        """
        self.out = as_path("the run", out)
        self.facts = read_run(self.out)
        if not (self.out / HOME).is_dir():
            raise no_index(self.out)
        self._seal = open_seal(self.out / HOME)
        self.rows, self.plan = self._seal.rows, self._seal.plan
        if memory is None:
            fits = self.rows <= IN_MEMORY_ROWS and not self.plan.probes
        else:
            fits = 2 * self.rows * self.facts["width"] <= memory
        self._memory: ArrowTable | None = sealed_rows(self.out, self.facts, self._seal) if fits else None
        self._approximate: Approximate | None = None
        if alignment is not None:
            alignment.check_old(self.facts["fingerprint"], self.facts["model"])
        self.alignment = alignment
        if self._memory is None or self.plan.probes:
            with self._reading():
                _ = self._table  # opened now, in its present state
                if self.plan.probes:
                    self._approximate = Approximate(self.out / HOME, TABLE, self._seal.version)
        if predictor is not None:
            check_fingerprint(self.query_facts, predictor.fingerprint, predictor.name)
            self.predictor = predictor

    @property
    def query_facts(self) -> RunFacts:
        """How images that are queries are embedded: as the run, or as the alignment's new embeddings."""
        if self.alignment is None:
            return self.facts
        return cast("RunFacts", dict(self.facts) | self.alignment.new._asdict())

    @property
    def _names(self) -> tuple[str, ...]:
        """The columns of the index, without the vectors."""
        return columns_of(self.facts)

    @functools.cached_property
    def _table(self) -> LanceTable:
        """The table in the version that the seal names."""
        table, _ = open_table(self.out / HOME, self.facts)
        with self._reading():
            table.checkout(self._seal.version)
        return table

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The model that embeds images, loaded on first use."""
        return load_model(self.query_facts)

    @functools.cached_property
    def columns(self) -> Columns:
        """The labels and sizes of all rows, read on first use. Raises UsageError `damaged_run` as `search`."""
        names = names_of(is_assessed(self.facts))
        if self._memory is not None:
            return Columns.of(self._memory.select([*names, "_rowid"]), self.facts["rows"])
        with self._reading():
            table = self._table.search().select([*names]).with_row_id(True).limit(self.rows).to_arrow()
        return Columns.of(table, self.facts["rows"])

    @checked
    def search(
        self,
        queries: AnyImage | Query | Sequence[AnyImage | Query],
        *,
        negative: Sequence[AnyImage | Query] = (),
        top: int = 10,
        where: str | None = None,
        label: str | None = None,
        among: NDArray[np.bool_] | None = None,
        all_rows: bool = False,
    ) -> list[Neighbor]:
        """Find the `top` rows nearest to a query, or to the mean of several; best first, equal scores by key.

        A query is the key of a row ("key:NAME" is never read as a file), a vector (D,), a .npy file, a .npz file of
        `tessella embed`, or an image, as for a Predictor. Rows that are queries are not among the results.
        negative: queries that results should not resemble; a quarter of their mean is subtracted from that of the
        others. where: a condition in SQL on the columns, such as "probability > 0.9 AND width >= 640". label: the
        predicted class. among: whether each row of the listing may be found, (L,) of bool. With a condition, or with
        all_rows, every row is compared, even if there is an approximate index. If more rows than that have the score of
        the last result, the first of them by key are returned; an approximate index may return others.

        Raises UsageError: `bad_argument`, `not_found`, `changed_run`, and `damaged_run`, also if the index was updated
        after it was opened; ImageError for an image that cannot be read.
        """
        if is_single(queries):
            items = [cast("AnyImage | Query", queries)]
        else:
            items = list(cast("Sequence[AnyImage | Query]", queries))
        check_count("top", top, MAX_ROWS)
        if not items:
            raise UsageError("bad_argument", "no query was given", hint="give an image, the key of a row, or a vector")
        self._check_among(among)
        parsed, against = ([self._parsed(item) for item in part] for part in (items, negative))
        query_1D = l2_normalize(mean_vector(parsed, against)[None])
        condition = "" if where is None else check_condition(self._table, where)
        self._check_label(label)
        count = top + len(parsed) + len(against)
        scores, ids, rows = self._nearest(query_1D, count, condition, Condition(label, among), all_rows)
        score = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        query_rows = {query.row for query in [*parsed, *against]}
        neighbors = [Neighbor(score=round(score[row.pop("_rowid")], SCORE_DIGITS), **row) for row in rows]
        others = (neighbor for neighbor in neighbors if neighbor.row not in query_rows)
        return sorted(others, key=lambda neighbor: (-neighbor.score, neighbor.key))[:top]

    def _nearest(
        self, query_1D: Floats, count: int, where: str, condition: Condition, all_rows: bool
    ) -> tuple[Floats, Ints, list[dict[str, Any]]]:
        """Return the scores, the ids and the rows of the `count` nearest rows; of equal scores, the first by key."""
        in_memory = False
        with self._reading():
            if self._approximate is not None and not (where or condition.columns or all_rows):
                scores, ids = self._approximate.search(query_1D[0], count, self.plan.probes)
            elif self._memory is not None and not where:
                in_memory, batches = True, self._memory.to_batches(SCAN_ROWS)
                (scores,), (ids,) = nearest_of(batches, query_1D, count, condition, ties=True)
            else:
                (scores,), (ids,) = exact(self._table, query_1D, count, where, condition, ties=True)
            if len(ids) > count:
                keys = self._rows_with_ids(ids, ["key"], in_memory)
                key = dict(zip(keys["_rowid"].to_pylist(), keys["key"].to_pylist(), strict=True))
                rounded = [round(score, SCORE_DIGITS) for score in scores.tolist()]
                first = sorted(range(len(ids)), key=lambda i: (-rounded[i], key[int(ids[i])]))[:count]
                scores, ids = scores[first], ids[first]
            return scores, ids, self._rows_with_ids(ids, self._names, in_memory).to_pylist()

    def _rows_with_ids(self, ids: Ints, names: Sequence[str], in_memory: bool) -> ArrowTable:
        """Return the ids and other columns of some rows, in any order. in_memory: whether the ids are those there."""
        if in_memory and self._memory is not None:
            return self._memory.take(ids).select([*names, "_rowid"])
        parts = [ids[start : start + TAKEN_ROWS] for start in range(0, max(len(ids), 1), TAKEN_ROWS)]
        queries = [self._table.take_row_ids(part.tolist()).select([*names]).with_row_id() for part in parts]
        return need_pyarrow()[0].concat_tables([query.to_arrow() for query in queries])

    def neighbors(self, rows: Sequence[int] | Ints) -> list[Neighbor]:
        """Return rows (R,) of the listing, in this order, with the score 1. Raises UsageError as `vectors`."""
        found = {row["row"]: row for row in self._take(rows, self._names).to_pylist()}
        return [Neighbor(score=1.0, **found[row]) for row in as_rows(rows).tolist()]

    def vectors(self, rows: Sequence[int] | Ints) -> Floats:
        """Return the stored embeddings (R,D) float32 of unit length of R rows of the listing, in this order.

        Raises UsageError: `not_found` for a row that is not in the index, `damaged_run`.
        """
        wanted_R = as_rows(rows)
        table = self._take(np.unique(wanted_R), ("row", "vector"))
        found = table["row"].to_numpy()
        order = np.argsort(found)
        vectors_RD = vectors_of(table["vector"], self.facts["width"]).astype(np.float32)
        return l2_normalize(vectors_RD[order[np.searchsorted(found[order], wanted_R)]])

    def _take(self, rows: Sequence[int] | Ints, names: Sequence[str]) -> ArrowTable:
        """Return columns of some rows of the listing, in any order. Raises UsageError as `vectors`."""
        ids = self.columns.ids[self.columns.positions(rows)]
        with self._reading():
            return self._rows_with_ids(ids, names, self._memory is not None).select([*names])

    def _parsed(self, item: AnyImage | Query) -> Query:
        return item if isinstance(item, Query) else self.query(item)

    def _check_among(self, among: NDArray[np.bool_] | None) -> None:
        if among is not None and (among.shape != (self.facts["rows"],) or among.dtype != bool):
            expected = f"({self.facts['rows']},) of bool, one entry per row of the listing"
            raise UsageError("bad_argument", f"among is {among.shape} of {among.dtype}, expected {expected}")

    def row_query(self, row: int) -> Query:
        """Return a row of the listing as a query. Raises UsageError as `vectors`."""
        (vector_D,) = self.vectors([row])
        (key,) = self._take([row], ("key",))["key"].to_pylist()
        return Query(key, vector_D, row)

    def query(self, item: AnyImage) -> Query:
        """Convert one query, as `search` does. Raises as `search`."""
        if isinstance(item, str) and (row := self._row_query(item)):
            return row
        if isinstance(item, np.ndarray) and item.ndim == 1:
            return Query("vector", self._unit_vector(item))
        if isinstance(item, str | os.PathLike) and os.fspath(item).lower().endswith(vector_files.SUFFIXES):
            return Query(str(item), self._unit_vector(self._stored_vector(Path(item))))
        vector_D = self.predictor.embed(item)
        if self.alignment is not None:
            (vector_D,) = self.alignment(vector_D[None])
        return Query(key_of(item, 0), vector_D, image=item)

    def _stored_vector(self, path: Path) -> NDArray[np.generic]:
        """Return the vector (D,) in a file; embeddings of the alignment's new model are aligned."""
        alignment, is_new = self.alignment, False

        def check(fingerprint: str, name: str) -> None:
            nonlocal is_new
            is_new = alignment is not None and fingerprint == alignment.new.fingerprint
            if not is_new:
                check_fingerprint(self.facts, fingerprint, name)

        vector = vector_files.read_vector(path, check)
        if alignment is None or not is_new:
            return vector
        return alignment(np.asarray(vector, np.float32)[None])[0]

    def map(self) -> Projection | None:
        """Return the map of the rows as points (rows,2), in the order of `Columns.rows`; None if there is none.

        `build_index` computes it. Raises UsageError `damaged_run` if the index was updated after it was opened.
        """
        for name in map_file_of(self._seal):
            with self._reading():
                return read_map(self.out / HOME / name, self.rows)
        return None

    def sheet(self, path: str | Path, queries: Sequence[Query], neighbors: Sequence[Neighbor]) -> None:
        """Draw the queries that are images or rows, then the neighbors in order, to a .png or .html file.

        Raises UsageError: `bad_argument`, `missing_dependency`; OutputError `output_failed`.
        """
        query_rows = [query.row for query in queries if query.row is not None]
        sources = row_sources(self.out, self.facts, [*query_rows, *(neighbor.row for neighbor in neighbors)])
        panels = []
        for query in queries:
            image = query.image if query.row is None else sources[query.row]
            panels += [] if image is None else [Panel(image, ("query", query.name))]  # type: ignore[arg-type]
        for rank, neighbor in enumerate(neighbors, 1):
            label = () if neighbor.label is None else (f"{neighbor.label} {100 * (neighbor.probability or 0):.0f} %",)
            panels.append(Panel(sources[neighbor.row], (f"{rank}. {neighbor.score:.4f}", *label, neighbor.key)))
        write_sheet(path, panels, f"Nearest in {self.out}")

    def _reading(self) -> AbstractContextManager[None]:
        message = f"{self.out / HOME} was changed after it was opened, or is damaged"
        return lance_errors("damaged_run", message, f"open it again; if that does not help: {index_command(self.out)}")

    def _row_query(self, text: str) -> Query | None:
        """Return the row with this key; raises UsageError `not_found` if "key:NAME" names no row."""
        name = text.removeprefix("key:")
        for key in dict.fromkeys((name, escape(name), as_text(name))):  # as a run shows it, or the name of the file
            if (not key.isascii() and key != as_text(key)) or "\0" in key:
                continue  # not valid text, so not a key
            rows = self._rows_with_key(key)
            if rows.num_rows:
                (vector_D,) = vectors_of(rows["vector"], self.facts["width"])
                return Query(key, self._unit_vector(vector_D), rows["row"][0].as_py())
        if not text.startswith("key:"):
            return None
        hint = "use the key of a row of the run; inputs with an error have no embedding"
        raise UsageError("not_found", f"the index of {self.out} has no row {name!r}", hint=hint)

    def _rows_with_key(self, key: str) -> ArrowTable:
        """Return the columns row and vector of the row with this key, if there is one."""
        import pyarrow.compute as pc

        if self._memory is not None:
            return self._memory.filter(pc.equal(self._memory["key"], key)).select(["row", "vector"])
        with self._reading():
            return self._table.search().where(f"key = {quoted(key)}").select(["row", "vector"]).limit(1).to_arrow()

    def _unit_vector(self, vector: NDArray[np.generic]) -> Floats:
        """Return a vector (D,) of any number type as float32 of unit length. Raises UsageError for any other array."""
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
            hint = f"classes include {', '.join(map(repr, suggested_classes(label, self.facts['labels'])))}"
            raise UsageError("bad_argument", f"{self.facts['model']} has no class {label!r}", hint=hint)


def mean_vector(queries: Sequence[Query], negative: Sequence[Query] = ()) -> Floats:
    """Return the mean (D,) of the queries minus a quarter of the mean of the negative ones.

    The quarter was measured (docs/results.md): more would drop the results that have much in common with both.
    Raises UsageError `bad_argument` if nothing is left.
    """
    mean_D: Floats = np.stack([query.vector for query in queries]).mean(0)
    if negative:
        mean_D = mean_D - NEGATIVE_WEIGHT * np.stack([query.vector for query in negative]).mean(0)
    if np.linalg.norm(mean_D) < 1e-6:
        raise UsageError("bad_argument", "the queries cancel each other out: their mean is zero", hint="give fewer")
    return mean_D


def suggested_classes(word: str, classes: Sequence[str]) -> list[str]:
    """Return class names to offer for a word that is none of them.

    At most five names that contain the word, then those with a word that begins or ends with it; if there are none, at
    most three similar names, or the first three.
    """
    text = re.escape(word.casefold())
    patterns = (rf"(?<!\w){text}(?!\w)", rf"(?<!\w){text}|{text}(?!\w)")
    matching = [name for pattern in patterns for name in classes if word and re.search(pattern, name.casefold())]
    return list(dict.fromkeys(matching))[:5] or difflib.get_close_matches(word, classes, 3, 0.5) or list(classes[:3])


def check_fingerprint(facts: RunFacts, fingerprint: str, name: str) -> None:
    """Refuse embeddings that cannot be compared with those of the run. Raises UsageError `changed_run`."""
    if fingerprint != facts["fingerprint"]:
        settings = ", ".join((facts["model"], facts["transform"], facts["policy"], facts["precision"]))
        raise UsageError(
            "changed_run",
            f"the run has the fingerprint {facts['fingerprint']} ({settings}), the query {fingerprint} ({name})",
            hint="embed the query with the run's model, weights and settings, or run the collection with the query's; "
            f"the model: {how_to_load(facts['model'])}",
        )


def load_model(facts: RunFacts, name: str | None = None, checkpoint: str | None = None) -> Predictor:
    """Load the model of a run with the settings of the run, for a few images.

    name, checkpoint: current location of the same model. Raises UsageError `changed_run` if its embeddings cannot be
    compared with those of the run; otherwise raises as `tessella.load`.
    """
    predictor = open_model(facts, name, checkpoint)
    check_fingerprint(facts, predictor.fingerprint, name or facts["model"])
    return predictor


def open_model(
    facts: RunFacts,
    name: str | None,
    checkpoint: str | None,
    mode: Literal["latency", "throughput"] = "latency",
) -> Predictor:
    """Load a model with the settings of a run, as `load_model` does, without comparing fingerprints."""
    from ..engine.exported import is_exported

    name = name or facts["model"]
    precision = engine = "auto"
    if not (name.startswith("local-dir:") and is_exported(Path(name.removeprefix("local-dir:")))):
        lossy = facts["precision"] != "float32"  # rounded differently by each engine
        precision, engine = facts["precision"], facts["engine"] if lossy else "auto"
    return load(
        name,
        checkpoint_path=checkpoint,
        precision=precision,
        engine=engine,
        mode=mode,
        transform=cast("Mode", facts["transform"]),
        policy=cast("Policy", facts["policy"]),
    )
