"""An exported folder gives the same outputs without PyTorch, and is refused if it is damaged."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.engine.artefacts import seal
from tessella.engine.base import ArrayOutputs
from tessella.engine.consistency import BATCHES, Consistency
from tessella.engine.difference import relative_difference
from tessella.engine.exported import FILE, is_exported
from tessella.engine.openvino import OpenVinoEngine
from tessella.errors import OutputError, UsageError, WeightsError
from tessella.export import export

from .cli.test_startup import best_seconds
from .structure import code_lines, parse
from .test_builtin import CIFAR10_MODEL

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CAT = str(EXAMPLES / "cat.jpg")


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


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX's")
def test_a_full_disk_is_a_coded_error_and_nothing_is_left(tmp_path: Path) -> None:
    import resource

    predictor = tessella.load(CIFAR10_MODEL, engine="openvino")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # a longer file fails as on a full disk
    try:
        with pytest.raises(OutputError, match=r"could not be written: .*OpenVINO") as caught:
            export(predictor, tmp_path / "exported")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "output_failed"
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_reported(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.engine.plan.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        tessella.load(f"local-dir:{copied}")
    assert caught.value.code == "missing_dependency"
    assert "pip install openvino" in str(caught.value.hint)


# --- the comparison with the source -----------------------------------------------------------------------------------


def test_an_export_is_compared_with_the_reference(tmp_path: Path) -> None:
    checks: list[Consistency] = []
    export(tessella.load(CIFAR10_MODEL, engine="openvino"), tmp_path / "exported", on_checked=checks.append)
    (found,) = checks
    assert tuple(found.errors) == BATCHES == (1, 2, 7)
    assert 0 < found.error <= 1e-4
    assert found.agreement == 1
    assert found.reference == "the unchanged model in PyTorch"
    assert "(batch 7)" in str(found)
    assert "100 % same top class" in str(found)


def test_an_export_that_differs_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = tessella.load(CIFAR10_MODEL, engine="openvino")
    compute = OpenVinoEngine.__call__

    def depends_on_neighbors(self: OpenVinoEngine, x: Any) -> ArrayOutputs:
        logits, embeddings = compute(self, x)
        return (logits + 0.01 * (len(x) == 2), embeddings) if self.graph else (logits, embeddings)

    monkeypatch.setattr(OpenVinoEngine, "__call__", depends_on_neighbors)
    with pytest.raises(WeightsError, match=r"batch 2\)") as caught:
        export(predictor, tmp_path / "exported")
    assert caught.value.code == "conversion_failed"
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_numbers_are_infinitely_wrong() -> None:
    good = np.eye(3, dtype=np.float32)
    for bad in (np.full_like(good, np.nan), good[:2], np.full_like(good, np.inf)):
        assert relative_difference((bad, good), (good, good)) == np.inf
        assert relative_difference((good, bad), (good, good)) == np.inf
    assert relative_difference((good, good), (good, good)) == 0
    found = Consistency({1: 0.0, 2: float("nan")}, 1.0, 7, "float32", "itself")
    assert not found.passes
    assert dataclasses.replace(found, errors={1: 0.0}).passes


def test_a_fine_tuned_model_keeps_its_own_labels(tmp_path: Path) -> None:
    labels = ["ä cat", "dog, or wolf", "no animal"]
    model = tessella.create_model(CIFAR10_MODEL, pretrained=True, num_classes=3)
    tessella.save_pretrained(model, tmp_path / "saved", config_overrides={"label_names": labels})
    source = tessella.load(f"local-dir:{tmp_path / 'saved'}", engine="openvino")
    exported = tessella.load(f"local-dir:{export(source, tmp_path / 'exported')}")
    assert list(exported.labels) == list(source.labels) == labels
    assert exported.classify(CAT, top=1)[0].label == source.classify(CAT, top=1)[0].label


# --- a program without this package -----------------------------------------------------------------------------------

PROGRAM = EXAMPLES / "run_export.py"


def test_the_program_is_short() -> None:
    assert code_lines(parse(PROGRAM.read_text(), "run_export")) <= 30


def test_the_program_imports_only_numpy_pillow_and_a_runtime() -> None:
    nodes = list(ast.walk(ast.parse(PROGRAM.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "sys", "pathlib", "numpy", "PIL", "openvino", "onnxruntime"}


def test_the_program_gives_the_same_probabilities(folder: Path) -> None:
    """Importing tessella and torch fails in its process."""
    images = [CAT, str(EXAMPLES / "coffee.jpg")]
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['tessella'] = None\n"
        f"sys.argv = [{str(PROGRAM)!r}, {str(folder)!r}, *{images!r}]\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = tessella.load(f"local-dir:{folder}", calibration=None).classify(images, top=3)
    lines = done.stdout.splitlines()
    assert [lines[0], lines[4]] == images
    for shown, predictions in zip((lines[1:4], lines[5:8]), expected, strict=True):
        for line, prediction in zip(shown, predictions, strict=True):
            label, _, probability = line.strip().rpartition(" ")
            assert label == prediction.label
            assert float(probability) == pytest.approx(prediction.probability, abs=1e-4)


def test_a_file_where_a_folder_is_expected_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="could not be written: Not a directory"):
        export(tessella.load(CIFAR10_MODEL, engine="openvino"), tmp_path / "file" / "exported")
