"""Settings of `evaluate` and `probe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checks import check_fields
from ..data.decode import Mode, Policy
from ..errors import UsageError
from .imagenet import SETS

MAX_SEED = 2**63 - 1
ProgressCallback = Callable[[str, int, int], None]  # current task, images done, number of images


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of `evaluate`: how models are loaded and run, and which predictions count as correct.

    device, batch_size, transform, policy: as for `tessella.load`.
    engine, precision: as for `tessella.load`, or several of each; every combination is evaluated.
    checkpoint_path: weight file to use instead of the published weights, for a single model.
    real_labels: path of ReaL's real.json, for the ImageNet validation set. A prediction is correct if it is any of an
        image's labels, and images without a label are excluded. Metrics that need a single label use the one that the
        model ranks highest.
    dataset: name of the published data set that the data is (one of `imagenet.SETS`), or "none"; None recognizes it by
        its classes and number of images.
    restrict: whether only the classes of the data can be predicted, see `match_classes`.
    calibration: as for `tessella.load`.

    Raises UsageError `bad_argument`.
    """

    engine: str | Sequence[str] = "auto"
    precision: str | Sequence[str] = "auto"
    device: str = "auto"
    batch_size: int | None = None
    transform: Mode = "exact"
    policy: Policy = "tessella"
    checkpoint_path: str | Path | None = None
    real_labels: str | Path | None = None
    dataset: str | None = None
    restrict: bool | None = None
    calibration: str | Path | None = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, values in (("engine", self.engine), ("precision", self.precision)):
            if not values:
                raise UsageError("bad_argument", f"{name} is {values!r}, expected at least one, such as 'auto'")
        if self.dataset not in (None, "none", *SETS):
            raise UsageError(
                "bad_argument", f"dataset is {self.dataset!r}", hint=f"choose from none, {', '.join(SETS)}"
            )


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Settings of `probe`.

    val_fraction: fraction of the images to validate on, used if the data has no validation split.
    shots: numbers of training examples per class for few-shot accuracy; numbers larger than the
        smallest class are omitted, with a note.
    accuracy: accuracy (0 to 1) for which to find the confidence threshold.
    seed: random seed for the selection of held-out images and few-shot examples.

    Raises UsageError `bad_argument`.
    """

    val_fraction: float = 0.1
    shots: Sequence[int] = (1, 5, 10)
    accuracy: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if any(type(n) is not int or n < 1 for n in self.shots):
            raise UsageError("bad_argument", f"shots is {self.shots!r}, expected positive integers, such as (1, 5, 10)")
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise UsageError(
                "bad_argument",
                f"accuracy is {self.accuracy}, expected a number greater than 0 and at most 1, such as 0.95",
            )
        if type(self.seed) is not int or not 0 <= self.seed <= MAX_SEED:
            raise UsageError("bad_argument", f"seed is {self.seed!r}, expected 0 to {MAX_SEED}")
