"""The explanation of one class for one image, with its figure, its files and its HTML.

Letters for shapes: H, W pixels of the model's input; rows, columns of a map.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..data.decode import Pixels
from ..data.names import EXPLAINED
from ..errors import UsageError
from ..records import finite_or_none, valid_text
from ..results import FloatArray, Prediction, is_finite
from ..storage import create_output_folder, write_bytes
from ..text import escape, unescape
from .colors import SIDE, overlay
from .facts import ExplanationFacts
from .faithfulness import Curve, Faithfulness, Score
from .figures import draw_explanation
from .maps import AttributionMap
from .page import STYLE, card
from .storage import FileNames, read_arrays, write_arrays

FORMAT = 1  # of .npz files
SCORES, CURVES = ("deletion", "insertion", "correlation"), ("deletion_curve", "insertion_curve")
Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class FailedExplanation:
    """An image that could not be explained: its key, the code of the error, and the message."""

    key: str
    status: str
    message: str

    def as_dict(self) -> dict[str, object]:
        """Return the error as JSON."""
        return dict(key=escape(self.key), status=self.status, message=valid_text(self.message))


class Explanation(ExplanationFacts):
    """Why a model predicts a class for one image; see ExplanationFacts for its fields."""

    status = "ok"

    def overlay(self, side: int = SIDE) -> Pixels:
        """Return the map over the image: (height,width,3) uint8, whose longer side has `side` pixels."""
        return overlay(self.pixels, self.map.values, side)

    def figure(self) -> bytes:
        """Return a PNG file with the image, the map, the overlay, the scores and a legend.

        Raises UsageError `missing_dependency` without matplotlib.
        """
        return draw_explanation(self)

    def save(self, folder: str | Path, name: str | None = None) -> tuple[Path, Path]:
        """Write the figure and the arrays to a folder, which is created if it is missing; return both paths.

        name: of the files, without suffix; None makes one from the key. The files are NAME.explained.png and
        NAME.explained.npz; existing ones are replaced. Raises OutputError `output_failed`.
        """
        folder = create_output_folder(folder)
        stem = FileNames().new(self.key) if name is None else name
        figure, arrays = folder / f"{stem}{EXPLAINED}.png", folder / f"{stem}{EXPLAINED}.npz"
        write_bytes(figure, self.figure())
        self.save_arrays(arrays)
        return figure, arrays

    def save_arrays(self, path: str | Path) -> None:
        """Write everything to a .npz file, from which `load` restores it. Raises OutputError `output_failed`."""
        write_arrays(path, _to_arrays(self))

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Restore an explanation from a .npz file that `save` wrote; this needs no model.

        The file is not trusted: nothing in it is executed. Raises UsageError: `not_found`, or `bad_argument` for
        another file.
        """
        arrays = read_arrays(path)
        try:
            return _from_arrays(arrays)
        except (KeyError, ValueError, TypeError, IndexError, OverflowError):
            raise UsageError(
                "bad_argument",
                f"{str(path)!r} is not an explanation, or one of another version",
                hint="give a .npz file of `tessella explain --out FOLDER`",
            ) from None

    def as_dict(self) -> dict[str, object]:
        """Return everything but the pixels and the curves as JSON; the map as a list of rows."""
        row: dict[str, object] = dict(
            key=escape(self.key),
            status=self.status,
            model=valid_text(self.model),
            fingerprint=self.fingerprint,
            top=[_prediction_dict(prediction) for prediction in self.predictions],
            target=_prediction_dict(self.target),
            versus=None if self.versus is None else _prediction_dict(self.versus),
            method=self.map.method,
            reason=self.reason,
            layer=self.map.layer,
            total=None if self.map.total is None else finite_or_none(self.map.total),
            map=self.map.values.tolist(),
            verdict=self.verdict,
        )
        if self.map.parts:
            row["parts"] = {name: values.tolist() for name, values in self.map.parts.items()}
        if self.map.shares:
            row["shares"] = dict(self.map.shares)
        if self.faithfulness is not None:
            row["verdict_reason"] = self.verdict_reason
            row["scores"] = {
                line.name: dict(
                    value=finite_or_none(line.value),
                    random=[finite_or_none(line.low), finite_or_none(line.high)],
                    is_better=line.is_better,
                )
                for line in self.scores
            }
        return row

    def _repr_html_(self) -> str:
        """Return HTML for Jupyter: image, map, overlay, scores and verdict."""
        return f"<style>{STYLE}</style>{card(self)}"


def _prediction_dict(prediction: Prediction) -> dict[str, object]:
    label, probability = valid_text(prediction.label), finite_or_none(prediction.probability)
    return dict(index=prediction.index, label=label, probability=probability)


# --- arrays -----------------------------------------------------------------------------------------------------------


