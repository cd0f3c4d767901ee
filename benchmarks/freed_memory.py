"""Measure training steps with freed memory that is kept, and with freed memory that is returned to the system.

`scripts/bench freed_memory`. A step is forward, backward and AdamW on random images, as `tessella train` does it on a
CPU; tessella/allocator.py decides after each one about the memory. Processes that keep memory alternate with processes
that return it, each of them the first of every second pair. Rows are written to benchmarks/results as a CSV file: the
median time per image of both (milliseconds) and the share that the kernel takes, the median of the ratios of pairs with
their range, and the median of the peak memory of the processes (MB).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from depthwise import make_step
from table import RESULTS, write_table

from tessella.allocator import FreedMemory

# model, image size in pixels, batch size, precision, changed fields of the config
CASES: tuple[tuple[str, int, int, str, dict[str, Any]], ...] = (
    ("convmixer_256_8_ks3_p4", 32, 256, "bfloat16", dict(patch_size=2, kernel_size=5)),
    ("convmixer_384_8_ks5_p8", 96, 256, "bfloat16", {}),
    ("mixer_ti_p4_32", 32, 128, "bfloat16", {}),
    ("convit_tiny", 224, 64, "bfloat16", {}),
    ("mixer_s32_224", 224, 128, "float32", {}),
    ("crossvit_9_240", 240, 32, "float32", {}),
)
_FIRST = 3  # steps that prepare kernels and memory


def measure(case: int, keep: bool, steps: int) -> dict[str, float]:
    """Return the median milliseconds per image of steps in this process, the kernel's share, and the peak memory."""
    name, size, batch, precision, changes = CASES[case]
    step = make_step(name, size, batch, changes, name.startswith("convmixer"), precision)
    times, shares = [], []
    with FreedMemory() as freed_memory:
        for i in range(steps + _FIRST):
            before = resource.getrusage(resource.RUSAGE_SELF)
            milliseconds = step()
            after = resource.getrusage(resource.RUSAGE_SELF)
            if i >= _FIRST:
                kernel = after.ru_stime - before.ru_stime
                times.append(milliseconds)
                shares.append(kernel / (kernel + after.ru_utime - before.ru_utime))
            if keep:
                freed_memory.adjust()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return dict(ms=statistics.median(times), kernel=statistics.median(shares), peak=peak)


def in_new_process(case: int, keep: bool, steps: int) -> dict[str, float]:
    """Measure in a new process, whose memory is not yet fragmented."""
    command = [sys.executable, __file__, "--case", str(case), "--steps", str(steps), *(["--keep"] if keep else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row_of(case: int, pairs: int, steps: int, note: str) -> dict[str, Any]:
    """Measure pairs of processes, and return the row of a case."""
    name, size, batch, precision, changes = CASES[case]
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for i in range(pairs):
        for keep in (True, False) if i % 2 else (False, True):
            found[keep].append(in_new_process(case, keep, steps))
    ratios = [one["ms"] / other["ms"] for one, other in zip(found[False], found[True], strict=True)]
    medians = {
        (field, keep): statistics.median(one[field] for one in found[keep])
        for field in ("ms", "kernel", "peak")
        for keep in (False, True)
    }
    return dict(
        model=name,
        changes=" ".join(f"{key}={value}" for key, value in changes.items()),
        img_size=size,
        batch_size=batch,
        precision=precision,
        returned_ms=f"{medians['ms', False]:.2f}",
        kept_ms=f"{medians['ms', True]:.2f}",
        ratio=f"{statistics.median(ratios):.2f}",
        least=f"{min(ratios):.2f}",
        most=f"{max(ratios):.2f}",
        returned_kernel=f"{medians['kernel', False]:.2f}",
        kept_kernel=f"{medians['kernel', True]:.2f}",
        returned_mb=f"{medians['peak', False]:.0f}",
        kept_mb=f"{medians['peak', True]:.0f}",
        n=pairs,
        steps=steps,
        note=note,
    )


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="pairs of processes per model [default: 3]")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="timed steps per process [default: 5]")
    parser.add_argument("--note", default="", help="conditions of the measurement, kept with the rows")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV file")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measure(args.case, args.keep, args.steps)))
        return
    rows = []
    for case in range(len(CASES)):
        rows.append(row_of(case, args.pairs, args.steps, args.note))
        print(rows[-1], flush=True)
    write_table("freed-memory", rows, args.out, precision="mixed")


if __name__ == "__main__":
    main()
