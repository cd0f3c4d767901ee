"""What is sent to the server and what its answers mean; both clients use it, and it opens no connection.

Every answer is checked against what was asked for: a result without its image, or for another one, is an error and
never a result.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from ..data.limits import Limits
from ..errors import CODES, ImageError, ServeError, TessellaError, UsageError, WeightsError, public_text
from ..inputs import list_images
from ..results import Assessment, FloatArray, Prediction, Record, Scores
from ..text import printable
from .images import ImageGroup, encoded_image
from .retries import Reply

if TYPE_CHECKING:
    from ..inputs import AnyImage

Body = TypeVar("Body")
# The exceptions of codes that a server sent, by exit status: those of an image, and those of a whole request.
_RECORD_ERRORS: dict[int, type[TessellaError]] = {4: WeightsError, 9: ServeError}  # others: ImageError
_REPLY_ERRORS: dict[int, type[TessellaError]] = {2: UsageError, 3: ImageError, 4: WeightsError}  # others: ServeError
ALL_CLASSES = 1_000_000_000  # the server returns as many as the model has


class ServedCalibration(msgspec.Struct, frozen=True):
    """What the probabilities and prediction sets of a model mean.

    coverage: share of images whose prediction set contains the right class. per_class: whether that holds for the
    images of every class, and not only for all images together. false_alarms: largest share of images of the classes
    that are called unknown. temperature: by which logits are divided.
    """

    coverage: float
    per_class: bool
    false_alarms: float
    temperature: float


@dataclass(frozen=True)
class ServerModel:
    """A model of the server. What is None is known once the model has been loaded.

    state: "ready", "loading", "unloaded" or "failed". width: of embeddings. input_size: (3,H,W). default_for: the tasks
    for which it is used if a request names no model. calibration: None also for plain softmax.
    """

    name: str
    state: str
    fingerprint: str | None = None
    num_classes: int | None = None
    width: int | None = None
    input_size: tuple[int, ...] | None = None
    default_for: tuple[str, ...] = ()
    calibration: ServedCalibration | None = None


@dataclass(frozen=True)
class Match:
    """A row of the server's index that was found.

    score: cosine similarity with the query. label, probability: the most likely class; None if the index has none.
    width, height: in pixels. duplicates: rows of the same image, if they are grouped. unknown: whether the image
    probably shows none of the model's classes; set_size: number of classes in its prediction set; None if the run was
    made without a calibration.
    """

    row: int
    key: str
    score: float
    label: str | None = None
    probability: float | None = None
    width: int | None = None
    height: int | None = None
    duplicates: tuple[int, ...] = ()
    unknown: bool | None = None
    set_size: int | None = None


@dataclass(frozen=True)
class Matches:
    """The rows that were found, best first. matching: number of rows that pass the filter. rows: of the index."""

    neighbors: tuple[Match, ...]
    matching: int
    rows: int


# --- bodies of answers ------------------------------------------------------------------------------------------------


class _Class(msgspec.Struct):
    index: int
    label: str
    probability: float
    synset: str = ""


class _Result(msgspec.Struct):
    key: str
    status: str
    message: str = ""
    top: list[_Class] = []
    embedding: list[float] | None = None
    prediction_set: list[_Class] = []
    set_size: int = 0
    unknown: bool | None = None
    familiarity: float = 0.0

    def assessment(self) -> Assessment | None:
        if self.unknown is None:
            return None
        listed = _predictions(self.prediction_set)
        return Assessment(listed, self.unknown, self.familiarity, self.set_size - len(listed))


class _Answer(msgspec.Struct):
    model: str
    fingerprint: str
    results: list[_Result]
    calibration: ServedCalibration | None = None


class _Model(msgspec.Struct):
    id: str
    state: str
    fingerprint: str | None = None
    num_classes: int | None = None
    width: int | None = None
    input: list[int] | None = None
    default_for: list[str] = []
    calibration: ServedCalibration | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Neighbors(msgspec.Struct):
    neighbors: list[Match]
    matching: int
    rows: int


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


# --- requests and their answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """Which model gave an answer, and with which calibration."""

    model: str
    fingerprint: str
    calibration: ServedCalibration | None = None


@dataclass(frozen=True)
class Call:
    """Results that a caller asks for: `top` classes (0 for none) and the embedding of each image, of one model."""

    top: int
    embed: bool
    model: str | None

    @property
    def path(self) -> str:
        """The route of the server."""
        if not self.embed:
            return "v1/classify"
        return "v1/predict" if self.top else "v1/embed"

    @property
    def fields(self) -> dict[str, str]:
        """The fields of the form, besides the images."""
        fields = {} if self.model is None else {"model": self.model}
        if self.path != "v1/embed":
            fields["top"] = str(max(self.top, 1))
        return fields

    def records(self, request: ImageGroup, body: bytes, server: str) -> tuple[Served, list[Record]]:
        """Return the model and one record per image of a request, in order.

        body: of the answer with status 200. server: its name in messages. Raises ServeError `server_failed` if the
        answer does not have exactly one complete result for each image that was sent.
        """
        answer = read_body(body, _Answer, server)
        names = [str(position) for position, _ in request.files]
        if [result.key for result in answer.results] != names:
            raise bad_answer(server, "its results are not those of the images that were sent")
        for result in answer.results:
            self._check(result, answer.calibration is not None, server)
        results = {int(result.key): result for result in answer.results}
        records = []
        for position, key in enumerate(request.keys, request.first):
            error = request.errors.get(position)
            records.append(self._record(key, results[position]) if error is None else error_record(key, error))
        return Served(answer.model, answer.fingerprint, answer.calibration), records

    def unsent(self, request: ImageGroup) -> list[Record]:
        """Return the records of a request that has no image to send, as none could be read."""
        return [error_record(key, error) for key, error in zip(request.keys, request.errors.values(), strict=True)]

    def _check(self, result: _Result, is_calibrated: bool, server: str) -> None:
        is_ok = result.status == "ok"
        if is_ok and (self.embed != bool(result.embedding) or bool(self.top) > len(result.top)):
            raise bad_answer(server, "a result is not complete")
        if not self.fields.get("top") and result.top:
            raise bad_answer(server, "a result has classes that were not asked for")
        if is_ok and is_calibrated != (result.unknown is not None):
            raise bad_answer(server, "a result does not fit the calibration that the answer names")
        if is_ok and is_calibrated and not 0 < len(result.prediction_set) <= result.set_size:
            raise bad_answer(server, "a prediction set is not complete")

    def _record(self, key: str, result: _Result) -> Record:
        if result.status != "ok":
            status = result.status if result.status in CODES else "server_failed"
            return Record(key, status, public_text(status) if status == result.status else printable(result.message))
        vector = None if result.embedding is None else np.array(result.embedding, np.float32)
        top = _predictions(result.top)[: self.top]
        return Record(key, "ok", "", top, vector, assessment=result.assessment() if self.top else None)


def _predictions(classes: Sequence[_Class]) -> tuple[Prediction, ...]:
    return tuple(Prediction(best.index, best.label, best.probability, best.synset) for best in classes)


def error_record(key: str, error: ImageError) -> Record:
    """Return the record of an image that was not sent."""
    return Record(key, error.code, str(error))


def check_same_model(before: Served | None, served: Served, server: str) -> None:
    """Refuse to mix results of one call if the server has changed its model or calibration.

    Raises ServeError `server_failed`.
    """
    if before is None or before == served:
        return
    names = (before.model, before.fingerprint), (served.model, served.fingerprint)
    if names[0] == names[1]:
        message = f"{server} changed the calibration of {served.model} during the call"
        raise ServeError(
            "server_failed", message, hint="repeat the call: results of two calibrations must not be mixed"
        )
    raise ServeError(
        "server_failed",
        f"{server} changed its model during the call, from {before.model} ({before.fingerprint}) to {served.model} "
        f"({served.fingerprint})",
        hint="repeat the call: results of two models must not be mixed",
    )


def raise_bad(record: Record, position: int | None) -> None:
    """Raise the error of a record whose status is not "ok"; position: of its image among many, for the message.

    Raises ImageError, WeightsError `non_finite` or ServeError, as the code says.
    """
    if record.status != "ok":
        prefix = "" if position is None else f"image {position}: "
        kind = _RECORD_ERRORS.get(CODES[record.status].exit_code, ImageError)
        raise kind(record.status, prefix + record.message)


def scores_of(records: Sequence[Record], server: str) -> Scores:
    """Return probabilities (N,classes) and embeddings (N,width) of records that have all classes.

    Raises ServeError `server_failed` if classes are missing.
    """
    if not records:
        return Scores(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
    classes = len(records[0].top)
    probabilities = np.empty((len(records), classes), np.float32)
    for row, record in zip(probabilities, records, strict=True):
        indices = [prediction.index for prediction in record.top]
        if sorted(indices) != list(range(classes)):
            raise bad_answer(server, "classes are missing")
        row[indices] = [prediction.probability for prediction in record.top]
    return Scores(probabilities, stack_embeddings(records, server))


def stack_embeddings(records: Sequence[Record], server: str) -> FloatArray:
    """Return the embeddings (N,width) of records that all have one; (0,0) without records.

    Raises ServeError `server_failed` if they differ in length.
    """
    vectors = [record.embedding for record in records if record.embedding is not None]
    if len({len(vector) for vector in vectors}) > 1 or len(vectors) < len(records):
        raise bad_answer(server, "embeddings differ in length")
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def read_models(body: bytes, server: str) -> list[ServerModel]:
    """Return the models of the server. Raises ServeError `server_failed`."""
    return [
        ServerModel(
            model.id,
            model.state,
            model.fingerprint,
            model.num_classes,
            model.width,
            None if model.input is None else tuple(model.input),
            tuple(model.default_for),
            model.calibration,
        )
        for model in read_body(body, _Models, server).data
    ]


# --- search -----------------------------------------------------------------------------------------------------------


def search_body(
    queries: AnyImage | int | Iterable[AnyImage | int],
    negative: Iterable[AnyImage | int],
    options: Mapping[str, object],
    max_body: int,
) -> bytes:
    """Return the body of a search as JSON; entries of `options` that are None are left out.

    Raises ImageError for the first image that cannot be read, UsageError `bad_argument` for a filter that is not JSON.
    """
    fields: dict[str, object] = {"queries": _queries(queries, max_body)}
    if others := _queries(negative, max_body):
        fields["negative"] = others
    fields |= {name: value for name, value in options.items() if value is not None}
    try:
        return msgspec.json.encode(fields)
    except (TypeError, ValueError) as error:
        raise UsageError("bad_argument", f"the filter cannot be written as JSON: {error}") from None


def _queries(queries: AnyImage | int | Iterable[AnyImage | int], max_body: int) -> list[dict[str, object]]:
    items: Iterable[object] = [queries] if _is_row(queries) else list_images(queries)[1]
    rows: list[dict[str, object]] = []
    for item in items:
        if _is_row(item):
            rows.append({"row": int(item)})  # type: ignore[call-overload] # any integer, those of NumPy included
            continue
        data = encoded_image(item, Limits(bytes=max_body))
        if isinstance(data, ImageError):
            raise data
        rows.append({"data": base64.b64encode(data).decode()})
    return rows


def _is_row(item: object) -> bool:
    return isinstance(item, int | np.integer) and not isinstance(item, bool)


def read_matches(body: bytes, server: str) -> Matches:
    """Return the rows that a search found. Raises ServeError `server_failed`."""
    answer = read_body(body, _Neighbors, server)
    return Matches(tuple(answer.neighbors), answer.matching, answer.rows)


# --- errors -----------------------------------------------------------------------------------------------------------


def read_body(body: bytes, kind: type[Body], server: str) -> Body:
    """Parse the JSON of an answer. Raises ServeError `server_failed` if it is not of the given kind."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_answer(server, "it is not the expected JSON") from None


def bad_answer(server: str, reason: str) -> ServeError:
    """Return the error for an answer that does not fit the request."""
    return ServeError("server_failed", f"the answer of {server} cannot be used: {reason}")


def unreachable(server: str, error: Exception | None) -> ServeError:
    """Return the error for a request that got no answer. error: of the connection, None if the time was over."""
    reason = "no answer in time" if error is None else printable(str(error) or type(error).__name__)
    return ServeError("server_unavailable", f"{server} could not be reached: {reason}")


def error_of(reply: Reply, server: str) -> TessellaError:
    """Return the error of an answer with another status than 200; its code is `server_failed` if it names none.

    The text is that of the code. What the server adds becomes the hint.
    """
    try:
        problem = msgspec.json.decode(reply.body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = _Problem()
    if problem.code not in CODES:
        return ServeError("server_failed", f"{server} answered with status {reply.status}")
    text = public_text(problem.code)
    hint = "" if problem.detail == text else printable(problem.detail[:300])
    kind = _REPLY_ERRORS.get(CODES[problem.code].exit_code, ServeError)
    if problem.code == "not_found":  # a row, or the index itself: images are not looked up by the server
        kind = UsageError
    return kind(problem.code, f"{server}: {text}", hint=hint)
