"""Records as files: every format holds every name, unambiguously, and no format holds a number that is not finite."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tessella.errors import OutputError, UsageError
from tessella.records import SUFFIXES, as_dict, csv_line, csv_lines, csv_table, json_lines, npz_bytes, write_records
from tessella.results import Prediction, Record
from tessella.storage import check_output, write_bytes
from tessella.text import unescape

NAMES = ["plain.jpg", os.fsdecode(b"b\xe9.jpg"), "b\\xe9.jpg", 'cr\rlf\n"quoted", x.jpg', "é猫😀.jpg", "\ud800.jpg"]
RECORDS = [Record(name, "ok", "", (Prediction(1, f"label of {name}", 0.5),), np.ones(2, np.float32)) for name in NAMES]
RECORDS.append(Record("bad\udce9", "unreadable", "cannot read 'bad\udce9'"))


def read_keys(path: Path) -> list[str]:
    if path.suffix == ".csv":
        return [row["key"] for row in csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))]
    if path.suffix == ".npz":
        with np.load(path) as file:
            return list(file["keys"].tolist())
    if path.suffix == ".parquet":
        return list(pq.read_table(path)["key"].to_pylist())
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return [row["key"] for row in rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_name_is_restored_from_every_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write_records(path, RECORDS, dict(model="m\udce9", fingerprint="f"))
    keys = read_keys(path)
    assert len(set(keys)) == len(RECORDS)
    assert [unescape(key) for key in keys] == [record.key for record in RECORDS]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_records_are_a_file_without_rows(suffix: str, tmp_path: Path) -> None:
    write_records(tmp_path / f"rows{suffix}", [], {})
    assert read_keys(tmp_path / f"rows{suffix}") == []


def test_lines_are_yielded_as_the_records_arrive() -> None:
    taken = 0

    def endless() -> Iterator[Record]:
        nonlocal taken
        while True:
            taken += 1
            yield RECORDS[0]

    for lines, header in ((json_lines(endless()), 0), (csv_lines(endless(), 1, 2), 1)):
        taken = 0
        first = [next(lines) for _ in range(3)]
        assert taken == 3 - header
        assert all("plain.jpg" in line for line in first[header:])
        assert not any("\n" in line for line in first)


def test_lines_equal_those_in_files(tmp_path: Path) -> None:
    assert write_records(tmp_path / "rows.jsonl", iter(RECORDS), {}) == len(RECORDS)
    assert (tmp_path / "rows.jsonl").read_bytes().decode() == "".join(f"{line}\n" for line in json_lines(RECORDS))
    write_records(tmp_path / "rows.csv", iter(RECORDS), {}, csv_safe=True)
    expected = "".join(f"{line}\n" for line in csv_lines(RECORDS, 1, 2, safe=True))
    assert (tmp_path / "rows.csv").read_bytes().decode() == expected


def test_feature_maps_are_stacked_by_block_and_nan_for_errors(tmp_path: Path) -> None:
    maps = [(np.full((2, 3, 3), i, np.float32), np.full((4, 1, 1), -i, np.float32)) for i in range(2)]
    records = [Record("bad", "empty", "no bytes"), *(Record(str(i), "ok", features=maps[i]) for i in range(2))]
    write_records(tmp_path / "maps.npz", records, dict(model="m"))
    with np.load(tmp_path / "maps.npz") as file:
        assert file.files == ["keys", "status", "model", "features0", "features1"]
        assert (file["features0"].shape, file["features1"].shape) == ((3, 2, 3, 3), (3, 4, 1, 1))
        assert np.isnan(file["features0"][0]).all()
        assert np.array_equal(file["features1"][2], maps[1][1])
    assert as_dict(records[1])["shapes"] == [[2, 3, 3], [4, 1, 1]]
    for suffix in (".csv", ".json", ".jsonl", ".parquet"):
        with pytest.raises(UsageError, match="npz"):
            write_records(tmp_path / f"maps{suffix}", records, {})


@pytest.mark.parametrize("name", ["rows", "rows.xlsx", "rows.npy"])
def test_an_unknown_suffix_is_refused_before_the_records_are_made(name: str, tmp_path: Path) -> None:
    records = iter(RECORDS)
    with pytest.raises(UsageError, match=r"ending in \.npz") as caught:
        write_records(str(tmp_path / name), records)
    assert caught.value.code == "bad_argument"
    assert next(records) is RECORDS[0]


def test_json_has_no_nan() -> None:
    nan = float("nan")
    row = as_dict(Record("a", "ok", "", (Prediction(0, "x", nan),), np.array([nan, 1], np.float32)))
    assert json.loads(json.dumps(row, allow_nan=False)) == dict(
        key="a", status="ok", top=[dict(index=0, label="x", probability=None)], embedding=[None, 1]
    )


@pytest.mark.parametrize("text", ["plain", 'a "b"', "a,b", "a\rb", "a\nb", "a\r\nb", "", " a "])
def test_csv_is_read_back(text: str) -> None:
    assert next(csv.reader(io.StringIO(csv_line([text, 1, 0.5]), newline=""))) == [text, "1", "0.5"]


def test_formulas_are_escaped_on_request() -> None:
    cells = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a=1", -1.5]
    assert csv_line(cells[:1]) == "=1+1"
    shown = next(csv.reader(io.StringIO(csv_line(cells, safe=True), newline="")))
    assert shown == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "'\rx", "a=1", "-1.5"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.xlsx", "ending in .npz"), ("nowhere/x.csv", "no folder"), ("folder.csv", "is a folder"), ("", "ending in")],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / name if name else "", SUFFIXES)
    assert caught.value.code == "bad_argument"
    assert message in str(caught.value)
    with pytest.raises(UsageError):
        check_output(tmp_path / f"{'a' * 300}.csv", SUFFIXES)


def test_what_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write_bytes(tmp_path / "gone" / "x.csv", b"")
    assert caught.value.code == "output_failed"


def test_a_table_as_csv_has_a_header_and_empty_cells_for_none() -> None:
    rows: list[dict[str, object]] = [dict(name='a, "b"', value=None), dict(name="caf\udce9", value=0.5)]
    assert csv_table(("name", "value"), rows) == b'name,value\n"a, ""b""",\ncaf\\xe9,0.5\n'


