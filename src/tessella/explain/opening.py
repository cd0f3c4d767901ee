"""Opening the model that is explained."""

from __future__ import annotations

from ..predictor import Predictor, load
from ..weights.catalogue import default_model
from .subject import Subject


def open_subject(model: str | Predictor | Subject | None, **settings: object) -> Subject:
    """Load the PyTorch module of a model; raises UsageError and WeightsError as `tessella.load`.

    model: as in `explain`. settings: other arguments of `tessella.load`, if model is a name or None.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, Predictor):
        return Subject(model)
    # only the module is needed, so no engine is built
    return Subject(load(model or default_model("classify"), engine="eager", **settings))  # type: ignore[arg-type]
