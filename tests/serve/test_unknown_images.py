"""Unknown images of a collection: filters, rows, counts and exports, with and without a calibration of the run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessella.client.protocol import read_matches
from tessella.errors import UsageError
from tessella.results import Assessment, Prediction
from tessella.search import build_index
from tessella.serve import ServeSettings
from tessella.serve.collection import OpenedIndex
from tessella.serve.selection import Selection

from ..bulk.runs import LABELS, numbered, random_vectors, write_run
from .calibrations import MODEL
from .conftest import App

pytest.importorskip("lancedb")
ROWS = 60


def assessment(row: int) -> Assessment:
    """What the calibration says about the image of a row: every fourth one is unknown."""
    members = tuple(Prediction(i, LABELS[i], 0.5 - i / 8) for i in range(row % 3 + 1))
    return Assessment(members, unknown=row % 4 == 1, familiarity=row / ROWS)


def index_of(out: Path, *, is_calibrated: bool) -> Path:
    """Write a run with an index; every tenth row is an error."""
    images = numbered(random_vectors(ROWS, 0))
    for i, image in enumerate(images):
        image.error = "corrupt_image" if i % 10 == 9 else ""
        image.assessment = assessment(i) if is_calibrated else None
    facts = dict(calibration="0123456789abcdef") if is_calibrated else {}
    write_run(out, images, model=MODEL, **facts)
    build_index(out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return index_of(tmp_path_factory.mktemp("unknown") / "run", is_calibrated=True)


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[App]:
    opened = App(ServeSettings(models=(MODEL,), index=folder))
    yield opened
    opened.close()


EXPECTED = {row: (row % 4 == 1, row % 3 + 1) for row in range(ROWS) if row % 10 != 9}


def post(app: App, path: str, body: dict[str, Any]) -> Any:
    answer = app.ask("POST", path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_selection_by_unknown(folder: Path) -> None:
    opened = OpenedIndex(folder, 1 << 30)
    for wanted in (True, False):
        found = opened.columns.rows[opened.mask(Selection(unknown=wanted))].tolist()
        assert found == [row for row, (is_unknown, _) in EXPECTED.items() if is_unknown == wanted]
        cats = opened.columns.rows[opened.mask(Selection(unknown=wanted, label=("cat",)))].tolist()
        assert cats == [row for row in found if row % 3 == 0]
    assert not Selection(unknown=False).is_everything


def test_rows_and_filters_of_a_calibrated_run(app: App) -> None:
    assert app.ask("GET", "/v1/index").json()["unknown"] == sum(is_unknown for is_unknown, _ in EXPECTED.values())
    for wanted in (True, False, None):
        found = post(app, "/v1/index/select", {"filter": {"unknown": wanted}, "count": ROWS})
        assert {row["row"]: (row["unknown"], row["set_size"]) for row in found["rows"]} == {
            row: facts for row, facts in EXPECTED.items() if wanted in (None, facts[0])
        }
        assert found["matching"] == len(found["rows"])


def test_a_search_leaves_out_unknown_images(app: App) -> None:
    body = {"queries": [{"row": 0}], "top": ROWS, "filter": {"unknown": False}}
    answer = app.ask("POST", "/v1/search", json=body)
    found = read_matches(answer.content, "the server")
    assert {match.row for match in found.neighbors} == {row for row, facts in EXPECTED.items() if row and not facts[0]}
    for match in found.neighbors:
        assert (match.unknown, match.set_size) == EXPECTED[match.row]


def test_an_export_has_the_columns(app: App) -> None:
    text = app.ask("POST", "/v1/index/export", json={"filter": {"unknown": True}}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(int(row["row"]), row["unknown"], int(row["set_size"])) for row in rows] == [
        (row, "True", size) for row, (is_unknown, size) in EXPECTED.items() if is_unknown
    ]
    assert [float(row["familiarity"]) for row in rows] == pytest.approx([int(row["row"]) / ROWS for row in rows])


def test_a_run_without_a_calibration(tmp_path: Path) -> None:
    folder = index_of(tmp_path / "run", is_calibrated=False)
    with pytest.raises(UsageError, match="without a calibration") as caught:
        OpenedIndex(folder, 1 << 30).mask(Selection(unknown=True))
    assert caught.value.code == "not_found"
    app = App(ServeSettings(models=(MODEL,), index=folder))
    try:
        check_plain(app)
    finally:
        app.close()


def check_plain(app: App) -> None:
    """A collection whose run has no calibration."""
    assert app.ask("GET", "/v1/index").json()["unknown"] is None
    refused = app.ask("POST", "/v1/index/select", json={"filter": {"unknown": True}})
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert refused.json()["detail"] == "The run was made without a calibration, which finds unknown images."
    (row,) = post(app, "/v1/index/select", {"count": 1})["rows"]
    assert not {"unknown", "set_size"} & row.keys()
    header = app.ask("POST", "/v1/index/export", json={"rows": [0]}).text.split("\r\n")[0]
    assert header == "row,key,source,label,probability,width,height,bytes,sha256"
    for bad in ("yes", 1, [True]):
        refused = app.ask("POST", "/v1/index/select", json={"filter": {"unknown": bad}})
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
