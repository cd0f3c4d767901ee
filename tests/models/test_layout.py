"""The layout of a model's weights without PyTorch is that of the PyTorch model, for all configs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tessella.errors import UsageError
from tessella.models import ARCHITECTURES, build
from tessella.models.base import ImageModel
from tessella.models.configs import CONFIGS, configure, embedding_width, image_size
from tessella.models.configs.convmixer import POOLS as CONVMIXER_POOLS
from tessella.models.layout import parameter_count, state_layout


def on_meta(arch: str, **overrides: Any) -> ImageModel:
    with torch.device("meta"):
        return build(arch, **overrides)


def check(arch: str, **overrides: Any) -> None:
    """Compare layout, config and derived figures of a model with and without PyTorch."""
    model = on_meta(arch, **overrides)
    config = configure(arch, **overrides)
    layout = state_layout(config)
    expected = {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in model.state_dict().items()
    }
    assert list(layout.items()) == list(expected.items())
    assert config == model.config
    assert type(config) is type(model.config)
    assert embedding_width(config) == model.head_hidden_size
    assert parameter_count(layout) == sum(parameter.numel() for parameter in model.parameters())
    if arch.startswith("convmixer"):
        assert image_size(config) is None
    else:
        height, width = image_size(config) or (0, 0)
        assert model.eval()(torch.empty(1, config.in_chans, height, width, device="meta")).shape[0] == 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(arch: str) -> None:
    check(arch)
    check(arch, num_classes=0, in_chans=1)
    assert ARCHITECTURES[arch][1] is CONFIGS[arch]


SIDES = st.integers(1, 4).map(lambda n: 16 * n)
SIZES = SIDES | st.tuples(SIDES, SIDES) | st.lists(SIDES, min_size=2, max_size=2)
RATIOS = st.floats(0.5, 4)
COMMON: dict[str, Any] = dict(
    in_chans=st.integers(1, 5),
    num_classes=st.integers(0, 20),
    drop_rate=st.floats(0, 1),
    drop_path_rate=st.floats(0, 1),
)
CONVMIXER = st.fixed_dictionaries(
    {},
    optional=dict(
        **COMMON,
        dim=st.integers(1, 20),
        depth=st.integers(0, 4),
        kernel_size=st.integers(1, 9),
        patch_size=st.integers(1, 20),
        act_layer=st.sampled_from(["gelu", "relu"]),
        global_pool=st.sampled_from(CONVMIXER_POOLS),
    ),
)
CONVIT = st.fixed_dictionaries(
    dict(embed_dim=st.integers(2, 9), num_heads=st.integers(1, 9), depth=st.integers(0, 4), img_size=SIZES),
    optional=dict(
        **COMMON,
        local_up_to_layer=st.integers(0, 6),
        use_pos_embed=st.booleans(),
        mlp_ratio=RATIOS,
        qkv_bias=st.booleans(),
        patch_size=st.sampled_from([4, 8, 16]),
        global_pool=st.sampled_from(["token", "avg", ""]),
    ),
)
MIXER = st.fixed_dictionaries(
    dict(
        kind=st.sampled_from(["mixer", "gmixer", "resmlp", "gmlp"]),
        embed_dim=st.sampled_from([4, 12, 16]),
        num_blocks=st.integers(0, 4),
        img_size=SIZES,
        mlp_ratio=st.sampled_from([0.5, 1, 2.0, 4]),
        patch_size=st.sampled_from([4, 8, 16]),
    ),
    optional=dict(**COMMON, stem_norm=st.booleans(), nlhb=st.booleans(), global_pool=st.sampled_from(["avg", ""])),
)
COUNTS = st.integers(0, 3)
STAGES = st.tuples(st.integers(1, 3), COUNTS, COUNTS) | st.tuples(COUNTS, st.integers(1, 3), COUNTS)
CROSSVIT = st.fixed_dictionaries(
    dict(
        embed_dim=st.sampled_from([(8, 4), (12, 24)]),
        num_heads=st.sampled_from([(1, 2), (4, 2)]),
        depth=st.lists(STAGES, max_size=3),
        mlp_ratio=st.lists(RATIOS, min_size=2, max_size=3),
        patch_size=st.sampled_from([(4, 8), (8, 16), (4, 4)]),
        img_size=SIZES,
        img_scale=st.sampled_from([(1.0, 1.0), (1.0, 0.5), (2.0, 1.0)]),
    ),
    optional=dict(
        **COMMON,
        multi_conv=st.booleans(),
        crop_scale=st.booleans(),
        qkv_bias=st.booleans(),
        global_pool=st.sampled_from(["token", "avg"]),
    ),
)
FAMILIES = dict(convmixer_768_32=CONVMIXER, convit_tiny=CONVIT, mixer_s16_224=MIXER, crossvit_9_240=CROSSVIT)


@pytest.mark.parametrize("arch", FAMILIES)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_config(arch: str, data: st.DataObject) -> None:
    overrides = data.draw(FAMILIES[arch])
    try:
        configure(arch, **overrides)
    except UsageError:  # half of the sizes do not suit the second branch of CrossViT
        reject()
    check(arch, **overrides)


@pytest.mark.parametrize("kind", ["gmixer", "resmlp", "gmlp"])
def test_ratios_for_patches_and_channels(kind: str) -> None:
    check("mixer_s16_224", kind=kind, mlp_ratio=(2, 2), num_blocks=1)


@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("convmixer_768_32", dict(dim=0)),
        ("convmixer_768_32", dict(depth=-1)),
        ("convmixer_768_32", dict(patch_size=0)),
        ("convmixer_768_32", dict(act_layer="tanh")),
        ("convmixer_768_32", dict(drop_rate=1.5)),
        ("convmixer_768_32", dict(global_pool="token")),
        ("convmixer_768_32", dict(num_classes=-1)),
        ("convmixer_768_32", dict(img_size=224)),
        ("convit_tiny", dict(mlp_ratio=0)),
        ("convit_tiny", dict(local_up_to_layer=-1)),
        ("convit_tiny", dict(img_size=100)),
        ("convit_tiny", dict(depth=1001)),
        ("mixer_s16_224", dict(kind="other")),
        ("mixer_s16_224", dict(mlp_ratio=(1, 2, 3))),
        ("gmlp_ti16_224", dict(mlp_ratio=(1, 2))),
        ("gmixer_12_224", dict(mlp_ratio=(1 / 384, 1))),
        ("mixer_s16_224", dict(img_size=(224, 0))),
        ("crossvit_9_240", dict(embed_dim=(8, 16, 32))),
        ("crossvit_9_240", dict(num_heads=(3, 3))),
        ("crossvit_9_240", dict(num_heads=(0, 4))),
        ("crossvit_9_240", dict(mlp_ratio=(3,))),
        ("crossvit_9_240", dict(depth=((1, 1, -1),))),
        ("crossvit_9_240", dict(depth=((0, 0, 1),))),
        ("crossvit_9_240", dict(depth=((900, 900, 0),))),
        ("crossvit_9_dagger_240", dict(patch_size=(12, 24), img_size=240, img_scale=(1.0, 1.0))),
        ("crossvit_9_dagger_240", dict(embed_dim=(2, 4), num_heads=(1, 1))),
        ("crossvit_9_240", dict(img_size=250)),
        ("unknown", dict()),
        ("mixer_s16_224", dict(imgsize=224)),
        ("mixer_s16_224", dict(img_size="224")),
        ("mixer_s16_224", dict(embed_dim=float("nan"))),
        ("mixer_s16_224", dict(init_values=float("inf"))),
    ],
)
def test_unsuitable_values_are_refused(arch: str, overrides: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        configure(arch, **overrides)
    assert caught.value.code == ("unknown_model" if arch == "unknown" else "bad_argument")
    assert next(iter(overrides), arch) in caught.value.message


def test_the_class_of_an_activation_is_a_name() -> None:
    config: Any = configure("convmixer_1536_20", act_layer=torch.nn.ReLU)
    assert config.act_layer == "relu"
    with pytest.raises(UsageError):
        configure("convmixer_1536_20", act_layer=torch.nn.Tanh)


def test_pytorch_is_not_imported() -> None:
    program = (
        "import sys; from tessella.models.configs import CONFIGS; from tessella.models.layout import state_layout\n"
        "assert all(map(state_layout, CONFIGS.values())); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
