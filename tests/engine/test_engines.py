"""Every engine gives the outputs of the reference, for uint8 images and normalized batches of any size."""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tessella
from tessella.data.spec import InputSpec
from tessella.engine import ENGINES, make_plan, open_engine
from tessella.engine.base import Engine
from tessella.errors import UsageError
from tessella.fingerprint import weights_hash
from tessella.weights.network import Network

from ..models.tiny import NUM_CLASSES, TINY, images, size_of, tiny

# each runtime on models that together have every operator of the rewrites; a conversion takes seconds
CASES = [
    *(("rewritten", case) for case in TINY),
    *(("openvino", case) for case in ("convmixer_relu", "convit", "gmixer", "crossvit")),
    *(("onnxruntime", case) for case in ("convmixer", "convit", "gmlp")),
    *(("compile", case) for case in ("resmlp",)),
]
CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=2e-5)  # float32 with different orders of summation
BATCH = 4


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSELLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache  # a conversion takes seconds, and engines have no state
def opened(engine: str, case: str, *, pixels: bool, precision: str = "float32") -> Engine:
    model = tiny(case)
    height, width = size_of(model)
    spec = InputSpec(height=height, width=width, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)) if pixels else None
    return open_engine(model, make_plan("cpu", precision, engine, BATCH), (height, width), spec)


def inputs(engine: Engine, count: int) -> Tensor:
    if engine.spec is None:
        assert engine.model
        return images(engine.model, count)
    return torch.randint(256, (count, *engine.shape), dtype=torch.uint8, generator=torch.Generator())


@pytest.mark.parametrize(("engine", "case"), CASES)
def test_uint8_batches_of_any_size(engine: str, case: str) -> None:
    fast, reference = opened(engine, case, pixels=True), opened("eager", case, pixels=True)
    pixels = inputs(reference, 6)
    expected = reference.run(pixels)
    for count in (6, 4, 3, 1):  # more than a batch, one, less, a single image
        logits, embedding = fast.run(pixels[:count])
        torch.testing.assert_close(logits, expected[0][:count], **CLOSE)
        torch.testing.assert_close(embedding, expected[1][:count], **CLOSE)
    as_arrays = fast(pixels.numpy())
    np.testing.assert_array_equal(as_arrays[0], fast.run(pixels)[0].numpy())


@pytest.mark.parametrize("engine", ["eager", "rewritten", "openvino"])
def test_arrays_may_have_any_strides_and_be_read_only(engine: str) -> None:
    fast = opened(engine, "mixer", pixels=True)
    pixels = inputs(fast, 3).numpy()
    read_only = pixels.copy()
    read_only.flags.writeable = False
    wider = np.pad(pixels, ((0, 0), (1, 1), (2, 2), (0, 0)))
    flipped = np.ascontiguousarray(pixels[:, :, ::-1])
    for expected, array in (
        (pixels, read_only),
        (pixels, flipped[:, :, ::-1]),  # negative strides
        (pixels, wider[:, 1:-1, 2:-2]),
        (pixels, np.asfortranarray(pixels)),
        (pixels[[1, 1]], np.broadcast_to(pixels[1], (2, *pixels.shape[1:]))),
    ):
        np.testing.assert_array_equal(fast(array)[0], fast(expected)[0])
        for part, same in zip(fast.features(array, 1), fast.features(expected, 1), strict=True):
            np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "compile"])
def test_normalised_batches(engine: str) -> None:
    fast, reference = opened(engine, "mixer", pixels=False), opened("eager", "mixer", pixels=False)
    x = inputs(reference, 3)
    torch.testing.assert_close(fast.run(x), reference.run(x), **CLOSE)


@pytest.mark.parametrize("engine", ["eager", "rewritten", "openvino"])
def test_bfloat16_is_close_and_returns_float32(engine: str) -> None:
    fast, reference = (
        opened(engine, "convmixer_relu", pixels=True, precision="bfloat16"),
        opened("eager", "convmixer_relu", pixels=True),
    )
    pixels = inputs(reference, 4)
    for actual, expected in zip(fast.run(pixels), reference.run(pixels), strict=True):
        assert actual.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(actual, expected).min() > 0.999


