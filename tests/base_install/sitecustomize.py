"""Hide the packages of the extras from a Python process and its children, as if they were not installed.

Python imports this module when it starts if this folder is on PYTHONPATH.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType

HIDDEN = {
    *("torch", "torchgen", "functorch", "torchvision", "torchmetrics", "timm", "triton"),
    *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "ray", "tensorboard", "scipy", "sklearn", "umap"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "python_multipart"),
}


class WithoutExtras:
    """Finds modules and distributions as Python does, except those in HIDDEN."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in HIDDEN:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(context: DistributionFinder.Context) -> Iterable[Distribution]:
        if context.name in HIDDEN:
            return ()
        return importlib.machinery.PathFinder.find_distributions(context)

    @staticmethod
    def invalidate_caches() -> None:
        importlib.machinery.PathFinder.invalidate_caches()


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutExtras
