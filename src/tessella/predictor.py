"""The Predictor: a model with its weights, input recipe, labels and engine; images in, named scores and vectors out.

Everything that runs a model goes through here. Order is sacred: result i belongs to input i, whatever the batching.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import inspect
import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from .arguments import suggestion
from .checks import check_type, checked, show
from .data.decode import ImageSource, Mode, PillowImage, Pixels, Policy
from .data.labels import labels_for_classes
from .data.limits import DEFAULT_LIMITS, Limits
from .data.names import is_archive, is_image
from .data.remote import is_object, is_url
from .data.sources import Source, iter_sources
from .data.spec import InputSpec
from .data.transforms import load_pixels
from .engine import Choice, Plan, make_plan
from .engine.exported import Card, is_exported, open_exported
from .engine.gate import BOUNDS, open_gated
from .engine.plan import Mode as RunMode
from .errors import ImageError, UsageError, WeightsError
from .fingerprint import hash_identity, identify
from .text import html_table, html_text, printable
from .weights.catalogue import DEPRECATED, no_weights, resolve
from .weights.names import local_folder

if TYPE_CHECKING:
    from typing import IO

    from torch import Tensor

    from .models.base import ImageModel

DEFAULT_MODEL = "convmixer_256_8_ks3_p4.cifar10"

FloatArray = NDArray[np.float32]
AnyImage: TypeAlias = "ImageSource | Source | IO[bytes] | Tensor"  # one image, however it is given
MOST_BLOCKS = 10_000  # of a model
NON_FINITE = "the model gives NaN or infinity for this image"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One named class: its index in the model's output, its label, its softmax probability, its WordNet id if any."""

    index: int
    label: str
    probability: float
    synset: str = ""

    def _repr_html_(self) -> str:
        """For Jupyter: one row, escaped."""
        rows = [(self.index, self.label, f"{100 * self.probability:.1f} %", self.synset)]
        return html_table(("index", "label", "probability", "WordNet id"), rows)


