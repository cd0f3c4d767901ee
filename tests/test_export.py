"""An exported folder gives the same outputs without PyTorch, and is refused if it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.engine.artefacts import seal
from tessella.engine.exported import FILE, is_exported
from tessella.errors import UsageError, WeightsError
from tessella.export import export

from .cli.test_startup import best_seconds

CAT = str(Path(__file__).resolve().parent.parent / "examples" / "cat.jpg")


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    predictor = tessella.load(engine=request.param)
    return export(predictor, tmp_path_factory.mktemp("exported") / request.param)


def test_an_exported_model_matches_its_source(folder: Path) -> None:
    source, exported = tessella.load(engine="eager"), tessella.load(f"local-dir:{folder}")
    images: list[Any] = [CAT, np.zeros((5, 9, 3), np.uint8), CAT]
    expected, actual = source.predict(images), exported.predict(images)
    np.testing.assert_allclose(actual.probabilities, expected.probabilities, atol=3e-6)
    np.testing.assert_allclose(actual.embeddings, expected.embeddings, atol=3e-6)
    assert exported.classify(CAT, top=1)[0].label == source.classify(CAT, top=1)[0].label
    assert exported.fingerprint == source.fingerprint  # equal outputs, so their results can be combined
    assert exported.name == source.name
    other = tessella.load(f"local-dir:{folder}", policy="timm")
    assert other.fingerprint == tessella.load(policy="timm").fingerprint != exported.fingerprint
    assert all(row.reason for row in exported.plan.choices)


def test_an_exported_model_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, runpy; sys.modules['torch'] = None\n"  # makes an import fail
        f"sys.argv = ['tessella', 'classify', '--model', 'local-dir:{folder}', '--top', '1', {CAT!r}]\n"
        "from tessella.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tessella.load().classify(CAT, top=1)[0].label in done.stdout


def test_int8_is_exported_with_its_fingerprint(tmp_path: Path) -> None:
    source = tessella.load(precision="int8")
    assert source.plan.precision == "int8"
    exported = tessella.load(f"local-dir:{export(source, tmp_path / 'int8')}")
    assert exported.plan.precision == "int8"
    assert exported.fingerprint == source.fingerprint != tessella.load().fingerprint
    images: list[Any] = [CAT, np.zeros((5, 9, 3), np.uint8)]
    expected, actual = source.predict(images), exported.predict(images)
    np.testing.assert_allclose(actual.probabilities, expected.probabilities, atol=1e-5)
    assert (tmp_path / "int8" / "model.bin").stat().st_size < 4_000_000  # 7.0 MB in float32


@pytest.mark.quiet
def test_a_cold_start_takes_under_a_second_and_a_half(folder: Path) -> None:
    command = [sys.executable, "-m", "tessella", "classify", "--model", f"local-dir:{folder}", CAT]
    assert best_seconds(command) < 1.5


def test_settings_fixed_by_the_export_are_refused(folder: Path) -> None:
    for settings in (dict(engine="eager"), dict(precision="bfloat16"), dict(device="cuda"), dict(num_classes=3)):
        with pytest.raises(UsageError, match="exported model"):
            tessella.load(f"local-dir:{folder}", **settings)
    exported = tessella.load(f"local-dir:{folder}", mode="latency")
    assert exported.plan.batch_size == 1
    with pytest.raises(UsageError, match="no PyTorch module"):
        exported.features(CAT, 1)
    with pytest.raises(UsageError, match="no PyTorch module"):
        exported.model  # noqa: B018


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return export(tessella.load(engine="openvino"), tmp_path / "copied")


def test_damage_is_detected(copied: Path) -> None:
    graph = copied / "model.bin"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        tessella.load(f"local-dir:{copied}")
    assert caught.value.code == "hash_mismatch"
    assert "model.bin" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "newer Tessella"),
        ({"engine": "abacus"}, "cannot be read"),
        ({"labels": None}, "cannot be read"),
        ({"surprise": 1}, "cannot be read"),
    ],
)
def test_an_unusable_card_is_a_coded_error(copied: Path, change: dict[str, object], message: str) -> None:
    card = copied / FILE
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(WeightsError, match=message) as caught:
        tessella.load(f"local-dir:{copied}")
    assert caught.value.code == "bad_config"


def test_a_card_without_its_format_is_refused(copied: Path) -> None:
    rows = json.loads((copied / FILE).read_text())
    del rows["format"]
    (copied / FILE).write_text(json.dumps(rows))
    seal(copied, {"card": FILE})
    with pytest.raises(WeightsError, match="format") as caught:
        tessella.load(f"local-dir:{copied}")
    assert caught.value.code == "bad_config"


def test_nothing_is_overwritten_or_written_partly(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = tessella.load()
    with pytest.raises(UsageError, match="already exists"):
        export(predictor, copied)
    with pytest.raises(UsageError, match="no file to export"):
        export(tessella.load(engine="rewritten"), copied.parent / "new")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openvino.save_model", full)
    with pytest.raises(tessella.TessellaError) as caught:
        export(predictor, copied.parent / "new")
    assert caught.value.code == "output_failed"
    assert [path.name for path in copied.parent.iterdir()] == ["copied"]
    assert is_exported(copied)


def test_a_missing_runtime_is_reported(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.engine.plan.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        tessella.load(f"local-dir:{copied}")
    assert caught.value.code == "missing_dependency"
    assert "pip install openvino" in str(caught.value.hint)
