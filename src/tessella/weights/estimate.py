"""The cost of a model as its config determines it: the figures that `counting` gets from PyTorch, without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..models.configs import FamilyConfig, embedding_width, image_size
from ..models.configs.convit import ConViTConfig, local_blocks
from ..models.configs.convmixer import ConvMixerConfig
from ..models.configs.crossvit import BRANCHES, STEMS, CrossViTConfig, branch_sizes, stem_widths
from ..models.configs.mixer import MixerConfig, hidden_widths
from ..models.configs.shared import Pair, hidden_units, to_grid, to_pair
from ..models.layout import parameter_count, state_layout
from .costs import ModelFacts


@dataclass
class _Tally:
    """The operations of one forward pass with one image, counted as in `counting`."""

    macs: int = 0
    activations: int = 0
    same_macs: int = 0  # of convolutions with padding="same", which are part of the others
    same_activations: int = 0
    norm_work: int = 0

    def product(self, outputs: int, depth: int) -> None:
        """Count `outputs` numbers that are each the sum of `depth` products."""
        self.macs += outputs * depth
        self.activations += outputs

    def linear(self, tokens: int, width: int, out: int) -> None:
        self.product(tokens * out, width)

    def mlp(self, tokens: int, width: int, hidden: int, gated: bool = False) -> None:
        """Count an MLP; in a gated one, half of the hidden units multiply the others."""
        self.linear(tokens, width, hidden)
        self.linear(tokens, hidden // 2 if gated else hidden, width)

    def attend(self, queries: int, keys: int, width: int, heads: int) -> None:
        """Count the products of attention with all heads, which together have `width` channels."""
        self.product(heads * queries * keys, width // heads)
        self.product(queries * width, keys)

    def layer_norm(self, tokens: int, width: int) -> None:
        self.norm_work += 5 * tokens * width

    def batch_norm(self, positions: int, width: int) -> None:
        self.norm_work += 2 * positions * width

    def attention_block(self, tokens: int, width: int, heads: int, hidden: int) -> None:
        """Count attention and an MLP, each with a norm before it."""
        self.layer_norm(2 * tokens, width)
        self.linear(tokens, width, 3 * width)
        self.attend(tokens, tokens, width, heads)
        self.linear(tokens, width, width)
        self.mlp(tokens, width, hidden)


def estimate(config: FamilyConfig, size: Pair) -> ModelFacts:
    """Return the row of the table of costs for a model with this config.

    size: (height, width) in pixels of an image for a model that accepts any size.
    Raises UsageError `wrong_input_size` for an image that is smaller than a patch.
    """
    size = image_size(config) or size
    tally = _Tally()
    if isinstance(config, ConvMixerConfig):
        _convmixer(tally, config, size)
    elif isinstance(config, ConViTConfig):
        _convit(tally, config)
    elif isinstance(config, MixerConfig):
        _mixer(tally, config)
    else:
        _crossvit(tally, config)
    return ModelFacts(
        input_size=[config.in_chans, *size],
        num_classes=config.num_classes,
        embedding_width=embedding_width(config),
        params=parameter_count(state_layout(config)),
        macs=tally.macs,
        activations=tally.activations,
        card_macs=tally.macs - tally.same_macs + tally.norm_work,
        card_activations=tally.activations - tally.same_activations,
    )


def _convmixer(tally: _Tally, cfg: ConvMixerConfig, size: Pair) -> None:
    if min(size) < cfg.patch_size:
        raise UsageError(
            "wrong_input_size", f"got {size[0]}x{size[1]} px images, smaller than one {cfg.patch_size} px patch"
        )
    positions = (size[0] // cfg.patch_size) * (size[1] // cfg.patch_size)
    tally.product(positions * cfg.dim, cfg.in_chans * cfg.patch_size**2)
    tally.batch_norm(positions, cfg.dim)
    for _ in range(cfg.depth):
        tally.product(positions * cfg.dim, cfg.kernel_size**2)
        tally.same_macs += positions * cfg.dim * cfg.kernel_size**2
        tally.same_activations += positions * cfg.dim
        tally.linear(positions, cfg.dim, cfg.dim)
        tally.batch_norm(2 * positions, cfg.dim)
    tally.linear(1 if cfg.global_pool else positions, embedding_width(cfg), cfg.num_classes)


def _patches(tally: _Tally, img_size: int | Sequence[int], patch_size: int, in_chans: int, width: int) -> int:
    """Count the projection of the patches and return their number."""
    rows, columns = to_grid(to_pair(img_size), patch_size)
    tally.product(rows * columns * width, in_chans * patch_size**2)
    return rows * columns


def _convit(tally: _Tally, cfg: ConViTConfig) -> None:
    width = cfg.embed_dim * cfg.num_heads
    hidden = hidden_units(width, cfg.mlp_ratio)
    patches = _patches(tally, cfg.img_size, cfg.patch_size, cfg.in_chans, width)
    local = local_blocks(cfg)
    for _ in range(local):
        tally.attention_block(patches, width, cfg.num_heads, hidden)
        tally.product(cfg.num_heads * patches**2, 3)  # attention by position, counted as a linear layer
    for _ in range(cfg.depth - local):
        tally.attention_block(patches + 1, width, cfg.num_heads, hidden)
    tally.layer_norm(patches + 1, width)
    tally.linear(1 if cfg.global_pool else patches + 1, width, cfg.num_classes)


def _mixer(tally: _Tally, cfg: MixerConfig) -> None:
    width = cfg.embed_dim
    tokens, channels = hidden_widths(cfg)
    patches = _patches(tally, cfg.img_size, cfg.patch_size, cfg.in_chans, width)
    gated = cfg.kind == "gmixer"
    norms = int(cfg.stem_norm) + 1
    for _ in range(cfg.num_blocks):
        if cfg.kind == "gmlp":
            norms += 1
            tally.linear(patches, width, channels)
            tally.layer_norm(patches, channels // 2)
            tally.linear(channels // 2, patches, patches)
            tally.linear(patches, channels // 2, width)
            continue
        norms += 2
        if cfg.kind == "resmlp":
            tally.linear(width, patches, patches)
        else:
            tally.mlp(width, patches, tokens, gated)
        tally.mlp(patches, width, channels, gated)
    if cfg.kind != "resmlp":  # which has a scale and a shift instead
        tally.layer_norm(norms * patches, width)
    tally.linear(1 if cfg.global_pool else patches, width, cfg.num_classes)


def _conv_stem(tally: _Tally, cfg: CrossViTConfig, size: Pair, branch: int) -> None:
    patch = cfg.patch_size[branch]
    widths = stem_widths(patch, cfg.in_chans, cfg.embed_dim[branch])
    for i, (kernel, stride, padding) in enumerate(STEMS[patch]):
        size = tuple((side + 2 * padding - kernel) // stride + 1 for side in size)  # type: ignore[assignment]
        tally.product(size[0] * size[1] * widths[i + 1], widths[i] * kernel**2)


def _fusion(tally: _Tally, tokens: int, width: int, heads: int) -> None:
    """Count a block in which the first token attends to all."""
    tally.layer_norm(tokens, width)
    tally.linear(2 * tokens + 1, width, width)
    tally.attend(1, tokens, width, heads)
    tally.linear(1, width, width)


def _crossvit(tally: _Tally, cfg: CrossViTConfig) -> None:
    dims, heads, tokens = cfg.embed_dim, cfg.num_heads, []
    for b, size in enumerate(branch_sizes(to_pair(cfg.img_size), cfg)):
        rows, columns = to_grid(size, cfg.patch_size[b])
        tokens.append(rows * columns + 1)
        if cfg.multi_conv:
            _conv_stem(tally, cfg, size, b)
        else:
            _patches(tally, size, cfg.patch_size[b], cfg.in_chans, dims[b])
    for depth in cfg.depth:
        for b in BRANCHES:
            other = 1 - b
            for _ in range(depth[b]):
                tally.attention_block(tokens[b], dims[b], heads[b], hidden_units(dims[b], cfg.mlp_ratio[b]))
            tally.layer_norm(1, dims[b])
            tally.linear(1, dims[b], dims[other])
            _fusion(tally, tokens[other], dims[other], heads[other])
            for _ in range(depth[2] - 1):  # the first one leaves only the class token
                _fusion(tally, 1, dims[other], heads[other])
            tally.layer_norm(1, dims[other])
            tally.linear(1, dims[other], dims[b])
    for b in BRANCHES:
        tally.layer_norm(tokens[b], dims[b])
        tally.linear(1, dims[b], cfg.num_classes)
