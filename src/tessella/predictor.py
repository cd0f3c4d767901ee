"""The Predictor: a model with its weights, input recipe, labels and engine; images in, named scores and vectors out.

Everything that runs a model goes through here. Order is sacred: result i belongs to input i, whatever the batching.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .checks import checked
from .data.decode import DEFAULT_LIMITS, ImageSource, Limits, Mode, Pixels, Policy
from .data.labels import labels_for_classes
from .data.sources import Source
from .data.transforms import InputSpec, load_pixels
from .engine import Choice, Plan, make_plan
from .engine.exported import Card, is_exported, open_exported
from .engine.gate import BOUNDS, open_gated
from .engine.plan import Mode as RunMode
from .errors import ImageError, UsageError

if TYPE_CHECKING:
    from .models.base import ImageModel

DEFAULT_MODEL = "convmixer_256_8_ks3_p4.cifar10"
NUMERIC_CONTRACT = 1  # raised whenever the same model, image and settings may give other numbers than before

FloatArray = NDArray[np.float32]
AnyImage: TypeAlias = "ImageSource | Source"  # one image, however it is given


@dataclass(frozen=True, slots=True)
class Prediction:
    """One named class: its index in the model's output, its label, its softmax probability, its WordNet id if any."""

    index: int
    label: str
    probability: float
    synset: str = ""


class Scores(NamedTuple):
    """Of one pass over N images: probabilities (N,classes) float32, embeddings (N,width) float32 of unit length."""

    probabilities: FloatArray
    embeddings: FloatArray


class Output(NamedTuple):
    """Of one image, as the model gives it: logits (classes,), embedding (width,), both float32."""

    logits: FloatArray
    embedding: FloatArray


@dataclass(frozen=True)
class Record:
    """One row per input, always. status is "ok" or the error's code; message is empty when it is "ok"."""

    key: str
    status: str
    message: str = ""
    top: tuple[Prediction, ...] = ()
    embedding: FloatArray | None = None  # (width,), unit length


class Predictor:
    """Made by `tessella.load`; holds no state that a call changes, so threads may share it."""

    @checked
    def __init__(
        self,
        model: ImageModel,
        *,
        name: str = "",
        plan: Plan | None = None,
        transform: Mode = "exact",
        policy: Policy = "tessella",
        limits: Limits = DEFAULT_LIMITS,
        images: Sequence[AnyImage] | None = None,
    ):
        """model: from `create_model`; its `pretrained_cfg` says how images are prepared and what the classes are.

        images: what a lossy precision is judged on, a few hundred like those to come; None takes photographs of ours.
        """
        spec = InputSpec.from_cfg(model.pretrained_cfg)
        name, size = name or model.arch, (spec.height, spec.width)
        if spec.channels != 3:
            raise UsageError("bad_argument", f"{name} reads {spec.channels} channels, images have 3 (RGB)")
        self._prepare(spec, transform, policy, limits)
        model = model.eval()
        plan = plan or make_plan(model=model, size=size)
        own = None if images is None or plan.precision not in BOUNDS else readable(images, self._read)
        self.engine = open_gated(model, plan, size, spec, own)
        labels, synsets, labels_why = find_labels(model)
        plan = self.engine.plan
        sizes = (model.num_classes, model.head_hidden_size)
        self._present(
            Card(name, model.arch, plan.engine, plan.precision, *sizes, spec, labels, synsets, {}), labels_why
        )

    @classmethod
    def from_export(
        cls,
        folder: Path,
        *,
        batch_size: int | None = None,
        mode: RunMode = "throughput",
        transform: Mode = "exact",
        policy: Policy = "tessella",
        limits: Limits = DEFAULT_LIMITS,
    ) -> Predictor:
        """Of a folder that `tessella export` wrote; runs without PyTorch. Raises WeightsError, UsageError."""
        predictor = cls.__new__(cls)
        card, predictor.engine = open_exported(folder, batch_size, mode)
        predictor._prepare(card.spec, transform, policy, limits)
        predictor._present(card, "exported with the model")
        return predictor

    def _prepare(self, spec: InputSpec, transform: Mode, policy: Policy, limits: Limits) -> None:
        self.spec, self.transform, self.policy, self.limits = spec, transform, policy, limits
        self._read = functools.partial(load_pixels, spec=spec, policy=policy, mode=transform, limits=limits)
        self._read(np.zeros((2, 2, 3), np.uint8))  # refuse unknown policies and modes now

    def _present(self, card: Card, labels_why: str) -> None:
        self.card, self.name, self.labels, self.synsets = card, card.name, card.labels, card.synsets
        self.num_classes, self.width = card.num_classes, card.width
        recipe = f"{self.spec.width}x{self.spec.height} px, {self.spec.interpolation}, crop {self.spec.crop_pct:g}"
        self.plan = dataclasses.replace(
            self.engine.plan,
            choices=(
                *self.engine.plan.choices,
                Choice("input", recipe, "the checkpoint's"),
                Choice("transform", self.transform, "timm's numbers bit for bit" if self.transform == "exact"
                       else "asked for"),
                Choice("policy", self.policy, "orientation, transparency and depth respected"
                       if self.policy == "tessella" else "asked for: what timm does"),
                Choice("labels", f"{len(self.labels)} classes", labels_why),
            ),
        )  # fmt: skip

    @property
    def model(self) -> ImageModel:
        """The model behind the engine; UsageError `bad_argument` for an exported one."""
        if self.engine.model is None:
            raise UsageError(
                "bad_argument",
                f"{self.name} is an exported model, which has no PyTorch module",
                hint="load it by its name",
            )
        return self.engine.model

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers, settings of this Predictor apart; an exported model keeps that of its source."""
        if self.engine.model is None:
            return dict(self.card.identity)
        from .engine.convert import weights_hash

        model = self.engine.model
        facts: dict[str, Any] = dict(
            arch=model.arch,
            config=repr(model.config),
            weights=weights_hash(model),
            pool=model.global_pool,
            spec=self.spec.to_cfg(),
            numeric_contract=NUMERIC_CONTRACT,
        )
        if self.card.precision != "float32":  # rounded differently by each of these
            plan = self.engine.plan
            facts |= dict(engine=plan.engine, graph=self.engine.graph_hash, layout=plan.layout, device=plan.device)
        return facts

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that stand for everything which decides the numbers; artefacts of two are never mixed."""
        facts = self.identity | dict(
            policy=self.policy,
            transform=self.transform,
            precision=self.card.precision,
        )
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def predict(self, images: AnyImage | Iterable[AnyImage]) -> Scores:
        """Probabilities and embeddings of one image or of many, from one pass; a single image is N = 1.

        An image is a path, the bytes of a file, a Pillow image, or an array (H,W), (H,W,3) or (H,W,4) of uint8 or of
        float in 0..1. Raises ImageError for the first one that is none; `records` goes on past bad ones.
        """
        self._need_classes()
        probabilities, embeddings = [], []
        for logits, embedding in self._passes(self._pixels(images)):
            probabilities.append(softmax(logits))
            embeddings.append(unit_length(embedding))
        return Scores(_stack(probabilities, self.num_classes), _stack(embeddings, self.width))

    def classify(self, images: AnyImage | Iterable[AnyImage], top: int = 5) -> Any:
        """The `top` most probable classes, best first: a list of Prediction, for several images a list of lists."""
        self._need_classes()
        found = [self._named(row, top) for logits, _ in self._passes(self._pixels(images)) for row in softmax(logits)]
        return list(found[0]) if is_single(images) else [list(row) for row in found]

    def embed(self, images: AnyImage | Iterable[AnyImage]) -> FloatArray:
        """The vector the classifier reads, scaled to unit length: (width,) of one image, (N,width) of several."""
        vectors = _stack([unit_length(vector) for _, vector in self._passes(self._pixels(images))], self.width)
        return vectors[0] if is_single(images) else vectors

    def features(
        self, images: AnyImage | Iterable[AnyImage], indices: int | Sequence[int] | None = None
    ) -> list[FloatArray]:
        """Maps of the picked blocks, shallow to deep, each (N,channels,rows,columns) float32.

        indices: None takes the model's usual ones, n the last n, a list those (negatives count from the end).
        """
        usual = self.model.default_out_indices  # an exported model is refused here
        picked = list(usual) if indices is None else indices
        parts: list[list[FloatArray]] = []
        for pixels in _batched(self._pixels(images), self.plan.batch_size):
            parts.append(self.engine.features(np.stack(pixels), picked))
        return [np.concatenate(maps) for maps in zip(*parts, strict=True)]

    def records(
        self, images: Iterable[AnyImage], *, top: int = 5, embed: bool = True, keys: Iterable[str] | None = None
    ) -> Generator[Record, None, None]:
        """One Record per image, in order, as batches finish; a bad image is a record with its code, never an exception.

        keys: names of the records; without them a Source's key, a path, or the position.
        """
        if top:
            self._need_classes()
        named = (
            zip(images, keys, strict=True) if keys is not None else ((x, key_of(x, i)) for i, x in enumerate(images))
        )
        keys_seen: deque[str] = deque()

        def sources() -> Iterator[AnyImage]:
            for image, key in named:
                keys_seen.append(key)
                yield image

        for outcome in self.outputs(sources()):
            key = keys_seen.popleft()
            if isinstance(outcome, ImageError):
                yield Record(key, outcome.code, outcome.message)
            else:
                best = self._named(softmax(outcome.logits[None])[0], top) if top else ()
                yield Record(key, "ok", "", best, unit_length(outcome.embedding[None])[0] if embed else None)

    def outputs(self, images: Iterable[AnyImage]) -> Generator[Output | ImageError, None, None]:
        """What the model says of each image, in order, as batches finish; of a bad image, its error."""
        return self.outputs_of(self._decoded(images))

    def outputs_of(
        self, prepared: Iterable[Pixels | ImageError], *, divide: bool = True
    ) -> Generator[Output | ImageError, None, None]:
        """As `outputs`, of images that are (spec.height, spec.width, 3) uint8 already, or that could not be read.

        Every `plan.batch_size` of them, errors included, are one batch. divide: as `Engine.in_turn` has it.
        """
        nothing = np.empty((0, self.spec.height, self.spec.width, 3), np.uint8)
        waiting: deque[list[ImageError | None]] = deque()  # errors in batches that are with the model, in order

        def batches() -> Iterator[Pixels]:
            for outcomes in _batched(prepared, self.plan.batch_size):
                waiting.append([one if isinstance(one, ImageError) else None for one in outcomes])
                good = [pixels for pixels in outcomes if not isinstance(pixels, ImageError)]
                yield np.stack(good) if good else nothing

        for logits, vectors in self.engine.in_turn(batches(), divide=divide):
            rows = zip(logits, vectors, strict=True)
            for error in waiting.popleft():
                yield Output(*next(rows)) if error is None else error

    # --- inside -------------------------------------------------------------------------------------------------------

    def _passes(self, pixels: Iterable[Pixels]) -> Iterator[tuple[FloatArray, FloatArray]]:
        """(logits, embeddings) of one batch after the other, in order."""
        return self.engine.in_turn(np.stack(batch) for batch in _batched(pixels, self.plan.batch_size))

    def _pixels(self, images: AnyImage | Iterable[AnyImage]) -> Iterator[Pixels]:
        single = is_single(images)
        for i, outcome in enumerate(self._decoded([images] if single else images)):  # type: ignore[list-item,arg-type]
            if isinstance(outcome, ImageError):
                where = "" if single else f"image {i}: "
                raise ImageError(outcome.code, where + outcome.message, hint=outcome.hint) from None
            yield outcome

    def _decoded(self, images: Iterable[AnyImage]) -> Iterator[Pixels | ImageError]:
        """Pixels or error of each image, in order: threads decode the next batch while the model has the last one."""
        waiting: deque[Future[Pixels | ImageError]] = deque()
        ahead = max(self.plan.batch_size, 2 * (os.cpu_count() or 1))  # besides the batches that wait for the model
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "tessella-decode") as pool:
            try:
                for image in images:
                    waiting.append(pool.submit(self._decode_one, image))
                    if len(waiting) >= ahead:  # a bound on memory, whatever the collection's size
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _decode_one(self, image: AnyImage) -> Pixels | ImageError:
        try:
            return self._read(image.read(self.limits) if isinstance(image, Source) else image)
        except ImageError as error:
            return error

    def _named(self, probabilities: FloatArray, top: int) -> tuple[Prediction, ...]:
        """The best `top`; of equal probabilities the lower index comes first."""
        best = np.argsort(-probabilities, kind="stable")[: max(top, 0)]
        return tuple(
            Prediction(int(i), self.labels[i], float(probabilities[i]), self.synsets[i] if self.synsets else "")
            for i in best
        )

    def _need_classes(self) -> None:
        if not self.num_classes:
            raise UsageError(
                "bad_argument", f"{self.name} has no classifier (num_classes is 0)", hint="use embed, or records(top=0)"
            )


