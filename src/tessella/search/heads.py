"""Heads: user-defined classes, fitted to a few images of a run that show the class and a few that do not.

    RUN/heads/NAME.json   a linear classifier on embeddings, what it was fitted on, and the model that it belongs to

A head is a logistic regression on stored embeddings of unit length, so fitting takes a fraction of a second and the
model is not needed. Half of the weight of the loss is on the images marked yes, half on the others: 90 % of that on
500 rows that are spread over the index ("rows of the background"), 10 % on the images marked no. The background keeps
the head from depending on the few differences among marked images. It contains images of the class, too, which matters
little.

Measured on the 713 validation and test images of the clothing data set with `convmixer_384_8_ks5_p8.photographs`, whose
training did not use them: mean average precision of the ranking of all other images, for each of the ten classes and
five draws of 3, 5 and 10 marked images per side (`scripts/bench heads`). "random": images marked no are drawn at
random; "hard": they are the most similar images of other classes.

| method | random: 3, 5, 10 | hard: 3, 5, 10 |
| --- | --- | --- |
| head, as it is | 0.59, 0.64, 0.69 | 0.63, 0.69, 0.77 |
| head without background | 0.53, 0.60, 0.64 | 0.34, 0.34, 0.35 |
| cosine with the mean of yes | 0.56, 0.60, 0.61 | 0.59, 0.65, 0.70 |
| mean of yes - 0.25 x mean of no | 0.58, 0.61, 0.64 | 0.61, 0.68, 0.73 |
| mean of yes - 0.5 x mean of no | 0.58, 0.62, 0.65 | 0.56, 0.63, 0.66 |
| mean of yes - 1 x mean of no | 0.54, 0.60, 0.64 | 0.32, 0.32, 0.33 |

Letters for shapes: N rows, D width of the embedding, M rows in the loss.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..bulk.run_folder import RunFacts, require_run
from ..checks import as_path, checked, show
from ..errors import OutputError, UsageError, WeightsError
from ..predictor import Predictor
from ..results import FloatArray, Prediction, Record, is_finite
from ..storage import folder_lock, json_hash, read_regular, sealed_bytes, write_atomic
from .alignments import Making
from .query import Index, Neighbor, Query, open_model

HEADS, SUFFIX, SEAL_KEY, FORMAT = "heads", ".json", "sha256", 1
STRENGTH = 0.01  # of the L2 penalty, relative to the mean loss
BACKGROUND_ROWS, BACKGROUND_SHARE = 500, 0.9  # rows that stand for "no", and their share of its weight
MAX_MARKED = 500  # images per side
MAX_BYTES = 16 << 20  # of a file
STEPS, TOLERANCE = 50, 1e-10  # of Newton's method

Doubles = NDArray[np.float64]


class Marked(NamedTuple):
    """An image that a head was taught with: its row in the listing, key, and the SHA-256 of its file."""

    row: int
    key: str
    sha256: str


class _StoredHead(msgspec.Struct):
    """The fields of a `Head` in a file."""

    name: str
    model: str
    fingerprint: str
    transform: str
    policy: str
    precision: str
    engine: str
    weights: Annotated[list[float], msgspec.Meta(min_length=1)]
    bias: float
    yes: tuple[Marked, ...]
    no: tuple[Marked, ...]
    background: Annotated[int, msgspec.Meta(ge=0)]
    separable: bool


class Fit(NamedTuple):
    """The solution of `fit_linear`: weights (D,), bias, and whether it separates the images marked yes and no."""

    weights: FloatArray
    bias: float
    separable: bool


@dataclass(frozen=True)
class Head:
    """A linear classifier on embeddings of unit length, with one class.

    name: of the class. weights: (D,) float32. bias: a number. yes, no: the images that it was taught with. background:
    number of rows that stood for "no". separable: whether all images marked yes score higher than all marked no.
    model, fingerprint, transform, policy, precision, engine: how the embeddings are made.
    """

    name: str
    model: str
    fingerprint: str
    transform: str
    policy: str
    precision: str
    engine: str
    weights: FloatArray
    bias: float
    yes: tuple[Marked, ...]
    no: tuple[Marked, ...] = ()
    background: int = 0
    separable: bool = True

    @classmethod
    @checked
    def fit(cls, index: Index, name: str, yes: Sequence[int], no: Sequence[int] = ()) -> Head:
        """Fit a head for the class `name` to rows of a run, by their positions in the listing.

        yes: rows that show the class. no: rows that do not. Equal marks in any order give the same head.
        Raises UsageError: `bad_argument`, `not_found` for a row that is not in the index, `damaged_run`.
        """
        name = check_head_name(name)
        yes_rows, no_rows = _check_marks(yes, no)
        background = background_rows(index, [*yes_rows, *no_rows])
        if not no_rows and not len(background):
            raise UsageError("bad_argument", "there is no other image", hint="mark an image as no, or use a larger run")
        fit = fit_linear(index.vectors(yes_rows), index.vectors(no_rows), index.vectors(background))
        rows = index.neighbors([*yes_rows, *no_rows])
        marked = {row.row: Marked(row.row, row.key, row.sha256) for row in rows}
        identity = {key: str(index.facts.get(key, "")) for key in IDENTITY}
        return cls(
            name=name,
            **identity,
            weights=fit.weights,
            bias=fit.bias,
            yes=tuple(marked[row] for row in yes_rows),
            no=tuple(marked[row] for row in no_rows),
            background=len(background),
            separable=fit.separable,
        )

    def score(self, vectors: FloatArray) -> FloatArray:
        """Return the probability (N,) float32 of the class for embeddings (N,D) of unit length.

        It is the probability if images of the class were as frequent as others. Raises UsageError `bad_argument` for
        embeddings of another width.
        """
        vectors_ND = np.asarray(vectors, np.float32)
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != len(self.weights):
            expected = f"(N,{len(self.weights)})"
            raise UsageError("bad_argument", f"the embeddings are {vectors_ND.shape}, expected {expected}")
        return sigmoid(vectors_ND @ self.weights + np.float32(self.bias))

    def rank(self, index: Index, *, top: int = 50, among: NDArray[np.bool_] | None = None) -> list[Neighbor]:
        """Return the `top` rows of an index with the highest probabilities, as scores; all rows are compared.

        Rows that the head was taught with are included. among: (L,) as in `Index.search`. Raises UsageError
        `changed_run` if the head belongs to another model; otherwise as `Index.search`.
        """
        self.check_fingerprint(index.facts["fingerprint"], index.facts["model"])
        length = float(np.linalg.norm(self.weights))
        if not length:  # the images marked yes and no are the same
            raise UsageError(
                "bad_argument", "the head gives every image the same probability", hint="mark other images"
            )
        query = Query(self.name, self.weights / np.float32(length))
        found = index.search(query, top=top, among=among, all_rows=True)
        scores_N = sigmoid(np.array([row.score for row in found]) * length + self.bias)
        return [
            dataclasses.replace(row, score=round(score, 6)) for row, score in zip(found, scores_N.tolist(), strict=True)
        ]

    def record(self, record: Record) -> Record:
        """Return a record that has the embedding of an image as one with the class and its probability."""
        if record.embedding is None:
            return record
        (score,) = self.score(record.embedding[None]).tolist()
        return Record(record.key, record.status, record.message, (Prediction(0, self.name, score),))

    def check_fingerprint(self, fingerprint: str, model: str) -> None:
        """Raise UsageError `changed_run` unless embeddings with this fingerprint, of this model, fit the head."""
        if fingerprint != self.fingerprint:
            settings = ", ".join((self.model, self.transform, self.policy, self.precision))
            raise UsageError(
                "changed_run",
                f"the head {self.name!r} belongs to {settings} (fingerprint {self.fingerprint}), "
                f"not to {model} ({fingerprint})",
                hint="use the model, weights and settings of the run that the head was taught with",
            )

    def load_model(
        self, name: str | None = None, checkpoint: str | None = None, mode: Literal["latency", "throughput"] = "latency"
    ) -> Predictor:
        """Load the model whose embeddings the head classifies.

        name, checkpoint: its current location. mode: what it is optimized for. Raises UsageError `changed_run` for
        another model; otherwise raises as `tessella.load`.
        """
        facts = cast(RunFacts, {key: getattr(self, key) for key in IDENTITY})
        predictor = open_model(facts, name, checkpoint, mode)
        self.check_fingerprint(predictor.fingerprint, predictor.name)
        return predictor

    @checked
    def save(self, out: str | Path, *, replace: bool = False) -> Path:
        """Write the head to RUN/heads/NAME.json for the run in the folder `out`, and return the path.

        replace: also if a head has this name. Raises UsageError: `exists` otherwise, `not_found` without a run, `busy`;
        OutputError `output_failed`.
        """
        out = as_path("the run", out)
        require_run(out)
        path = head_path(out, self.name)
        values = asdict(self) | dict(weights=self.weights.tolist(), format=FORMAT, kind="head")
        with folder_lock(path.parent, hint="try again"):
            try:
                if path.exists() and not replace:
                    hint = "choose another name, or replace it"
                    raise UsageError("exists", f"the run already has a head {self.name!r}", hint=hint)
                write_atomic(path, sealed_bytes(values, SEAL_KEY))
            except OSError as error:
                message = f"{str(path)!r} could not be written: {error.strerror or error}"
                raise OutputError("output_failed", message) from None
        return path

    @classmethod
    @checked
    def load(cls, where: str | Path) -> Head:
        """Read a head from a file, or by the name "RUN:NAME".

        Raises UsageError `not_found`, WeightsError `bad_format` for a file that is damaged or no head.
        """
        path = _find(where)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("too large")
            values = json.loads(read_regular(path))
            if values.pop(SEAL_KEY) != json_hash(values) or values.pop("format") != FORMAT:
                raise ValueError("damaged, or of another version")
            stored = msgspec.structs.asdict(msgspec.convert(values, _StoredHead))
            check_head_name(stored["name"])
            with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, which is checked next
                weights = np.array(stored["weights"], np.float32)
            head = cls(**stored | dict(weights=weights))
            if not is_finite(head.weights) or not np.isfinite(head.bias):
                raise ValueError("not a linear classifier")
        except OSError as error:
            raise UsageError("not_found", f"{str(path)!r} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError):
            raise WeightsError("bad_format", f"{str(path)!r} is damaged, or no head of a run") from None
        return head


IDENTITY = Making._fields


def list_heads(out: str | Path) -> list[str]:
    """Return the names of the heads of the run in the folder `out`, in alphabetical order."""
    folder = as_path("the run", out) / HEADS
    try:
        names = [path.name.removesuffix(SUFFIX) for path in folder.iterdir() if path.suffix == SUFFIX]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))


# --- names ------------------------------------------------------------------------------------------------------------

MAX_NAME = 64  # characters
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows
_ALLOWED = re.compile(r"\w(?:[\w .+&'-]*[\w+])?")


def check_head_name(name: str) -> str:
    """Return the name of a head in Unicode normal form C, if it is also a safe name of a file on every system.

    Raises UsageError `bad_argument`.
    """
    normal = unicodedata.normalize("NFC", name)
    is_short = len(normal) <= MAX_NAME and len(normal.encode("utf-8", "replace")) <= 200
    if not is_short or not _ALLOWED.fullmatch(normal) or _RESERVED.fullmatch(normal):
        raise UsageError(
            "bad_argument",
            f"the name of the head is {show(name)}",
            hint=f"use up to {MAX_NAME} letters, digits and spaces, such as 'red shoes'; . + & ' - may be inside",
        )
    return normal


def head_path(out: Path, name: str) -> Path:
    """Return the path of a head in the run `out`. Raises UsageError `bad_argument` for a name that is not allowed."""
    return out / HEADS / f"{check_head_name(name)}{SUFFIX}"


def _find(where: str | Path) -> Path:
    path = as_path("the head", where)
    if path.is_file():
        return path
    out, separator, name = str(where).rpartition(":")
    if separator and out:
        path = head_path(Path(out), name)
        if path.is_file():
            return path
        names = list_heads(out)
        if names or Path(out).is_dir():
            teach = f"teach one: tessella serve --index {shlex.quote(out)}"
            hint = f"it has {', '.join(map(repr, names[:10]))}" if names else teach
            raise UsageError("not_found", f"{out} has no head {name!r}", hint=hint)
    raise UsageError("not_found", f"there is no head {str(where)!r}", hint="give a file, or RUN:NAME")


# --- fitting ----------------------------------------------------------------------------------------------------------


def _check_marks(yes: Sequence[int], no: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the rows without repetitions, in rising order."""
    yes_rows, no_rows = sorted({int(row) for row in yes}), sorted({int(row) for row in no})
    if not yes_rows:
        raise UsageError("bad_argument", "no image is marked yes", hint="mark at least one")
    if max(len(yes_rows), len(no_rows)) > MAX_MARKED:
        raise UsageError("bad_argument", f"more than {MAX_MARKED} images are marked", hint="mark fewer")
    if both := sorted({*yes_rows} & {*no_rows}):
        raise UsageError("bad_argument", f"row {both[0]} is marked yes and no", hint="remove one of the marks")
    return yes_rows, no_rows


