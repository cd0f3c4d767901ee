"""Settings of `compare`."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import check_count, check_fields
from ..data.decode import Policy
from ..errors import UsageError
from ..evaluation.leakage import SPLITS, Split
from ..text import any_of

MAX_PICTURES = 10_000
MOST_SAMPLED = 100_000
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Settings of `compare`.

    split: of labeled images, as in `evaluate`. engine, precision, transform: as for `tessella.load`, for both models or
    (old, new). device, policy: as for `tessella.load`, for both. sampled: at most this many images are compared by
    their embeddings, which are held in memory. speed: measure the speed of the models, which takes about five seconds.
    pictures: images shown on the page of each kind of change. seed: random seed of the sample and of the halves that an
    alignment is fitted to and judged on.

    Raises UsageError `bad_argument`.
    """

    split: Split | None = None
    engine: str | tuple[str, str] = "auto"
    precision: str | tuple[str, str] = "auto"
    transform: str | tuple[str, str] = "exact"
    device: str = "auto"
    policy: Policy = "tessella"
    sampled: int = 10_000
    speed: bool = True
    pictures: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.split not in (None, *SPLITS):
            raise UsageError("bad_argument", f"split is {self.split!r}", hint=f"choose {any_of(SPLITS)}")
        check_count("sampled", self.sampled, MOST_SAMPLED)
        check_count("pictures", self.pictures, MAX_PICTURES, least=0)
        check_count("seed", self.seed, MAX_SEED, least=0)

    def options(self, side: int) -> dict[str, str]:
        """Return the keyword arguments of `tessella.load` for the old model (0) or the new one (1)."""
        values = dict(engine=self.engine, precision=self.precision, transform=self.transform)
        chosen = {name: value if isinstance(value, str) else value[side] for name, value in values.items()}
        return chosen | dict(device=self.device, policy=self.policy)
