"""GPU kernels for operations that a compiler cannot fuse: one file per kernel, each a PyTorch operator.

depthwise.py  k x k depthwise convolution, clamp or GELU, and residual connection (ConvMixer)
gpsa.py       attention by content and constant attention by position in one pass (ConViT)
token_mlp.py  the MLP across patches with its norm and residual connection (MLP-Mixer, gMixer)
swap.py       replaces modules of a rewritten model with kernels
*_triton.py   the kernels in Triton; blocks.py has shared helpers
backend.py    decides whether Triton runs a kernel; otherwise, and in float64, a function in plain PyTorch does

The kernels are experimental: they were tested in Triton's interpreter only, so they are off unless the environment
variable TESSELLA_EXPERIMENTAL_KERNELS is 1. The operators are for inference: they have no derivative. Each has a fake
implementation, from which torch.compile and torch.export get shapes. Triton is optional and imported at the first call
on a GPU.
"""

from __future__ import annotations

from .backend import EXPERIMENTAL as EXPERIMENTAL
from .backend import are_requested as are_requested
from .backend import has_triton as has_triton
from .swap import LAYOUTS as LAYOUTS
from .swap import use_kernels as use_kernels
