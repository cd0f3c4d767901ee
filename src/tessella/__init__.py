"""Image classification and embeddings with the patch-mixing vision models, under timm's names and with its weights.

The public names are listed in `__init__.pyi` and loaded on first use: importing this package imports neither torch nor
numpy.
"""

from .extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
