"""The gate for lossy precisions: a precision that changes a model's outputs too much is replaced, with a warning.

All images of the user are compared. The photographs in this package may show nothing that a model was trained on, so of
these, only images whose two most probable classes differ by MARGIN count for the agreement of the top class.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..data.decode import Pixels
from ..data.samples import sample_images
from ..data.spec import InputSpec
from ..data.transforms import normalise
from ..machine import cpu_features, cpu_name, versions
from ..weights.network import AnyModel, as_network
from .artefacts import cached
from .base import ArrayOutputs, Engine
from .open import open_engine
from .plan import Choice, Plan, check_engine, has_native_bfloat16
from .trial import settle_layout

if TYPE_CHECKING:
    from ..weights.network import Network

log = logging.getLogger(__name__)
SAMPLES = 128  # built-in crops for the comparison
CALIBRATION = 64  # further built-in crops, to calibrate int8
MARGIN = 0.1  # difference of probabilities


class Bounds(NamedTuple):
    """The agreement with eager float32 on real images that a precision must reach."""

    agreement: float  # fraction of images with the same most probable class
    cosine: float  # mean cosine similarity of the two embeddings of an image


BOUNDS = {"bfloat16": Bounds(0.995, 0.999), "int8": Bounds(0.99, 0.99)}


class Verdict(NamedTuple):
    """The agreement of a precision with eager float32: the fields of Bounds, and the numbers of images."""

    agreement: float
    cosine: float
    images: int
    decided: int  # images that count for the agreement

    def passes(self, precision: str) -> bool:
        """Return whether the bounds for `precision` are reached."""
        bounds = BOUNDS[precision]
        return self.agreement >= bounds.agreement and self.cosine >= bounds.cosine

    def __str__(self) -> str:
        return f"{100 * self.agreement:.1f} % same top class, cosine {self.cosine:.4f} on {self.images} images" + (
            f", {self.decided} of them with a clear top class" if self.decided < self.images else ""
        )


def compare(outputs: ArrayOutputs, expected: ArrayOutputs, margin: float = 0.0) -> Verdict:
    """Compare two pairs of logits (N,classes) and embeddings (N,width) of the same images.

    margin: an image counts for the agreement if the two highest probabilities of the reference differ by at least this
    much; all images count if fewer than a quarter do. Without classes, the agreement is 1.
    """
    (logits, embeddings), (expected_logits, expected_embeddings) = outputs, expected
    counted = np.ones(len(logits), bool)
    same = counted
    if logits.shape[1] > 1:
        same = logits.argmax(1) == expected_logits.argmax(1)
        powers = np.exp(expected_logits - expected_logits.max(1, keepdims=True))
        second, first = np.sort(powers / powers.sum(1, keepdims=True), axis=1)[:, -2:].T
        clear = first - second >= margin
        counted = clear if clear.mean() >= 0.25 else counted
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(expected_embeddings, axis=1)
    cosines = (embeddings * expected_embeddings).sum(1) / np.maximum(lengths, 1e-12)
    cosine = float(np.nan_to_num(cosines, nan=-1.0).mean())  # NaN is the worst agreement
    return Verdict(float(np.mean(same[counted])), cosine, len(embeddings), int(counted.sum()))


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
    the precision that is used, and why. Raises WeightsError `cache_failed` or `conversion_failed`.
    """
    network = as_network(model)
    plan = settle_layout(network, plan, size, spec)
    while plan.precision in BOUNDS:
        requested = plan.precision
        recipe = dataclasses.replace(InputSpec.from_cfg(network.pretrained_cfg), height=size[0], width=size[1])
        compared, calibration = split(images, recipe)
        engine = open_engine(network, plan, size, spec, calibration)
        verdict = judge(network, engine, compared, recipe, MARGIN if images is None else 0.0)
        reason = plan.choice("precision").reason
        if verdict.passes(requested):
            engine.plan = plan.with_choice(Choice("precision", requested, f"{reason}; against float32: {verdict}"))
            return engine
        bounds = BOUNDS[requested]
        plan = one_step_down(plan)
        why = f"{requested} reaches {verdict}; {100 * bounds.agreement:g} % and {bounds.cosine:g} are required"
        log.warning("%s instead of %s: %s", plan.precision, requested, why)
        plan = plan.with_choice(Choice("precision", plan.precision, f"{reason}: {requested}, not used because {why}"))
    return open_engine(network, plan, size, spec)


def one_step_down(plan: Plan) -> Plan:
    """Return the plan with the next more exact precision: int8 -> bfloat16 if that is native, else float32."""
    precision = "bfloat16" if plan.precision == "int8" and has_native_bfloat16(plan.device) else "float32"
    check_engine(plan.engine, plan.device.split(":")[0], precision)
    return dataclasses.replace(plan, precision=precision)


def split(images: Pixels | None, recipe: InputSpec) -> tuple[Pixels, Pixels]:
    """Return images (N,H,W,C) for the comparison and other images for the calibration of int8.

    A single image is used for both. images: as in `open_gated`.
    """
    if images is None:
        images = sample_images(recipe, SAMPLES + CALIBRATION)
        return images[:SAMPLES], images[SAMPLES:]
    count = max(1, len(images) // 3)
    return (images[count:], images[:count]) if len(images) > 1 else (images, images)


def judge(network: Network, engine: Engine, images: Pixels, recipe: InputSpec, margin: float) -> Verdict:
    """Compare the engine with the reference on (N,H,W,C) uint8 images; the verdict is cached."""
    from .facts import array_hash, conversion_facts

    plan = engine.plan
    facts = conversion_facts(network, plan, engine.size, engine.spec, engine=plan.engine, images=array_hash(images))
    facts |= dict(cpu=cpu_name(), features=cpu_features(), device=plan.device, margin=margin, graph=engine.graph_hash)
    facts |= dict(recipe=recipe.to_cfg(), **versions())

    def measure(folder: Path) -> None:
        log.info(
            "comparing %s in %s with float32 on %d images (only the first time)",
            network.arch,
            plan.precision,
            len(images),
        )
        expected = reference(network, engine, images, recipe)
        outputs = run_all(engine, images, recipe)
        if not network.num_classes:  # the logits of such a model are its embedding
            outputs, expected = ((logits[:, :0], embeddings) for logits, embeddings in (outputs, expected))
        verdict = compare(outputs, expected, margin)
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

    facts = conversion_facts(network, exact, engine.size, recipe, images=array_hash(images), cpu=cpu_name())
    with np.load(cached("reference", facts, measure) / "answers.npz") as stored:
        return stored["logits"], stored["embeddings"]


def run_all(engine: Engine, images: Pixels, recipe: InputSpec) -> ArrayOutputs:
    """Run an engine on (N,H,W,C) uint8 images, which are normalised first if the engine has no spec."""
    size = engine.plan.batch_size
    batches = (images[i : i + size] for i in range(0, len(images), size))
    if engine.spec:
        parts = list(engine.imap(batches))
    else:
        normalised = (normalise(batch, recipe).to(engine.plan.device) for batch in batches)
        parts = [(logits.cpu().numpy(), embedding.cpu().numpy()) for logits, embedding in engine.imap(normalised)]
    logits, embeddings = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(embeddings)
