"""Exact rewrites: a model becomes an equivalent one for inference, with the same answers from fewer steps.

Each rewrite is a function of REWRITES that swaps modules of a deep copy; the copy stays an `ImageModel`, so features
and intermediates are still there. What holds for the end of a pass only (the last norm, the last class token) is in the
`Rewritten` of the family. All are exact in real arithmetic; weights are folded in float64 and rounded once.

Shape suffixes: those of the model files, and S for pixels of a patch times channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.spec import InputSpec
from ..errors import UsageError
from ..models.base import ImageModel
from ..models.convit import GPSA, ConViT
from ..models.convmixer import ConvMixer, check_smallest, pool_map
from ..models.crossvit import BRANCHES, CrossAttentionBlock, CrossViT, MultiScaleBlock
from ..models.layers import Attention, Mlp, Pair, PatchEmbed, PreNormBlock, check_image_size
from ..models.mixer import Affine, GluMlp, MixerBlock, MlpMixer, ResBlock, SpatialGatingBlock


class Rewritten(nn.Module):
    """A rewritten model: a batch in, (logits, embedding) of one pass out.

    net: the model behind it, an `ImageModel` with the same features and intermediates as the one it came from.
    applied: names of the rewrites, in order.
    """

    def __init__(self, net: ImageModel, applied: tuple[str, ...]):
        super().__init__()
        self.net: Any = net
        self.applied = applied

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W), normalised or, with the rewrite "pixels", uint8 -> (B,classes) logits, (B,width) embedding."""
        features = self.net.forward_features(x)
        return self.net.forward_head(features), self.net.forward_head(features, pre_logits=True)


def rewrite(
    model: ImageModel, *, only: Collection[str] | None = None, spec: InputSpec | None = None, layout: str = ""
) -> Rewritten:
    """An equivalent of `model` for inference, on its own copy of the weights; `model` itself is left as it was.

    only: names from `rewrites_of(model)`; None takes all. spec: how the pixels are normalised; with it the result reads
    uint8 images (B,C,H,W), best in channels-last memory, instead of normalised ones. layout: one of
    `layouts_of(model)`, ways to the same answer of which a backend may run one or the other faster; "" is the first.
    """
    known = rewrites_of(model)
    layouts = layouts_of(model)
    if layout and layout not in layouts:
        raise UsageError("bad_argument", f"layout is {layout!r}", hint=f"known: {', '.join(layouts) or 'none'}")
    layout = layout or (layouts[0] if layouts else "")
    if unknown := set(only or ()) - set(known):
        raise UsageError("bad_argument", f"no rewrite {', '.join(sorted(unknown))}", hint=f"known: {', '.join(known)}")
    device = next(model.parameters()).device
    net: Any = copy.deepcopy(model).cpu().eval().requires_grad_(False)  # folded there: not every device has float64
    names = [name for name in known if (only is None and name != LAYOUT_SKIPS.get(layout)) or name in (only or ())]
    for name in names:
        if name == "constant_position":
            constant_position(net, separable=layout == "separable")
        elif name in REWRITES:
            REWRITES[name](net)
    if spec is not None:
        fold_pixels(net, spec)
        names.append("pixels")
    if isinstance(net, ConvMixer):
        net.stem.append(InMemory(layout))
    end = next((end for end in ENDS if end.rewrite in names), Rewritten)
    fast: Rewritten = end(net, tuple(names)).to(device)
    return fast


def rewrites_of(model: ImageModel) -> tuple[str, ...]:
    """Names of the rewrites that apply to this model, in the order in which they are done."""
    if isinstance(model, ConvMixer):
        last = ("norm_after_pool",) if model.global_pool in AVERAGE and model.config.act_layer == "gelu" else ()
        return ("fold_batch_norms", *last)
    if isinstance(model, ConViT):
        last = ("last_class_token",) if model.global_pool == "token" and model.num_local < len(model.blocks) else ()
        return ("constant_position", "fold_layer_norms", *last)
    if isinstance(model, MlpMixer):
        last = ("norm_after_mean",) if model.global_pool else ()
        return ("mix_from_left", "fold_affines" if model.config.kind == "resmlp" else "fold_layer_norms", *last)
    if isinstance(model, CrossViT):
        return ("fold_layer_norms", "absorb_queries", "resize_by_matrices", "last_class_tokens")
    raise UsageError("bad_argument", f"{type(model).__name__} has no rewrites", hint="give a model of create_model")


