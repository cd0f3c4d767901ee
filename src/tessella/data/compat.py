"""timm's data sets, loader and mixing under timm's names, built on this package's own.

`docs/reference/timm.md` says argument by argument what is supported; what is not is refused with what to use instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..arguments import refuse
from ..checks import checked
from ..errors import UsageError
from .augment import TrainTransform, as_pillow
from .constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from .datasets import SPLIT_NAMES, open_labelled
from .decode import decode
from .labels import labels_for, labels_for_classes
from .mix import Mixing, mix, targets
from .transforms import Transform, create_transform


class Mixup:
    """Mixup and CutMix of a batch, with timm's arguments: (images (B,C,H,W), labels (B,)) -> (images, targets (B,K)).

    Random numbers come from torch, so `torch.manual_seed` makes them repeatable. The images given are not changed.
    `mixup_enabled = False` stops the mixing; the targets are still smoothed.
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
        refuse("Mixup", dict(multi_label=multi_label), {"multi_label": "labels here are one class per image"})
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
        if not isinstance(x, Tensor) or not isinstance(target, Tensor) or len(x) != len(target):
            raise UsageError("bad_argument", "expected images (B,C,H,W) and labels (B,), both tensors")
        if len(x) % 2:
            raise UsageError("bad_argument", f"got {len(x)} images, mixing needs an even number", hint="drop_last=True")
        if not self.mixup_enabled:
            return x, targets(
                target, target, torch.ones(len(x), device=x.device), self.num_classes, self.label_smoothing
            )
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        mixed, partners, share = mix(x, target, rng, self.config)
        return mixed, targets(target, partners, share, self.num_classes, self.label_smoothing)


