"""Model cards, and the comparison of all checkpoints.

Names are loaded on first use; the stub next to this file lists them.
"""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
