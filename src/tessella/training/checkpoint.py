"""Checkpoints of a training run: folders of safetensors and JSON that are complete or not used.

    RUN/checkpoints/at-00001203/   model.safetensors, optimizer.safetensors, [ema.safetensors], state.json
                                   MANIFEST.json    the SHA-256 of each file, written last

The number, the checkpoint's id, is the number of steps plus the number of epochs validated, so it grows whenever
something new is saved. A folder is written under a temporary name, synced and renamed, so that a crash leaves the older
checkpoints and no partial one. The newest has the highest number; one that does not match its manifest is reported and
the one before it is used. Nothing is unpickled.
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
class TrainingCheckpoint:
    """The contents of a checkpoint.

    tensors: by part ("model", "optimizer", "ema"), then by name. state: other values, as JSON has them.
    """

    checkpoint_id: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def checkpoint_folder(run: Path, checkpoint_id: int) -> Path:
    """Return the folder of a checkpoint, whether it exists or not."""
    return run / "checkpoints" / f"at-{checkpoint_id:08d}"


def save(
    run: Path, checkpoint_id: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]
) -> Path:
    """Write a checkpoint and return its folder.

    Raises OutputError `output_failed`; the older checkpoints are then unchanged.
    """
    folder = checkpoint_folder(run, checkpoint_id)
    draft = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by a run that was killed while writing
        draft.mkdir(parents=True)
        files = {f"{part}.safetensors": safetensors.torch.save(_contiguous(named)) for part, named in tensors.items()}
        files[STATE] = json.dumps(dict(state), allow_nan=False).encode()
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        for name, data in files.items():
            write_atomic(draft / name, data)
        write_atomic(draft / MANIFEST, json.dumps(dict(moment=checkpoint_id, sha256=hashes), indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)  # a damaged checkpoint of the same number
        draft.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OutputError(
            "output_failed",
            f"the checkpoint {folder} could not be written: {error.strerror or error}",
            hint="free some space and run the same command again: it resumes from the last complete checkpoint",
        ) from error
    return folder


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU: safetensors supports neither memory formats nor shared memory."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def checkpoint_ids(run: Path) -> list[int]:
    """Return the ids of all checkpoint folders in ascending order, damaged ones included.

    Raises OutputError `output_failed` if the folder of the checkpoints cannot be read.
    """
    folder = run / "checkpoints"
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError("output_failed", f"{folder} could not be read: {error.strerror}") from error
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def read(run: Path, checkpoint_id: int) -> TrainingCheckpoint:
    """Return a checkpoint whose files match its manifest; raises WeightsError `damaged_checkpoint`."""
    folder = checkpoint_folder(run, checkpoint_id)
    try:
        files = _read_files(folder, checkpoint_id)
        state = json.loads(files.pop(STATE))
        tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(data) for name, data in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WeightsError(
            "damaged_checkpoint", f"{folder} is damaged: {reason}", hint="delete it, or give another --out"
        ) from None
    return TrainingCheckpoint(checkpoint_id, tensors, state)


def _read_files(folder: Path, checkpoint_id: int) -> dict[str, bytes]:
    manifest = json.loads(read_regular(folder / MANIFEST))
    if manifest["moment"] != checkpoint_id:
        raise ValueError(f"its manifest is that of checkpoint {manifest['moment']}")
    files = {name: read_regular(folder / Path(name).name) for name in manifest["sha256"]}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest["sha256"][name]:
            raise ValueError(f"the hash of {name} does not match the manifest")
    return files


def read_newest(run: Path, log: Callable[[str], None]) -> TrainingCheckpoint | None:
    """Return the newest complete checkpoint, or None if there are none.

    log: called with a sentence about each damaged checkpoint. Raises WeightsError `damaged_checkpoint` if all are
    damaged.
    """
    damaged: WeightsError | None = None
    for checkpoint_id in reversed(checkpoint_ids(run)):
        try:
            return read(run, checkpoint_id)
        except WeightsError as error:
            log(f"{error.message}; trying the checkpoint before it")
            damaged = error
    if damaged is not None:
        raise damaged
    return None


def prune(run: Path, saved: int, keep: int, best: int | None = None) -> None:
    """Delete all checkpoints older than the newest `keep`, except the best.

    saved: the id of the checkpoint that was just saved. Checkpoints with higher ids are damaged: the run was resumed
    from an older one. They are neither counted nor deleted.
    Raises WeightsError `damaged_checkpoint`, and deletes nothing, if `saved` cannot be read back.
    """
    read(run, saved)
    ids = [checkpoint_id for checkpoint_id in checkpoint_ids(run) if checkpoint_id <= saved]
    for checkpoint_id in ids[:-keep]:
        if checkpoint_id != best:
            shutil.rmtree(checkpoint_folder(run, checkpoint_id), ignore_errors=True)
