"""The settings of a bulk run that a user chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..checks import check_count, check_fields, check_seconds

DEFAULT_SHARD_ROWS = {"cpu": 1024, "cuda": 16_384}  # by device; a kill costs at most this many images
OTHER_SHARD_ROWS = 16_384  # on other devices
MAX_ROWS = 10_000_000  # per shard, which is held in memory
MAX_PROCESSES = 4096
MAX_SECONDS = 30 * 24 * 3600.0  # per image
Dtype: TypeAlias = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of `tessella.bulk.run`.

    top: number of top classes per row, 0 for none. dtype: data type of the stored embeddings. shard_rows: rows per
    shard, rounded up to a multiple of the batch size; None depends on the device. processes: number of decoder
    processes; None for one per core, at most 8. timeout: time limit for decoding one image, in seconds. bad_inputs: a
    CSV file for the key, error code and message of every bad input.
    """

    top: int = 5
    dtype: Dtype = "float16"
    shard_rows: int | None = None
    processes: int | None = None
    timeout: float = 30.0
    bad_inputs: str | Path | None = None

    def __post_init__(self) -> None:
        """Raise UsageError `bad_argument` for a value of the wrong type or out of range."""
        check_fields(self)
        check_count("top", self.top, MAX_ROWS, least=0)
        if self.shard_rows is not None:
            check_count("shard_rows", self.shard_rows, MAX_ROWS)
        if self.processes is not None:
            check_count("processes", self.processes, MAX_PROCESSES)
        check_seconds("timeout", self.timeout, MAX_SECONDS)

    def shard_rows_for(self, device: str, batch_size: int) -> int:
        """Return the number of rows per shard, a multiple of the batch size."""
        rows = self.shard_rows or DEFAULT_SHARD_ROWS.get(device, OTHER_SHARD_ROWS)
        return -(-rows // batch_size) * batch_size
