"""Models that mix patches with linear layers across positions: one model class with four kinds of blocks.

mixer   MLP-Mixer, Tolstikhin et al. 2021 (arXiv:2105.01601)
gmixer  MLP-Mixer with gated MLPs (the gates of arXiv:2002.05202), an experiment published with timm
resmlp  ResMLP, Touvron et al. 2021 (arXiv:2105.03404)
gmlp    gMLP, Liu et al. 2021 (arXiv:2105.08050)

Shape suffixes: B images, C color channels, H W pixels, N patches (row-major over the grid), D model width,
E hidden units, K classes. Module names are the published checkpoints' keys, so weights load without a rename table.
Note: token mixing has weights per patch position, so a model reads images of one size only;
`MlpMixer.resample_state_dict` adapts trained weights to another size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .base import FeatureEntry, ImageModel, LayerGroups
from .configs.mixer import POOLS as POOLS
from .configs.mixer import VARIANTS as VARIANTS
from .configs.mixer import MixerConfig as MixerConfig
from .configs.mixer import hidden_widths, validate
from .configs.shared import linear_rates, to_grid, to_pair
from .layers import DropPath, Mlp, PatchEmbed, resample_tokens, tokens_to_map


class Affine(nn.Module):
    """A scale and a shift per channel instead of a norm, without statistics: (B,N,D) -> (B,N,D)."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x_BND)


def new_norm(cfg: MixerConfig) -> nn.Module:
    """Return a norm of this kind of model: an Affine for resmlp, else a LayerNorm."""
    return Affine(cfg.embed_dim) if cfg.kind == "resmlp" else nn.LayerNorm(cfg.embed_dim, eps=1e-6)


