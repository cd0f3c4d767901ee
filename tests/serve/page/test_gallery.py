"""Gallery and Teach in a real browser: browse, search, filter, near-duplicates, export, and a class of one's own."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .browser import Visit
from .conftest import ROOT
from .stand_in import Collection, StandIn
from .test_states import subset

Open = Callable[..., Visit]


def gallery(visit: Open, site: StandIn, **options: Any) -> Visit:
    opened = visit(f"{site.url}/#/gallery", **options)
    opened.tiles().first.wait_for()
    return opened


def settled(opened: Visit) -> None:
    """Wait until the view shows the last answer."""
    opened.find("tessella-gallery:not([aria-busy]), tessella-teach:not([aria-busy])").first.wait_for()


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["key"].rsplit("/", 1)[-1] for row in rows]


def position_of(collection: Collection, name: str) -> int:
    return next(i for i, row in enumerate(collection.rows) if row["key"].endswith(f"/{name}"))


def test_the_gallery_shows_all_images_page_by_page(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    assert opened.find(".count").first.inner_text() == f"{len(collection.rows)} images"
    assert opened.keys_of_tiles() == names(collection.rows)[:60]
    first = opened.find("tessella-tile img.loaded").first
    first.wait_for()
    assert first.evaluate("node => node.naturalWidth > 20")
    requested = [path for _, path, _ in site.requests if path.startswith("/v1/index/image/")]
    assert 0 < len(requested) < 60  # only those near the window
    opened.button("Show more").click()
    opened.tiles().nth(len(collection.rows) - 1).wait_for()
    assert opened.keys_of_tiles() == names(collection.rows)
    assert not opened.button("Show more").is_visible()


def test_any_image_starts_a_search_and_back_leads_back(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    first = names(collection.rows)[7]
    opened.page.get_by_role("button", name=re.compile(f"^Search by {re.escape(first)},")).click()
    opened.find(".query:visible").wait_for()
    settled(opened)
    assert opened.find(".query h2").inner_text() == first
    scores = [float(text) for text in opened.find("tessella-tile:visible .tile-score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    expected = collection.vectors @ collection.vectors[7]
    assert scores[0] == pytest.approx(sorted(expected)[-2], abs=0.01)
    second = opened.keys_of_tiles()[3]
    opened.tiles().nth(3).locator(".tile-picture").click()
    opened.find(
        ".query h2",
    ).get_by_text(second).wait_for()
    assert opened.page.url.endswith(f"?row={collection.rows[position_of(collection, second)]['row']}")
    opened.page.go_back()
    opened.find(".query h2").get_by_text(first).wait_for()
    opened.page.reload()  # the search is part of the address
    opened.find(".query h2").get_by_text(first).wait_for()
    opened.button("Show all images").click()
    opened.find(".query:visible").wait_for(state="detached")
    settled(opened)
    assert opened.keys_of_tiles() == names(collection.rows)[:60]


def test_the_image_of_a_search_can_be_enlarged(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    opened.tiles().first.locator(".tile-picture").click()
    opened.button("Enlarge the image").click()
    picture = opened.page.get_by_role("dialog").locator("img")
    picture.wait_for()
    assert picture.evaluate("node => node.decode().then(() => node.naturalWidth)") > 100


def test_an_image_that_is_dropped_on_the_gallery_is_searched_for(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    data = (ROOT / "examples" / "rocket.jpg").read_bytes()
    opened.page.evaluate(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "mine.jpg", { type: "image/jpeg" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, cancelable: true }));
        }""",
        list(data),
    )
    opened.find(".query h2").get_by_text("mine.jpg").wait_for()
    settled(opened)
    assert opened.keys_of_tiles()[0] == "rocket.jpg"


