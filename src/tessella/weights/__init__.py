"""The catalogue of published checkpoints, and functions to download, verify, load, convert and save weights.

The public names are listed in `__init__.pyi` and loaded on first use, so the catalogue does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
