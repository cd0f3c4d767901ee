"""Resolve model names as users write them: parts of names, patterns and folders. Torch is not imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, WeightsError
from ..storage import expand_home
from .catalogue import ARCHITECTURE_NAMES, MODULES, list_models, published_accuracy


def find_models(patterns: Sequence[str], *, pretrained: bool = False) -> list[str]:
    """Return the `arch.tag` names that match any of the patterns, in natural order.

    A pattern without wildcards matches every name that contains it. An architecture without checkpoints has no name.
    Raises UsageError: `unknown_model`, with similar names, for a pattern that matches nothing; `no_weights` if all
    matches are architectures without checkpoints, or `pretrained` excludes them.
    """
    if not patterns:
        return list_models(pretrained=pretrained, include_tags=True, name_matches_cfg=True)
    matches: set[str] = set()
    for pattern in patterns:
        glob = pattern if any(character in pattern for character in "*?[") else f"*{pattern}*"
        names = list_models(glob.lower(), include_tags=True)
        if not names:
            raise _no_match(pattern)
        matches.update(list_models(glob.lower(), pretrained=pretrained, include_tags=True, name_matches_cfg=True))
    if not matches:
        listed = ", ".join(patterns)
        hint = "omit --pretrained" if pretrained else "`tessella info ARCHITECTURE` describes an architecture"
        raise UsageError("no_weights", f"no weights are published for {listed}", hint=hint)
    return [name for name in list_models(include_tags=True) if name in matches]


def headline_accuracy(name: str) -> tuple[float, str] | None:
    """Return the top-1 accuracy in per cent, and its data set: ImageNet-1k, or CIFAR-10 for built-in models."""
    figures = published_accuracy(name)
    for dataset, label in (("imagenet", "ImageNet-1k"), ("cifar10", "CIFAR-10")):
        if dataset in figures:
            return figures[dataset].top1, label
    return None


def _no_match(pattern: str) -> UsageError:
    close = difflib.get_close_matches(pattern.lower().partition(".")[0], ARCHITECTURE_NAMES, n=3, cutoff=0.5)
    suggested = f"did you mean {', '.join(close)}? " if close else ""
    return UsageError(
        "unknown_model",
        f"no model matches {pattern!r}",
        hint=f"{suggested}the supported families are {', '.join(MODULES)}; `tessella list` shows all models",
    )


def local_folder(name: str) -> Path:
    """Return the folder of a `local-dir:PATH` name; `~` is the home folder.

    Raises UsageError `bad_argument` for the home folder of an unknown user, WeightsError `weights_not_found` if the
    folder does not exist.
    """
    path = name.removeprefix("local-dir:")
    if not path:
        raise UsageError("bad_argument", f"{name!r} has no folder", hint="write local-dir:PATH")
    folder = expand_home(path)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for names that are too long
        state = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise WeightsError(
            "weights_not_found",
            f"the model folder {str(folder)!r} {state}",
            hint="give a folder that `tessella train`, `convert`, `export` or save_pretrained has written",
        )
    return folder
