"""Verify that models, exports, runs and indexes are what they should be, and replay receipts on other machines."""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
