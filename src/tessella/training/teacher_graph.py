"""The graph of a teacher that was read from a file: find its input, its logits and its embedding, and set its batch.

Terms: a value is an output of a node; a value depends on the images if it is not constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..engine.openvino import core
from ..errors import UsageError, WeightsError
from .config import TrainConfig

if TYPE_CHECKING:
    from ..engine.runtime import ov

CHANNELS = 3
LAYOUTS = {"NHWC": (1, 2, 3), "NCHW": (2, 3, 1)}  # axes of height, width and channels
_PASSED = ("Convert", "FakeQuantize", "Transpose", "Reshape", "Squeeze", "Unsqueeze")  # between a softmax and an output
_SHAPED = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")  # whose other inputs may be computed from the shape
_NAMED = 8  # nodes that an error message names


@dataclass(frozen=True)
class TeacherInput:
    """The input of a teacher. size: height and width in pixels; integer: it takes uint8 pixels, not floats."""

    layout: str
    size: tuple[int, int]
    integer: bool

    def shape(self, batch: int) -> list[int]:
        """Return the shape of a batch of this number of images."""
        shape = [batch, 0, 0, 0]
        for axis, length in zip(LAYOUTS[self.layout], (*self.size, CHANNELS), strict=True):
            shape[axis] = length
        return shape


def read_graph(path: Path) -> ov.Model:
    """Return the graph in a file; raises WeightsError: `weights_not_found`, or `bad_format` if it cannot be read."""
    if not path.is_file():
        raise WeightsError("weights_not_found", f"the teacher {str(path)!r} does not exist or is not a file")
    try:
        return core().read_model(path)
    except Exception as error:  # each of OpenVINO's readers has its own exceptions
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise WeightsError(
            "bad_format",
            f"the teacher {str(path)!r} could not be read by OpenVINO: {reason.strip()[:300]}",
            hint="give an intact .onnx, .xml (with its .bin in the same folder) or .tflite file",
        ) from None


def find_input(model: ov.Model, config: TrainConfig) -> TeacherInput:
    """Return the input of a graph; what the graph leaves open is taken from the config.

    Raises UsageError `bad_argument` if the graph has no single input of images, or if the config lacks a setting.
    """
    if len(model.inputs) != 1:
        names = ", ".join(value.get_any_name() for value in model.inputs)
        raise _refused(f"has {len(model.inputs)} inputs ({names}), expected a single input for images")
    value = model.input(0)
    shape, kind = value.get_partial_shape(), value.get_element_type().to_string()
    if kind not in ("u8", "f32", "f16"):
        raise _refused(f"reads values of type {kind}, expected uint8 or floating-point numbers")
    if shape.rank.is_dynamic or len(shape) != 4:
        raise _refused(f"has an input of shape {shape}, expected a batch of images with {CHANNELS} channels")
    lengths = [-1 if axis.is_dynamic else axis.get_length() for axis in shape]
    fitting = [layout for layout, axes in LAYOUTS.items() if lengths[axes[2]] == CHANNELS]
    layout = config.teacher_layout or (fitting[0] if len(fitting) == 1 else "")
    if not layout:
        raise _refused(
            f"has an input of shape {shape}, whose layout is ambiguous", "set teacher_layout to NHWC or NCHW"
        )
    if lengths[LAYOUTS[layout][2]] not in (CHANNELS, -1):
        raise _refused(f"has an input of shape {shape}, which in the layout {layout} does not have {CHANNELS} channels")
    height, width = (lengths[axis] for axis in LAYOUTS[layout][:2])
    if config.teacher_img_size:
        height = width = config.teacher_img_size
    elif height < 0 or width < 0:
        raise _refused(f"has an input of shape {shape}, for images of any size", "set teacher_img_size, in pixels")
    return TeacherInput(layout, (height, width), kind == "u8")


def _refused(problem: str, hint: str = "") -> UsageError:
    return UsageError("bad_argument", f"the teacher {problem}", hint=hint)


# --- the values to learn from -----------------------------------------------------------------------------------------


def find_logits(model: ov.Model, name: str) -> ov.Output:
    """Return the value with the logits.

    name: of an output or a node; "": the only output, or that called logits; if it follows a softmax, the input of the
    softmax. Raises UsageError `bad_argument`, which names the candidates.
    """
    if name:
        return _by_name(model, name, "teacher_logits")
    if len(model.outputs) == 1:
        end = model.output(0)
    else:
        named = [value for value in model.outputs if "logits" in value.get_names()]
        if not named:
            raise _refused(f"has {len(model.outputs)} outputs", f"set teacher_logits to one of {_candidates(model)}")
        end = named[0]
    value = result = end.get_node().input_value(0)
    while value.get_node().get_type_name() in _PASSED:
        value = value.get_node().input_value(0)
    if value.get_node().get_type_name() == "Softmax":
        return value.get_node().input_value(0)
    while result.get_node().get_type_name() in ("Convert", "FakeQuantize"):  # the rounding of an integer output
        result = result.get_node().input_value(0)
    return result


def find_embedding(model: ov.Model, name: str, logits_name: str) -> ov.Output:
    """Return the value with the embedding.

    name: of an output or a node; "": the output called embedding, or the input of the last product with constant
    weights (a matrix product or a convolution) before the logits. logits_name: as in `find_logits`. Raises UsageError
    `bad_argument`, which names the candidates.
    """
    if name:
        return _by_name(model, name, "teacher_embedding")
    for output in model.outputs:
        if "embedding" in output.get_names():
            return output.get_node().input_value(0)
    dependent = _dependent(model)
    value = find_logits(model, logits_name)
    while True:
        node = value.get_node()
        inputs = [node.input_value(i) for i in range(node.get_input_size())]
        if node.get_type_name() in _SHAPED:
            inputs = inputs[:1]
        variable = [item for item in inputs if item.get_node().get_instance_id() in dependent]
        if len(variable) != 1:
            raise _refused(
                f"has no last layer with constant weights before its output: {_name(node)} has "
                f"{len(variable)} inputs that depend on the images",
                f"set teacher_embedding to one of {_candidates(model)}",
            )
        if node.get_type_name() in ("MatMul", "Convolution"):
            return variable[0]
        value = variable[0]


def _dependent(model: ov.Model) -> set[int]:
    """Return the identities of the nodes that depend on the images."""
    found: set[int] = set()
    for node in model.get_ordered_ops():
        inputs = (node.input_value(i).get_node().get_instance_id() for i in range(node.get_input_size()))
        if node.get_type_name() == "Parameter" or not found.isdisjoint(inputs):
            found.add(node.get_instance_id())
    return found


def _by_name(model: ov.Model, name: str, field: str) -> ov.Output:
    for output in model.outputs:
        if name in output.get_names():
            return output.get_node().input_value(0)
    for node in model.get_ops():
        for value in node.outputs():
            if name == node.get_friendly_name() or name in value.get_names():
                return value
    raise _refused(f"has no output and no node {name!r}", f"set {field} to one of {_candidates(model)}")


def _candidates(model: ov.Model) -> str:
    """Return the names of the outputs, and of the last nodes that have one vector for each image."""
    names = [next(iter(sorted(value.get_names())), "") for value in model.outputs]
    dependent = _dependent(model)
    vectors = [
        _name(node)
        for node in reversed(model.get_ordered_ops())
        if node.get_instance_id() in dependent and node.get_type_name() != "Result" and _is_vector(node.output(0))
    ]
    return ", ".join(dict.fromkeys(filter(None, [*names, *vectors[:_NAMED]])))


def _name(node: ov.Node) -> str:
    name: str = node.get_friendly_name()
    return name


def _is_vector(value: ov.Output) -> bool:
    """Return whether a value has one vector for each image: all but one of the axes after the first have length 1."""
    shape = value.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) < 2:
        return False
    return sum(axis.is_dynamic or axis.get_length() != 1 for axis in list(shape)[1:]) <= 1


# --- batches ----------------------------------------------------------------------------------------------------------


def with_outputs(model: ov.Model, given: TeacherInput, batch: int, outputs: tuple[ov.Output, ...]) -> ov.Model:
    """Return the graph for batches of a fixed size with these values as (B,N) float32 outputs; it changes `model`.

    Raises ValueError if a value does not have one vector for each image then.
    """
    from ..engine.runtime import op, ov

    _free_batch(model, batch)
    try:
        model.reshape({model.input(0): ov.PartialShape(given.shape(batch))})
    except RuntimeError as error:
        raise ValueError(f"it does not read a batch of shape {given.shape(batch)}") from error
    results = []
    for value in outputs:
        shape = value.get_partial_shape()
        if shape.is_dynamic or shape[0].get_length() != batch or not _is_vector(value):
            raise ValueError(f"{_name(value.get_node())} has the shape {shape}, expected a vector for each image")
        flat = op.reshape(op.convert(value, "f32"), op.constant(np.array([batch, -1])), special_zero=False)
        results.append(op.result(flat))
    return ov.Model(results, model.get_parameters(), "teacher")


def _free_batch(model: ov.Model, batch: int) -> None:
    """Change the constants that fix the batch: a file for one image may reshape its values to [1, ...]."""
    from ..engine.runtime import op

    first = model.input(0).get_partial_shape()[0]
    if first.is_dynamic or first.get_length() == batch:
        return
    for node in _fixed_reshapes(model, first.get_length()):
        rest = list(node.output(0).get_shape())[1:]
        node.input(1).replace_source_output(op.constant(np.array([-1, *rest])).output(0))


def _fixed_reshapes(model: ov.Model, batch: int) -> Iterator[ov.Node]:
    """Yield the reshapes to constant shapes of values that depend on the images, which keep the axis of the batch."""
    dependent = _dependent(model)
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Reshape" or node.get_instance_id() not in dependent:
            continue
        before, after = node.input_value(0).get_partial_shape(), node.output(0).get_partial_shape()
        is_constant = node.input_value(1).get_node().get_type_name() == "Constant"
        if not (is_constant and before.is_static and after.is_static and len(before) and len(after)):
            continue
        if before[0].get_length() == after[0].get_length() == batch:
            yield node
