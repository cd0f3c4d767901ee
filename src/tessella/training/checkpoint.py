"""Checkpoints of a training run: folders of safetensors and JSON that are whole or do not count.

    RUN/checkpoints/at-00001203/   model.safetensors, optimizer.safetensors, [ema.safetensors], state.json
                                   MANIFEST.json    the SHA-256 of each, written last

The number counts steps and evaluations, so that it grows with each change of what is saved. A folder is written under
another name, synced and renamed, so a crash leaves the old checkpoints and no half one. The newest is found by its
name; one that does not match its manifest is passed over, and that is said. No pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import OutputError, WeightsError
from ..storage import read_regular, sync_folder, write_atomic

MANIFEST, STATE = "MANIFEST.json", "state.json"
_NAME = re.compile(r"at-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by part ("model", "optimizer", "ema"), then by name; state: whatever JSON holds besides."""

    moment: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def folder_of(run: Path, moment: int) -> Path:
    return run / "checkpoints" / f"at-{moment:08d}"


def save(run: Path, moment: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `moment`; if it raises OutputError `output_failed`, the older ones are unchanged."""
    folder = folder_of(run, moment)
    draft = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed while it wrote
        draft.mkdir(parents=True)
        files = {f"{part}.safetensors": safetensors.torch.save(_plain(some)) for part, some in tensors.items()}
        files[STATE] = json.dumps(dict(state), allow_nan=False).encode()
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        for name, data in files.items():
            write_atomic(draft / name, data)
        write_atomic(draft / MANIFEST, json.dumps(dict(moment=moment, sha256=hashes), indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one of the same moment
        draft.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OutputError(
            "output_failed",
            f"the checkpoint {folder} could not be written: {error.strerror or error}",
            hint="free some space and run the same command again: it goes on from the last whole checkpoint",
        ) from error
    return folder


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the order of their axes: safetensors knows no memory formats, and no shared memory."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def moments(run: Path) -> list[int]:
    """Of the checkpoints that seem to be there, in order."""
    try:
        names = [path.name for path in (run / "checkpoints").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def read(run: Path, moment: int) -> Checkpoint:
    """The checkpoint of one moment, checked against its manifest; WeightsError `damaged_checkpoint`."""
    folder = folder_of(run, moment)
    try:
        files = _files(folder, moment)
        state = json.loads(files.pop(STATE))
        tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(data) for name, data in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WeightsError(
            "damaged_checkpoint", f"{folder} is damaged: {reason}", hint="delete it, or start again in another folder"
        ) from None
    return Checkpoint(moment, tensors, state)


def _files(folder: Path, moment: int) -> dict[str, bytes]:
    manifest = json.loads(read_regular(folder / MANIFEST))
    if manifest["moment"] != moment:
        raise ValueError(f"its manifest is that of moment {manifest['moment']}")
    files = {name: read_regular(folder / Path(name).name) for name in manifest["sha256"]}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest["sha256"][name]:
            raise ValueError(f"{name} is not the file that was written")
    return files


def read_newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Damaged ones are named to `say`; WeightsError `damaged_checkpoint` where all are.
    """
    damaged: WeightsError | None = None
    for moment in reversed(moments(run)):
        try:
            return read(run, moment)
        except WeightsError as error:
            say(f"{error.message}; the one before it is tried")
            damaged = error
    if damaged is not None:
        raise damaged
    return None


def prune(run: Path, keep: int, best: int | None = None) -> None:
    """Delete all but the newest `keep` and the best, once the newest reads back whole (else WeightsError)."""
    found = moments(run)
    if found:
        read(run, found[-1])
    for moment in found[:-keep]:
        if moment != best:
            shutil.rmtree(folder_of(run, moment), ignore_errors=True)
