"""What a model's embedding says about images of one's own: nearest neighbours, a linear classifier, few examples.

Every image is embedded once; the rest is arithmetic on vectors, minutes on a CPU for 50,000 images. Figures are taken
on the validation images, which decide nothing but the threshold that is asked for; whatever else is chosen, is chosen
on a part of the training images that is held out for it.

Shape suffixes: N images, D width of the embedding, K classes, k neighbours.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..bulk.shards import decoder_of
from ..checks import checked
from ..data.datasets import LabelledImages, open_split
from ..errors import ImageError, OutputError, UsageError
from ..models.base import ImageModel
from ..predictor import FloatArray, Predictor, load, unit_length
from ..records import npz_bytes
from ..storage import make_folders, write_bytes
from ..weights.save import save_pretrained
from .leakage import write_seen
from .metrics import Answers, Coverage, Ints, Metrics, as_dict, coverage, judge, metrics_of

NEIGHBOURS = (1, 3, 5, 10, 20, 50)  # the k that are tried
TEMPERATURE = 0.07  # a neighbour's vote is exp(cosine / TEMPERATURE)
STRENGTHS = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # of the L2 penalty that are tried: see `fit`
FEW_SHOT_STRENGTH = 0.4  # times D, the squared length of a scaled embedding: there is nothing to choose it on
HELD_OUT, MOST_HELD_OUT = 0.2, 5_000  # share of the training images that choices are made on, and how many at most
MOST_LEARNED = 20_000  # images that a penalty is tried with: it weighs against a sum, so it holds for more
DRAWS = 5  # of the examples in few-shot figures
STEPS, CLOSE = 200, 1e-5  # of L-BFGS: most iterations, and the largest gradient at which it ends
CHUNK = 8_192  # images whose logits are held


class Head(NamedTuple):
    """A linear classifier on the embedding as the model gives it: logits = x @ weight.T + bias."""

    weight: FloatArray  # (K,D)
    bias: FloatArray  # (K,)

    def __call__(self, vectors_ND: FloatArray) -> FloatArray:
        """(N,D) -> (N,K) logits."""
        return vectors_ND @ self.weight.T + self.bias


@dataclass(frozen=True)
class Embedded:
    """One row per image of the data, in its order."""

    vectors: FloatArray  # (N,D) as the model gives them; zeros where there is none
    status: NDArray[np.str_]  # (N,) "ok", or the code of the error
    cached: bool = False  # read from the file of an earlier run

    @property
    def ok(self) -> NDArray[np.bool_]:
        return self.status == "ok"

    @property
    def errors(self) -> dict[str, int]:
        """Images without a vector, by the code of the error."""
        return dict(Counter(self.status[~self.ok].tolist()))


@dataclass(frozen=True)
class FewShot:
    """A linear classifier from `shots` examples a class; the spread is the standard deviation over `draws` of them."""

    shots: int
    draws: int
    top1: float
    spread: float


@dataclass(frozen=True)
class Threshold:
    """Answering where the probability is at least `probability`: on the validation images, which chose it."""

    probability: float
    coverage: float  # share of the images that are answered
    accuracy: float  # of these


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found. Figures are of the validation images; `train_errors` and `Metrics.errors` count unread ones."""

    model: str
    fingerprint: str  # of the model and its settings
    train_data: str
    val_data: str
    data_fingerprints: tuple[str, str]  # of the training and the validation images
    classes: tuple[str, ...]
    train_count: int
    train_errors: dict[str, int]
    neighbours: int  # k that was chosen
    knn: Metrics
    strength: float  # of the L2 penalty that was chosen
    linear: Metrics
    few_shot: tuple[FewShot, ...]
    coverage: Coverage  # of the linear classifier, by its probability
    asked_accuracy: float | None
    threshold: Threshold | None  # that reaches it with the most images; None: none asked for, or none does
    head: Head
    answers: Answers  # of the linear classifier
    notes: tuple[str, ...]  # what was left out, and why
    attached: Path | None  # the model folder that was written

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the head and the answers."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("head", "answers")}
        points = np.unique(np.linspace(0, len(self.coverage.threshold) - 1, 101).round().astype(int))
        return plain | dict(
            knn=as_dict(self.knn),
            linear=as_dict(self.linear),
            few_shot=[dataclasses.asdict(one) for one in self.few_shot],
            coverage={name: values[points].tolist() for name, values in self.coverage._asdict().items()},
            threshold=self.threshold and dataclasses.asdict(self.threshold),
            attached=self.attached and str(self.attached),
        )


