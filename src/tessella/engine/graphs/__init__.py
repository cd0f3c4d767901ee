"""Graphs of the models for OpenVINO, built from a config and NumPy weights without PyTorch.

`build.py` selects the builder for a network. Each family has its own file, and `ops.py` contains the operations that
they share. A graph contains the exact rewrites of `engine/rewrites`: folded pixels and norms, constant attention by
position, attention of a single query, products across patches without transposes.
"""

from __future__ import annotations

from .build import build_graph as build_graph
from .build import layouts_of as layouts_of
from .build import why_not as why_not
from .ops import Products as Products
