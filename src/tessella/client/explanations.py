"""Explanations that a server computes: what is sent, and what its answer means."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from ..errors import CODES, UsageError, public_text
from ..results import FloatArray, Prediction, Record
from .images import ImageGroup
from .protocol import Served, bad_answer, raise_bad, read_body

PATH = "v1/explain"
_OVERLAY = "data:image/png;base64,"


@dataclass(frozen=True)
class ServedScore:
    """A score of a map, with the interval that contains the scores of 95 % of random maps.

    goal: which values are better, "higher" or "lower". is_better: whether the map is better than the interval.
    """

    value: float
    random_low: float
    random_high: float
    goal: str
    is_better: bool


@dataclass(frozen=True)
class ServedExplanation:
    """Why a model of the server predicts a class for an image.

    model, fingerprint: what computed it. target: the class that is explained. versus: the class that it is compared
    with, or None. top: the most probable classes, best first. map: (rows,columns) float32, how much each position of
    the image adds to the logit of the class, or to the difference of two. total: what the map sums to if the method is
    exact, else None. methods: those that apply to the model. reason: why the method was chosen. faithful, verdict,
    verdict_reason: whether the map is better than random ones for this image. overlay: a PNG file of what the model
    sees with the map on it. box: left, top, right and bottom of that part in pixels of the image, which has width x
    height of them.
    """

    model: str
    fingerprint: str
    target: Prediction
    versus: Prediction | None
    top: tuple[Prediction, ...]
    method: str
    methods: tuple[str, ...]
    reason: str
    layer: str
    map: FloatArray = field(repr=False)
    total: float | None
    faithful: bool | None
    verdict: str
    verdict_reason: str
    scores: Mapping[str, ServedScore]
    overlay: bytes = field(repr=False)
    box: tuple[float, float, float, float]
    width: int
    height: int


class _ExplainedClass(msgspec.Struct):
    index: int
    label: str
    probability: float

    def prediction(self) -> Prediction:
        return Prediction(self.index, self.label, self.probability)


class _Score(msgspec.Struct):
    value: float
    random: tuple[float, float]
    goal: str
    is_better: bool


class _Explanation(msgspec.Struct):
    key: str
    status: str
    message: str = ""
    top: list[_ExplainedClass] = []
    target: _ExplainedClass | None = None
    versus: _ExplainedClass | None = None
    method: str = ""
    methods: list[str] = []
    reason: str = ""
    layer: str = ""
    map: list[list[float]] = []
    total: float | None = None
    faithful: bool | None = None
    verdict: str = ""
    verdict_reason: str = ""
    scores: dict[str, _Score] = {}
    overlay: str = ""
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    width: int = 0
    height: int = 0


class _Explanations(msgspec.Struct):
    model: str
    fingerprint: str
    results: list[_Explanation]


@dataclass(frozen=True)
class ExplainCall:
    """Explanations that a caller asks for; see `Client.explain`. Raises UsageError `bad_argument`."""

    target: int | str | None
    versus: int | str | None
    method: str
    model: str | None

    def __post_init__(self) -> None:
        for name in ("target", "versus"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | str | np.integer)):
                raise UsageError("bad_argument", f"{name} is {value!r}, expected the name or the index of a class")
        if not isinstance(self.method, str):
            raise UsageError("bad_argument", f"method is {self.method!r}, expected the name of a method, or 'auto'")

    @property
    def fields(self) -> dict[str, str]:
        """The fields of the form, besides the image."""
        given = {"model": self.model, "class": self.target, "versus": self.versus, "method": self.method}
        known = {name: value for name, value in given.items() if value is not None}
        return {name: value if isinstance(value, str) else f"index:{value}" for name, value in known.items()}

    def check(self, request: ImageGroup, position: int | None) -> None:
        """Raise the ImageError of an image that cannot be sent. position: of the image among many."""
        for key, error in zip(request.keys, request.errors.values(), strict=False):
            raise_bad(Record(key, error.code, str(error)), position)

    def read(self, request: ImageGroup, body: bytes, server: str, position: int | None) -> ServedExplanation:
        """Return the explanation of the one image of a request.

        body: of the answer with status 200. server: its name in messages. Raises ImageError if the image has none,
        ServeError `server_failed` if the answer is not that to the request.
        """
        answer = read_body(body, _Explanations, server)
        ((sent, _),) = request.files
        if [result.key for result in answer.results] != [str(sent)]:
            raise bad_answer(server, "its results are not those of the images that were sent")
        (result,) = answer.results
        if result.status != "ok":
            code = result.status if result.status in CODES else "server_failed"
            raise_bad(Record(request.keys[0], code, public_text(code)), position)
        return _explanation(result, Served(answer.model, answer.fingerprint), server)


def _explanation(result: _Explanation, served: Served, server: str) -> ServedExplanation:
    try:
        values = np.array(result.map, np.float32)
        if not result.overlay.startswith(_OVERLAY):
            raise ValueError
        overlay = base64.b64decode(result.overlay[len(_OVERLAY) :], validate=True)
    except (ValueError, binascii.Error):
        raise bad_answer(server, "an explanation has no map or no overlay") from None
    if result.target is None or values.ndim != 2 or not values.size:
        raise bad_answer(server, "an explanation is not complete")
    return ServedExplanation(
        model=served.model,
        fingerprint=served.fingerprint,
        target=result.target.prediction(),
        versus=None if result.versus is None else result.versus.prediction(),
        top=tuple(best.prediction() for best in result.top),
        method=result.method,
        methods=tuple(result.methods),
        reason=result.reason,
        layer=result.layer,
        map=values,
        total=result.total,
        faithful=result.faithful,
        verdict=result.verdict,
        verdict_reason=result.verdict_reason,
        scores={
            name: ServedScore(score.value, *score.random, score.goal, score.is_better)
            for name, score in result.scores.items()
        },
        overlay=overlay,
        box=result.box,
        width=result.width,
        height=result.height,
    )