class Scores(NamedTuple):
    """Of one pass over N images: probabilities (N,classes) float32, embeddings (N,width) float32 of unit length."""

    probabilities: FloatArray
    embeddings: FloatArray

    def __repr__(self) -> str:
        shapes = (f"{name}=float32 {array.shape}" for name, array in zip(self._fields, self, strict=True))
        return f"Scores({', '.join(shapes)})"

    def _repr_html_(self) -> str:
        """For Jupyter: the most probable class of the first ten images."""
        best = self.probabilities[:10].argmax(1) if self.probabilities.size else ()
        rows = [(i, int(k), f"{100 * self.probabilities[i, k]:.1f} %") for i, k in enumerate(best)]
        return f"<p>{self!r}</p>" + html_table(("image", "most probable class", "probability"), rows)


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
    """A model ready for inference, made by `tessella.load`. Calls change no state, so threads may share it.

    One image is a path, a URL, the bytes of a file, an open file, a Pillow image, an array or a tensor:

    - array: (H,W), (H,W,1), (H,W,3) or (H,W,4), channels last, uint8 or float in 0..1;
    - torch tensor: (H,W), (1,H,W), (3,H,W) or (4,H,W), channels first, uint8 or float in 0..1.

    Many images are an iterable of these, an array (N,H,W,C) or a tensor (N,C,H,W), or a name that stands for many as
    on the command line: a folder, a glob, a .tar or .parquet file, the URL of these, or "@FILE" for a list.
    """

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
        if not hasattr(model, "pretrained_cfg"):
            raise UsageError(
                "bad_argument",
                f"a Predictor needs a model of create_model, got {type(model).__name__}",
                hint="for the name of a model use tessella.load(name)",
            )
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
        _check_reading(transform, policy)
        self._read = functools.partial(load_pixels, spec=spec, policy=policy, mode=transform, limits=limits)

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
        """All that decides the numbers, apart from the Predictor's settings; an export keeps that of its source."""
        if self.engine.model is None:
            return dict(self.card.identity)
        facts = identify(self.engine.model, self.spec)
        if self.card.precision != "float32":  # rounded differently by each of these
            plan = self.engine.plan
            facts |= dict(engine=plan.engine, graph=self.engine.graph_hash, layout=plan.layout, device=plan.device)
        return facts

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits for all that decides the numbers; artefacts of two fingerprints are never mixed."""
        settings = dict(policy=self.policy, transform=self.transform, precision=self.card.precision)
        return hash_identity(self.identity, **settings)

    def __repr__(self) -> str:
        how = ", ".join((self.plan.device, self.card.precision, self.plan.engine, self.transform, self.policy))
        size = f"{self.spec.height}x{self.spec.width} px"
        return f"<Predictor {printable(self.name)}: {size}, {self.num_classes} classes, {self.width} features; {how}>"

    def _repr_html_(self) -> str:
        """For Jupyter: every choice with its reason."""
        return f"<p>{html_text(repr(self))}</p>" + html_table(("what", "chosen", "reason"), self.plan.choices)

    def predict(self, images: AnyImage | Iterable[AnyImage]) -> Scores:
        """Probabilities and embeddings of one image or of many, from one pass; a single image is N = 1.

        Raises ImageError for the first image that cannot be read; `records` goes on past bad ones. Raises WeightsError
        `non_finite` where the model gives NaN or infinity.
        """
        self._need_classes()
        probabilities, embeddings = [], []
        single, items = one_or_many(images)
        for logits, embedding in self._passes(self._pixels(items, single)):
            probabilities.append(softmax(logits))
            embeddings.append(unit_length(embedding))
        return Scores(_stack(probabilities, self.num_classes), _stack(embeddings, self.width))

    @overload
    def classify(self, images: bytes | bytearray | Source | PillowImage, top: int = 5) -> list[Prediction]: ...

    @overload
    def classify(
        self, images: str | os.PathLike[str] | memoryview | IO[bytes] | NDArray[Any] | Tensor, top: int = 5
    ) -> list[Any]: ...

    @overload
    def classify(self, images: Iterable[AnyImage], top: int = 5) -> list[list[Prediction]]: ...

    def classify(self, images: AnyImage | Iterable[AnyImage], top: int = 5) -> list[Any]:
        """The `top` most probable classes, best first: a list of Prediction of one image, a list of lists of several.

        A name or an array may be one image or several; see the class. Raises as `predict`, and UsageError
        `bad_argument` where the model has no classifier.
        """
        self._need_classes()
        top = checked_top(top)
        single, items = one_or_many(images)
        passes = self._passes(self._pixels(items, single))
        found = [list(self._named(row, top)) for logits, _ in passes for row in softmax(logits)]
        return found[0] if single else found

    def embed(self, images: AnyImage | Iterable[AnyImage]) -> FloatArray:
        """The classifier's input vector, scaled to unit length: (width,) for one image, (N,width) for several.

        Raises as `predict`.
        """
        single, items = one_or_many(images)
        vectors = _stack([unit_length(vector) for _, vector in self._passes(self._pixels(items, single))], self.width)
        return vectors[0] if single else vectors

    def features(
        self, images: AnyImage | Iterable[AnyImage], indices: int | Sequence[int] | None = None
    ) -> list[FloatArray]:
        """Maps of the picked blocks, shallow to deep, each (N,channels,rows,columns) float32.

        indices: None takes the model's usual ones, n the last n, a list those (negatives count from the end).
        Raises as `predict`, and UsageError `bad_argument` for blocks that the model does not have.
        """
        usual = self.model.default_out_indices  # an exported model is refused here
        picked = list(usual) if indices is None else checked_indices(indices)
        parts: list[list[FloatArray]] = []
        single, items = one_or_many(images)
        for pixels in _batched(self._pixels(items, single), self.plan.batch_size):
            maps = self.engine.features(np.stack(pixels), picked)
            if not all(np.isfinite(one).all() for one in maps):
                raise WeightsError("non_finite", NON_FINITE)
            parts.append(maps)
        return [np.concatenate(maps) for maps in zip(*parts, strict=True)]

    def records(
        self,
        images: AnyImage | Iterable[Any],
        *,
        top: int = 5,
        embed: bool = True,
        keys: Iterable[str] | None = None,
    ) -> Generator[Record, None, None]:
        """One Record per image, in order, as batches finish; a bad image is a record with its code, never an exception.

        images: one or many, see the class. An item that is no image at all (None, a number, a dict, a list) is a record
        `bad_argument` or `bad_array`; an image for which the model gives NaN or infinity is one of `non_finite`.
        top: classes per image; 0 for none. embed: whether records hold the embedding. keys: names of the records, one
        per image; without them a Source's key, a path, the name of an open file, or the position. An exception that
        `images` itself raises comes after the records of all images before it.
        Raises UsageError `bad_argument`: for a model without classifier unless top is 0, or another number of keys.
        """
        top = checked_top(top)
        check_type("embed", embed, bool)
        if top:
            self._need_classes()
        if isinstance(keys, str) or not isinstance(keys, Iterable | None):
            raise UsageError("bad_argument", f"keys is {keys!r}, expected one name for each image")
        return self._records(one_or_many(images)[1], top, embed, keys)

    def _records(
        self, images: Iterable[Any], top: int, embed: bool, keys: Iterable[str] | None
    ) -> Generator[Record, None, None]:
        named = ((x, key_of(x, i)) for i, x in enumerate(images)) if keys is None else _with_keys(images, keys)
        keys_seen: deque[str] = deque()

        def sources() -> Iterator[AnyImage]:
            for image, key in named:
                keys_seen.append(key)
                yield image

        for outcome in self.outputs(sources()):
            key = keys_seen.popleft()
            if isinstance(outcome, ImageError):
                yield Record(key, outcome.code, str(outcome))
            elif not _is_finite(*outcome):
                yield Record(key, "non_finite", NON_FINITE)
            else:
                best = self._named(softmax(outcome.logits[None])[0], top) if top else ()
                yield Record(key, "ok", "", best, unit_length(outcome.embedding[None])[0] if embed else None)

    def outputs(self, images: AnyImage | Iterable[Any]) -> Generator[Output | ImageError, None, None]:
        """Yield the model's outputs for each image, in order, as batches finish; for a bad image, its error.

        images: one or many, as in `records`. Numbers are as the model gives them, also where they are not finite. An
        exception that the iterable itself raises comes after the outputs of all images before it.
        """
        failures: list[Exception] = []
        yield from self.outputs_of(self._decoded(_until_failure(one_or_many(images)[1], failures)))
        if failures:
            raise failures[0]

    def outputs_of(
        self, prepared: Iterable[Pixels | ImageError], *, split_batch: bool = True
    ) -> Generator[Output | ImageError, None, None]:
        """As `outputs`, of images that are (spec.height, spec.width, 3) uint8 already, or that could not be read.

        Every `plan.batch_size` of them, errors included, are one batch. split_batch: as `Engine.imap` has it.
        """
        nothing = np.empty((0, self.spec.height, self.spec.width, 3), np.uint8)
        waiting: deque[list[ImageError | None]] = deque()  # errors in batches that are with the model, in order

        def batches() -> Iterator[Pixels]:
            for outcomes in _batched(prepared, self.plan.batch_size):
                waiting.append([one if isinstance(one, ImageError) else None for one in outcomes])
                good = [pixels for pixels in outcomes if not isinstance(pixels, ImageError)]
                yield np.stack(good) if good else nothing

        for logits, vectors in self.engine.imap(batches(), split_batch=split_batch):
            rows = zip(logits, vectors, strict=True)
            for error in waiting.popleft():
                yield Output(*next(rows)) if error is None else error

    # --- inside -------------------------------------------------------------------------------------------------------

    def _passes(self, pixels: Iterable[Pixels]) -> Iterator[tuple[FloatArray, FloatArray]]:
        """(logits, embeddings) of one batch after the other, in order; WeightsError `non_finite`."""
        for found in self.engine.imap(np.stack(batch) for batch in _batched(pixels, self.plan.batch_size)):
            if not _is_finite(*found):
                raise WeightsError("non_finite", "the model gives NaN or infinity", hint="`records` shows which images")
            yield found

    def _pixels(self, images: Iterable[AnyImage], single: bool) -> Iterator[Pixels]:
        for i, outcome in enumerate(self._decoded(images)):
            if isinstance(outcome, ImageError):
                where = "" if single else f"image {i}: "
                raise ImageError(outcome.code, where + outcome.message, hint=outcome.hint) from None
            yield outcome

    def _decoded(self, images: Iterable[Any]) -> Iterator[Pixels | ImageError]:
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

    def _decode_one(self, image: Any) -> Pixels | ImageError:
        try:
            return self._read(image_source(image, self.limits))
        except ImageError as error:
            return error
        except UsageError as error:  # of something that is no image at all, or of a store without its package
            return ImageError(error.code, error.message, hint=error.hint)

    def _named(self, probabilities: FloatArray, top: int) -> tuple[Prediction, ...]:
        """The best `top`; of equal probabilities the lower index comes first."""
        best = np.argsort(-probabilities, kind="stable")[:top]
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
    "timm" ignores orientation and transparency as timm does. images: a few hundred representative images, on which
    "bfloat16" and "int8" are judged against float32 (and int8's ranges are measured) before they are used; None takes
    photographs in this package. `predictor.plan` lists every choice with its reason. Raises UsageError or WeightsError.
    """
    name = DEFAULT_MODEL if name is None else name
    _check_model_args(model_args)
    settings: dict[str, Any] = dict(transform=transform, policy=policy)
    folder = local_folder(name) if name.startswith("local-dir:") else None
    if folder is not None and is_exported(folder):
        pinned = device not in ("auto", "cpu") or (precision, engine) != ("auto", "auto")
        if pinned or checkpoint_path or model_args or images is not None:
            raise UsageError(
                "bad_argument",
                f"{name} is an exported model: its engine, precision and weights were chosen when it was exported",
                hint="leave these out, or load the model by its name",
            )
        return Predictor.from_export(folder, batch_size=batch_size, mode=mode, **settings)
    if pretrained and folder is None and checkpoint_path is None and "pretrained_cfg" not in model_args:
        _check_weights(name)
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


