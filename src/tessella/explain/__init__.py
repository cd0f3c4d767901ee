"""Explanations: which parts of an image support a class, how reliable that is, and what the weights look like."""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
