"""The routes of a collection: the same results as in Python, images without their files, and bad requests."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tessella
from tessella.bulk import run as run_images
from tessella.cli.program import cli
from tessella.data.sources import iter_sources
from tessella.predictor import Predictor
from tessella.search import Head, Index, build_index, list_heads
from tessella.serve import ServeSettings
from tessella.serve.thumbnails import ByteCache, thumbnail_spec
from tessella.weights.catalogue import default_model

from ..bulk.runs import numbered, random_vectors, write_run
from .conftest import EXAMPLES, App

pytest.importorskip("lancedb")
SECRET = b"a secret in the metadata"
FORMULA = "=1+1,'x'.jpg"


class Served(NamedTuple):
    """A collection of photographs and the application that serves it."""

    app: App
    run: Path
    photos: Path
    rows: dict[str, int]  # by name

    def post(self, path: str, body: object, **arguments: Any) -> httpx.Response:
        return self.app.ask("POST", path, json=body, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.app.ask("GET", path, **arguments)


@pytest.fixture(scope="module")
def model() -> Predictor:
    return tessella.load(default_model("embed"), precision="float32")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model: Predictor) -> Iterator[Served]:
    """Crops of two photographs, near-duplicates, an upright image with metadata, odd names and a broken file."""
    photos = tmp_path_factory.mktemp("collection") / "photos"
    photos.mkdir()
    for name in ("cat.jpg", "dog.jpg"):
        if not (EXAMPLES / name).exists():
            continue
        picture = Image.open(EXAMPLES / name).convert("RGB")
        shutil.copy(EXAMPLES / name, photos / name)
        shutil.copy(EXAMPLES / name, photos / f"copy of {name}")
        picture.save(photos / f"again {name}", quality=60)
        width, height = picture.size
        for i in range(8):
            box = (i * width // 16, i * height // 32, width // 2 + i * width // 16, height // 2 + i * height // 32)
            picture.crop(box).save(photos / f"crop {i} of {name}")
    cat = Image.open(EXAMPLES / "cat.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, SECRET.decode()  # to be turned by 90 degrees; a description
    cat.resize((300, 100)).save(photos / "turned.jpg", exif=exif, comment=SECRET)
    cat.resize((64, 48)).save(photos / FORMULA)
    cat.resize((64, 40)).save(photos / "two\nlines.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    run = photos.parent / "run"
    run_images(str(photos), run, model)
    build_index(run, map="pca")
    rows = {Path(neighbor.key).name: neighbor.row for neighbor in _all(Index(run))}
    app = App(ServeSettings(index=run))
    yield Served(app, run, photos, rows)
    app.close()


def _all(index: Index) -> Any:
    return index.neighbors(index.columns.rows)


def row_named(served: Served, name: str) -> int:
    (row,) = (row for key, row in served.rows.items() if name in key and "copy" not in key)
    return row


# --- the collection ---------------------------------------------------------------------------------------------------


def test_the_collection_is_described(served: Served) -> None:
    index = Index(served.run)
    answer = served.get("/v1/index").json()
    assert answer["rows"] == index.rows == len(served.rows)
    assert answer["listed"] == len(list(served.photos.iterdir())) == index.rows + 1
    assert (answer["has_map"], answer["map"]["method"]) == (True, "pca")
    assert answer["fingerprint"] == index.facts["fingerprint"]
    assert {entry["label"]: entry["count"] for entry in answer["labels"]} == {
        label: sum(neighbor.label == label for neighbor in _all(index)) for label in {n.label for n in _all(index)}
    }
    widths = [neighbor.width for neighbor in _all(index)]
    assert answer["width_range"] == [min(widths), max(widths)]


def test_arrays_have_an_entry_per_row_of_the_listing(served: Served) -> None:
    index = Index(served.run)
    found = index.map()
    assert found is not None
    response = served.get("/v1/index/map")
    points = np.frombuffer(response.content, "<f4").reshape(-1, 2)
    assert points[index.columns.rows].tobytes() == found.points.tobytes()
    assert np.isnan(np.delete(points, index.columns.rows, 0)).all()
    labels = [entry["label"] for entry in served.get("/v1/index").json()["labels"]]
    codes = np.frombuffer(served.get("/v1/index/labels.bin").content, "<u2")
    assert len(codes) == len(points)
    for neighbor in _all(index):
        assert labels[codes[neighbor.row]] == neighbor.label
    again = served.get("/v1/index/map", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert served.get("/v1/index/map", headers={"If-None-Match": '"other"'}).status_code == 200


def test_rows_come_in_pages(served: Served) -> None:
    found = []
    for start in range(0, 40, 3):
        answer = served.get(f"/v1/index/rows?start={start}&count=3").json()
        assert (answer["matching"], answer["start"]) == (len(served.rows), start)
        found += answer["rows"]
    assert [row["row"] for row in found] == sorted(served.rows.values())
    index = Index(served.run)
    (neighbor,) = index.neighbors([found[0]["row"]])
    assert found[0] == {
        name: getattr(neighbor, name)
        for name in ("row", "key", "label", "probability", "width", "height", "unknown", "set_size")
    }
    assert served.get("/v1/index/rows?count=0").json()["rows"] == []
    for query in ("start=-1", "count=1001", "start=x", "start=1&start=2", "start=1.5", "count=٣"):
        assert served.get(f"/v1/index/rows?{query}").status_code == 400


def test_a_selection_counts_and_lists_the_rows_that_match(served: Served) -> None:
    index = Index(served.run)
    label = next(neighbor.label for neighbor in _all(index))
    expected = [n.row for n in _all(index) if n.label == label and n.width >= 100]
    body = {"filter": {"label": [label], "min_width": 100}, "count": 1_000}
    answer = served.post("/v1/index/select", body).json()
    assert answer["matching"] == len(expected)
    assert [row["row"] for row in answer["rows"]] == expected
    square = [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    assert served.post("/v1/index/select", {"filter": {"polygon": square}}).json()["matching"] == index.rows


# --- search -----------------------------------------------------------------------------------------------------------


def same(found: list[dict[str, Any]], expected: list[Any]) -> None:
    """Compare neighbors of an answer with those of `Index.search`."""
    assert [row["row"] for row in found] == [neighbor.row for neighbor in expected]
    assert [row["key"] for row in found] == [neighbor.key for neighbor in expected]
    np.testing.assert_allclose([row["score"] for row in found], [n.score for n in expected], atol=1e-5)


def test_an_uploaded_image_finds_what_the_command_finds(served: Served, cat: bytes) -> None:
    result = CliRunner().invoke(cli, ["search", str(served.run), str(EXAMPLES / "cat.jpg"), "--top", "7", "--json"])
    expected = [json.loads(line) for line in result.stdout.splitlines()]
    files = [("file", ("cat.jpg", cat))]
    answer = served.app.ask("POST", "/v1/search", files=files, data={"options": '{"top": 7}'}).json()
    assert [row["key"] for row in answer["neighbors"]] == [row["key"] for row in expected]
    np.testing.assert_allclose(
        [row["score"] for row in answer["neighbors"]], [row["score"] for row in expected], atol=1e-5
    )
    assert (answer["matching"], answer["rows"]) == (len(served.rows), len(served.rows))
    assert {"decode", "model", "search", "total"} <= answer["timing_ms"].keys()
    text = base64.b64encode(cat).decode()
    for data in (text, f"data:image/jpeg;base64,{text}"):
        again = served.post("/v1/search", {"queries": [{"data": data}], "top": 7}).json()
        assert [row["key"] for row in again["neighbors"]] == [row["key"] for row in expected]


def test_rows_and_negative_examples(served: Served) -> None:
    index = Index(served.run)
    positive, negative = (
        [row_named(served, "crop 0 of cat"), row_named(served, "crop 7 of cat")],
        [row_named(served, "turned")],
    )
    body = {"queries": [{"row": row} for row in positive], "negative": [{"row": row} for row in negative], "top": 9}
    expected = index.search(
        [index.row_query(row) for row in positive], negative=[index.row_query(row) for row in negative], top=9
    )
    same(served.post("/v1/search", body).json()["neighbors"], expected)


def test_pages_and_least_scores(served: Served) -> None:
    query = {"queries": [{"row": 0}]}
    everything = served.post("/v1/search", {**query, "top": 100}).json()["neighbors"]
    assert len(everything) == len(served.rows) - 1
    parts: list[dict[str, Any]] = []
    for start in range(0, 40, 4):
        parts += served.post("/v1/search", {**query, "top": 4, "start": start}).json()["neighbors"]
    assert parts == everything
    least = everything[5]["score"]
    good = served.post("/v1/search", {**query, "top": 100, "min_score": least}).json()["neighbors"]
    assert good == [row for row in everything if row["score"] >= least]


def test_answers_of_concurrent_requests_are_not_swapped(served: Served) -> None:
    index = Index(served.run)
    rows = [*served.rows.values()] * 2

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=served.app.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            searches = (client.post("/v1/search", json={"queries": [{"row": row}], "top": 3}) for row in rows)
            images = (client.get(f"/v1/index/image/{row}?size=96") for row in rows)
            return await asyncio.gather(*searches, *images)

    answers = served.app.run(ask())
    for row, answer in zip(rows, answers, strict=False):
        same(answer.json()["neighbors"], index.search(index.row_query(row), top=3))
    hashes = {neighbor.row: neighbor.sha256 for neighbor in _all(index)}
    for row, answer in zip(rows, answers[len(rows) :], strict=True):
        assert answer.headers["etag"] == f'"{hashes[row]}-96"'
        assert picture(answer).size[0] in (96, 64) or picture(answer).size[1] == 96


def test_a_filter_limits_a_search(served: Served) -> None:
    index = Index(served.run)
    label = next(neighbor.label for neighbor in _all(index))
    body = {"queries": [{"row": 0}], "top": 100, "filter": {"label": [label]}}
    answer = served.post("/v1/search", body).json()
    same(answer["neighbors"], index.search(index.row_query(0), top=100, label=label))
    assert answer["matching"] == sum(neighbor.label == label for neighbor in _all(index))


def test_near_duplicates_are_grouped_under_the_best_of_them(served: Served) -> None:
    names = {row: name for name, row in served.rows.items()}
    body = {"queries": [{"row": row_named(served, "crop 3 of cat")}], "top": 100}
    plain = served.post("/v1/search", body).json()["neighbors"]
    grouped = served.post("/v1/search", {**body, "group_duplicates": True}).json()["neighbors"]
    assert all(row["duplicates"] == [] for row in plain)
    groups = [[row["row"], *row["duplicates"]] for row in grouped]
    (members,) = ({names[row] for row in group} for group in groups if served.rows["cat.jpg"] in group)
    assert {"cat.jpg", "copy of cat.jpg", "again cat.jpg"} <= members
    ranks = {row["row"]: rank for rank, row in enumerate(plain)}
    for row in grouped:
        assert all(ranks[row["row"]] < ranks[other] for other in row["duplicates"])
    assert sorted(row for group in groups for row in group) == sorted(ranks)
    assert len(groups) > 1
    first = served.post("/v1/search", {**body, "group_duplicates": True, "top": 2}).json()["neighbors"]
    assert [row["row"] for row in first] == [row["row"] for row in grouped[:2]]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ([], 400),
        ({"queries": []}, 400),
        ({"queries": [{}]}, 422),
        ({"queries": [{"row": 0, "data": "eA=="}]}, 422),
        ({"queries": [{"row": -1}]}, 400),
        ({"queries": [{"row": 10**30}]}, 400),
        ({"queries": [{"row": "0"}]}, 400),
        ({"queries": [{"row": True}]}, 400),
        ({"queries": [{"row": 0.5}]}, 400),
        ({"queries": [{"row": 0.0}]}, 200),
        ({"queries": [{"row": 9_999}]}, 404),
        ({"queries": [{"row": 0}] * 65}, 400),
        ({"queries": [{"data": "!"}]}, 422),
        ({"queries": [{"data": "aGVsbG8="}]}, 415),
        ({"queries": [{"data": ""}]}, 422),
        ({"queries": [{"url": "http://example.com/a.jpg"}]}, 400),
        ({"queries": [{"row": 0}], "top": 0}, 400),
        ({"queries": [{"row": 0}], "top": 1_001}, 400),
        ({"queries": [{"row": 0}], "top": 1_000, "start": 9_001}, 422),
        ({"queries": [{"row": 0}], "top": 1_000, "start": 1_001, "group_duplicates": True}, 422),
        ({"queries": [{"row": 0}], "min_score": 2}, 400),
        ({"queries": [{"row": 0}], "min_score": "1"}, 400),
        ({"queries": [{"row": 0}], "other": 1}, 400),
        ({"queries": [{"row": 0}], "filter": {"label": "cat"}}, 400),
        ({"queries": [{"row": 0}], "filter": {"label": ["' OR 1=1 --"]}}, 422),
        ({"queries": [{"row": 0}], "filter": {"where": "1=1"}}, 400),
        ({"queries": [{"row": 0}], "filter": {"polygon": [[0, 0], [1, 1]]}}, 400),
        ({"queries": [{"row": 0}], "filter": {"polygon": [[0, 0], [1, 1], [1]]}}, 400),
        ({"queries": [{"row": 0}], "filter": {"polygon": [[0, 0], [1, 1], [1, 1e300]]}}, 400),
        ({"queries": [{"row": 0}], "filter": {"polygon": [[0, 0]] * 10_001}}, 400),
        ({"queries": [{"row": 0}], "filter": {"min_width": -1}}, 400),
        ({"queries": [{"row": 0}], "filter": {"label": []}}, 200),
        ({"queries": [{"row": 0}], "filter": None, "negative": None, "min_score": None}, 200),
    ],
)
def test_bad_searches(served: Served, body: Any, status: int) -> None:
    response = served.post("/v1/search", body)
    assert response.status_code == status, response.text
    if status != 200:
        assert str(served.run) not in response.text
        assert response.headers["content-type"] == "application/problem+json"


def test_bad_forms(served: Served, cat: bytes) -> None:
    def send(files: Any, data: Any = None) -> int:
        return served.app.ask("POST", "/v1/search", files=files, data=data).status_code

    assert send([("file", ("a.jpg", b"no image"))]) == 415
    assert send([("file", ("a.jpg", cat))], {"options": "{"}) == 422
    assert send([("file", ("a.jpg", cat))], {"options": '{"queries": [{"row": 0}]}'}) == 422
    assert send([("file", ("a.jpg", cat))], {"other": "{}"}) == 400
    assert send([("options", (None, "{}"))]) == 400
    assert served.app.ask("POST", "/v1/search", content=b"{}").status_code == 415
    assert (
        served.app.ask("POST", "/v1/search", content=b"{", headers={"Content-Type": "application/json"}).status_code
        == 400
    )


# --- images -----------------------------------------------------------------------------------------------------------


def picture(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/jpeg"
    return Image.open(io.BytesIO(response.content))


@pytest.mark.parametrize(("size", "expected"), [(96, (32, 96)), (256, (85, 256)), (0, (100, 300))])
def test_thumbnails_are_upright_and_without_metadata(served: Served, size: int, expected: tuple[int, int]) -> None:
    response = served.get(f"/v1/index/image/{row_named(served, 'turned')}?size={size}")
    thumbnail = picture(response)
    assert thumbnail.size == expected
    assert SECRET not in response.content
    assert not thumbnail.getexif()
    assert "comment" not in thumbnail.info
    assert response.headers["cache-control"].startswith("private")
    turned = (
        Image.open(EXAMPLES / "cat.jpg").convert("RGB").resize((300, 100)).rotate(-90, expand=True).resize(expected)
    )
    assert np.abs(np.asarray(thumbnail, float) - np.asarray(turned, float)).mean() < 12


def test_thumbnails_are_not_enlarged(served: Served) -> None:
    assert picture(served.get(f"/v1/index/image/{served.rows[FORMULA]}?size=256")).size == (64, 48)


def test_a_thumbnail_is_validated_without_decoding(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/v1/index/image/{served.rows['cat.jpg']}?size=96"
    first = served.get(path)
    served.app.app.app.app.state.thumbnails = ByteCache()  # type: ignore[attr-defined]
    monkeypatch.setattr(served.app.service, "decode", None)  # would fail
    again = served.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert served.get(path.replace("96", "256")).headers.get("etag") != first.headers["etag"]


def test_thumbnails_are_kept_in_memory(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/v1/index/image/{served.rows['cat.jpg']}?size=256"
    first = served.get(path)
    monkeypatch.setattr(served.app.service, "decode", None)
    assert served.get(path).content == first.content


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("9999", 404),
        ("-1", 400),
        ("x", 400),
        ("1?size=100", 400),
        ("1?size=-96", 400),
        ("1?size=96&size=256", 400),
        ("1?size=", 400),
        ("00000000000000000000001", 400),
        ("..%2f..%2fetc%2fpasswd", 404),
        ("%00", 400),
    ],
)
def test_bad_image_requests(served: Served, path: str, status: int) -> None:
    assert served.get(f"/v1/index/image/{path}").status_code == status


def test_files_that_are_gone_or_have_changed(tmp_path: Path, model: Predictor, cat: bytes) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, name in enumerate(("changed.jpg", "gone.jpg", "same.jpg", "swapped.jpg")):
        (photos / name).write_bytes(cat + bytes(i))
    run_images(str(photos), tmp_path / "run", model)
    build_index(tmp_path / "run")
    app = App(ServeSettings(index=tmp_path / "run"))
    try:
        Image.new("RGB", (50, 40)).save(photos / "changed.jpg")
        (photos / "gone.jpg").unlink()
        status = (photos / "swapped.jpg").stat()
        (photos / "swapped.jpg").write_bytes(cat + b"\0\0\1")  # the same size and time, other bytes
        os.utime(photos / "swapped.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
        codes = {}
        for row in range(4):
            response = app.ask("GET", f"/v1/index/image/{row}?size=96")
            name = Path(app.ask("GET", f"/v1/index/rows?start={row}&count=1").json()["rows"][0]["key"]).name
            codes[name] = response.status_code
            assert str(tmp_path) not in response.text
        assert codes == {"changed.jpg": 409, "gone.jpg": 404, "same.jpg": 200, "swapped.jpg": 409}
        assert app.ask("GET", "/v1/index/map").status_code == 404
        polygon = {"filter": {"polygon": [[0, 0], [1, 0], [0, 1]]}}
        assert app.ask("POST", "/v1/index/select", json=polygon).status_code == 404
    finally:
        app.close()


def test_images_inside_of_an_archive(tmp_path: Path, model: Predictor) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(EXAMPLES / "cat.jpg", "a/cat.jpg")
    run_images(str(tmp_path / "photos.tar"), tmp_path / "run", model)
    build_index(tmp_path / "run")
    app = App(ServeSettings(index=tmp_path / "run"))
    try:
        assert app.ask("GET", "/v1/index/image/0?size=96").status_code == 200
        response = app.ask("POST", "/v1/index/export", json={"format": "list"})
        assert (response.status_code, response.json()["code"]) == (422, "special_file")
        assert "photos.tar::a/cat.jpg" in app.ask("POST", "/v1/index/export", json={}).text
    finally:
        app.close()


def test_the_cache_of_thumbnails_is_bounded() -> None:
    cache = ByteCache(100)
    for i in range(20):
        cache.put(str(i), bytes(10))
        cache.get("0")
    assert cache.size == 100
    assert cache.get("0") is not None  # was used all the time
    assert cache.get("1") is None
    assert cache.get("19") is not None
    cache.put("large", bytes(101))
    assert cache.get("large") is None
    cache.put("19", bytes(50))
    assert cache.size == 100


@pytest.mark.parametrize(
    ("width", "height", "size", "expected"),
    [
        (4000, 3000, 96, (96, 72)),
        (1, 65_535, 96, (1, 96)),
        (65_535, 1, 256, (256, 1)),
        (50, 40, 256, (50, 40)),
        (8000, 6000, 0, (4000, 3000)),
        (4000, 4000, 0, (4000, 4000)),
    ],
)
def test_sizes_of_thumbnails(width: int, height: int, size: int, expected: tuple[int, int]) -> None:
    spec = thumbnail_spec(width, height, size)
    assert (spec.width, spec.height) == expected


# --- export -----------------------------------------------------------------------------------------------------------


def test_csv_is_complete_and_safe(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.serve.routes.index.EXPORT_STEP", 4)
    response = served.post("/v1/index/export", {"filter": {}})
    assert response.headers["content-type"].startswith("text/csv")
    assert response.headers["content-disposition"] == 'attachment; filename="selection.csv"'
    rows = [*csv.DictReader(io.StringIO(response.text, newline=""))]
    neighbors = _all(Index(served.run))
    assert [int(row["row"]) for row in rows] == [neighbor.row for neighbor in neighbors]
    for row, neighbor in zip(rows, neighbors, strict=True):
        assert row["key"].removeprefix("'") == neighbor.key
        assert (row["sha256"], row["label"]) == (neighbor.sha256, neighbor.label)
        assert not row["key"].startswith(("=", "+", "-", "@"))


def test_a_list_can_be_run_again(served: Served, tmp_path: Path) -> None:
    response = served.post("/v1/index/export", {"format": "list"})
    assert response.headers["content-type"].startswith("text/plain")
    (tmp_path / "list.txt").write_bytes(response.content)
    found = [source.path for source in iter_sources([f"@{tmp_path / 'list.txt'}"])]
    assert found == _paths(served)
    rows = [served.rows["cat.jpg"], served.rows["copy of cat.jpg"], served.rows["cat.jpg"]]
    response = served.post("/v1/index/export", {"rows": rows, "format": "list"})
    assert response.text.splitlines() == [str(served.photos / name) for name in ("cat.jpg", "copy of cat.jpg")]


def _paths(served: Served) -> list[str]:
    names = {row: name for name, row in served.rows.items()}
    return [str(served.photos / names[row].replace("\\n", "\n")) for row in sorted(names)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"rows": [], "format": "csv"}, 200),
        ({"rows": [], "format": "list"}, 200),
        ({"rows": [9_999]}, 404),
        ({"rows": [0], "filter": {}}, 422),
        ({"rows": ["0"]}, 400),
        ({"format": "../x"}, 400),
        ({"filter": {"label": ["no such class"]}}, 422),
    ],
)
def test_exports_of_nothing_and_bad_ones(served: Served, body: Any, status: int) -> None:
    assert served.post("/v1/index/export", body).status_code == status


# --- teaching ---------------------------------------------------------------------------------------------------------


def test_teaching_ranks_as_a_head_does(served: Served) -> None:
    index = Index(served.run)
    yes, no = [row_named(served, "crop 0 of cat"), row_named(served, "crop 1 of cat")], [row_named(served, "turned")]
    answer = served.post("/v1/teach", {"yes": yes, "no": no, "top": 100}).json()
    expected = Head.fit(index, "class", yes, no).rank(index, top=100)
    same(answer["ranked"], expected)
    marks = {row["row"]: row["marked"] for row in answer["ranked"]}
    assert marks == {**dict.fromkeys(served.rows.values()), **dict.fromkeys(yes, "yes"), **dict.fromkeys(no, "no")}
    assert answer["separable"] is True
    assert answer["matching"] == answer["rows"] == index.rows
    assert answer["saved"] is None
    assert answer["train_ms"] > 0
    page = served.post("/v1/teach", {"yes": yes, "no": no, "top": 3, "start": 2}).json()["ranked"]
    assert page == answer["ranked"][2:5]
    again = served.post("/v1/teach", {"yes": yes[::-1], "no": no, "top": 100}).json()["ranked"]
    assert again == answer["ranked"]  # nothing is remembered between requests
    assert list_heads(served.run) == []


def test_heads_are_saved_once_and_listed(served: Served) -> None:
    yes, no = [row_named(served, "crop 0 of cat")], [row_named(served, "turned")]
    response = served.post("/v1/heads", {"name": "my cat", "yes": yes, "no": no})
    assert response.status_code == 201
    assert response.json() == {
        "name": "my cat", "model": default_model("embed"), "fingerprint": Index(served.run).facts["fingerprint"],
        "yes": 1, "no": 1,
    }  # fmt: skip
    again = served.post("/v1/heads", {"name": "my cat", "yes": no})
    assert (again.status_code, again.json()["code"]) == (409, "exists")
    assert served.post("/v1/teach", {"name": "my cat", "yes": yes}).status_code == 409
    assert served.post("/v1/teach", {"name": "my cat", "yes": yes, "replace": True}).json()["saved"] == "my cat"
    (served.run / "heads" / "damaged.json").write_text("{}")
    assert [head["name"] for head in served.get("/v1/heads").json()["heads"]] == ["my cat"]
    assert "my cat" in served.get("/v1/index").json()["heads"]
    image = str(served.photos / "cat.jpg")
    result = CliRunner().invoke(cli, ["classify", image, "--head", f"{served.run}:my cat", "--json"])
    assert json.loads(result.stdout)["top"][0]["label"] == "my cat"
    shutil.rmtree(served.run / "heads")


def test_what_teaching_needs_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", numbered(random_vectors(2, 0, 384)), model=default_model("embed"))
    build_index(run)
    app = App(ServeSettings(index=run))
    try:
        for body, sentence in (
            ({"yes": []}, "Mark at least one image as yes: an image that shows the class."),
            ({"yes": [], "no": [0]}, "Mark at least one image as yes: an image that shows the class."),
            ({"yes": [0, 1]}, "All images of the collection are marked yes: at least one must not show the class."),
        ):
            for path, more in (("/v1/teach", {}), ("/v1/heads", {"name": "a"})):
                answer = app.ask("POST", path, json=body | more)
                assert (answer.status_code, answer.json()["code"]) == (422, "unprocessable")
                assert answer.json()["detail"] == sentence
        assert app.ask("POST", "/v1/teach", json={"yes": [0], "no": [1]}).status_code == 200
    finally:
        app.close()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/teach", {"yes": []}, 422),
        ("/v1/heads", {"name": "a", "yes": []}, 422),
        ("/v1/teach", {"yes": [0], "no": [0]}, 422),
        ("/v1/teach", {"yes": [9_999]}, 404),
        ("/v1/teach", {"yes": [0] * 501}, 400),
        ("/v1/teach", {"yes": [0], "top": 1_000, "start": 9_500}, 422),
        ("/v1/teach", {"yes": [0], "name": "../x"}, 422),
        ("/v1/heads", {"name": "../../etc/passwd", "yes": [0]}, 422),
        ("/v1/heads", {"name": "a/b", "yes": [0]}, 422),
        ("/v1/heads", {"name": "a\\b", "yes": [0]}, 422),
        ("/v1/heads", {"name": ".", "yes": [0]}, 422),
        ("/v1/heads", {"name": "", "yes": [0]}, 400),
        ("/v1/heads", {"name": "con", "yes": [0]}, 422),
        ("/v1/heads", {"name": "x" * 65, "yes": [0]}, 400),
        ("/v1/heads", {"yes": [0]}, 400),
    ],
)
def test_bad_marks_and_names(served: Served, path: str, body: Any, status: int) -> None:
    response = served.post(path, body)
    assert response.status_code == status, response.text
    assert not (served.run / "heads").exists()


# --- the server -------------------------------------------------------------------------------------------------------


def test_a_server_without_an_index(app: App) -> None:
    for method, path in (
        ("GET", "/v1/index"),
        ("GET", "/v1/index/map"),
        ("GET", "/v1/index/labels.bin"),
        ("GET", "/v1/index/rows"),
        ("GET", "/v1/index/image/0"),
        ("GET", "/v1/heads"),
    ):
        response = app.ask(method, path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    for path, body in (
        ("/v1/search", {"queries": [{"row": 0}]}),
        ("/v1/index/select", {}),
        ("/v1/index/export", {}),
        ("/v1/teach", {"yes": [0]}),
        ("/v1/heads", {"name": "a", "yes": [0]}),
    ):
        assert app.ask("POST", path, json=body).status_code == 404


def test_a_run_of_another_configuration_is_searched_by_rows_only(tmp_path: Path, cat: bytes) -> None:
    run = write_run(tmp_path / "run", numbered(random_vectors(20, 0, 384)), model=default_model("embed"))
    build_index(run)
    app = App(ServeSettings(index=run))
    try:
        assert len(app.ask("POST", "/v1/search", json={"queries": [{"row": 0}]}).json()["neighbors"]) == 19
        response = app.ask("POST", "/v1/search", files=[("file", ("cat.jpg", cat))])
        assert (response.status_code, response.json()["code"]) == (409, "changed_run")
    finally:
        app.close()


def test_the_description_names_every_route(served: Served) -> None:
    paths = served.get("/openapi.json").json()["paths"]
    assert {
        "/v1/index", "/v1/index/map", "/v1/index/labels.bin", "/v1/index/rows", "/v1/index/select", "/v1/index/export",
        "/v1/index/image/{row}", "/v1/search", "/v1/teach", "/v1/heads",
    } <= set(paths)  # fmt: skip
    assert "$ref" not in json.dumps([operation.get("requestBody") for operation in paths["/v1/search"].values()])