LAYOUT_SKIPS = {"right": "mix_from_left", "norms_apart": "fold_batch_norms"}  # what a layout leaves out


def layouts_of(model: ImageModel) -> tuple[str, ...]:
    """Ways to compute the same that differ in speed by backend, the usual first.

    ConvMixer: how a map lies in memory; CPU kernels of 9 x 9 and more lose 1.2 to 1.5 times in channels-last, smaller
    ones gain. ConViT: its constant attention by position as one N x N product a head, or one over rows and one over
    columns. Mixers: the product over the patches from the left, or transposed. "norms_apart", of the ReLU variant: a
    runtime that joins a ReLU to its convolution, but not a clamp by channel, needs one pass for the norm and two for
    the clamp.
    """
    if isinstance(model, ConvMixer):
        layouts = ("channels_last", "channels_first")
        layouts = layouts[::-1] if model.config.kernel_size >= 9 else layouts
        return (*layouts, "norms_apart") if model.config.act_layer == "relu" else layouts
    if isinstance(model, ConViT):
        return "dense", "separable"
    return ("left", "right") if isinstance(model, MlpMixer) else ()


RUNTIMES_OWN = {"openvino": "right", "onnxruntime": "norms_apart"}  # what a runtime ran faster than the first layout


def usual_layout(model: ImageModel, engine: str) -> str:
    """The layout that an engine takes where none is asked for; "" for a family that has one."""
    layouts = layouts_of(model)
    own = RUNTIMES_OWN.get(engine, "")
    return own if own in layouts else next(iter(layouts), "")


# --- shared -----------------------------------------------------------------------------------------------------------


def fold_scale(linear: nn.Linear, scale: Tensor, shift: Tensor) -> nn.Linear:
    """The layer y = linear(scale * x + shift), as one linear layer; scale and shift are (in,)."""
    weight = linear.weight.double()
    bias = weight @ shift.double()
    if linear.bias is not None:
        bias = bias + linear.bias.double()
    return new_linear(weight * scale.double(), bias, linear.weight)


def new_linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """A linear layer from float64 weights, as precise and where `like` is."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = frozen(weight, like)
    if bias is not None:
        linear.bias = frozen(bias, like)
    return linear


def frozen(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().to(like).contiguous(), requires_grad=False)


def plain_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The same norm without its scale and shift."""
    return nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)


def fold_layer_norms(net: nn.Module) -> None:
    """Scale and shift of a LayerNorm go into the linear layers that read it, wherever nothing else does."""
    for module in net.modules():
        if isinstance(module, PreNormBlock):
            attn = module.attn
            _fold_norm(module, "norm1", attn, ("qk", "v") if isinstance(attn, GPSA) else ("qkv",))
            _fold_norm(module, "norm2", module.mlp, ("fc1",))
        elif isinstance(module, MixerBlock | LeftMixerBlock):
            _fold_norm(module, "norm2", module.mlp_channels, ("fc1",))
        elif isinstance(module, SpatialGatingBlock):
            _fold_norm(module, "norm", module.mlp_channels, ("fc1",))


def _fold_norm(owner: nn.Module, norm_name: str, reader: nn.Module, linears: Iterable[str]) -> None:
    norm = getattr(owner, norm_name)
    for name in linears:
        setattr(reader, name, fold_scale(getattr(reader, name), norm.weight, norm.bias))
    setattr(owner, norm_name, plain_norm(norm))


