"""The gate for lossy precisions: a precision that changes a model's outputs too much is replaced, with a warning.

The measures and their bounds are in `agreement.py`, `judging.py` applies them to an engine.
"""

from __future__ import annotations

import dataclasses
import logging

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..weights.network import AnyModel, as_network
from .agreement import BOUNDS
from .base import Engine
from .fast import open_fastest
from .judging import open_if_accurate
from .open import open_engine
from .plan import FAST, Choice, Plan, check_engine, has_native_bfloat16
from .trial import settle_layout

log = logging.getLogger(__name__)


def open_gated(
    model: AnyModel,
    plan: Plan,
    size: tuple[int, int],
    spec: InputSpec | None = None,
    images: Pixels | None = None,
) -> Engine:
    """As `open_engine`, but replace a lossy precision that fails the gate with the next more exact one, with a warning.

    images: (N,H,W,C) uint8 images of the model's size for the comparison and the calibration of int8; None uses crops
    of the photographs in this package. Verdicts are cached with the converted models. The plan of the engine states
    the precision that is used, and why; for "fast" it is the fastest one that passes. Raises WeightsError
    `cache_failed` or `conversion_failed`.
    """
    network = as_network(model)
    if plan.precision == FAST:
        return open_fastest(network, plan, size, spec, images)
    plan = settle_layout(network, plan, size, spec)
    while plan.precision in BOUNDS:
        requested = plan.precision
        engine, why = open_if_accurate(network, plan, size, spec, images)
        if engine is not None:
            return engine
        reason = plan.choice("precision").reason
        plan = one_step_down(plan)
        log.warning("%s instead of %s: %s", plan.precision, requested, why)
        plan = plan.with_choice(Choice("precision", plan.precision, f"{reason}: {requested}, not used because {why}"))
    return open_engine(network, plan, size, spec)


def one_step_down(plan: Plan) -> Plan:
    """Return the plan with the next more exact precision: int8 -> bfloat16 if that is native, else float32."""
    precision = "bfloat16" if plan.precision == "int8" and has_native_bfloat16(plan.device) else "float32"
    check_engine(plan.engine, plan.device.split(":")[0], precision)
    return dataclasses.replace(plan, precision=precision)
