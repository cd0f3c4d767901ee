"""The names shared with timm: signatures, defaults, and the effect of every argument.

timm_signatures.json contains the signatures of timm 1.0.31: names of parameters, their order and their defaults.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tessella
from tessella import models
from tessella.data import (
    ImageDataset,
    ImageNetInfo,
    Mixup,
    create_dataset,
    create_loader,
    create_transform,
    infer_imagenet_subset,
    resolve_data_config,
    resolve_model_data_config,
)
from tessella.data.transforms import Transform
from tessella.errors import UsageError, WeightsError
from tessella.models.base import ImageModel
from tessella.weights import save_pretrained

from .models.tiny import TINY, tiny
from .weights.test_files import saved, state_hash

TIMM = json.loads((Path(__file__).parent / "timm_signatures.json").read_text())
ARCH, SMALL = TINY["mixer"]
OTHER_NAMES = {("CrossVit.forward_head", "xs"): "x"}  # different names here; both are passed by position


def find(name: str) -> Any:
    found: Any = tessella
    owner, _, rest = name.partition(".")
    if owner in ("ConvMixer", "ConVit", "MlpMixer", "CrossVit"):
        found, name = getattr(models, owner), rest
    for part in name.split("."):
        found = getattr(found, part)
    return found


def plain(value: Any) -> Any:
    if isinstance(value, torch.device):
        return str(value)
    return (
        list(value)
        if isinstance(value, tuple | list)
        else value
        if isinstance(value, str | float | None)
        else str(value)
    )


@pytest.mark.parametrize("name", [*TIMM["functions"], *TIMM["methods"]])
def test_parameters_their_order_and_defaults_are_timms(name: str) -> None:
    theirs = TIMM["functions"].get(name, TIMM["methods"].get(name))
    function = find(name)
    ours = list(inspect.signature(function).parameters.values())
    if name in TIMM["methods"]:
        ours = ours[1:]
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    for place, their in enumerate(p for p in theirs if p["kind"] == "POSITIONAL_OR_KEYWORD"):
        our = positional[place]
        assert our.name == OTHER_NAMES.get((name, their["name"]), their["name"])
        if their.get("required"):
            assert our.default is our.empty
        else:
            assert plain(our.default) == plain(their["default"]), our.name
    for extra in ours[len([p for p in theirs if p["kind"] == "POSITIONAL_OR_KEYWORD"]) :]:
        assert extra.default is not extra.empty or extra.kind in (extra.VAR_KEYWORD, extra.VAR_POSITIONAL), extra.name


def test_constants_are_timms() -> None:
    for name, value in TIMM["constants"].items():
        assert plain(getattr(tessella.data, name)) == pytest.approx(value) if isinstance(value, list) else value


# --- the effect of every argument -------------------------------------------------------------------------------------


@pytest.fixture
def image() -> np.ndarray:
    y, x = np.mgrid[:60, :90]
    return np.stack([x * 2, y * 4, (x + y) % 256], -1).astype(np.uint8)


# argument: (value, used for "eval", "train" or "both", and "changes" the result, has "no effect" or is "refused")
TRANSFORM: dict[str, tuple[Any, str, str]] = {
    "input_size": (40, "both", "changes"),
    "is_training": (True, "eval", "changes"),
    "no_aug": (True, "train", "changes"),
    "train_crop_mode": ("rkrr", "train", "changes"),
    "scale": ((0.5, 0.6), "train", "changes"),
    "ratio": ((2.0, 3.0), "train", "changes"),
    "hflip": (0.0, "train", "changes"),
    "vflip": (1.0, "train", "changes"),
    "color_jitter": (0.9, "train", "changes"),
    "color_jitter_prob": (0.0, "train", "changes"),
    "grayscale_prob": (1.0, "train", "changes"),
    "gaussian_blur_prob": (1.0, "train", "changes"),
    "auto_augment": ("rand-m9-n3-p1.0", "train", "changes"),
    "interpolation": ("bicubic", "both", "changes"),
    "mean": ((0.1, 0.2, 0.3), "both", "changes"),
    "std": ((0.1, 0.2, 0.3), "both", "changes"),
    "re_prob": (1.0, "train", "changes"),
    "re_mode": ("pixel", "erasing", "changes"),
    "re_count": (3, "erasing", "changes"),
    "re_num_splits": (2, "both", "refused"),
    "crop_pct": (0.5, "eval", "changes"),
    "crop_mode": ("squash", "eval", "changes"),
    "crop_border_pixels": (5, "eval", "changes"),
    "tf_preprocessing": (True, "both", "refused"),
    "use_prefetcher": (True, "both", "changes"),
    "normalize": (False, "both", "changes"),
    "separate": (True, "both", "refused"),
    "naflex": (True, "both", "refused"),
    "patch_size": (8, "both", "no effect"),
    "max_seq_len": (100, "both", "no effect"),
    "patchify": (True, "both", "refused"),
    "patchify_channels_last": (False, "both", "no effect"),
    "patchify_flatten": (False, "both", "no effect"),
}


def test_every_argument_of_create_transform_is_listed() -> None:
    assert list(TRANSFORM) == [p["name"] for p in TIMM["functions"]["data.create_transform"]]


MORE: dict[str, dict[str, Any]] = {
    "eval": {},
    "train": dict(is_training=True),
    "erasing": dict(is_training=True, re_prob=1.0),
}


@pytest.mark.parametrize("name", TRANSFORM)
@pytest.mark.parametrize("where", ["eval", "train", "erasing"])
def test_arguments_of_create_transform(name: str, where: str, image: np.ndarray) -> None:
    value, counts, outcome = TRANSFORM[name]
    base: dict[str, Any] = dict(input_size=32)
    base |= MORE[where]
    if outcome == "refused":
        with pytest.raises(UsageError, match=name) as error:
            create_transform(**base, **{name: value})
        assert error.value.hint
        return
    results = []
    for arguments in (base, {**base, name: value}):
        torch.manual_seed(3)
        transform = create_transform(**arguments)
        results.append(torch.cat([transform(image).flatten().float() for _ in range(4)]))
    expected = outcome == "changes" and (counts in (where, "both") or (counts == "train" and where == "erasing"))
    if name == "re_prob" and where == "erasing":
        expected = False  # as in the base call
    same = results[0].shape == results[1].shape and torch.equal(results[0], results[1])
    assert same == (not expected)


def test_the_default_transform_is_timms_for_an_image(image: np.ndarray) -> None:
    """Resize bilinearly, crop 0.875 of the side, normalize with ImageNet's mean; written with Pillow."""
    resized = Image.fromarray(image).resize((int(256 * 90 / 60), 256), Image.Resampling.BILINEAR)
    left = round((resized.width - 224) / 2)
    cropped = np.asarray(resized.crop((left, 16, left + 224, 240)))
    x = torch.from_numpy(cropped.copy()).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.equal(create_transform(224)(image), (x - mean) / std)


