"""Attention with one query token, used at the end of ConViT and in every exchange of CrossViT.

Shape suffixes: those of the model files.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import frozen, layer_norm_affine, new_linear

Projection: TypeAlias = tuple[Tensor, Tensor | None]  # weight (D,D) and bias (D,) of a linear layer


class SingleQuery(nn.Module):
    """Attention of one token to itself and others; projects the query and the answer instead of keys and values.

    q . (W_k n) = (W_k^T q) . n, and the weights sum to 1, so W_v applies to their blend of the normed tokens; a bias of
    the keys adds the same to every score and cancels. The scale and shift of the norm go into the weights.
    """

    def __init__(
        self, norm: nn.LayerNorm, q: Projection, k: Projection, v: Projection, proj: nn.Linear, num_heads: int
    ):
        super().__init__()
        like, scale, shift = proj.weight, *layer_norm_affine(norm)
        (q_weight, q_bias), (k_weight, _), (v_weight, v_bias) = ((w.double(), b) for w, b in (q, k, v))
        self.num_heads, self.eps = num_heads, norm.eps
        head_scale = (len(q_weight) // num_heads) ** -0.5
        q_shift = q_weight @ shift + (0 if q_bias is None else q_bias.double())
        self.query = new_linear(q_weight * scale * head_scale, q_shift * head_scale, like)
        self.key_HdD = frozen((k_weight * scale).unflatten(0, (num_heads, -1)), like)
        self.value_HDd = frozen((v_weight * scale).unflatten(0, (num_heads, -1)).transpose(1, 2), like)
        v_shift = v_weight @ shift + (0 if v_bias is None else v_bias.double())
        # the shift of the values is a constant in front of a linear layer
        self.proj = new_linear(proj.weight.double(), proj.bias.double() + proj.weight.double() @ v_shift, like)

    def forward(self, token_B1D: Tensor, others_BND: Tensor) -> Tensor:
        """The query token and the others, neither normed yet: (B,1,D), (B,N,D) -> (B,1,D)."""
        width = token_B1D.shape[-1:]
        own_B1D, n_BND = (F.layer_norm(x, width, eps=self.eps) for x in (token_B1D, others_BND))
        q_BH1d = self.query(own_B1D).unflatten(-1, (self.num_heads, 1, -1)).squeeze(1)
        u_BHD = (q_BH1d @ self.key_HdD).squeeze(2)
        scores = torch.cat((u_BHD @ own_B1D.transpose(1, 2), u_BHD @ n_BND.transpose(1, 2)), dim=-1).softmax(-1)
        blend_BHD = torch.baddbmm(scores[..., :1] @ own_B1D, scores[..., 1:], n_BND)
        answer = (blend_BHD.unsqueeze(2) @ self.value_HDd).flatten(1).unsqueeze(1)
        return self.proj(answer)
