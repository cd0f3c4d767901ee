"""Attention with one query token, used in the last block of ConViT and in the cross-attention of CrossViT.

Shape suffixes: as in the model files.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import frozen, layer_norm_affine, new_linear

Projection: TypeAlias = tuple[Tensor, Tensor | None]  # weight (D,D) and bias (D,) of a linear layer


class SingleQuery(nn.Module):
    """Attention of one token to itself and others, which projects the query and the output, not keys and values.

    q . (W_k n) = (W_k^T q) . n, and the attention weights sum to 1, so W_v can be applied to the weighted mean of the
    normed tokens. A bias of the keys adds the same number to every score and cancels. The scale and shift of the norm
    are folded into the weights.
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
        # the shift of the values is a constant that is added before a linear layer
        self.proj = new_linear(proj.weight.double(), proj.bias.double() + proj.weight.double() @ v_shift, like)

    def forward(self, token_B1D: Tensor, others_BND: Tensor) -> Tensor:
        """Attend from the token (B,1,D) to itself and the others (B,N,D), which are not normed yet: -> (B,1,D)."""
        width = token_B1D.shape[-1:]
        q_token_B1D, others_BND = (F.layer_norm(x, width, eps=self.eps) for x in (token_B1D, others_BND))
        q_BH1d = self.query(q_token_B1D).unflatten(-1, (self.num_heads, 1, -1)).squeeze(1)
        u_BHD = (q_BH1d @ self.key_HdD).squeeze(2)
        scores = (u_BHD @ q_token_B1D.transpose(1, 2), u_BHD @ others_BND.transpose(1, 2))
        weights = torch.cat(scores, dim=-1).softmax(-1)
        mean_BHD = torch.baddbmm(weights[..., :1] @ q_token_B1D, weights[..., 1:], others_BND)
        output = (mean_BHD.unsqueeze(2) @ self.value_HDd).flatten(1).unsqueeze(1)
        return self.proj(output)
