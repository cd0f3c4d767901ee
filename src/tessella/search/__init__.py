"""Similar images in a run: `build_index` and `Index` find nearest rows, `dedup` finds duplicates.

Names are loaded on first use; the stub next to this file lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
