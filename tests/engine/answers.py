"""Open engines over and over, and compare all of their answers, the first ones included, with one reference.

A race in a runtime shows in the first passes of an engine, when weights are packed and kernels are generated.
`scripts/soak answers` opens thousands of engines with several streams, beside others that are opened and freed.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from tessella.engine import make_plan, open_engine
from tessella.machine import cpu_class, cpu_name
from tessella.performance.candidates import load_case

from ..soak import write_figures

TOLERANCE = 1e-3  # of the norm of an image's logits; last bits differ between batch sizes and layouts
PASSES = 2  # of each engine


@dataclasses.dataclass
class Found:
    """Counts of a trial. wrong: for each engine with a wrong answer, the error of every image in all passes."""

    engines: int = 0
    answers: int = 0  # images
    wrong: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def errors(logits: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the (B,) relative errors of the logits (B,classes) of each image."""
    return np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)


def open_repeatedly(name: str, seconds: float, seed: int = 0, batch: int = 8) -> Found:
    """Open engines of a model in float32 with random weights until the time is over, and check their answers."""
    rng, found = random.Random(seed), Found()
    case = load_case(name)
    network, size = case.network, (case.spec.height, case.spec.width)
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, *size, case.spec.channels), np.uint8)
    plans = {
        precision: make_plan("cpu", precision, "openvino", batch, "throughput", network, size)
        for precision in ("float32", "bfloat16")
    }
    expected = case.expected(pixels)
    filler: list[np.ndarray] = []  # moves the addresses at which the next engine's memory lies
    until = time.monotonic() + seconds
    while time.monotonic() < until or not found.engines:
        filler.append(np.ones(rng.randrange(1, 40) * 1_000_000, np.uint8))
        if len(filler) > 5:
            filler.pop(rng.randrange(len(filler)))
        other = open_engine(network, plans["bfloat16"], size, case.spec) if rng.random() < 0.3 else None
        engine = open_engine(network, plans["float32"], size, case.spec)
        seen = [errors(next(iter(engine.imap([pixels])))[0], expected) for _ in range(PASSES)]
        found.engines += 1
        found.answers += PASSES * batch
        if not all(row.max() <= TOLERANCE for row in seen):  # also true for NaN
            seen += [errors(next(iter(engine.imap([pixels])))[0], expected) for _ in range(3)]
            found.wrong.append(dict(model=name, engine=found.engines, errors=[row.round(4).tolist() for row in seen]))
            print(found.wrong[-1], flush=True)
        if other is not None:
            other(pixels)
        del engine, other
    return found


def main() -> None:
    """Run the trial for every model in turn."""
    parser = argparse.ArgumentParser(prog="scripts/soak answers", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mixer_b16_224", "mixer_ti_p4_32.cifar10", "crossvit_9_240"])
    parser.add_argument("--seconds", type=float, default=300, help="duration per model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    models = {}
    for name in options.models:
        found = open_repeatedly(name, options.seconds, options.seed)
        models[name] = dataclasses.asdict(found)
        print(f"{name}: {found.engines} engines, {found.answers} answers, {len(found.wrong)} engines with wrong ones")
    what = "answers of engines that were just opened, two passes each, against eager PyTorch"
    conditions = dict(seconds=options.seconds, seed=options.seed, tolerance=TOLERANCE, cpu=cpu_name(), kind=cpu_class())
    write_figures(options.out, what, dict(models=models), **conditions)
    raise SystemExit(any(row["wrong"] for row in models.values()))


if __name__ == "__main__":
    main()
