"""Bulk runs: classify and embed a whole collection into Parquet files, with exactly one row per input."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
