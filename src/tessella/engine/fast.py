"""Precision "fast": the fastest precision that passes the gate, by measurement on this machine."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..machine import cpu_features, cpu_name, versions
from .artefacts import cached
from .base import Engine
from .facts import array_hash, conversion_facts
from .judging import GateImages, open_if_accurate, recipe_of, run_all, with_note
from .open import open_engine
from .plan import ENGINES, Choice, Plan, has_native_bfloat16
from .trial import settle_layout

if TYPE_CHECKING:
    from ..weights.network import Network

log = logging.getLogger(__name__)
ROUNDS = 4  # of timing, precisions in turn
ROUND_SECONDS = 0.1  # at least, of the fastest engine
SECONDS = 20.0  # after which no further round begins


def open_fastest(
    network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None, images: GateImages
) -> Engine:
    """Return an engine in the fastest precision that passes the gate; its plan has the times and the agreement.

    plan: of precision "fast". The result is cached, so that only the first call compares precisions. Raises
    WeightsError `cache_failed` or `conversion_failed`.
    """
    recipe = recipe_of(network, size)
    compared, calibration, _ = images
    settings = {name: getattr(plan, name) for name in ("device", "engine", "batch_size", "threads", "streams")}
    facts = conversion_facts(network, plan, size, spec, recipe=recipe.to_cfg(), **settings)
    facts |= dict(images=[array_hash(compared), array_hash(calibration)], cpu=cpu_name(), features=cpu_features())
    facts |= versions()
    opened: dict[str, Engine] = {}

    def compare(folder: Path) -> None:
        log.info("comparing precisions of %s (only the first time)", network.arch)
        engines, refused = _candidates(network, plan, size, spec, images)
        seconds = _time(engines, compared, recipe)
        best = min(seconds, key=seconds.__getitem__)
        opened[best] = engines[best]
        chosen = engines[best].plan
        order = sorted(seconds, key=seconds.__getitem__)
        times = ", ".join(f"{name} {1e3 * seconds[name]:.1f} ms" for name in order)
        reason = f"the fastest that passes, per image: {times}; {chosen.choice('precision').reason}"
        row = dict(precision=best, exact=chosen.exact, layout=chosen.layout, reason="; ".join([reason, *refused]))
        (folder / "choice.json").write_text(json.dumps(row))

    row = json.loads((cached("fast", facts, compare) / "choice.json").read_text())
    choice = Choice("precision", row["precision"], row["reason"])
    final = dataclasses.replace(plan, precision=row["precision"], exact=tuple(row["exact"]), layout=row["layout"])
    final = with_note(final.with_choice(choice), images)
    if row["precision"] in opened:
        engine = opened[row["precision"]]
        engine.plan = final
        return engine
    return open_engine(network, final, size, spec, calibration if row["precision"] == "int8" else None)


def _candidates(
    network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None, images: GateImages
) -> tuple[dict[str, Engine], list[str]]:
    """Return engines by precision, and the reasons for which others are not among them."""
    from .graphs import why_not

    precisions = []
    if "int8" in ENGINES[plan.engine].precisions and why_not(network) is None:
        precisions.append("int8")
    if "bfloat16" in ENGINES[plan.engine].precisions and has_native_bfloat16(plan.device):
        precisions.append("bfloat16")
    engines, refused = {}, []
    for precision in precisions:
        candidate = dataclasses.replace(plan, precision=precision).with_choice(
            Choice("precision", precision, precision)
        )
        candidate = settle_layout(network, candidate, size, spec)
        engine, verdict = open_if_accurate(network, candidate, size, spec, images)
        if engine is None:
            refused.append(verdict)
        else:
            engines[precision] = engine
    exact = dataclasses.replace(plan, precision="float32").with_choice(Choice("precision", "float32", "exact"))
    exact = settle_layout(network, exact, size, spec)
    engines["float32"] = open_engine(network, exact, size, spec)
    return engines, refused


def _time(engines: dict[str, Engine], images: Pixels, recipe: InputSpec) -> dict[str, float]:
    """Return the seconds per image by precision: the smallest of a few rounds, engines in turn.

    images: (N,H,W,C) uint8, repeated to whole batches for every stream.
    """
    plan = engines["float32"].plan
    batch = np.resize(images, (plan.batch_size * plan.streams, *images.shape[1:]))

    def run(engine: Engine) -> float:
        start = time.perf_counter()
        run_all(engine, batch, recipe)
        return (time.perf_counter() - start) / len(batch)

    first = [run(engine) for engine in engines.values()]  # also prepares the engines
    repeats = max(1, int(ROUND_SECONDS / (min(first) * len(batch))))
    batch = np.concatenate([batch] * repeats)
    seconds = dict.fromkeys(engines, np.inf)
    until = time.monotonic() + SECONDS
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            seconds[name] = min(seconds[name], run(engine))
        if time.monotonic() > until:
            break
    return {name: float(value) for name, value in seconds.items()}
