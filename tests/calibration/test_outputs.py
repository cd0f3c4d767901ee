"""What a calibrated model says is in every kind of output, and missing where there is no calibration."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tessella.cli.classify import _render
from tessella.errors import ImageError
from tessella.records import csv_lines, json_lines, write_records
from tessella.results import Assessment, Output, Prediction, Record, make_record

from .made import made_calibration, made_outputs, names_of, never_known


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Two images, of which the second is unknown, and a bad one."""
    calibration, outputs = made_calibration(per_class=False), made_outputs(2, seed=5)
    made = [Output(outputs.logits[i], outputs.embeddings[i]) for i in range(2)]
    options = dict(top=2, embed=False)
    return [
        make_record("a.jpg", made[0], names_of(5), calibration=calibration, **options),  # type: ignore[arg-type]
        make_record("b.jpg", made[1], names_of(5), calibration=never_known(calibration), **options),  # type: ignore[arg-type]
        make_record("c.jpg", ImageError("unreadable", "no"), names_of(5), calibration=calibration, **options),  # type: ignore[arg-type]
    ]


def assessments(records: list[Record]) -> Iterator[Assessment]:
    for record in records:
        if record.assessment is not None:
            yield record.assessment


def test_json_has_the_set_with_its_probabilities(records: list[Record]) -> None:
    rows = [json.loads(line) for line in json_lines(records)]
    for row, assessment in zip(rows, assessments(records), strict=False):
        assert row["unknown"] == assessment.unknown
        assert row["familiarity"] == assessment.familiarity
        assert [(one["index"], one["label"], one["probability"]) for one in row["prediction_set"]] == [
            (one.index, one.label, one.probability) for one in assessment.prediction_set
        ]
    assert [row.get("unknown") for row in rows] == [False, True, None]
    assert "prediction_set" not in rows[2]


def test_csv_has_a_column_for_each_part(records: list[Record], tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO("\n".join(csv_lines(records, 2, 0, assessed=True)))))
    assert [row["unknown"] for row in rows] == ["false", "true", ""]
    for row, assessment in zip(rows, assessments(records), strict=False):
        assert float(row["familiarity"]) == assessment.familiarity
        assert row["set_indices"] == ";".join(str(one.index) for one in assessment.prediction_set)
        assert row["set_labels"] == ";".join(one.label for one in assessment.prediction_set)
    assert rows[2]["set_indices"] == rows[2]["familiarity"] == ""
    write_records(tmp_path / "rows.csv", records)
    assert list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text()))) == rows


def test_csv_without_a_calibration_has_the_columns_that_it_always_had() -> None:
    plain = [Record("a", "ok", "", (Prediction(0, "x", 0.5),)), Record("b", "unreadable", "no")]
    assert next(csv_lines(plain, 1, 0)) == "key,status,message,index1,label1,probability1"
    assert [*csv_lines(plain, 1, 0)][1] == "a,ok,,0,x,0.5"


def test_formulas_in_labels_are_made_harmless() -> None:
    members = (Prediction(0, "=cmd()", 0.5), Prediction(1, "@x", 0.5))
    record = Record("a", "ok", "", members, assessment=Assessment(members, False, 0.5))
    line = [*csv_lines([record], 2, 0, assessed=True, safe=True)][1]
    assert line.endswith(",'=cmd();@x")


def test_npz_pads_the_sets(records: list[Record], tmp_path: Path) -> None:
    write_records(tmp_path / "rows.npz", records)
    with np.load(tmp_path / "rows.npz") as arrays:
        assert arrays["unknown"].tolist() == [False, True, False]
        assert np.isnan(arrays["familiarity"]).tolist() == [False, False, True]
        for row, assessment in zip(arrays["set_indices"], assessments(records), strict=False):
            assert row[row >= 0].tolist() == [one.index for one in assessment.prediction_set]
        assert (arrays["set_indices"][2] == -1).all()


def test_parquet_has_lists(records: list[Record], tmp_path: Path) -> None:
    write_records(tmp_path / "rows.parquet", records, {"coverage": "0.9"})
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table["unknown"].to_pylist() == [False, True, None]
    sets = [[one.label for one in assessment.prediction_set] for assessment in assessments(records)]
    assert table["set_labels"].to_pylist() == [*sets, None]
    indices = [[one.index for one in assessment.prediction_set] for assessment in assessments(records)]
    assert table["set_indices"].to_pylist() == [*indices, None]
    assert table["familiarity"].to_pylist()[2] is None
    assert json.loads(table.schema.metadata[b"tessella"]) == {"coverage": "0.9"}


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_files_without_a_calibration_have_no_such_columns(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write_records(path, [Record("a", "ok", "", (Prediction(0, "x", 0.5),))])
    names = set(np.load(path).files) if suffix == ".npz" else set(pq.read_table(path).column_names)
    assert not names & {"unknown", "familiarity", "set_indices", "set_labels"}


def record_of(members: int, *, unknown: bool = False) -> Record:
    top = tuple(Prediction(i, f"class {i}", 1 / (i + 1)) for i in range(members))
    return Record("a.jpg", "ok", "", top[:2], assessment=Assessment(top, unknown, 0.004))


def test_text_shows_the_set_if_it_has_several_classes() -> None:
    assert _render(record_of(1), 0.9).splitlines() == ["a.jpg", "  100.0 %  class 0"]
    assert _render(record_of(2), 0.9).splitlines()[-1] == "  one of: class 0, class 1 (90 %)"
    assert _render(record_of(2), None).splitlines()[-1] == "  one of: class 0, class 1"
    names = "class 0, class 1, class 2, class 3, class 4"
    assert _render(record_of(1200), 0.95).splitlines()[-1] == f"  one of 1,200 classes: {names}, ... (95 %)"


def test_text_says_first_that_an_image_is_unknown() -> None:
    lines = _render(record_of(2, unknown=True), 0.9).splitlines()
    assert lines[1] == "  unknown: only 0.4 % of the calibration images are as unlike the model's classes"
