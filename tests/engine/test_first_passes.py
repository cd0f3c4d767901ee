"""The first passes of streams are compared: wrong outputs are noticed, replaced and never returned."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tessella.data.spec import InputSpec
from tessella.engine import make_plan, open_engine, openvino
from tessella.engine.base import ArrayOutputs, Engine
from tessella.engine.first_passes import DisagreementError, FirstPasses
from tessella.errors import WeightsError

from ..models.tiny import tiny

STREAMS = 2
ENOUGH = 2 * STREAMS


def outputs_of(images: Any) -> ArrayOutputs:
    """Return logits and embeddings (B,3) that determine their images."""
    x = np.asarray(images, np.float32).reshape(len(images), -1)[:, :1]
    factors = np.arange(1, 4, dtype=np.float32)
    return (x + factors).astype(np.float32), (x * factors).astype(np.float32)


class Runtime:
    """Computes `outputs_of` images, wrongly in the passes that `wrong` selects by their number."""

    def __init__(self, wrong: Callable[[int], bool] = lambda number: False, image: int = 0):
        self.wrong, self.image, self.passes, self.lock = wrong, image, 0, threading.Lock()

    def __call__(self, images: Any) -> ArrayOutputs:
        with self.lock:
            number, self.passes = self.passes, self.passes + 1
        logits, embeddings = outputs_of(images)
        if self.wrong(number):
            embeddings[self.image] += 1
        return logits, embeddings


def batch(start: int, size: int = 4) -> np.ndarray:
    return np.arange(start, start + size, dtype=np.float32)


def check(found: ArrayOutputs, images: np.ndarray) -> None:
    for part, expected in zip(found, outputs_of(images), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_passes_are_compared_until_every_stream_has_run() -> None:
    runtime, passes = Runtime(), FirstPasses(STREAMS, "float32")
    for number in range(ENOUGH + 3):
        check(passes.run(runtime, batch(number)), batch(number))
        assert runtime.passes == 2 * min(number + 1, ENOUGH) + max(number + 1 - ENOUGH, 0)
    passes.run(runtime, batch(0, 3))  # another batch size
    assert runtime.passes == 2 * ENOUGH + 3 + 2


def test_one_stream_needs_no_comparison() -> None:
    runtime, passes = Runtime(), FirstPasses(1, "float32")
    check(passes.run(runtime, batch(0)), batch(0))
    assert runtime.passes == 1


@pytest.mark.parametrize("image", range(4))
def test_a_wrong_first_pass_is_noticed(image: int) -> None:
    with pytest.raises(DisagreementError, match=f"for the images {image}, by"):
        FirstPasses(STREAMS, "float32").run(Runtime(lambda number: number == 0, image), batch(0))


@pytest.mark.parametrize("stream", range(STREAMS))
def test_a_stream_that_is_always_wrong_is_noticed(stream: int) -> None:
    """The passes 0 and 1 are those of the first batch, in one stream; the streams take the following ones in turn."""
    passes = FirstPasses(STREAMS, "float32")
    runtime = Runtime(lambda number: number // 2 % STREAMS == stream)
    passes.run(runtime, batch(0))
    with pytest.raises(DisagreementError):
        passes.run(runtime, batch(1))


def test_a_model_without_classes_is_compared_by_its_embeddings() -> None:
    calls = iter(range(10))

    def infer(images: Any) -> ArrayOutputs:
        logits, embeddings = outputs_of(images)
        return logits[:, :0], embeddings + np.float32(next(calls) == 2)

    passes = FirstPasses(STREAMS, "float32")
    passes.run(infer, batch(0))
    with pytest.raises(DisagreementError, match="for the images 0, 1, 2, 3, by"):
        passes.run(infer, batch(4))


def test_outputs_that_are_not_finite_agree_with_themselves() -> None:
    def infer(images: Any) -> ArrayOutputs:
        logits, embeddings = outputs_of(images)
        logits[0] = np.nan
        embeddings[1] = np.inf
        return logits, embeddings

    passes = FirstPasses(STREAMS, "float32")
    for _ in range(ENOUGH):
        assert np.isnan(passes.run(infer, batch(0))[0][0]).all()
    calls = iter([infer, outputs_of])
    with pytest.raises(DisagreementError, match="for the images 0, 1, by inf"):
        FirstPasses(STREAMS, "float32").run(lambda images: next(calls)(images), batch(0))


def test_the_caller_may_change_images_and_outputs() -> None:
    passes, runtime = FirstPasses(STREAMS, "float32"), Runtime()
    for number in range(ENOUGH):
        images = batch(number)
        for part in passes.run(runtime, images):
            part[:] = -1
        images[:] = 99


def test_threads_share_the_comparison() -> None:
    runtime, passes = Runtime(), FirstPasses(STREAMS, "float32")
    gate = threading.Barrier(4)
    failed: list[BaseException] = []

    def work(start: int) -> None:
        try:
            gate.wait()
            for number in range(50):
                size = 1 + number % 5
                check(passes.run(runtime, batch(start + number, size)), batch(start + number, size))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not passes._probes
    assert passes._done == {1, 2, 3, 4, 5}


# --- the engine -------------------------------------------------------------------------------------------------------


def opened(streams: int = STREAMS) -> tuple[Engine, np.ndarray, ArrayOutputs]:
    """Return an engine, images, and their outputs from the model in PyTorch."""
    model, spec = tiny("mixer"), InputSpec(height=32, width=32)
    plan = dataclasses.replace(make_plan("cpu", "float32", "openvino", 8), threads=streams, streams=streams)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    eager = open_engine(model, make_plan("cpu", "float32", "eager", 8), (32, 32), spec)
    return open_engine(model, plan, (32, 32), spec), images, eager(images)


def damage(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[int], bool]) -> list[object]:
    """Change the outputs of OpenVINO in the passes that `wrong` selects; return a list of the compiled graphs."""
    compiled: list[object] = []
    original, counter, lock = openvino._Compiled.infer, iter(range(1000)), threading.Lock()

    def infer(self: Any, x: Any) -> ArrayOutputs:
        with lock:
            number = next(counter)
            if self not in compiled:
                compiled.append(self)
        logits, embeddings = original(self, x)
        return (logits + number + 1 if wrong(number) else logits), embeddings

    monkeypatch.setattr(openvino._Compiled, "infer", infer)
    return compiled


def run(engine: Engine, images: np.ndarray) -> ArrayOutputs:
    return next(engine.imap([images]))


def test_a_wrong_first_pass_is_not_returned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    engine, images, expected = opened()
    compiled = damage(monkeypatch, lambda number: number == 0)
    for _ in range(3):
        for found, right in zip(run(engine, images), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-4)
    assert len(compiled) == 2
    assert "the model is compiled again" in caplog.text


def test_an_engine_that_stays_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images, _ = opened()
    damage(monkeypatch, lambda number: True)
    with pytest.raises(WeightsError, match="in 3 attempts") as caught:
        run(engine, images)
    assert caught.value.code == "unstable_engine"


def record_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of images of each pass of OpenVINO."""
    sizes: list[int] = []
    original = openvino._Compiled.infer

    def infer(self: Any, x: Any) -> ArrayOutputs:
        sizes.append(len(x))
        return original(self, x)

    monkeypatch.setattr(openvino._Compiled, "infer", infer)
    return sizes


def test_the_first_request_of_each_size_in_a_batch_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images, _ = opened()
    engine.plan = dataclasses.replace(engine.plan, request=2)
    sizes = record_sizes(monkeypatch)
    engine(images[:7])
    assert sizes == [2, 2, 2, 2, 1, 1]


def test_one_stream_computes_each_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images, _ = opened(1)
    sizes = record_sizes(monkeypatch)
    run(engine, images)
    assert sizes == [8]