class PixelPatches(nn.Module):
    """A patch embedding on raw pixels: (B,C,H,W) uint8 or float, 0 to 255 -> (B,D,h,w), stored channels-last.

    (u / 255 - mean) / std is affine, so it folds into the convolution; without padding exactly. Integers up to 255 are
    exact in every precision. One matrix product, as patches do not overlap.
    """

    def __init__(self, conv: nn.Conv2d, spec: InputSpec):
        super().__init__()
        (self.patch, _) = conv.kernel_size
        weight, scale, mean = conv.weight.double(), _per_channel(spec.std, conv), _per_channel(spec.mean, conv)
        bias = 0.0 if conv.bias is None else conv.bias.double()
        bias = bias - (weight * (mean / scale)).sum((1, 2, 3))
        weight_DS = (weight / (255 * scale)).permute(0, 2, 3, 1).flatten(1)
        self.linear = new_linear(weight_DS, bias, conv.weight)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        p = self.patch
        rows, cols = pixels_BCHW.shape[-2] // p, pixels_BCHW.shape[-1] // p
        cut_BHWC = pixels_BCHW[..., : rows * p, : cols * p].permute(0, 2, 3, 1)
        patches = cut_BHWC.unflatten(2, (cols, p)).unflatten(1, (rows, p)).transpose(2, 3)  # (B,h,w,p,p,C)
        return self.linear(patches.flatten(3).to(self.linear.weight.dtype)).permute(0, 3, 1, 2)


def _per_channel(values: Collection[float], conv: nn.Conv2d) -> Tensor:
    """(C,1,1) float64, where the convolution's weights are."""
    return torch.tensor(list(values), dtype=torch.float64, device=conv.weight.device)[:, None, None]


class Normalised(nn.Module):
    """`inner` on pixels, normalised first: where a padded convolution comes next, whose border zeros mean `mean`."""

    def __init__(self, inner: nn.Module, conv: nn.Conv2d, spec: InputSpec):
        super().__init__()
        scale, mean = _per_channel(spec.std, conv), _per_channel(spec.mean, conv)
        self.scale, self.shift = frozen(1 / (255 * scale), conv.weight), frozen(-mean / scale, conv.weight)
        self.inner = inner

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.inner(torch.addcmul(self.shift, pixels_BCHW.to(self.scale.dtype), self.scale))


def fold_pixels(net: Any, spec: InputSpec) -> None:
    """Let the model read uint8 pixels: the normalisation goes into the weights of its patch embedding."""

    def on_pixels(proj: nn.Module) -> nn.Module:
        if isinstance(proj, nn.Conv2d):
            return PixelPatches(proj, spec)
        assert isinstance(proj, nn.Sequential)
        first = proj[0]
        assert isinstance(first, nn.Conv2d)
        return Normalised(proj, first, spec)

    if isinstance(net, ConvMixer):
        net.stem[0] = on_pixels(net.stem[0])
    else:
        embeds: Any = net.patch_embed if isinstance(net, CrossViT) else [getattr(net, "patch_embed", None) or net.stem]
        for embed in embeds:
            embed.proj = on_pixels(embed.proj)


# --- ConvMixer --------------------------------------------------------------------------------------------------------

AVERAGE = ("avg", "fast", "fastavg")


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What the batch norm does to a channel at inference, a * x + c: two float64 (D,)."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def scaled_conv(conv: nn.Conv2d, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> nn.Conv2d:
    """The convolution y = scale * conv(x) + shift, per output channel (float64)."""
    assert conv.bias is not None
    new = copy.deepcopy(conv)
    scale = torch.as_tensor(scale, dtype=torch.float64, device=conv.weight.device)
    new.weight = frozen(conv.weight.double() * scale.reshape(-1, 1, 1, 1), conv.weight)
    new.bias = frozen(conv.bias.double() * scale + shift, conv.weight)
    return new


class Clamp(nn.Module):
    """Between two bounds per channel; x is (B,D,h,w)."""

    def __init__(self, low: Tensor, high: Tensor, like: Tensor):
        super().__init__()
        self.low, self.high = (frozen(bound[:, None, None], like) for bound in (low, high))

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.low), self.high)