def background_rows(index: Index, marked: Sequence[int]) -> NDArray[np.int64]:
    """Return up to 500 rows (N,) that are spread evenly over an index, without the marked ones."""
    places = np.unique(np.linspace(0, max(index.rows - 1, 0), BACKGROUND_ROWS).astype(np.int64))[: index.rows]
    return np.setdiff1d(index.columns.rows[places], marked)


def fit_linear(yes_ND: FloatArray, no_ND: FloatArray, background_ND: FloatArray) -> Fit:
    """Fit a logistic regression to embeddings (N,D) of unit length, as the text at the top says, by Newton's method.

    The loss is the weighted mean of the cross-entropies plus STRENGTH / 2 * |weights|^2. The solution is a combination
    of the M embeddings, so the system to solve has their number and not the width D.
    """
    x_MD = np.concatenate((yes_ND, no_ND, background_ND)).astype(np.float64)
    target_M = np.zeros(len(x_MD))
    target_M[: len(yes_ND)] = 1
    background = BACKGROUND_SHARE if len(no_ND) else 1.0
    share_of_no = 1 - background if len(background_ND) else 1.0
    shares = ((len(yes_ND), 1.0), (len(no_ND), share_of_no), (len(background_ND), background))
    weight_M = np.concatenate([np.full(count, share / 2 / max(count, 1)) for count, share in shares])
    mean_D = weight_M @ x_MD
    z_MD = x_MD - mean_D
    factors_M, offset = _newton(z_MD @ z_MD.T, target_M, weight_M)
    weights_D = (factors_M @ z_MD).astype(np.float32)
    logits_M = x_MD @ weights_D
    marked = len(yes_ND) + len(no_ND)
    separable = not len(no_ND) or bool(logits_M[: len(yes_ND)].min() > logits_M[len(yes_ND) : marked].max())
    return Fit(weights_D, float(offset - weights_D @ mean_D), separable)