class ImageDataset(Dataset[Any]):
    """(image, label) by index, of an image folder or any other labelled images that `open_labelled` reads.

    The image is a Pillow image in RGB, with load_bytes the bytes of its file, or what `transform` makes of it.
    class_map: {class: label}, which decides the labels; without it they follow the natural order of the class names.
    An image that cannot be read raises ImageError; timm takes the next one in its place.
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
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        additional_features: Any = None,
        **kwargs: Any,
    ):
        """split has no effect on a folder, as in timm: `create_dataset` looks for the folder of a split."""
        unsupported = dict(reader=reader or "", additional_features=additional_features, **kwargs)
        why = "root may be an image folder, Parquet files, WebDataset archives or a list of path,label"
        refuse("ImageDataset", unsupported, dict.fromkeys(unsupported, why))
        if input_img_mode != "RGB":
            raise UsageError("bad_argument", f"input_img_mode is {input_img_mode!r}", hint="the models read RGB")
        self.images = open_labelled(root, classes=_class_list(class_map))
        self.load_bytes, self.transform, self.target_transform = load_bytes, transform, target_transform

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.images.classes)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        data: Any = self.images.read(index)
        label = int(self.images.labels[index])
        if not self.load_bytes and not isinstance(self.transform, Transform | TrainTransform):  # those decode
            data = as_pillow(decode(data))
        image = data if self.transform is None else self.transform(data)
        return image, label if self.target_transform is None else self.target_transform(label)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        if absolute:
            raise UsageError("bad_argument", "absolute=True is not supported: images may be inside archives")
        key = self.images.key(index)
        return Path(key).name if basename else key

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        return [self.filename(i, basename, absolute) for i in range(len(self))]


def _class_list(class_map: Mapping[str, int] | str | os.PathLike[str] | None) -> list[str] | None:
    """Class names by label, of {class: label} or of a text file with one name per line."""
    if not class_map:
        return None
    if not isinstance(class_map, Mapping):
        try:
            return [line.strip() for line in Path(class_map).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError, TypeError) as error:
            raise UsageError("not_found", f"the class map {class_map!r} cannot be read: {error}") from None
    names = sorted(class_map, key=lambda name: class_map[name])
    if [class_map[name] for name in names] != list(range(len(names))):
        raise UsageError("bad_argument", "class_map does not give its classes the labels 0, 1, 2, ...")
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
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[int], Any] | None = None,
) -> ImageDataset:
    """An `ImageDataset` of local images. name: "" or "folder" ("wds" and "image_folder" mean the same here).

    search_split: where root has a folder of the split, such as train or val, take that. is_training, batch_size and
    seed have no effect on data sets of this kind, as in timm. Names that download (torch/, hfds/, tfds/) are refused.
    """
    kind = str(name).partition("/")[0].lower()
    if kind not in ("", "folder", "image_folder", "wds"):
        raise UsageError(
            "bad_argument",
            f"a data set {name!r} is not supported: only local images are",
            hint='create_dataset("", root=FOLDER); Parquet files of the Hub can be downloaded and read from a folder',
        )
    unsupported = dict(download=download, num_samples=num_samples, repeats=repeats, trust_remote_code=trust_remote_code)
    refuse("create_dataset", unsupported, dict.fromkeys(unsupported, "only local images are covered"))
    if root is None:
        raise UsageError("bad_argument", "root is missing: the folder or file with the images")
    found = _search_split(Path(root), split) if search_split and kind != "wds" else Path(root)
    return ImageDataset(
        found,
        class_map=class_map,
        load_bytes=load_bytes,
        input_img_mode=input_img_mode,
        transform=transform,
        target_transform=target_transform,
    )


def _search_split(root: Path, split: str) -> Path:
    """The folder of the split in `root`, under any of the names for it; `root` itself where there is none."""
    name = split.partition("[")[0]
    same = next((names for names in SPLIT_NAMES.values() if name in names), (name,))
    return next((root / one for one in (name, *same) if one and (root / one).is_dir()), root)


_LOADER_REASONS = {
    **dict.fromkeys(("re_split", "num_aug_splits"), "AugMix and split batches are not covered"),
    "num_aug_repeats": "`tessella train` has repeated augmentation",
    "tf_preprocessing": "the transform is timm's Pillow one; leave it out",
    **dict.fromkeys(
        ("input_size_choices", "batch_size_choices", "batch_choice_weights"), "the models here read images of one size"
    ),
    **dict.fromkeys(("batch_schedule_epochs", "num_batches"), "batches of one size are all there is"),
}


@checked
def create_loader(
    dataset: Any,
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
    collate_fn: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
    fp16: bool = False,
    img_dtype: torch.dtype = torch.float32,
    device: torch.device | str = torch.device("cuda"),  # noqa: B008  # timm's default
    use_prefetcher: bool = True,
    use_multi_epochs_loader: bool = False,
    persistent_workers: bool = True,
    worker_seeding: str = "all",
    tf_preprocessing: bool = False,
    input_size_choices: Any = None,
    batch_size_choices: Any = None,
    batch_choice_weights: Any = None,
    batch_choice_seed: int = 0,
    batch_choice_schedule: str = "constant",
    batch_schedule_epochs: int | None = None,
    batch_schedule_spread: float = 0.65,
    batch_schedule_random_mix: float = 0.1,
    num_batches: int | None = None,
) -> DataLoader[Any]:
    """Batches of (images (B,C,H,W) normalised, labels (B,)) from a data set, whose `transform` is set here.

    is_training: shuffled, augmented, and without a last batch that is not full. With use_prefetcher batches come on
    `device` as img_dtype (fp16: float16); CUDA counts as the CPU where there is none. distributed: each process has its
    share. use_multi_epochs_loader and worker_seeding have no effect: workers persist and draw different numbers anyhow.
    """
    unsupported = dict(
        re_split=re_split,
        num_aug_repeats=num_aug_repeats,
        num_aug_splits=num_aug_splits,
        tf_preprocessing=tf_preprocessing,
        input_size_choices=input_size_choices,
        batch_size_choices=batch_size_choices,
        batch_choice_weights=batch_choice_weights,
        batch_schedule_epochs=batch_schedule_epochs,
        num_batches=num_batches,
    )
    refuse("create_loader", unsupported, _LOADER_REASONS)
    dataset.transform = create_transform(
        input_size,
        is_training,
        no_aug,
        train_crop_mode,
        scale,
        ratio,
        hflip,
        vflip,
        color_jitter,
        color_jitter_prob,
        grayscale_prob,
        gaussian_blur_prob,
        auto_augment,
        interpolation,
        mean,
        std,
        re_prob,
        re_mode,
        re_count,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        crop_border_pixels=crop_border_pixels,
    )
    sampler: DistributedSampler[Any] | None = DistributedSampler(dataset, shuffle=is_training) if distributed else None
    loader = _Prefetching if use_prefetcher else DataLoader
    made: DataLoader[Any] = loader(
        dataset,
        batch_size=batch_size,
        shuffle=is_training and sampler is None,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
        drop_last=is_training,
        persistent_workers=persistent_workers and num_workers > 0,
        worker_init_fn=partial(_start_worker),
    )
    if isinstance(made, _Prefetching):
        usable = torch.device(device).type != "cuda" or torch.cuda.is_available()
        made.place = dict(device=torch.device(device if usable else "cpu"), dtype=torch.float16 if fp16 else img_dtype)
    return made


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the processes are the parallelism


class _Prefetching(DataLoader[Any]):
    """Batches on a device, in a floating type."""

    place: dict[str, Any]

    def __iter__(self) -> Any:
        for images, labels, *rest in super().__iter__():
            yield images.to(non_blocking=True, **self.place), labels.to(self.place["device"], non_blocking=True), *rest


_SUBSETS = {"imagenet-22k-goog": "imagenet-21k-goog"}


class ImageNetInfo:
    """Labels and descriptions of "imagenet-1k", "imagenet-21k-goog" or "imagenet-21k-miil": WordNet ids and names."""

    @checked
    def __init__(self, subset: str = "imagenet-1k"):
        self._labels = labels_for(_SUBSETS.get(subset, subset))

    def num_classes(self) -> int:
        return len(self._labels)

    def label_names(self) -> list[str]:
        """WordNet ids such as n01440764, by class."""
        return list(self._labels.synsets)

    def label_descriptions(self, detailed: bool = False, as_dict: bool = False) -> list[str] | dict[str, str]:
        texts = [self.index_to_description(i, detailed) for i in range(self.num_classes())]
        return dict(zip(self._labels.synsets, texts, strict=True)) if as_dict else texts

    def index_to_label_name(self, index: int) -> str:
        return self._labels.synsets[self._known(index)]

    def index_to_description(self, index: int, detailed: bool = False) -> str:
        if detailed:
            raise UsageError("bad_argument", "detailed=True: WordNet's definitions are not in this package")
        return self._labels.names[self._known(index)]

    def label_name_to_description(self, label: str, detailed: bool = False) -> str:
        if label not in self._labels.synsets:
            raise UsageError("bad_argument", f"{label!r} is not a label of {self._labels.dataset}")
        return self.index_to_description(self._labels.synsets.index(label), detailed)

    def _known(self, index: int) -> int:
        if not isinstance(index, int) or not 0 <= index < self.num_classes():
            raise UsageError("bad_argument", f"class {index} of {self.num_classes()}")
        return index


@checked
def infer_imagenet_subset(model_or_cfg: Any) -> str | None:
    """The subset that a model's class count stands for; None where it is none of `ImageNetInfo`'s."""
    cfg = model_or_cfg if isinstance(model_or_cfg, Mapping) else getattr(model_or_cfg, "pretrained_cfg", {})
    classes = cfg.get("num_classes") or getattr(model_or_cfg, "num_classes", None)
    known = labels_for_classes(classes) if isinstance(classes, int) else None
    return known.dataset if known else None
