"""Bulk runs: classify and embed a whole collection into Parquet files, with exactly one row per input."""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
