"""`tessella calibrate` as a person meets it, and the commands that use what it made."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tessella.calibration.detectors import KINDS
from tessella.calibration.finding import beside
from tessella.cli.calibration import DETECTORS
from tessella.weights.save import save_pretrained

from ..evaluation.small_data import NAMES, folder_of, model_of
from .test_cli import run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of five classes."""
    return folder_of(tmp_path_factory.mktemp("data") / "data", NAMES, each=10)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(model_of(), tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def calibrated(data: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("calibrated") / "model"))
    run("calibrate", str(data), "-m", f"local-dir:{folder}")
    return folder


def test_the_detectors_are_those_that_exist() -> None:
    assert DETECTORS == KINDS


def test_the_tables_say_what_was_measured_and_where_it_is(data: Path, plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    out, err = run("calibrate", str(data), "-m", f"local-dir:{folder}", "--coverage", "0.8", "--detector", "energy")
    assert f"written to {beside(folder)}" in out
    assert "calibration error (ECE)" in out
    assert "coverage (" in out
    assert "80 %" in out
    assert "5 parts, 4 times" in err
    assert "the detection of unknown images was not measured" in err


def test_json_has_every_figure(data: Path, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    out, _ = run(
        *("calibrate", str(data), "-m", f"local-dir:{plain}", "--out", str(path), "--json", "--marginal"),
        *("--unknown", str(data), "--false-alarms", "0.1"),
    )
    report = json.loads(out)
    assert report["path"] == str(path)
    assert (report["sets"]["per_class"], report["sets"]["coverage"]) == (False, 0.9)
    assert report["unknown"]["false_alarms"] == 0.1
    assert {row["kind"] for row in report["figures"]["detectors"]} == set(KINDS)
    assert report["unknown"]["detector"] == report["figures"]["detectors"][0]["kind"]
    assert 0 <= report["figures"]["coverage"] <= 1
    assert report["data"]["images"] == 50
    assert not beside(plain).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coverage", "1"], "--coverage"),
        (["--false-alarms", "0"], "--false-alarms"),
        (["--detector", "guess"], "--detector"),
    ],
)
def test_wrong_options_end_with_status_2(arguments: list[str], message: str, data: Path, plain: Path) -> None:
    _, err = run("calibrate", str(data), "-m", f"local-dir:{plain}", *arguments, status=2)
    assert message in err


def test_missing_unknown_images_end_with_status_3(data: Path, plain: Path) -> None:
    _, err = run("calibrate", str(data), "-m", f"local-dir:{plain}", "--unknown", "nowhere", status=3)
    assert "there is no file or folder 'nowhere'" in err


def test_classify_uses_the_calibration_unless_told_otherwise(data: Path, plain: Path, calibrated: Path) -> None:
    image = str(next(data.glob("ant/*")))
    rows = [
        json.loads(run("classify", image, "--json", *arguments)[0])
        for arguments in (
            ["-m", f"local-dir:{calibrated}"],
            ["-m", f"local-dir:{calibrated}", "--no-calibration"],
            ["-m", f"local-dir:{plain}"],
            ["-m", f"local-dir:{plain}", "--calibration", str(beside(calibrated))],
        )
    ]
    assert rows[0] == rows[3]
    assert rows[1] == rows[2]
    assert rows[0]["prediction_set"][0] == rows[0]["top"][0]
    assert isinstance(rows[0]["unknown"], bool)
    assert rows[0]["top"][0]["probability"] != rows[1]["top"][0]["probability"]
    assert "prediction_set" not in rows[1]


def test_csv_has_the_columns_for_bad_images_too(data: Path, calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [str(next(data.glob("ant/*"))), str(tmp_path / "bad.png")]
    out, _ = run("classify", *images, "--csv", "-m", f"local-dir:{calibrated}")
    good, bad = csv.DictReader(io.StringIO(out))
    assert good["unknown"] in ("true", "false")
    assert good["set_labels"].split(";")[0] == good["label1"]
    assert bad["unknown"] == bad["set_labels"] == ""


def test_embed_needs_no_calibration(data: Path, plain: Path, calibrated: Path) -> None:
    image = str(next(data.glob("ant/*")))
    embedded = [run("embed", image, "--json", "-m", f"local-dir:{folder}")[0] for folder in (plain, calibrated)]
    assert embedded[0] == embedded[1]
    assert "unknown" not in embedded[0]


def test_the_verbose_output_says_which_calibration_is_used(data: Path, calibrated: Path) -> None:
    image = str(next(data.glob("ant/*")))
    _, err = run("classify", image, "-v", "-m", f"local-dir:{calibrated}")
    assert "calibration: temperature" in err
    assert "beside the weights, made with 50 images" in err


def test_both_options_at_once_are_refused(data: Path, calibrated: Path) -> None:
    options = ["--calibration", str(beside(calibrated)), "--no-calibration"]
    _, err = run("classify", str(data), "-m", f"local-dir:{calibrated}", *options, status=2)
    assert "--calibration and --no-calibration cannot be combined" in err


def test_the_calibration_of_another_model_is_refused(data: Path, calibrated: Path) -> None:
    _, err = run("classify", str(next(data.glob("ant/*"))), "--calibration", str(beside(calibrated)), status=2)
    assert "the calibration is for" in err
    assert "tessella calibrate" in err


def test_evaluate_measures_the_calibrated_probabilities(data: Path, calibrated: Path) -> None:
    rows = [
        json.loads(run("evaluate", str(data), "-m", f"local-dir:{calibrated}", "--json", *arguments)[0])
        for arguments in ([], ["--no-calibration"])
    ]
    assert rows[0]["top1"] == rows[1]["top1"]
    assert rows[0]["loss"] != rows[1]["loss"]
    assert rows[1]["coverage"] is None
    assert rows[0]["promised_coverage"] == 0.9
    assert 0 <= rows[0]["coverage"] <= 1
    assert rows[0]["set_size"] >= 1
    assert "temperature" in rows[0]["conditions"]["calibration"]
    assert rows[1]["conditions"]["calibration"] == "none"
    _, err = run("evaluate", str(data), "-m", f"local-dir:{calibrated}")
    assert "calibrated: coverage" in err
    assert "called unknown (promised at most 5 %)" in err
    assert "the calibration was made from these images, so its figures, loss and ECE are too good" in err


def test_an_export_takes_the_calibration_along(data: Path, calibrated: Path, plain: Path, tmp_path: Path) -> None:
    image = str(next(data.glob("ant/*")))
    run("export", f"local-dir:{calibrated}", str(tmp_path / "exported"))
    assert beside(tmp_path / "exported").read_bytes() == beside(calibrated).read_bytes()
    row = json.loads(run("classify", image, "--json", "-m", f"local-dir:{tmp_path / 'exported'}")[0])
    assert "prediction_set" in row
    _, err = run("export", f"local-dir:{plain}", str(tmp_path / "plain"))
    assert "the export is not calibrated" in err
    run("calibrate", str(data), "-m", f"local-dir:{tmp_path / 'plain'}")
    assert "prediction_set" in json.loads(run("classify", image, "--json", "-m", f"local-dir:{tmp_path / 'plain'}")[0])
