"""The catalogue of published checkpoints; download, verify, load, convert and save weights.

The public names are listed in `__init__.pyi` and loaded on first use: the catalogue is read without importing torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
