"""The gate for lossy precisions: a precision that changes a model's outputs too much is replaced, with a warning.

The measures and their bounds are in `agreement.py`, `judging.py` applies them to an engine.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from ..data.decode import Pixels
from ..data.spec import InputSpec
from ..errors import UsageError
from ..weights.network import AnyModel, as_network
from .agreement import BOUNDS
from .base import Engine
from .fast import open_fastest
from .judging import GateImages, open_if_accurate, recipe_of, split, with_note
from .open import open_engine
from .plan import FAST, Choice, Plan, check_engine, has_native_bfloat16
from .trial import settle_layout

if TYPE_CHECKING:
    from ..weights.network import Network

log = logging.getLogger(__name__)


def open_gated(
    model: AnyModel,
    plan: Plan,
    size: tuple[int, int],
    spec: InputSpec | None = None,
    images: Pixels | GateImages | None = None,
) -> Engine:
    """As `open_engine`, but replace a lossy precision that fails the gate with the next more exact one, with a warning.

    images: (N,H,W,C) uint8 images of the model's size for the comparison and the calibration of int8; None uses crops
    of the photographs in this package, which are also added, with a warning, if too few images are useful (see
    `judging.split`). The result of `choose_images` can be given instead. Verdicts are cached with the converted models.
    The plan of the engine states the precision that is used, and why; for "fast" it is the fastest one that passes.
    Raises WeightsError `cache_failed` or `conversion_failed`, UsageError `bad_argument` for int8 and a model without a
    graph, and for a lossy precision and a model without pooling.
    """
    network = as_network(model)
    if plan.precision not in (*BOUNDS, FAST):
        return open_engine(network, settle_layout(network, plan, size, spec), size, spec)
    if not network.global_pool:
        raise UsageError(
            "bad_argument",
            f"precision {plan.precision!r} is not available for this {network.arch}, because global_pool='' gives no "
            "vector per image, which is needed for the comparison with float32",
            hint="use precision 'float32'",
        )
    judged_by = images if isinstance(images, GateImages) else choose_images(images, recipe_of(network, size))
    if plan.precision == FAST:
        return open_fastest(network, plan, size, spec, judged_by)
    engine = _open_lossy(network, settle_layout(network, plan, size, spec), size, spec, judged_by)
    engine.plan = with_note(engine.plan, judged_by)
    return engine


def choose_images(images: Pixels | None, recipe: InputSpec) -> GateImages:
    """Return what a lossy precision is judged by, as `judging.split` does, with a warning if photographs are added.

    images: (N,H,W,C) uint8, or None.
    """
    judged_by = split(images, recipe)
    if judged_by.note:
        log.warning("comparing precisions: %s", judged_by.note)
    return judged_by


def _open_lossy(
    network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None, images: GateImages
) -> Engine:
    """Return an engine in the precision of the plan, or in the next more exact one that passes the gate."""
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
