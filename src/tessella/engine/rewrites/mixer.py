"""Rewrites of MLP-Mixer, gMixer, ResMLP and gMLP: token mixing without transposes, folded norms and scales.

Shape suffixes: as in models/mixer.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.spec import InputSpec
from ...models.mixer import Affine, GluMlp, MixerBlock, MlpMixer, ResBlock, SpatialGatingBlock, SpatialGatingUnit
from .base import Family, Rewritten
from .folding import fold_norm, fold_scale, frozen, new_linear
from .pixels import on_pixels


class FromLeft(nn.Module):
    """A linear layer across patches as a product from the left, without transposes: (B,N,D) -> (B,out,D)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight
        self.bias = frozen(linear.bias[:, None], linear.weight)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.weight @ x_BND + self.bias


class LeftMixerBlock(nn.Module):
    """A Mixer or gMixer block with token mixing from the left; the two halves of a gated MLP are views."""

    def __init__(self, block: MixerBlock):
        super().__init__()
        self.norm1, self.norm2, self.mlp_channels = block.norm1, block.norm2, block.mlp_channels
        mlp = block.mlp_tokens
        self.fc1, self.act, self.fc2 = FromLeft(mlp.fc1), mlp.act, FromLeft(mlp.fc2)
        self.gated = isinstance(mlp, GluMlp)

    def forward(self, x_BND: Tensor) -> Tensor:
        h_BED = self.fc1(self.norm1(x_BND))
        if self.gated:
            value_BED, gate_BED = h_BED.chunk(2, dim=1)
            h_BED = value_BED * self.act(gate_BED)
        else:
            h_BED = self.act(h_BED)
        x_BND = x_BND + self.fc2(h_BED)
        return x_BND + self.mlp_channels(self.norm2(x_BND))


class LeftResBlock(nn.Module):
    """A ResMLP block with token mixing from the left."""

    def __init__(self, block: ResBlock):
        super().__init__()
        self.norm1, self.tokens, self.norm2 = block.norm1, FromLeft(block.linear_tokens), block.norm2
        self.mlp_channels, self.ls1, self.ls2 = block.mlp_channels, block.ls1, block.ls2

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = torch.addcmul(x_BND, self.ls1, self.tokens(self.norm1(x_BND)))
        return torch.addcmul(x_BND, self.ls2, self.mlp_channels(self.norm2(x_BND)))


class LeftGate(nn.Module):
    """gMLP's spatial gate with its product from the left: (B,N,E) -> (B,N,E/2)."""

    def __init__(self, gate: SpatialGatingUnit):
        super().__init__()
        self.norm, self.proj = gate.norm, FromLeft(gate.proj)

    def forward(self, x_BNE: Tensor) -> Tensor:
        value, gate = x_BNE.chunk(2, dim=-1)
        return value * self.proj(self.norm(gate))


def mix_from_left(net: MlpMixer, layout: str) -> None:
    """Mix across patches with W @ X, which needs no transposed copy of X."""
    for i, block in enumerate(net.blocks):
        if isinstance(block, SpatialGatingBlock):
            gate = block.mlp_channels.gate
            assert isinstance(gate, SpatialGatingUnit)
            block.mlp_channels.gate = LeftGate(gate)
        else:
            assert isinstance(block, ResBlock | MixerBlock)
            net.blocks[i] = LeftResBlock(block) if isinstance(block, ResBlock) else LeftMixerBlock(block)


def fold_layer_norms(net: MlpMixer, layout: str) -> None:
    """Fold the scale and shift of a LayerNorm into the linear layers that read it, if nothing else reads it."""
    for block in net.blocks:
        if isinstance(block, SpatialGatingBlock):
            fold_norm(block, "norm", block.mlp_channels, ("fc1",))
        else:
            assert isinstance(block, MixerBlock | LeftMixerBlock)
            fold_norm(block, "norm2", block.mlp_channels, ("fc1",))


class FoldedResBlock(nn.Module):
    """A ResMLP block as X + (W X) * scale + constant, then an MLP with folded scales: (B,N,D) -> (B,N,D)."""

    def __init__(self, block: ResBlock | LeftResBlock):
        super().__init__()
        tokens = block.tokens if isinstance(block, LeftResBlock) else block.linear_tokens
        like = tokens.weight
        weight_NN, bias_N = tokens.weight.double(), tokens.bias.double().flatten()
        ls1, ls2 = block.ls1.double(), block.ls2.double()
        (alpha1, beta1), (alpha2, beta2) = affine_weights(block.norm1), affine_weights(block.norm2)
        self.weight = frozen(weight_NN, like)
        self.scale_D = frozen(ls1 * alpha1, like)
        self.constant_ND = frozen((weight_NN.sum(1)[:, None] * beta1 + bias_N[:, None]) * ls1, like)
        mlp = block.mlp_channels
        self.fc1, self.act = fold_scale(mlp.fc1, alpha2, beta2), mlp.act
        self.fc2 = new_linear(mlp.fc2.weight.double() * ls2[:, None], mlp.fc2.bias.double() * ls2, like)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.constant_ND + (self.weight @ x_BND) * self.scale_D
        return x_BND + self.fc2(self.act(self.fc1(x_BND)))


def affine_weights(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of an Affine, float64 (D,)."""
    assert isinstance(norm, Affine)
    return norm.alpha.double().flatten(), norm.beta.double().flatten()


def fold_affines(net: MlpMixer, layout: str) -> None:
    """Fold all scales and shifts of ResMLP, which has no statistics, into weights and one constant per block."""
    for i, block in enumerate(net.blocks):
        assert isinstance(block, ResBlock | LeftResBlock)
        net.blocks[i] = FoldedResBlock(block)


class MlpMixerFinal(Rewritten):
    """Apply the scale and shift of the last norm to the mean over the patches, which commutes with them.

    (B,C,H,W) images -> logits (B,classes) and embedding (B,D).
    """

    rewrite = "norm_after_mean"
    if TYPE_CHECKING:
        net: MlpMixer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net, norm = self.net, self.net.norm
        x_BND = net.blocks(net.stem(x))
        if isinstance(norm, Affine):
            embedding = torch.addcmul(norm.beta[0, 0], x_BND.mean(dim=1), norm.alpha[0, 0])
        else:
            assert isinstance(norm, nn.LayerNorm)
            mean_BD = F.layer_norm(x_BND, norm.normalized_shape, eps=norm.eps).mean(dim=1)
            embedding = torch.addcmul(norm.bias, mean_BD, norm.weight)
        return net.head(embedding), embedding


class MlpMixerFamily(Family[MlpMixer]):
    """The rewrites of MLP-Mixer, gMixer, ResMLP and gMLP.

    Layouts: the product across patches from the left, or from the right on transposed tokens.
    """

    model_type = MlpMixer
    final = MlpMixerFinal
    skipped_by = {"right": "mix_from_left"}
    engine_layouts = {"openvino": "right"}
    steps = {"mix_from_left": mix_from_left, "fold_affines": fold_affines, "fold_layer_norms": fold_layer_norms}

    def names(self, model: MlpMixer) -> tuple[str, ...]:
        fold = "fold_affines" if model.config.kind == "resmlp" else "fold_layer_norms"
        return ("mix_from_left", fold, *((self.final.rewrite,) if model.global_pool else ()))

    def layouts(self, model: MlpMixer) -> tuple[str, ...]:
        return "left", "right"

    def fold_pixels(self, net: MlpMixer, spec: InputSpec) -> None:
        net.stem.proj = on_pixels(net.stem.proj, spec)
