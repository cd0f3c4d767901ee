"""Opening the model that is explained."""

from __future__ import annotations

from ..engine.exported import is_exported
from ..errors import UsageError
from ..predictor import Predictor, load
from ..text import printable
from ..weights.catalogue import default_model
from ..weights.names import local_folder
from .subject import Subject


def open_subject(model: str | Predictor | Subject | None, **settings: object) -> Subject:
    """Load the PyTorch module of a model; raises UsageError and WeightsError as `tessella.load`.

    UsageError `bad_argument` also for an exported model, which has no module.
    model: as in `explain`. settings: other arguments of `tessella.load`, if model is a name or None.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, Predictor):
        return Subject(model)
    name = model or default_model("classify")
    if name.startswith("local-dir:") and is_exported(local_folder(name)):
        message = f"{printable(name)} is an exported model, which has no PyTorch module"
        raise UsageError("bad_argument", message, hint="give the model from which it was exported")
    # only the module is needed, so no engine is built
    return Subject(load(name, engine="eager", **settings))  # type: ignore[arg-type]
