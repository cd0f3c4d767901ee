"""Exact rewrites: transform a model into an equivalent one for inference, with the same outputs from fewer steps.

`apply.py` has the functions and `base.py` the base classes; the rewrites of each family are in a file of their own, and
`folding.py`, `pixels.py` and `single_query.py` are shared. A rewrite changes modules of a deep copy, which is still an
`ImageModel`, so features and intermediates remain available. Rewrites of the end of the forward pass (the last norm,
the last class token) are subclasses of `Rewritten`. All rewrites are exact in real arithmetic.
"""

from __future__ import annotations

from .apply import layouts_of as layouts_of
from .apply import rewrite as rewrite
from .apply import rewrites_of as rewrites_of
from .apply import usual_layout as usual_layout
from .base import Rewritten as Rewritten
from .base import Unchanged as Unchanged
