"""Import timm where its dependency torchvision was made for another build of torch.

timm imports torchvision, whose compiled operators load only with the build of torch they were made for; its Python
parts need only the names of these operators.
"""

from __future__ import annotations

import contextlib
import functools
import re
from importlib import util
from pathlib import Path

import torch

_names: list[torch.library.Library] = []  # operators live as long as their library


@functools.cache
def timm_importable() -> bool:
    """Return whether timm can be imported; names of torchvision's operators are defined if they cannot be loaded."""
    if found := util.find_spec("torchvision"):
        assert found.origin
        _name_operators(Path(found.origin).parent)
    try:
        import timm  # noqa: F401
    except Exception:  # its imports can raise anything
        return False
    return True


def _name_operators(folder: Path) -> None:
    """Define torchvision's operators by name: it registers shapes and gradients for them, which fails otherwise."""
    for path in folder.glob("_C*.so"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(path)
    registrations = folder / "_meta_registrations.py"
    text = registrations.read_text() if registrations.exists() else ""
    library = torch.library.Library("torchvision", "FRAGMENT" if hasattr(torch.ops.torchvision, "nms") else "DEF")
    for name in dict.fromkeys(re.findall(r'(?:register_meta\("|torchvision::)(\w+)"', text)):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")  # never called, so the arguments do not matter
    _names.append(library)