@checked
def load(
    name: str | None = None,
    *,
    pretrained: bool = True,
    checkpoint_path: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch_size: int | None = None,
    mode: RunMode = "throughput",
    transform: Mode = "exact",
    policy: Policy = "tessella",
    images: Sequence[AnyImage] | None = None,
    cache_dir: str | Path | None = None,
    **model_args: Any,
) -> Predictor:
    """A ready Predictor: weights, input recipe, labels and engine of `name` (None: the model inside this package).

    name: as in `create_model`: `arch`, `arch.tag`, `hf-hub:org/repo[@revision]`, `local-dir:path`. A `local-dir:` that
    `tessella export` wrote starts without PyTorch. pretrained: False leaves the weights random, to measure speed or to
    try a model that has none. checkpoint_path: a weight file to use instead of the published one. model_args: fields of
    the architecture's config, such as img_size=256. mode: "throughput" for many images, "latency" for one at a time.
    transform: "exact" is timm's result bit for bit, "fast" is quicker and differs by about one grey level. policy:
    "timm" ignores orientation and transparency as timm does. images: a few hundred like those to come, on which
    "bfloat16" and "int8" are judged against float32 (and int8's ranges are measured) before they are used; None takes
    photographs in this package. `predictor.plan` lists every choice with its reason. Raises UsageError or WeightsError.
    """
    name = name or DEFAULT_MODEL
    settings: dict[str, Any] = dict(transform=transform, policy=policy)
    folder = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") and is_exported(folder):
        pinned = device not in ("auto", "cpu") or (precision, engine) != ("auto", "auto")
        if pinned or checkpoint_path or model_args or images is not None:
            raise UsageError(
                "bad_argument",
                f"{name} is an exported model: its engine, precision and weights were chosen when it was exported",
                hint="leave these out, or load the model by its name",
            )
        return Predictor.from_export(folder, batch_size=batch_size, mode=mode, **settings)
    make_plan(device, precision, engine, batch_size, mode)  # refuse what cannot be before anything is fetched
    from .models.base import ImageModel
    from .weights.factory import create_model

    model = create_model(
        name, pretrained=pretrained, checkpoint_path=checkpoint_path, cache_dir=cache_dir, **model_args
    )
    assert isinstance(model, ImageModel)
    spec = InputSpec.from_cfg(model.pretrained_cfg)
    plan = make_plan(device, precision, engine, batch_size, mode, model, (spec.height, spec.width))
    return Predictor(model, name=name, plan=plan, images=images, **settings)


