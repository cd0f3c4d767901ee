"""The card of a trained model: its report, its training and its calibration."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from tessella.calibration import Calibration, write_calibration
from tessella.calibration.finding import beside
from tessella.cards import card
from tessella.cards.calibrated import read_calibration_beside
from tessella.weights.catalogue import BUILTIN_FOLDER

from ..calibration.made import made_calibration
from ..weights.card_rules import problems

TRAINED = Path(__file__).parent.parent / "stored" / "train-finished"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run without its checkpoints."""
    out = tmp_path / "animals"
    shutil.copytree(TRAINED, out, ignore=shutil.ignore_patterns("checkpoints", "*.npz"))
    return out


def made() -> Calibration:
    """Return a calibration with known figures."""
    calibration = made_calibration(100, detector="energy")
    return dataclasses.replace(
        calibration,
        temperature=1.25,
        data=calibration.data._replace(origin="images <b>of</b> mine", images=2500),
        figures={"ece_before": 0.0843, "ece_after": 0.0211},
    )


def test_a_card_has_training_and_evaluation(folder: Path) -> None:
    text = card(folder)
    report = json.loads((folder / "report" / "report.json").read_text())
    assert problems(text) == []
    assert f"{100 * report['metrics']['top1']:.2f} %" in text
    assert "tessella train images --config config.json" in text
    assert report["conditions"]["fingerprint"] in text
    assert "The probabilities are not calibrated. The expected calibration error was" in text
    assert "| expected calibration error, 15 bins |" in text
    assert "\nThe model answers with one of its classes" in text
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    (result,) = (row for row in data.eval_results or () if "Top-1" in str(row.metric_name))
    assert result.metric_value == pytest.approx(100 * report["metrics"]["top1"], abs=1e-3)
    assert result.source_url is None
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Model details", "Model usage", "Training", "Evaluation", "Calibration and limits", "Citation"]


def test_a_written_card_gives_itself(folder: Path) -> None:
    text = card(folder)
    (folder / "README.md").write_text(text)
    assert card(folder) == text


def test_files_that_are_missing_or_damaged_leave_their_sections_out(folder: Path) -> None:
    (folder / "README.md").unlink()
    assert "every setting is in [train.json](train.json)" in card(folder)
    (folder / "train.json").unlink()
    assert "## Training" not in card(folder)
    for content in ("{", "[]", '{"metrics": 3}', '{"metrics": {"top1": "high", "per_class": 3}, "conditions": []}'):
        (folder / "report" / "report.json").write_text(content)
        assert "## Evaluation" not in card(folder)
    shutil.rmtree(folder / "report")
    assert problems(card(folder)) == []


def test_text_of_a_report_is_escaped(folder: Path) -> None:
    path = folder / "report" / "report.json"
    report = json.loads(path.read_text())
    report["conditions"]["data"] = "<script>\n---\nlicense: evil"
    for row in report["metrics"]["per_class"]:
        row |= dict(label="[x](javascript:1)", recall=0.5 if row is report["metrics"]["per_class"][0] else 1.0)
    path.write_text(json.dumps(report))
    text = card(folder)
    assert "<script>" not in text.partition("\n---\n")[2]
    assert "[x]" not in text
    assert problems(text) == []
    assert "license: evil" not in text.partition("\n---\n")[0].splitlines()


def test_a_card_cannot_control_the_terminal(folder: Path) -> None:
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("## Training\n", "## Training\n\x1b[2J\tone\u202e\n", 1))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["label_names"][0] = "\x1b]0;title\x07"
    path.write_text(json.dumps(config))
    text = card(folder)
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert "\\x1b[2J" in text
    assert r"\x1b\]0;title\x07" in text


# --- calibration ------------------------------------------------------------------------------------------------------


def test_a_calibration_is_described(folder: Path) -> None:
    write_calibration(beside(folder), made())
    text = card(folder)
    assert "logits are divided by 1.25, fitted on 2,500 images of images &lt;b&gt;of&lt;/b&gt; mine" in text
    assert "error is 8.4 % without and 2.1 % with it" in text
    assert "for 90 % of images like these, and at most 5 %" in text
    assert "not calibrated" not in text
    assert "| expected calibration error, 15 bins, before calibration |" in text
    assert "Without the calibration, the model answers with one of its classes" in text


def test_a_card_without_measured_errors_says_nothing_about_them(folder: Path) -> None:
    write_calibration(beside(folder), dataclasses.replace(made(), figures={"ece_before": "high"}))
    assert "fitted on 2,500 images" in card(folder)
    assert "The expected calibration error is" not in card(folder)


def test_a_damaged_calibration_counts_as_none(tmp_path: Path) -> None:
    path = write_calibration(beside(tmp_path), made())
    whole = path.read_bytes()
    assert read_calibration_beside(tmp_path) is not None
    for damaged in (whole.replace(b"1.25", b"1.35"), whole[:-1], b"\xff" * 20, b""):
        path.write_bytes(damaged)
        assert read_calibration_beside(tmp_path) is None
    path.unlink()
    assert read_calibration_beside(tmp_path) is None


def test_calibrations_of_built_in_models_are_found_beside_their_weights() -> None:
    """There need not be any; those that there are can be read."""
    for weights in BUILTIN_FOLDER.glob("*.cifar10.safetensors"):
        assert (read_calibration_beside(weights) is not None) is beside(weights).exists()
