"""Faster ways to run a model: the plan with its reasons, the exact rewrites, and one file per backend.

`plan.py` resolves automatic settings, `rewrites/` has the exact rewrites, `base.py` the engine interface, `open.py`
opens an engine, `convert.py` converts models for other runtimes, `artefacts.py` caches the files, `exported.py` reads
an exported folder, `gate.py` checks the accuracy of lossy precisions, `tuned.py` stores the measurements of `tessella
tune`.
"""

from ..extras import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
