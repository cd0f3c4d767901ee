"""The model that is explained: a PyTorch module in float32 with the input and labels of a Predictor.

Explanations need gradients and inner tensors, which engines do not have, so the module is loaded on demand, whatever
engine the Predictor uses. Letters for shapes: B images, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import show
from ..data.decode import Pixels
from ..data.transforms import normalise
from ..errors import ImageError, UsageError
from ..inputs import AnyImage
from ..models.base import ImageModel
from ..pipeline import ImageReader, decode_images, with_keys
from ..predictor import Predictor
from ..results import FloatArray
from ..text import printable

AHEAD = 4  # images that are decoded before they are needed
MOST_DIGITS = 100  # of an index


@dataclass(frozen=True)
class PreparedImage:
    """One image as the model sees it: pixels (H,W,3) uint8, and x (1,C,H,W), normalized float32."""

    key: str
    pixels: Pixels
    x: Tensor


class Subject:
    """A model ready to be explained.

    model: a copy in evaluation mode and float32, whose parameters need no gradients. family: "convmixer", "convit",
    "crossvit", or the kind of mixer: "mixer", "gmixer", "resmlp", "gmlp". labels: names of the classes.
    """

    def __init__(self, predictor: Predictor):
        """Copy the module of a Predictor. Raises UsageError `bad_argument` for an exported model, which has none."""
        self.predictor = predictor
        self.name, self.labels, self.spec = predictor.name, predictor.labels, predictor.spec
        self.reader = ImageReader(predictor.spec, predictor.transform, predictor.policy, predictor.limits)
        self.model: ImageModel = copy.deepcopy(predictor.model).float().eval().requires_grad_(False)
        self.device = next(self.model.parameters()).device
        self.family = family_of(self.model)

    def prepare(
        self, images: AnyImage | Iterable[object], keys: Iterable[str] | None = None
    ) -> Iterator[tuple[str, PreparedImage | ImageError]]:
        """Yield (key, image as the model sees it) in order; (key, error) for an image that cannot be read.

        images: one or many, as in `Predictor.records`; keys: likewise.
        """
        for key, pixels in decode_images(with_keys(images, keys), self.reader, AHEAD):
            yield key, pixels if isinstance(pixels, ImageError) else PreparedImage(key, pixels, self.normalized(pixels))

    def normalized(self, pixels: Pixels) -> Tensor:
        """Return (H,W,3) or (B,H,W,3) uint8 pixels as (B,C,H,W) normalized float32 on the model's device."""
        batch = torch.from_numpy(np.ascontiguousarray(pixels if pixels.ndim == 4 else pixels[None]))
        return normalise(batch.to(self.device), self.spec)

    @torch.no_grad()
    def logits(self, x_BCHW: Tensor) -> FloatArray:
        """(B,C,H,W) normalized images -> logits (B,K) float32, in evaluation mode."""
        return self.model(x_BCHW).float().cpu().numpy()

    def find_class(self, wanted: int | str) -> int:
        """Return the index of a class that is given by index or name; of a label like "tabby, tabby cat", one part
        suffices.

        A whole number is always an index. Text is an index only if no class has it as its name: in a model whose
        classes are named "1", "2" and "3", the text "1" is the first class, and the number 1 the second. Names are
        compared without case unless a label equals the text.

        Raises UsageError `bad_argument` for an unknown class, with the most similar names.
        """
        return find_class(self.labels, wanted)


def family_of(model: ImageModel) -> str:
    """Return "convmixer", "convit", "crossvit", or the kind of mixer: "mixer", "gmixer", "resmlp" or "gmlp"."""
    kind: str = getattr(model.config, "kind", type(model).__name__.lower())
    return kind


def find_class(labels: tuple[str, ...], wanted: int | str) -> int:
    """Return the index of a class given by index or name, as `Subject.find_class`. Raises UsageError `bad_argument`."""
    if not labels:
        raise UsageError("bad_argument", "the model has no classes")
    if isinstance(wanted, int | np.integer) and not isinstance(wanted, bool):
        return _check_index(int(wanted), labels, wanted=int(wanted))
    if wanted in labels:
        return labels.index(wanted)  # before the names without case, so that "Crane" and "crane" can be told apart
    text, names = str(wanted).strip(), _names(labels)
    if (found := names.get(text.casefold())) is not None:
        return found[1]
    if text.isdecimal():
        # Python refuses to read numbers of thousands of digits
        return _check_index(int(text) if len(text) <= MOST_DIGITS else -1, labels, wanted=text)
    near = [names[name][0] for name in difflib.get_close_matches(text.casefold(), names, n=3, cutoff=0.6)]
    similar = f"similar names: {', '.join(map(printable, near))}"
    hint = similar if near else f"give a name, such as {printable(labels[0])!r}, or an index"
    raise UsageError("bad_argument", f"the model has no class {show(wanted)}", hint=hint)


def _names(labels: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """Return all names of classes, case-folded, with their spelling and index; whole labels, then parts of labels.

    The first class of a name has it.
    """
    whole = [(label, i) for i, label in enumerate(labels)]
    parts = [(part.strip(), i) for label, i in whole for part in label.split(",")]
    names: dict[str, tuple[str, int]] = {}
    for name, i in (*whole, *parts):
        names.setdefault(name.casefold(), (name, i))
    return names


def _check_index(index: int, labels: tuple[str, ...], *, wanted: int | str) -> int:
    if 0 <= index < len(labels):
        return index
    message = f"there is no class {show(wanted)}: the model has classes 0 to {len(labels) - 1}"
    raise UsageError("bad_argument", message)
