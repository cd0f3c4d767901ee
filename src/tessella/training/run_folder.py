"""The folder of a run: the checks before training, and its train.json.

train.json holds the config and the fingerprints of the training and validation images and, for distillation, of the
unlabeled images and of the teacher's files or weights. A run is resumed only with the same settings, data and teacher.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..data.unlabelled import TrainingImages
from ..errors import OutputError, UsageError
from ..storage import read_regular, write_bytes
from ..text import count_of
from .config import TrainConfig, differences

SETTINGS, LOCK = "train.json", ".train.lock"
RESULTS = (  # files that a run writes; in a folder without train.json, they are not those of a run
    "README.md",
    "config.json",
    "model.safetensors",
    "calibration.safetensors",
    "images.npz",
    "metrics.jsonl",
    "skipped.jsonl",
    "report/report.md",
    "report/report.json",
)
MAX_SHOWN = 5  # differences that an error message lists
_OPTIONAL = ("unlabelled", "teacher")  # fields of train.json that not every run has
_CONTENTS = {  # fingerprints, and what they are of
    "data": "the training images",
    "val": "the validation images",
    "unlabelled": "the unlabeled images",
    "teacher": "the teacher's files",
}


def check_folder(out: str | Path) -> Path:
    """Return the folder of a run as a path, whether it exists or not.

    Raises UsageError `bad_argument` for an empty name and `exists` for files that a run would overwrite and
    that are not those of a run, and OutputError `output_failed` if it cannot be created.
    """
    if not os.fspath(out):
        raise UsageError("bad_argument", "the output folder has no name", hint="--out RUN")
    folder = Path(out)
    try:
        (folder / SETTINGS).lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            "output_failed", f"{str(folder)[:200]!r} cannot be used: {reason}", hint="give another --out"
        ) from None
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(
            "output_failed",
            f"{folder} cannot be the output folder: {existing} is not a folder",
            hint="give another --out",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError("output_failed", f"{existing} is not writable", hint="give another --out")
    if not os.path.lexists(folder / SETTINGS):
        _refuse_other_files(folder)
    return folder


def _refuse_other_files(folder: Path) -> None:
    """Raise UsageError `exists` if a training run would overwrite files in a folder that is not one of a run."""
    from .checkpoint import checkpoint_folder, checkpoint_ids  # it needs PyTorch, which other users of this module lack

    found = [name for name in RESULTS if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    found += [checkpoint_folder(folder, i).relative_to(folder).as_posix() for i in checkpoint_ids(folder)[:1]]
    if found:
        more = f" and {count_of(len(found) - 1, 'other file')}" if len(found) > 1 else ""
        raise UsageError(
            "exists",
            f"{folder} is not the folder of a training run, because it has no {SETTINGS}, and its {found[0]}{more} "
            "would be overwritten",
            hint="give another --out",
        )


@dataclass(frozen=True)
class TrainingRecord:
    """The contents of train.json.

    data, val: fingerprints of the training and the validation images; unlabelled, teacher: of the unlabeled images and
    of a teacher's files or weights, "" if there is none. Earlier versions did not record the weights of a model.
    """

    config: TrainConfig
    data: str
    val: str
    unlabelled: str = ""
    teacher: str = ""

    @classmethod
    def of(cls, config: TrainConfig, images: TrainingImages, teacher: str = "") -> TrainingRecord:
        """Return the record of a run with this config and these images. teacher: its fingerprint."""
        unlabelled = "" if images.unlabelled is None else images.unlabelled.fingerprint
        return cls(config, images.train.fingerprint, images.val.fingerprint, unlabelled, teacher)

    @classmethod
    def read(cls, folder: Path) -> TrainingRecord:
        """Return the record in the folder of a run; raises OutputError `damaged_run`."""
        path = folder / SETTINGS
        try:
            values = json.loads(read_regular(path))
            optional = {name: values[name] for name in _OPTIONAL if name in values}
            return cls(TrainConfig.from_dict(values["config"]), values["data"], values["val"], **optional)
        except UsageError as error:
            reason = error.message
        except OSError as error:
            reason = str(error.strerror)
        except (ValueError, RecursionError):
            reason = "it is not JSON"
        except (KeyError, TypeError):
            reason = "config, data or val is missing"
        raise OutputError("damaged_run", f"{path} is damaged: {reason}", hint="give another --out")

    @classmethod
    def model_of(cls, out: str | Path) -> str | None:
        """Return the model of the run in the folder `out`; None if there is no run, or if train.json is damaged."""
        try:
            return cls.read(Path(out)).config.model
        except OutputError:
            return None

    def write(self, folder: Path) -> None:
        """Write train.json, unless the existing file has the same contents; raises OutputError `output_failed`.

        The file of an earlier version, which has former names of settings, is left as it is.
        """
        path = folder / SETTINGS
        if path.exists() and self._equals(TrainingRecord.read(folder)):
            return
        values = dict(config=self.config.as_dict(), data=self.data, val=self.val)
        values |= {name: value for name in _OPTIONAL if (value := getattr(self, name))}
        write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())

    def _equals(self, other: TrainingRecord) -> bool:
        same = all(getattr(self, name) == getattr(other, name) for name in ("data", "val", *_OPTIONAL))
        return same and not differences(self.config, other.config)

    def check_resumable(self, folder: Path) -> None:
        """Raise UsageError `changed_run` unless the run in the folder has the settings and data of this record.

        More epochs are allowed if the learning rate is constant, as the epochs that are done stay as they are.
        Raises OutputError `damaged_run` if train.json cannot be read.
        """
        old = TrainingRecord.read(folder)
        changed = differences(old.config, self.config)
        files = [text for name, text in _CONTENTS.items() if getattr(old, name) != getattr(self, name)]
        if not (old.teacher and self.teacher) and old.config.teacher == self.config.teacher:
            files = [text for text in files if text != _CONTENTS["teacher"]]  # not recorded, or not known yet
        if not files and set(changed) == {"epochs"}:
            self._check_more_epochs(folder, old.config)
        elif changed or files:
            texts = [f"{name} was {before}, now {now}" for name, (before, now) in changed.items()]
            texts += [f"{text} changed" for text in files]
            if len(texts) > MAX_SHOWN + 1:
                texts = [*texts[:MAX_SHOWN], f"and {len(texts) - MAX_SHOWN} more"]
            raise UsageError(
                "changed_run",
                f"{folder} holds a run with other settings or data: {'; '.join(texts)}",
                hint=f"give another --out, or resume the run as it was: --config {folder / SETTINGS}",
            )

    def _check_more_epochs(self, folder: Path, old: TrainConfig) -> None:
        new = self.config
        if new.schedule != "constant" or new.epochs < old.epochs:
            raise UsageError(
                "changed_run",
                f"{folder} holds a run of {old.epochs:,} epochs, not {new.epochs:,}: its learning rate follows the "
                f"{new.schedule} schedule of that many epochs",
                hint=f"to train its model further: -m local-dir:{folder}, --epochs and another --out",
            )
