"""Choose between equivalent graphs of a network by timing them, on CPUs for which the table of rates has no row."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.spec import InputSpec
from ..machine import cpu_features, cpu_name, versions
from .artefacts import cached
from .base import Engine
from .choice import Rate, measured_rate
from .facts import code_hash
from .open import open_engine
from .plan import Choice, Plan

if TYPE_CHECKING:
    from ..weights.network import Network

log = logging.getLogger(__name__)
ROUNDS = 3  # of timing, layouts in turn
SLOW = 0.3  # seconds of a request, above which one round has to suffice


def settle_layout(network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None) -> Plan:
    """Return the plan with the fastest layout of the network's graph on this CPU, and the reason.

    The table of rates states it for CPUs that were measured before; on others, the layouts are timed, and the times
    cached. Plans of other engines, plans with a layout, and networks with one layout are
    returned unchanged. Raises WeightsError `cache_failed`.
    """
    if plan.engine != "openvino" or plan.layout or plan.precision == "int8":
        return plan
    from .graphs import layouts_of, why_not

    if why_not(network) is not None:
        return plan
    layouts = layouts_of(network)
    mode = next((row.chosen for row in plan.choices if row.what == "mode"), "throughput")
    if rate := measured_rate(network, plan.engine, plan.precision, plan.threads, mode):
        return _as_measured(plan, rate, layouts)
    if len(layouts) < 2:
        return plan
    count = min(plan.request or plan.batch_size, plan.batch_size)  # images of a request
    facts = dict(
        arch=network.arch,
        config=repr(network.config),
        size=size,
        images=count,
        spec=spec is not None,
        precision=plan.precision,
        threads=plan.threads,
        streams=plan.streams,
        cpu=cpu_name(),
        features=cpu_features(),
        code=code_hash(),
        **versions(),
    )

    def measure(folder: Path) -> None:
        log.info("timing %s graphs of %s (only the first time)", len(layouts), network.arch)
        engines = {name: open_engine(network, dataclasses.replace(plan, layout=name), size, spec) for name in layouts}
        seconds = _time_layouts(engines, count)
        (folder / "seconds.json").write_text(json.dumps(seconds))

    seconds = json.loads((cached("layouts", facts, measure) / "seconds.json").read_text())
    best = min(seconds, key=seconds.__getitem__)
    times = ", ".join(f"{name} {1e3 * seconds[name]:.1f} ms" for name in sorted(seconds, key=seconds.__getitem__))
    choice = Choice("layout", best, f"fastest of the equivalent graphs, per image on this CPU: {times}")
    return dataclasses.replace(plan, layout=best).with_choice(choice)


def _as_measured(plan: Plan, rate: Rate, layouts: tuple[str, ...]) -> Plan:
    """Return the plan with the layout of a row of the table.

    Its size of requests is that of one model, whereas the plan's follows from the activations of this one.
    """
    if rate.layout not in layouts or not rate.layout:
        return plan
    choice = Choice("layout", rate.layout, f"measured on this class of CPU: {rate.source}")
    return dataclasses.replace(plan, layout=rate.layout).with_choice(choice)


def _time_layouts(engines: Mapping[str, Engine], count: int) -> dict[str, float]:
    """Return the seconds per image of each layout: the smallest of a few requests of `count` images, layouts in turn.

    engines: by layout.
    """
    any_engine = next(iter(engines.values()))
    images = np.zeros((count, *any_engine.shape), np.uint8 if any_engine.spec else np.float32)
    for engine in engines.values():
        engine(images)  # packs the weights
    best = dict.fromkeys(engines, np.inf)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(images)
            best[name] = min(best[name], time.perf_counter() - start)
        if min(best.values()) > SLOW:
            break
    return {name: float(value) / count for name, value in best.items()}
