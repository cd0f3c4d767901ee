"""Teachers read from files: ONNX, OpenVINO and TFLite graphs, and folders written by `tessella export`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.spec import InputSpec
from ..engine.artefacts import GRAPHS
from ..engine.exported import is_exported, read_card
from ..engine.openvino import core
from ..errors import UsageError, WeightsError
from .config import TrainConfig, teacher_path
from .teacher_base import Teacher, TeacherOutputs
from .teacher_graph import CHANNELS, TeacherInput, find_embedding, find_input, find_logits, read_graph, with_outputs

if TYPE_CHECKING:
    from ..engine.runtime import ov

REQUEST = 16  # images that are computed at once; the number is fixed, so that a row does not depend on the batch
_SIMILAR = 0.99  # cosine of the outputs of one image, alone and in a batch


class _TeacherFiles(NamedTuple):
    """The graph of a teacher, and what the metadata beside it state."""

    graph: Path
    spec: InputSpec | None
    classes: tuple[str, ...]


def _locate(name: str) -> _TeacherFiles:
    path = teacher_path(name)
    if not is_exported(path):
        return _TeacherFiles(path, None, ())
    card = read_card(path)
    return _TeacherFiles(path / GRAPHS[card.engine], card.spec, card.labels)


def file_fingerprint(config: TrainConfig) -> str:
    """Return 16 hexadecimal digits that depend on the contents of a teacher's files and of its list of classes.

    Raises WeightsError `weights_not_found`, and UsageError `not_found` for the list of classes.
    """
    graph = _locate(config.teacher).graph
    digest = hashlib.sha256()
    weights = [graph.with_suffix(".bin")] if graph.suffix.lower() == ".xml" else []
    labels = [Path(config.teacher_labels)] if config.teacher_labels else []
    for path in (graph, *weights, *labels):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise WeightsError(
                "weights_not_found", f"the teacher's file {str(path)!r} could not be read: {error.strerror}"
            ) from None
    return digest.hexdigest()[:16]


class FileTeacher(Teacher):
    """A graph that OpenVINO runs on the CPU, `REQUEST` images at a time.

    Its results depend only on the images, the machine and the number of threads, which is that of PyTorch.
    """

    def __init__(self, config: TrainConfig):
        """Read the file that `config.teacher` names.

        Raises WeightsError (weights_not_found, bad_format, bad_config, hash_mismatch), and UsageError `bad_argument`
        for a graph that is not an image classifier, or if the config lacks a setting.
        """
        files = _locate(config.teacher)
        model = read_graph(files.graph)
        self.input = find_input(model, config)
        self.mean, self.std = (0.0,) * CHANNELS, (1.0,) * CHANNELS
        if not self.input.integer:
            self.mean, self.std = _normalization(config, files.spec)
        self.wants = config.distills_logits, config.distills_embedding
        self.remarks: list[str] = []
        self.compiled, self.batch, self.node = self._compile(files.graph, config)
        widths = [int(value.get_shape()[1]) for value in self.compiled.outputs]
        self.background = config.teacher_background if config.distills_logits else 0
        all_classes = widths.pop(0) if config.distills_logits else 0
        self.request = self.compiled.create_infer_request()
        super().__init__(
            name=config.teacher,
            size=self.input.size,
            num_classes=all_classes - self.background,
            width=widths.pop() if widths else 0,
            class_names=files.classes[self.background :] if len(files.classes) == all_classes else (),
        )
        if config.distills_logits and self.num_classes < 2:
            raise UsageError(
                "bad_argument", f"the teacher has {all_classes} outputs, and teacher_background is {self.background}"
            )

    def _compile(self, path: Path, config: TrainConfig) -> tuple[ov.CompiledModel, int, str]:
        """Return the graph for batches of `REQUEST` images or, if that fails, of one; and the embedding's node."""
        single, node = self._build(path, config, 1)
        try:
            several, _ = self._build(path, config, REQUEST)
        except ValueError:
            several = None
        if several is not None and _agree(single, several, self.input):
            return several, REQUEST, node
        self.remarks.append("the teacher runs one image at a time, because its graph does not support batches")
        return single, 1, node

    def _build(self, path: Path, config: TrainConfig, batch: int) -> tuple[ov.CompiledModel, str]:
        """Compile the graph for a batch; raises ValueError if it does not allow that batch."""
        model = read_graph(path)
        values = [find_logits(model, config.teacher_logits)] if config.distills_logits else []
        node = ""
        if config.distills_embedding:
            embedding = find_embedding(model, config.teacher_embedding, config.teacher_logits)
            values, node = [*values, embedding], embedding.get_node().get_friendly_name()
        try:
            graph = with_outputs(model, self.input, batch, tuple(values))
        except ValueError as error:
            if batch > 1:
                raise
            raise UsageError(
                "bad_argument",
                f"the teacher {str(path)!r} cannot be used: {error}",
                hint="see teacher_img_size, teacher_logits and teacher_embedding in the config",
            ) from None
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        return core().compile_model(graph, "CPU", settings), node

    def describe(self) -> str:
        """Return a sentence on the teacher's input and outputs."""
        kind = "uint8" if self.input.integer else "float32"
        parts = [f"input {kind} {self.input.layout} {self.input.size[1]} x {self.input.size[0]} px"]
        if self.num_classes:
            parts.append(f"{self.num_classes:,} classes")
        if self.width:
            parts.append(f"embedding of {self.width:,} numbers ({self.node})")
        return f"teacher: {self.name}, {', '.join(parts)}"

    @torch.no_grad()
    def __call__(self, pixels_BCHW: Tensor) -> TeacherOutputs:
        x = pixels_BCHW.float().cpu()
        if self.input.integer:
            x = (x * 255).round_().clamp_(0, 255).to(torch.uint8)
        else:
            mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
            x = (x - mean) / std
        if self.input.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        rows = [self._run(x[i : i + self.batch].contiguous()) for i in range(0, len(x), self.batch)]
        outputs = [torch.cat(parts).to(pixels_BCHW.device) for parts in zip(*rows, strict=True)]
        logits = outputs.pop(0)[:, self.background :] if self.wants[0] else None
        return TeacherOutputs(logits, outputs.pop() if self.wants[1] else None)

    def _run(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of at most `batch` images, which are filled up to that number."""
        full = x if len(x) == self.batch else torch.cat([x, x.new_zeros(self.batch - len(x), *x.shape[1:])])
        results = self.request.infer([full.numpy()], share_inputs=False)
        return [torch.from_numpy(np.array(value[: len(x)])) for value in results.values()]


def _normalization(config: TrainConfig, spec: InputSpec | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the input, for pixels from 0 to 1."""
    mean, std = config.teacher_mean, config.teacher_std
    if mean is None and std is None and spec is not None:
        return spec.mean, spec.std
    if mean is None or std is None:
        raise UsageError(
            "bad_argument",
            "the teacher reads floating-point numbers: set teacher_mean and teacher_std in the config, for pixels from "
            "0 to 1",
            hint="for -1 to 1: [0.5, 0.5, 0.5] and [0.5, 0.5, 0.5]; for 0 to 255: [0, 0, 0] and [0.00392156862745098, "
            "...]; for 0 to 1: [0, 0, 0] and [1, 1, 1]",
        )
    if len(mean) != CHANNELS or len(std) != CHANNELS:
        raise UsageError("bad_argument", f"teacher_mean and teacher_std need {CHANNELS} numbers each")
    return mean, std


def _agree(single: ov.CompiledModel, several: ov.CompiledModel, given: TeacherInput) -> bool:
    """Return whether images have the same outputs alone and in a batch."""
    rng = np.random.default_rng(0)
    shape = given.shape(REQUEST)
    x = rng.integers(0, 256, shape).astype(np.uint8) if given.integer else rng.random(shape, np.float32)
    together = list(several([x]).values())
    for row in (0, REQUEST - 1):
        for one, all_rows in zip(single([x[row : row + 1]]).values(), together, strict=True):
            a, b = one[0], all_rows[row]
            if not float(a @ b) >= _SIMILAR * float(np.linalg.norm(a) * np.linalg.norm(b)):
                return False
    return True
