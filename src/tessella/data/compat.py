"""timm's data sets, loader and mixing, under timm's names and with its signatures, built on this package's own.

`docs/reference/timm.md` lists which arguments are supported. The others are refused with an error that names an
alternative.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..arguments import refuse
from ..checks import checked
from ..errors import UsageError
from .augment import TrainTransform, as_pillow
from .constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from .datasets import open_labelled
from .decode import decode
from .factory import create_transform
from .labels import labels_for, labels_for_classes
from .layouts.split_names import SPLIT_NAMES
from .mix import Mixing, mix, targets
from .transforms import Transform

Sample: TypeAlias = tuple[Any, Any]  # (image, label), as the transforms of a data set return them


class Mixup:
    """Mixup and CutMix of a batch: (images (B,C,H,W), labels (B,)) -> (images, soft targets (B,K)).

    Random numbers come from torch, so `torch.manual_seed` makes the result repeatable. The input is not changed.
    With `mixup_enabled = False` images are not mixed, but targets are still smoothed.
    """

    @checked
    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
    ):
        """The signature is timm's. See `mix.Mixing` for the meaning of the arguments.

        Raises UsageError `bad_argument` for correct_lam=False, multi_label=True and numbers out of range.
        """
        refuse("Mixup", dict(multi_label=multi_label), {"multi_label": "each image has exactly one class"})
        if not correct_lam:
            raise UsageError(
                "bad_argument",
                "correct_lam=False is not supported: the label weight always equals the fraction of pixels",
            )
        sides = None if cutmix_minmax is None else tuple(cutmix_minmax)
        self.config = Mixing(
            mixup=mixup_alpha,
            cutmix=cutmix_alpha,
            cutmix_minmax=sides,  # type: ignore[arg-type]  # checked there
            prob=prob,
            switch_prob=switch_prob,
            mode=mode,  # type: ignore[arg-type]
        )
        self.label_smoothing, self.num_classes = label_smoothing, num_classes
        self.mixup_enabled = True

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images (B,C,H,W) and soft targets (B,K) for images x and class indices target (B,), B even.

        Raises UsageError `bad_argument` for other types (mixup needs floating-point images), lengths that differ, or
        an odd batch size.
        """
        if not isinstance(x, Tensor) or not isinstance(target, Tensor) or len(x) != len(target):
            raise UsageError("bad_argument", "expected images (B,C,H,W) and labels (B,), both tensors")
        if len(x) % 2:
            raise UsageError("bad_argument", f"got {len(x)} images, mixing needs an even number", hint="drop_last=True")
        if not self.mixup_enabled:
            fractions = torch.ones(len(x), device=x.device)
            return x, targets(target, target, fractions, self.num_classes, self.label_smoothing)
        if self.config.mixup and not x.is_floating_point():
            raise UsageError(
                "bad_argument", f"the images are {x.dtype}, mixup needs floating-point numbers", hint="use x.float()"
            )
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        mixed, partners, fractions = mix(x, target, rng, self.config)
        return mixed, targets(target, partners, fractions, self.num_classes, self.label_smoothing)


