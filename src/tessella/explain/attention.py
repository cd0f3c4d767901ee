"""Gradient-weighted attention of ConViT and CrossViT, after Chefer et al. 2021 (arXiv:2103.15679).

The relevance of every token to every other one starts as the identity. An attention layer adds, to the relevance of a
token that attends, the relevance of the tokens it attends to, weighted by its attention times the gradient of the score
with respect to it: the positive part, averaged over the heads. The map is the row of the class token in the end.

ConViT: the class token joins after the local blocks, so until then only patches exchange relevance; the attention of a
local block is the gated sum of its attention by content and by position. CrossViT: the tokens of both branches are one
set; a fusion lets the class token of one branch attend to the patches of the other. The relevance for the head of each
branch is computed with the gradient of that head's score.

Shape suffixes: B images, C channels, H W pixels, h heads, N tokens, d head width, K classes; b is a branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models.base import ImageModel
from ..models.convit import ConViT
from ..models.crossvit import BRANCHES, CrossViT, MultiScaleBlock
from .attention_weights import attend, attention_modules
from .grad_cam import class_score, sum_branches, to_array
from .ledger import BEST_METHOD
from .maps import AttributionMap


@dataclass(frozen=True)
class AttentionStep:
    """One attention layer: the module, the tokens that attend, and the tokens they attend to, by number."""

    module: nn.Module
    queries: Tensor  # (queries,) int64
    keys: Tensor  # (keys,) int64


def attention_map(model: ImageModel, x_1CHW: Tensor, target: int, versus: int | None = None) -> AttributionMap:
    """Return the gradient-weighted attention of a class's score to the patches of one image.

    x_1CHW: one normalized image (1,C,H,W) of the model's size. versus: explain the difference to this class's logit.
    For CrossViT, `parts` has the patches of each branch on its own grid, and the values are their sum on the finer one;
    the relevance for the head of each branch is scaled to that head's share of the score, which is in `shares`. Values
    are not negative, except where a head of CrossViT contradicts the class.
    Raises UsageError `bad_argument` for other models, unknown classes, and models without a classifier.
    """
    if isinstance(model, ConViT):
        return _convit_map(model, x_1CHW, target, versus)
    if isinstance(model, CrossViT):
        return _crossvit_map(model, x_1CHW, target, versus)
    raise UsageError("bad_argument", f"{type(model).__name__} has no attention", hint=BEST_METHOD)


def _convit_map(model: ConViT, x_1CHW: Tensor, target: int, versus: int | None) -> AttributionMap:
    with torch.enable_grad(), recorded_attention(model) as recorded:
        score = class_score(model(x_1CHW), target, versus).sum()
    patches = model.patch_embed.num_patches
    steps = convit_steps(model)
    first = 0 if model.cls_token is None else 1
    start = torch.zeros(first + patches, device=score.device)
    if model.global_pool == "token":
        start[0] = 1
    else:
        start[first:] = 1 / patches
    row = trace_back(start, steps, weighted_attention(score, steps, recorded))
    return AttributionMap(to_array(row[first:].reshape(model.patch_embed.grid)), "attention")


def _crossvit_map(model: CrossViT, x_1CHW: Tensor, target: int, versus: int | None) -> AttributionMap:
    with torch.enable_grad(), recorded_attention(model) as recorded:
        features = model.forward_features(x_1CHW)
        logits = branch_logits(model, features)
        scores = [class_score(logits_BK, target, versus).sum() for logits_BK in logits]
    shares = branch_shares(logits, target, versus)
    steps = crossvit_steps(model)
    tokens = [1 + rows * columns for rows, columns in model.grids]
    total = torch.zeros(sum(tokens), device=x_1CHW.device)
    for b in BRANCHES:
        start = torch.zeros(sum(tokens), device=x_1CHW.device)
        own = slice(sum(tokens[:b]), sum(tokens[:b]) + tokens[b])
        if model.global_pool == "token":
            start[own.start] = 1
        else:
            start[own.start + 1 : own.stop] = 1 / (tokens[b] - 1)
        row = trace_back(start, steps, weighted_attention(scores[b], steps, recorded))
        row[[0, tokens[0]]] = 0  # what is left on the class tokens is no relevance of patches
        total += shares[b] * row / row.sum().clamp(min=torch.finfo(row.dtype).tiny)
    maps = [part[1:].reshape(grid) for part, grid in zip(total.split(tokens), model.grids, strict=True)]
    parts = {f"branch {b}": to_array(values) for b, values in enumerate(maps)}
    total_hw = to_array(sum_branches(model, maps))
    return AttributionMap(total_hw, "attention", parts=parts, shares=dict(zip(parts, shares, strict=True)))


def branch_logits(model: CrossViT, features: list[Tensor]) -> list[Tensor]:
    """[(B,1+N_b,D_b)] features -> [(B,K)]: what the head of each branch adds to the logits, whose sum they are."""
    pooled = [tokens[:, 0] if model.global_pool == "token" else tokens[:, 1:].mean(1) for tokens in features]
    return [head(pooled[b]) / len(BRANCHES) for b, head in enumerate(model.head)]


def branch_shares(logits: list[Tensor], target: int, versus: int | None = None) -> list[float]:
    """Return the share of each branch in the score of a class, from what its head adds to the logits, [(1,K)].

    A constant that is added to all logits of a head changes no probability, so a logit counts relative to the mean over
    the classes. The absolute values of the shares sum to 1; a branch that contradicts the class has a negative one.
    """
    centered = [one.detach() - one.detach().mean(1, keepdim=True) for one in logits]
    scores = [float(class_score(one, target, versus).sum()) for one in centered]
    size = sum(map(abs, scores))
    return [score / size if size else 1 / len(scores) for score in scores]


# --- relevance --------------------------------------------------------------------------------------------------------


def trace_back(start_N: Tensor, steps: list[AttentionStep], weights: list[Tensor]) -> Tensor:
    """Return the (N,) relevance of the first layer's tokens, given that of the last layer's, `start_N`.

    weights: the (queries,keys) weights of each step. This is the product of `start_N` with the relevance of every token
    to every other one, computed from the last layer to the first, which avoids the (N,N) matrix.
    """
    row = start_N.clone()
    for step, weights_qk in zip(reversed(steps), reversed(weights), strict=True):
        row = row.index_add(0, step.keys, row[step.queries] @ weights_qk)
    return row


def weighted_attention(score: Tensor, steps: list[AttentionStep], recorded: dict[nn.Module, Tensor]) -> list[Tensor]:
    """Return, for each step, the (queries,keys) mean over the heads of the positive part of attention times gradient.

    score: a scalar; recorded: the (1,h,queries,keys) attention of each module, which the score was computed from.
    """
    maps = [recorded[step.module] for step in steps]
    gradients = torch.autograd.grad(score, maps, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [
        (attention.detach() * gradient)[0].clamp(min=0).mean(0)
        for attention, gradient in zip(maps, gradients, strict=True)
    ]


def convit_steps(model: ConViT) -> list[AttentionStep]:
    """Return the attention layers of a ConViT in order; the class token, if there is one, is token 0."""
    first = 0 if model.cls_token is None else 1
    tokens = torch.arange(first + model.patch_embed.num_patches, device=model.rel_pos.device)
    steps = []
    for i, block in enumerate(model.blocks):
        present = tokens[first:] if i < model.num_local else tokens
        steps.append(AttentionStep(block.get_submodule("attn"), present, present))
    return steps


def crossvit_steps(model: CrossViT) -> list[AttentionStep]:
    """Return the attention layers of a CrossViT in order; the tokens of branch 0 come first, each class token first."""
    sizes = [1 + rows * columns for rows, columns in model.grids]
    tokens = torch.arange(sum(sizes), device=model.cls_token_0.device).split(sizes)
    steps = []
    for stage in model.blocks:
        assert isinstance(stage, MultiScaleBlock)
        for b in BRANCHES:
            steps += [AttentionStep(attn, tokens[b], tokens[b]) for attn in attention_modules(stage.blocks[b])]
        # both fusions read the patches as the blocks left them, and each changes its own class token only
        for b in BRANCHES:
            queries = tokens[b][:1]
            first, *others = attention_modules(stage.fusion[b])
            steps.append(AttentionStep(first, queries, torch.cat((queries, tokens[1 - b][1:]))))
            steps += [AttentionStep(attn, queries, queries) for attn in others]  # they only get the class token
    return steps


# --- recording --------------------------------------------------------------------------------------------------------


@contextmanager
def recorded_attention(model: ImageModel) -> Iterator[dict[nn.Module, Tensor]]:
    """Record the attention of every attention module in the forward passes inside the context, by module.

    The tensors (B,h,queries,keys) are part of the graph that the outputs are computed from, so that gradients with
    respect to them exist. The modules compute the same function in evaluation mode, without fused kernels.
    """
    recorded: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        attention, values_BhNd = attend(module, *inputs)
        if torch.is_grad_enabled() and not attention.requires_grad:
            attention.requires_grad_()
        recorded[module] = attention
        mixed: Tensor = module.get_submodule("proj")((attention @ values_BhNd).transpose(1, 2).flatten(2))
        return mixed

    handles = [module.register_forward_hook(record) for module in attention_modules(model)]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