@pytest.mark.parametrize("engine", ["eager", "rewritten", "openvino"])
def test_features_are_those_of_the_model(engine: str) -> None:
    fast, reference = opened(engine, "convmixer_relu", pixels=True), opened("eager", "convmixer_relu", pixels=True)
    pixels = inputs(reference, 2).numpy()
    for actual, expected in zip(fast.features(pixels, [0, 1]), reference.features(pixels, [0, 1]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("engine", ["rewritten", "openvino", "onnxruntime"])
def test_threads_may_share_an_engine(engine: str) -> None:
    fast = opened(engine, "mixer", pixels=True)
    batches = [inputs(fast, 2).add(i).clone() for i in range(8)]
    expected = [fast.run(batch)[0].clone() for batch in batches]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(fast.run(batches[i])[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_result_is_not_overwritten_by_the_next_call() -> None:
    fast = opened("openvino", "mixer", pixels=True)
    first = fast.run(inputs(fast, 2))
    before = [part.clone() for part in first]
    fast.run(torch.zeros_like(inputs(fast, 2)))
    for part, kept in zip(first, before, strict=True):
        assert torch.equal(part, kept)


# --- optimize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "eager", "openvino"])
def test_optimize_is_the_same_function(engine: str) -> None:
    net = tiny("mixer").train()
    x = images(net, 5)
    fast = tessella.optimize(net, engine=engine, batch_size=2)
    assert net.training  # unchanged
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), **CLOSE)
        torch.testing.assert_close(fast.embed(x), net.forward_head(net.forward_features(x), pre_logits=True), **CLOSE)
    both = fast.predict(x)
    assert torch.equal(both.logits, fast(x))
    assert torch.equal(both.embedding, fast.embed(x))
    assert fast(x[:0]).shape == (0, NUM_CLASSES)
    assert all(row.reason for row in fast.plan.choices)


@pytest.mark.parametrize("classes", [NUM_CLASSES, 0])
@pytest.mark.parametrize("engine", ["eager", "rewritten", "compile", "openvino", "onnxruntime"])
def test_a_batch_without_images_has_outputs_without_rows(engine: str, classes: int) -> None:
    model = tiny("mixer", num_classes=classes)
    size = size_of(model)
    width = model.head_hidden_size
    spec = InputSpec(height=size[0], width=size[1])
    reads_pixels = open_engine(model, make_plan("cpu", "float32", engine, BATCH), size, spec)
    pixels = np.zeros((2, *size, 3), np.uint8)
    for logits, embedding in (reads_pixels(pixels[:0]), *reads_pixels.imap([pixels[:0]])):
        assert logits.shape == (0, classes or width)
        assert embedding.shape == (0, width)
        assert logits.dtype == embedding.dtype == np.float32
    reads_tensors = open_engine(model, make_plan("cpu", "float32", engine, BATCH), size)
    empty = images(model)[:0]
    for outputs in (reads_tensors.run(empty), *reads_tensors.imap([empty])):
        assert [tuple(part.shape) for part in outputs] == [(0, classes or width), (0, width)]
        assert all(part.dtype == torch.float32 for part in outputs)


@pytest.mark.parametrize("engine", ["eager", "rewritten", "openvino"])
def test_optimized_weights_are_a_copy(engine: str) -> None:
    net = tiny("convit")
    x = images(net)
    fast = tessella.optimize(net, engine=engine)
    before = fast(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(fast(x), before)


def test_optimize_for_another_size() -> None:
    net = tiny("convmixer")
    x = images(net)[..., :20, :28]
    fast = tessella.optimize(net, example=x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), **CLOSE)
    with pytest.raises(UsageError) as caught:
        fast(images(net))
    assert caught.value.code == "wrong_input_size"
    assert "20x28" in str(caught.value)


@pytest.mark.parametrize("engine", ["auto", "eager", "rewritten"])
@pytest.mark.parametrize(
    ("case", "size"), [("mixer", (64, 64)), ("convit", (32, 64)), ("crossvit", (240, 240)), ("convmixer", (3, 32))]
)
def test_optimize_refuses_an_example_of_an_impossible_size(case: str, size: tuple[int, int], engine: str) -> None:
    with pytest.raises(UsageError, match=f"got {size[0]}x{size[1]} px images") as caught:
        tessella.optimize(tiny(case), engine=engine, example=torch.zeros(1, 3, *size))
    assert caught.value.code == "wrong_input_size"


def test_the_hint_for_a_model_of_one_size_can_be_followed() -> None:
    with pytest.raises(UsageError) as caught:
        tessella.optimize(tiny("mixer"), example=images(tiny("mixer")))(torch.zeros(1, 3, 64, 64))
    assert caught.value.code == "wrong_input_size"
    assert "img_size=(64, 64)" in str(caught.value.hint)


def test_an_optimized_model_without_classes_gives_its_embedding_for_any_batch() -> None:
    net = tiny("mixer", num_classes=0)
    fast = tessella.optimize(net, example=images(net))
    for count in (0, 2):
        assert [part.shape for part in fast.predict(images(net)[:count])] == [(count, net.head_hidden_size)] * 2


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 32, 32), torch.zeros(1, 4, 32, 32), torch.zeros(1, 3, 32, 32).byte(), "x"]
)
def test_optimized_models_refuse_inputs_other_than_batches(x: Any) -> None:
    with pytest.raises(UsageError) as caught:
        tessella.optimize(tiny("mixer"))(x)
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("example", [torch.zeros(3, 32, 32), torch.zeros(1, 4, 32, 32), "x"])
def test_optimize_refuses_an_example_that_is_not_a_batch(example: Any) -> None:
    with pytest.raises(UsageError, match=r"expected a batch \(B,3,H,W\)|example is") as caught:
        tessella.optimize(tiny("mixer"), example=example)
    assert caught.value.code == "bad_argument"