LOADER_REFUSED: dict[str, Any] = {
    "re_split": True,
    "num_aug_repeats": 3,
    "num_aug_splits": 2,
    "tf_preprocessing": True,
    "input_size_choices": (32, 40),
    "batch_size_choices": (1, 2),
    "batch_choice_weights": (1, 2),
    "batch_schedule_epochs": 3,
    "num_batches": 3,
}
LOADER_NO_EFFECT: dict[str, Any] = {
    "use_multi_epochs_loader": True,
    "worker_seeding": "part",
    "batch_choice_seed": 1,
    "batch_choice_schedule": "linear",
    "batch_schedule_spread": 0.1,
    "batch_schedule_random_mix": 0.5,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            target = tmp_path / split / name
            target.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (120 * label, 10 * i, 255 if split == "val" else 0)).save(
                    target / f"{i}.png"
                )
    return tmp_path


def test_every_argument_of_create_loader_is_covered() -> None:
    here = (
        "dataset",
        "input_size",
        "batch_size",
        "num_workers",
        "distributed",
        "collate_fn",
        "pin_memory",
        "fp16",
        "img_dtype",
        "device",
        "use_prefetcher",
        "persistent_workers",
    )
    listed = {*LOADER_REFUSED, *LOADER_NO_EFFECT, *TRANSFORM, *here}
    assert {p["name"] for p in TIMM["functions"]["data.create_loader"]} <= listed


def test_create_loader_returns_normalized_batches_and_labels(folder: Path) -> None:
    data = create_dataset("", folder, split="validation")
    loader = create_loader(data, (3, 32, 32), batch_size=4, num_workers=0)
    batches = list(loader)
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    expected = create_transform((3, 32, 32))(np.full((30, 40, 3), (0, 0, 255), np.uint8))
    assert torch.equal(batches[0][0][0].cpu(), expected)
    assert len(loader) == 2


