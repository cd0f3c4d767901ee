"""The tensors of a model by name, as its config determines them, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .configs import FamilyConfig
from .configs.convit import ConViTConfig, local_blocks
from .configs.convmixer import ConvMixerConfig, embedding_width
from .configs.crossvit import BRANCHES, STEMS, CrossViTConfig, branch_sizes, stem_widths
from .configs.mixer import MixerConfig, hidden_widths
from .configs.shared import hidden_units, to_grid, to_pair

Shape = tuple[int, ...]


class TensorKind(NamedTuple):
    """The shape of a tensor and the name of its type, "float32" or "int64"."""

    shape: Shape
    dtype: str = "float32"


Entries = Iterator[tuple[str, TensorKind]]


def state_layout(config: FamilyConfig) -> dict[str, TensorKind]:
    """Return shape and type of every tensor in the state dict of the model with this config, in its order.

    config: one that `configure` or `validate` returned, or the config of a model.
    """
    if isinstance(config, ConvMixerConfig):
        return dict(_convmixer(config))
    if isinstance(config, ConViTConfig):
        return dict(_convit(config))
    if isinstance(config, MixerConfig):
        return dict(_mixer(config))
    return dict(_crossvit(config))


def parameter_count(layout: dict[str, TensorKind]) -> int:
    """Return the number of trained numbers of a model with this layout, without the statistics of batch norms."""
    total = 0
    for name, (shape, _) in layout.items():
        if not name.endswith(STATISTICS):
            count = 1
            for side in shape:
                count *= side
            total += count
    return total


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms, which are not trained


def _weight(name: str, *shape: int, bias: bool = True) -> Entries:
    """Yield the weight of a layer and its bias, which has one number per output, the first axis of the weight."""
    yield f"{name}.weight", TensorKind(shape)
    if bias:
        yield f"{name}.bias", TensorKind(shape[:1])


def _batch_norm(name: str, width: int) -> Entries:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", TensorKind((width,))
    yield f"{name}.num_batches_tracked", TensorKind((), "int64")


def _mlp(name: str, width: int, hidden: int, *, gated: bool = False) -> Entries:
    """Yield the two layers of an MLP; in a gated one, half of the hidden units are the gate."""
    yield from _weight(f"{name}.fc1", hidden, width)
    yield from _weight(f"{name}.fc2", width, hidden // 2 if gated else hidden)


def _convmixer(cfg: ConvMixerConfig) -> Entries:
    yield from _weight("stem.0", cfg.dim, cfg.in_chans, cfg.patch_size, cfg.patch_size)
    yield from _batch_norm("stem.2", cfg.dim)
    for i in range(cfg.depth):
        block = f"blocks.{i}"
        yield from _weight(f"{block}.0.fn.0", cfg.dim, 1, cfg.kernel_size, cfg.kernel_size)
        yield from _batch_norm(f"{block}.0.fn.2", cfg.dim)
        yield from _weight(f"{block}.1", cfg.dim, cfg.dim, 1, 1)
        yield from _batch_norm(f"{block}.3", cfg.dim)
    if cfg.num_classes:
        yield from _weight("head", cfg.num_classes, embedding_width(cfg))


def _attention_block(block: str, width: int, hidden: int, qkv_bias: bool) -> Entries:
    yield from _weight(f"{block}.norm1", width)
    yield from _weight(f"{block}.attn.qkv", 3 * width, width, bias=qkv_bias)
    yield from _weight(f"{block}.attn.proj", width, width)
    yield from _weight(f"{block}.norm2", width)
    yield from _mlp(f"{block}.mlp", width, hidden)


def _local_block(block: str, cfg: ConViTConfig, width: int, hidden: int) -> Entries:
    yield from _weight(f"{block}.norm1", width)
    yield f"{block}.attn.gating_param", TensorKind((cfg.num_heads,))
    yield from _weight(f"{block}.attn.qk", 2 * width, width, bias=cfg.qkv_bias)
    yield from _weight(f"{block}.attn.v", width, width, bias=cfg.qkv_bias)
    yield from _weight(f"{block}.attn.proj", width, width)
    yield from _weight(f"{block}.attn.pos_proj", cfg.num_heads, 3)
    yield from _weight(f"{block}.norm2", width)
    yield from _mlp(f"{block}.mlp", width, hidden)


def _convit(cfg: ConViTConfig) -> Entries:
    width = cfg.embed_dim * cfg.num_heads
    hidden = hidden_units(width, cfg.mlp_ratio)
    rows, columns = to_grid(to_pair(cfg.img_size), cfg.patch_size)
    yield "cls_token", TensorKind((1, 1, width))
    if cfg.use_pos_embed:
        yield "pos_embed", TensorKind((1, rows * columns, width))
    yield from _weight("patch_embed.proj", width, cfg.in_chans, cfg.patch_size, cfg.patch_size)
    for i in range(cfg.depth):
        if i < local_blocks(cfg):
            yield from _local_block(f"blocks.{i}", cfg, width, hidden)
        else:
            yield from _attention_block(f"blocks.{i}", width, hidden, cfg.qkv_bias)
    yield from _weight("norm", width)
    if cfg.num_classes:
        yield from _weight("head", cfg.num_classes, width)


def _mixer_norm(name: str, cfg: MixerConfig) -> Entries:
    if cfg.kind == "resmlp":
        yield f"{name}.alpha", TensorKind((1, 1, cfg.embed_dim))
        yield f"{name}.beta", TensorKind((1, 1, cfg.embed_dim))
    else:
        yield from _weight(name, cfg.embed_dim)


def _mixer_block(block: str, cfg: MixerConfig, patches: int) -> Entries:
    tokens, channels = hidden_widths(cfg)
    gated = cfg.kind == "gmixer"
    if cfg.kind == "gmlp":
        yield from _mixer_norm(f"{block}.norm", cfg)
        yield from _weight(f"{block}.mlp_channels.fc1", channels, cfg.embed_dim)
        yield from _weight(f"{block}.mlp_channels.gate.norm", channels // 2)
        yield from _weight(f"{block}.mlp_channels.gate.proj", patches, patches)
        yield from _weight(f"{block}.mlp_channels.fc2", cfg.embed_dim, channels // 2)
        return
    if cfg.kind == "resmlp":
        yield f"{block}.ls1", TensorKind((cfg.embed_dim,))
        yield f"{block}.ls2", TensorKind((cfg.embed_dim,))
    yield from _mixer_norm(f"{block}.norm1", cfg)
    if cfg.kind == "resmlp":
        yield from _weight(f"{block}.linear_tokens", patches, patches)
    else:
        yield from _mlp(f"{block}.mlp_tokens", patches, tokens, gated=gated)
    yield from _mixer_norm(f"{block}.norm2", cfg)
    yield from _mlp(f"{block}.mlp_channels", cfg.embed_dim, channels, gated=gated)


def _mixer(cfg: MixerConfig) -> Entries:
    rows, columns = to_grid(to_pair(cfg.img_size), cfg.patch_size)
    yield from _weight("stem.proj", cfg.embed_dim, cfg.in_chans, cfg.patch_size, cfg.patch_size)
    if cfg.stem_norm:
        yield from _mixer_norm("stem.norm", cfg)
    for i in range(cfg.num_blocks):
        yield from _mixer_block(f"blocks.{i}", cfg, rows * columns)
    yield from _mixer_norm("norm", cfg)
    if cfg.num_classes:
        yield from _weight("head", cfg.num_classes, cfg.embed_dim)


def _projection(name: str, width: int, out: int) -> Entries:
    yield from _weight(f"{name}.0", width)
    yield from _weight(f"{name}.2", out, width)


def _stage(stage: str, cfg: CrossViTConfig, depth: Shape) -> Entries:
    dims = cfg.embed_dim
    for b in BRANCHES:
        hidden = hidden_units(dims[b], cfg.mlp_ratio[b])
        for i in range(depth[b]):
            yield from _attention_block(f"{stage}.blocks.{b}.{i}", dims[b], hidden, cfg.qkv_bias)
    for b in BRANCHES:
        yield from _projection(f"{stage}.projs.{b}", dims[b], dims[1 - b])
    for b in BRANCHES:  # the class token of branch b attends to the patches of the other one, in that one's width
        width = dims[1 - b]
        for name in (f".{i}" for i in range(depth[2])) if depth[2] else ("",):
            fusion = f"{stage}.fusion.{b}{name}"
            yield from _weight(f"{fusion}.norm1", width)
            for part in ("wq", "wk", "wv"):
                yield from _weight(f"{fusion}.attn.{part}", width, width, bias=cfg.qkv_bias)
            yield from _weight(f"{fusion}.attn.proj", width, width)
    for b in BRANCHES:
        yield from _projection(f"{stage}.revert_projs.{b}", dims[1 - b], dims[b])


def _crossvit(cfg: CrossViTConfig) -> Entries:
    sizes = branch_sizes(to_pair(cfg.img_size), cfg)
    for b in BRANCHES:
        rows, columns = to_grid(sizes[b], cfg.patch_size[b])
        yield f"pos_embed_{b}", TensorKind((1, 1 + rows * columns, cfg.embed_dim[b]))
        yield f"cls_token_{b}", TensorKind((1, 1, cfg.embed_dim[b]))
    for b in BRANCHES:
        patch, width = cfg.patch_size[b], cfg.embed_dim[b]
        if cfg.multi_conv:
            widths = stem_widths(patch, cfg.in_chans, width)
            for i, (kernel, _, _) in enumerate(STEMS[patch]):  # an activation follows each convolution
                yield from _weight(f"patch_embed.{b}.proj.{2 * i}", widths[i + 1], widths[i], kernel, kernel)
        else:
            yield from _weight(f"patch_embed.{b}.proj", width, cfg.in_chans, patch, patch)
    for stage, depth in enumerate(cfg.depth):
        yield from _stage(f"blocks.{stage}", cfg, tuple(depth))
    for b in BRANCHES:
        yield from _weight(f"norm.{b}", cfg.embed_dim[b])
    if cfg.num_classes:
        for b in BRANCHES:
            yield from _weight(f"head.{b}", cfg.num_classes, cfg.embed_dim[b])
