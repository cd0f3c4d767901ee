"""Inputs, decoding and preprocessing: from bytes to pixels to tensors.

Names load on first use: importing this package imports neither torch nor Pillow. The function `decode` is in the module
of the same name, `tessella.data.decode`.
"""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
