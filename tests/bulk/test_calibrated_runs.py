"""Runs of a calibrated model: their columns, what is refused on resuming, and that the index has what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tessella.bulk import RunSettings, read_rows, run, shards, verify
from tessella.calibration.storage import calibration_hash
from tessella.errors import UsageError
from tessella.predictor import Predictor
from tessella.search import Index, build_index

from ..calibration.made import calibration_for, never_known
from ..evaluation.small_data import picture, predictor_of

SETTINGS = RunSettings(shard_rows=4, processes=1, top=2)
COLUMNS = {"unknown", "familiarity", "set_size", "set_index", "set_label"}


@pytest.fixture(scope="module")
def plain() -> Predictor:
    return predictor_of()


@pytest.fixture(scope="module")
def calibrated(plain: Predictor) -> Predictor:
    return plain.with_calibration(calibration_for(plain))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images and one that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(9):
        picture(number).save(folder / f"{number}.png", "PNG")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def rows_of(out: Path) -> list[dict[str, object]]:
    return [row for table in read_rows(out) for row in table.to_pylist()]


def stop_after(shards: int, predictor: Predictor, images: Path, out: Path) -> None:
    """Leave a run that was stopped after some shards."""
    run([images], out, predictor, SETTINGS)
    from tessella.bulk.ledger import ledger_bytes, read_ledger

    kept = {number: shard for number, shard in read_ledger(out).items() if number < shards}
    (out / "run.sqlite").write_bytes(ledger_bytes(kept))
    (out / "summary.json").unlink()


def test_rows_have_what_the_calibration_says(calibrated: Predictor, images: Path, tmp_path: Path) -> None:
    run([images], tmp_path / "run", calibrated, SETTINGS)
    sources = [images / str(row["key"]) for row in rows_of(tmp_path / "run")]
    expected = {record.key: record for record in calibrated.records(map(str, sorted(images.iterdir())), top=2)}
    assert calibrated.calibration is not None
    assert len(sources) == 10
    for row in rows_of(tmp_path / "run"):
        record = expected[str(images / Path(str(row["key"])).name)]
        if record.assessment is None:
            assert (row["status"], row["unknown"], row["set_index"]) == ("unsupported_format", None, None)
            continue
        assert row["unknown"] == record.assessment.unknown
        assert row["familiarity"] == pytest.approx(record.assessment.familiarity)
        assert row["set_index"] == [one.index for one in record.assessment.prediction_set]
        assert row["set_size"] == len(record.assessment.prediction_set)
        assert row["set_label"] == [one.label for one in record.assessment.prediction_set]
        assert row["top_probability"] == pytest.approx([one.probability for one in record.top])
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["calibration"] == calibration_hash(calibrated.calibration)
    shard = pq.read_schema(next((tmp_path / "run" / "shards").glob("*.parquet")))
    assert json.loads(shard.metadata[b"tessella"])["calibration"] == facts["calibration"]
    assert verify(tmp_path / "run").damage == ()


def test_without_a_calibration_everything_is_as_it_was(plain: Predictor, images: Path, tmp_path: Path) -> None:
    run([images], tmp_path / "run", plain, SETTINGS)
    assert not COLUMNS & rows_of(tmp_path / "run")[0].keys()
    assert "calibration" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_a_run_without_classes_has_no_assessments(calibrated: Predictor, images: Path, tmp_path: Path) -> None:
    run([images], tmp_path / "run", calibrated, RunSettings(top=0, processes=1))
    assert not COLUMNS & rows_of(tmp_path / "run")[0].keys()
    assert "calibration" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_a_killed_run_ends_with_the_same_bytes(calibrated: Predictor, images: Path, tmp_path: Path) -> None:
    run([images], tmp_path / "whole", calibrated, SETTINGS)
    stop_after(1, calibrated, images, tmp_path / "resumed")
    run([images], tmp_path / "resumed", calibrated, SETTINGS)
    for path in (tmp_path / "whole" / "shards").iterdir():
        assert (tmp_path / "resumed" / "shards" / path.name).read_bytes() == path.read_bytes()


def test_another_calibration_is_refused(plain: Predictor, calibrated: Predictor, images: Path, tmp_path: Path) -> None:
    stop_after(1, calibrated, images, tmp_path / "run")
    other = plain.with_calibration(calibration_for(plain, coverage=0.7))
    for predictor in (other, plain):
        with pytest.raises(UsageError, match="holds a run with other settings: calibration") as caught:
            run([images], tmp_path / "run", predictor, SETTINGS)
        assert caught.value.code == "changed_run"
    assert "--calibration" in caught.value.hint


def test_a_run_that_began_without_one_is_resumed_without_one(
    plain: Predictor, calibrated: Predictor, images: Path, tmp_path: Path
) -> None:
    """Its model may have been calibrated since; only a calibration that was asked for is refused."""
    run([images], tmp_path / "whole", plain, SETTINGS)
    stop_after(1, plain, images, tmp_path / "run")
    with pytest.raises(UsageError, match="calibration ''") as caught:
        run([images], tmp_path / "run", calibrated, SETTINGS)
    assert "--no-calibration" in caught.value.hint
    events: list[object] = []
    found = plain.with_calibration(calibration_for(plain), "beside the weights")
    run([images], tmp_path / "run", found, SETTINGS, on_event=events.append)
    assert any("resuming without a calibration" in str(event) for event in events)
    for path in (tmp_path / "whole" / "shards").iterdir():
        assert (tmp_path / "run" / "shards" / path.name).read_bytes() == path.read_bytes()


def test_the_classes_of_large_sets_are_not_stored(
    calibrated: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record for record in calibrated.records(sorted(images.iterdir())) if record.assessment is not None]
    sizes = [len(record.assessment.prediction_set) for record in records if record.assessment is not None]
    monkeypatch.setattr(shards, "MAX_SET", max(sizes) - 1)
    run([images], tmp_path / "run", calibrated, SETTINGS)
    rows = [row for row in rows_of(tmp_path / "run") if row["status"] == "ok"]
    assert [row["set_size"] for row in rows] == sizes
    for row in rows:
        assert (row["set_label"] is None) == (row["set_index"] is None) == (row["set_size"] == max(sizes))


# --- index ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def indexed(plain: Predictor, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index in which about half of the images are unknown."""
    calibration = calibration_for(plain)
    energies = [-float(np.log(np.exp(one.logits).sum())) for one in plain.outputs(sorted(images.glob("[0-9]*.png")))]  # type: ignore[union-attr]
    scores = np.full(100, np.median(energies))
    detection = type(calibration.unknown)(calibration.unknown.detector, scores, 0.05)
    from dataclasses import replace

    out = tmp_path_factory.mktemp("indexed") / "run"
    run([images], out, plain.with_calibration(replace(calibration, unknown=detection)), SETTINGS)
    build_index(out)
    return out


