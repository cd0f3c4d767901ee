"""The results of `tessella tune` on disk: one record per model architecture, image size and machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from ..fingerprint import config_text
from ..machine import cpu_features, cpu_name, versions
from ..storage import make_folders, write_atomic
from ..text import any_of
from .artefacts import cache_folder
from .kinds import ENGINES, MAX_BATCH_SIZE, MAX_STREAMS

if TYPE_CHECKING:
    from ..weights.network import AnyModel

log = logging.getLogger(__name__)
Conditions: TypeAlias = dict[str, str | int | list[int] | None]


class Tuned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fastest settings found for one mode."""

    engine: str
    precision: str
    layout: str
    streams: int  # concurrent forward passes
    batch_size: int
    reason: str  # a sentence with the figures

    def check(self, threads: int) -> None:
        """Raise ValueError for settings that `tessella tune` does not write. threads: of the record."""
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}, expected {any_of(tuple(ENGINES))}")
        precisions = ENGINES[self.engine].precisions
        if self.precision not in precisions:
            raise ValueError(f"precision is {self.precision!r}, expected {any_of(precisions)} for {self.engine}")
        streams = max(threads, MAX_STREAMS)
        for what, value, most in (("streams", self.streams, streams), ("batch_size", self.batch_size, MAX_BATCH_SIZE)):
            if not 1 <= value <= most:
                raise ValueError(f"{what} is {value}, expected 1 to {most:,}")


class TunedRecord(msgspec.Struct, frozen=True):
    """One file of results. winners: settings by mode. table: all candidates that were measured. date: YYYY-MM-DD."""

    conditions: Conditions
    winners: dict[str, Tuned]
    table: list[dict[str, object]]
    date: str

    @property
    def arch(self) -> str:
        """The name of the architecture."""
        return str(self.conditions["arch"])

    def holds(self, threads: int) -> bool:
        """Return whether the record was measured on this machine, with these versions and this number of threads."""
        arch, config, size = (self.conditions[name] for name in ("arch", "config", "size"))
        if not isinstance(arch, str) or not isinstance(config, str) or not isinstance(size, list) or len(size) != 2:
            return False
        return self.conditions == Workload(arch, config, (size[0], size[1]), threads).conditions()


@dataclass(frozen=True)
class Workload:
    """What is tuned: an architecture, its image size and the number of threads. Speed does not depend on weights."""

    arch: str
    config: str  # the repr of the model's config
    size: tuple[int, int]  # (height, width) in pixels
    threads: int

    @classmethod
    def of(cls, model: AnyModel, size: tuple[int, int], threads: int) -> Workload:
        """Return the workload of `model` on images of `size` (height, width)."""
        return cls(model.arch, config_text(model.config), size, threads)

    def conditions(self) -> Conditions:
        """Return everything that a measured speed depends on: this workload, the machine and the versions."""
        return dict(
            arch=self.arch,
            config=self.config,
            size=list(self.size),
            threads=self.threads,
            cpu=cpu_name(),
            features=cpu_features(),
            cores=os.cpu_count(),
            **versions(),
        )

    def path(self) -> Path:
        """Return the path of the record under the current conditions."""
        key = hashlib.sha256(json.dumps(self.conditions(), sort_keys=True).encode()).hexdigest()[:16]
        return records_folder() / f"{self.arch}-{key}.json"


def records_folder() -> Path:
    """Return the folder of the records, which need not exist."""
    return cache_folder() / "tuned"


def find_tuned(workload: Workload, mode: str) -> Tuned | None:
    """Return the fastest settings for `mode`, or None if none were measured or, with a warning, they are invalid."""
    record = _read(workload.path(), workload.threads)
    return record.winners.get(mode) if record else None


def save_tuned(workload: Workload, winners: Mapping[str, Tuned], table: list[dict[str, object]], date: str) -> Path:
    """Write the record that `find_tuned` reads, replacing one of the same conditions, and return its path.

    winners: settings by mode. table: all candidates that were measured. date: YYYY-MM-DD. Raises OSError.
    """
    path = workload.path()
    make_folders(path.parent)
    record = TunedRecord(workload.conditions(), dict(winners), table, date)
    write_atomic(path, json.dumps(msgspec.to_builtins(record), indent=1).encode())
    return path


def all_tuned() -> Iterator[TunedRecord]:
    """Yield every readable record in the cache, including those of other machines."""
    folder = records_folder()
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        record = _read(path)
        if record and {"arch", "config", "size"} <= set(record.conditions):
            yield record


def _read(path: Path, threads: int | None = None) -> TunedRecord | None:
    """Return a record, or None if there is none or, with a warning, if it is not one that `save_tuned` writes.

    threads: the most streams that a record may have; None for its own number of threads.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=TunedRecord)
        most = record.conditions.get("threads") if threads is None else threads
        for winner in record.winners.values():
            winner.check(most if isinstance(most, int) else 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("the tuned settings in %s are ignored: %s", path, error)
        return None
    return record