def is_single(images: object) -> bool:
    """Whether this is one image rather than an iterable of them; a batch array (N,H,W,C) is an iterable."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    whole = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Source)
    return whole or not isinstance(images, Iterable)  # a Pillow image is not iterable


def readable(images: Iterable[AnyImage], read: Callable[[Any], Pixels]) -> Pixels:
    """(N,H,W,3) of those images that can be read; UsageError `bad_argument` where none can."""
    good = []
    for image in images:
        with suppress(ImageError):
            good.append(read(image.read() if isinstance(image, Source) else image))
    if not good:
        raise UsageError("bad_argument", "none of the images to judge a precision on can be read")
    return np.stack(good)


def key_of(image: AnyImage, position: int) -> str:
    if isinstance(image, Source):
        return image.key
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) else str(position)


def find_labels(model: ImageModel) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Names of the classes, their WordNet ids if they have such, and where both come from."""
    if names := model.pretrained_cfg.get("label_names"):
        return tuple(names), (), "the checkpoint's own"
    if known := labels_for_classes(model.num_classes):
        return known.names, known.synsets, f"{known.dataset}, the published set with {model.num_classes} classes"
    return tuple(map(str, range(model.num_classes))), (), "no names are known: classes are called by their index"


def softmax(logits: FloatArray) -> FloatArray:
    """(N,classes) -> float32 rows that sum to 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def unit_length(vectors: FloatArray) -> FloatArray:
    """(N,D) -> float32 rows of length 1; a row of zeros stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _stack(parts: Sequence[FloatArray], width: int) -> FloatArray:
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
