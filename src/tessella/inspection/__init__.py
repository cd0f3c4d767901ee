"""Find problems of a data set before training: `inspect`."""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