def _check_weights(name: str) -> None:
    """Refuse an unknown name and one without weights, before PyTorch is imported."""
    if ":" in name or name in DEPRECATED:  # every old name has weights
        return
    arch, row = resolve(name)
    if row is None or not row.has_weights:
        raise no_weights(row.name if row else arch)


def _check_reading(transform: str, policy: str) -> None:
    for what, value, known in (("transform", transform, ("exact", "fast")), ("policy", policy, ("tessella", "timm"))):
        if value not in known:
            raise UsageError("bad_argument", f"{what} is {value!r}, expected {' or '.join(map(repr, known))}")


_NOT_FOR_LOAD = {  # arguments of `create_model` that a Predictor cannot serve
    "features_only": "use tessella.create_model, or Predictor.features",
    "out_indices": "use Predictor.features(images, indices)",
    "dtype": "use precision=",
}


def _is_model_arg(name: str) -> bool:
    """Whether the config of any architecture has a field of that name."""
    from .models import ARCHITECTURES

    return any(hasattr(config, name) for _, config in ARCHITECTURES.values())


def _check_model_args(given: Mapping[str, Any]) -> None:
    """Refuse what `load` cannot pass on, and what is nearly the name of an argument of its own."""
    own = [name for name in inspect.signature(load).parameters if name not in ("name", "model_args")]
    for name in given:
        if name in _NOT_FOR_LOAD:
            raise UsageError("bad_argument", f"load takes no argument {name!r}", hint=_NOT_FOR_LOAD[name])
        near = suggestion([name], own, cutoff=0.8)
        if near and not _is_model_arg(name):
            raise UsageError("bad_argument", f"load takes no argument {name!r}", hint=near)


