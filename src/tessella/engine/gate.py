"""The gate for lossy precisions: one that changes a model's answers too much is not used, and that is said.

Judged on the user's images all count. The photographs in this package may show nothing that a model knows: there the
top class of an image counts where the reference has decided, by MARGIN between its first two classes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.decode import Pixels
from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..machine import cpu_features, cpu_name, versions
from .artefacts import cached
from .base import Engine, FloatArray
from .plan import Choice, Plan, check_engine, has_native_bfloat16

if TYPE_CHECKING:
    from ..models.base import ImageModel

log = logging.getLogger(__name__)
SAMPLES = 128  # built-in crops; the first CALIBRATION of as many others set the ranges of int8
CALIBRATION = 64
MARGIN = 0.1  # of probability


class Bounds(NamedTuple):
    """The least that a precision must reach against eager float32 on real images."""

    agreement: float  # share of images with the same most probable class
    cosine: float  # of both embeddings of an image, mean over the images


BOUNDS = {"bfloat16": Bounds(0.995, 0.999), "int8": Bounds(0.99, 0.99)}


class Verdict(NamedTuple):
    """What a precision reached."""

    agreement: float
    cosine: float
    images: int
    decided: int  # of these, that count for the agreement

    def passes(self, precision: str) -> bool:
        bounds = BOUNDS[precision]
        return self.agreement >= bounds.agreement and self.cosine >= bounds.cosine

    def __str__(self) -> str:
        return f"{100 * self.agreement:.1f} % same top class, cosine {self.cosine:.4f} on {self.images} images" + (
            f", {self.decided} of them decided" if self.decided < self.images else ""
        )


def compare(
    found: tuple[FloatArray, FloatArray], expected: tuple[FloatArray, FloatArray], margin: float = 0.0
) -> Verdict:
    """Of (logits (N,classes), embeddings (N,width)) of the same images; a model without classes agrees on them.

    margin: what the reference's first class must have over its second, for an image to count for the agreement; all
    count where fewer than a quarter have it.
    """
    (logits, embeddings), (true_logits, true_embeddings) = found, expected
    counted = np.ones(len(logits), bool)
    same = counted
    if logits.shape[1] > 1:
        same = logits.argmax(1) == true_logits.argmax(1)
        shares = np.exp(true_logits - true_logits.max(1, keepdims=True))
        second, first = np.sort(shares / shares.sum(1, keepdims=True), axis=1)[:, -2:].T
        clear = first - second >= margin
        counted = clear if clear.mean() >= 0.25 else counted
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(true_embeddings, axis=1)
    cosines = (embeddings * true_embeddings).sum(1) / np.maximum(lengths, 1e-12)
    # a result that is no number agrees with nothing
    cosine = float(np.nan_to_num(cosines, nan=-1.0).mean())
    return Verdict(float(np.mean(same[counted])), cosine, len(embeddings), int(counted.sum()))


def open_gated(
    model: ImageModel,
    plan: Plan,
    size: tuple[int, int],
    spec: InputSpec | None = None,
    images: Pixels | None = None,
) -> Engine:
    """`open_engine`, and for a lossy precision the gate: where it does not pass, one step more precise, and said so.

    images: (N,H,W,C) uint8 of the model's size to judge on, and to set int8's ranges on; None takes crops of the
    photographs in this package. What a model reached is remembered with the converted models. The engine's plan says
    what was used and why. Raises WeightsError `cache_failed`.
    """
    from . import open_engine

    while plan.precision in BOUNDS:
        asked = plan.precision
        recipe = dataclasses.replace(InputSpec.from_cfg(model.pretrained_cfg), height=size[0], width=size[1])
        judged, ranges = split(images, recipe)
        engine = open_engine(model, plan, size, spec, ranges)
        verdict = judge(model, engine, judged, recipe, MARGIN if images is None else 0.0)
        row = next(row for row in plan.choices if row.what == "precision")
        if verdict.passes(asked):
            engine.plan = plan.with_choice(Choice("precision", asked, f"{row.reason}; against float32: {verdict}"))
            return engine
        need = BOUNDS[asked]
        plan = one_step_down(plan)
        why = f"{asked} has {verdict}, and must have {100 * need.agreement:g} % and {need.cosine:g}"
        log.warning("%s instead of %s: %s", plan.precision, asked, why)
        plan = plan.with_choice(Choice("precision", plan.precision, f"{row.reason}: {asked}, but {why}"))
    return open_engine(model, plan, size, spec)


def one_step_down(plan: Plan) -> Plan:
    """int8 -> bfloat16 where the hardware has it, and the engine too; else float32."""
    precision = "bfloat16" if plan.precision == "int8" and has_native_bfloat16(plan.device) else "float32"
    check_engine(plan.engine, plan.device.split(":")[0], precision)
    return dataclasses.replace(plan, precision=precision)


def split(images: Pixels | None, recipe: InputSpec) -> tuple[Pixels, Pixels]:
    """(images to judge on, images to set ranges on): different ones."""
    if images is None:
        images = sample_images(recipe, SAMPLES + CALIBRATION)
        return images[:SAMPLES], images[SAMPLES:]
    held = max(1, len(images) // 3)
    return (images[held:], images[:held]) if len(images) > 1 else (images, images)


def judge(model: ImageModel, engine: Engine, images: Pixels, recipe: InputSpec, margin: float) -> Verdict:
    """The engine against the reference on (N,H,W,C) uint8 images; measured once, then remembered."""
    from .convert import array_hash, facts_of

    plan = engine.plan
    facts = facts_of(model, plan, engine.size, engine.spec, engine=plan.engine, images=array_hash(images))
    facts |= dict(cpu=cpu_name(), features=cpu_features(), device=plan.device, margin=margin, graph=engine.graph_hash)
    facts |= dict(recipe=recipe.to_cfg(), **versions())

    def measure(folder: Path) -> None:
        log.info("comparing %s in %s with float32 on %d images, once", model.arch, plan.precision, len(images))
        expected = reference(model, engine, images, recipe)
        found = answers(engine, images, recipe)
        if not model.num_classes:  # what stands for logits then is the embedding once more
            found, expected = ((logits[:, :0], embeddings) for logits, embeddings in (found, expected))
        verdict = compare(found, expected, margin)
        (folder / "verdict.json").write_text(json.dumps(verdict._asdict()))

    return Verdict(**json.loads((cached("verdicts", facts, measure) / "verdict.json").read_text()))


def reference(model: ImageModel, engine: Engine, images: Pixels, recipe: InputSpec) -> tuple[FloatArray, FloatArray]:
    """Answers of eager float32, kept, as every lossy precision of a model is compared with the same."""
    from .convert import array_hash, facts_of
    from .eager import EagerEngine

    exact = dataclasses.replace(engine.plan, engine="eager", precision="float32", layout="")

    def measure(folder: Path) -> None:
        truth = EagerEngine(model, exact, engine.size, recipe)
        logits, embeddings = answers(truth, images, recipe)
        np.savez(folder / "answers.npz", logits=logits, embeddings=embeddings)

    facts = facts_of(model, exact, engine.size, recipe, images=array_hash(images), cpu=cpu_name())
    with np.load(cached("reference", facts, measure) / "answers.npz") as stored:
        return stored["logits"], stored["embeddings"]


def answers(engine: Engine, images: Pixels, recipe: InputSpec) -> tuple[FloatArray, FloatArray]:
    """Of an engine on uint8 images, normalised first where it wants them so."""
    size = engine.plan.batch_size
    batches = (images[i : i + size] for i in range(0, len(images), size))
    inputs = batches if engine.spec else (normalise(batch, recipe).to(engine.plan.device) for batch in batches)
    logits, embeddings = zip(*engine.in_turn(inputs), strict=True)
    return _joined(logits), _joined(embeddings)


def _joined(parts: tuple[object, ...]) -> NDArray[np.float32]:
    return np.concatenate([part if isinstance(part, np.ndarray) else part.cpu().numpy() for part in parts])  # type: ignore[attr-defined]
