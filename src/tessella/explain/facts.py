"""What an explanation contains, and the words in which figures, pages and the command line state it.

Letters for shapes: H, W pixels of the model's input; rows, columns of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..data.decode import Pixels
from ..results import FloatArray, Prediction
from .faithfulness import Faithfulness, Score
from .maps import AttributionMap

UNSCORED = "not scored"  # the verdict if the scores were not measured


@dataclass(frozen=True)
class ScoreLine:
    """One score of a map, with the interval that contains the scores of 95 % of random maps.

    goal: which values are better, "higher" or "lower". is_better: whether the map is better than the interval.
    """

    name: str
    goal: str
    value: float
    low: float
    high: float
    is_better: bool

    @property
    def comparison(self) -> str:
        """The comparison with random maps in words."""
        if self.is_better:
            return "better than random"
        return "no better than random" if self.low <= self.value <= self.high else "worse than random"


@dataclass(frozen=True)
class MapPart:
    """One of the maps that a map is composed of: (rows,columns) values on a grid of their own.

    share: what its branch gives of the score, in words; "" if the method does not use it.
    """

    name: str
    values: FloatArray
    share: str

    @property
    def grid(self) -> str:
        """The size of the grid, columns first, as of images."""
        rows, columns = self.values.shape
        return f"{columns}×{rows}"


@dataclass(frozen=True)
class ExplanationFacts:
    """Why a model predicts a class for one image: an attribution map, and how faithful it is.

    key: name of the image. model, fingerprint: what computed it. pixels: (H,W,3) uint8, the image as the model sees it.
    predictions: the most probable classes, best first. target: the class that is explained. versus: the class that it
    is compared with, or None. map: how much each position adds to the logit of the target, or to the difference of the
    two logits. reason: why the method was chosen. faithfulness: the scores of the map; None if they were not measured.
    """

    key: str
    model: str
    fingerprint: str
    pixels: Pixels
    predictions: tuple[Prediction, ...]
    target: Prediction
    versus: Prediction | None
    map: AttributionMap
    reason: str
    faithfulness: Faithfulness | None = None

    @property
    def question(self) -> str:
        """What is explained, such as "cat (92.8 %)" or "cat (92.8 %), not dog (1.2 %)"."""
        text = _share(self.target)
        return text if self.versus is None else f"{text}, not {_share(self.versus)}"

    @property
    def verdict(self) -> str:
        """Whether the map is faithful for this image, in words."""
        return UNSCORED if self.faithfulness is None else self.faithfulness.verdict

    @property
    def verdict_reason(self) -> str:
        """The reason for the verdict, a sentence; "" if the scores were not measured."""
        return "" if self.faithfulness is None else self.faithfulness.reason

    @property
    def is_doubtful(self) -> bool:
        """Whether the map was measured not to be faithful for this image."""
        return self.faithfulness is not None and not self.faithfulness.faithful

    @property
    def unit(self) -> str:
        """What the values of the map are."""
        if self.map.total is None:
            return "attribution"
        what = "logit" if self.versus is None else "difference of logits"
        return f"contribution to the {what}, {self.map.total:.2f}"

    @property
    def parts(self) -> tuple[MapPart, ...]:
        """The maps that the map is composed of, in order; () for most models."""
        what, shares = "logit" if self.versus is None else "difference", self.map.shares
        return tuple(
            MapPart(name, values, f"{100 * shares[name]:.0f} % of the {what}" if name in shares else "")
            for name, values in self.map.parts.items()
        )

    @property
    def scores(self) -> tuple[ScoreLine, ...]:
        """The scores, in the order in which they are shown; () if they were not measured."""
        if self.faithfulness is None:
            return ()
        return (
            _line("deletion", "lower", self.faithfulness.deletion),
            _line("insertion", "higher", self.faithfulness.insertion),
            _line("correlation", "higher", self.faithfulness.correlation),
        )


def _line(name: str, goal: str, score: Score) -> ScoreLine:
    return ScoreLine(name, goal, score.value, score.random_low, score.random_high, score.better)


def _share(prediction: Prediction) -> str:
    return f"{prediction.label} ({100 * prediction.probability:.1f} %)"
