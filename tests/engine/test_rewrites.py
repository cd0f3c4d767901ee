"""Each rewrite, and all together, give the outputs of the reference up to float64 rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.data.spec import InputSpec
from tessella.engine.rewrites import layouts_of, rewrite, rewrites_of
from tessella.engine.rewrites.convit import ConstantGPSA
from tessella.engine.rewrites.convmixer import Clamp
from tessella.engine.rewrites.crossvit import resize_matrix
from tessella.engine.rewrites.single_query import SingleQuery
from tessella.errors import UsageError
from tessella.models.base import ImageModel
from tessella.models.convit import GPSA

from ..models.tiny import TINY, images, size_of, tiny

CLOSE: dict[str, Any] = dict(rtol=1e-11, atol=1e-11)
ODD: dict[str, dict[str, Any]] = {  # a grid that is not square, heads that are not a power of two, a batch of three
    "convmixer": dict(dim=12, kernel_size=5),
    "convmixer_relu": dict(dim=12, kernel_size=5),
    "convit": dict(img_size=(24, 40), embed_dim=5, num_heads=3, depth=3, qkv_bias=True),
    "mixer": dict(img_size=(24, 40), embed_dim=10, stem_norm=True),
    "gmixer": dict(img_size=(24, 40), embed_dim=12),
    "resmlp": dict(img_size=(24, 40), embed_dim=10),
    "gmlp": dict(img_size=(24, 40), embed_dim=10),
    "crossvit": dict(img_size=(120, 240), depth=((1, 2, 0), (2, 1, 2)), qkv_bias=False),
    "crossvit_dagger": dict(img_size=(240, 120), depth=((1, 1, 1),)),
}


def made(case: str, **overrides: Any) -> Any:
    """Return a float64 model without neutral values: with scales of both signs, shifts and statistics."""
    model = tiny(case, **overrides).double()
    noise = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.3, 1.0, generator=noise)
            nn.init.normal_(module.bias, 0.0, 1.0, generator=noise)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 1.0, generator=noise)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.2, 3.0, generator=noise)  # type: ignore[arg-type]
        if isinstance(module, GPSA):
            nn.init.normal_(module.gating_param, 0.0, 2.0, generator=noise)
            nn.init.normal_(module.pos_proj.weight, 0.0, 0.5, generator=noise)
    return model


def batch(model: ImageModel, count: int = 3) -> Tensor:
    return images(model, count).double()


@torch.no_grad()
def reference(model: ImageModel, x: Tensor) -> tuple[Tensor, Tensor]:
    features = model.forward_features(x)
    return model.forward_head(features), model.forward_head(features, pre_logits=True)


def alone() -> list[tuple[str, str]]:
    return [(case, name) for case in TINY for name in rewrites_of(tiny(case))]


@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
@pytest.mark.parametrize(("case", "name"), alone())
def test_each_rewrite_alone(case: str, name: str, odd: bool) -> None:
    model = made(case, **(ODD[case] if odd else {}))
    x = batch(model)
    fast = rewrite(model, only={name})
    assert fast.applied == (name,)
    torch.testing.assert_close(fast(x), reference(model, x), **CLOSE)


@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
@pytest.mark.parametrize("case", TINY)
def test_all_rewrites_in_both_memory_formats(case: str, odd: bool) -> None:
    model = made(case, **(ODD[case] if odd else {}))
    x = batch(model)
    fast = rewrite(model)
    assert fast.applied == rewrites_of(model)
    torch.testing.assert_close(fast(x), reference(model, x), **CLOSE)
    torch.testing.assert_close(fast(x.contiguous(memory_format=torch.channels_last)), reference(model, x), **CLOSE)


@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
@pytest.mark.parametrize("case", TINY)
def test_uint8_pixels_with_the_normalisation_folded(case: str, odd: bool) -> None:
    model = made(case, **(ODD[case] if odd else {}))
    height, width = size_of(model)
    spec = InputSpec(height=height, width=width, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    pixels_BHWC = torch.randint(256, (3, height, width, 3), dtype=torch.uint8, generator=torch.Generator())
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    x = ((pixels_BHWC.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    fast = rewrite(model, spec=spec)
    assert fast.applied[-1] == "pixels"
    torch.testing.assert_close(fast(pixels_BHWC.permute(0, 3, 1, 2)), reference(model, x), **CLOSE)


@pytest.mark.parametrize("case", TINY)
def test_float32_rounding_is_no_larger_than_the_references(case: str) -> None:
    model = made(case)
    x = batch(model)
    truth, _ = reference(model, x)
    found, _ = rewrite(model.float())(x.float())
    assert (found - truth).abs().max() / truth.std() < 1e-5


@pytest.mark.parametrize("case", TINY)
def test_features_and_intermediates_stay_available(case: str) -> None:
    model = made(case)
    x = batch(model)
    net = rewrite(model).net
    with torch.no_grad():
        torch.testing.assert_close(net.forward_features(x), model.forward_features(x), **CLOSE)
        for norm in (False, True):
            torch.testing.assert_close(
                net.forward_intermediates(x, norm=norm), model.forward_intermediates(x, norm=norm), **CLOSE
            )


@pytest.mark.parametrize(
    ("case", "pool"),
    [
        *(("convmixer", pool) for pool in ("max", "catavgmax", "fastavg", "")),
        *(("convmixer_relu", "max"), ("convit", "avg"), ("convit", ""), ("mixer", ""), ("resmlp", "")),
        *(("crossvit", "avg"), ("crossvit_dagger", "avg")),
    ],
)
@pytest.mark.parametrize("classes", [0, 5])
def test_other_pools_and_no_head(case: str, pool: str, classes: int) -> None:
    model = made(case, global_pool=pool, num_classes=classes)
    x = batch(model)
    torch.testing.assert_close(rewrite(model)(x), reference(model, x), **CLOSE)


@pytest.mark.parametrize("case", TINY)
def test_the_original_model_does_not_change(case: str) -> None:
    model = made(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = model.train().training
    modules = [type(module) for module in model.modules()]
    fast = rewrite(model)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    assert model.training is training
    assert [type(module) for module in model.modules()] == modules
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 2), (1, 3)])
@pytest.mark.parametrize("how", ["dense", "separable"])
def test_constant_position_on_any_grid(grid: tuple[int, int], how: str) -> None:
    model = made("convit", img_size=(grid[0] * 8, grid[1] * 8))
    x = batch(model)
    torch.testing.assert_close(rewrite(model, only={"constant_position"}, layout=how)(x), reference(model, x), **CLOSE)


@pytest.mark.parametrize(("case", "layout"), [(case, layout) for case in TINY for layout in layouts_of(tiny(case))])
def test_every_layout_gives_the_same_outputs(case: str, layout: str) -> None:
    model = made(case, **ODD[case])
    x = batch(model)
    torch.testing.assert_close(rewrite(model, layout=layout)(x), reference(model, x), **CLOSE)


def test_large_kernels_stay_channels_first() -> None:
    """Channels-last convolutions of 9 x 9 are slower on all CPUs that were measured."""
    assert layouts_of(tiny("convmixer", kernel_size=9))[0] == "channels_first"
    assert layouts_of(tiny("convmixer", kernel_size=7))[0] == "channels_last"


@pytest.mark.parametrize("gate", [-60.0, 0.0, 60.0])
def test_saturated_gates(gate: float) -> None:
    """Trained gates saturate at attention by content only or by position only."""
    model = made("convit")
    for block in model.blocks:
        if isinstance(block.attn, GPSA):
            nn.init.constant_(block.attn.gating_param, gate)
    x = batch(model)
    torch.testing.assert_close(rewrite(model)(x), reference(model, x), **CLOSE)


def test_clamp_bounds_for_scales_of_both_signs_and_zero() -> None:
    model = made("convmixer_relu")
    nn.init.zeros_(model.stem[2].weight[:1])
    x = batch(model)
    torch.testing.assert_close(rewrite(model)(x), reference(model, x), **CLOSE)
    clamps = [module for module in rewrite(model).modules() if isinstance(module, Clamp)]
    assert len(clamps) == 1 + 2 * len(model.blocks)


def test_slow_modules_are_removed() -> None:
    gone = {"convmixer": nn.BatchNorm2d, "convmixer_relu": nn.BatchNorm2d, "convit": GPSA}
    for case, kind in gone.items():
        assert not any(isinstance(module, kind) for module in rewrite(made(case)).modules())
    assert any(isinstance(module, ConstantGPSA) for module in rewrite(made("convit")).modules())
    assert any(isinstance(module, SingleQuery) for module in rewrite(made("crossvit")).modules())


@pytest.mark.parametrize(("old", "new"), [(240, 224), (120, 112), (408, 384), (10, 17)])
def test_resize_matrix_matches_the_resize_of_the_model(old: int, new: int) -> None:
    image = torch.randn(1, 1, old, old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = resize_matrix(old, new)
    expected = torch.nn.functional.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    torch.testing.assert_close(matrix @ image @ matrix.T, expected, **CLOSE)
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64), **CLOSE)


def test_errors_list_the_known_names() -> None:
    with pytest.raises(UsageError) as caught:
        rewrite(tiny("convit"), only={"fold_batch_norms"})
    assert caught.value.code == "bad_argument"
    assert "constant_position" in str(caught.value.hint)
    with pytest.raises(UsageError):
        rewrite(tiny("convit"), layout="sparse")
    with pytest.raises(UsageError):
        rewrites_of(nn.Identity())  # type: ignore[arg-type]
