"""Accuracy of models on labeled images: `evaluate`, `probe` for frozen embeddings, and `calibrate`."""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
