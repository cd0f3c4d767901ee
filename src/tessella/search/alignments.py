"""Alignments: orthogonal maps of the embeddings of a new model to those of an old one, as sealed files.

A collection that was embedded with the old model can then be searched with images that the new model embeds. Fitting
and judging an alignment is the work of `tessella compare --write-alignment`. The file has the identity of both models:
it is refused for any other, and what it returns has a fingerprint of its own, so that aligned embeddings are never
taken for those of either model.

Letters for shapes: N embeddings, D width of the old embedding, F width of the new one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from ..checks import as_path, checked
from ..errors import UsageError, WeightsError
from ..results import FloatArray, is_finite, l2_normalize
from ..storage import check_output, json_hash, read_regular, write_bytes

FORMAT, ENTRY = 1, "tessella"  # ENTRY: the metadata of the file, as sealed JSON
SUFFIX = ".safetensors"
MAX_BYTES = 1 << 30  # of a file
TOLERANCE = 1e-4  # by which the matrix may differ from a semi-orthogonal one


class Making(NamedTuple):
    """How embeddings are made; embeddings with the same fingerprint can be compared."""

    model: str
    fingerprint: str
    transform: str
    policy: str
    precision: str
    engine: str


class _StoredFacts(msgspec.Struct, forbid_unknown_fields=True):
    """The facts in a file, without their hash."""

    format: Literal[1]
    old: dict[str, str]
    new: dict[str, str]
    images: Annotated[int, msgspec.Meta(ge=0)]
    kept: Annotated[float, msgspec.Meta(ge=0, le=1)]
    matrix: str


@dataclass(frozen=True, eq=False)
class Alignment:
    """A semi-orthogonal map of new embeddings to old ones, which keeps lengths and angles as far as widths allow.

    matrix: (D,F) float32. old, new: how both kinds of embeddings are made. images: number of images that it was fitted
    to. kept: of the ten nearest images by the old embeddings, the share that aligned queries find, on other images.
    """

    matrix: FloatArray
    old: Making
    new: Making
    images: int
    kept: float

    def __call__(self, vectors_NF: FloatArray) -> FloatArray:
        """Return new embeddings (N,F) as embeddings (N,D) of unit length that can be compared with old ones.

        Raises UsageError `bad_argument` for embeddings of another width.
        """
        if vectors_NF.ndim != 2 or vectors_NF.shape[1] != self.matrix.shape[1]:
            expected = f"(N,{self.matrix.shape[1]})"
            raise UsageError("bad_argument", f"the embeddings are {vectors_NF.shape}, expected {expected}")
        return l2_normalize(l2_normalize(vectors_NF) @ self.matrix.T)

    @property
    def fingerprint(self) -> str:
        """16 hex digits for both models and the matrix: the fingerprint of aligned embeddings."""
        facts = dict(old=self.old.fingerprint, new=self.new.fingerprint, matrix=_array_hash(self.matrix))
        return json_hash(facts)[:16]

    def check_old(self, fingerprint: str, model: str) -> None:
        """Raise UsageError `changed_run` unless embeddings with this fingerprint, of this model, are the old ones."""
        if fingerprint != self.old.fingerprint:
            raise UsageError(
                "changed_run",
                f"the alignment leads to embeddings of {self.old.model} (fingerprint {self.old.fingerprint}), "
                f"not to those of {model} ({fingerprint})",
                hint="use it with a run of that model, or fit another: tessella compare RUN NEW --write-alignment FILE",
            )

    @checked
    def save(self, path: str | Path) -> None:
        """Write the alignment to a .safetensors file.

        Raises UsageError `bad_argument` for another suffix, OutputError `output_failed`.
        """
        path = check_output(as_path("the alignment", path), (SUFFIX,))
        facts = dict(format=FORMAT, old=self.old._asdict(), new=self.new._asdict(), images=self.images, kept=self.kept)
        facts |= dict(matrix=_array_hash(self.matrix))
        sealed = json.dumps(facts | dict(sha256=json_hash(facts)))
        write_bytes(path, safetensors.numpy.save({"matrix": self.matrix}, {ENTRY: sealed}))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Alignment:
        """Read a file that `save` wrote.

        Raises UsageError `not_found`, WeightsError `bad_format` for a file that is damaged or no alignment.
        """
        path = as_path("the alignment", path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("too large")
            data = read_regular(path)
            size = int.from_bytes(data[:8], "little")
            values = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][ENTRY])
            matrix = np.asarray(safetensors.numpy.load(data)["matrix"], np.float32)
            if values.pop("sha256") != json_hash(values):
                raise ValueError("damaged")
            facts = msgspec.convert(values, _StoredFacts)
            if facts.matrix != _array_hash(matrix) or not _is_semi_orthogonal(matrix):
                raise ValueError("not the matrix that was written")
            return cls(matrix, Making(**facts.old), Making(**facts.new), facts.images, facts.kept)
        except OSError as error:
            raise UsageError("not_found", f"{str(path)!r} cannot be read: {error.strerror or error}") from None
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            safetensors.SafetensorError,
        ):
            raise WeightsError(
                "bad_format",
                f"{str(path)!r} is damaged, or no alignment",
                hint="write one with: tessella compare OLD NEW DATA --write-alignment FILE",
            ) from None


def _array_hash(matrix: NDArray[np.float32]) -> str:
    return hashlib.sha256(f"{matrix.shape}".encode() + np.ascontiguousarray(matrix, "<f4").tobytes()).hexdigest()


def _is_semi_orthogonal(matrix: FloatArray) -> bool:
    """Return whether the rows or the columns, whichever are fewer, are orthogonal and of unit length."""
    if matrix.ndim != 2 or not is_finite(matrix):
        return False
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return bool(np.abs(tall.T @ tall - np.eye(tall.shape[1])).max() < TOLERANCE)
