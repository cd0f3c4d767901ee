"""Training and fine-tuning of classifiers on labeled images."""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
