"""`tessella gallery`: one file with images, search, map, filters and export, which needs neither server nor network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tessella.bulk import run
from tessella.cli.program import cli
from tessella.errors import UsageError
from tessella.predictor import Predictor
from tessella.search import GalleryReport, build_index, gallery
from tessella.search import single_page as pages
from tessella.text import printable

from ...bulk.runs import numbered, random_vectors, unit, write_run
from .browser import Visit
from .markup import STRINGS
from .stand_in import Collection
from .test_access import PHONE, violations
from .test_gallery import export

Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def made(indexed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GalleryReport]:
    path = tmp_path_factory.mktemp("gallery") / "page.html"
    return path, gallery(indexed_run, path)


def data_of(path: Path) -> dict[str, Any]:
    """Return the data in a gallery."""
    text = path.read_text().split('<script type="application/json" id="gallery-data">')[1].split("</script>")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def vectors_in(data: dict[str, Any]) -> Any:
    """Return the stored vectors (N,D)."""
    return np.frombuffer(base64.b64decode(data["vectors"]), np.int8).reshape(len(data["keys"]), -1)


def test_the_file_holds_every_image_of_the_index(made: tuple[Path, GalleryReport], collection: Collection) -> None:
    path, report = made
    data = data_of(path)
    assert data["keys"] == [row["key"] for row in collection.rows]
    assert [data["labels"][place]["label"] for place in data["label"]] == [row["label"] for row in collection.rows]
    assert data["probability"] == pytest.approx([row["probability"] for row in collection.rows], abs=1e-4)
    assert [data["width"], data["height"]] == [[row[side] for row in collection.rows] for side in ("width", "height")]
    for picture, row in zip(data["pictures"], collection.rows, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert max(image.size) == pages.SIDE
        assert image.width / image.height == pytest.approx(row["width"] / row["height"], rel=0.02)
    cosines = (unit(vectors_in(data).astype(np.float32)) * collection.vectors).sum(1)
    assert cosines.min() > 0.999
    assert (report.images, report.missing, report.bytes) == (len(collection.rows), 0, path.stat().st_size)


def test_the_stated_loss_is_the_real_one(made: tuple[Path, GalleryReport], collection: Collection) -> None:
    path, report = made
    exact = collection.vectors.astype(np.float64) @ collection.vectors.T
    rounded = unit(vectors_in(data_of(path)).astype(np.float64))
    stored = rounded @ rounded.T
    assert report.error == pytest.approx(np.abs(exact - stored).max(), rel=0.01)
    hits = []
    for i in range(len(exact)):
        exact[i, i] = stored[i, i] = -2
        tenth = np.sort(exact[i])[-10]
        hits.append(np.mean([exact[i, j] >= tenth - 1e-6 for j in np.argsort(-stored[i])[:10]]))
    assert report.recall == pytest.approx(np.mean(hits), abs=0.002)
    assert 0.95 < report.recall <= 1


def test_a_loss_is_noticed() -> None:
    vectors = unit(random_vectors(50, 1))
    assert pages.loss(vectors, pages.quantize(vectors))[0] > 0.95
    coarse = np.sign(pages.quantize(vectors)).astype(np.int8)
    recall, error = pages.loss(vectors, coarse)
    assert recall < 0.95
    assert error > 0.05
    assert pages.loss(vectors[:1], coarse[:1]) == (1.0, 0.0)


def test_the_policy_allows_only_the_script_and_style_of_the_file(made: tuple[Path, GalleryReport]) -> None:
    text = made[0].read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    assert "unsafe" not in policy[1]
    for kind, start in (("script", '<script type="module">'), ("style", "<style>")):
        body = text.split(start)[1].split(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"@(script|style|data|\w+_hash)@", text)


def test_the_same_index_gives_the_same_file(
    made: tuple[Path, GalleryReport], indexed_run: Path, tmp_path: Path
) -> None:
    gallery(indexed_run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == made[0].read_bytes()


def test_search_filter_duplicates_and_export_without_a_server(
    made: tuple[Path, GalleryReport], visit: Open, collection: Collection
) -> None:
    opened = visit(made[0].as_uri(), offline=True)
    assert opened.page.get_by_role("button", name="Why?").count() == 0  # a file has no model that could be explained
    opened.find("tessella-tile img.loaded").first.wait_for()
    assert opened.find("nav a").all_inner_texts() == ["Gallery", "Map"]
    assert opened.find(".count").first.inner_text() == f"{len(collection.rows)} images"
    opened.button("Show more").click()
    opened.page.get_by_role("button", name=re.compile("^Search by coffee.jpg")).click()
    opened.find(".query:visible").wait_for()
    names = [row["key"].rsplit("/", 1)[-1] for row in collection.rows]
    exact = collection.vectors @ collection.vectors[names.index("coffee.jpg")]
    shown = {
        tile.locator(".tile-name").inner_text(): float(tile.locator(".tile-score").inner_text())
        for tile in opened.tiles().all()
    }
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    for name, score in list(shown.items())[:12]:
        assert score == pytest.approx(exact[names.index(name)], abs=0.01)
    opened.button("Show 1 near-duplicate of cat.jpg").click()
    opened.find("tessella-tile.copy").get_by_text("the same cat.jpg").wait_for()
    opened.page.get_by_label("Least similarity").fill("0.99")
    opened.page.get_by_text("Nothing is that similar").wait_for()
    opened.button("Show all images").click()
    label = collection.labels[0]
    matching = [row for row in collection.rows if row["label"] == label]
    opened.page.get_by_label("Find a class").fill(label)
    opened.find("tessella-filters .labels input").first.check()
    opened.find("tessella-filters .count").get_by_text(f"{len(matching)} of {len(collection.rows)} images").wait_for()
    table = list(csv.DictReader(io.StringIO(export(opened, "Table (CSV)")[1])))
    assert [row["key"] for row in table] == [row["key"] for row in matching]
    assert [int(row["width"]) for row in table] == [row["width"] for row in matching]
    assert export(opened, "List of files")[1].splitlines() == [row["key"] for row in matching]
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn=all]").wait_for()
    opened.page.evaluate("document.querySelector('.legend button').click()")
    for _ in range(3):
        opened.button("Zoom in").click()
    opened.find("tessella-map:not([data-thumbnails='0'])").wait_for()
    opened.button("Select view").click()
    opened.find(".region .count").get_by_text(f"of {len(collection.rows)} images").wait_for()


def test_the_file_is_accessible_and_fits_a_phone(made: tuple[Path, GalleryReport], visit: Open) -> None:
    opened = visit(made[0].as_uri(), **PHONE, color_scheme="dark")
    opened.tiles().first.wait_for()
    assert violations(opened, "gallery") == []
    opened.tiles().first.locator(".tile-picture").tap()
    opened.find(".query:visible").wait_for()
    assert violations(opened, "search") == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 375


def test_no_view_of_the_file_asks_a_server(made: tuple[Path, GalleryReport], visit: Open) -> None:
    opened = visit(made[0].as_uri())
    assert opened.page.get_by_role("link").all_inner_texts() == ["Skip to the content", "Tessella", "Gallery", "Map"]
    for view in ("classify", "teach"):
        opened.page.goto(f"{made[0].as_uri()}#/{view}")
        opened.tiles().first.wait_for()
        assert opened.find("tessella-card, tessella-why, input.choose").count() == 0


def test_names_in_the_file_are_text(visit: Open, tmp_path: Path) -> None:
    count = len(STRINGS)
    vectors = pages.quantize(unit(random_vectors(count, 1)))
    points = np.random.default_rng(0).uniform(-1, 1, (count, 2)).astype("<f4")
    data = dict(
        title="</title><script>alert(1)</script>",
        model="m",
        labels=[dict(label=text, count=1) for text in STRINGS],
        keys=list(STRINGS),
        label=list(range(count)),
        probability=[0.5] * count,
        width=[4] * count,
        height=[3] * count,
        threshold=0.95,
        points=base64.b64encode(points.tobytes()).decode(),
        vectors=base64.b64encode(vectors.tobytes()).decode(),
        pictures=[None] * count,
    )
    path = tmp_path / "page.html"
    path.write_bytes(pages.make_page(data))
    opened = visit(path.as_uri())
    for shown in range(60, count, 60):
        opened.find("tessella-tile").nth(shown - 1).wait_for()
        opened.button("Show more").click()
    opened.find("tessella-tile").nth(count - 1).wait_for()
    titles = "[...document.querySelectorAll('tessella-tile .tile-name')].map((node) => node.title)"
    assert opened.page.evaluate(titles) == [printable(text) for text in STRINGS]
    assert opened.page.evaluate("document.querySelectorAll('script').length") == 2
    lines = export(opened, "Table (CSV)")[1]
    cells = [row["key"] for row in csv.DictReader(io.StringIO(lines, newline=""))]
    assert cells == [f"'{text}" if text[0] in "=+-@" else text for text in STRINGS]


# --- refusals and the command -----------------------------------------------------------------------------------------


def test_a_run_needs_an_index(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", numbered(random_vectors(3, 1)))
    with pytest.raises(UsageError, match="has no index") as caught:
        gallery(folder, tmp_path / "page.html")
    assert caught.value.code == "not_found"
    assert not (tmp_path / "page.html").exists()


def test_more_images_than_a_file_can_show_are_refused(
    indexed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collection: Collection
) -> None:
    monkeypatch.setattr(pages, "MAX_IMAGES", 10)
    with pytest.raises(UsageError, match=f"has {len(collection.rows)} images") as caught:
        gallery(indexed_run, tmp_path / "page.html")
    assert caught.value.code == "bad_argument"
    assert "tessella serve --index" in caught.value.hint


def test_other_suffixes_are_refused_before_the_work(indexed_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        gallery(indexed_run, tmp_path / "page.pdf")


def test_images_that_are_gone_have_no_thumbnail(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", numbered(random_vectors(4, 1)))  # its images never existed
    build_index(folder)
    report = gallery(folder, tmp_path / "page.html")
    assert (report.images, report.missing) == (4, 4)
    assert data_of(tmp_path / "page.html")["pictures"] == [None] * 4


def test_an_empty_index_gives_an_empty_page(tmp_path: Path, visit: Open, predictor: Predictor) -> None:
    (tmp_path / "note.jpg").write_text("not an image")
    run(tmp_path / "note.jpg", tmp_path / "run", predictor)
    build_index(tmp_path / "run")
    assert gallery(tmp_path / "run", tmp_path / "page.html").images == 0
    opened = visit((tmp_path / "page.html").as_uri())
    opened.page.get_by_text("There are no images").wait_for()


def test_the_command_says_the_size_and_the_loss(indexed_run: Path, tmp_path: Path, collection: Collection) -> None:
    path = tmp_path / "page.html"
    result = CliRunner().invoke(cli, ["gallery", str(indexed_run), "--out", str(path)])
    assert result.exit_code == 0
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    assert f"{len(collection.rows)} images, {size}" in result.output
    assert re.search(
        r"9\d\.\d % of the ten nearest images stay the same, similarities change by at most 0\.0\d+", result.output
    )
    result = CliRunner().invoke(cli, ["gallery", str(indexed_run), "--out", str(path), "--json"])
    assert json.loads(result.stdout)["images"] == len(collection.rows)