@checked
def probe(
    data: str | Path | tuple[LabelledImages, LabelledImages],
    model: str | Predictor | None = None,
    *,
    val: str | Path | None = None,
    val_fraction: float = 0.1,
    shots: Sequence[int] = (1, 5, 10),
    accuracy: float | None = None,
    out: str | Path | None = None,
    attach_to: str | Path | None = None,
    seed: int = 0,
    watch: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda items, total, unit: items,
) -> Probe:
    """Embed labelled images and measure what a k-nearest-neighbour and a linear classifier make of the embeddings.

    data, val, val_fraction: as `open_split`, or the two sets of images that are open.
    model: a Predictor, or a name for `load` (None: the built-in model).
    shots: examples a class of the few-shot figures; numbers that a class has not are left out, with a note. accuracy:
    find the threshold on the probability from which on answers are right so often (0..1). out: folder for the
    embeddings, which a later run with the same model and data takes from there, and for probe.json. attach_to: folder
    for the model with the linear classifier as its head, which `tessella.load("local-dir:...")` reads. watch: is given
    the images, their number and what they are, and passes them on.

    Deterministic for a seed. Images that cannot be read are counted by the code of their error and left out. Raises
    UsageError as `open_split`, `load` and `attach` do, and OutputError `output_failed`.
    """
    if any(type(n) is not int or n < 1 for n in shots):
        raise UsageError("bad_argument", f"shots is {shots!r}, expected positive integers, such as (1, 5, 10)")
    if accuracy is not None and not 0 < accuracy <= 1:
        raise UsageError("bad_argument", f"accuracy is {accuracy}, expected a number over 0, at most 1, such as 0.95")
    check_seed(seed)
    train_data, val_data = data if isinstance(data, tuple) else open_split(data, val=val, val_fraction=val_fraction)
    predictor = model if isinstance(model, Predictor) else load(model)
    if attach_to is not None:
        _made(Path(attach_to))
        _ = predictor.model  # an exported one has none: refuse it before the work is done
    caches = [None if out is None else _made(Path(out)) / f"embeddings-{name}.npz" for name in ("train", "val")]
    train_all, val_all = (
        embed(images, predictor, cache, watch) for images, cache in zip((train_data, val_data), caches, strict=True)
    )
    classes = train_data.classes
    x_ND, y_N = train_all.vectors[train_all.ok], train_data.labels[train_all.ok]
    seen_ND, seen_N = val_all.vectors[val_all.ok], val_data.labels[val_all.ok]
    _check_readable(train_data, y_N, len(seen_N))

    rng = np.random.default_rng(seed)
    held = hold_out(y_N, rng)
    count = choose_neighbours(x_ND, y_N, held, len(classes))
    strength = choose_strength(x_ND, y_N, held, len(classes))
    knn = judge(vote(*neighbours(seen_ND, x_ND, y_N, count), len(classes)), seen_N)
    head = fit(x_ND, y_N, len(classes), strength)
    answers = judge(head(seen_ND), seen_N, np.flatnonzero(val_all.ok))
    few, notes = few_shot(x_ND, y_N, seen_ND, seen_N, shots, classes, rng)
    notes = [*train_data.skipped.lines(), *notes]
    curve = coverage(answers)
    found = Probe(
        model=predictor.name,
        fingerprint=predictor.fingerprint,
        train_data=train_data.origin,
        val_data=val_data.origin,
        data_fingerprints=(train_data.fingerprint, val_data.fingerprint),
        classes=classes,
        train_count=len(y_N),
        train_errors=train_all.errors,
        neighbours=count,
        knn=metrics_of(knn, classes, errors=val_all.errors),
        strength=strength,
        linear=metrics_of(answers, classes, errors=val_all.errors),
        few_shot=tuple(few),
        coverage=curve,
        asked_accuracy=accuracy,
        threshold=None if accuracy is None else find_threshold(curve, accuracy),
        head=head,
        answers=answers,
        notes=tuple(notes),
        attached=None if attach_to is None else attach(predictor, head, classes, attach_to),
    )
    if found.attached is not None:
        write_seen(found.attached, train_data, val_data, predictor.name)
    if out is not None:
        write_bytes(Path(out) / "probe.json", (json.dumps(found.as_dict(), indent=1) + "\n").encode())
    return found


