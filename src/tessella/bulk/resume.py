"""Loading the model of a run, so that a resumed run keeps the engine with which it was started."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..predictor import REQUESTED, Predictor
from .events import OnEvent, RunRemark
from .ray.driver import Cluster
from .run_folder import RUN, read_facts

CHOSEN_AUTOMATICALLY = ("openvino", "rewritten")  # without `tessella tune`, by this version and earlier ones


@dataclass(frozen=True)
class AutomaticEngine:
    """Loads a predictor whose engine, precision and batch size are chosen automatically.

    load: takes `precision` and `batch_size` as keyword arguments, like `tessella.load` bound to the name of a model. A
    run that was started before the automatic choice changed is resumed with the engine of its start.
    """

    load: Callable[..., Predictor]

    def __call__(self) -> Predictor:
        return self.load()


def without_new_calibration(out: Path, predictor: Predictor, on_event: OnEvent) -> Predictor:
    """Return the predictor without a calibration that was found automatically, if the run in `out` began without one.

    So a run that was started before its model was calibrated can be resumed.
    """
    facts = read_facts(out / RUN)
    if facts is None or facts.get("calibration") or predictor.calibration is None:
        return predictor
    if predictor.plan.choice("calibration").reason.startswith(REQUESTED):
        return predictor
    on_event(RunRemark(text="resuming without a calibration, as the run was started"))
    return predictor.with_calibration(None, "the run was started without one")


def load_for_run(
    out: Path, load: Callable[[], Predictor], cluster: Cluster | None, on_event: OnEvent
) -> tuple[Predictor, Cluster | None]:
    """Return the predictor for the run in `out`, and the cluster, whose actors must load the same one.

    If the automatic choice has changed since the run was started, by `tessella tune` or by another version of this
    package, the model is loaded again with the engine of the run, unless that is one that is never chosen
    automatically. The caller finds other settings that differ.
    """
    predictor = load()
    facts = read_facts(out / RUN)
    if facts is None or not isinstance(load, AutomaticEngine):
        return predictor, cluster
    engine, precision, batch_size = (facts.get(name) for name in ("engine", "precision", "batch"))
    plan = predictor.plan
    if (plan.engine, plan.precision, plan.batch_size) == (engine, precision, batch_size):
        return predictor, cluster
    if engine not in CHOSEN_AUTOMATICALLY:  # somebody chose it
        return predictor, cluster
    options = dict(engine=engine, precision=precision, batch_size=batch_size)
    original = load.load(**options)
    text = f"resuming with the engine of the run: {engine}, {precision}, batch size {batch_size} (now: {plan.engine})"
    on_event(RunRemark(text=text))
    return original, cluster and replace(cluster, load=functools.partial(cluster.load, **options))
