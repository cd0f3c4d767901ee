"""Teachers that are files: what is found in them, and what is refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from tessella.data.spec import InputSpec
from tessella.data.transforms import load_pixels
from tessella.engine.openvino import core
from tessella.engine.runtime import op, ov
from tessella.errors import UsageError, WeightsError
from tessella.export import export
from tessella.training.config import TrainConfig
from tessella.training.teacher import build_teacher, student_classes
from tessella.training.teacher_file import REQUEST, FileTeacher, file_fingerprint

from .small_teachers import CLASSES, WIDTH, save_teacher

CPU = torch.device("cpu")
UNIT: dict[str, Any] = dict(teacher_mean=(0.0, 0.0, 0.0), teacher_std=(1.0, 1.0, 1.0))


def teacher_of(path: Path, **changes: Any) -> FileTeacher:
    settings: dict[str, Any] = dict(teacher=str(path), distill_target="both", distill_weight=1.0)
    return FileTeacher(TrainConfig.from_dict(settings | changes))


def noise(count: int, side: int = 16) -> torch.Tensor:
    """Return (count,3,side,side) pixels that are multiples of 1/255."""
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", ["u8", "f32"])
@pytest.mark.parametrize("batch", [1, -1])
@pytest.mark.parametrize("softmax", [True, False])
def test_logits_and_embedding_are_found(tmp_path: Path, layout: str, dtype: str, batch: int, softmax: bool) -> None:
    small = save_teacher(tmp_path / "t.xml", layout, dtype, batch=batch, softmax=softmax)
    teacher = teacher_of(small.path, **(UNIT if dtype == "f32" else {}))
    assert (teacher.size, teacher.num_classes, teacher.width, teacher.batch) == ((16, 16), CLASSES, WIDTH, REQUEST)
    assert teacher.remarks == []
    x = noise(REQUEST + 3)
    outputs = teacher(x)
    assert outputs.logits is not None
    assert outputs.embedding is not None
    values = x * 255 if dtype == "u8" else x
    torch.testing.assert_close(outputs.logits, small.logits(values), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.embedding, small.embedding(values), rtol=1e-4, atol=1e-4)
    assert f"{'uint8' if dtype == 'u8' else 'float32'} {layout} 16 x 16 px, 3 classes" in teacher.describe()
    for first in (1, 7):  # a row depends neither on its place nor on the others
        part = teacher(x[first : first + 5])
        assert part.logits is not None
        assert torch.equal(part.logits, outputs.logits[first : first + 5])


def test_only_what_is_distilled_is_computed(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "t.xml").path
    logits, embedding = (teacher_of(path, distill_target=target) for target in ("logits", "embedding"))
    assert (logits.num_classes, logits.width, embedding.num_classes, embedding.width) == (CLASSES, 0, 0, WIDTH)
    assert logits(noise(2)).embedding is None
    assert embedding(noise(2)).logits is None


def test_pixels_are_normalized_as_declared(tmp_path: Path) -> None:
    small = save_teacher(tmp_path / "t.xml", dtype="f32")
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    outputs = teacher_of(small.path, teacher_mean=mean, teacher_std=std)(noise(2))
    x = (noise(2) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(outputs.embedding, small.embedding(x), rtol=1e-4, atol=1e-4)


def test_a_graph_that_allows_no_batches_runs_one_image_at_a_time(tmp_path: Path) -> None:
    small = save_teacher(tmp_path / "t.xml", shuffled=True)
    teacher = teacher_of(small.path)
    assert teacher.batch == 1
    assert "one image at a time" in teacher.remarks[0]
    torch.testing.assert_close(teacher(noise(3)).logits, small.logits(noise(3) * 255), rtol=1e-4, atol=1e-4)


def test_outputs_can_be_named(tmp_path: Path) -> None:
    small = save_teacher(tmp_path / "t.xml")
    for name in ("pooled", "features"):
        outputs = teacher_of(small.path, teacher_embedding=name, teacher_logits="scores")(noise(2))
        torch.testing.assert_close(outputs.embedding, small.embedding(noise(2) * 255), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.logits, small.logits(noise(2) * 255), rtol=1e-4, atol=1e-4)
    for field in ("teacher_embedding", "teacher_logits"):
        with pytest.raises(UsageError, match="no output and no node 'absent'") as caught:
            teacher_of(small.path, **{field: "absent"})
        assert caught.value.code == "bad_argument"
        assert f"set {field} to one of predictions" in caught.value.hint
        assert "features" in caught.value.hint


def test_the_first_classes_can_be_left_out(tmp_path: Path) -> None:
    small = save_teacher(tmp_path / "t.xml")
    labels = tmp_path / "labels.txt"
    labels.write_text("background\nbright\ndark\n")
    settings: dict[str, Any] = dict(teacher=str(small.path), teacher_background=1, teacher_labels=str(labels))
    config = TrainConfig(**settings, distill_weight=1.0)
    teacher = build_teacher(config, CPU)
    assert (teacher.num_classes, teacher.class_names) == (2, ("bright", "dark"))
    outputs = teacher(noise(2))
    torch.testing.assert_close(outputs.logits, small.logits(noise(2) * 255)[:, 1:], rtol=1e-4, atol=1e-4)
    assert student_classes(config, teacher, ("a", "b", "c")) == ("bright", "dark")
    with pytest.raises(UsageError, match="has 2 classes, the data has 3"):
        student_classes(TrainConfig(**settings), teacher, ("a", "b", "c"))
    before = file_fingerprint(config)
    labels.write_text("background\nlight\ndark\n")
    assert file_fingerprint(config) != before
    labels.write_text("bright\n")
    with pytest.raises(UsageError, match="has 0 names, the teacher has 2 classes"):
        build_teacher(config, CPU)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter
def test_an_onnx_file_of_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    model = torch.nn.Sequential(layers, torch.nn.Flatten(), torch.nn.Linear(8, 5)).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, (torch.zeros(1, 3, 16, 16),), path, dynamo=True, verbose=False)
    teacher = teacher_of(path, teacher_mean=(0.5, 0.5, 0.5), teacher_std=(0.5, 0.5, 0.5))
    outputs, x = teacher(noise(20)), (noise(20) - 0.5) / 0.5
    assert teacher.batch == REQUEST
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits, model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.embedding, layers(x).flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_exported_folder_needs_no_declaration(tmp_path: Path, engine: str) -> None:
    predictor = tessella.load("convmixer_256_8_ks3_p4.cifar10", engine=engine, precision="float32")
    folder = export(predictor, tmp_path / "exported")
    config = TrainConfig(teacher=str(folder), distill_target="both", distill_weight=1.0)
    teacher = build_teacher(config, CPU)
    assert (teacher.size, teacher.class_names) == ((32, 32), predictor.labels)
    assert teacher.num_classes == 10
    x = noise(2, 32)
    outputs = teacher(x)
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for ours, theirs in zip(outputs, predictor.engine(pixels), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(np.array(theirs)), rtol=1e-3, atol=1e-3)
    assert student_classes(config, teacher, ("a", "b")) == predictor.labels
    graph = folder / ("model.xml" if engine == "openvino" else "model.onnx")
    alone = teacher_of(graph)  # without its metadata; uint8 pixels need no declaration
    torch.testing.assert_close(alone(x), outputs, rtol=0, atol=0)
    damaged = bytearray(graph.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    graph.write_bytes(damaged)
    with pytest.raises(WeightsError, match="has changed since the export") as caught:
        build_teacher(config, CPU)
    assert caught.value.code == "hash_mismatch"


def test_the_quantized_mobilenet(shared_data: Path) -> None:
    folder = shared_data / "teacher"
    labels = dict(teacher_labels=str(folder / "imagenet_labels.txt"), teacher_background=1)
    path = folder / "mobilenet_v2_1.0_224_quant.tflite"
    config = TrainConfig.from_dict(dict(teacher=str(path), distill_target="both", distill_weight=1.0) | labels)
    teacher = build_teacher(config, CPU)
    assert isinstance(teacher, FileTeacher)
    assert (teacher.size, teacher.num_classes, teacher.width, teacher.batch) == ((224, 224), 1000, 1280, REQUEST)
    spec = InputSpec()
    photographs = resources.files("tessella.data") / "photographs"
    images = [load_pixels((photographs / f"{name}.jpg").read_bytes(), spec) for name in ("cat", "coffee", "rocket")]
    outputs = teacher(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255)
    assert outputs.logits is not None
    assert outputs.embedding is not None
    names = [teacher.class_names[i] for i in outputs.logits.argmax(1)]
    assert [name.split(",")[0] for name in names[1:]] == ["espresso", "missile"]
    assert "cat" in names[0]
    assert outputs.embedding.min() == 0  # after ReLU6 and pooling
    assert 0.1 < outputs.embedding.mean() < 1


@pytest.mark.parametrize(
    ("teacher", "changes", "text"),
    [
        (dict(dtype="f32"), {}, "set teacher_mean and teacher_std"),
        (dict(dtype="f32"), dict(teacher_mean=(0.5, 0.5, 0.5)), "set teacher_mean and teacher_std"),
        (dict(dtype="f32"), dict(teacher_mean=(0.5,), teacher_std=(0.5,)), "need 3 numbers each"),
        (dict(dtype="i8"), {}, "reads values of type i8"),
        (dict(layout="NCHW"), dict(teacher_layout="NHWC"), "does not have 3 channels"),
        ({}, dict(teacher_background=3), "has 3 outputs, and teacher_background is 3"),
        ({}, dict(teacher_background=2, distill_target="logits"), "teacher_background is 2"),
        (dict(softmax=False), dict(teacher_embedding="image"), "expected a vector for each image"),
    ],
)
def test_unusable_teachers_are_refused(tmp_path: Path, teacher: Any, changes: Any, text: str) -> None:
    path = save_teacher(tmp_path / "t.xml", **teacher).path
    with pytest.raises(UsageError, match=text) as caught:
        teacher_of(path, **changes)
    assert caught.value.code == "bad_argument"


def test_inputs_that_are_no_images_are_refused(tmp_path: Path) -> None:
    core()

    def save(*shapes: list[int]) -> Path:
        inputs = [op.parameter(shape, ov.Type.u8, name=f"in{i}") for i, shape in enumerate(shapes)]
        for item in inputs:
            item.output(0).set_names({item.get_friendly_name()})
        parts = [op.reduce_mean(op.convert(item, "f32"), op.constant(np.array([1, 2]))) for item in inputs]
        path = tmp_path / "t.xml"
        ov.save_model(ov.Model([op.result(sum(parts[1:], parts[0]))], inputs, "odd"), path)
        return path

    for shapes, text in (
        (([1, 16, 16, 3], [1, 16, 16, 3]), r"has 2 inputs \(in0, in1\)"),
        (([1, 16, 16],), "expected a batch of images with 3 channels"),
        (([1, 16, 16, 4],), "whose layout is ambiguous"),
        (([1, 3, 3, 3],), "whose layout is ambiguous"),
        (([1, -1, -1, 3],), "for images of any size"),
        (([1, 16, 16, 3],), "has no last layer with constant weights"),
    ):
        with pytest.raises(UsageError, match=text) as caught:
            teacher_of(save(*shapes), distill_target="embedding")
        assert caught.value.code == "bad_argument"


def test_damaged_and_missing_files_are_refused(tmp_path: Path, shared_data: Path) -> None:
    good = save_teacher(tmp_path / "good.xml").path
    whole = (shared_data / "teacher" / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    (tmp_path / "alone.xml").write_bytes(good.read_bytes())  # without its weights
    (tmp_path / "half.xml").write_bytes(good.read_bytes()[:900])
    (tmp_path / "text.onnx").write_text("this is not a model")
    (tmp_path / "empty.tflite").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.onnx")
    for length in (10, 1000, len(whole) // 2, len(whole) * 9 // 10):
        (tmp_path / f"cut{length}.tflite").write_bytes(whole[:length])
    files = [path for path in tmp_path.iterdir() if path.suffix != ".bin" and path != good]
    assert len(files) == 9
    for path in files:
        with pytest.raises(WeightsError, match="could not be read by OpenVINO") as caught:
            teacher_of(path)
        assert (path.name, caught.value.code) == (path.name, "bad_format")
    with pytest.raises(WeightsError, match=r"absent\.onnx") as caught:
        teacher_of(tmp_path / "absent.onnx")
    assert caught.value.code == "weights_not_found"
