"""GPU kernels for steps that a compiler cannot fuse: one file per kernel, each a PyTorch operator.

depthwise.py  k x k depthwise convolution, clamp or GELU, residual sum (ConvMixer)
gpsa.py       attention by content and by a constant position in one softmax and one product (ConViT)
token_mlp.py  the MLP across patches with its norm and residual sum (MLP-Mixer, gMixer)
swap.py       swaps them into a rewritten model
*_triton.py   the kernels in Triton; blocks.py has their common helpers
backend.py    whether Triton runs a kernel; otherwise, and in float64, a plain function of the same signature does

The operators are for inference: they have no derivative. Each has a fake implementation, so torch.compile and
torch.export see their shapes; Triton is optional and imported at the first call on a GPU.
"""

from __future__ import annotations

from .backend import has_triton as has_triton
from .swap import LAYOUTS as LAYOUTS
from .swap import use_kernels as use_kernels
