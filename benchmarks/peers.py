"""timm's models with the engines that can run them, as candidates to compare Tessella with.

Each is a candidate of `tessella.performance`, converted as its own documentation recommends: a fixed batch size,
normalized float images, all threads on one batch. timm imports torchvision, whose compiled operators load only with
the build of torch they were made for; its Python parts need only the names of these operators.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path

import torch
from torch import nn

from tessella.engine.openvino import core
from tessella.performance.candidates import Candidate, Case, OpenCandidate, Run, load_case, timm_candidate
from tessella.performance.candidates import timm_model as timm_twin

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


def timm_model(name: str) -> nn.Module:
    """Return timm's model of that name with the weights of `load_case`, in evaluation mode.

    Raises UsageError `missing_dependency` if timm cannot be imported, `unknown_model` if it does not have the model.
    """
    timm_importable()
    return timm_twin(load_case(name))


def compiled(precision: str) -> Candidate:
    """Return torch.compile with frozen weights, the documented way to run a model repeatedly on a CPU."""
    dtype = getattr(torch, precision)

    def plan(case: Case, batch: int) -> Callable[[], OpenCandidate]:
        def make() -> OpenCandidate:
            model = timm_twin(case).to(case.device, dtype)
            program = torch.compile(model, dynamic=False, options={"freezing": True})
            # freezing has no effect in inference mode
            return OpenCandidate(torch.no_grad()(lambda x: program(x.to(dtype))), precision)

        return make

    return Candidate("timm compile", precision, "float32", plan)


class Exports:
    """timm's models as ONNX files in a temporary folder, one file per model and batch size for all runtimes."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tessella-peers-"))
        self.seconds: dict[Path, float] = {}  # duration of each export

    def __enter__(self) -> Exports:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, case: Case, batch: int) -> Path:
        return self.folder / f"{case.name}-{batch}.onnx"

    def export(self, case: Case, batch: int) -> Path:
        """Return the file, exporting it if it is missing; a failed export is tried again for the next runtime."""
        path = self.path(case, batch)
        if path not in self.seconds:
            start = time.perf_counter()
            spec = case.spec
            example = torch.zeros(batch, spec.channels, spec.height, spec.width)
            with torch.no_grad(), quiet():
                torch.onnx.export(timm_twin(case), (example,), str(path), dynamo=True, external_data=False)
            self.seconds[path] = time.perf_counter() - start
        return path

    def remove_exports(self) -> None:
        """Remove the files, after the last use of a model."""
        for path in self.folder.iterdir():
            path.unlink()
        self.seconds.clear()

    def onnxruntime(self) -> Candidate:
        def session(path: Path) -> Run:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3  # errors
            opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            name = opened.get_inputs()[0].name
            return lambda x: torch.from_numpy(opened.run(None, {name: x.numpy()})[0])

        return self._candidate("timm onnxruntime", "float32", session)

    def openvino(self, precision: str) -> Candidate:
        def request(path: Path) -> Run:
            import openvino as ov

            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            }
            opened = core().compile_model(ov.convert_model(path), "CPU", settings).create_infer_request()
            return lambda x: torch.from_numpy(opened.infer([x.numpy()], share_inputs=True)[0])

        return self._candidate("timm openvino", precision, request)

    def _candidate(self, name: str, precision: str, start: Callable[[Path], Run]) -> Candidate:
        def plan(case: Case, batch: int) -> Callable[[], OpenCandidate]:
            earlier = self.seconds.get(self.path(case, batch), 0.0)
            return lambda: OpenCandidate(start(self.export(case, batch)), precision, earlier_seconds=earlier)

        return Candidate(name, precision, "float32", plan)


def stock(exports: Exports, precisions: list[str], *, compile: bool = True) -> list[Candidate]:
    """Return all candidates for a CPU, eager timm first; ONNX Runtime has no bfloat16 kernels for CPUs."""
    found = []
    for precision in precisions:
        found.append(timm_candidate(precision))
        if compile:
            found.append(compiled(precision))
        if precision == "float32":
            found.append(exports.onnxruntime())
        found.append(exports.openvino(precision))
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters print and warn about."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
