"""The page and `tessella serve --index RUN` together: everything that test_*.py tests with a stand-in works with it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessella.bulk import read_rows

from ..servers import ANSWER_SECONDS, ServerProcess
from .browser import Visit
from .conftest import ROOT

Open = Callable[..., Visit]
TOKEN = "a long secret"
CAT = ROOT / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def real(indexed_run: Path) -> Iterator[ServerProcess]:
    with ServerProcess("--index", str(indexed_run), environment={"TESSELLA_TOKEN": TOKEN}) as process:
        yield process


@pytest.fixture
def opened(real: ServerProcess, visit: Open) -> Visit:
    """The page, with the token of the server."""
    found = visit(f"{real.url}/", storage={"tessella-token": TOKEN})
    found.find("tessella-app[data-ready]").wait_for()
    return found


def rows_of(run: Path) -> list[dict[str, object]]:
    rows = [row for table in read_rows(run) for row in table.to_pylist()]
    return [dict(row, row=i) for i, row in enumerate(rows) if row["status"] == "ok"]


def test_images_are_classified(opened: Visit, tmp_path: Path) -> None:
    opened.add_files(CAT, dict(name="broken.jpg", mimeType="image/jpeg", buffer=CAT.read_bytes()[:9000]))
    card = opened.find("tessella-card[data-status=done]")
    card.wait_for()
    assert card.locator(".bars li").count() == 5
    assert "451 × 300" in card.inner_text()
    opened.find("tessella-card[data-status=failed]").get_by_text("damaged or incomplete").wait_for()
    opened.button("Show the request for cat.jpg").click()
    texts = {}
    for tab in ("curl", "Python", "Answer (JSON)"):
        opened.page.get_by_role("tab", name=tab).click()
        texts[tab] = opened.page.get_by_role("tabpanel").inner_text()
    top = json.loads(texts["Answer (JSON)"])["results"][0]["top"]
    (tmp_path / "cat.jpg").write_bytes(CAT.read_bytes())
    options = dict(cwd=tmp_path, capture_output=True, check=True, text=True, env={"TESSELLA_TOKEN": TOKEN})
    answer = subprocess.run(["bash", "-c", texts["curl"]], **options)  # type: ignore[call-overload]
    assert json.loads(answer.stdout)["results"][0]["top"] == top
    printed = subprocess.run([sys.executable, "-c", texts["Python"]], **options)  # type: ignore[call-overload]
    assert repr(top) in printed.stdout


def test_the_models_of_the_server_can_be_chosen(opened: Visit) -> None:
    opened.add_files(CAT)
    opened.find("tessella-card[data-status=done]").wait_for()
    picker = opened.page.get_by_label("Model")
    names = picker.locator("option").all_inner_texts()
    assert "convmixer_256_8_ks3_p4.cifar10" in names
    assert picker.input_value() in names
    assert opened.find(".summary").inner_text().startswith("1 image · ")


def test_the_collection_is_searched_filtered_and_exported(opened: Visit, indexed_run: Path) -> None:
    rows = rows_of(indexed_run)
    opened.page.get_by_role("link", name="Gallery").click()
    opened.tiles().first.wait_for()
    opened.find("tessella-tile img.loaded").first.wait_for()
    assert opened.find("tessella-filters .count").inner_text() == f"{len(rows)} images"
    opened.button("Show more").click()
    opened.tiles().nth(len(rows) - 1).wait_for()
    assert opened.keys_of_tiles() == [str(row["key"]).rsplit("/", 1)[-1] for row in rows]
    opened.page.get_by_role("button", name="Search by coffee.jpg").click()
    opened.button("Show 1 near-duplicate of cat.jpg").click()
    opened.find("tessella-tile.copy").get_by_text("the same cat.jpg").wait_for()
    opened.page.reload()  # the row is found by its number, although a file of the run is not in the index
    opened.find(".query h2").get_by_text("coffee.jpg").wait_for()
    opened.button("Enlarge the image").click()
    opened.page.get_by_role("dialog").locator("img").evaluate("node => node.decode()")
    opened.page.keyboard.press("Escape")
    opened.page.get_by_label("Least similarity").fill("0.05")
    opened.find("tessella-gallery:not([aria-busy])").wait_for()
    opened.button("Show all images").click()
    label = max({str(row["label"]) for row in map(first_class, rows)}, key=len)
    count = sum(first_class(row)["label"] == label for row in rows)
    opened.page.get_by_label("Find a class").fill(label)
    opened.find("tessella-filters .labels input").first.check()
    opened.find("tessella-filters .count").get_by_text(f"of {len(rows)} images").wait_for()
    assert opened.find("tessella-filters .count").inner_text() == f"{count} of {len(rows)} images"
    opened.find(".menu summary").click()
    with opened.page.expect_download() as download:
        opened.button("Table (CSV)").click()
    table = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["key"] for row in table] == [row["key"] for row in rows if first_class(row)["label"] == label]


def first_class(row: dict[str, object]) -> dict[str, object]:
    """Return the most likely class of a row of a run."""
    labels = row["top_label"]
    assert isinstance(labels, list)
    return dict(label=labels[0])


def test_an_image_of_ones_own_is_searched_for(opened: Visit) -> None:
    opened.add_files(ROOT / "examples" / "rocket.jpg")
    opened.button("Find similar").click()
    opened.find("tessella-gallery tessella-tile").first.wait_for()
    assert opened.keys_of_tiles()[0] == "rocket.jpg"


def test_the_map_and_its_regions(opened: Visit, indexed_run: Path) -> None:
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn=all]").wait_for()
    for _ in range(3):
        opened.button("Zoom in").click()
    opened.find("tessella-map:not([data-thumbnails='0'])").wait_for()
    opened.button("Select view").click()
    opened.find(".region .count").get_by_text(f"of {len(rows_of(indexed_run))} images").wait_for()
    opened.find(".overlay").focus()
    opened.page.keyboard.press("Enter")
    opened.find(".query:visible").wait_for()


def test_a_class_is_taught_and_used_by_the_command_line(opened: Visit, indexed_run: Path) -> None:
    opened.page.get_by_role("link", name="Teach").click()
    opened.tiles().first.wait_for()
    rows = rows_of(indexed_run)
    by_kind = {
        kind: [str(row["key"]).rsplit("/", 1)[-1] for row in rows if f"/{kind}/" in str(row["key"])]
        for kind in ("hat", "shoes")
    }
    for side, name in (("Yes", by_kind["hat"][0]), ("No", by_kind["shoes"][0])):
        opened.page.get_by_role("button", name=f"{side}: {name}", exact=True).click()
        opened.find("tessella-teach:not([aria-busy])").wait_for()
    opened.page.get_by_text("Fitted to 2 images").wait_for()
    assert set(opened.keys_of_tiles()[:10]) <= set(by_kind["hat"])
    opened.page.get_by_label("Name of the class").fill("hats")
    opened.button("Save head").click()
    opened.find(".saved").get_by_text("hats").first.wait_for()
    hat, shoe = (str(next(r["source"] for r in rows if str(r["key"]).endswith(by_kind[kind][5]))) for kind in by_kind)
    command = [sys.executable, "-m", "tessella", "classify", "--head", f"{indexed_run}:hats", hat, shoe, "--json"]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    probabilities = [
        next(best["probability"] for best in json.loads(line)["top"] if best["label"] == "hats")
        for line in printed.splitlines()
    ]
    assert probabilities[0] > probabilities[1]


def test_without_the_token_only_the_files_of_the_page_are_given(real: ServerProcess) -> None:
    import httpx

    from tessella.serve.routes import page

    with httpx.Client(base_url=real.url, timeout=ANSWER_SECONDS) as client:
        assert {client.get(path).status_code for path in page.OPEN_PATHS} == {200}
        assert client.get("/").headers["content-security-policy"] == page.POLICY
        assert client.get("/v1/index").status_code == 401