def checked_top(top: int) -> int:
    """UsageError `bad_argument` for what is no number of classes."""
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 0:
        raise UsageError("bad_argument", f"top is {top!r}, expected a number of classes, 0 or more")
    return int(top)


def checked_indices(indices: int | Sequence[int]) -> int | list[int]:
    """UsageError `bad_argument` for what are no numbers of blocks; which blocks there are, the model knows."""
    single = isinstance(indices, int | np.integer)
    numbers: Any = [indices] if single else indices
    good = isinstance(numbers, Sequence | np.ndarray) and not isinstance(numbers, str | bytes)
    if not good or not all(
        isinstance(one, int | np.integer) and not isinstance(one, bool) and abs(int(one)) <= MOST_BLOCKS
        for one in numbers
    ):
        raise UsageError(
            "bad_argument", f"indices is {indices!r}, expected numbers of blocks such as [3, 7, -1], or how many"
        )
    return int(numbers[0]) if single else [int(one) for one in numbers]


# --- one image or many ------------------------------------------------------------------------------------------------


def is_single(images: object) -> bool:
    """Whether this is one image, or the name of one or many, rather than a collection.

    A batch (N,H,W,C) or (N,C,H,W) is a collection. Mappings, open files and everything that is not iterable count as
    one, however wrong.
    """
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    if _is_tensor(images):
        return images.ndim < 4  # type: ignore[attr-defined]
    whole = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Source | Mapping)
    return (
        whole or _attribute(images, "read") is not None or not isinstance(images, Iterable)
    )  # a Pillow image is not iterable