class ImageDataset(Dataset[Sample]):
    """(image, label) by index, from an image folder or any other labeled images that `open_labelled` reads.

    The image is a Pillow image in RGB; with load_bytes, the encoded bytes; or what `transform` returns for either.
    An image that cannot be read raises ImageError, while timm returns the next one instead.
    """

    @checked
    def __init__(
        self,
        root: str | os.PathLike[str],
        reader: str | None = None,
        split: str = "train",
        class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
        load_bytes: bool = False,
        input_img_mode: str = "RGB",
        transform: Callable[..., object] | None = None,
        target_transform: Callable[[int], object] | None = None,
        additional_features: object = None,
        **kwargs: object,
    ):
        """The signature is timm's.

        class_map: {class name: label}, or a text file with one class name per line; without it, labels follow the
        natural order of the class names. split: has no effect, as in timm; `create_dataset` finds the folder of a
        split. Raises UsageError as `open_labelled` does, and `bad_argument` for unsupported arguments.
        """
        unsupported: dict[str, object] = dict(reader=reader or "", additional_features=additional_features, **kwargs)
        hint = "root can be an image folder, Parquet files, WebDataset archives or a list of path,label"
        refuse("ImageDataset", unsupported, dict.fromkeys(unsupported, hint))
        if input_img_mode != "RGB":
            raise UsageError("bad_argument", f"input_img_mode is {input_img_mode!r}", hint="the models read RGB")
        self.images = open_labelled(root, classes=_class_list(class_map))
        self.load_bytes, self.transform, self.target_transform = load_bytes, transform, target_transform

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The label of each class name."""
        return {name: label for label, name in enumerate(self.images.classes)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        encoded = self.images.read(index)
        label = int(self.images.labels[index])
        takes_bytes = self.load_bytes or isinstance(self.transform, Transform | TrainTransform)  # these decode
        image: object = encoded if takes_bytes else as_pillow(decode(encoded))
        image = image if self.transform is None else self.transform(image)
        return image, label if self.target_transform is None else self.target_transform(label)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Return the key of an image; with basename, without its folder.

        Raises UsageError `bad_argument` for absolute=True.
        """
        if absolute:
            raise UsageError("bad_argument", "absolute=True is not supported: images may be inside archives")
        key = self.images.key(index)
        return Path(key).name if basename else key

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """Return the keys of all images, as `filename` does."""
        return [self.filename(i, basename, absolute) for i in range(len(self))]


def _class_list(class_map: Mapping[str, int] | str | os.PathLike[str] | None) -> list[str] | None:
    """Return the class names by label, from {class name: label} or a text file with one name per line."""
    if not class_map:
        return None
    if not isinstance(class_map, Mapping):
        try:
            return [line.strip() for line in Path(class_map).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError, TypeError) as error:
            raise UsageError("not_found", f"the class map {class_map!r} cannot be read: {error}") from None
    names = sorted(class_map, key=lambda name: class_map[name])
    if [class_map[name] for name in names] != list(range(len(names))):
        raise UsageError("bad_argument", "class_map does not assign the labels 0, 1, 2, ... to its classes")
    return names


@checked
def create_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "validation",
    search_split: bool = True,
    class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
    load_bytes: bool = False,
    is_training: bool = False,
    download: bool = False,
    batch_size: int = 1,
    num_samples: int | None = None,
    seed: int = 42,
    repeats: int = 0,
    input_img_mode: str = "RGB",
    trust_remote_code: bool = False,
    transform: Callable[..., object] | None = None,
    target_transform: Callable[[int], object] | None = None,
) -> ImageDataset:
    """Return an `ImageDataset` of local images. The signature is timm's.

    name: "" or "folder" ("wds" and "image_folder" are synonyms). search_split: use the subfolder of the split, such as
    train or val, if root has one. is_training, batch_size and seed have no effect on such data sets, as in timm.
    Raises UsageError as `ImageDataset` does, and `bad_argument` for names that download (torch/, hfds/, tfds/).
    """
    kind = str(name).partition("/")[0].lower()
    if kind not in ("", "folder", "image_folder", "wds"):
        raise UsageError(
            "bad_argument",
            f"the data set {name!r} is not supported: only local images are",
            hint='use create_dataset("", root=FOLDER); download Parquet files from the Hub to read them from a folder',
        )
    unsupported = dict(download=download, num_samples=num_samples, repeats=repeats, trust_remote_code=trust_remote_code)
    refuse("create_dataset", unsupported, dict.fromkeys(unsupported, "only local images are supported"))
    if root is None:
        raise UsageError("bad_argument", "root is missing: the folder or file with the images")
    return ImageDataset(
        _find_split(Path(root), split) if search_split and kind != "wds" else Path(root),
        class_map=class_map,
        load_bytes=load_bytes,
        input_img_mode=input_img_mode,
        transform=transform,
        target_transform=target_transform,
    )


