"""Depthwise convolutions with a faster weight gradient: the same results and gradients as PyTorch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella import create_model
from tessella.data.spec import InputSpec
from tessella.models.base import ImageModel
from tessella.training.config import TrainConfig
from tessella.training.depthwise import DepthwiseConv2d, use_fast_gradients, weight_gradient
from tessella.training.distributed import DistributedContext
from tessella.training.trainer import Trainer


@pytest.fixture(autouse=True)
def avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert on every machine: results must not depend on it, only the speed does."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.mark.parametrize("side", [5, 7, 9, 11])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (8, 8)])
def test_the_windows_add_up_to_the_weight_gradient(side: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, *size, dtype=torch.float64, generator=generator)
    grad = torch.randn(3, 4, *size, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 1, side, side, dtype=torch.float64, generator=generator, requires_grad=True)
    F.conv2d(x, weight, padding="same", groups=4).backward(grad)
    torch.testing.assert_close(weight_gradient(grad, x, weight.detach()), weight.grad, rtol=1e-12, atol=1e-12)


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output of a model in bfloat16, and the gradients of its input and its parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    assert x.grad is not None
    return out.detach(), [x.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_converted_convolution_is_the_same_in_bfloat16(bias: bool, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 5, padding="same", groups=16, bias=bias).to(memory_format=memory_format)  # type: ignore[call-overload]
    fast = copy.deepcopy(conv)
    assert use_fast_gradients(fast) == 1
    x = torch.randn(4, 16, 12, 12).contiguous(memory_format=memory_format)
    out, expected = gradients(conv, x)
    fast_out, actual = gradients(fast, x)
    assert torch.equal(fast_out, out)
    assert len(actual) == len(expected) == 2 + bias
    for value, other in zip(actual, expected, strict=True):
        assert value.dtype == other.dtype == torch.float32
        torch.testing.assert_close(value, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))
    assert fast.state_dict().keys() == conv.state_dict().keys()


def test_frozen_weights_and_inputs_without_gradients() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    use_fast_gradients(conv)
    conv.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        conv(torch.randn(2, 4, 6, 6)).float().sum().backward()
    assert conv.weight.grad is None
    assert conv.bias is not None
    assert conv.bias.grad is not None
    torch.testing.assert_close(conv.bias.grad, torch.full((4,), 72.0))


@pytest.mark.parametrize(
    ("name", "count"),
    [("convmixer_384_8_ks5_p8", 8), ("convmixer_256_8_ks3_p4", 0), ("mixer_ti_p4_32", 0), ("convit_ti_p4_32", 0)],
)
def test_only_depthwise_convolutions_with_large_kernels_are_converted(name: str, count: int) -> None:
    assert use_fast_gradients(create_model(name)) == count


@pytest.mark.parametrize(
    "changes",
    [
        dict(stride=2, padding=2),
        dict(dilation=2),
        dict(groups=1),
        dict(out_channels=8),
        dict(kernel_size=(5, 3)),
        dict(kernel_size=6),
        dict(padding=0),
        dict(padding_mode="reflect"),
    ],
)
def test_other_convolutions_are_left_alone(changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = dict(in_channels=4, out_channels=4, kernel_size=5, padding="same", groups=4) | changes
    assert use_fast_gradients(nn.Conv2d(**settings)) == 0


def test_without_avx512_nothing_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert use_fast_gradients(create_model("convmixer_384_8_ks5_p8")) == 0


@pytest.mark.parametrize(
    ("settings", "converted"),
    [
        (dict(precision="bfloat16", ema_decay=0.9), True),
        (dict(precision="float32"), False),
        (dict(precision="bfloat16", compile=True), False),
    ],
)
def test_training_in_bfloat16_on_a_cpu_uses_them(
    settings: dict[str, Any], converted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    config = TrainConfig(model="convmixer_384_8_ks5_p8", **settings)
    model: ImageModel = create_model(config.model, num_classes=3)
    spec = InputSpec.from_cfg(model.pretrained_cfg)
    trainer = Trainer(model, spec, config, DistributedContext(), shard=False)
    assert any(isinstance(module, DepthwiseConv2d) for module in trainer.model.modules()) == converted