def names_many(name: str) -> bool:
    """Whether a name stands for a collection of images: a folder, glob, archive or list, or the URL of one of these."""
    archive = is_archive(name)
    if is_url(name):
        if archive or (is_image(name) and not glob.has_magic(name)):
            return archive
        try:
            return not is_object(name)
        except (ImageError, UsageError):  # reading it will say why
            return False
    if os.path.lexists(name):
        return archive or os.path.isdir(name)  # noqa: PTH112 - a name may be too long for Path
    return glob.has_magic(name) or (name.startswith("@") and len(name) > 1)


def one_or_many(images: Any) -> tuple[bool, Iterable[Any]]:
    """Whether it is one image, and an iterable of all; a name that stands for many is listed by `iter_sources`."""
    names = isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU"
    if names or not is_single(images):
        return False, images
    if isinstance(images, str | os.PathLike) and (name := _name_of(images)) is not None and names_many(name):
        return False, iter_sources([name])
    return True, [images]


def _name_of(path: str | bytes | os.PathLike[Any]) -> str | None:
    """A path as text; None for an object of a caller's own class that gives none."""
    try:
        return os.fsdecode(path)
    except Exception:  # whatever its __fspath__ raises
        return None


def _attribute(image: object, name: str) -> Any:
    """As `getattr` with None; a property of a caller's own class may raise anything."""
    try:
        return getattr(image, name, None)
    except Exception:
        return None


def image_source(image: Any, limits: Limits = DEFAULT_LIMITS) -> ImageSource:
    """One image of any kind as `decode` takes it. Raises ImageError, also for what is no image at all."""
    if isinstance(image, str | os.PathLike):
        name = _name_of(image)
        if name is None:
            raise ImageError("bad_argument", f"a {type(image).__name__} gives no path", hint=_GIVE_ONE)
        if not is_url(name) and names_many(name):
            raise ImageError(
                "bad_argument",
                f"{name!r} stands for many images, and this is the place of one",
                hint="give it alone, not in a list",
            )
        return Source(name, name).read(limits)
    if isinstance(image, Source):
        return image.read(limits)
    if _is_tensor(image):
        return tensor_pixels(image)
    if callable(_attribute(image, "read")):
        return _read_open_file(image, limits)
    if isinstance(image, Mapping | list | tuple | set | frozenset):
        inside = " (for a row of a dataset, its image)" if isinstance(image, Mapping) else ""
        raise ImageError("bad_argument", f"a {type(image).__name__} is not an image{inside}", hint=_GIVE_ONE)
    known = isinstance(image, bytes | bytearray | memoryview | np.ndarray | PillowImage)
    if not known and hasattr(image, "__array__"):  # arrays of other libraries, NumPy's own numbers
        try:
            return np.asarray(image)
        except Exception:  # whatever another library raises: it gives no array
            known = False
    if not known:
        shown = show(image) if isinstance(image, float | int | None) else f"a {type(image).__name__}"
        raise ImageError("bad_argument", f"{shown} is not an image", hint=_GIVE_ONE)
    return image