def test_the_threshold_hides_images_that_are_less_similar(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    opened.tiles().nth(30).locator(".tile-picture").click()
    opened.find(".query:visible").wait_for()
    settled(opened)  # the answer to the click is not the one that is waited for below
    slider = opened.page.get_by_label("Least similarity")
    with opened.page.expect_response("**/v1/search") as answered:
        slider.fill("0.5")
    assert answered.value.request.post_data_json["min_score"] == 0.5
    settled(opened)
    assert opened.find("output").inner_text() == "0.50"
    scores = [float(text) for text in opened.find("tessella-tile:visible .tile-score").all_inner_texts()]
    assert scores
    assert min(scores) >= 0.5
    slider.fill("1")
    opened.page.get_by_text("Nothing is that similar").wait_for()


def test_the_count_is_that_of_the_images_that_are_similar_enough(
    site: StandIn, visit: Open, collection: Collection
) -> None:
    opened = gallery(visit, site)
    opened.tiles().nth(30).locator(".tile-picture").click()
    opened.find(".query:visible").wait_for()
    count = opened.find("tessella-filters .count")
    total = len(collection.rows)
    scores = np.delete(collection.vectors, 30, axis=0) @ collection.vectors[30]
    for least in (0.5, 0.4, 1):
        expected = int((scores >= least).sum())
        opened.page.get_by_label("Least similarity").fill(str(least))
        count.get_by_text(f"{expected} of {total} images", exact=True).wait_for()
        assert opened.find(".filters summary").inner_text() == f"Filters: {expected} of {total}"
    opened.page.get_by_label("Least similarity").fill("0")
    count.get_by_text(f"{total} images", exact=True).wait_for()


def test_the_count_of_a_list_that_goes_on_is_a_lower_bound(site: StandIn, visit: Open, collection: Collection) -> None:
    site.collection = subset(collection, [0] * 70 + [40] * 10)  # 69 copies of the image, and ten of another one
    opened = gallery(visit, site)
    opened.tiles().first.locator(".tile-picture").click()
    opened.find(".query:visible").wait_for()
    opened.page.get_by_label("Least similarity").fill("0.99")
    count = opened.find("tessella-filters .count")
    count.get_by_text("69 of 80 images", exact=True).wait_for()  # one image, and its 68 near-duplicates
    assert opened.tiles().count() == 1
    choice = opened.page.get_by_label("Near-duplicates", exact=True)
    choice.select_option("hide")
    count.get_by_text("1 of 80 images", exact=True).wait_for()
    choice.select_option("show")
    count.get_by_text("At least 60 of 80 images", exact=True).wait_for()
    opened.button("Show more").click()
    count.get_by_text("69 of 80 images", exact=True).wait_for()
    assert opened.tiles().count() == 69


def test_near_duplicates_are_grouped_hidden_or_shown(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    opened.button("Show more").click()
    opened.page.get_by_role("button", name=re.compile("^Search by coffee.jpg")).click()
    opened.find(".query:visible").wait_for()
    more = opened.button("Show 1 near-duplicate of cat.jpg")
    more.wait_for()
    assert "the same cat.jpg" not in opened.keys_of_tiles()
    more.click()
    opened.page.get_by_text("the same cat.jpg").wait_for()
    found = opened.keys_of_tiles()
    assert found[found.index("cat.jpg") + 1] == "the same cat.jpg"
    more.click()
    assert "the same cat.jpg" not in opened.keys_of_tiles()
    choice = opened.page.get_by_label("Near-duplicates", exact=True)
    choice.select_option("hide")
    more.wait_for(state="detached")
    settled(opened)
    assert "the same cat.jpg" not in opened.keys_of_tiles()
    choice.select_option("show")
    opened.page.get_by_text("the same cat.jpg").wait_for()


def test_filters_by_class_and_size(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    total = len(collection.rows)
    label = collection.labels[1]
    count = sum(row["label"] == label for row in collection.rows)
    assert count < total
    opened.page.get_by_label("Find a class").fill(label[:6].upper())
    opened.page.get_by_role("checkbox", name=re.compile(f"^{re.escape(label.split(',')[0])}")).check()
    opened.page.get_by_text(f"{count} of {total} images").wait_for()
    settled(opened)
    assert opened.keys_of_tiles() == names([row for row in collection.rows if row["label"] == label])
    opened.page.get_by_label("Smallest height in pixels").fill("100000")
    opened.page.get_by_text("No image matches").wait_for()
    opened.find(".message").get_by_role("button", name="Clear filters").click()
    opened.page.get_by_text(f"{total} images", exact=True).wait_for()
    assert opened.page.get_by_label("Smallest height in pixels").input_value() == ""
    wide = sorted(row["width"] for row in collection.rows)[-3]
    with opened.page.expect_response("**/v1/index/select") as answered:
        opened.page.get_by_label("Smallest width in pixels").fill(str(wide))
    assert answered.value.request.post_data_json["filter"] == {"min_width": wide}
    settled(opened)
    assert all(row["width"] >= wide for row in answered.value.json()["rows"])


def export(opened: Visit, kind: str) -> tuple[str, str]:
    """Return the name and the text of the file that an export saves."""
    opened.find(".menu summary:visible").click()
    with opened.page.expect_download() as download:
        opened.button(kind).click()
    return download.value.suggested_filename, download.value.path().read_text()


def test_a_selection_is_exported(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    opened.tiles().nth(2).locator("input").check()
    opened.tiles().nth(4).hover()
    opened.page.keyboard.press("Tab")
    opened.tiles().nth(4).locator(".tile-picture").focus()
    opened.page.keyboard.press("x")
    opened.page.get_by_text("Export 2 images").wait_for()
    keys = [collection.rows[i]["key"] for i in (2, 4)]
    assert export(opened, "Table (CSV)") == ("images.csv", "".join(f"{key}\n" for key in ("key", *keys)))
    assert export(opened, "List of files") == ("images.txt", "".join(f"{key}\n" for key in keys))
    assert site.sent_to("/v1/index/export")[0] == {"rows": [collection.rows[i]["row"] for i in (2, 4)], "format": "csv"}
    opened.find(".menu summary").click()
    opened.button("Clear the selection").click()
    opened.find(".menu summary").get_by_text("Export", exact=True).wait_for()
    assert opened.find("tessella-tile[selected]").count() == 0


def test_without_a_selection_all_that_matches_is_exported(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    assert len(export(opened, "List of files")[1].splitlines()) == len(collection.rows)
    assert site.sent_to("/v1/index/export") == [{"filter": {}, "format": "list"}]
    opened.tiles().first.locator(".tile-picture").click()
    opened.find(".query:visible").wait_for()
    settled(opened)
    shown = opened.keys_of_tiles()
    assert [line.rsplit("/", 1)[-1] for line in export(opened, "List of files")[1].splitlines()] == shown
    table = csv.reader(io.StringIO(export(opened, "Table (CSV)")[1]))
    assert len(list(table)) == 1 + len(shown)


def test_a_failed_search_can_be_repeated(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    opened.expect_messages("status of 500")
    site.fail("/v1/search", 500, "damaged_run")
    opened.tiles().first.locator(".tile-picture").click()
    opened.find(".message").get_by_text("Files of the index are missing or damaged").wait_for()
    opened.button("Try again").click()
    opened.tiles().first.wait_for()


def test_a_server_without_an_index_says_how_to_get_one(site: StandIn, visit: Open) -> None:
    site.collection = None
    opened = visit(f"{site.url}/#/gallery")
    opened.expect_messages("status of 404")
    opened.page.get_by_text("No collection is open").wait_for()
    opened.page.get_by_text("tessella serve --index RUN").wait_for()
    opened.page.get_by_role("link", name="Classify").click()
    opened.page.get_by_role("heading", name="Classify images").wait_for()


def test_a_collection_that_cannot_be_opened_yet_can_be_asked_for_again(site: StandIn, visit: Open) -> None:
    site.fail("/v1/index", 503, "not_ready", times=5)
    opened = visit(f"{site.url}/#/gallery")
    opened.expect_messages("status of 503")
    opened.page.get_by_role("heading", name="The index cannot be shown").wait_for()
    assert "still starting" in opened.find(".empty").inner_text()
    site.failures.clear()
    opened.button("Try again").click()
    opened.tiles().first.wait_for()


def test_a_token_that_is_not_given_is_not_asked_for_again_and_again(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    opened.find("tessella-tile img.loaded").first.wait_for()
    opened.expect_messages("status of 401")
    site.token = "secret"
    opened.button("Show more").click()
    opened.page.get_by_role("dialog").wait_for()
    opened.page.keyboard.press("Escape")
    opened.find(".message").get_by_text("needs a valid token").wait_for()
    opened.find("a[href='#/teach']").click()
    opened.page.get_by_role("dialog").wait_for()  # another view asks once more, thumbnails never do
    opened.page.get_by_role("textbox", name="Token").fill("secret")
    opened.button("Continue").click()
    opened.find("tessella-teach tessella-tile img.loaded").first.wait_for()


def test_the_request_of_a_search_is_shown(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    opened.tiles().first.locator(".tile-picture").click()
    opened.find(".query:visible").wait_for()
    settled(opened)
    assert opened.find(".timing").inner_text() == "1.9 ms (search 1.2 ms)"
    opened.button("Show the request").click()
    text = opened.page.get_by_role("tabpanel").inner_text()
    assert f'"queries":[{{"row":{collection.rows[0]["row"]}}}]' in text
    opened.page.get_by_role("tab", name="Python").click()
    assert '"group_duplicates": True' in opened.page.get_by_role("tabpanel").inner_text()


# --- teach ------------------------------------------------------------------------------------------------------------


def teach(visit: Open, site: StandIn) -> Visit:
    opened = visit(f"{site.url}/#/teach")
    opened.tiles().first.wait_for()
    return opened


def mark(opened: Visit, side: str, name: str) -> None:
    opened.page.get_by_role("button", name=f"{side}: {name}", exact=True).click()


def test_a_class_is_taught_undone_and_saved(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = teach(visit, site)
    shoe, hat = (names([row for row in collection.rows if f"/{kind}/" in row["key"]])[0] for kind in ("shoes", "hat"))
    assert opened.button("Save head").is_disabled()
    mark(opened, "Yes", hat)
    opened.page.get_by_text("These are similar. Now mark at least one as no.").wait_for()
    assert site.sent_to("/v1/teach") == []
    other = opened.keys_of_tiles()[-1]
    mark(opened, "No", other)
    opened.page.get_by_text("Fitted to 2 images in 12 ms.").wait_for()
    rows = [collection.rows[position_of(collection, name)]["row"] for name in (hat, other)]
    assert site.sent_to("/v1/teach") == [dict(yes=rows[:1], no=rows[1:], top=60)]
    scores = [float(text) for text in opened.find("tessella-tile:visible .tile-score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert opened.keys_of_tiles()[0] == hat
    assert opened.find(".marked.yes .tray button").count() == opened.find(".marked.no .tray button").count() == 1
    opened.button("Undo").click()
    opened.page.get_by_text("Now mark at least one as no").wait_for()
    opened.page.keyboard.press("Control+z")
    opened.page.get_by_text("Mark an image that belongs to your class as yes").wait_for()
    assert opened.button("Undo").is_disabled()
    assert shoe != hat


def test_a_head_is_saved_and_replaced_only_on_request(site: StandIn, visit: Open) -> None:
    opened = teach(visit, site)
    opened.tiles().first.locator(".tile-picture").focus()
    opened.page.keyboard.press("y")
    opened.page.get_by_text("Now mark at least one as no").wait_for()
    opened.tiles().nth(20).locator(".tile-picture").focus()
    opened.page.keyboard.press("n")
    opened.page.get_by_text("Fitted to 2 images").wait_for()
    for name in ("red hats", "red hats"):
        opened.page.get_by_label("Name of the class").fill(name)
        opened.button("Save head").click()
        opened.find(".saved li.new").wait_for()
    dialog = opened.page.get_by_role("dialog")
    opened.expect_messages("status of 409")
    assert "red hats" in dialog.inner_text()
    with opened.page.expect_response("**/v1/heads"):  # a message about the first one may still be there
        dialog.get_by_role("button", name="Replace").click()
    opened.page.get_by_text("Saved “red hats”").nth(0).wait_for()
    assert [body.get("replace") for body in site.sent_to("/v1/heads") if body] == [None, None, True]
    assert opened.find(".saved bdi").all_inner_texts() == ["red hats"]
    assert site.heads["red hats"] == (site.sent_to("/v1/teach")[0]["yes"], site.sent_to("/v1/teach")[0]["no"])
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.button("Copy the command that classifies with red hats").click()
    opened.page.get_by_text("Copied").first.wait_for()
    assert opened.page.evaluate("navigator.clipboard.readText()") == "tessella classify --head RUN:'red hats' IMAGE"


def test_what_saving_a_head_needs_is_said_before(site: StandIn, visit: Open) -> None:
    opened = teach(visit, site)
    needs = opened.page.get_by_text("First mark at least one image as yes and one as no.")
    save = opened.button("Save head")
    for side in ("yes", "no"):
        assert needs.is_visible()
        assert save.is_disabled()
        assert save.get_attribute("aria-describedby") == needs.get_attribute("id")
        opened.find(f"tessella-teach .mark.{side}").last.click()
        settled(opened)
    opened.page.get_by_text("Fitted to 2 images").wait_for()
    assert not needs.is_visible()
    assert save.is_enabled()


def test_teaching_with_one_image_says_what_is_missing(site: StandIn, visit: Open, collection: Collection) -> None:
    site.collection = subset(collection, [0])
    opened = teach(visit, site)
    for side in ("yes", "no"):
        opened.page.get_by_text(
            "Teaching needs at least two: one that shows your class and one that does not."
        ).wait_for()
        opened.find(f"tessella-teach .mark.{side}").click()
        settled(opened)
    opened.page.get_by_text("Teaching needs at least two").wait_for()
    assert site.sent_to("/v1/search") == site.sent_to("/v1/teach") == []


def test_all_images_marked_as_yes(site: StandIn, visit: Open, collection: Collection) -> None:
    site.collection = subset(collection, [0, 40])
    opened = teach(visit, site)
    for name in opened.keys_of_tiles():
        mark(opened, "Yes", name)
        settled(opened)
    opened.page.get_by_text("All images are marked as yes. Remove the mark of one").wait_for()


def test_the_refusal_of_the_server_says_what_to_do(site: StandIn, visit: Open) -> None:
    opened = teach(visit, site)
    opened.expect_messages("status of 422")
    sentence = "The images marked yes and no look the same: mark other images."
    body = dict(code="unprocessable", title="the request is well-formed, but cannot be carried out", detail=sentence)
    opened.page.route("**/v1/teach", lambda route: route.fulfill(status=422, body=json.dumps(body)))
    for side in ("yes", "no"):
        opened.find(f"tessella-teach .mark.{side}").last.click()
        settled(opened)
    opened.find("tessella-teach .message").get_by_text(sentence).wait_for()


def test_the_view_is_busy_from_the_first_click_on(site: StandIn, visit: Open) -> None:
    opened = teach(visit, site)
    clicked = "button => (button.click(), document.querySelector('tessella-teach').getAttribute('aria-busy'))"
    assert opened.find("tessella-teach .mark.yes").last.evaluate(clicked) == "true"
    settled(opened)
    assert len(site.sent_to("/v1/search")) == 1
    assert opened.button("Undo").evaluate(clicked) == "true"
    settled(opened)


def test_heads_of_another_tab_are_listed(site: StandIn, visit: Open) -> None:
    opened = teach(visit, site)
    saved = opened.find(".saved bdi")
    assert saved.count() == 0
    site.heads |= {"hats": None, "shoes": None}
    show = "document.dispatchEvent(new Event('visibilitychange'))"  # as when a person returns to the tab
    opened.page.evaluate(show)
    opened.button("Copy the command that classifies with hats").wait_for()
    assert saved.all_inner_texts() == ["hats", "shoes"]
    del site.heads["hats"]
    opened.page.evaluate(show)
    opened.page.get_by_text("No longer available, because the file was deleted or is damaged: “hats”.").wait_for()
    opened.page.get_by_text("mark images and save it under the same name").wait_for()
    assert saved.all_inner_texts() == ["shoes"]
    opened.page.get_by_role("link", name="Gallery").click()
    site.heads["bags"] = None
    opened.page.get_by_role("link", name="Teach").click()
    opened.button("Copy the command that classifies with bags").wait_for()
    opened.expect_messages("status of 401")
    site.token = "secret"  # what is loaded in the background opens no dialog
    with opened.page.expect_response("**/v1/heads"):
        opened.page.evaluate(show)
    assert opened.page.get_by_role("dialog").count() == 0
    assert saved.all_inner_texts() == ["shoes", "bags"]


def test_a_mark_is_taken_back_in_its_tray(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = teach(visit, site)
    name = names(collection.rows)[0]
    mark(opened, "Yes", name)
    opened.button(f"Remove the mark of {name}").click()
    opened.page.get_by_text("Mark an image that belongs to your class as yes").wait_for()
    assert opened.find("tessella-tile[yes]").count() == 0
