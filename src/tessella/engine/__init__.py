"""Faster implementations of the same function: the plan with its reasons, exact rewrites, one file per backend.

`plan.py` resolves automatic settings, `rewrites/` has the exact rewrites, `base.py` the engine interface, `open.py`
opens an engine, `convert.py` makes files for other runtimes, `artefacts.py` keeps them on disk, `exported.py` reads an
exported folder, `gate.py` checks the accuracy of lossy precisions, `tuned.py` keeps what was measured.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
