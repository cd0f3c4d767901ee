"""Compare an engine in a lossy precision with float32, and repair an int8 graph that is too inaccurate.

An int8 graph that fails is repaired, if possible, by leaving its worst products in float32.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..data.decode import Pixels
from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..errors import WeightsError
from ..machine import cpu_features, cpu_name, versions
from ..text import count_of
from .agreement import Verdict, compare
from .artefacts import cached
from .base import ArrayOutputs, Engine
from .open import open_engine
from .plan import Choice, Plan

if TYPE_CHECKING:
    from ..weights.network import Network

log = logging.getLogger(__name__)
SAMPLES = 128  # built-in crops for the comparison
CALIBRATION = 64  # further built-in crops, to calibrate int8
# Of the user's images: 16 calibrate int8, so that no range depends on a single one, and 32 are compared, which is
# enough for neighborhoods (MIN_IMAGES), and for MIN_DECIDED answers if half of them are decided.
MIN_USEFUL = 48
MIN_CONTRAST = 4.0  # standard deviation of a channel, of 255; the noise of a camera or a JPEG file in one color is less


class GateImages(NamedTuple):
    """The images that a lossy precision is judged by, (N,H,W,C) uint8, and a remark about them.

    compared: for the comparison with float32. calibration: others, to calibrate int8. note: why they are not those that
    the user gave; "" if they are.
    """

    compared: Pixels
    calibration: Pixels
    note: str = ""


def open_if_accurate(
    network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None, images: GateImages
) -> tuple[Engine | None, str]:
    """Return an engine in the lossy precision of the plan, or None if it fails the gate, and its verdict in words.

    An engine that cannot be built or run, such as one of a network whose activations overflow, fails, too.
    Raises WeightsError `cache_failed`, and UsageError for a network that the precision does not support.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # values that overflow fail the comparison
            return _open_and_judge(network, plan, size, spec, images)
    except (RuntimeError, WeightsError) as error:
        if isinstance(error, WeightsError) and error.code != "conversion_failed":
            raise
        return None, f"{plan.precision} is not possible: {cause_of(error)}"


def cause_of(error: Exception) -> str:
    """Return what happened in one line; the messages of runtimes have several, the last of which states the cause."""
    if isinstance(error, WeightsError):
        return error.message
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__


def _open_and_judge(
    network: Network, plan: Plan, size: tuple[int, int], spec: InputSpec | None, images: GateImages
) -> tuple[Engine | None, str]:
    precision, reason = plan.precision, plan.choice("precision").reason
    recipe = recipe_of(network, size)
    compared, calibration, _ = images

    def attempt(exact: tuple[str, ...]) -> tuple[Engine, Verdict]:
        engine = open_engine(network, dataclasses.replace(plan, exact=exact), size, spec, calibration)
        return engine, judge(network, engine, compared, recipe)

    engine, verdict = attempt(())
    kept = ""
    if not verdict.passes(precision) and precision == "int8":
        exact = exact_products(network, engine, compared, calibration, lambda exact: attempt(exact)[1].passes("int8"))
        if exact:
            engine, verdict = attempt(exact)
            stay = "product stays" if len(exact) == 1 else "products stay"
            kept = f"; {len(exact)} {stay} in float32: {', '.join(exact)}"
    if verdict.passes(precision):
        engine.agreement = f"{verdict}{kept}"
        text = f"{reason}; against float32: {engine.agreement}"
        engine.plan = engine.plan.with_choice(Choice("precision", precision, text))
        return engine, str(verdict)
    required = verdict.shortfalls(precision)
    return (
        None,
        f"{precision} reaches {verdict}; {' and '.join(required)} {'is' if len(required) == 1 else 'are'} required",
    )


def exact_products(
    network: Network,
    engine: Engine,
    images: Pixels,
    calibration: Pixels,
    passes: Callable[[tuple[str, ...]], bool],
) -> tuple[str, ...]:
    """Return the names of the products that int8 leaves in float32 to pass the gate; empty if that is not possible.

    engine: completely in int8. images, calibration: (N,H,W,C) uint8. passes: as in `find_exact`. The result is cached.
    """
    from .facts import array_hash, conversion_facts
    from .quantization.calibrate import calibrate
    from .quantization.search import find_exact, product_errors

    plan, size = engine.plan, engine.size
    facts = conversion_facts(network, plan, size, engine.spec, images=array_hash(images), graph=engine.graph_hash)
    facts |= dict(cpu=cpu_name(), features=cpu_features(), **versions())

    def search(folder: Path) -> None:
        log.info("searching for the layers of %s that need float32 (only the first time)", network.arch)
        recipe = recipe_of(network, size)
        statistics = calibrate(network, plan, size, calibration)
        errors = product_errors(network, plan, size, recipe, images, statistics)
        (folder / "exact.json").write_text(json.dumps(dict(exact=find_exact(errors, passes), errors=errors), indent=1))

    stored = json.loads((cached("exact", facts, search) / "exact.json").read_text())
    return tuple(stored["exact"] or ())