def test_create_loader_for_training_shuffles_and_drops_the_last(folder: Path) -> None:
    data = create_dataset("", folder, split="train", is_training=True)
    loader = create_loader(data, 32, batch_size=4, is_training=True, num_workers=0)
    torch.manual_seed(0)
    labels = [y.tolist() for _, y in loader]
    assert [len(one) for one in labels] == [4, 4]
    flat = [label for batch in labels for label in batch]
    assert flat != sorted(flat)


def test_the_other_arguments_of_create_loader(folder: Path) -> None:
    data = create_dataset("", folder)

    def first(**arguments: Any) -> Tensor:
        x: Tensor = next(iter(create_loader(data, 32, 2, **{"num_workers": 0, **arguments})))[0]
        return x

    assert first(fp16=True).dtype == torch.float16
    assert first(img_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert first(device="cpu", pin_memory=False).device.type == "cpu"
    plain_loader = create_loader(data, 32, 2, use_prefetcher=False, num_workers=0)
    assert torch.equal(next(iter(plain_loader))[0], first().cpu())
    named = create_loader(data, 32, 2, num_workers=0, use_prefetcher=False, collate_fn=lambda items: len(items))
    assert list(named) == [2, 2, 2]
    workers = create_loader(data, 32, 2, num_workers=1, persistent_workers=False)
    assert sum(len(y) for _, y in workers) == 6
    for name, value in LOADER_REFUSED.items():
        with pytest.raises(UsageError, match=name) as error:
            create_loader(data, 32, 2, **{name: value})
        assert error.value.hint
    for name, value in LOADER_NO_EFFECT.items():
        assert torch.equal(first(**{name: value}), first())
    for name, (value, counts, outcome) in TRANSFORM.items():
        known = {p["name"] for p in TIMM["functions"]["data.create_loader"]}
        if name in known - {"input_size", "is_training", "use_prefetcher"} and outcome == "changes":
            training = counts != "eval"
            more: dict[str, Any] = {"re_prob": 1.0} if counts == "erasing" else {}
            create_loader(data, 32, 2, is_training=training, **more)
            before = data.transform
            create_loader(data, 32, 2, is_training=training, **{**more, name: value})
            assert data.transform != before, name


def test_image_dataset(folder: Path) -> None:
    data = ImageDataset(folder / "train")
    picture, label = data[9]
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.size, label, len(data)) == ("RGB", (40, 30), 1, 10)
    assert data.class_to_idx == {"cat": 0, "dog": 1}
    assert data.filename(0) == "cat/0.png"
    assert data.filenames(basename=True)[9] == "4.png"
    assert ImageDataset(folder / "train", load_bytes=True)[0][0].startswith(b"\x89PNG")
    assert ImageDataset(folder / "train", class_map={"dog": 0, "cat": 1})[0][1] == 1
    (folder / "map.txt").write_text("dog\ncat\n")
    assert ImageDataset(folder / "train", class_map=folder / "map.txt")[0][1] == 1
    assert ImageDataset(folder / "train", target_transform=lambda label: label + 5)[9][1] == 6
    assert ImageDataset(folder / "train", transform=lambda image: image.size)[0][0] == (40, 30)
    assert ImageDataset(folder / "train", split="anything")[0][1] == 0
    for unsupported in (dict(reader="tfds"), dict(additional_features=["a"]), dict(input_img_mode="L"), dict(seed=3)):
        with pytest.raises(UsageError):
            ImageDataset(folder / "train", **unsupported)
    for class_map in ({"cat": 1, "dog": 2}, "nowhere.txt"):
        with pytest.raises(UsageError):
            ImageDataset(folder / "train", class_map=class_map)