class GluMlp(nn.Module):
    """A gated MLP: (..., D) -> (..., D). Unlike in most SwiGLU code, the gate is the second half of the units."""

    def __init__(self, width: int, hidden: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.SiLU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden // 2, width)
        self.drop2 = nn.Dropout(drop)

    def init_gate(self) -> None:
        """Initialize the gate to the same value for every input."""
        half = self.fc2.in_features
        nn.init.normal_(self.fc1.weight[half:], std=1e-6)
        nn.init.ones_(self.fc1.bias[half:])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.drop2(self.fc2(self.drop1(value * self.act(gate))))


class SpatialGatingUnit(nn.Module):
    """Gate one half of the channels with the other, which is mixed across patches: (B,N,E) -> (B,N,E/2)."""

    def __init__(self, width: int, num_patches: int):
        super().__init__()
        self.norm = nn.LayerNorm(width // 2)  # eps 1e-5 in the published weights, unlike every other norm here
        self.proj = nn.Linear(num_patches, num_patches)

    def init_gate(self) -> None:
        """Initialize the gate to 1, which has no effect."""
        nn.init.normal_(self.proj.weight, std=1e-6)
        nn.init.ones_(self.proj.bias)

    def forward(self, x_BNE: Tensor) -> Tensor:
        value, gate = x_BNE.chunk(2, dim=-1)
        return value * self.proj(self.norm(gate).transpose(1, 2)).transpose(1, 2)


class GatedMlp(nn.Module):
    """The MLP of gMLP: (B,N,D) -> (B,N,D) with a spatial gate between its two layers."""

    def __init__(self, width: int, hidden: int, num_patches: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.gate: nn.Module = SpatialGatingUnit(hidden, num_patches)
        self.fc2 = nn.Linear(hidden // 2, width)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.gate(self.drop1(self.act(self.fc1(x_BND))))))


class MixerBlock(nn.Module):
    """A block of Mixer or gMixer: an MLP across patches, then one across channels; the MLPs of gMixer are gated."""

    def __init__(self, cfg: MixerConfig, num_patches: int, drop_path: float):
        super().__init__()
        mlp = GluMlp if cfg.kind == "gmixer" else Mlp
        tokens_hidden, channels_hidden = hidden_widths(cfg)
        self.norm1 = new_norm(cfg)
        self.mlp_tokens = mlp(num_patches, tokens_hidden, drop=cfg.proj_drop_rate)
        self.norm2 = new_norm(cfg)
        self.mlp_channels = mlp(cfg.embed_dim, channels_hidden, drop=cfg.proj_drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        mixed_BDN = self.mlp_tokens(self.norm1(x_BND).transpose(1, 2))
        x_BND = x_BND + self.drop_path(mixed_BDN.transpose(1, 2))
        return x_BND + self.drop_path(self.mlp_channels(self.norm2(x_BND)))


class ResBlock(nn.Module):
    """A block of ResMLP: one linear layer across patches, an MLP across channels, both branches scaled."""

    def __init__(self, cfg: MixerConfig, num_patches: int, drop_path: float):
        super().__init__()
        self.norm1 = new_norm(cfg)
        self.linear_tokens = nn.Linear(num_patches, num_patches)
        self.norm2 = new_norm(cfg)
        self.mlp_channels = Mlp(cfg.embed_dim, hidden_widths(cfg)[1], drop=cfg.proj_drop_rate)
        self.ls1 = nn.Parameter(torch.full((cfg.embed_dim,), cfg.init_values))
        self.ls2 = nn.Parameter(torch.full((cfg.embed_dim,), cfg.init_values))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        mixed_BDN = self.linear_tokens(self.norm1(x_BND).transpose(1, 2))
        x_BND = x_BND + self.drop_path(self.ls1 * mixed_BDN.transpose(1, 2))
        return x_BND + self.drop_path(self.ls2 * self.mlp_channels(self.norm2(x_BND)))


class SpatialGatingBlock(nn.Module):
    """A block of gMLP: a single MLP whose gate mixes across patches."""

    def __init__(self, cfg: MixerConfig, num_patches: int, drop_path: float):
        super().__init__()
        self.norm = new_norm(cfg)
        self.mlp_channels = GatedMlp(cfg.embed_dim, hidden_widths(cfg)[1], num_patches, drop=cfg.proj_drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND + self.drop_path(self.mlp_channels(self.norm(x_BND)))


BLOCKS: dict[str, type[MixerBlock] | type[ResBlock] | type[SpatialGatingBlock]] = {
    "mixer": MixerBlock,
    "gmixer": MixerBlock,
    "resmlp": ResBlock,
    "gmlp": SpatialGatingBlock,
}


class MlpMixer(ImageModel):
    """MLP-Mixer, gMixer, ResMLP or gMLP for images of one size, img_size; features are tokens.

    Raises UsageError `bad_argument` for an unsuitable config.
    """

    if TYPE_CHECKING:
        config: MixerConfig
        blocks: nn.Sequential
        stem: PatchEmbed

    def __init__(self, cfg: MixerConfig):
        super().__init__()
        self.config = cfg = validate(cfg)
        self.num_classes = cfg.num_classes
        self.num_features = self.head_hidden_size = cfg.embed_dim
        self.global_pool = cfg.global_pool
        self.stem = PatchEmbed(
            to_pair(cfg.img_size),
            cfg.patch_size,
            cfg.in_chans,
            cfg.embed_dim,
            norm=new_norm(cfg) if cfg.stem_norm else None,
        )
        # the authors of ResMLP use one rate for all blocks, those of Mixer a rate that grows with depth
        constant = [cfg.drop_path_rate] * cfg.num_blocks
        rates = constant if cfg.kind == "resmlp" else linear_rates(cfg.drop_path_rate, cfg.num_blocks)
        self.blocks = nn.Sequential(*[BLOCKS[cfg.kind](cfg, self.stem.num_patches, rate) for rate in rates])
        self.norm = new_norm(cfg)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = nn.Linear(cfg.embed_dim, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.feature_info = [
            FeatureEntry(num_chs=cfg.embed_dim, reduction=cfg.patch_size, module=f"blocks.{i}")
            for i in range(cfg.num_blocks)
        ]
        self.default_out_indices = self.default_indices(cfg.num_blocks)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Initialize as the authors of Mixer do: Xavier for the MLPs, LeCun for the stem, zero for the head."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.normal_(module.bias, std=0.0 if name.endswith("linear_tokens") else 1e-6)
            elif isinstance(module, nn.Conv2d):
                # 0.8796 is the standard deviation of a unit normal cut off at +-2
                std = module.weight[0].numel() ** -0.5 / 0.87962566
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, GluMlp | SpatialGatingUnit):
                module.init_gate()
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, -math.log(self.num_classes) if self.config.nlhb else 0.0)

    def forward_stem(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images of size img_size -> (B,N,D) tokens."""
        return self.stem(x)

    def forward_norm(self, x: Tensor) -> Tensor:
        """Apply the final norm to (B,N,D) tokens."""
        return self.norm(x)

    def to_intermediate(self, x: Tensor, branch: int, output_fmt: str) -> Tensor:
        """(B,N,D) -> a (B,D,rows,cols) map, or the tokens themselves."""
        return tokens_to_map(x, self.stem.grid) if output_fmt == "NCHW" else x

    def forward_features(self, x: Tensor) -> Tensor:
        """(B,C,H,W) normalized images of size img_size -> (B,N,D) tokens after the final norm."""
        x = self.forward_stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            for block in self.blocks:
                x = self.run_block(block, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B,N,D) -> (B,K) logits; with pre_logits, the pooled (B,D) embedding. Without pooling, both are per token."""
        x = self.head_drop(x.mean(dim=1) if self.global_pool != "" else x)
        return x if pre_logits else self.head(x)

    def pools(self) -> tuple[str, ...]:
        return POOLS

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        # 99999, which is larger than every block number, puts the final norm into the last block
        return LayerGroups(stem=r"^stem", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    def no_weight_decay(self) -> set[str]:
        """Return the names of ResMLP's alpha and beta, which are one-dimensional in the authors' code.

        In the published files they have the shape (1,1,D). timm applies weight decay to them, as it decides by the
        number of dimensions.
        """
        return {name for name, _ in self.named_parameters() if name.endswith((".alpha", ".beta"))}

    def resample_state_dict(self, state: Mapping[str, Tensor], source: Sequence[int]) -> dict[str, Tensor]:
        """Resample the weights per patch of a checkpoint for `source` (height, width) pixels to this model's grid.

        Axes over positions are resampled as images over the grid. A weight that sums over N positions is also scaled by
        N_source / N_target, so that the sum over a smooth signal does not change. Raises UsageError `bad_argument` for
        a size that the patches do not divide, WeightsError `wrong_shape` for a state of another size than `source`.
        """
        old, new = to_grid(to_pair(source, "source"), self.config.patch_size, "source"), self.stem.grid
        if old == new:
            return dict(state)
        scale = (old[0] * old[1]) / (new[0] * new[1])
        resampled = dict(state)
        for name, weight in state.items():
            if name.endswith(SUMS_OVER_N):
                weight = resample_tokens(weight, 1, old, new) * scale
            if name.endswith(INDEXED_BY_N):
                weight = resample_tokens(weight, 0, old, new)
            resampled[name] = weight
        return resampled


SUMS_OVER_N = ("mlp_tokens.fc1.weight", "linear_tokens.weight", "gate.proj.weight")  # (.., N)
INDEXED_BY_N = (  # (N, ..)
    *("mlp_tokens.fc2.weight", "linear_tokens.weight", "gate.proj.weight"),
    *("mlp_tokens.fc2.bias", "linear_tokens.bias", "gate.proj.bias"),
)
