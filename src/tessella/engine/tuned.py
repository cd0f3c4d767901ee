"""What `tessella tune` measured on this machine, kept on disk: one record a model, size and machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..machine import cpu_features, cpu_name, versions
from ..storage import write_atomic
from .artefacts import cache_folder


@dataclass(frozen=True)
class Tuned:
    """The fastest way found for one mode."""

    engine: str
    precision: str
    layout: str
    streams: int
    batch_size: int
    reason: str  # in words, with the figures


def find_tuned(arch: str, config: str, size: tuple[int, int], threads: int, mode: str) -> Tuned | None:
    """The winner of that mode; None where nothing was measured under today's conditions, or the record is damaged."""
    record = _read(_path(conditions(arch, config, size, threads)))
    try:
        return Tuned(**record["winners"][mode]) if record else None
    except (KeyError, TypeError):
        return None


def keep_tuned(
    arch: str,
    config: str,
    size: tuple[int, int],
    threads: int,
    winners: Mapping[str, Tuned],
    table: list[dict[str, Any]],
    date: str,
) -> Path:
    """Write the record that `find_tuned` reads; an older one under the same conditions is replaced."""
    found = conditions(arch, config, size, threads)
    path = _path(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {mode: dataclasses.asdict(winner) for mode, winner in winners.items()}
    record = dict(conditions=found, winners=named, table=table, date=date)
    write_atomic(path, json.dumps(record, indent=1).encode())
    return path


def all_tuned() -> Iterator[tuple[dict[str, Any], dict[str, Tuned]]]:
    """(conditions, {mode: winner}) of every record that can be read, whatever machine it is of."""
    folder = cache_folder() / "tuned"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        record = _read(path)
        try:
            found, named = record["conditions"], record["winners"]
            if {"arch", "config", "size"} <= set(found):
                yield found, {mode: Tuned(**winner) for mode, winner in named.items()}
        except (KeyError, TypeError, AttributeError):
            continue


def conditions(arch: str, config: str, size: tuple[int, int], threads: int) -> dict[str, Any]:
    """What a measurement of speed depends on: the model's shape, the machine, the versions. Not its weights."""
    cpu = dict(cpu=cpu_name(), features=cpu_features(), cores=os.cpu_count())
    return dict(arch=arch, config=config, size=list(size), threads=threads, **cpu, **versions())


def _path(found: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "tuned" / f"{found['arch']}-{key}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}
