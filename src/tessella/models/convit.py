"""ConViT, after d'Ascoli et al. 2021 (arXiv:2103.10697).

Shape suffixes: B images, C color channels, H heads, N patches or tokens (row-major), D model width, d head width.
Module names are the published checkpoints' keys, so weights load without a rename table.
Note: the class token is added, without a position embedding, after the local blocks: blocks 0 to 9 of the published
models only see patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .base import FeatureEntry, ImageModel, LayerGroups
from .configs.convit import POOLS as POOLS
from .configs.convit import VARIANTS as VARIANTS
from .configs.convit import ConViTConfig as ConViTConfig
from .configs.convit import local_blocks, validate
from .configs.shared import Pair, linear_rates, to_grid, to_pair
from .layers import (
    Attention,
    PatchEmbed,
    PreNormBlock,
    at_least_float32,
    init_linear,
    resample_tokens,
    tokens_to_map,
)

torch.fx.wrap("at_least_float32")  # the wrapper at its definition is valid for that file only


def _global_block(cfg: ConViTConfig, width: int, drop_path: float) -> PreNormBlock:
    attn = Attention(width, cfg.num_heads, cfg.qkv_bias, cfg.attn_drop_rate, cfg.proj_drop_rate)
    return PreNormBlock(attn, width, cfg.mlp_ratio, cfg.proj_drop_rate, drop_path)


def relative_positions(grid: Pair) -> Tensor:
    """(N,N,3) int32 for a rows x cols grid: [i,j] is (dx, dy, dx*dx + dy*dy) in patches, from patch i to patch j."""
    rows, cols = grid
    patch_N = torch.arange(rows * cols, dtype=torch.int32)
    x_N, y_N = patch_N % cols, patch_N // cols
    dx_NN, dy_NN = x_N[None] - x_N[:, None], y_N[None] - y_N[:, None]
    return torch.stack((dx_NN, dy_NN, dx_NN**2 + dy_NN**2), dim=-1)


class GPSA(nn.Module):
    """Gated positional self-attention: each head blends attention by content and by position (section 3)."""

    def __init__(self, cfg: ConViTConfig):
        super().__init__()
        width = cfg.embed_dim * cfg.num_heads
        self.num_heads = cfg.num_heads
        self.scale = cfg.embed_dim**-0.5
        self.gating_param = nn.Parameter(torch.ones(cfg.num_heads))
        self.qk = nn.Linear(width, 2 * width, bias=cfg.qkv_bias)
        self.v = nn.Linear(width, width, bias=cfg.qkv_bias)
        self.attn_drop = nn.Dropout(cfg.attn_drop_rate)
        self.proj = nn.Linear(width, width)
        self.pos_proj = nn.Linear(3, cfg.num_heads)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x_BND: Tensor, rel_NN3: Tensor) -> Tensor:
        q_BHNd, k_BHNd = self.qk(x_BND).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        v_BHNd = self.v(x_BND).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        content_BHNN = (q_BHNd @ k_BHNd.transpose(-2, -1) * self.scale).softmax(-1)
        position_HNN = self.position_attention(rel_NN3).to(content_BHNN.dtype)
        gate_H11 = self.gating_param.sigmoid()[:, None, None]
        # The reference divides this by its row sums, which are 1, as those of both terms are: the division is omitted.
        attn_BHNN = self.attn_drop((1 - gate_H11) * content_BHNN + gate_H11 * position_HNN)
        return self.proj_drop(self.proj((attn_BHNN @ v_BHNd).transpose(1, 2).flatten(2)))

    def position_attention(self, rel_NN3: Tensor) -> Tensor:
        """(N,N,3) relative positions -> (H,N,N) attention by position, which is the same for all images.

        Computed in float32 or float64, and elementwise: under autocast, `Linear` would round squared distances to half
        precision.
        """
        dtype = at_least_float32(self.pos_proj.weight.dtype)
        by_x, by_y, by_distance = self.pos_proj.weight.to(dtype).T[:, :, None, None].unbind()
        dx_NN, dy_NN, distance_NN = rel_NN3.unbind(-1)
        bias_H11 = self.pos_proj.bias.to(dtype)[:, None, None]
        return (by_x * dx_NN + by_y * dy_NN + by_distance * distance_NN + bias_H11).softmax(-1)

    @torch.no_grad()
    def local_init(self, strength: float) -> None:
        """Initialize the heads as a K x K convolution, in which each head attends to another neighbor (equation 5).

        If the number of heads is not a square, those beyond K * K keep their random initialization.
        """
        nn.init.eye_(self.v.weight)
        side = math.isqrt(self.num_heads)
        center = (side - 1) / 2
        rows = [(2 * (h // side - center), 2 * (h % side - center), -1.0) for h in range(side * side)]
        self.pos_proj.weight[: side * side] = torch.tensor(rows)
        self.pos_proj.weight *= strength


class LocalBlock(PreNormBlock):
    """A block with GPSA, which also reads the relative positions of the patches: (B,N,D) -> (B,N,D)."""

    def __init__(self, cfg: ConViTConfig, width: int, drop_path: float):
        super().__init__(GPSA(cfg), width, cfg.mlp_ratio, cfg.proj_drop_rate, drop_path)
        self.reads_positions = True

    def forward(self, x_BND: Tensor, rel_NN3: Tensor) -> Tensor:  # type: ignore[override]
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND), rel_NN3))
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))


class ConViT(ImageModel):
    """ConViT for images of one size, img_size; features are tokens, the class token first.

    Raises UsageError `bad_argument` for an unsuitable config.
    """

    if TYPE_CHECKING:
        config: ConViTConfig
        blocks: nn.ModuleList
        cls_token: nn.Parameter | None
        pos_embed: nn.Parameter | None
        rel_pos: Tensor  # (N,N,3)

    def __init__(self, cfg: ConViTConfig):
        super().__init__()
        self.config = cfg = validate(cfg)
        self.num_classes = cfg.num_classes
        self.num_features = self.head_hidden_size = width = cfg.embed_dim * cfg.num_heads
        self.global_pool = cfg.global_pool
        self.num_local = local_blocks(cfg)
        patch_embed = PatchEmbed(to_pair(cfg.img_size), cfg.patch_size, cfg.in_chans, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patch_embed.num_patches, width)) if cfg.use_pos_embed else None
        # integers, so that casting the model to half precision cannot round them
        self.register_buffer("rel_pos", relative_positions(patch_embed.grid), persistent=False)
        self.patch_embed = patch_embed
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        self.blocks = nn.ModuleList(
            LocalBlock(cfg, width, rate) if i < self.num_local else _global_block(cfg, width, rate)
            for i, rate in enumerate(linear_rates(cfg.drop_path_rate, cfg.depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = nn.Linear(width, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.feature_info = [
            FeatureEntry(num_chs=width, reduction=cfg.patch_size, module=f"blocks.{i}") for i in range(cfg.depth)
        ]
        self.default_out_indices = self.default_indices(cfg.depth)
        self._init_weights()

    def _init_weights(self) -> None:
        self.apply(init_linear)
        for token in (self.cls_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for block in self.blocks:
            if isinstance(block.attn, GPSA):
                block.attn.local_init(self.config.locality_strength)

    def forward_stem(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images of size img_size -> (B,N,D), with a class token first if no block is local."""
        x_BND = self.patch_embed(x)
        x_BND = self.pos_drop(x_BND if self.pos_embed is None else x_BND + self.pos_embed)
        return self.join_class_token(x_BND) if self.num_local == 0 else x_BND

    def forward_block(self, index: int, x: Tensor) -> Tensor:
        """Run block `index` on (B,N,D) or (B,1+N,D) tokens; prepend the class token after the last local block."""
        context = (self.rel_pos,) if index < self.num_local else ()
        x_BND = self.run_block(self.blocks[index], x, *context)
        return self.join_class_token(x_BND) if index + 1 == self.num_local else x_BND

    def forward_norm(self, x: Tensor) -> Tensor:
        """Apply the final norm to (B,N,D) tokens."""
        return self.norm(x)

    def to_intermediate(self, x: Tensor, branch: int, output_fmt: str) -> Tensor:
        """(B,N,D) or (B,1+N,D) -> a (B,D,rows,cols) map or (B,N,D) patch tokens, without the class token."""
        x_BND = x[:, -self.patch_embed.num_patches :]
        return tokens_to_map(x_BND, self.patch_embed.grid) if output_fmt == "NCHW" else x_BND

    def join_class_token(self, x_BND: Tensor) -> Tensor:
        """(B,N,D) -> (B,1+N,D), with the class token first; unchanged if it was pruned."""
        if self.cls_token is None:
            return x_BND
        return torch.cat((self.cls_token.expand(x_BND.shape[0], -1, -1), x_BND), dim=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images of size img_size -> (B,1+N,D) normed tokens, the class token first."""
        x_BND = self.forward_stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            for i in range(len(self.blocks)):
                x_BND = self.forward_block(i, x_BND)
            return self.norm(x_BND)
        for i, block in enumerate(self.blocks):
            if hasattr(block, "reads_positions"):  # TorchScript evaluates this at compile time
                x_BND = block(x_BND, self.rel_pos)
            else:
                x_BND = block(x_BND)
            if i + 1 == self.num_local:
                x_BND = self.join_class_token(x_BND)
        return self.norm(x_BND)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B,1+N,D) tokens -> (B,num_classes) logits; with pre_logits, the (B,D) embedding that the head reads."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            first = 0 if self.cls_token is None else 1
            x = x[:, first:].mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As `ImageModel.prune_intermediate_layers`; without a head and global blocks, remove the class token too."""
        picked = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.num_local = min(self.num_local, len(self.blocks))
        if prune_head and len(self.blocks) == self.num_local:
            self.cls_token = None
        return picked

    def pools(self) -> tuple[str, ...]:
        return POOLS if self.cls_token is not None else POOLS[1:]

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        return LayerGroups(
            stem=r"^cls_token|pos_embed|patch_embed",
            blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],  # 99999 puts the norm into the last layer
        )

    def resample_state_dict(self, state: Mapping[str, Tensor], source: Sequence[int]) -> dict[str, Tensor]:
        """Resample the position embedding of a checkpoint for `source` (height, width) pixels to this model's grid.

        Raises UsageError `bad_argument` for a size that the patches do not divide, WeightsError `wrong_shape` for an
        embedding that does not belong to `source`.
        """
        old, new = to_grid(to_pair(source, "source"), self.config.patch_size, "source"), self.patch_embed.grid
        resampled = dict(state)
        if old != new and "pos_embed" in state:
            resampled["pos_embed"] = resample_tokens(state["pos_embed"], 1, old, new)
        return resampled


ConVit = ConViT  # as timm spells it