def test_create_dataset(folder: Path) -> None:
    assert len(create_dataset("", folder)) == 6
    assert len(create_dataset("folder", str(folder), split="training")) == 10
    assert len(create_dataset("image_folder", folder / "train", search_split=False)) == 10
    neutral = dict(batch_size=7, seed=3, is_training=True)
    assert len(create_dataset("", folder, **neutral)) == 6  # type: ignore[arg-type]
    passed = create_dataset("", folder, class_map={"dog": 0, "cat": 1}, load_bytes=True, input_img_mode="RGB")
    assert passed[0] == ((folder / "val" / "cat" / "0.png").read_bytes(), 1)
    refused: list[dict[str, Any]] = [dict(download=True), dict(num_samples=3), dict(repeats=2)]
    for arguments in (
        *refused,
        dict(trust_remote_code=True),
        dict(name="torch/cifar10"),
        dict(name="hfds/x"),
        dict(root=None),
    ):
        with pytest.raises(UsageError):
            create_dataset(**{"name": "", "root": folder, **arguments})


def test_mixup() -> None:
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])

    def mixed(**arguments: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        return Mixup(num_classes=5, **arguments)(x, y)

    before = x.clone()
    images, soft = mixed()
    assert torch.equal(x, before)
    assert not torch.equal(images, x)
    assert soft.shape == (4, 5)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    changes: list[dict[str, Any]] = [
        dict(mixup_alpha=0.1),
        dict(cutmix_alpha=1.0, switch_prob=1.0),
        dict(mode="elem"),
        dict(mode="pair"),
        dict(mixup_alpha=0.0, cutmix_minmax=(0.3, 0.5)),
        dict(prob=0.0),
    ]
    for arguments in changes:
        assert not torch.equal(mixed(**arguments)[0], images), arguments
    assert torch.equal(mixed(prob=0.0)[0], x)
    assert mixed(prob=0.0, label_smoothing=0.0)[1].tolist() == torch.eye(5)[:4].tolist()
    cut = Mixup(mixup_alpha=0, cutmix_alpha=1.0, label_smoothing=0, num_classes=5)
    torch.manual_seed(0)
    _, weights = cut(x, y)
    torch.manual_seed(0)
    assert torch.equal(cut((255 * x.clamp(0, 1)).to(torch.uint8), y)[1], weights)
    with pytest.raises(UsageError, match="uint8"):
        Mixup(num_classes=5)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    off = Mixup(num_classes=5)
    off.mixup_enabled = False
    assert torch.equal(off(x, y)[0], x)
    assert off(x, y)[1][0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    for arguments in (dict(multi_label=True), dict(correct_lam=False), dict(mode="other"), dict(prob=2.0)):
        with pytest.raises(UsageError):
            mixed(**arguments)
    with pytest.raises(UsageError, match="even"):
        Mixup(num_classes=5)(x[:3], y[:3])


def test_image_net_info() -> None:
    info = ImageNetInfo()
    assert (info.num_classes(), info.index_to_label_name(0)) == (1000, "n01440764")
    assert info.label_names()[1] == "n01443537"
    assert "tench" in info.index_to_description(0)
    assert info.label_name_to_description("n01440764") == info.index_to_description(0)
    texts: Any = info.label_descriptions()
    assert texts[0] == info.index_to_description(0)
    assert info.label_descriptions(as_dict=True)["n01440764"] == info.index_to_description(0)  # type: ignore[call-overload]
    assert ImageNetInfo("imagenet-21k-miil").num_classes() == 11221
    for call in (
        lambda: ImageNetInfo("imagenet-12k"),
        lambda: info.index_to_description(0, detailed=True),
        lambda: info.index_to_label_name(1000),
        lambda: info.label_name_to_description("x"),
        lambda: info.label_descriptions(detailed=True),
    ):
        with pytest.raises(UsageError):
            call()
    assert infer_imagenet_subset(tiny("mixer")) is None
    assert infer_imagenet_subset({"num_classes": 1000}) == "imagenet-1k"


def test_resolve_data_config(caplog: pytest.LogCaptureFixture) -> None:
    cfg = dict(
        input_size=(3, 100, 100), test_input_size=(3, 120, 120), crop_pct=0.9, test_crop_pct=1.0, mean=(0.5,) * 3
    )
    assert resolve_data_config(pretrained_cfg=cfg)["input_size"] == (3, 100, 100)
    tested = resolve_data_config(pretrained_cfg=cfg, use_test_size=True)
    assert (tested["input_size"], tested["crop_pct"]) == ((3, 120, 120), 1.0)
    model = nn.Identity()
    model.pretrained_cfg = cfg  # type: ignore[assignment]
    assert resolve_model_data_config(model) == resolve_data_config({}, model=model) == resolve_data_config({}, cfg)
    assert resolve_data_config(dict(img_size=64, crop_pct=0, interpolation=""), cfg)["crop_pct"] == 0.9
    assert resolve_data_config(dict(img_size=64), cfg)["input_size"] == (3, 64, 64)
    assert list(tested) == ["input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"]
    with caplog.at_level(logging.INFO):
        resolve_data_config({}, cfg, verbose=True)
    assert "input_size" in caplog.text


# --- create_model and the functions about names -----------------------------------------------------------------------


def model_of(*args: Any, **kwargs: Any) -> ImageModel:
    made = tessella.create_model(*args, **kwargs)
    assert isinstance(made, ImageModel)
    return made


def test_create_model_accepts_timms_arguments(tmp_path: Path) -> None:
    for flags in (dict(scriptable=False, exportable=False, no_jit=True), dict(scriptable=True, exportable=True)):
        made = model_of(
            ARCH, **SMALL, checkpoint_path="", cache_dir="", pretrained_cfg="", drop_path_rate=None, **flags
        )
        assert made.num_classes == 1000
    made = model_of(ARCH, False, None, None, "", None, False, False, True, **SMALL, num_classes=3, in_chans=1)
    assert made.num_classes == 3
    assert made.default_cfg is made.pretrained_cfg
    assert model_of(ARCH, **SMALL, global_pool="", features_only=None).global_pool == ""
    overlaid = model_of(ARCH, **SMALL, pretrained_cfg_overlay=dict(mean=(0.1, 0.2, 0.3)))
    assert overlaid.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    (tmp_path / "m.pth").write_bytes(saved(tiny("mixer").state_dict()))
    loaded = model_of(ARCH, **SMALL, num_classes=5, checkpoint_path=tmp_path / "m.pth")
    assert state_hash(loaded) == state_hash(tiny("mixer"))
    assert model_of("convmixer_768_32", dim=8, depth=1, act_layer=nn.GELU).config.act_layer == "gelu"


BAD_ARGUMENTS: list[dict[str, Any]] = [
    dict(norm_layer=nn.LayerNorm),
    dict(block_layer=nn.Identity),
    dict(hybrid_backbone=nn.Identity()),
    dict(img_sze=64),
    dict(precision="int8"),
    dict(presision="int8"),
    dict(zzz=1),
    dict(embed_dim="wide"),
    dict(embed_dim=-3),
    dict(embed_dim=2.5),
    dict(embed_dim=10**9),
    dict(num_blocks=10**7),
    dict(num_classes=-1),
    dict(num_classes="5"),
    dict(img_size=10**12),
    dict(img_size=[1, [2]]),
    dict(in_chans=0.5),
    dict(mlp_ratio=float("nan")),
    dict(mlp_ratio=float("inf")),
    dict(drop_rate=3.0),
    dict(drop_rate="a"),
    dict(drop_path_rate=float("nan")),
    dict(global_pool=3),
    dict(patch_size=0),
    dict(patch_size=-16),
    dict(device="cuda:99"),
    dict(device="nowhere"),
    dict(dtype="float32"),
    dict(pretrained_cfg=3),
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=str)
def test_invalid_arguments_are_coded_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        tessella.create_model(ARCH, **arguments)
    assert error.value.code == "bad_argument"


NEAR: list[tuple[Any, dict[str, Any], str]] = [
    (tessella.load, dict(devic="cpu"), "device"),
    (tessella.load, dict(check_point="x"), "checkpoint_path"),
    (tessella.create_model, dict(model_name=ARCH, num_class=3), "num_classes"),
    (tessella.create_model, dict(model_name=ARCH, pretraind=True), "pretrained"),
    (create_transform, dict(is_trainin=True), "is_training"),
    (tessella.optimize, dict(net=None, exampl=3), "example"),
    (create_loader, dict(dataset=None, input_size=1, batch_sze=3), "batch_size"),
    (create_dataset, dict(name="", rot="x"), "root"),
]


@pytest.mark.parametrize(("function", "arguments", "meant"), NEAR)
def test_did_you_mean(function: Any, arguments: dict[str, Any], meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {meant}") as error:
        function(**arguments)
    assert error.value.code == "bad_argument"


def test_an_unknown_family_is_refused_with_the_supported_ones() -> None:
    for call in (tessella.create_model, tessella.load, tessella.model_entrypoint, models.build):
        with pytest.raises(UsageError) as error:
            call("resnet50")
        assert error.value.code == "unknown_model"
        if call is not models.build:
            assert all(family in error.value.hint for family in ("convmixer", "convit", "crossvit", "resmlp", "gmlp"))


def test_missing_weights_have_hints() -> None:
    for call in (lambda: tessella.load("mixer_s32_224"), lambda: tessella.create_model("mixer_s32_224", True)):
        with pytest.raises(UsageError) as error:
            call()
        assert error.value.code == "no_weights"
        for way in ("checkpoint_path", "local-dir:", "pretrained=False", "list --pretrained"):
            assert way in error.value.hint
    assert tessella.load("mixer_s32_224", pretrained=False, engine="eager", **SMALL).num_classes == 1000


def test_functions_about_names() -> None:
    assert tessella.get_pretrained_cfg("resnet50") is None
    with pytest.raises(UsageError):
        tessella.get_pretrained_cfg("resnet50", allow_unregistered=False)
    with pytest.raises(UsageError, match="nope"):
        tessella.get_pretrained_cfg("mixer_b16_224.nope")
    assert tessella.get_pretrained_cfg_value("mixer_b16_224", "input_size") == (3, 224, 224)
    assert tessella.get_pretrained_cfg_value("mixer_b16_224", "nothing") is None
    for name, expected in {"b16_224": True, "b16_224.goog_in21k": True, "s16_224": False, "b16_224.no": False}.items():
        assert tessella.is_model_pretrained(f"mixer_{name}") == expected
    assert not tessella.is_model_pretrained("resnet50")
    assert tessella.list_models(module=["convit", "convmixer"]) == sorted(
        tessella.list_models(module="convit") + tessella.list_models(module="convmixer"),
        key=tessella.list_models().index,
    )
    assert tessella.list_models(iter(["convit_*"])) == tessella.list_models("convit_*")
    assert "convit_tiny" not in tessella.list_models("convit_*", exclude_filters=iter(["*_tiny"]))
    entry = tessella.model_entrypoint("mixer_s16_224.anything", module_filter="mlp_mixer")
    assert entry.__name__ == "mixer_s16_224"
    assert entry(num_classes=3, **SMALL).num_classes == 3
    with pytest.raises(UsageError):
        tessella.model_entrypoint("mixer_s16_224", module_filter="convit")
    wrong: Any
    for wrong in (None, 3, b"mixer"):
        for function in (
            tessella.is_model,
            tessella.is_model_pretrained,
            tessella.get_pretrained_cfg,
            tessella.create_model,
        ):
            with pytest.raises(UsageError, match="expected"):
                function(wrong)


def test_names_are_in_the_same_modules_as_in_timm() -> None:
    from tessella.data.constants import IMAGENET_DEFAULT_MEAN
    from tessella.models import ConVit, ConvMixer, CrossVit, MlpMixer
    from tessella.weights.catalogue import list_models
    from tessella.weights.factory import create_model, load_checkpoint

    assert create_model is tessella.create_model
    assert list_models is tessella.models.list_models is tessella.list_models
    assert load_checkpoint is tessella.load_checkpoint
    assert tessella.data.IMAGENET_DEFAULT_MEAN is IMAGENET_DEFAULT_MEAN
    families = {"convmixer": ConvMixer, "convit": ConVit, "crossvit": CrossVit, "mixer": MlpMixer}
    assert all(isinstance(tiny(case), family) for case, family in families.items())
    with pytest.raises(AttributeError):
        models.nothing  # noqa: B018
    assert {"create_model", "ConvMixer"} <= set(dir(models))


# --- load_checkpoint --------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "m.pth"
    path.write_bytes(saved({"state_dict": tiny("mixer").state_dict(), "model_ema": tiny("mixer").state_dict()}))
    return path


def fresh() -> ImageModel:
    return model_of(ARCH, **SMALL, num_classes=5)


def test_load_checkpoint(checkpoint: Path) -> None:
    model = fresh()
    found = tessella.load_checkpoint(model, str(checkpoint), use_ema=False, device="cpu")
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert state_hash(model) == state_hash(tiny("mixer"))


def test_load_checkpoint_strict_and_not(tmp_path: Path) -> None:
    state = dict(tiny("mixer").state_dict())
    state["extra"] = state.pop("head.bias")
    (tmp_path / "m.pth").write_bytes(saved(state))
    model = fresh()
    before = state_hash(model)
    with pytest.raises(WeightsError):
        tessella.load_checkpoint(model, tmp_path / "m.pth")
    assert state_hash(model) == before
    found = tessella.load_checkpoint(model, tmp_path / "m.pth", strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["head.bias"], ["extra"])
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


def test_load_checkpoint_by_order_or_through_a_function(tmp_path: Path) -> None:
    renamed = {f"tensor{i}": value for i, value in enumerate(tiny("mixer").state_dict().values())}
    (tmp_path / "m.pth").write_bytes(saved(renamed))
    model = fresh()
    tessella.load_checkpoint(model, tmp_path / "m.pth", remap=True)
    assert state_hash(model) == state_hash(tiny("mixer"))
    model = fresh()
    names = list(model.state_dict())
    tessella.load_checkpoint(
        model, tmp_path / "m.pth", filter_fn=lambda state, _: dict(zip(names, state.values(), strict=True))
    )
    assert state_hash(model) == state_hash(tiny("mixer"))
    renamed.popitem()
    (tmp_path / "m.pth").write_bytes(saved(renamed))
    with pytest.raises(WeightsError):
        tessella.load_checkpoint(model, tmp_path / "m.pth", remap=True)


def test_load_checkpoint_never_executes_code(checkpoint: Path) -> None:
    for function in (
        lambda: tessella.load_checkpoint(fresh(), checkpoint, weights_only=False),
        lambda: models.load_state_dict(checkpoint, weights_only=False),
    ):
        with pytest.raises(UsageError, match="weights_only"):
            function()


def test_load_checkpoint_into_any_module(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    (tmp_path / "m.pth").write_bytes(saved({"model." + k: v for k, v in layer.state_dict().items()}))
    other = nn.Linear(3, 2)
    tessella.load_checkpoint(other, tmp_path / "m.pth")
    assert torch.equal(other.weight, layer.weight)


def test_a_saved_folder_can_be_used_as_a_name(tmp_path: Path) -> None:
    folder = save_pretrained(tiny("mixer"), tmp_path)
    assert state_hash(model_of(f"local-dir:{folder}", pretrained=True)) == state_hash(tiny("mixer"))


# --- wrong types ------------------------------------------------------------------------------------------------------

WRONG_TYPES: list[Any] = [
    lambda: tessella.create_model(ARCH, checkpoint_path=3),  # type: ignore[call-overload]
    lambda: tessella.create_model(ARCH, pretrained_cfg_overlay=[1]),  # type: ignore[call-overload]
    lambda: tessella.create_model(ARCH, cache_dir=3.0),  # type: ignore[call-overload]
    lambda: tessella.create_model(ARCH, features_only=True, out_indices="a"),
    lambda: tessella.create_model(ARCH, features_only=True, out_indices=[0.5]),
    lambda: create_transform("a"),  # type: ignore[arg-type]
    lambda: create_transform(None),  # type: ignore[arg-type]
    lambda: create_transform(224, mean="abc"),  # type: ignore[arg-type]
    lambda: create_transform(224, interpolation=["a"]),  # type: ignore[arg-type]
    lambda: create_transform(224, True, hflip="a"),  # type: ignore[arg-type]
    lambda: create_transform(224, True, hflip=float("nan")),
    lambda: create_transform(224, True, scale=("a", "b")),  # type: ignore[arg-type]
    lambda: create_transform(224, True, auto_augment=3),  # type: ignore[arg-type]
    lambda: create_transform(224, True, color_jitter="x"),  # type: ignore[arg-type]
    lambda: create_transform(224, True, re_prob="x"),  # type: ignore[arg-type]
    lambda: create_transform(224, True, re_count=1.5),  # type: ignore[arg-type]
    lambda: create_transform(10**9),
    lambda: create_transform(224, crop_pct="x"),  # type: ignore[arg-type]
    lambda: create_transform(224, policy="x"),  # type: ignore[arg-type]
    lambda: resolve_data_config({"input_size": "abc"}),
    lambda: resolve_data_config(3),  # type: ignore[arg-type]
    lambda: resolve_data_config({}, [1]),  # type: ignore[arg-type]
    lambda: resolve_data_config({"img_size": "a"}),
    lambda: resolve_data_config({"mean": object()}),
    lambda: tessella.list_models(3),  # type: ignore[arg-type]
    lambda: tessella.list_models(module=[3]),  # type: ignore[list-item]
    lambda: tessella.model_entrypoint(3),  # type: ignore[arg-type]
    lambda: tessella.get_pretrained_cfg_value("mixer_b16_224", 3),  # type: ignore[arg-type]
    lambda: tessella.load_checkpoint(3, "x"),  # type: ignore[arg-type]
    lambda: tessella.load_checkpoint(nn.Identity(), None),  # type: ignore[arg-type]
    lambda: models.load_state_dict(3),
    lambda: Mixup("a"),  # type: ignore[arg-type]
    lambda: Mixup(num_classes="a"),  # type: ignore[arg-type]
    lambda: Mixup()(1, 2),  # type: ignore[arg-type]
    lambda: ImageDataset(3),  # type: ignore[arg-type]
    lambda: create_dataset(3),  # type: ignore[arg-type]
    lambda: create_dataset("", 3),  # type: ignore[arg-type]
    lambda: create_dataset("", "/nowhere"),
    lambda: ImageNetInfo(3),  # type: ignore[arg-type]
    lambda: ImageNetInfo().index_to_label_name("a"),  # type: ignore[arg-type]
    lambda: tiny("mixer").reset_classifier("a"),
    lambda: tiny("convit").reset_classifier(-1),
    lambda: tiny("crossvit").reset_classifier(10**9),
    lambda: tiny("mixer").forward_intermediates(torch.zeros(1, 3, 32, 32), indices="a"),
    lambda: tiny("mixer")(torch.zeros(3, 32, 32)),
    lambda: tiny("convmixer")(torch.zeros(3, 32, 32)),
    lambda: tiny("crossvit")(torch.zeros(120, 120)),
]


@pytest.mark.parametrize("case", range(len(WRONG_TYPES)))
def test_wrong_types_are_coded_errors(case: int) -> None:
    with pytest.raises(UsageError):
        WRONG_TYPES[case]()


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: dict[str, Any] = dict(input_size=np.int64(32), hflip=np.float32(0.5), mean=np.full(3, 0.5))
    transform = create_transform(is_training=True, scale=[np.float64(0.5), 1], **numbers)
    assert (transform.spec.height, transform.spec.mean) == (32, (0.5,) * 3)


# --- timm.utils -------------------------------------------------------------------------------------------------------


def test_accuracy_and_average() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    labels = torch.tensor([1, 2, 2, 2])
    top1, top2, top9 = tessella.utils.accuracy(scores, labels, topk=(1, 2, 9))
    assert (top1.item(), top2.item(), top9.item()) == (50.0, 75.0, 100.0)
    for arguments in ((scores[0], labels), (scores, labels[:2])):
        with pytest.raises(UsageError):
            tessella.utils.accuracy(*arguments)
    meter = tessella.utils.AverageMeter()
    meter.update(1.0, n=3)
    meter.update(5.0)
    assert (meter.val, meter.avg, meter.count) == (5.0, 2.0, 4)
    tessella.utils.random_seed(1, rank=2)
    first = torch.rand(1), np.random.rand()
    tessella.utils.random_seed(3)
    assert (torch.rand(1), np.random.rand()) == first


# --- docs/reference/timm.md -------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "reference" / "timm.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}")[1].split("\n## ")[0]


def test_every_name_under_the_same_exists() -> None:
    names = re.findall(r"`(timm\.[\w.]+)`", section("The same"))
    assert len(names) > 40
    for name in names:
        found: Any = tessella
        for part in name.split(".")[1:]:
            found = getattr(found, part)


def test_the_page_lists_every_recorded_function() -> None:
    for name in TIMM["functions"]:
        if not name.startswith("models.") or name.removeprefix("models.") not in TIMM["functions"]:
            assert f"`timm.{name}`" in section("The same"), name


def test_names_under_not_available_do_not_exist() -> None:
    rows = re.findall(r"^\| `timm\.([\w.]+)`", section("Not available"), re.MULTILINE)
    assert len(rows) > 10
    for name in rows:
        with pytest.raises(AttributeError):
            find(name)


def test_the_transform_of_a_model_follows_its_config() -> None:
    transform = create_transform(**resolve_model_data_config(tessella.create_model("mixer_s32_224")))
    assert isinstance(transform, Transform)
    assert transform.spec.interpolation == "bicubic"
