"""Two models, or two runs, on the same images: `compare`, and the alignment of their embeddings."""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
