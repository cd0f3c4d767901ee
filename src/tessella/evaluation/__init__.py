"""Accuracy of models on labelled images: `evaluate`, and `probe` for frozen embeddings."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
