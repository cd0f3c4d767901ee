"""Exact rewrites: a model becomes an equivalent one for inference, with the same answers from fewer steps.

`apply.py` has the functions, `base.py` the result and what a family defines, one file per family the rewrites;
`folding.py`, `pixels.py` and `single_query.py` are shared. A rewrite changes modules of a deep copy, which stays an
`ImageModel`, so features and intermediates are still available. Rewrites of the end of the pass (the last norm, the
last class token) are subclasses of `Rewritten`. All are exact in real arithmetic.
"""

from __future__ import annotations

from .apply import layouts_of as layouts_of
from .apply import rewrite as rewrite
from .apply import rewrites_of as rewrites_of
from .apply import usual_layout as usual_layout
from .base import Rewritten as Rewritten
