"""The Predictor: a model with its weights, input spec, labels and engine, which classifies and embeds images.

Every image goes through the steps of `pipeline`: result i belongs to input i, whatever the batch size.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .calibration.calibration import Calibration
from .calibration.finding import Found, find_calibration
from .calibration.storage import read_calibration
from .checks import check_type, checked
from .data.decode import Mode, PillowImage, Pixels, Policy
from .data.limits import DEFAULT_LIMITS, Limits
from .data.source import Source
from .engine import Choice, Plan
from .engine.plan import Mode as RunMode
from .errors import ImageError, UsageError, WeightsError
from .fingerprint import hash_identity, identify
from .inputs import AnyImage, list_images
from .loading import (
    LoadSettings,
    OpenedModel,
    check_model_args,
    find_exported,
    open_exported_model,
    open_model,
    open_planned,
    spec_of,
)
from .pipeline import (
    ImageReader,
    decode_images,
    decoded_outputs,
    defer_failure,
    image_outputs,
    make_batches,
    raise_first_error,
    run_engine,
    with_keys,
)
from .results import NON_FINITE, ClassNames, FloatArray, check_top, is_finite, l2_normalize, make_record, softmax
from .results import Output as Output
from .results import Prediction as Prediction
from .results import Record as Record
from .results import Scores as Scores
from .text import html_table, html_text, printable
from .weights.catalogue import default_model

if TYPE_CHECKING:
    from torch import Tensor

    from .models.base import ImageModel
    from .weights.network import Network

MAX_BLOCKS = 10_000  # of a model
REQUESTED = "requested"  # begins the reason of a calibration that was given rather than found

Key = TypeVar("Key")


class Predictor:
    """A model ready for inference, made by `tessella.load`. Calls change no state, so threads may share it.

    One image is a path, a URL, the bytes of a file, an open file, a Pillow image, an array or a tensor:

    - array: (H,W), (H,W,1), (H,W,3) or (H,W,4), channels last, uint8 or float in 0..1;
    - torch tensor: (H,W), (1,H,W), (3,H,W) or (4,H,W), channels first, uint8 or float in 0..1.

    Many images are an iterable of these, an array (N,H,W,C) or a tensor (N,C,H,W), or a name that refers to many, as
    on the command line: a folder, a glob, a .tar or .parquet file, the URL of these, or "@FILE" for a list.
    """

    @checked
    def __init__(
        self,
        model: ImageModel | Network | OpenedModel,
        *,
        name: str = "",
        plan: Plan | None = None,
        transform: Mode = "exact",
        policy: Policy = "tessella",
        limits: Limits = DEFAULT_LIMITS,
        images: Sequence[AnyImage] | None = None,
    ):
        """Create a Predictor from a model of `create_model`, or from one that `loading` has opened.

        The input spec and the labels are those of the model's `pretrained_cfg`. name: shown and stored with results;
        plan: of `engine.make_plan`; images: a few hundred representative images on which a lossy precision is compared
        with float32, None takes photographs in this package. (These three do not apply to an opened model.)
        transform, policy: as in `tessella.load`. limits: on the size of images. Raises UsageError `bad_argument`.
        """
        spec = model.card.spec if isinstance(model, OpenedModel) else spec_of(model, name)
        self.spec, self.transform, self.policy, self.limits = spec, transform, policy, limits
        self._reader = ImageReader(spec, transform, policy, limits)
        if not isinstance(model, OpenedModel):
            model = open_model(model, self._reader, name=name, plan=plan, images=images)
        self.engine, self.card = model.engine, model.card
        self.name, self.labels, self.synsets = self.card.name, self.card.labels, self.card.synsets
        self.num_classes, self.width = self.card.num_classes, self.card.width
        self._classes = ClassNames(self.labels, self.synsets)
        self.calibration: Calibration | None = None
        choices = (*self.engine.plan.choices, *self._choices(model.labels_reason))
        self.plan = dataclasses.replace(self.engine.plan, choices=choices)

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
        """Load a folder that `tessella export` wrote; it runs without PyTorch. Raises WeightsError, UsageError."""
        opened = open_exported_model(folder, batch_size=batch_size, mode=mode)
        return cls(opened, transform=transform, policy=policy, limits=limits)

    def _choices(self, labels_reason: str) -> Iterator[Choice]:
        """Yield the choices that this class adds to the plan of the engine."""
        spec = self.spec
        crop = f"{spec.width}x{spec.height} px, {spec.interpolation}, crop {spec.crop_pct:g}"
        exact = "bit-identical to timm"
        respected = "respects orientation, transparency and 16-bit depth"
        yield Choice("input", crop, "from the checkpoint")
        yield Choice("transform", self.transform, exact if self.transform == "exact" else "requested")
        yield Choice(
            "policy", self.policy, respected if self.policy == "tessella" else "requested; decodes as timm does"
        )
        yield Choice("labels", f"{len(self.labels)} classes", labels_reason)

    def with_calibration(self, calibration: Calibration | None, reason: str = REQUESTED) -> Predictor:
        """Return this Predictor with calibrated probabilities, prediction sets and the detection of unknown images.

        calibration: None for the plain softmax and no assessment. reason: of this choice, for the plan. The model is
        shared. Raises UsageError `other_calibration` for the calibration of another model, or of other settings.
        """
        if calibration is not None:
            calibration.check_model(self.fingerprint, self.name, self.num_classes, self.width)
        changed = copy.copy(self)
        changed.calibration = calibration
        value = "none" if calibration is None else f"temperature {calibration.temperature:.3g}"
        changed.plan = self.plan.with_choice(Choice("calibration", value, reason))
        return changed

    @property
    def model(self) -> ImageModel:
        """The PyTorch model behind the engine; UsageError `bad_argument` for an exported model, which has none."""
        if self.engine.network is None:
            raise UsageError(
                "bad_argument",
                f"{self.name} is an exported model, which has no PyTorch module",
                hint="load it by its name",
            )
        return self.engine.model

    @functools.cached_property
    def identity(self) -> dict[str, object]:
        """Everything that determines the results besides the Predictor's settings; an export keeps its source's."""
        if self.engine.network is None:
            return dict(self.card.identity)
        facts = identify(self.engine.network, self.spec)
        if self.card.precision != "float32":  # rounded differently by each of these
            plan = self.engine.plan
            facts |= dict(engine=plan.engine, graph=self.engine.graph_hash, layout=plan.layout, device=plan.device)
        return facts

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits for everything that determines the results; artifacts of two fingerprints are never mixed."""
        settings = dict(policy=self.policy, transform=self.transform, precision=self.card.precision)
        return hash_identity(self.identity, **settings)

    def __repr__(self) -> str:
        how = ", ".join((self.plan.device, self.card.precision, self.plan.engine, self.transform, self.policy))
        size = f"{self.spec.height}x{self.spec.width} px"
        return f"<Predictor {printable(self.name)}: {size}, {self.num_classes} classes, {self.width} features; {how}>"

    def _repr_html_(self) -> str:
        """Return HTML for Jupyter: every choice with its reason."""
        return f"<p>{html_text(repr(self))}</p>" + html_table(("what", "chosen", "reason"), self.plan.choices)

    # --- results of all images at once --------------------------------------------------------------------------------

    def predict(self, images: AnyImage | Iterable[AnyImage]) -> Scores:
        """Return probabilities (N,classes) and embeddings (N,width) of one image (N = 1) or of many.

        Raises ImageError for the first image that cannot be read; `records` continues after bad images. Raises
        WeightsError `non_finite` if an output contains NaN or infinity, UsageError `bad_argument` if it has no
        classifier.
        """
        self._check_classifier()
        probabilities, embeddings = [], []
        single, items = list_images(images)
        for logits, vectors in self._batch_outputs(items, single):
            probabilities.append(self.probabilities(logits))
            embeddings.append(l2_normalize(vectors))
        return Scores(_concatenate(probabilities, self.num_classes), _concatenate(embeddings, self.width))

    @overload
    def classify(
        self, images: bytes | bytearray | memoryview | Source | PillowImage, top: int = 5
    ) -> list[Prediction]: ...

    @overload
    def classify(
        self, images: str | os.PathLike[str] | IO[bytes] | NDArray[np.generic] | Tensor, top: int = 5
    ) -> list[Any]: ...

    @overload
    def classify(self, images: Iterable[AnyImage], top: int = 5) -> list[list[Prediction]]: ...

    def classify(
        self, images: AnyImage | Iterable[AnyImage], top: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top` most probable classes, best first: a list for one image, a list of lists for many.

        A name or an array may be one image or many; see the class. Raises as `predict`.
        """
        self._check_classifier()
        top = check_top(top)
        single, items = list_images(images)
        predictions = [
            list(self._classes.top_predictions(row, top))
            for logits, _ in self._batch_outputs(items, single)
            for row in self.probabilities(logits)
        ]
        return predictions[0] if single else predictions

    def embed(self, images: AnyImage | Iterable[AnyImage]) -> FloatArray:
        """Return embeddings of unit length, the normalized input of the classifier: (width,) or, for many, (N,width).

        Raises ImageError, WeightsError as `predict`.
        """
        single, items = list_images(images)
        vectors = _concatenate([l2_normalize(rows) for _, rows in self._batch_outputs(items, single)], self.width)
        return vectors[0] if single else vectors

    def features(
        self, images: AnyImage | Iterable[AnyImage], indices: int | Sequence[int] | None = None
    ) -> list[FloatArray]:
        """Return the feature maps of the chosen blocks, shallow to deep, each (N,channels,rows,columns) float32.

        indices: None takes the model's default blocks, n the last n, a list those (negative ones count from the end).
        Raises ImageError, WeightsError as `predict`, and UsageError `bad_argument` for blocks that do not exist.
        """
        blocks = self._blocks(indices)
        batches: list[list[FloatArray]] = []
        single, items = list_images(images)
        decoded = self._decode_strict(items, single)
        for _, pixels in make_batches(decoded, self.plan.batch_size, self.engine.shape):
            maps = self.engine.features(pixels, blocks)
            if not all(map(is_finite, maps)):
                raise WeightsError("non_finite", NON_FINITE)
            batches.append(maps)
        if not batches:  # only the model knows the shapes
            blank = np.zeros((1, self.spec.height, self.spec.width, 3), np.uint8)
            batches.append([maps[:0] for maps in self.engine.features(blank, blocks)])
        return [np.concatenate(maps) for maps in zip(*batches, strict=True)]

    # --- results one by one -------------------------------------------------------------------------------------------

    def records(
        self,
        images: AnyImage | Iterable[object],
        *,
        top: int = 5,
        embed: bool = True,
        keys: Iterable[str] | None = None,
    ) -> Generator[Record, None, None]:
        """Yield one Record per image, in order, as batches finish; a bad image is a record with its error's code.

        images: one or many, see the class. An item that is not an image at all (None, a number, a dict, a list) is a
        record `bad_argument` or `bad_array`; an image whose output contains NaN or infinity is a record `non_finite`.
        top: classes per image; 0 for none. embed: whether records hold the embedding. keys: names of the records, one
        per image; without them a Source's key, a path, the name of an open file, or the position. An exception that
        `images` itself raises comes after the records of all images before it.
        Raises UsageError `bad_argument`: for a model without classifier unless top is 0, or another number of keys.
        """
        top = check_top(top)
        check_type("embed", embed, bool)
        if top:
            self._check_classifier()
        outputs = image_outputs(with_keys(images, keys), self._reader, self.engine)
        return (self.record(key, outcome, top=top, embed=embed) for key, outcome in outputs)

    def feature_records(
        self,
        images: AnyImage | Iterable[object],
        indices: int | Sequence[int] | None = None,
        *,
        keys: Iterable[str] | None = None,
    ) -> Generator[Record, None, None]:
        """Yield one Record with feature maps per image, in order; a bad image is a record with its error's code.

        One image per batch, because feature maps are large. images, keys: as in `records`; indices: as in `features`.
        Raises UsageError `bad_argument` for blocks that do not exist.
        """
        blocks = self._blocks(indices)
        pairs = with_keys(images, keys)
        return defer_failure(pairs, lambda pairs: self._feature_records(pairs, blocks))

    def outputs(self, images: AnyImage | Iterable[object]) -> Generator[Output | ImageError, None, None]:
        """Yield the model's output for each image, in order, as batches finish; for a bad image, its error.

        images: one or many, as in `records`. Outputs are returned unchanged, even if they are not finite. An
        exception that the iterable itself raises comes after the outputs of all images before it.
        """
        pairs = enumerate(list_images(images)[1])
        return (outcome for _, outcome in image_outputs(pairs, self._reader, self.engine))

    def decoded_outputs(
        self, decoded: Iterable[tuple[Key, Pixels | ImageError]], *, split_batch: bool = True
    ) -> Iterator[tuple[Key, Output | ImageError]]:
        """Yield (key, output) of images that another decoder has prepared, in order; errors pass through.

        decoded: (key, pixels (H,W,3) uint8) with the height and width of the spec, or (key, error); every
        `plan.batch_size` of them, errors included, are one batch. split_batch: let the engine's threads share a batch
        that is the only one, which changes the last bits of some models.
        """
        return decoded_outputs(decoded, self.engine, split_batch=split_batch)

    def record(
        self,
        key: str,
        outcome: Output | ImageError,
        *,
        top: int = 5,
        embed: bool = True,
        most_listed: int | None = None,
    ) -> Record:
        """Return the Record of one image's output or error, as `records` yields it.

        most_listed: how many classes of a prediction set are listed; None for all.
        """
        return make_record(
            key, outcome, self._classes, top=top, embed=embed, calibration=self.calibration, most_listed=most_listed
        )

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Return the probabilities (N,classes) float32 of logits (N,classes), calibrated if the model is."""
        return softmax(logits) if self.calibration is None else self.calibration.probabilities(logits)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _decode_strict(self, images: Iterable[object], single: bool) -> Iterator[tuple[int, Pixels]]:
        """Yield (position, pixels (H,W,3)) of all images; ImageError for the first that cannot be read."""
        decoded = decode_images(enumerate(images), self._reader, self.plan.batch_size)
        return raise_first_error(decoded, numbered=not single)

    def _batch_outputs(self, images: Iterable[object], single: bool) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield (logits, embeddings) of each batch; ImageError as `_decode_strict`, WeightsError `non_finite`."""
        batches = make_batches(self._decode_strict(images, single), self.plan.batch_size, self.engine.shape)
        for _, (logits, embeddings) in run_engine(batches, self.engine):
            if not (is_finite(logits) and is_finite(embeddings)):
                message = "the output of the model contains NaN or infinity"
                raise WeightsError("non_finite", message, hint="`records` shows for which images")
            yield logits, embeddings

    def _feature_records(self, pairs: Iterable[tuple[str, object]], blocks: int | list[int]) -> Iterator[Record]:
        decoded = decode_images(pairs, self._reader, self.plan.batch_size)
        for ((key, error),), pixels in make_batches(decoded, 1, self.engine.shape):
            if error is not None:
                yield Record(key, error.code, str(error))
                continue
            maps = self.engine.features(pixels, blocks)
            if all(map(is_finite, maps)):
                yield Record(key, "ok", features=tuple(array[0] for array in maps))
            else:
                yield Record(key, "non_finite", NON_FINITE)

    def _blocks(self, indices: int | Sequence[int] | None) -> int | list[int]:
        default = self.model.default_out_indices  # an exported model is refused here
        return list(default) if indices is None else check_indices(indices)

    def _check_classifier(self) -> None:
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
    calibration: str | Path | Calibration | None = "auto",
    **model_args: Any,
) -> Predictor:
    """Load a model with weights, input spec, labels and engine; without a name, the built-in one for photographs.

    name: as in `create_model`: `arch`, `arch.tag`, `hf-hub:org/repo[@revision]`, `local-dir:path`. A `local-dir:` may
    be one that `tessella export` wrote. Results have the default tag of `arch` in the model's name. pretrained: False
    leaves the weights random, to measure speed or to try a model that has none; it needs PyTorch. checkpoint_path: a
    weight file to use instead of the published one. model_args: fields of the architecture's config, such as
    img_size=256. mode: "throughput" for many images, "latency" for one at a time. transform: "exact" is timm's result
    bit for bit, "fast" is quicker and differs by up to half a gray level on average. policy: "timm" ignores orientation
    and transparency as timm does. images: a few hundred representative images, on which "bfloat16" and "int8" are
    compared with float32 (and int8's ranges are measured) before they are used; None takes photographs in this package.
    precision: "fast" is the fastest one whose results agree. calibration: "auto" is the one that `tessella calibrate`
    made for these settings, or that is beside the weights; a file or a Calibration; None for the plain softmax.
    `predictor.plan` lists every choice with its reason. Raises UsageError, WeightsError.
    """
    keywords = [argument for argument in inspect.signature(load).parameters if argument not in ("name", "model_args")]
    check_model_args(model_args, keywords)
    settings = LoadSettings(
        name=default_model() if name is None else name,
        pretrained=pretrained,
        checkpoint_path=checkpoint_path,
        device=device,
        precision=precision,
        engine=engine,
        batch_size=batch_size,
        mode=mode,
        images=images,
        cache_dir=cache_dir,
        model_args=model_args,
    )
    if (folder := find_exported(settings)) is not None:
        place: Path | None = folder
        predictor = Predictor.from_export(folder, batch_size=batch_size, mode=mode, transform=transform, policy=policy)
    else:
        network, plan = open_planned(settings)
        name, place = settings.recorded_name, network.source
        predictor = Predictor(network, name=name, plan=plan, images=images, transform=transform, policy=policy)
    return _calibrated(predictor, _choose_calibration(predictor, calibration, place))


def _calibrated(predictor: Predictor, found: Found) -> Predictor:
    """Return the Predictor with a calibration that was found. Raises as `Predictor.with_calibration`, with its file."""
    try:
        return predictor.with_calibration(found.calibration, found.reason)
    except UsageError as error:
        if found.path is None:
            raise
        raise UsageError(error.code, f"{str(found.path)!r}: {error.message}", hint=error.hint) from None


def _choose_calibration(predictor: Predictor, wanted: str | Path | Calibration | None, weights: Path | None) -> Found:
    """Return the calibration for the argument of `load`, with the reason."""
    if wanted is None or isinstance(wanted, Calibration):
        return Found(wanted, REQUESTED)
    if wanted != "auto":
        return Found(read_calibration(wanted), f"{REQUESTED}: {wanted}", Path(wanted))
    if not predictor.num_classes:
        return Found(None, "the model has no classifier")
    return find_calibration(lambda: predictor.fingerprint, predictor.name, weights)


def check_indices(indices: int | Sequence[int]) -> int | list[int]:
    """Return block numbers as int; UsageError `bad_argument` for anything else. The model knows which blocks exist."""
    if _is_block(indices):
        return int(indices)
    if isinstance(indices, Sequence | np.ndarray) and not isinstance(indices, str | bytes):
        numbers = [int(index) for index in indices if _is_block(index)]
        if len(numbers) == len(indices):
            return numbers
    raise UsageError(
        "bad_argument", f"indices is {indices!r}, expected block numbers such as [3, 7, -1], or the number of blocks"
    )


def _is_block(index: object) -> TypeGuard[int]:
    return isinstance(index, int | np.integer) and not isinstance(index, bool) and abs(int(index)) <= MAX_BLOCKS


def _concatenate(parts: Sequence[FloatArray], width: int) -> FloatArray:
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)
