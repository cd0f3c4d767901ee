"""Round trips from generated files in each original layout, and refused files.

The inverse rules here are written down from the authors' models, apart from the rules in `convert`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tessella.errors import TessellaError
from tessella.models import build
from tessella.models.base import ImageModel
from tessella.weights import create_model
from tessella.weights.convert import convert, find_layout, infer_arch

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "convmixer": ("convmixer_768_32", dict(dim=8, depth=3, kernel_size=3, patch_size=4, num_classes=5)),
    "convit": ("convit_tiny", dict(embed_dim=4, num_heads=2, depth=3, local_up_to_layer=2, img_size=32, num_classes=5)),
    "crossvit": (
        "crossvit_9_240",
        dict(embed_dim=(8, 16), depth=((1, 1, 0),), num_heads=(2, 2), img_size=48, img_scale=(1, 2 / 3), num_classes=5),
    ),
    "resmlp": ("resmlp_12_224", dict(embed_dim=8, num_blocks=2, img_size=32, patch_size=8, num_classes=5)),
    "mixer": ("mixer_b16_224", dict(embed_dim=8, num_blocks=2, img_size=32, patch_size=8, num_classes=5)),
}


@torch.no_grad()
def tiny(family: str) -> ImageModel:
    """Return a small model with random weights and statistics."""
    arch, args = TINY[family]
    torch.manual_seed(0)
    model = build(arch, **args).eval()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if "running_var" in key else -0.5))
    return model


# --- the authors' files ---


class Skip(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def convmixer_original(model: ImageModel) -> nn.Sequential:
    """Return the model of the paper as one nn.Sequential, with the weights of our model in its order."""
    cfg = model.config
    blocks = [
        nn.Sequential(
            Skip(
                nn.Sequential(
                    nn.Conv2d(cfg.dim, cfg.dim, cfg.kernel_size, groups=cfg.dim, padding="same"),
                    nn.ReLU(),
                    nn.BatchNorm2d(cfg.dim),
                )
            ),
            nn.Conv2d(cfg.dim, cfg.dim, 1),
            nn.ReLU(),
            nn.BatchNorm2d(cfg.dim),
        )
        for _ in range(cfg.depth)
    ]
    stem = (nn.Conv2d(3, cfg.dim, cfg.patch_size, stride=cfg.patch_size), nn.ReLU(), nn.BatchNorm2d(cfg.dim))
    head = (nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(cfg.dim, cfg.num_classes))
    original = nn.Sequential(*stem, *blocks, *head).eval()
    ours = model.state_dict().values()
    original.load_state_dict(dict(zip(original.state_dict(), ours, strict=True)))
    return original


def crossvit_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    lists = {"pos_embed_0": "pos_embed.0", "pos_embed_1": "pos_embed.1"}
    lists |= {"cls_token_0": "cls_token.0", "cls_token_1": "cls_token.1"}
    return {lists.get(key, key): value for key, value in state.items()}


def resmlp_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    original = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "stem":
            parts[0] = "patch_embed"
        names = {"ls1": "gamma_1", "ls2": "gamma_2", "linear_tokens": "attn", "mlp_channels": "mlp"}
        flat = value.flatten() if parts[-1] in ("alpha", "beta") else value
        original[".".join(names.get(part, part) for part in parts)] = flat
    return original


def mixer_original(state: dict[str, Tensor], linen: bool, second_norm: int) -> dict[str, Any]:
    """Return the flattened JAX tree of a version after or before linen."""
    arrays = {key: value.numpy() for key, value in state.items()}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]}

    def mlp(name: str) -> dict[str, np.ndarray]:
        first, second = dense(f"{name}.fc1"), dense(f"{name}.fc2")
        if linen:
            return {f"Dense_0/{key}": value for key, value in first.items()} | {
                f"Dense_1/{key}": value for key, value in second.items()
            }
        return {f"{key}1": value[None] for key, value in first.items()} | {
            f"{key}2": value[None] for key, value in second.items()
        }

    names = ("stem", "MixerBlock_{}", "pre_head_layer_norm", "token_mixing", "channel_mixing")
    if not linen:
        names = (
            "embedding",
            "Mixer/encoderblock_{}",
            "Mixer/encoder_norm",
            "token_mixing_phase_0",
            "channel_mixing_phase_0",
        )
    stem, block, last_norm, tokens, channels = names
    kernel_hwio = np.ascontiguousarray(arrays["stem.proj.weight"].transpose(2, 3, 1, 0))
    tree = {
        stem: {"kernel": kernel_hwio, "bias": arrays["stem.proj.bias"]},
        last_norm: norm("norm"),
        "head": dense("head"),
    }
    for i in range(2):
        at = block.format(i)
        tree[f"{at}/LayerNorm_0"] = norm(f"blocks.{i}.norm1")
        tree[f"{at}/LayerNorm_{second_norm}"] = norm(f"blocks.{i}.norm2")
        tree[f"{at}/{tokens}"] = mlp(f"blocks.{i}.mlp_tokens")
        tree[f"{at}/{channels}"] = mlp(f"blocks.{i}.mlp_channels")
    return {f"{place}/{leaf}": value for place, leaves in tree.items() for leaf, value in leaves.items()}


def write(family: str, variant: str, path: Path) -> ImageModel:
    """Return the model with the weights of the file."""
    model = tiny(family)
    state = dict(model.state_dict())
    if family == "convmixer":
        original = convmixer_original(model).state_dict()
        state = {f"module.{key}": value for key, value in original.items()} if variant == "replicated" else original
        torch.save({"epoch": 1, "state_dict": state}, path)
    elif family == "mixer":
        np.savez(path, **mixer_original(state, linen=variant == "linen", second_norm=2 if variant == "gaps" else 1))
    else:
        rules: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
            "convit": dict,
            "crossvit": crossvit_original,
            "resmlp": resmlp_original,
        }
        state = rules[family](state)
        torch.save({"model": state} if variant == "wrapped" else state, path)
    return model


CASES = [
    ("convmixer", "plain", "m.pth.tar"),
    ("convmixer", "replicated", "m.pth.tar"),
    ("convit", "plain", "m.pth"),
    ("crossvit", "plain", "m.pth"),
    ("crossvit", "wrapped", "m.pth"),
    ("resmlp", "plain", "m.pth"),
    ("mixer", "linen", "m.npz"),
    ("mixer", "pre-linen", "m.npz"),
    ("mixer", "gaps", "m.npz"),
]


@pytest.mark.parametrize(("family", "variant", "name"), CASES)
def test_round_trip_is_bit_equal(family: str, variant: str, name: str, tmp_path: Path) -> None:
    model = write(family, variant, tmp_path / name)
    arch, args = TINY[family]
    args = {key: value for key, value in args.items() if key != "num_classes"}  # read from the head in the file
    done = convert(tmp_path / name, arch, tmp_path / "out", **args)
    assert (done.arch, done.folder) == (arch, tmp_path / "out")
    assert sorted(path.name for path in done.folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]

    written = safetensors.torch.load_file(done.folder / "model.safetensors")
    expected = model.state_dict()
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(written[key], value), key

    again = create_model(f"local-dir:{done.folder}", pretrained=True).eval()
    size = 48 if family == "crossvit" else 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


def test_the_suffix_of_an_archive_may_be_in_upper_case(tmp_path: Path) -> None:
    write("mixer", "linen", tmp_path / "m.npz")
    (tmp_path / "m.npz").rename(tmp_path / "M.NPZ")
    assert convert(tmp_path / "M.NPZ", "mixer_b16_224", tmp_path / "out", **TINY["mixer"][1]).arch == "mixer_b16_224"


def test_the_layout_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write("mixer", "pre-linen", tmp_path / "m.npz")
    with caplog.at_level("INFO", logger="tessella"):
        done = convert(tmp_path / "m.npz", "mixer_b16_224", tmp_path / "out", **TINY["mixer"][1])
    assert done.layout == "MLP-Mixer's JAX tree from before linen"
    assert any(done.layout in line for line in caplog.messages)


def test_the_converted_convmixer_computes_the_same_as_the_authors_model(tmp_path: Path) -> None:
    """The model of the paper, which is copied here, and the converted one have the same outputs for an image."""
    model = write("convmixer", "plain", tmp_path / "m.pth.tar")
    arch, args = TINY["convmixer"]
    convert(tmp_path / "m.pth.tar", arch, tmp_path / "out", **args)
    converted = create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(converted(images), convmixer_original(model)(images), rtol=1e-5, atol=1e-6)


def test_a_file_of_a_published_size_needs_no_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = convmixer_original(build("convmixer_256_8_ks3_p4", num_classes=7))
    torch.save(original.state_dict(), "checkpoint.pth")
    done = convert("checkpoint.pth")
    assert (done.arch, done.folder) == ("convmixer_256_8_ks3_p4", Path("convmixer_256_8_ks3_p4"))
    assert create_model("local-dir:convmixer_256_8_ks3_p4", pretrained=True).num_classes == 7


@pytest.mark.parametrize(
    "arch",
    ["convmixer_1536_20", "convit_base", "crossvit_15_dagger_408", "gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224"],
)
def test_the_architecture_follows_from_the_shapes(arch: str) -> None:
    with torch.device("meta"):
        state = dict(build(arch).state_dict())
    assert infer_arch(state, find_layout(state, "it"), "it", {}) == arch


# --- refusals ---


def refused(out: Path, source: Path, arch: str | None = None, **args: Any) -> TessellaError:
    with pytest.raises(TessellaError) as caught:
        convert(source, arch, out, **args)
    assert not (out / "model.safetensors").exists()
    assert not (out / "config.json").exists()
    return caught.value


def test_another_architecture(tmp_path: Path) -> None:
    write("convmixer", "plain", tmp_path / "m.pth.tar")
    arch, args = TINY["convmixer"]
    assert refused(tmp_path / "out", tmp_path / "m.pth.tar", arch, **{**args, "dim": 16}).code == "wrong_shape"
    error = refused(tmp_path / "out", tmp_path / "m.pth.tar", arch, **{**args, "depth": 4})
    assert error.code == "wrong_keys"
    assert "blocks.3.0.fn.0.weight" in error.message
    error = refused(tmp_path / "out", tmp_path / "m.pth.tar", "convit_tiny")
    assert error.code == "wrong_keys"
    assert refused(tmp_path / "out", tmp_path / "m.pth.tar", "convmixer_9000").code == "unknown_model"


def test_shapes_that_fit_none_or_several(tmp_path: Path) -> None:
    write("convmixer", "plain", tmp_path / "m.pth.tar")
    error = refused(tmp_path / "out", tmp_path / "m.pth.tar")
    assert error.code == "bad_argument"
    assert "none" in error.message
    error = refused(tmp_path / "out", tmp_path / "m.pth.tar", **TINY["convmixer"][1])
    assert error.code == "bad_argument"
    assert "convmixer_768_32" in error.message
    assert "convmixer_1536_20" in error.message


def test_an_unknown_layout(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.bias": torch.zeros(4)}, tmp_path / "resnet.pth")
    error = refused(tmp_path / "out", tmp_path / "resnet.pth", "convit_tiny")
    assert error.code == "wrong_keys"
    assert "conv1.weight" in error.message
    assert "ConvMixer" in error.hint


def test_a_missing_additional_or_damaged_tensor(tmp_path: Path) -> None:
    arch, args = TINY["resmlp"]
    good = resmlp_original(dict(tiny("resmlp").state_dict()))
    lacking = {key: value for key, value in good.items() if key != "blocks.1.attn.bias"}
    nan = {**good, "norm.alpha": torch.full_like(good["norm.alpha"], torch.nan)}
    for state, code, word in (
        (lacking, "wrong_keys", "blocks.1.linear_tokens.bias"),
        ({**good, "extra": torch.zeros(1)}, "wrong_keys", "extra"),
        (nan, "non_finite", "norm.alpha"),
    ):
        torch.save(state, tmp_path / "m.pth")
        error = refused(tmp_path / "out", tmp_path / "m.pth", arch, **args)
        assert error.code == code
        assert word in error.message


class Exploding:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


def test_bad_npz_files(tmp_path: Path) -> None:
    good = mixer_original(dict(tiny("mixer").state_dict()), linen=True, second_norm=1)
    np.savez(tmp_path / "good.npz", **good)
    complete = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(complete[: len(complete) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "page.npz").write_bytes(b"<!doctype html><title>404</title>" * 9)
    np.savez(tmp_path / "pickled.npz", **{**good, "head/bias": np.array([Exploding()], dtype=object)})
    np.savez(tmp_path / "text.npz", **{**good, "head/bias": np.array(["a", "b"])})
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    arch, args = TINY["mixer"]
    for name in ("cut", "empty", "page", "pickled", "text", "single"):
        assert refused(tmp_path / "out", tmp_path / f"{name}.npz", arch, **args).code == "bad_format", name
    assert refused(tmp_path / "out", tmp_path / "none.npz", arch, **args).code == "weights_not_found"
    np.savez(tmp_path / "nan.npz", **{**good, "head/bias": np.full(5, np.nan, np.float32)})
    assert refused(tmp_path / "out", tmp_path / "nan.npz", arch, **args).code == "non_finite"


def test_a_folder_with_a_model_is_not_overwritten(tmp_path: Path) -> None:
    write("convit", "plain", tmp_path / "m.pth")
    arch, args = TINY["convit"]
    convert(tmp_path / "m.pth", arch, tmp_path / "out", **args)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(TessellaError, match="already contains a model"):
        convert(tmp_path / "m.pth", arch, tmp_path / "out", **args)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
