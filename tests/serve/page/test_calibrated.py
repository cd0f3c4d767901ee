"""The page and calibrated models: unknown images, prediction sets, and the filter of a collection."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessella.bulk.run_folder import RunFacts
from tessella.search import gallery as write_gallery
from tessella.search import single_page as pages
from tessella.search.index import Seal, sealed_rows
from tessella.search.nearest import ArrowTable

from ..calibrations import model_folder
from ..servers import ServerProcess
from .browser import Visit
from .conftest import ROOT
from .stand_in import Collection, StandIn
from .test_access import PHONE, violations
from .test_classify import card
from .test_gallery import export

Open = Callable[..., Visit]
NAMES = ("astronaut", "cat", "coffee", "rocket")
FILES = [ROOT / "examples" / f"{name}.jpg" for name in NAMES]
FACTS = dict(coverage=0.9, per_class=False, false_alarms=0.05, temperature=1.5)
UNKNOWN = "This image is unlike those that the model knows; the classes below are probably wrong."


def classes(*labels: str) -> list[dict[str, Any]]:
    """Return classes with falling probabilities."""
    return [dict(index=i, label=label, probability=2.0 ** -(i + 1)) for i, label in enumerate(labels)]


def assess(labels: list[str], *, size: int = 0, unknown: bool = False) -> dict[str, Any]:
    """Return the fields of a result whose prediction set begins with these classes, and which has two more."""
    members = classes(*labels)
    top = classes(*labels, "another", "yet another")[:5]
    return dict(top=top, prediction_set=members, set_size=size or len(members), unknown=unknown, familiarity=0.2)


@pytest.fixture
def calibrated(site: StandIn) -> StandIn:
    """A server whose model is sure of the coffee, unsure about cat and rocket, and does not know the astronaut."""
    site.calibration = dict(FACTS)
    site.assessments = {
        "astronaut.jpg": assess(["mop", "wig"], unknown=True),
        "cat.jpg": assess(["tabby, tabby cat", "tiger cat"]),
        "coffee.jpg": assess(["espresso"]),
        "rocket.jpg": assess(["missile", "obelisk", "crane", "beacon", "steeple", "pole"], size=340),
    }
    return site


def show(visit: Open, site: StandIn, **options: Any) -> Visit:
    opened = visit(site.url, **options)
    opened.add_files(*FILES)
    for name in NAMES:
        card(opened, f"{name}.jpg")
    return opened


def notice(opened: Visit, name: str) -> str:
    """Return what the card of a file says above its classes; "" if nothing."""
    found = card(opened, f"{name}.jpg").locator(".notice")
    return " ".join(found.inner_text().split()) if found.count() else ""


def test_each_answer_says_how_far_it_can_be_trusted(calibrated: StandIn, visit: Open) -> None:
    opened = show(visit, calibrated)
    such = "Such lists contain the right class for 90 % of images."
    assert notice(opened, "astronaut") == f"Unknown {UNKNOWN}"
    assert notice(opened, "cat") == f"Unsure One of tabby, tiger cat. {such}"
    assert notice(opened, "coffee") == ""
    more = "One of 340 classes: missile, obelisk, crane, beacon, steeple and 335 more."
    assert notice(opened, "rocket") == f"Unsure {more} {such}"
    assert opened.find(".tip").count() == 0  # all is said
    assert opened.find(".summary").inner_text().startswith("4 images · 1 unknown · 2 unsure · last one in")
    assert opened.find("#announcements").inner_text() == "4 images classified, 1 unknown"


def test_the_classes_of_the_set_stand_out(calibrated: StandIn, visit: Open) -> None:
    opened = show(visit, calibrated)
    accented = {
        name: card(opened, f"{name}.jpg")
        .locator(".bar-fill")
        .evaluate_all("bars => bars.map((bar) => bar.classList.contains('likely'))")
        for name in NAMES
    }
    assert accented == dict(
        astronaut=[False] * 4, cat=[True, True, False, False], coffee=[True, False, False], rocket=[True] * 5
    )
    colors = (
        card(opened, "cat.jpg")
        .locator(".bar-fill")
        .evaluate_all("bars => bars.map((bar) => getComputedStyle(bar).backgroundColor)")
    )
    assert colors[0] == colors[1] != colors[2]
    widths = card(opened, "cat.jpg").locator(".bar-fill").evaluate_all("bars => bars.map((bar) => bar.style.width)")
    assert widths == ["50%", "25%", "12.5%", "6.25%"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(per_class=True), "90 % of the images of each class"),
        (dict(coverage=0.999), "99.9 % of images"),
        (dict(coverage=0.29), "29 % of images"),
    ],
)
def test_what_the_sets_of_a_model_mean(calibrated: StandIn, visit: Open, changes: dict[str, Any], text: str) -> None:
    calibrated.calibration = FACTS | changes
    assert notice(show(visit, calibrated), "cat").endswith(f"Such lists contain the right class for {text}.")


def test_names_of_classes_are_only_text(calibrated: StandIn, visit: Open) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    calibrated.assessments["cat.jpg"] = assess([hostile, "\u202etac"])
    opened = show(visit, calibrated)
    assert rf"One of {hostile}, \u202etac." in notice(opened, "cat")
    assert card(opened, "cat.jpg").locator(".notice img").count() == 0


def test_a_server_without_calibrations_has_the_old_rule(site: StandIn, visit: Open) -> None:
    opened = show(visit, site)
    assert opened.find(".notice").count() == 0
    badge = card(opened, "astronaut.jpg").locator(".badge")
    assert badge.inner_text().startswith("Unsure")
    first, *others = (
        card(opened, "cat.jpg")
        .locator(".bar-fill")
        .evaluate_all("bars => bars.map((bar) => bar.classList.contains('likely'))")
    )
    assert first
    assert not any(others)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_states_are_accessible(calibrated: StandIn, assessed: Collection, visit: Open, scheme: str) -> None:
    opened = show(visit, calibrated, color_scheme=scheme)
    assert violations(opened, "classify") == []
    opened.page.get_by_role("link", name="Gallery").click()
    opened.find("tessella-tile .badge.unknown").first.wait_for()
    assert violations(opened, "gallery") == []


def test_the_states_fit_a_phone(calibrated: StandIn, assessed: Collection, visit: Open) -> None:
    opened = show(visit, calibrated, **PHONE)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 375
    opened.page.get_by_role("link", name="Gallery").click()
    opened.find("tessella-tile .badge.unknown").first.wait_for()
    opened.find(".filters summary").click()
    known = sum(not row["unknown"] for row in assessed.rows)
    filtered(opened, f"Hide ({known})", known, len(assessed.rows), is_phone=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 375


# --- a collection -----------------------------------------------------------------------------------------------------


@pytest.fixture
def assessed(site: StandIn, collection: Collection) -> Collection:
    """The collection as if its run had a calibration: every fourth image is unknown."""
    rows = [row | dict(unknown=i % 4 == 1, set_size=i % 3 + 1) for i, row in enumerate(collection.rows)]
    site.collection = dataclasses.replace(collection, rows=rows)
    return site.collection


def filtered(opened: Visit, choice: str, count: int, rows: int, *, is_phone: bool = False) -> None:
    """Choose what is shown, and wait until it is."""
    opened.page.get_by_label("Unknown images").select_option(choice)
    if is_phone:
        opened.find(".filters summary").get_by_text(f"Filters: {count} of {rows}").wait_for()
    else:
        text = f"{count} of {rows} images" if count < rows else f"{rows} images"
        opened.page.get_by_text(text, exact=True).first.wait_for()
    opened.find("tessella-gallery:not([aria-busy])").wait_for()


def test_unknown_images_can_be_hidden_and_shown_alone(site: StandIn, assessed: Collection, visit: Open) -> None:
    opened = visit(f"{site.url}/#/gallery")
    opened.tiles().first.wait_for()
    rows = len(assessed.rows)
    names = {wanted: [row for row in assessed.rows if row["unknown"] == wanted] for wanted in (True, False)}
    few, many = (len(names[wanted]) for wanted in (True, False))
    options = opened.page.get_by_label("Unknown images").locator("option").all_inner_texts()
    assert options == [f"Show ({rows})", f"Hide ({many})", f"Show only these ({few})"]
    filtered(opened, options[2], few, rows)
    assert opened.find("tessella-tile .badge.unknown").count() == opened.tiles().count() == few
    filtered(opened, options[1], many, rows)
    assert opened.find("tessella-tile .badge.unknown").count() == 0
    opened.button("Clear filters").click()
    filtered(opened, options[0], rows, rows)
    sent = [body["filter"] for body in site.sent_to("/v1/index/select")]
    assert [sent[0], {"unknown": True} in sent, {"unknown": False} in sent, sent[-1]] == [{}, True, True, {}]


def test_a_tile_says_that_its_image_is_unknown(site: StandIn, assessed: Collection, visit: Open) -> None:
    opened = visit(f"{site.url}/#/gallery")
    opened.tiles().first.wait_for()
    unknown = opened.tiles().nth(1).locator(".tile-picture")
    label = assessed.rows[1]["label"].split(",")[0]
    assert f"unknown, perhaps {label}" in unknown.get_attribute("aria-label")
    assert "Unlike the images that the model knows" in unknown.get_attribute("title")
    open_set = opened.tiles().nth(2).locator(".tile-picture")  # row 2: known, of three classes
    assert "unknown" not in open_set.get_attribute("aria-label")
    assert "One of 3 classes" in open_set.get_attribute("title")
    assert "One of" not in opened.tiles().nth(0).locator(".tile-picture").get_attribute("title")
    unknown.click()
    opened.find(".query-text").get_by_text("unknown · ").wait_for()


def test_a_run_without_a_calibration_has_no_such_filter(site: StandIn, visit: Open) -> None:
    opened = visit(f"{site.url}/#/gallery")
    opened.tiles().first.wait_for()
    assert opened.page.get_by_label("Unknown images").count() == 0
    assert opened.find(".badge.unknown").count() == 0


def test_a_gallery_in_one_file_has_the_filter(
    indexed_run: Path, collection: Collection, visit: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_columns(folder: Path, facts: RunFacts, seal: Seal) -> ArrowTable | None:
        table = sealed_rows(folder, facts, seal)
        assert table is not None
        table = table.drop_columns([name for name in ("unknown", "set_size") if name in table.column_names])
        places = np.argsort(np.argsort(table["row"].to_numpy()))
        table = table.append_column("unknown", pa.array(places % 4 == 1))
        return table.append_column("set_size", pa.array((places % 3 + 1).astype(np.int32)))

    monkeypatch.setattr(pages, "sealed_rows", with_columns)
    write_gallery(indexed_run, tmp_path / "page.html")
    opened = visit((tmp_path / "page.html").as_uri(), offline=True)
    opened.tiles().first.wait_for()
    rows = len(collection.rows)
    few = len(range(1, rows, 4))
    filtered(opened, f"Show only these ({few})", few, rows)
    assert opened.find("tessella-tile .badge.unknown").count() == few
    table = list(csv.DictReader(io.StringIO(export(opened, "Table (CSV)")[1])))
    assert {row["unknown"] for row in table} == {"True"}
    assert [row["key"] for row in table] == [row["key"] for row in collection.rows[1::4]]
    assert [int(row["set_size"]) for row in table] == [i % 3 + 1 for i in range(1, rows, 4)]
    filtered(opened, f"Hide ({rows - few})", rows - few, rows)
    assert violations(opened, "gallery") == []


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = model_folder(tmp_path_factory.mktemp("models") / "animals", [path.read_bytes() for path in FILES])
    with ServerProcess("-m", f"local-dir:{folder}") as process:
        yield process


def test_a_calibrated_model_of_a_real_server(real: ServerProcess, visit: Open) -> None:
    opened = visit(f"{real.url}/")
    opened.expect_messages("status of 404")  # it has no index
    opened.add_files(*FILES)
    for name in NAMES:
        card(opened, f"{name}.jpg")
    assert sorted(notice(opened, name) for name in NAMES) == ["", "", f"Unknown {UNKNOWN}", f"Unknown {UNKNOWN}"]
    assert opened.find(".summary").inner_text().startswith("4 images · 2 unknown · last one in")