@pytest.mark.parametrize("memory", [None, 0])
def test_searches_can_ask_for_unknown_images(indexed: Path, images: Path, memory: int | None) -> None:
    query = f"key:{images / '0.png'}"
    rows = {row["key"]: row for row in rows_of(indexed) if row["status"] == "ok"}
    index = Index(indexed, memory=memory)
    for condition, wanted in (("unknown", True), ("NOT unknown", False)):
        found = index.search(query, top=20, where=condition)
        expected = {key for key, row in rows.items() if row["unknown"] is wanted and key != query[4:]}
        assert {one.key for one in found} == expected
        assert expected
        assert all(one.unknown is wanted for one in found)
    for one in index.search(query, top=20):
        assert one.set_size == len(rows[one.key]["set_index"])  # type: ignore[arg-type]
        assert one.familiarity == pytest.approx(rows[one.key]["familiarity"])
    assert {one.key for one in index.search(query, top=20, where="set_size = 1")} <= {
        key
        for key, row in rows.items()
        if len(row["set_index"]) == 1  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("memory", [None, 0])
def test_columns_have_both(indexed: Path, memory: int | None) -> None:
    columns = Index(indexed, memory=memory).columns
    rows = [row for row in rows_of(indexed) if row["status"] == "ok"]
    assert columns.unknown is not None
    assert columns.set_size is not None
    assert columns.unknown.tolist() == [row["unknown"] for row in rows]
    assert columns.set_size.tolist() == [len(row["set_index"]) for row in rows]  # type: ignore[arg-type]


def test_the_index_of_a_model_without_one_says_what_is_missing(plain: Predictor, images: Path, tmp_path: Path) -> None:
    run([images], tmp_path / "run", plain, SETTINGS)
    build_index(tmp_path / "run")
    index = Index(tmp_path / "run")
    assert index.columns.unknown is None
    assert index.search(f"key:{images / '0.png'}", top=1)[0].unknown is None
    with pytest.raises(UsageError, match="there is no column 'unknown'") as caught:
        index.search(f"key:{images / '0.png'}", where="unknown")
    assert "calibrated model" in caught.value.hint


def test_every_image_can_be_unknown(plain: Predictor, images: Path, tmp_path: Path) -> None:
    run([images], tmp_path / "run", plain.with_calibration(never_known(calibration_for(plain))), SETTINGS)
    assert all(row["unknown"] for row in rows_of(tmp_path / "run") if row["status"] == "ok")
    build_index(tmp_path / "run")
    assert Index(tmp_path / "run").search(f"key:{images / '0.png'}", where="NOT unknown") == []