def _newton(gram_MM: Doubles, target_M: Doubles, weight_M: Doubles) -> tuple[Doubles, float]:
    """Return the factors (M,) of the embeddings and the offset that minimize the loss, given their inner products."""
    factors_M, offset = np.zeros(len(target_M)), 0.0
    sign_M = 2 * target_M - 1

    def loss(factors_M: Doubles, offset: float) -> float:
        inner_M = gram_MM @ factors_M
        losses_M = np.logaddexp(0, -sign_M * (inner_M + offset))
        return float(weight_M @ losses_M + STRENGTH / 2 * factors_M @ inner_M)

    current = loss(factors_M, offset)
    system = np.ones((len(target_M) + 1,) * 2)
    system[-1, -1] = 0
    for _ in range(STEPS):
        logits_M = gram_MM @ factors_M + offset
        probability_M = sigmoid(logits_M)
        curvature_M = np.maximum(weight_M * probability_M * (1 - probability_M), 1e-12)
        system[:-1, :-1] = gram_MM
        system[:-1, :-1].flat[:: len(target_M) + 1] += STRENGTH / curvature_M
        aim_M = logits_M + weight_M * (target_M - probability_M) / curvature_M
        solution = np.linalg.solve(system, np.append(aim_M, 0))
        step_M, step = solution[:-1] - factors_M, solution[-1] - offset
        size = 1.0
        while (following := loss(factors_M + size * step_M, offset + size * step)) > current and size > 1e-6:
            size /= 2
        if current - following <= TOLERANCE * current:
            break
        factors_M, offset, current = factors_M + size * step_M, offset + size * step, following
    return factors_M, offset


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Return the probabilities of logits, of the same shape and type."""
    half = logits.dtype.type(0.5)
    return half + half * np.tanh(half * logits)
