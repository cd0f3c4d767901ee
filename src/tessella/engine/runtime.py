"""OpenVINO without its converter, which reports each import over the network and takes most of the time of the import.

Modules import `ov` and its operators, `op`, from here. The converter is loaded when `ov.convert_model` is used for the
first time. If a program has imported openvino before, nothing is changed.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

_CONVERTER = "openvino.tools.ovc"

if "openvino" in sys.modules:
    import openvino as ov
else:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # OpenVINO works without it if its import fails
    try:
        import openvino as ov
    finally:
        del sys.modules[_CONVERTER]

    def _load_converter(name: str) -> object:
        """Return an attribute that the import would have set, for this package and for other users of openvino."""
        if name != "convert_model":
            raise AttributeError(f"module 'openvino' has no attribute {name!r}")
        from openvino.tools.ovc import convert_model

        ov.convert_model = convert_model
        return convert_model

    ov.__getattr__ = _load_converter

op = ov.opset13

__all__ = ["op", "ov"]


def save_graph(graph: ov.Model, path: Path) -> None:
    """Write a graph as an .xml file and a .bin file beside it. Raises OSError."""
    try:
        ov.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # what OpenVINO raises if a file cannot be written, without the reason
        first = next(iter(str(error).splitlines()), "")
        raise OSError(errno.EIO, f"OpenVINO reports {first!r}, as if the disk was full", str(path)) from error


def report_nothing() -> None:
    """Turn the usage reports of OpenVINO's converter off for this process, before it is imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it was not installed
