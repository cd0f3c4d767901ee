"""`explain`: one explanation per image and class, in order; a bad image does not affect the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..checks import checked
from ..errors import ImageError, UsageError, WeightsError
from ..extras import check_installed
from ..inputs import AnyImage
from ..predictor import Predictor
from ..results import NON_FINITE, ClassNames, FloatArray, Prediction, is_finite
from ..text import printable
from .explanation import Explanation, FailedExplanation
from .faithfulness import score_map
from .methods import RANKING, WITH_CAPTUM, attribute, choose_method, method_problem, suggest_method
from .opening import open_subject
from .subject import PreparedImage, Subject

AUTO = "auto"
MEASURED = dict(  # by family: the models on which the methods were compared, see docs/results.md
    convmixer="ConvMixer",
    convit="ConViT",
    crossvit="CrossViT",
    mixer="MLP-Mixer",
    gmixer="gMixer",
    resmlp="MLP-Mixer and gMixer",
    gmlp="MLP-Mixer and gMixer",
)
TOP = 5  # predictions that an explanation has


@checked
def explain(
    images: AnyImage | Iterable[object],
    model: str | Predictor | Subject | None = None,
    *,
    classes: int | str | Sequence[int | str] | None = None,
    versus: int | str | None = None,
    method: str = AUTO,
    score: bool = True,
    seed: int = 0,
    keys: Iterable[str] | None = None,
) -> Iterator[Explanation | FailedExplanation]:
    """Explain the predictions of a model: one Explanation per image and class, in order, as they are made.

    images, keys: one or many, as in `Predictor.records`. model: a name as in `tessella.load`, a Predictor, or a
    Subject; None takes the model that `tessella classify` uses. classes: the class to explain, by index or name, or
    several, where text is an index only if it is no class's name; None takes the predicted class of each image. versus:
    a class to compare with: the map then explains the difference of the two logits. method: one of `METHODS`, or "auto"
    for the one that scored best for this kind of model. score: whether to measure how faithful each map is, which takes
    most of the time. seed: of everything random.

    An image that cannot be explained is one FailedExplanation with the code of its error: it cannot be read, its output
    or a score is not finite, or its predicted class is `versus`. Raises UsageError `bad_argument` at once for
    unknown classes and methods, for a method that does not apply to the model, and for a model without classifier;
    UsageError and WeightsError as `tessella.load`, `missing_dependency` for a method whose package is not installed.
    """
    subject = open_subject(model)
    targets = _find_classes(subject, classes)
    other = None if versus is None else subject.find_class(versus)
    if other is not None and other in targets:
        raise UsageError("bad_argument", f"class {_name(subject, other)} is compared with itself: give two classes")
    chosen, reason = decide_method(subject, method)
    explainer = _Explainer(subject, targets, other, chosen, reason, score, seed)
    return explainer.explain(subject.prepare(images, keys))


def decide_method(subject: Subject, method: str) -> tuple[str, str]:
    """Return the name of a method that applies to the model, and the reason for it.

    Raises UsageError `bad_argument` for an unknown method, and for one that does not apply to the model.
    """
    model, name = subject.model, printable(subject.name)
    if not subject.labels:
        raise UsageError("bad_argument", f"{name} has no classifier, so there is no class to explain")
    if method == AUTO:
        chosen = choose_method(model)
        restriction = "" if chosen == RANKING[subject.family][0] else " of those that can be used here"
        return chosen, f"scores best{restriction} on the built-in models of {MEASURED[subject.family]}"
    if problem := method_problem(model, method):
        message = f"the method {method!r} cannot explain {name}: {problem}"
        raise UsageError("bad_argument", message, hint=suggest_method(model))
    if method in WITH_CAPTUM:
        check_installed("captum", f"the method {method!r}")
    return method, "requested"


class _Explainer:
    """Explains prepared images, with settings that were checked."""

    def __init__(
        self,
        subject: Subject,
        targets: tuple[int, ...],
        versus: int | None,
        method: str,
        reason: str,
        score: bool,
        seed: int,
    ):
        self.subject, self.targets, self.versus = subject, targets, versus
        self.method, self.reason, self.score, self.seed = method, reason, score, seed
        self.fingerprint = subject.predictor.fingerprint
        self.classes = ClassNames(subject.labels, subject.predictor.synsets)

    def explain(
        self, prepared: Iterable[tuple[str, PreparedImage | ImageError]]
    ) -> Iterator[Explanation | FailedExplanation]:
        for key, image in prepared:
            if isinstance(image, ImageError):
                yield FailedExplanation(key, image.code, str(image))
                continue
            logits = self.subject.logits(image.x)[0]
            if not is_finite(logits):
                yield FailedExplanation(key, "non_finite", NON_FINITE)
                continue
            for target in self.targets or (int(logits.argmax()),):
                yield self._one(image, logits, target)

    def _one(self, image: PreparedImage, logits: FloatArray, target: int) -> Explanation | FailedExplanation:
        if target == self.versus:
            message = f"its predicted class is {_name(self.subject, target)}, the class to compare with"
            return FailedExplanation(image.key, "bad_argument", message)
        try:
            attribution = attribute(self.subject, image, target, self.method, versus=self.versus, seed=self.seed)
            if not is_finite(attribution.values):
                raise WeightsError("non_finite", "the attribution map contains NaN or infinity")
            faithfulness = None
            if self.score:
                faithfulness = score_map(self.subject, image, attribution, target, versus=self.versus, seed=self.seed)
        except WeightsError as error:
            if error.code != "non_finite":
                raise
            return FailedExplanation(image.key, error.code, str(error))
        probabilities = self.subject.predictor.probabilities(logits[None])[0]
        return Explanation(
            key=image.key,
            model=self.subject.name,
            fingerprint=self.fingerprint,
            pixels=image.pixels,
            predictions=self.classes.top_predictions(probabilities, min(TOP, len(self.subject.labels))),
            target=self._prediction(probabilities, target),
            versus=None if self.versus is None else self._prediction(probabilities, self.versus),
            map=attribution,
            reason=self.reason,
            faithfulness=faithfulness,
        )

    def _prediction(self, probabilities: FloatArray, index: int) -> Prediction:
        synsets = self.subject.predictor.synsets
        label, synset = self.subject.labels[index], synsets[index] if synsets else ""
        return Prediction(index, label, float(probabilities[index]), synset)


def _find_classes(subject: Subject, classes: int | str | Sequence[int | str] | None) -> tuple[int, ...]:
    """Return the indices of the classes, each once; () for None."""
    if classes is None:
        return ()
    several = [classes] if isinstance(classes, str | int | np.integer) else list(classes)
    if not several:
        raise UsageError("bad_argument", "classes is empty", hint="give at least one, or None for the predicted class")
    return tuple(dict.fromkeys(subject.find_class(name) for name in several))


def _name(subject: Subject, index: int) -> str:
    return repr(printable(subject.labels[index]))
