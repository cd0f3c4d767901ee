"""What the process that explains does for an order: load the model with PyTorch, and explain one image."""

from __future__ import annotations

import base64
import dataclasses
import time
import traceback

from ..data.decode import encode_png
from ..errors import TessellaError, UsageError
from ..explain import Explanation, Subject, explain
from ..explain.colors import overlay
from ..explain.methods import methods_for
from ..predictor import load
from ..results import FloatArray, Prediction, softmax
from .explain_process import (
    MAX_TEXT,
    ClassScore,
    ExplainedImage,
    ExplainFailure,
    ExplainOrder,
    MapScore,
    WorkerAnswer,
)

AUTO = "auto"


class RefusedOrderError(Exception):
    """An order cannot be carried out. reason: a key of `REASONS`."""

    def __init__(self, reason: str, message: str, code: str = "unprocessable") -> None:
        super().__init__(message)
        self.failure = ExplainFailure(code, message, is_image=False, reason=reason)


class OrderRunner:
    """Carries out orders. It keeps one model, that of the last order, because each takes memory."""

    def __init__(self) -> None:
        self._subject: Subject | None = None
        self._key: tuple[str, str] = ("", "")

    def answer(self, order: ExplainOrder) -> WorkerAnswer:
        """Return the explanation of one image, or why there is none. Never raises an Exception."""
        try:
            return self._answer(order)
        except RefusedOrderError as error:
            return WorkerAnswer(failure=error.failure)
        except TessellaError as error:
            reason = "captum" if error.code == "missing_dependency" else ""
            return WorkerAnswer(failure=ExplainFailure(error.code, str(error), is_image=False, reason=reason))
        except Exception:
            failure = ExplainFailure("internal_error", traceback.format_exc()[-MAX_TEXT:], is_image=False)
            return WorkerAnswer(failure=failure)

    def _answer(self, order: ExplainOrder) -> WorkerAnswer:
        begun = time.perf_counter()
        subject = self._load(order)
        loaded = time.perf_counter()
        check_options(subject, order)
        (outcome,) = explain(
            [order.pixels], subject, classes=order.wanted, versus=order.versus, method=order.method, keys=["image"]
        )
        if not isinstance(outcome, Explanation):
            return WorkerAnswer(failure=ExplainFailure(outcome.status, outcome.message, is_image=True))
        explained = describe(outcome, order, probabilities_of(subject, order))
        explained.methods = list(methods_for(subject.model))
        explained.load_seconds, explained.seconds = loaded - begun, time.perf_counter() - loaded
        return WorkerAnswer(explained)

    def _load(self, order: ExplainOrder) -> Subject:
        if self._subject is None or self._key != (order.source, order.fingerprint):
            self._subject = None  # its memory is free before the next model needs some
            self._subject = open_subject(order)
            self._key = order.source, order.fingerprint
        return self._subject


def open_subject(order: ExplainOrder) -> Subject:
    """Load the model of an order. Raises RefusedOrderError, and the errors of `tessella.load`."""
    predictor = load(
        order.source,
        device=order.device,
        precision="float32",
        engine="eager",
        policy=order.policy,
        transform=order.transform,
        calibration=None,  # that of the server is in the order, since its model may have another precision
    )
    if predictor.fingerprint != order.fingerprint:
        raise RefusedOrderError("changed", f"{order.source} has the fingerprint {predictor.fingerprint}")
    # the pixels of orders are prepared: this spec leaves them as they are
    predictor.spec = dataclasses.replace(predictor.spec, crop_pct=1.0, crop_mode="squash")
    return Subject(predictor)


def check_options(subject: Subject, order: ExplainOrder) -> None:
    """Raise RefusedOrderError for options that do not fit the model."""
    found = []
    for name in (order.wanted, order.versus):
        try:
            found.append(None if name is None else subject.find_class(name))
        except UsageError as error:
            raise RefusedOrderError("class", error.message) from None
    if found[0] is not None and found[0] == found[1]:
        raise RefusedOrderError("versus", "the classes are the same")
    if order.method != AUTO and order.method not in methods_for(subject.model):
        raise RefusedOrderError("method", f"{order.method} does not apply to {subject.name}")


def probabilities_of(subject: Subject, order: ExplainOrder) -> FloatArray:
    """Return the probabilities of all classes (K,) for the image of an order, as `/v1/classify` gives them."""
    logits = subject.logits(subject.normalized(order.pixels))
    if order.confidence is None:
        return softmax(logits)[0]
    temperature, curve = order.confidence
    return curve.apply(logits, temperature)[0]


def describe(explanation: Explanation, order: ExplainOrder, probabilities_K: FloatArray) -> ExplainedImage:
    """Return an explanation as it is sent to the server, with these probabilities of the classes."""

    def score(prediction: Prediction) -> ClassScore:
        return ClassScore(prediction.index, prediction.label, float(probabilities_K[prediction.index]))

    attribution, faithfulness = explanation.map, explanation.faithfulness
    picture = overlay(order.picture, attribution.values, max(order.picture.shape[:2]))
    return ExplainedImage(
        top=[score(prediction) for prediction in explanation.predictions],
        target=score(explanation.target),
        versus=None if explanation.versus is None else score(explanation.versus),
        method=attribution.method,
        methods=[],
        reason=explanation.reason,
        layer=attribution.layer,
        total=attribution.total,
        values=attribution.values.tolist(),
        scores=[
            MapScore(line.name, line.goal, line.value, line.low, line.high, line.is_better)
            for line in explanation.scores
        ],
        faithful=None if faithfulness is None else faithfulness.faithful,
        verdict=explanation.verdict,
        verdict_reason=explanation.verdict_reason,
        overlay=base64.b64encode(encode_png(picture)).decode(),
        load_seconds=0.0,
        seconds=0.0,
    )