class ScaledGelu(nn.Module):
    """scale * gelu(x) + shift per channel; x is (B,D,h,w)."""

    def __init__(self, scale: Tensor, shift: Tensor | None, like: Tensor):
        super().__init__()
        self.scale = frozen(scale[:, None, None], like)
        self.shift = None if shift is None else frozen(shift[:, None, None], like)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) * self.scale if self.shift is None else torch.addcmul(self.shift, F.gelu(x), self.scale)


class InMemory(nn.Module):
    """The same map (B,D,h,w), stored as the layout says; convolutions keep it so."""

    def __init__(self, layout: str):
        super().__init__()
        self.format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.format)


class FoldedBlock(nn.Module):
    """A ConvMixer block without batch norms: x + spatial(x), then `channel`, each a convolution and what follows it."""

    def __init__(self, spatial: nn.Sequential, channel: nn.Sequential):
        super().__init__()
        self.spatial, self.channel = spatial, channel

    def forward(self, x: Tensor) -> Tensor:
        return self.channel(x + self.spatial(x))


def conv_with_clamp(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Sequential:
    """conv, ReLU, batch norm: a * relu(z) + c = clamp(a * z + c), from c upwards, or downwards where a < 0."""
    scale, shift = affine_of(norm)
    low, high = torch.where(scale >= 0, shift, -torch.inf), torch.where(scale >= 0, torch.inf, shift)
    return nn.Sequential(scaled_conv(conv, scale, shift), Clamp(low, high, conv.weight))


def fold_batch_norms(net: Any) -> None:
    """Batch norms go into the convolution before (ReLU) or become one multiply-add, half of them a multiply (GELU).

    The fold is backward, into the convolution before the activation: the zero padding of the next is not touched.
    """
    relu = net.config.act_layer == "relu"
    conv, _, norm = net.stem
    net.stem = conv_with_clamp(conv, norm) if relu else nn.Sequential(conv, ScaledGelu(*affine_of(norm), conv.weight))
    for i, block in enumerate(net.blocks):
        spatial, _, norm1 = block[0].fn
        _, pointwise, _, norm2 = block
        if relu:
            net.blocks[i] = FoldedBlock(conv_with_clamp(spatial, norm1), conv_with_clamp(pointwise, norm2))
            continue
        scale, shift = affine_of(norm1)  # the shift passes through the residual sum into the pointwise bias
        moved = scaled_conv(pointwise, shift=pointwise.weight.double().flatten(1) @ shift)
        net.blocks[i] = FoldedBlock(
            nn.Sequential(spatial, ScaledGelu(scale, None, spatial.weight)),
            nn.Sequential(moved, ScaledGelu(*affine_of(norm2), pointwise.weight)),
        )


class ConvMixerEnd(Rewritten):
    """The last batch norm acts on the pooled vector, as an average commutes with it (GELU variants)."""

    rewrite = "norm_after_pool"

    def __init__(self, net: Any, applied: tuple[str, ...]):
        super().__init__(net, applied)
        last = net.blocks[-1]
        self.folded = isinstance(last, FoldedBlock)
        if self.folded:
            self.mix, self.affine = nn.Sequential(last.channel[0], nn.GELU()), last.channel[1]
        else:
            scale, shift = affine_of(last[3])
            self.mix, self.affine = nn.Sequential(*last[1:3]), ScaledGelu(scale, shift, last[1].weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        check_smallest(x, net.patch_size)
        x = net.stem(x)
        for block in net.blocks[:-1]:
            x = block(x)
        last = net.blocks[-1]
        x = x + last.spatial(x) if self.folded else last[0](x)
        pooled_BD = pool_map(self.mix(x), net.global_pool)
        embedding = torch.addcmul(self.affine.shift.flatten(), pooled_BD, self.affine.scale.flatten())
        return net.head(embedding), embedding


# --- ConViT -----------------------------------------------------------------------------------------------------------


class ConstantGPSA(nn.Module):
    """GPSA whose attention by position is a constant, computed once: it depends on weights alone.

    Its logits are a sum of a function of dx and one of dy, so the softmax over the grid is the product of one over
    rows and one over columns, and the bias cancels. The content attention runs fused; queries, keys and values come
    from one product.
    """

    def __init__(self, attn: GPSA, grid: Pair, separable: bool):
        super().__init__()
        self.num_heads, self.grid = attn.num_heads, grid
        weights: list[Tensor] = [attn.qk.weight, attn.v.weight]
        biases: list[Tensor] = [attn.qk.bias, attn.v.bias]
        self.qkv = new_linear(torch.cat(weights), torch.cat(biases) if attn.qk.bias is not None else None, weights[0])
        self.proj = attn.proj
        gate_H = attn.gating_param.double().sigmoid()
        self.content_share = frozen((1 - gate_H)[:, None, None], weights[0])
        rows_HYY, cols_HXX = position_factors(attn, grid)
        rows_HYY = rows_HYY * gate_H[:, None, None]
        if separable:
            self.rows, self.cols = frozen(rows_HYY, weights[0]), frozen(cols_HXX[:, None], weights[0])
        else:
            both = rows_HYY[:, :, None, :, None] * cols_HXX[:, None, :, None, :]  # (H,Y,X,Y,X)
            self.position = frozen(both.flatten(3).flatten(1, 2), weights[0])
        self.separable = separable

    def forward(self, x_BND: Tensor, rel_NN3: Tensor | None = None) -> Tensor:
        q_BHNd, k_BHNd, v_BHNd = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        content_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        y_BHNd = torch.addcmul(self.by_position(v_BHNd), content_BHNd, self.content_share)
        return self.proj(y_BHNd.transpose(1, 2).flatten(2))

    def by_position(self, v_BHNd: Tensor) -> Tensor:
        """The gated share of attention by position applied to the values: (B,H,N,d) -> the same."""
        if not self.separable:
            return self.position @ v_BHNd
        across_BHYXd = self.cols @ v_BHNd.unflatten(2, self.grid)
        return (self.rows @ across_BHYXd.flatten(3)).unflatten(3, (self.grid[1], -1)).flatten(2, 3)


def position_factors(attn: GPSA, grid: Pair) -> tuple[Tensor, Tensor]:
    """Attention by position of a rows x cols grid, as its factors: (H,rows,rows) and (H,cols,cols), float64."""
    by_x_H, by_y_H, by_distance_H = attn.pos_proj.weight.double().unbind(-1)

    def softmax_over(side: int, by_H: Tensor) -> Tensor:
        at = torch.arange(side, dtype=torch.float64, device=by_H.device)
        offset = at[None] - at[:, None]  # [i,j]: from i to j
        return (by_H[:, None, None] * offset + by_distance_H[:, None, None] * offset**2).softmax(-1)

    return softmax_over(grid[0], by_y_H), softmax_over(grid[1], by_x_H)


def constant_position(net: Any, *, separable: bool = False) -> None:
    """Attention by position becomes a constant; queries, keys and values come from one product."""
    for block in net.blocks:
        if isinstance(block.attn, GPSA):
            block.attn = ConstantGPSA(block.attn, net.patch_embed.grid, separable)


class SingleQuery(nn.Module):
    """Attention in which one token asks: keys and values are never projected, the query and the answer are.

    q . (W_k n) = (W_k^T q) . n, and the weights sum to 1, so W_v applies to their blend of the normed tokens; a bias of
    the keys adds the same to every score and cancels. The scale and shift of the norm go into the weights.
    """

    def __init__(self, norm: nn.LayerNorm, q: Any, k: Any, v: Any, proj: nn.Linear, num_heads: int):
        """q, k, v: (weight (D,D), bias (D,) or None) as in linear layers."""
        super().__init__()
        like, scale, shift = proj.weight, *_affine_of_norm(norm)
        (q_weight, q_bias), (k_weight, _), (v_weight, v_bias) = ((w.double(), b) for w, b in (q, k, v))
        self.num_heads, self.eps = num_heads, norm.eps
        head_scale = (len(q_weight) // num_heads) ** -0.5
        q_shift = q_weight @ shift + (0 if q_bias is None else q_bias.double())
        self.query = new_linear(q_weight * scale * head_scale, q_shift * head_scale, like)
        self.key_HdD = frozen((k_weight * scale).unflatten(0, (num_heads, -1)), like)
        self.value_HDd = frozen((v_weight * scale).unflatten(0, (num_heads, -1)).transpose(1, 2), like)
        v_shift = v_weight @ shift + (0 if v_bias is None else v_bias.double())
        # the answer's shift is a constant behind a linear layer
        self.proj = new_linear(proj.weight.double(), proj.bias.double() + proj.weight.double() @ v_shift, like)

    def forward(self, token_B1D: Tensor, others_BND: Tensor) -> Tensor:
        """The token asks itself and the others: (B,1,D), (B,N,D) -> (B,1,D); neither is normed yet."""
        width = token_B1D.shape[-1:]
        own_B1D, n_BND = (F.layer_norm(x, width, eps=self.eps) for x in (token_B1D, others_BND))
        q_BH1d = self.query(own_B1D).unflatten(-1, (self.num_heads, 1, -1)).squeeze(1)
        u_BHD = (q_BH1d @ self.key_HdD).squeeze(2)
        scores = torch.cat((u_BHD @ own_B1D.transpose(1, 2), u_BHD @ n_BND.transpose(1, 2)), dim=-1).softmax(-1)
        blend_BHD = torch.baddbmm(scores[..., :1] @ own_B1D, scores[..., 1:], n_BND)
        answer = (blend_BHD.unsqueeze(2) @ self.value_HDd).flatten(1).unsqueeze(1)
        return self.proj(answer)


def _affine_of_norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of a LayerNorm, float64 (D,): 1 and 0 where they are folded away."""
    if norm.elementwise_affine:
        return norm.weight.double(), norm.bias.double()
    (width,) = norm.normalized_shape
    return torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)


class ConViTEnd(Rewritten):
    """The last block computes the class token alone, as nothing reads the patches after it."""

    rewrite = "last_class_token"

    def __init__(self, net: Any, applied: tuple[str, ...]):
        super().__init__(net, applied)
        attn: Attention = net.blocks[-1].attn
        weights = attn.qkv.weight.chunk(3)
        biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
        q, k, v = zip(weights, biases, strict=True)
        self.ask = SingleQuery(net.blocks[-1].norm1, q, k, v, attn.proj, attn.num_heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        x_BND = net._embed(x)
        for i in range(len(net.blocks) - 1):
            x_BND = net._run(i, x_BND)
        last, token_B1D = net.blocks[-1], x_BND[:, :1]
        token_B1D = token_B1D + self.ask(token_B1D, x_BND[:, 1:])
        token_B1D = token_B1D + last.mlp(last.norm2(token_B1D))
        embedding = net.norm(token_B1D).squeeze(1)
        return net.head(embedding), embedding


# --- MLP-Mixer, gMixer, ResMLP, gMLP ----------------------------------------------------------------------------------


class FromLeft(nn.Module):
    """A linear layer over the patches as a product from the left: (B,N,D) -> (B,out,D); nothing is transposed."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight
        self.bias = frozen(linear.bias[:, None], linear.weight)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.weight @ x_BND + self.bias


class LeftMixerBlock(nn.Module):
    """A Mixer or gMixer block with token mixing from the left; a gate's halves are whole rows, so views."""

    def __init__(self, block: MixerBlock):
        super().__init__()
        self.norm1, self.norm2, self.mlp_channels = block.norm1, block.norm2, block.mlp_channels
        self.fc1, self.act, self.fc2 = (
            FromLeft(block.mlp_tokens.fc1),
            block.mlp_tokens.act,
            FromLeft(block.mlp_tokens.fc2),
        )
        self.gated = isinstance(block.mlp_tokens, GluMlp)

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

    def __init__(self, gate: Any):
        super().__init__()
        self.norm, self.proj = gate.norm, FromLeft(gate.proj)

    def forward(self, x_BNE: Tensor) -> Tensor:
        value, gate = x_BNE.chunk(2, dim=-1)
        return value * self.proj(self.norm(gate))


def mix_from_left(net: Any) -> None:
    """Mixing across patches as W @ X, which needs no transposed copy of X."""
    for i, block in enumerate(net.blocks):
        if isinstance(block, SpatialGatingBlock):
            mlp: Any = block.mlp_channels
            mlp.gate = LeftGate(mlp.gate)
        else:
            net.blocks[i] = LeftResBlock(block) if isinstance(block, ResBlock) else LeftMixerBlock(block)


class FoldedResBlock(nn.Module):
    """A ResMLP block that is only its products: X + (W X) * scale + constant, then an MLP with its scales folded in."""

    def __init__(self, block: Any):
        """block: ResBlock or LeftResBlock."""
        super().__init__()
        tokens: nn.Linear | FromLeft = block.tokens if isinstance(block, LeftResBlock) else block.linear_tokens
        like = tokens.weight
        weight_NN, bias_N = tokens.weight.double(), tokens.bias.double().flatten()
        ls1, ls2 = block.ls1.double(), block.ls2.double()
        (alpha1, beta1), (alpha2, beta2) = (
            (norm.alpha.double().flatten(), norm.beta.double().flatten()) for norm in (block.norm1, block.norm2)
        )
        self.weight = frozen(weight_NN, like)
        self.scale_D = frozen(ls1 * alpha1, like)
        self.constant_ND = frozen((weight_NN.sum(1)[:, None] * beta1 + bias_N[:, None]) * ls1, like)
        mlp: Mlp = block.mlp_channels
        self.fc1, self.act = fold_scale(mlp.fc1, alpha2, beta2), mlp.act
        self.fc2 = new_linear(mlp.fc2.weight.double() * ls2[:, None], mlp.fc2.bias.double() * ls2, like)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.constant_ND + (self.weight @ x_BND) * self.scale_D
        return x_BND + self.fc2(self.act(self.fc1(x_BND)))


def fold_affines(net: Any) -> None:
    """ResMLP measures nothing on the data, so all its scales and shifts fold into weights and one constant a block."""
    for i, block in enumerate(net.blocks):
        net.blocks[i] = FoldedResBlock(block)


class MlpMixerEnd(Rewritten):
    """Scale and shift of the last norm act on the mean over the patches, which commutes with them."""

    rewrite = "norm_after_mean"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net, norm = self.net, self.net.norm
        x_BND = net.blocks(net.stem(x))
        if isinstance(norm, Affine):
            embedding = torch.addcmul(norm.beta[0, 0], x_BND.mean(dim=1), norm.alpha[0, 0])
        else:
            mean_BD = F.layer_norm(x_BND, norm.normalized_shape, eps=norm.eps).mean(dim=1)
            embedding = torch.addcmul(norm.bias, mean_BD, norm.weight)
        return net.head(embedding), embedding


# --- CrossViT ---------------------------------------------------------------------------------------------------------


class AbsorbedStage(nn.Module):
    """A CrossViT stage whose class tokens visit without keys, values or joined copies; same inputs and outputs."""

    def __init__(self, stage: MultiScaleBlock):
        super().__init__()
        self.blocks, self.projs, self.revert_projs = stage.blocks, stage.projs, stage.revert_projs
        self.visits, self.later = nn.ModuleList(), nn.ModuleList()
        for fusion in stage.fusion:
            first, *rest = fusion if isinstance(fusion, nn.Sequential) else [fusion]
            assert isinstance(first, CrossAttentionBlock)
            attn = first.attn
            q, k, v = ((linear.weight, linear.bias) for linear in (attn.wq, attn.wk, attn.wv))
            self.visits.append(SingleQuery(first.norm1, q, k, v, attn.proj, attn.num_heads))
            self.later.append(nn.Sequential(*rest))  # further visits see the token alone

    def apart(self, xs: list[Tensor]) -> list[Tensor]:
        """Each branch's own blocks: [(B,1+N_b,D_b)] -> the same shapes."""
        return [block(x_BND) for block, x_BND in zip(self.blocks, xs, strict=True)]

    def exchange(self, xs: list[Tensor]) -> list[Tensor]:
        """New class tokens of both branches: [(B,1+N_b,D_b)] -> [(B,1,D_b)]."""
        tokens = []
        for b in BRANCHES:
            token_B1D = self.projs[b](xs[b][:, :1])
            token_B1D = self.later[b](token_B1D + self.visits[b](token_B1D, xs[1 - b][:, 1:]))
            tokens.append(self.revert_projs[b](token_B1D))
        return tokens

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = self.apart(xs)
        return [torch.cat((cls, x_BND[:, 1:]), dim=1) for cls, x_BND in zip(self.exchange(xs), xs, strict=True)]


def absorb_queries(net: Any) -> None:
    """Single-query attention with its key and value projections absorbed into the query and the answer."""
    for i, stage in enumerate(net.blocks):
        net.blocks[i] = AbsorbedStage(stage)


class ResizedPatchEmbed(nn.Module):
    """A branch's patch embedding that reads the model's whole image: rows @ image @ cols^T is the bicubic resize."""

    def __init__(self, embed: PatchEmbed, size: Pair):
        super().__init__()
        self.img_size, self.grid, self.num_patches = size, embed.grid, embed.num_patches
        like = next(embed.parameters())
        self.rows = frozen(resize_matrix(size[0], embed.img_size[0]), like)
        self.cols_T = frozen(resize_matrix(size[1], embed.img_size[1]).T, like)
        self.proj, self.norm = embed.proj, embed.norm

    def forward(self, image_BCHW: Tensor) -> Tensor:
        check_image_size(image_BCHW, self.img_size)
        image_BChw = self.rows @ (image_BCHW.to(self.rows.dtype) @ self.cols_T)
        return self.norm(self.proj(image_BChw).flatten(2).transpose(1, 2))


def resize_matrix(old: int, new: int) -> Tensor:
    """(new,old) float64: what PyTorch's bicubic resize (a = -0.75, no antialias) does to one axis; rows sum to 1."""
    images = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(images, size=(new, old), mode="bicubic", align_corners=False)[0, 0]


def resize_by_matrices(net: Any) -> None:
    """The branch image that the model resizes itself comes from two constant products."""
    for b in BRANCHES:
        if net.branch_sizes[b] != net.img_size and not net.config.crop_scale:
            net.patch_embed[b] = ResizedPatchEmbed(net.patch_embed[b], net.img_size)
            net.branch_sizes[b] = net.img_size  # so nothing is resized before it


class CrossViTEnd(Rewritten):
    """After the last stage only what the heads read is computed, and both heads are one product."""

    rewrite = "last_class_tokens"

    def __init__(self, net: Any, applied: tuple[str, ...]):
        super().__init__(net, applied)
        last = net.blocks[-1]
        self.last = last if isinstance(last, AbsorbedStage) else AbsorbedStage(last)
        self.head: nn.Module = nn.Identity()
        if net.num_classes:
            first, second = net.head
            weight = torch.cat((first.weight, second.weight), dim=1).double() / 2
            self.head = new_linear(weight, (first.bias.double() + second.bias.double()) / 2, first.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        xs = net._embed(x)
        for stage in net.blocks[:-1]:
            xs = stage(xs)
        xs = self.last.apart(xs)
        if net.global_pool == "token":
            pooled = [x_B1D.squeeze(1) for x_B1D in net._norm(self.last.exchange(xs))]
        else:  # the patches do not change in an exchange
            pooled = [x_BND.mean(dim=1) for x_BND in net._norm([x_BND[:, 1:] for x_BND in xs])]
        embedding = torch.cat(pooled, dim=1)
        return self.head(embedding), embedding


REWRITES: dict[str, Callable[[Any], None]] = {
    "fold_batch_norms": fold_batch_norms,
    "fold_layer_norms": fold_layer_norms,
    "mix_from_left": mix_from_left,
    "fold_affines": fold_affines,
    "absorb_queries": absorb_queries,
    "resize_by_matrices": resize_by_matrices,
}
ENDS: tuple[type[Any], ...] = (ConvMixerEnd, ConViTEnd, MlpMixerEnd, CrossViTEnd)