_GIVE_ONE = "give a path, bytes, an open file, a Pillow image, an array or a tensor"


def _is_tensor(image: object) -> bool:
    """Whether it is a torch tensor, without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(image).__mro__)


def tensor_pixels(image: Tensor) -> NDArray[Any]:
    """A tensor (H,W), (1,H,W), (3,H,W) or (4,H,W) as an array with channels last; ImageError `bad_array`."""
    shape = tuple(image.shape)
    first, last = len(shape) == 3 and shape[0] in (1, 3, 4), len(shape) == 3 and shape[2] in (1, 3, 4)
    if first and last:
        raise ImageError(
            "bad_array",
            f"a tensor of shape {shape} is either {shape[0]} channels of {shape[1]}x{shape[2]} pixels, or "
            f"{shape[0]}x{shape[1]} pixels of {shape[2]} channels",
            hint="give an array (H,W,C), which is never ambiguous: image.permute(1, 2, 0).numpy() or image.numpy()",
        )
    if len(shape) != 2 and not first:
        raise ImageError(
            "bad_array",
            f"a tensor of shape {shape} is not an image, expected (H,W), (1,H,W), (3,H,W) or (4,H,W)",
            hint="channels come first in tensors: use image.permute(2, 0, 1)" if last else "",
        )
    try:
        image = image.detach().cpu()
        array: NDArray[Any] = (image.float() if image.is_floating_point() else image).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, without memory
        reason = str(error).partition("\n")[0]
        raise ImageError("bad_array", f"the tensor cannot be read as an array: {reason}") from None
    return array.transpose(1, 2, 0) if first else array


def _read_open_file(file: Any, limits: Limits) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise ImageError("bad_argument", "the file is open for text, expected bytes", hint="open it with mode 'rb'")
    try:
        data = file.read(limits.bytes + 1)
    except Exception as error:  # closed, not open for reading, whatever else another library's file raises
        raise ImageError("unreadable", f"the open file could not be read: {error}") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError("bad_argument", f"the open file gives {type(data).__name__}, expected bytes")
    return bytes(data)


def _until_failure(images: Iterable[Any], failures: list[Exception]) -> Iterator[Any]:
    """The images up to the first exception of the iterable, which is put into `failures`."""
    try:
        yield from images
    except Exception as error:  # of the caller's own code: raised again once the images before it are done
        failures.append(error)


_END = object()


def _with_keys(images: Iterable[Any], keys: Iterable[str]) -> Iterator[tuple[Any, str]]:
    rest: Iterator[object] = iter(keys)
    count = 0
    for count, image in enumerate(images, 1):
        key = next(rest, _END)
        if key is _END:
            raise UsageError("bad_argument", f"there are {count - 1} keys for more images", hint="give one per image")
        yield image, str(key)
    if next(rest, _END) is not _END:
        raise UsageError("bad_argument", f"there are more keys than images ({count})", hint="give one per image")


def _is_finite(logits: FloatArray, embedding: FloatArray) -> bool:
    return bool(np.isfinite(logits).all() and np.isfinite(embedding).all())


def readable(images: AnyImage | Iterable[AnyImage], read: Callable[[Any], Pixels]) -> Pixels:
    """(N,H,W,3) of those images that can be read; UsageError `bad_argument` where none can."""
    good = []
    for image in one_or_many(images)[1]:
        with suppress(ImageError):
            good.append(read(image_source(image)))
    if not good:
        raise UsageError("bad_argument", "none of the images to judge a precision on can be read")
    return np.stack(good)


def key_of(image: Any, position: int) -> str:
    """The name of an image: a Source's key, a path, the name of an open file, or else its position."""
    if isinstance(image, Source):
        return image.key
    name = image if isinstance(image, str | os.PathLike) else None
    if name is None and _attribute(image, "read") is not None:
        name = _attribute(image, "name")
    text = _name_of(name) if isinstance(name, str | bytes | os.PathLike) else None
    return str(position) if text is None else text


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