def recipe_of(network: Network, size: tuple[int, int]) -> InputSpec:
    """Return how images of `size` (height, width) are prepared for the network."""
    return dataclasses.replace(InputSpec.from_cfg(network.pretrained_cfg), height=size[0], width=size[1])


def split(images: Pixels | None, recipe: InputSpec) -> GateImages:
    """Divide images (N,H,W,C) uint8 into some for the comparison and others for the calibration of int8.

    images: None for photographs of this package, which are also added to fewer than MIN_USEFUL useful images. Copies
    and images without contrast are left out, as they say nothing about other images. One or two images are compared
    only, so that int8 is never judged by an image that it was calibrated with.
    """
    useful = None if images is None else images[useful_images(images)]
    count = 0 if useful is None else len(useful) // 3
    if useful is not None and len(useful) >= MIN_USEFUL:
        return GateImages(useful[count:], useful[:count])
    photographs = sample_images(recipe, SAMPLES + CALIBRATION)
    compared, calibration = photographs[:SAMPLES], photographs[SAMPLES:]
    if useful is None:
        return GateImages(compared, calibration)
    found = f"only {count_of(len(useful), 'distinct image')} with contrast" if len(useful) else "no image with contrast"
    return GateImages(
        np.concatenate([useful[count:], compared]),
        np.concatenate([useful[:count], calibration]),
        f"{found} given, so photographs of the package were added",
    )


def with_note(plan: Plan, images: GateImages) -> Plan:
    """Return the plan with the remark about the images in the reason for its precision."""
    _, chosen, reason = plan.choice("precision")
    return plan.with_choice(Choice("precision", chosen, f"{reason}; {images.note}")) if images.note else plan


def useful_images(images: Pixels) -> list[int]:
    """Return the indices of images (N,H,W,C) that have contrast, without copies of an earlier one."""
    from .facts import array_hash

    first: dict[str, int] = {}
    for i, image in enumerate(images):
        if image.std((0, 1), dtype=np.float64).max() >= MIN_CONTRAST:
            first.setdefault(array_hash(image), i)
    return list(first.values())


def judge(network: Network, engine: Engine, images: Pixels, recipe: InputSpec) -> Verdict:
    """Compare the engine with the reference on (N,H,W,C) uint8 images; the verdict is cached."""
    from .facts import array_hash, conversion_facts

    plan = engine.plan
    facts = conversion_facts(network, plan, engine.size, engine.spec, engine=plan.engine, images=array_hash(images))
    facts |= dict(cpu=cpu_name(), features=cpu_features(), device=plan.device, graph=engine.graph_hash)
    facts |= dict(recipe=recipe.to_cfg(), **versions())

    def measure(folder: Path) -> None:
        log.info(
            "comparing %s in %s with float32 on %s (only the first time)",
            network.arch,
            plan.precision,
            count_of(len(images), "image"),
        )
        expected = reference(network, engine, images, recipe)
        outputs = run_all(engine, images, recipe)
        if not network.num_classes:  # the logits of such a model are its embedding
            outputs, expected = ((logits[:, :0], embeddings) for logits, embeddings in (outputs, expected))
        verdict = compare(outputs, expected)
        (folder / "verdict.json").write_text(json.dumps(verdict._asdict()))

    return Verdict(**json.loads((cached("verdicts", facts, measure) / "verdict.json").read_text()))


def reference(network: Network, engine: Engine, images: Pixels, recipe: InputSpec) -> ArrayOutputs:
    """Return the outputs in float32 for (N,H,W,C) uint8 images: logits (N,classes), embeddings (N,width).

    They are those of OpenVINO's exact graph, which needs no PyTorch, and of the eager model for a network without one.
    They are cached, as all lossy precisions of a model are compared with them.
    """
    from .facts import array_hash, conversion_facts
    from .graphs import why_not

    runner = "openvino" if why_not(network) is None and engine.plan.device == "cpu" else "eager"
    exact = dataclasses.replace(engine.plan, engine=runner, precision="float32", layout="")

    def measure(folder: Path) -> None:
        logits, embeddings = run_all(open_engine(network, exact, engine.size, recipe), images, recipe)
        np.savez(folder / "answers.npz", logits=logits, embeddings=embeddings)

    facts = conversion_facts(network, exact, engine.size, recipe, engine=runner, images=array_hash(images))
    facts |= dict(cpu=cpu_name(), features=cpu_features(), device=exact.device, **versions())
    with np.load(cached("reference", facts, measure) / "answers.npz") as stored:
        return stored["logits"], stored["embeddings"]


def run_all(engine: Engine, images: Pixels, recipe: InputSpec) -> ArrayOutputs:
    """Run an engine on (N,H,W,C) uint8 images, which are normalized first if the engine has no spec."""
    size = engine.plan.batch_size
    batches = (images[i : i + size] for i in range(0, len(images), size))
    if engine.spec:
        parts = list(engine.imap(batches))
    else:
        normalized = (normalise(batch, recipe).to(engine.plan.device) for batch in batches)
        parts = [(logits.cpu().numpy(), embedding.cpu().numpy()) for logits, embedding in engine.imap(normalized)]
    logits, embeddings = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(embeddings)
