"""The names of the tensors in a weight file: prefixes that wrappers add, and the comparison with those of a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TypeVar

from ..errors import WeightsError
from ..models.layout import TensorKind
from ..text import count_of
from .formats import refuse

MAX_SHOWN = 10  # differences in a message
# keys of the original authors' files: ConvMixer's Sequential, CrossViT's ParameterLists, Facebook's ResMLP
_ORIGINAL_KEY = re.compile(r"\d+\.|pos_embed\.\d|cls_token\.\d|blocks\.\d+\.(gamma_|attn\.weight)")
_log = logging.getLogger(__name__)

T = TypeVar("T")


def without_wrappers(state: Mapping[str, T], path: Path) -> dict[str, T]:
    """Remove the prefixes of compiled and replicated modules from the keys.

    Raises WeightsError `bad_format` if two keys become the same.
    """
    stripped = {re.sub(r"^(?:_orig_mod\.|module\.)+", "", key): value for key, value in state.items()}
    if len(stripped) != len(state):
        refuse("bad_format", path, "contains the same tensor with and without a `module.` prefix")
    return stripped


def without_prefix(state: Mapping[str, T], known: Container[str], source: object) -> dict[str, T]:
    """Remove prefixes (`model.`, `net.`) that all keys share, if the result contains a key in `known`.

    The removed prefix is logged as a warning. A state dict with a known key is returned unchanged.
    """
    removed, renamed = "", dict(state)
    while renamed and not any(key in known for key in renamed):
        prefix = next(iter(renamed)).partition(".")[0] + "."
        if not all(key.startswith(prefix) for key in renamed):
            return dict(state)
        removed += prefix
        renamed = {key.removeprefix(prefix): value for key, value in renamed.items()}
    if removed:
        _log.warning("%s: the prefix %r of all %d keys is removed", source, removed, len(renamed))
    return renamed


def verify_kinds(
    state: Mapping[str, TensorKind], expected: Mapping[str, TensorKind], *, source: object, arch: str
) -> None:
    """Check that a file has the tensors of a model, with their shapes and kinds of types.

    source, arch: names for the message. Raises WeightsError `wrong_keys`, `wrong_shape` or `wrong_dtype` with the first
    differences.
    """
    missing = [f"- {key} {_shape(kind)}" for key, kind in expected.items() if key not in state]
    unexpected = [f"+ {key} {_shape(kind)}" for key, kind in state.items() if key not in expected]
    shapes, dtypes = [], []
    for key in expected.keys() & state.keys():
        ours, theirs = expected[key], state[key]
        if ours.shape != theirs.shape:
            shapes.append(f"  {key}: model {_shape(ours)}, file {_shape(theirs)}")
        elif not _is_convertible(key, ours.dtype, theirs.dtype):
            dtypes.append(f"  {key}: model {ours.dtype}, file {theirs.dtype}")
    differences = missing + unexpected + sorted(shapes) + sorted(dtypes)
    if not differences:
        return
    code = "wrong_keys" if missing or unexpected else "wrong_shape" if shapes else "wrong_dtype"
    original = any(_ORIGINAL_KEY.match(key) for key in state)
    raise WeightsError(
        code,
        f"{source} is not {arch or 'this model'}: {count_of(len(differences), 'difference')}, "
        "- missing in the file, + not in the model\n" + "\n".join(differences[:MAX_SHOWN]),
        hint="this looks like the original authors' file: run `tessella convert`"
        if original
        else "check that the checkpoint and the arguments belong to this architecture",
    )


def _is_convertible(key: str, ours: str, theirs: str) -> bool:
    """Return whether the types are of the same kind; batch counters may be floats, as in averaged or cast states."""
    if _is_float(theirs) and key.endswith("num_batches_tracked"):
        return True
    return ours == theirs or (_is_float(ours) and _is_float(theirs))


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _shape(kind: TensorKind) -> str:
    return f"({', '.join(map(str, kind.shape))})"
