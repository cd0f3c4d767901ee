"""Rewrites of CrossViT: cross-attention without keys and values, resizing as a product, and a shorter last stage.

Shape suffixes: as in models/crossvit.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.spec import InputSpec
from ...models.crossvit import BRANCHES, CrossAttentionBlock, CrossViT, MultiScaleBlock
from ...models.layers import Pair, PatchEmbed, PreNormBlock, check_image_size
from .base import Family, Rewritten
from .folding import fold_pre_norms, frozen, new_linear
from .pixels import on_pixels
from .single_query import SingleQuery


class AbsorbedStage(nn.Module):
    """A CrossViT stage whose cross-attention needs no keys, values or concatenated copies of the tokens.

    [(B,1+N_b,D_b) for b in branches] -> the same shapes.
    """

    def __init__(self, stage: MultiScaleBlock):
        super().__init__()
        self.blocks, self.projs, self.revert_projs = stage.blocks, stage.projs, stage.revert_projs
        self.cross_attention, self.further_blocks = nn.ModuleList(), nn.ModuleList()
        for fusion in stage.fusion:
            first, *rest = fusion if isinstance(fusion, nn.Sequential) else [fusion]
            assert isinstance(first, CrossAttentionBlock)
            attn = first.attn
            q, k, v = ((linear.weight, linear.bias) for linear in (attn.wq, attn.wk, attn.wv))
            self.cross_attention.append(SingleQuery(first.norm1, q, k, v, attn.proj, attn.num_heads))
            self.further_blocks.append(nn.Sequential(*rest))  # these read only the token

    def run_branches(self, xs: list[Tensor]) -> list[Tensor]:
        """Run the blocks of each branch: [(B,1+N_b,D_b)] -> the same shapes."""
        return [block(x_BND) for block, x_BND in zip(self.blocks, xs, strict=True)]

    def exchange(self, xs: list[Tensor]) -> list[Tensor]:
        """Compute the new class tokens of both branches: [(B,1+N_b,D_b)] -> [(B,1,D_b)]."""
        tokens = []
        for b in BRANCHES:
            token_B1D = self.projs[b](xs[b][:, :1])
            token_B1D = self.further_blocks[b](token_B1D + self.cross_attention[b](token_B1D, xs[1 - b][:, 1:]))
            tokens.append(self.revert_projs[b](token_B1D))
        return tokens

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = self.run_branches(xs)
        return [torch.cat((cls, x_BND[:, 1:]), dim=1) for cls, x_BND in zip(self.exchange(xs), xs, strict=True)]


def fold_layer_norms(net: CrossViT, layout: str) -> None:
    """Fold the scale and shift of the norms in both branches into the linear layers that read them."""
    for module in net.modules():
        if isinstance(module, PreNormBlock):
            fold_pre_norms(module, ("qkv",))


def absorb_queries(net: CrossViT, layout: str) -> None:
    """Fold the key and value projections of single-query attention into those of the query and the output."""
    for i, stage in enumerate(net.blocks):
        assert isinstance(stage, MultiScaleBlock)
        net.blocks[i] = AbsorbedStage(stage)


class ResizedPatchEmbed(nn.Module):
    """A branch's patch embedding that resizes the model's image by rows @ image @ cols^T: (B,C,H,W) -> (B,N,D)."""

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
    """Return the (N,M) float64 matrix of PyTorch's bicubic resize (a = -0.75, no antialias) from M = old to N = new."""
    images = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(images, size=(new, old), mode="bicubic", align_corners=False)[0, 0]


def resize_by_matrices(net: CrossViT, layout: str) -> None:
    """Compute the resized image of a branch as two constant products."""
    for b in BRANCHES:
        if net.branch_sizes[b] != net.img_size and not net.config.crop_scale:
            net.patch_embed[b] = ResizedPatchEmbed(cast("PatchEmbed", net.patch_embed[b]), net.img_size)
            net.branch_sizes[b] = net.img_size  # so that the image is not resized before


class CrossViTFinal(Rewritten):
    """Compute only what the heads read after the last stage, and both heads as one product.

    (B,C,H,W) images -> logits (B,classes) and embedding (B,D_0+D_1).
    """

    rewrite = "last_class_tokens"
    if TYPE_CHECKING:
        net: CrossViT

    def __init__(self, net: CrossViT, applied: tuple[str, ...]):
        super().__init__(net, applied)
        last = net.blocks[-1]
        self.last = last if isinstance(last, AbsorbedStage) else AbsorbedStage(cast("MultiScaleBlock", last))
        self.head: nn.Module = nn.Identity()
        if net.num_classes:
            first, second = cast("tuple[nn.Linear, nn.Linear]", tuple(net.head))
            weight = torch.cat((first.weight, second.weight), dim=1).double() / 2
            self.head = new_linear(weight, (first.bias.double() + second.bias.double()) / 2, first.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        xs = net.forward_stem(x)
        for stage in net.blocks[:-1]:
            xs = stage(xs)
        xs = self.last.run_branches(xs)
        if net.global_pool == "token":
            pooled = [x_B1D.squeeze(1) for x_B1D in net.forward_norm(self.last.exchange(xs))]
        else:  # the exchange does not change the patches
            pooled = [x_BND.mean(dim=1) for x_BND in net.forward_norm([x_BND[:, 1:] for x_BND in xs])]
        embedding = torch.cat(pooled, dim=1)
        return self.head(embedding), embedding


class CrossViTFamily(Family[CrossViT]):
    """The rewrites of CrossViT, which has one layout."""

    model_type = CrossViT
    final = CrossViTFinal
    steps = {
        "fold_layer_norms": fold_layer_norms,
        "absorb_queries": absorb_queries,
        "resize_by_matrices": resize_by_matrices,
    }

    def names(self, model: CrossViT) -> tuple[str, ...]:
        return (*self.steps, self.final.rewrite)

    def fold_pixels(self, net: CrossViT, spec: InputSpec) -> None:
        for embed in net.patch_embed:
            assert isinstance(embed, PatchEmbed | ResizedPatchEmbed)
            embed.proj = on_pixels(embed.proj, spec)