def _find_split(root: Path, split: str) -> Path:
    """Return the subfolder of the split, under any of the names of that split; `root` itself if there is none."""
    name = split.partition("[")[0]
    synonyms = next((names for names in SPLIT_NAMES.values() if name in names), (name,))
    return next((root / folder for folder in (name, *synonyms) if folder and (root / folder).is_dir()), root)


_ONE_SIZE = "the models read images of one size"
_LOADER_ALTERNATIVES = {  # unsupported argument -> hint
    "re_split": "AugMix and split batches are not supported",
    "num_aug_repeats": "`tessella train` supports repeated augmentation",
    "num_aug_splits": "AugMix and split batches are not supported",
    "tf_preprocessing": "the transform is timm's Pillow transform; leave the argument out",
    "input_size_choices": _ONE_SIZE,
    "batch_size_choices": _ONE_SIZE,
    "batch_choice_weights": _ONE_SIZE,
    "batch_schedule_epochs": "all batches have the same size",
    "num_batches": "all batches have the same size",
}
_TRANSFORM_ARGUMENTS = (  # of create_loader, passed on to create_transform
    "input_size",
    "is_training",
    "no_aug",
    "train_crop_mode",
    "scale",
    "ratio",
    "hflip",
    "vflip",
    "color_jitter",
    "color_jitter_prob",
    "grayscale_prob",
    "gaussian_blur_prob",
    "auto_augment",
    "interpolation",
    "mean",
    "std",
    "re_prob",
    "re_mode",
    "re_count",
    "crop_pct",
    "crop_mode",
    "crop_border_pixels",
)
_LOADER_ARGUMENTS = ("batch_size", "num_workers", "collate_fn", "pin_memory")  # passed on to DataLoader


