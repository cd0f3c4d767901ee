"""The catalog of published checkpoints, and functions to download, verify, load, convert and save weights.

The public names are listed in `__init__.pyi` and loaded on first use, so the catalog does not import torch.
"""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
