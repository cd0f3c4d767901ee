"""Write results with the conditions of their measurement to a CSV file named after benchmark, hardware and date."""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tessella.machine import hardware
from tessella.records import slug

RESULTS = Path(__file__).resolve().parent / "results"


def unused_path(path: Path) -> Path:
    """Return the path, with a number at its end if it exists: results are added and never replaced.

    Its folder is created: an error after the measurement would lose the results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = (path.with_stem(f"{path.stem}_{number}") if number > 1 else path for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def write_table(
    what: str, rows: Sequence[dict[str, Any]], folder: Path = RESULTS, *, precision: str = "float32"
) -> None:
    """Write rows with the same columns, measured on a CPU in this precision, and print them and the file's name."""
    version, date = ".".join(torch.__version__.split(".")[:2]), time.strftime("%Y-%m-%d")
    path = unused_path(folder / f"{what}_{slug(hardware('cpu'))}_{precision}_torch{version}_{date}.csv")
    conditions = dict(threads=torch.get_num_threads(), hardware=hardware("cpu"), torch=torch.__version__, date=date)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *conditions], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | conditions for row in rows)
    for row in rows:
        print(row)
    print(path)
