"""The same function, faster: the plan and its reasons, the exact rewrites, one file a backend.

`plan.py` resolves what is automatic, `rewrite.py` has the rewrites, `base.py` what an engine is, `convert.py` makes
files for other runtimes, `artefacts.py` keeps them on disk, `gate.py` judges lossy precisions, `tuned.py` keeps what
was measured. Engines are imported when they are opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .plan import ENGINES as ENGINES
from .plan import PRECISIONS as PRECISIONS
from .plan import Choice as Choice
from .plan import Plan as Plan
from .plan import make_plan as make_plan

if TYPE_CHECKING:
    from ..data.decode import Pixels
    from ..data.spec import InputSpec
    from ..models.base import ImageModel
    from .base import Engine

HOME = {
    "eager": (".eager", "EagerEngine"),
    "rewritten": (".eager", "RewrittenEngine"),
    "compile": (".compiled", "CompileEngine"),
    "openvino": (".openvino", "open_model"),
    "onnxruntime": (".onnxruntime", "open_model"),
}


def open_engine(
    model: ImageModel,
    plan: Plan,
    size: tuple[int, int],
    spec: InputSpec | None = None,
    samples: Pixels | None = None,
) -> Engine:
    """The engine of the plan, ready to run `model` on images of `size` (height, width), in the precision of the plan.

    With a spec it reads (B,H,W,C) uint8 images, without one (B,C,H,W) normalised floats. samples: (N,H,W,C) uint8, for
    the ranges of int8. No gate is asked here: `gate.open_gated` does. Raises WeightsError `cache_failed` where a
    converted model cannot be written.
    """
    module, name = HOME[plan.engine]
    opener = getattr(importlib.import_module(module, __name__), name)
    more = (samples,) if name == "open_model" else ()
    engine: Engine = opener(model, plan, size, spec, *more)
    return engine
