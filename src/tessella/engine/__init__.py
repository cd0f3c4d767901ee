"""The same function, faster: the plan and its reasons, the exact rewrites, one file a backend.

`plan.py` resolves what is automatic, `rewrite.py` has the rewrites, `base.py` what an engine is, `artefacts.py` keeps
converted models on disk. Engines are imported when they are opened.
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
    from ..data.transforms import InputSpec
    from ..models.base import ImageModel
    from .base import Engine

HOME = {
    "eager": (".eager", "EagerEngine"),
    "rewritten": (".eager", "RewrittenEngine"),
    "compile": (".compiled", "CompileEngine"),
    "openvino": (".openvino", "OpenVinoEngine"),
    "onnxruntime": (".onnxruntime", "OnnxRuntimeEngine"),
}


def open_engine(model: ImageModel, plan: Plan, size: tuple[int, int], spec: InputSpec | None = None) -> Engine:
    """The engine of the plan, ready to run `model` on images of `size` (height, width).

    With a spec it reads (B,H,W,C) uint8 images, without one (B,C,H,W) normalised floats. Raises WeightsError
    `cache_failed` where a converted model cannot be written.
    """
    module, name = HOME[plan.engine]
    engine: Engine = getattr(importlib.import_module(module, __name__), name)(model, plan, size, spec)
    return engine