def check_seed(seed: int) -> None:
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise UsageError("bad_argument", f"seed is {seed!r}, expected 0 to {2**63 - 1}")


def _made(folder: Path) -> Path:
    try:
        make_folders(folder)
    except OSError as error:
        raise OutputError("output_failed", f"the folder {str(folder)!r} could not be made: {error.strerror}") from None
    return folder


def _check_readable(train: LabelledImages, labels_N: Ints, val_count: int) -> None:
    missing = np.flatnonzero(np.bincount(labels_N, minlength=len(train.classes)) == 0)
    if len(missing):
        raise UsageError(
            "bad_argument",
            f"of the class {train.classes[missing[0]]!r} no training image could be read",
            hint="`tessella classify --json` on one of them says why",
        )
    if not val_count:
        raise UsageError("bad_argument", "no validation image could be read", hint="give others with --val")


# --- embeddings -------------------------------------------------------------------------------------------------------


def embed(
    images: LabelledImages,
    predictor: Predictor,
    cache: Path | None = None,
    watch: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda items, total, unit: items,
) -> Embedded:
    """The raw embedding of every image, by the way of a bulk run; an image that cannot be read keeps its row.

    cache: an .npz that is read if it was written for the same model and the same data, else written. A vector that is
    not finite counts as an error, `non_finite`.
    """
    facts = dict(model=predictor.fingerprint, data=images.fingerprint)
    if cache is not None and (found := _cached(cache, facts, len(images), predictor.width)):
        return found
    vectors_ND = np.zeros((len(images), predictor.width), np.float32)
    status = np.full(len(images), "ok", "<U24")
    sources = watch((images.source(i) for i in range(len(images))), len(images), "images")
    with decoder_of(predictor) as decoder:
        decoded = (image.outcome for image in decoder.decoded(sources))
        for i, outcome in enumerate(predictor.outputs_of(decoded, divide=False)):
            if isinstance(outcome, ImageError):
                status[i] = outcome.code
            elif np.isfinite(outcome.embedding).all():
                vectors_ND[i] = outcome.embedding
            else:
                status[i] = "non_finite"
    if cache is not None:
        arrays = dict(vectors=vectors_ND, status=status, labels=images.labels)
        write_bytes(cache, npz_bytes(arrays | {name: np.array(value) for name, value in facts.items()}))
    return Embedded(vectors_ND, status)


