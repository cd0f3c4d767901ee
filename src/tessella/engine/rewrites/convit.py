"""Rewrites of ConViT: constant attention by position, folded norms, and a last block for the class token only.

Shape suffixes: as in models/convit.py, and Y X for rows and columns of the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.spec import InputSpec
from ...models.convit import GPSA, ConViT
from ...models.layers import Attention, Pair, PreNormBlock
from .base import Family, Rewritten
from .folding import fold_pre_norms, frozen, new_linear
from .pixels import on_pixels
from .single_query import SingleQuery


class ConstantGPSA(nn.Module):
    """GPSA with attention by position as a constant, because it depends on the weights only.

    Its scores are the sum of a function of dx and one of dy, so the softmax over the grid is the product of one over
    rows and one over columns, and the bias cancels. The content attention is a fused operator; queries, keys and values
    are computed by one product.
    """

    def __init__(self, attn: GPSA, grid: Pair, separable: bool):
        super().__init__()
        self.num_heads, self.grid = attn.num_heads, grid
        like = attn.qk.weight
        bias = torch.cat((attn.qk.bias, attn.v.bias)) if attn.qk.bias is not None else None
        self.qkv = new_linear(torch.cat((attn.qk.weight, attn.v.weight)), bias, like)
        self.proj = attn.proj
        gate_H = attn.gating_param.double().sigmoid()
        self.content_gate = frozen((1 - gate_H)[:, None, None], like)
        rows_HYY, cols_HXX = position_factors(attn, grid)
        rows_HYY = rows_HYY * gate_H[:, None, None]
        if separable:
            self.rows, self.cols = frozen(rows_HYY, like), frozen(cols_HXX[:, None], like)
        else:
            both = rows_HYY[:, :, None, :, None] * cols_HXX[:, None, :, None, :]  # (H,Y,X,Y,X)
            self.position = frozen(both.flatten(3).flatten(1, 2), like)
        self.separable = separable

    def forward(self, x_BND: Tensor, rel_NN3: Tensor | None = None) -> Tensor:
        """(B,N,D) -> (B,N,D); rel_NN3 is not read, but ConViT passes it to every local block."""
        q_BHNd, k_BHNd, v_BHNd = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        content_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        y_BHNd = torch.addcmul(self.attend_by_position(v_BHNd), content_BHNd, self.content_gate)
        return self.proj(y_BHNd.transpose(1, 2).flatten(2))

    def attend_by_position(self, v_BHNd: Tensor) -> Tensor:
        """Apply the gated attention by position to the values: (B,H,N,d) -> the same shape."""
        if not self.separable:
            return self.position @ v_BHNd
        across_BHYXd = self.cols @ v_BHNd.unflatten(2, self.grid)
        return (self.rows @ across_BHYXd.flatten(3)).unflatten(3, (self.grid[1], -1)).flatten(2, 3)


def position_factors(attn: GPSA, grid: Pair) -> tuple[Tensor, Tensor]:
    """Return the two factors of attention by position on a grid: float64 (H,rows,rows) and (H,columns,columns)."""
    by_x_H, by_y_H, by_distance_H = attn.pos_proj.weight.double().unbind(-1)

    def softmax_over(side: int, by_H: Tensor) -> Tensor:
        positions = torch.arange(side, dtype=torch.float64, device=by_H.device)
        offset = positions[None] - positions[:, None]  # [i,j]: from i to j
        return (by_H[:, None, None] * offset + by_distance_H[:, None, None] * offset**2).softmax(-1)

    return softmax_over(grid[0], by_y_H), softmax_over(grid[1], by_x_H)


def constant_position(net: ConViT, layout: str) -> None:
    """Make attention by position a constant, and compute queries, keys and values in one product."""
    for block in net.blocks:
        if isinstance(block, PreNormBlock) and isinstance(block.attn, GPSA):
            block.attn = ConstantGPSA(block.attn, net.patch_embed.grid, layout == "separable")


def fold_layer_norms(net: ConViT, layout: str) -> None:
    """Fold the scale and shift of the norms in blocks into the linear layers that read them."""
    for block in net.blocks:
        assert isinstance(block, PreNormBlock)
        fold_pre_norms(block, ("qk", "v") if isinstance(block.attn, GPSA) else ("qkv",))


class ConViTFinal(Rewritten):
    """Compute only the class token in the last block, as its patches are not read.

    (B,C,H,W) images -> logits (B,classes) and embedding (B,D).
    """

    rewrite = "last_class_token"
    if TYPE_CHECKING:
        net: ConViT

    def __init__(self, net: ConViT, applied: tuple[str, ...]):
        super().__init__(net, applied)
        last = net.blocks[-1]
        assert isinstance(last, PreNormBlock)
        attn = last.attn
        assert isinstance(attn, Attention)
        weights = attn.qkv.weight.chunk(3)
        biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
        q, k, v = zip(weights, biases, strict=True)
        self.last_attention = SingleQuery(last.norm1, q, k, v, attn.proj, attn.num_heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        x_BND = net.forward_stem(x)
        for i in range(len(net.blocks) - 1):
            x_BND = net.forward_block(i, x_BND)
        last, token_B1D = net.blocks[-1], x_BND[:, :1]
        assert isinstance(last, PreNormBlock)
        token_B1D = token_B1D + self.last_attention(token_B1D, x_BND[:, 1:])
        token_B1D = token_B1D + last.mlp(last.norm2(token_B1D))
        embedding = net.norm(token_B1D).squeeze(1)
        return net.head(embedding), embedding


class ConViTFamily(Family[ConViT]):
    """The rewrites of ConViT.

    Layouts: "dense" applies attention by position as one N x N product per head, "separable" as one product over rows
    and one over columns.
    """

    model_type = ConViT
    final = ConViTFinal
    steps = {"constant_position": constant_position, "fold_layer_norms": fold_layer_norms}

    def names(self, model: ConViT) -> tuple[str, ...]:
        reads_only_token = model.global_pool == "token" and model.num_local < len(model.blocks)
        return ("constant_position", "fold_layer_norms", *((self.final.rewrite,) if reads_only_token else ()))

    def layouts(self, model: ConViT) -> tuple[str, ...]:
        return "dense", "separable"

    def fold_pixels(self, net: ConViT, spec: InputSpec) -> None:
        net.patch_embed.proj = on_pixels(net.patch_embed.proj, spec)