def test_optimize_refuses_other_modules() -> None:
    with pytest.raises(UsageError, match="create_model"):
        tessella.optimize(torch.nn.Identity())


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_plan_refuses_impossible_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(engine="onnxruntime", precision="bfloat16")
    assert caught.value.code == "bad_argument"
    assert "openvino" in str(caught.value.hint)
    with pytest.raises(UsageError):
        make_plan(device="meta", engine="openvino")
    monkeypatch.setattr("tessella.engine.plan.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        make_plan(engine="openvino")
    assert caught.value.code == "missing_dependency"
    assert "pip install openvino" in str(caught.value.hint)
    monkeypatch.setattr("tessella.engine.plan.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UsageError, match="needs onnxscript"):  # the runtime cannot convert models
        make_plan(engine="onnxruntime")


def test_a_plan_returns_its_choices_by_name() -> None:
    plan = make_plan("cpu", engine="eager", batch_size=3)
    assert plan.choice("engine") == ("engine", "eager", "requested")
    changed = plan.with_choice(plan.choice("batch")._replace(reason="measured"))
    assert str(changed.choice("batch")) == "batch: 3 images (measured)"
    assert [row.what for row in changed.choices] == [row.what for row in plan.choices]
    with pytest.raises(KeyError):
        plan.choice("colour")


def test_converted_models_are_reused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    first = opened.__wrapped__("onnxruntime", "mixer", pixels=True)
    monkeypatch.setattr("tessella.engine.convert.export_program", lambda *_: pytest.fail("made again"))
    again = opened.__wrapped__("onnxruntime", "mixer", pixels=True)
    pixels = inputs(first, 2)
    assert torch.equal(first.run(pixels)[0], again.run(pixels)[0])


def open_changed(engine: str) -> tuple[Any, Engine]:
    """Return a model that was changed by hand, so that OpenVINO needs a conversion, and its engine."""
    model = tiny("mixer")
    model.blocks[1].mlp_channels.act = torch.nn.SiLU()
    return model, open_engine(model, make_plan("cpu", "float32", engine, BATCH), (32, 32))


def test_a_model_that_was_changed_by_hand_is_converted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    with caplog.at_level("INFO", "tessella"):
        model, engine = open_changed("openvino")
    assert "converted by PyTorch, because the modules of the model are not those of its config" in caplog.text
    x = images(model, 3)
    with torch.no_grad():
        torch.testing.assert_close(engine.run(x)[0], model(x), **CLOSE)


def test_openvino_does_not_read_the_programs_verbose_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["tessella", "export", "--verbose"])
    open_changed("openvino")
    assert capfd.readouterr() == ("", "")  # its statistics could be mistaken for results
    assert sys.argv[-1] == "--verbose"


def test_a_failed_conversion_is_a_coded_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise NotImplementedError("no translation for aten::spline")

    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path))
    monkeypatch.setattr("tessella.engine.convert.export_program", broken)
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(tessella.WeightsError, match="aten::spline") as caught:
            open_changed(engine)
        assert caught.value.code == "conversion_failed"
        assert "rewritten" in str(caught.value.hint)


def test_the_name_of_a_conversion_depends_on_everything_that_determines_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tessella.engine import facts as names

    def facts(case: str = "mixer", pixels: bool = True, **overrides: Any) -> dict[str, Any]:
        model = tiny(case, **overrides)
        spec = InputSpec(height=32, width=32) if pixels else None
        return names.conversion_facts(Network.of(model), make_plan("cpu", engine="rewritten"), (32, 32), spec)

    usual = facts()
    assert facts() == usual
    assert facts(pixels=False) != usual
    assert facts(global_pool="") != usual
    changed = tiny("mixer")
    with torch.no_grad():
        changed.head.bias[0] += 1e-6
    assert weights_hash(changed) != usual["weights"]
    monkeypatch.setattr(names, "code_hash", lambda: "another")
    assert facts() != usual
