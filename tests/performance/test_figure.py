"""The plot of speed against published accuracy."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from tessella.errors import UsageError
from tessella.performance import figure
from tessella.performance.measuring import BenchmarkRow


def two_rows() -> list[BenchmarkRow]:
    return [
        BenchmarkRow(model="mixer_b16_224", candidate=name, precision="float32", batch=batch, reads="uint8",
            images_per_second=speed)
        for name, speed in (("eager", 5.0), ("openvino", 7.5), ("absent", None)) for batch in (8, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figure(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"speed{suffix}"
    figure.draw(two_rows(), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in data


def test_a_plot_that_cannot_be_drawn_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(figure, "render_figure", lambda *_: 1 / 0)
    figure.draw(two_rows(), tmp_path / "speed.png")
    assert "speed.png was not drawn: ZeroDivisionError" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_figure_without_matplotlib_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *more: Any, **rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *more, **rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(UsageError) as caught:
        figure.check_figure(["mixer_b16_224"])
    assert caught.value.code == "missing_dependency"
    assert "pip install matplotlib" in caught.value.hint


def test_a_figure_needs_a_published_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: None)
    with pytest.raises(UsageError, match="no accuracy is published") as caught:
        figure.check_figure(["convmixer_256_8_ks3_p4"])
    assert caught.value.code == "bad_argument"
    figure.check_figure(["convmixer_256_8_ks3_p4", "mixer_b16_224"])