def _cached(path: Path, facts: dict[str, str], count: int, width: int) -> Embedded | None:
    """What an earlier run wrote; None if it is for other images or another model, or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if any(str(arrays[name]) != value for name, value in facts.items()):
                return None
            found = Embedded(arrays["vectors"], arrays["status"], cached=True)
    except Exception:  # zip files fail in many ways, and each means that it is to be made again
        return None
    return found if (found.vectors.shape, found.status.shape) == ((count, width), (count,)) else None


# --- choices ----------------------------------------------------------------------------------------------------------


def hold_out(labels_N: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which training images choices are made on: the same share of each class, never all of one."""
    share = min(HELD_OUT, MOST_HELD_OUT / len(labels_N))
    held = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        members = rng.permutation(np.flatnonzero(labels_N == label))
        held[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    return held


def choose_neighbours(x_ND: FloatArray, labels_N: Ints, held: NDArray[np.bool_], classes: int) -> int:
    """The k with the highest accuracy on the images held out, the smallest of equal ones; 1 where there are none."""
    if not held.any():
        return 1
    cosines_Nk, voters_Nk = neighbours(x_ND[held], x_ND[~held], labels_N[~held], max(NEIGHBOURS))
    allowed = [k for k in NEIGHBOURS if k <= cosines_Nk.shape[1]]
    votes = {k: vote(cosines_Nk[:, :k], voters_Nk[:, :k], classes) for k in allowed}
    return max(allowed, key=lambda k: float((votes[k].argmax(1) == labels_N[held]).mean()))


def choose_strength(x_ND: FloatArray, labels_N: Ints, held: NDArray[np.bool_], classes: int) -> float:
    """The penalty with the lowest loss on the images held out; that of few-shot figures where there are none.

    From strong to weak, each fit beginning where the last one ended, until the loss rises.
    """
    if not held.any():
        return FEW_SHOT_STRENGTH * x_ND.shape[1]
    learned = np.flatnonzero(~held)
    learned = learned[:: -(-len(learned) // MOST_LEARNED)]  # every so many: images may be in the order of classes
    scale = Scale.of(x_ND[learned])
    z_ND, y_N = scale(x_ND[learned]), labels_N[learned]
    there_ND, there_N = scale(x_ND[held]), torch.from_numpy(labels_N[held])
    solution, losses = None, []
    for strength in STRENGTHS:
        solution = minimise(z_ND, y_N, classes, strength, solution)
        losses.append(float(F.cross_entropy(logits_of(there_ND, solution), there_N)))
        if losses[-1] > min(losses):
            break
    return STRENGTHS[int(np.argmin(losses))]


# --- nearest neighbours -----------------------------------------------------------------------------------------------


def neighbours(x_ND: FloatArray, bank_ND: FloatArray, labels_N: Ints, count: int) -> tuple[Tensor, Tensor]:
    """Cosines (N,k), the highest first, and labels (N,k) of the nearest vectors in the bank; k is at most all of it."""
    queries, bank = (torch.from_numpy(unit_length(vectors)) for vectors in (x_ND, bank_ND))
    labels = torch.from_numpy(labels_N)
    count = min(count, len(bank))
    found = [(part @ bank.T).topk(count) for part in queries.split(max(2**25 // len(bank), 1))]  # 128 MB of cosines
    return torch.cat([one.values for one in found]), labels[torch.cat([one.indices for one in found])]


def vote(cosines_Nk: Tensor, labels_Nk: Tensor, classes: int) -> FloatArray:
    """(N,K) logits: the logarithm of each class's share of the votes, which weigh exp(cosine / TEMPERATURE)."""
    votes_NK = torch.zeros(len(cosines_Nk), classes)
    votes_NK.scatter_add_(1, labels_Nk, ((cosines_Nk - cosines_Nk[:, :1]) / TEMPERATURE).exp())
    # a class without a vote gets a thousandth of the nearest one's, so that the loss stays finite
    logits: FloatArray = votes_NK.clamp(min=1e-3).log().numpy()
    return logits


# --- the linear classifier --------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """x -> (x - mean) * factor: an affine map, which folds into the classifier behind it."""

    mean: NDArray[np.float64]  # (D,)
    factor: NDArray[np.float64]  # (D,)

    @classmethod
    def of(cls, x_ND: FloatArray, by_component: bool = True) -> Scale:
        """To mean 0 and variance 1, of each component or of all together.

        A component that hardly varies is left out: its noise would be blown up.
        """
        mean_D, std_D = x_ND.mean(0, dtype=np.float64), x_ND.std(0, dtype=np.float64)
        if not by_component:
            std_D = np.full_like(std_D, np.sqrt((std_D**2).mean()))
        varies = std_D > 1e-5 * np.maximum(np.abs(mean_D), 1e-3 * std_D.max())
        return cls(mean_D, np.divide(1, std_D, out=np.zeros_like(std_D), where=varies))

    def __call__(self, x_ND: FloatArray) -> Tensor:
        """(N,D) float64."""
        return torch.from_numpy((x_ND - self.mean) * self.factor)


def fit(x_ND: FloatArray, labels_N: Ints, classes: int, strength: float, by_component: bool = True) -> Head:
    """The classifier with the least sum of cross-entropies + strength / 2 * |weights|^2, on scaled embeddings.

    The scale is folded into it. Embeddings are not brought to unit length, which no linear layer could do.
    """
    scale = Scale.of(x_ND, by_component)
    solution = minimise(scale(x_ND), labels_N, classes, strength).numpy()
    weight_KD = solution[:, :-1] * scale.factor
    bias_K = solution[:, -1] - weight_KD @ scale.mean
    return Head(weight_KD.astype(np.float32), bias_K.astype(np.float32))


def logits_of(z_ND: Tensor, solution: Tensor) -> Tensor:
    """Of scaled embeddings; the solution is (K,D+1), biases last."""
    return F.linear(z_ND, solution[:, :-1], solution[:, -1])


def minimise(z_ND: Tensor, labels_N: Ints, classes: int, strength: float, start: Tensor | None = None) -> Tensor:
    """(K,D+1) weights and, last, biases that `fit` looks for, by L-BFGS over all images at once; start: near them."""
    solution = torch.zeros(classes, z_ND.shape[1] + 1, dtype=torch.float64) if start is None else start.clone()
    solution.requires_grad_()
    parts = list(zip(z_ND.split(CHUNK), torch.from_numpy(labels_N).split(CHUNK), strict=True))
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=STEPS, history_size=20, tolerance_grad=CLOSE, tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        total = strength / (2 * len(z_ND)) * solution[:, :-1].square().sum()
        total.backward()
        for z, labels in parts:
            loss = F.cross_entropy(logits_of(z, solution), labels, reduction="sum") / len(z_ND)
            loss.backward()
            total = total.detach() + loss.detach()
        return total

    optimizer.step(objective)
    return solution.detach()


def few_shot(
    x_ND: FloatArray,
    labels_N: Ints,
    seen_ND: FloatArray,
    seen_N: Ints,
    shots: Sequence[int],
    classes: Sequence[str],
    rng: np.random.Generator,
) -> tuple[list[FewShot], list[str]]:
    """Accuracy of linear classifiers that know a few training images of each class, and notes on what was left out.

    A draw's examples for more shots contain those for fewer. One factor scales all components: of so few images, the
    spread of a single one is chance.
    """
    sizes = np.bincount(labels_N, minlength=len(classes))
    least = int(sizes.argmin())
    notes = [
        f"no result for {n} examples per class: {classes[least]!r} has {sizes[least]}"
        for n in shots
        if n > sizes[least]
    ]
    possible = [n for n in shots if n <= sizes[least]]
    figures: dict[int, list[float]] = {n: [] for n in possible}
    strength = FEW_SHOT_STRENGTH * x_ND.shape[1]
    for _ in range(DRAWS if possible else 0):
        orders = [rng.permutation(np.flatnonzero(labels_N == label)) for label in range(len(classes))]
        for n in possible:
            rows = np.concatenate([order[:n] for order in orders])
            head = fit(x_ND[rows], labels_N[rows], len(classes), strength, by_component=False)
            figures[n].append(float((head(seen_ND).argmax(1) == seen_N).mean()))
    return [FewShot(n, DRAWS, float(np.mean(v)), float(np.std(v, ddof=1))) for n, v in figures.items()], notes


# --- abstaining -------------------------------------------------------------------------------------------------------


def find_threshold(curve: Coverage, accuracy: float) -> Threshold | None:
    """The threshold that answers the most images with at least this accuracy; None where none does."""
    enough = np.flatnonzero(curve.accuracy >= accuracy)
    if not len(enough):
        return None
    last = enough[-1]
    return Threshold(float(curve.threshold[last]), float(curve.coverage[last]), float(curve.accuracy[last]))


# --- a model with the new head ----------------------------------------------------------------------------------------


def attach(predictor: Predictor, head: Head, classes: Sequence[str], folder: str | Path) -> Path:
    """Write a model folder: the predictor's backbone, with `head` as its classifier and `classes` as its labels.

    `tessella.load("local-dir:FOLDER")` then answers as the head does. The predictor is not changed. Raises UsageError
    `bad_argument` for an exported model, which has no backbone to write, and as `save_pretrained`.
    """
    model = copy.deepcopy(predictor.model)
    model.reset_classifier(len(classes))
    set_head(model, head)
    dropped = ("tag", "label_names", "label_descriptions", "label_offset", "description", "note")
    kept = {key: value for key, value in model.pretrained_cfg.items() if key not in dropped}
    model.pretrained_cfg = kept | predictor.spec.to_cfg() | dict(num_classes=len(classes), label_names=tuple(classes))
    return save_pretrained(model, folder)


@torch.no_grad()
def set_head(model: ImageModel, head: Head) -> None:
    """Write `head` into the model's classifier, which must have as many classes."""
    for layer, columns, factor in _layers(model):
        layer.weight.copy_(torch.from_numpy(head.weight[:, columns]) * factor)
        layer.bias.copy_(torch.from_numpy(head.bias))


def _layers(model: ImageModel) -> Iterable[tuple[Any, slice, float]]:
    """The classifier's linear layers, the part of the embedding that each reads, and a factor for its weights.

    CrossViT has one for each branch, and the logits are their mean: each counts for 1 / branches.
    """
    classifier = model.get_classifier()
    layers = list(classifier) if isinstance(classifier, nn.ModuleList) else [classifier]
    first = 0
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        yield layer, slice(first, first + layer.in_features), float(len(layers))
        first += layer.in_features
    assert first == model.head_hidden_size