@pytest.mark.parametrize("text", ['a "b"', "a,b", "a\rb", "a\nb", "a\r\nb", "", " a "])
def test_a_table_as_csv_is_read_back(text: str) -> None:
    data = csv_table(("name", "value"), [dict(name=text, value=1)])
    for newline in ("", None):  # many readers treat a carriage return as the end of a line
        read = io.StringIO(data.decode(), newline=newline)
        assert [len(row) for row in csv.reader(read)] == [2, 2]
    assert list(csv.reader(io.StringIO(data.decode(), newline="")))[1] == [text, "1"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_records_with_different_numbers_of_classes(tmp_path: Path, suffix: str) -> None:
    one, two = Prediction(0, "a", 0.5), Prediction(1, "b", 0.25)
    path = tmp_path / f"out{suffix}"
    assert write_records(path, [Record("x", "ok", top=(one,)), Record("y", "ok", top=(one, two))]) == 2
    assert read_keys(path) == ["x", "y"]
    if suffix == ".npz":
        with np.load(path) as file:
            assert file["indices"].tolist() == [[0, -1], [0, 1]]
            assert file["labels"].tolist() == [["a", ""], ["a", "b"]]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_of_different_widths_are_refused(tmp_path: Path, suffix: str) -> None:
    rows = [Record(str(width), "ok", embedding=np.zeros(width, np.float32)) for width in (3, 4)]
    with pytest.raises(UsageError, match="different widths: 3, 4"):
        write_records(tmp_path / f"out{suffix}", rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["keys", "status", "embeddings"])
def test_metadata_with_the_name_of_an_array_are_refused(tmp_path: Path, name: str) -> None:
    rows = [Record("x", "ok", embedding=np.zeros(3, np.float32))]
    with pytest.raises(UsageError, match=f"contains the name '{name}'") as caught:
        write_records(tmp_path / "out.npz", rows, {name: "value"})
    assert caught.value.code == "bad_argument"
    assert list(tmp_path.iterdir()) == []
    assert write_records(tmp_path / "out.parquet", rows, {name: "value"}) == 1


def test_an_archive_has_the_given_arrays_and_no_objects() -> None:
    with np.load(io.BytesIO(npz_bytes({"a": np.arange(3), "b": "text", "file": [1.5]}))) as file:
        assert {name: file[name].tolist() for name in file.files} == {"a": [0, 1, 2], "b": "text", "file": [1.5]}
    with pytest.raises(ValueError, match="allow_pickle"):
        npz_bytes({"a": np.array([object()])})
