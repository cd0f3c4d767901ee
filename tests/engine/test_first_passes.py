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
from tessella.engine.first_passes import ROUNDS, DisagreementError, FirstPasses
from tessella.engine.openvino import OpenVinoEngine
from tessella.errors import WeightsError

from ..models.tiny import tiny

STREAMS = 2


def outputs_of(images: Any) -> ArrayOutputs:
    """Return logits and embeddings (B,3) that determine their images."""
    x = np.asarray(images, np.float32).reshape(len(images), -1)[:, :1]
    factors = np.arange(1, 4, dtype=np.float32)
    return (x + factors).astype(np.float32), (x * factors).astype(np.float32)


class Runtime:
    """Computes `outputs_of` images in all streams; `wrong` selects the stream and the round that change an image."""

    def __init__(self, wrong: Callable[[int, int], bool] = lambda stream, number: False, image: int = 0):
        self.wrong, self.image, self.rounds = wrong, image, 0

    def __call__(self, images: Any) -> list[ArrayOutputs]:
        found = [outputs_of(images) for _ in range(STREAMS)]
        for stream, (_, embeddings) in enumerate(found):
            embeddings[self.image] += self.wrong(stream, self.rounds)
        self.rounds += 1
        return found


def batch(size: int = 4) -> np.ndarray:
    return np.arange(size, dtype=np.float32)


def test_each_batch_size_is_checked_once() -> None:
    runtime, passes = Runtime(), FirstPasses(STREAMS, "float32")
    for size in (4, 4, 3, 4, 3):
        passes.check(batch(size), runtime)
    assert runtime.rounds == 2 * ROUNDS


def test_one_stream_needs_no_check() -> None:
    runtime = Runtime()
    FirstPasses(1, "float32").check(batch(), runtime)
    assert runtime.rounds == 0


@pytest.mark.parametrize("stream", range(STREAMS))
@pytest.mark.parametrize("image", range(4))
def test_a_wrong_first_pass_is_noticed(stream: int, image: int) -> None:
    runtime = Runtime(lambda which, number: which == stream and number == 0, image)
    with pytest.raises(DisagreementError, match=f"for the images {image}, by"):
        FirstPasses(STREAMS, "float32").check(batch(), runtime)


def test_first_passes_that_are_wrong_in_all_streams_are_noticed() -> None:
    with pytest.raises(DisagreementError):
        FirstPasses(STREAMS, "float32").check(batch(), Runtime(lambda stream, number: number == 0))


@pytest.mark.parametrize("stream", range(STREAMS))
def test_a_stream_that_is_always_wrong_is_noticed(stream: int) -> None:
    passes, runtime = FirstPasses(STREAMS, "float32"), Runtime(lambda which, number: which == stream)
    for _ in range(2):  # a batch size that failed stays unchecked
        with pytest.raises(DisagreementError):
            passes.check(batch(), runtime)


def test_a_model_without_classes_is_compared_by_its_embeddings() -> None:
    def run_streams(images: Any) -> list[ArrayOutputs]:
        return [(images[:, None][:, :0], outputs_of(images)[1] + np.float32(stream)) for stream in range(STREAMS)]

    with pytest.raises(DisagreementError, match="for the images 0, 1, 2, 3, by"):
        FirstPasses(STREAMS, "float32").check(batch(), run_streams)


def test_outputs_that_are_not_finite_agree_with_themselves() -> None:
    def broken(images: Any) -> ArrayOutputs:
        logits, embeddings = outputs_of(images)
        logits[0], embeddings[1] = np.nan, np.inf
        return logits, embeddings

    FirstPasses(STREAMS, "float32").check(batch(), lambda images: [broken(images)] * STREAMS)
    with pytest.raises(DisagreementError, match="for the images 0, 1, by inf"):
        FirstPasses(STREAMS, "float32").check(batch(), lambda images: [outputs_of(images), broken(images)])


def test_one_of_several_threads_checks() -> None:
    runtime, passes = Runtime(), FirstPasses(STREAMS, "float32")
    gate = threading.Barrier(4)

    def work() -> None:
        gate.wait()
        for size in (1, 2, 3):
            passes.check(batch(size), runtime)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runtime.rounds == 3 * ROUNDS


# --- the engine -------------------------------------------------------------------------------------------------------


def opened(streams: int = STREAMS) -> tuple[Engine, np.ndarray, ArrayOutputs]:
    """Return an engine, images, and their outputs from the model in PyTorch."""
    model, spec = tiny("mixer"), InputSpec(height=32, width=32)
    plan = dataclasses.replace(make_plan("cpu", "float32", "openvino", 8), threads=streams, streams=streams)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    eager = open_engine(model, make_plan("cpu", "float32", "eager", 8), (32, 32), spec)
    return open_engine(model, plan, (32, 32), spec), images, eager(images)


def damage(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[int, int], bool]) -> list[object]:
    """Change the logits in the streams and rounds that `wrong` selects; return a list of the compiled graphs."""
    compiled: list[object] = []
    original, counter = openvino._Compiled.run_streams, iter(range(1000))

    def run_streams(self: Any, x: Any) -> list[ArrayOutputs]:
        if self not in compiled:
            compiled.append(self)
        number, found = next(counter), original(self, x)
        return [(logits + wrong(stream, number), embeddings) for stream, (logits, embeddings) in enumerate(found)]

    monkeypatch.setattr(openvino._Compiled, "run_streams", run_streams)
    return compiled


def run(engine: Engine, images: np.ndarray) -> ArrayOutputs:
    return next(engine.imap([images]))


def test_a_wrong_first_pass_is_not_returned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    engine, images, expected = opened()
    compiled = damage(monkeypatch, lambda stream, number: stream == 1 and number == 0)
    for _ in range(3):
        for found, right in zip(run(engine, images), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-4)
    assert len(compiled) == 2
    assert "the model is compiled again" in caplog.text


def test_an_engine_that_stays_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images, _ = opened()
    damage(monkeypatch, lambda stream, number: stream == 1)
    with pytest.raises(WeightsError, match="in 3 attempts") as caught:
        run(engine, images)
    assert caught.value.code == "unstable_engine"


def test_every_stream_computes_the_images() -> None:
    engine, images, expected = opened()
    assert isinstance(engine, OpenVinoEngine)
    found = engine.current.run_streams(images)
    assert len(found) == STREAMS
    for outputs in found:
        for part, right in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(part, right, atol=1e-4)


@pytest.mark.parametrize(("streams", "sizes"), [(1, []), (STREAMS, [2, 2, 1, 1])])
def test_the_sizes_of_requests_are_checked(streams: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, images, _ = opened(streams)
    engine.plan = dataclasses.replace(engine.plan, request=2)
    checked: list[int] = []
    original = openvino._Compiled.run_streams

    def run_streams(self: Any, x: Any) -> list[ArrayOutputs]:
        checked.append(len(x))
        return original(self, x)

    monkeypatch.setattr(openvino._Compiled, "run_streams", run_streams)
    for _ in range(2):
        engine(images[:7])
    assert checked == sizes
