"""CrossViT, after Chen, Fan and Panda 2021 (arXiv:2103.14899).

Shape suffixes: B images, C color channels, H W pixels, N patches or tokens (row-major), D model width, d head width,
h heads; b is a branch (0: small patches, 1: large patches) and o the other one.
Module names are the published checkpoints' keys, so weights load without a rename table.
Note: the model reads images of img_size, and resizes them for each branch whose img_scale is not 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import FeatureEntry, ImageModel, LayerGroups
from .configs.crossvit import BRANCHES as BRANCHES
from .configs.crossvit import POOLS as POOLS
from .configs.crossvit import STEMS as STEMS
from .configs.crossvit import VARIANTS as VARIANTS
from .configs.crossvit import CrossViTConfig as CrossViTConfig
from .configs.crossvit import branch_sizes as branch_sizes
from .configs.crossvit import scaled_side as scaled_side
from .configs.crossvit import stem_widths, validate
from .configs.shared import Pair, linear_rates, to_grid, to_pair
from .layers import (
    Attention,
    DropPath,
    PatchEmbed,
    PreNormBlock,
    check_image_size,
    init_linear,
    new_head,
    resample_tokens,
    tokens_to_map,
)

torch.fx.wrap("check_image_size")  # the wrapper at its definition is valid for that file only


def conv_stem(patch_size: int, in_chans: int, width: int) -> nn.Sequential:
    """Return the patch embedding of the dagger models: three convolutions that together reduce an image by patch_size.

    Raises UsageError `bad_argument` for a patch size that is not a key of STEMS, and for a width below 4.
    """
    widths = stem_widths(patch_size, in_chans, width)
    first, second, third = (
        nn.Conv2d(before, after, kernel, stride=stride, padding=padding)
        for before, after, (kernel, stride, padding) in zip(widths, widths[1:], STEMS[patch_size], strict=False)
    )
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


class CrossAttention(nn.Module):
    """Attention of the first token to all tokens: (B,N,D) -> (B,1,D)."""

    def __init__(self, cfg: CrossViTConfig, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = cfg.attn_drop_rate
        self.wq = nn.Linear(width, width, bias=cfg.qkv_bias)
        self.wk = nn.Linear(width, width, bias=cfg.qkv_bias)
        self.wv = nn.Linear(width, width, bias=cfg.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_Bh1d = self._heads(self.wq(x_BND[:, :1]))
        k_BhNd, v_BhNd = self._heads(self.wk(x_BND)), self._heads(self.wv(x_BND))
        y_Bh1d = F.scaled_dot_product_attention(
            q_Bh1d, k_BhNd, v_BhNd, dropout_p=self.attn_drop if self.training else 0.0
        )
        return self.proj_drop(self.proj(y_Bh1d.transpose(1, 2).flatten(2)))

    def _heads(self, x_BND: Tensor) -> Tensor:
        """(B,N,D) -> (B,h,N,d)."""
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class CrossAttentionBlock(nn.Module):
    """The class token plus its attention to all tokens: (B,N,D) -> (B,1,D). No MLP (section 3.3)."""

    def __init__(self, cfg: CrossViTConfig, width: int, num_heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(cfg, width, num_heads)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND[:, :1] + self.drop_path(self.attn(self.norm1(x_BND)))


class MultiScaleBlock(nn.Module):
    """One stage: the blocks of each branch, then attention of each class token to the patches of the other branch.

    [(B,1+N_b,D_b) for b in branches] -> the same shapes. The new class token replaces the old one, without a residual
    connection.
    """

    def __init__(self, cfg: CrossViTConfig, depth: Sequence[int], rates: Sequence[float]):
        """rates: drop-path rate by block index, for both branches; the last one also applies to the fusion."""
        super().__init__()
        dims, heads = cfg.embed_dim, cfg.num_heads
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *[
                    PreNormBlock(
                        Attention(dims[b], heads[b], cfg.qkv_bias, cfg.attn_drop_rate, cfg.proj_drop_rate),
                        dims[b],
                        cfg.mlp_ratio[b],
                        cfg.proj_drop_rate,
                        rates[i],
                    )
                    for i in range(depth[b])
                ]
            )
            for b in BRANCHES
        )
        self.projs = nn.ModuleList(_projection(dims[b], dims[1 - b]) for b in BRANCHES)
        self.fusion = nn.ModuleList()
        for o in reversed(BRANCHES):  # the branch that the class token of branch 1 - o attends to
            fusions = [CrossAttentionBlock(cfg, dims[o], heads[o], rates[-1]) for _ in range(max(depth[2], 1))]
            self.fusion.append(nn.Sequential(*fusions) if depth[2] else fusions[0])
        self.revert_projs = nn.ModuleList(_projection(dims[1 - b], dims[b]) for b in BRANCHES)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [self.blocks[0](xs[0]), self.blocks[1](xs[1])]
        tokens = [self.projs[0](xs[0][:, :1]), self.projs[1](xs[1][:, :1])]  # class tokens in the other branch's width
        tokens = [
            self.fusion[0](torch.cat((tokens[0], xs[1][:, 1:]), dim=1)),
            self.fusion[1](torch.cat((tokens[1], xs[0][:, 1:]), dim=1)),
        ]
        tokens = [self.revert_projs[0](tokens[0]), self.revert_projs[1](tokens[1])]
        return [torch.cat((token_B1D, x_BND[:, 1:]), dim=1) for token_B1D, x_BND in zip(tokens, xs)]  # noqa: B905


def _projection(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.GELU(), nn.Linear(width, out))


class CrossViT(ImageModel):
    """CrossViT for images of one size, img_size; features are lists with the tokens of both branches.

    Raises UsageError `bad_argument` for an unsuitable config.
    """

    if TYPE_CHECKING:
        config: CrossViTConfig
        blocks: nn.ModuleList
        head: nn.ModuleList
        norm: nn.ModuleList
        cls_token_0: nn.Parameter
        cls_token_1: nn.Parameter
        pos_embed_0: nn.Parameter
        pos_embed_1: nn.Parameter

    def __init__(self, cfg: CrossViTConfig):
        super().__init__()
        self.config = cfg = validate(cfg)
        self.num_classes = cfg.num_classes
        self.num_features = self.head_hidden_size = sum(cfg.embed_dim)
        self.global_pool = cfg.global_pool
        self.img_size = to_pair(cfg.img_size)
        self.crop_scale = cfg.crop_scale
        self.branch_sizes = branch_sizes(self.img_size, cfg)
        self.grids = [to_grid(size, patch) for size, patch in zip(self.branch_sizes, cfg.patch_size, strict=True)]
        for b, (rows, cols) in enumerate(self.grids):
            setattr(self, f"pos_embed_{b}", nn.Parameter(torch.zeros(1, 1 + rows * cols, cfg.embed_dim[b])))
            setattr(self, f"cls_token_{b}", nn.Parameter(torch.zeros(1, 1, cfg.embed_dim[b])))
        self.patch_embed = nn.ModuleList(
            PatchEmbed(size, patch, cfg.in_chans, dim, conv_stem(patch, cfg.in_chans, dim) if cfg.multi_conv else None)
            for size, patch, dim in zip(self.branch_sizes, cfg.patch_size, cfg.embed_dim, strict=True)
        )
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        steps = [max(depth[0], depth[1]) + depth[2] for depth in cfg.depth]
        rates = linear_rates(cfg.drop_path_rate, sum(steps))
        self.blocks = nn.ModuleList(
            MultiScaleBlock(cfg, depth, rates[sum(steps[:s]) : sum(steps[: s + 1])])
            for s, depth in enumerate(cfg.depth)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for dim in cfg.embed_dim)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = self.new_classifier(cfg.num_classes)
        self.feature_info = [
            FeatureEntry(num_chs=dim, reduction=round(patch / scale), module=f"blocks.{stage}")
            for dim, patch, scale in zip(cfg.embed_dim, cfg.patch_size, cfg.img_scale, strict=True)
            for stage in range(len(cfg.depth))
        ]
        self.default_out_indices = self.default_indices(len(cfg.depth))
        self._init_weights()

    def _init_weights(self) -> None:
        self.apply(init_linear)
        for name in sorted(self.no_weight_decay()):
            nn.init.trunc_normal_(self.get_parameter(name), std=0.02)

    def forward_stem(self, x: Tensor) -> list[Tensor]:
        """(B,C,H,W) normalized images of size img_size -> [(B,1+N_b,D_b)], the class token of each branch first."""
        check_image_size(x, self.img_size)
        tokens = [self.cls_token_0, self.cls_token_1]
        positions = [self.pos_embed_0, self.pos_embed_1]
        xs = []
        for b, embed in enumerate(self.patch_embed):
            x_BND = embed(fit_image(x, self.img_size, self.branch_sizes[b], self.crop_scale))
            x_BND = torch.cat((tokens[b].expand(x.shape[0], -1, -1), x_BND), dim=1) + positions[b]
            xs.append(self.pos_drop(x_BND))
        return xs

    def forward_norm(self, x: list[Tensor]) -> list[Tensor]:
        """Apply the final norm of each branch to its tokens: [(B,1+N_b,D_b)] -> the same shapes."""
        return [norm(x[b]) for b, norm in enumerate(self.norm)]

    def to_intermediate(self, x: list[Tensor], branch: int, output_fmt: str) -> Tensor:
        """[(B,1+N_b,D_b)] -> a (B,D_b,rows_b,cols_b) map or (B,N_b,D_b) patch tokens of the branch."""
        x_BND = x[branch][:, 1:]
        return tokens_to_map(x_BND, self.grids[branch]) if output_fmt == "NCHW" else x_BND

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(B,C,H,W) normalized images of size img_size -> [(B,1+N_b,D_b)] normed tokens of both branches."""
        xs = self.forward_stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            for block in self.blocks:
                xs = self.run_block(block, xs)
        else:
            for block in self.blocks:
                xs = block(xs)
        return self.forward_norm(xs)

    def forward_head(self, x: list[Tensor], pre_logits: bool = False) -> Tensor:
        """[(B,1+N_b,D_b)] -> (B,num_classes) logits, the mean of the branches' heads.

        With pre_logits or without heads, the (B,D_0+D_1) embeddings of the branches, concatenated.
        """
        pooled = [x_BND[:, 0] if self.global_pool == "token" else x_BND[:, 1:].mean(dim=1) for x_BND in x]
        pooled = [self.head_drop(x_BD) for x_BD in pooled]
        if pre_logits or self.num_classes == 0:
            return torch.cat(pooled, dim=1)
        return torch.stack([head(pooled[b]) for b, head in enumerate(self.head)]).mean(dim=0)

    def default_indices(self, depth: int) -> tuple[int, ...]:
        """Return the entries of the last of `depth` stages, one per branch."""
        return depth - 1, 2 * depth - 1

    def remove_norm(self) -> None:
        self.norm = nn.ModuleList(nn.Identity() for _ in BRANCHES).train(self.training)

    def pools(self) -> tuple[str, ...]:
        return POOLS

    def new_classifier(self, num_classes: int) -> nn.ModuleList:
        """Return a ModuleList with one head per branch."""
        like = next(self.parameters())
        heads = [new_head(dim, num_classes, like, self.training) for dim in self.config.embed_dim]
        return nn.ModuleList(heads).train(self.training)

    def no_weight_decay(self) -> set[str]:
        return {f"{name}_{b}" for name in ("cls_token", "pos_embed") for b in BRANCHES}

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        return LayerGroups(
            stem=r"^cls_token|pos_embed|patch_embed",
            blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],  # 99999 puts the norms into the last layer
        )

    def resample_state_dict(self, state: Mapping[str, Tensor], source: Sequence[int]) -> dict[str, Tensor]:
        """Resample the position embeddings of a checkpoint for `source` (height, width) pixels to this model's grids.

        The embedding of the class token, which is not on the grid, does not change. Raises UsageError `bad_argument`
        for a size that the patches do not divide, WeightsError `wrong_shape` for embeddings that do not belong to it.
        """
        resampled = dict(state)
        for b, size in enumerate(branch_sizes(to_pair(source, "source"), self.config, "source")):
            name = f"pos_embed_{b}"
            old, new = to_grid(size, self.config.patch_size[b]), self.grids[b]
            if old != new and name in state:
                patches = resample_tokens(state[name][:, 1:], 1, old, new)
                resampled[name] = torch.cat((state[name][:, :1], patches), dim=1)
        return resampled


def fit_image(image_BCHW: Tensor, size: Pair, target: Pair, crop: bool) -> Tensor:
    """Fit (B,C,H,W) images of `size` to the `target` size of a branch: unchanged, cropped to the center or resized.

    Sizes are (height, width). The resize is the reference's: bicubic, without antialiasing.
    """
    if size[0] == target[0] and size[1] == target[1]:
        return image_BCHW
    if crop and target[0] <= size[0] and target[1] <= size[1]:
        top, left = int(round((size[0] - target[0]) / 2)), int(round((size[1] - target[1]) / 2))  # noqa: RUF046
        return image_BCHW[:, :, top : top + target[0], left : left + target[1]]
    return F.interpolate(image_BCHW, size=target, mode="bicubic", align_corners=False)


CrossVit = CrossViT  # as timm spells it