@checked
def create_loader(
    dataset: object,
    input_size: int | Sequence[int],
    batch_size: int,
    is_training: bool = False,
    no_aug: bool = False,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_split: bool = False,
    train_crop_mode: str | None = None,
    scale: Sequence[float] | None = None,
    ratio: Sequence[float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    num_aug_repeats: int = 0,
    num_aug_splits: int = 0,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    num_workers: int = 1,
    distributed: bool = False,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    collate_fn: Callable[..., object] | None = None,
    pin_memory: bool = False,
    fp16: bool = False,
    img_dtype: torch.dtype = torch.float32,
    device: torch.device | str = torch.device("cuda"),  # noqa: B008  # timm's default
    use_prefetcher: bool = True,
    use_multi_epochs_loader: bool = False,
    persistent_workers: bool = True,
    worker_seeding: str = "all",
    tf_preprocessing: bool = False,
    input_size_choices: object = None,
    batch_size_choices: object = None,
    batch_choice_weights: object = None,
    batch_choice_seed: int = 0,
    batch_choice_schedule: str = "constant",
    batch_schedule_epochs: int | None = None,
    batch_schedule_spread: float = 0.65,
    batch_schedule_random_mix: float = 0.1,
    num_batches: int | None = None,
) -> DataLoader[Sample]:
    """Return a loader of (normalized images (B,C,H,W), labels (B,)), and set the `transform` of the data set.

    The signature is timm's. is_training: shuffle, augment, and drop the last batch if it is not full. use_prefetcher:
    the batches are on `device` as img_dtype (fp16: float16); "cuda" means the CPU if CUDA is unavailable. distributed:
    each process loads its part of the data. use_multi_epochs_loader and worker_seeding have no effect: workers persist,
    and always draw different random numbers. Raises UsageError `bad_argument` for unsupported arguments.
    """
    return _build_loader(locals())


def _build_loader(arguments: dict[str, Any]) -> DataLoader[Sample]:
    """Return the loader for the arguments of `create_loader`, by name."""
    refuse("create_loader", {name: arguments[name] for name in _LOADER_ALTERNATIVES}, _LOADER_ALTERNATIVES)
    dataset = arguments["dataset"]
    dataset.transform = create_transform(**{name: arguments[name] for name in _TRANSFORM_ARGUMENTS})
    options = {name: arguments[name] for name in _LOADER_ARGUMENTS}
    options["persistent_workers"] = arguments["persistent_workers"] and arguments["num_workers"] > 0
    options |= _sampling(dataset, arguments["is_training"], arguments["distributed"])
    if not arguments["use_prefetcher"]:
        return DataLoader(dataset, worker_init_fn=_start_worker, **options)
    loader = _PrefetchLoader(dataset, worker_init_fn=_start_worker, **options)
    device = torch.device(arguments["device"])
    usable = device.type != "cuda" or torch.cuda.is_available()
    loader.target = (
        device if usable else torch.device("cpu"),
        torch.float16 if arguments["fp16"] else arguments["img_dtype"],
    )
    return loader


def _sampling(dataset: Dataset[Sample], is_training: bool, distributed: bool) -> dict[str, object]:
    """Return the arguments of DataLoader that select images."""
    if not distributed:
        return dict(shuffle=is_training, drop_last=is_training)
    sampler: DistributedSampler[Sample] = DistributedSampler(dataset, shuffle=is_training)
    return dict(shuffle=False, sampler=sampler, drop_last=is_training)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the processes already use all cores


class _PrefetchLoader(DataLoader[Sample]):
    """A loader whose batches are on a device, with images of a floating-point type."""

    target: tuple[torch.device, torch.dtype]

    def __iter__(self) -> Any:
        device, dtype = self.target
        for images, labels, *others in super().__iter__():
            yield images.to(device, dtype, non_blocking=True), labels.to(device, non_blocking=True), *others


_SUBSETS = {"imagenet-22k-goog": "imagenet-21k-goog"}


class ImageNetInfo:
    """WordNet ids and names of the classes of "imagenet-1k", "imagenet-21k-goog" or "imagenet-21k-miil"."""

    @checked
    def __init__(self, subset: str = "imagenet-1k"):
        """Load the tables of a subset. Raises UsageError `bad_argument` for an unknown one."""
        self._labels = labels_for(_SUBSETS.get(subset, subset))

    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self._labels)

    def label_names(self) -> list[str]:
        """Return the WordNet ids, such as n01440764, by class index."""
        return list(self._labels.synsets)

    def label_descriptions(self, detailed: bool = False, as_dict: bool = False) -> list[str] | dict[str, str]:
        """Return the class names by class index; with as_dict, by WordNet id. detailed=True is refused."""
        names = [self.index_to_description(i, detailed) for i in range(self.num_classes())]
        return dict(zip(self._labels.synsets, names, strict=True)) if as_dict else names

    def index_to_label_name(self, index: int) -> str:
        """Return the WordNet id of a class. Raises UsageError `bad_argument` for an unknown index."""
        return self._labels.synsets[self._check_index(index)]

    def index_to_description(self, index: int, detailed: bool = False) -> str:
        """Return the name of a class. Raises UsageError `bad_argument` for an unknown index or detailed=True."""
        if detailed:
            raise UsageError("bad_argument", "detailed=True: WordNet's definitions are not in this package")
        return self._labels.names[self._check_index(index)]

    def label_name_to_description(self, label: str, detailed: bool = False) -> str:
        """Return the name of the class with a WordNet id. Raises UsageError `bad_argument` for an unknown id."""
        if label not in self._labels.synsets:
            raise UsageError("bad_argument", f"{label!r} is not a label of {self._labels.dataset}")
        return self.index_to_description(self._labels.synsets.index(label), detailed)

    def _check_index(self, index: int) -> int:
        if not isinstance(index, int) or not 0 <= index < self.num_classes():
            raise UsageError("bad_argument", f"the class index is {index}, there are {self.num_classes()} classes")
        return index


@checked
def infer_imagenet_subset(model_or_cfg: object) -> str | None:
    """Return the subset that has as many classes as a model or its pretrained_cfg; None if `ImageNetInfo` has none."""
    cfg = model_or_cfg if isinstance(model_or_cfg, Mapping) else getattr(model_or_cfg, "pretrained_cfg", {})
    num_classes = cfg.get("num_classes") or getattr(model_or_cfg, "num_classes", None)
    labels = labels_for_classes(num_classes) if isinstance(num_classes, int) else None
    return labels.dataset if labels else None