def _to_arrays(explanation: Explanation) -> dict[str, NDArray[np.generic]]:
    """Return everything as arrays of numbers and text; what is missing has no array."""
    attribution, scores = explanation.map, explanation.faithfulness
    arrays: dict[str, NDArray[np.generic]] = dict(
        format=np.array(FORMAT),
        tessella=np.array(__version__),
        key=np.array(escape(explanation.key)),
        model=np.array(valid_text(explanation.model)),
        fingerprint=np.array(explanation.fingerprint),
        method=np.array(attribution.method),
        reason=np.array(explanation.reason),
        layer=np.array(attribution.layer),
        pixels=explanation.pixels,
        map=attribution.values,
        part_names=np.array(list(attribution.parts), dtype=str),
        **{f"part{i}": values for i, values in enumerate(attribution.parts.values())},
        **_prediction_arrays("predictions", explanation.predictions),
        **_prediction_arrays("target", [explanation.target]),
    )
    if attribution.shares:
        arrays["part_shares"] = np.array([attribution.shares[name] for name in attribution.parts], np.float64)
    if attribution.total is not None:
        arrays["total"] = np.array(attribution.total)
    if explanation.versus is not None:
        arrays |= _prediction_arrays("versus", [explanation.versus])
    if scores is not None:
        arrays["score_names"] = np.array(SCORES)
        arrays["scores"] = np.array([dataclasses.astuple(getattr(scores, name)) for name in SCORES], np.float64)
        for name in CURVES:
            arrays[name] = np.stack(dataclasses.astuple(getattr(scores, name)))
        arrays["faithful"] = np.array(scores.faithful)
        arrays["verdict_reason"] = np.array(scores.reason)
        arrays["cells"] = np.array(scores.cells)
        arrays["smoothness"] = np.array(scores.smoothness)
    return arrays


def _prediction_arrays(name: str, predictions: Sequence[Prediction]) -> dict[str, NDArray[np.generic]]:
    return {
        f"{name}_indices": np.array([prediction.index for prediction in predictions], np.int64),
        f"{name}_labels": np.array([valid_text(prediction.label) for prediction in predictions], dtype=str),
        f"{name}_synsets": np.array([prediction.synset for prediction in predictions], dtype=str),
        f"{name}_probabilities": np.array([prediction.probability for prediction in predictions], np.float64),
    }


def _from_arrays(arrays: Arrays) -> Explanation:
    """Restore what `_to_arrays` made.

    Raises KeyError, ValueError, TypeError, IndexError or OverflowError for anything else.
    """
    if any(array.dtype.kind not in "biufU" for array in arrays.values()):
        raise ValueError("neither real numbers nor text")
    if int(arrays["format"].item()) != FORMAT or arrays["format"].ndim:
        raise ValueError("another format")
    pixels = cast(Pixels, arrays["pixels"])
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError("no pixels")
    (target,) = _restore_predictions(arrays, "target")
    names = [valid_text(str(name)) for name in arrays["part_names"]]
    shares = cast("FloatArray | None", arrays.get("part_shares"))
    if shares is not None and not is_finite(shares):
        raise ValueError("no shares")
    return Explanation(
        key=unescape(str(arrays["key"])),
        model=_restore_text(arrays, "model"),
        fingerprint=_restore_text(arrays, "fingerprint"),
        pixels=pixels,
        predictions=_restore_predictions(arrays, "predictions"),
        target=target,
        versus=_restore_predictions(arrays, "versus")[0] if "versus_indices" in arrays else None,
        map=AttributionMap(
            values=_restore_map(arrays["map"], pixels),
            method=_restore_text(arrays, "method"),
            layer=_restore_text(arrays, "layer"),
            total=_restore_number(arrays, "total") if "total" in arrays else None,
            parts={name: _restore_map(arrays[f"part{i}"], pixels) for i, name in enumerate(names)},
            shares={} if shares is None else dict(zip(names, map(float, shares.tolist()), strict=True)),
        ),
        reason=_restore_text(arrays, "reason"),
        faithfulness=_restore_faithfulness(arrays) if "scores" in arrays else None,
    )


def _restore_text(arrays: Arrays, name: str) -> str:
    return valid_text(str(arrays[name]))  # lone surrogates can be neither drawn nor written


def _restore_number(arrays: Arrays, name: str) -> float:
    if arrays[name].ndim or not math.isfinite(number := float(arrays[name].item())):
        raise ValueError("no number")
    return number


def _restore_map(array: NDArray[np.generic], pixels: Pixels) -> FloatArray:
    values = cast(FloatArray, array)
    if values.dtype != np.float32 or values.ndim != 2 or not values.size or not is_finite(values):
        raise ValueError("no map")
    if values.shape[0] > pixels.shape[0] or values.shape[1] > pixels.shape[1]:
        raise ValueError("more positions than pixels")
    return values


def _restore_predictions(arrays: Arrays, name: str) -> tuple[Prediction, ...]:
    columns = (arrays[f"{name}_{part}"] for part in ("indices", "labels", "probabilities", "synsets"))
    return tuple(
        Prediction(int(index), valid_text(str(label)), float(probability), valid_text(str(synset)))
        for index, label, probability, synset in zip(*columns, strict=True)
    )


def _restore_faithfulness(arrays: Arrays) -> Faithfulness:
    values = cast("NDArray[np.float64]", arrays["scores"])
    if not np.isfinite(values).all():
        raise ValueError("no scores")
    scores = {
        str(name): Score(float(value), float(low), float(high), float(mean), bool(better))
        for name, (value, low, high, mean, better) in zip(arrays["score_names"], values, strict=True)
    }
    rows, columns = (int(count) for count in arrays["cells"])
    return Faithfulness(
        deletion=scores["deletion"],
        insertion=scores["insertion"],
        correlation=scores["correlation"],
        deletion_curve=_restore_curve(arrays["deletion_curve"]),
        insertion_curve=_restore_curve(arrays["insertion_curve"]),
        faithful=bool(arrays["faithful"]),
        reason=_restore_text(arrays, "verdict_reason"),
        cells=(rows, columns),
        smoothness=_restore_number(arrays, "smoothness"),
    )


def _restore_curve(array: NDArray[np.generic]) -> Curve:
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        values = array.astype(np.float32)
    if values.ndim != 2 or not is_finite(values):
        raise ValueError("no curve")
    return Curve(*values)
