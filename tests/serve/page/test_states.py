"""States that surprise: a token that is not given, a collection that changed, an index of one image, a lost focus."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tessella.serve.routes.index_schemas import FilterBody

from .browser import Visit
from .conftest import ROOT
from .stand_in import Collection, StandIn

Open = Callable[..., Visit]
CAT = ROOT / "examples" / "cat.jpg"
MAX_PIXELS = FilterBody.model_json_schema()["properties"]["max_width"]["anyOf"][0]["maximum"]  # that the server takes
SHARED_THUMBNAIL = """async () => {
  const { name } = performance.getEntriesByType("resource").find((entry) => entry.name.endsWith("/thumbnails.js"));
  const { Thumbnails } = await import(name);
  const started = [];
  const load = (row) => new Promise((resolve) => started.push(() => resolve(`address of ${row}`)));
  const thumbnails = new Thumbnails(load);
  for (let row = 0; row < 6; row++) thumbnails.address(row, 96, () => true); // all requests at once are in use
  const waiting = [thumbnails.address(7, 96, () => false), thumbnails.address(7, 96, () => true)];
  const unwanted = thumbnails.address(8, 96, () => false);
  started.shift()();
  const refused = await unwanted;
  while (started.length) started.shift()();
  return [...(await Promise.all(waiting)), refused];
}"""
FOCUS = """() => {
  const { activeElement: node } = document;
  return node === document.body ? "nothing" : node.getAttribute("aria-label") ?? node.innerText;
}"""
COUNT_FOCUS = """() => {
  window.focused = 0;
  const original = HTMLElement.prototype.focus;
  HTMLElement.prototype.focus = function (...options) { window.focused++; return original.apply(this, options); };
}"""


def copies(count: int) -> list[dict[str, Any]]:
    """Return an image under several names."""
    return [dict(name=f"{i}.jpg", mimeType="image/jpeg", buffer=CAT.read_bytes()) for i in range(count)]


def focused(opened: Visit) -> str:
    """Return the name of the element with the focus."""
    name: str = opened.page.evaluate(FOCUS)
    return name


def subset(collection: Collection, places: Sequence[int]) -> Collection:
    """Return some images of a collection, as an index of their own."""
    rows = [collection.rows[i] | {"row": k} for k, i in enumerate(places)]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    pictures = {k: collection.pictures[collection.rows[i]["row"]] for k, i in enumerate(places)}
    return Collection(rows, collection.vectors[list(places)], collection.points[list(places)], labels, pictures)


def gallery(visit: Open, site: StandIn) -> Visit:
    opened = visit(f"{site.url}/#/gallery")
    opened.tiles().first.wait_for()
    return opened


def settled(opened: Visit) -> None:
    opened.find("tessella-gallery:not([aria-busy])").wait_for()


# --- the token --------------------------------------------------------------------------------------------------------


def test_a_token_that_is_not_given_is_asked_for_once_at_the_start(site: StandIn, browser: Any) -> None:
    site.token = "secret"
    context = browser.new_context()
    page = context.new_page()
    page.goto(site.url)
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.locator("tessella-app[data-ready]").wait_for()
    assert page.get_by_role("dialog").count() == 0
    page.goto(f"{site.url}/#/gallery")
    page.locator("main").get_by_text("needs a valid token").wait_for()
    context.close()


def test_a_token_that_is_not_given_is_asked_for_once_for_many_images(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 401")
    site.token = "secret"
    opened.add_files(*copies(12))
    opened.page.get_by_role("dialog").wait_for()
    opened.page.keyboard.press("Escape")
    opened.find(".summary").get_by_text("12 images · 12 failed").wait_for()
    assert opened.page.get_by_role("dialog").count() == 0
    opened.button("Try again").first.click()  # what a person asks for again needs the token again
    opened.page.get_by_role("textbox", name="Token").fill("secret")
    opened.page.keyboard.press("Enter")
    opened.find("tessella-card[data-status=done]").nth(11).wait_for()  # the token serves the other images, too
    assert opened.find("tessella-card[data-status=failed]").count() == 0


def test_characters_that_no_token_has_are_refused_before_they_are_kept(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 401")
    site.token = "secret"
    opened.add_files(CAT)
    field = opened.page.get_by_role("textbox", name="Token")
    for text in ("schlüssel", "鍵", "secret\u200b"):
        field.fill(text)
        opened.page.keyboard.press("Enter")
        opened.page.get_by_role("alert").get_by_text("A token has no such characters").wait_for()
    assert opened.page.evaluate("sessionStorage.getItem('tessella-token')") is None
    field.fill("secret")
    opened.page.keyboard.press("Enter")
    opened.find("tessella-card[data-status=done]").wait_for()


def test_what_failed_without_the_token_is_loaded_once_it_is_given(site: StandIn, browser: Any) -> None:
    site.token = "secret"
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site.url}/#/classify")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.locator("tessella-app[data-ready]").wait_for()
    assert not page.get_by_label("Model").is_visible()
    page.goto(f"{site.url}/#/gallery")
    page.get_by_role("heading", name="The index cannot be shown").wait_for()
    page.goto(f"{site.url}/#/classify")
    page.locator("input.choose").set_input_files(copies(1))
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.locator("tessella-card[data-status=failed]").wait_for()
    page.locator("input.choose").set_input_files(dict(copies(1)[0], name="second.jpg"))
    page.get_by_role("textbox", name="Token").fill("secret")
    page.keyboard.press("Enter")
    page.locator("tessella-card[data-status=done]").nth(1).wait_for()  # the first one, too
    page.get_by_label("Model").wait_for()
    assert page.get_by_label("Model").locator("option").count() == 2
    for name in ("Why?", "Find similar"):
        page.locator("tessella-card").first.get_by_text(name, exact=True).wait_for()
    page.goto(f"{site.url}/#/gallery")
    page.locator("tessella-tile img.loaded").first.wait_for()
    assert page.get_by_role("dialog").count() == 0
    context.close()


def test_the_view_that_failed_without_the_token_is_loaded_once_it_is_given(site: StandIn, browser: Any) -> None:
    site.token = "secret"
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site.url}/#/gallery")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="The index cannot be shown").wait_for()
    page.evaluate("document.querySelector('tessella-app').dataset.opened = 'once'")  # a reload would lose this
    page.locator(".nav-link[data-view=classify]").click()
    page.locator("input.choose").set_input_files(copies(1))
    page.get_by_role("dialog").wait_for()
    page.evaluate("location.hash = '#/gallery'")
    page.get_by_role("textbox", name="Token").fill("secret")
    page.keyboard.press("Enter")
    page.locator("tessella-gallery tessella-tile img.loaded").first.wait_for()
    assert page.locator("tessella-app").get_attribute("data-opened") == "once"
    context.close()


def test_thumbnails_that_failed_without_the_token_are_loaded_once_it_is_given(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    opened.expect_messages("status of 401")
    site.token = "secret"
    opened.page.mouse.move(700, 500)
    opened.page.mouse.wheel(0, 4000)
    missing = opened.find("tessella-tile .tile-picture.missing")
    missing.first.wait_for()
    opened.button("Show more").click()
    opened.page.get_by_role("textbox", name="Token").fill("secret")
    opened.page.keyboard.press("Enter")
    opened.tiles().nth(60).wait_for()
    missing.first.wait_for(state="detached")
    assert opened.tiles().count() > 60  # the list was not loaded anew


def test_the_map_that_failed_without_the_token_is_loaded_once_it_is_given(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 401")
    site.token = "secret"
    opened.page.get_by_role("link", name="Map").click()
    opened.page.get_by_role("dialog").wait_for()
    opened.page.keyboard.press("Escape")
    opened.find(".map-note").get_by_text("needs a valid token").wait_for()
    opened.page.get_by_role("link", name="Classify").click()
    opened.add_files(CAT)
    opened.page.get_by_role("textbox", name="Token").fill("secret")
    opened.page.keyboard.press("Enter")
    opened.find("tessella-card[data-status=done]").wait_for()
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn]").wait_for()


# --- many images, and failures ----------------------------------------------------------------------------------------


def test_all_images_are_removed_in_one_step(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(*copies(8))
    opened.find(".summary").get_by_text("8 images · ").wait_for()
    opened.page.evaluate(COUNT_FOCUS)
    opened.button("Remove all").click()
    assert opened.find("tessella-card").count() == 0
    assert opened.page.evaluate("window.focused") == 1  # each one lays out the page, which took seconds for many images
    assert opened.find("#announcements").inner_text() == "All images are removed"
    assert focused(opened) == "Choose images"
    opened.add_files(CAT)
    opened.find(".summary").get_by_text(re.compile("^1 image · ")).wait_for()


def test_what_may_succeed_later_can_be_tried_again(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    answer = dict(model="m", results=[dict(key="0.jpg", status="worker_failed")], timing_ms={})
    opened.page.route("**/v1/classify", lambda route: route.fulfill(body=json.dumps(answer)), times=1)
    opened.add_files(CAT)
    opened.find("tessella-card[data-status=failed]").get_by_text("Try again in a moment").wait_for()
    opened.button("Try again").click()
    opened.find("tessella-card[data-status=done]").wait_for()


def test_a_model_that_is_gone_is_explained(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 404")
    site.fail("/v1/classify", 404, "unknown_model")
    opened.add_files(CAT)
    opened.find("tessella-card[data-status=failed]").get_by_text("Reload the page to see the models").wait_for()


def test_an_image_that_is_not_in_the_index_is_reported_to_everyone(site: StandIn, visit: Open) -> None:
    opened = visit(f"{site.url}/#/gallery?row=99999")
    opened.find("#toasts").get_by_text("could not find this").wait_for()
    opened.tiles().first.wait_for()
    assert opened.page.url.endswith("#/gallery")


def test_a_failure_on_the_map_is_reported(site: StandIn, visit: Open) -> None:
    opened = visit(f"{site.url}/#/map")
    opened.expect_messages("status of 500")
    opened.find("tessella-map[data-drawn]").wait_for()
    site.fail("/v1/index/rows", 500, "server_failed")
    opened.find(".overlay").focus()
    opened.page.keyboard.press("Enter")
    opened.find("#toasts").get_by_text("The server failed. Try again in a moment.").wait_for()


def test_sizes_are_numbers(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    for text, sent in (("1e3", 1000), ("12.9", 12), ("1e30", MAX_PIXELS)):
        with opened.page.expect_response("**/v1/index/select") as answered:
            opened.page.get_by_label("Largest width in pixels").fill(text)
        assert answered.value.request.post_data_json["filter"] == {"max_width": sent}
        assert answered.value.ok


def test_a_thumbnail_is_loaded_if_anyone_who_waits_for_it_still_wants_it(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    assert opened.page.evaluate(SHARED_THUMBNAIL) == ["address of 7", "address of 7", None]


# --- collections of no image and of one, and collections that change --------------------------------------------------


def test_a_changed_collection_is_noticed(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    opened.expect_messages("404")  # thumbnails of images that are gone
    assert not opened.button("Reload the page").is_visible()
    site.collection = subset(collection, range(7))
    opened.tiles().nth(3).locator(".tile-picture").click()
    opened.page.get_by_text("The collection has changed since this page was opened.").wait_for()
    opened.button("Show all images").click()
    opened.find("tessella-filters .count").get_by_text("7 images", exact=True).wait_for()
    opened.button("Reload the page").click()
    opened.find("tessella-app[data-ready]").wait_for()
    opened.find("tessella-filters .count").get_by_text("7 images", exact=True).wait_for()
    assert not opened.button("Reload the page").is_visible()


def test_the_only_image_has_no_similar_ones(site: StandIn, visit: Open, collection: Collection) -> None:
    site.collection = subset(collection, [0])
    opened = gallery(visit, site)
    opened.find(".tile-picture").click()
    opened.page.get_by_text("The index has no other image to compare this one with.").wait_for()
    opened.page.get_by_role("checkbox").first.check()
    opened.page.get_by_text("No other image passes all filters together.").wait_for()


def test_every_view_of_an_empty_index_says_so(
    site: StandIn, visit: Open, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dict(rows=0, listed=2, model="m", has_map=True, labels=[], heads=[], width_range=None, height_range=None)
    site.collection = subset(collection, [])
    monkeypatch.setattr(site, "answer_index", lambda images: facts, raising=False)
    opened = visit(site.url)
    for view in ("Gallery", "Map", "Teach"):
        opened.page.get_by_role("link", name=view).click()
        opened.find("main").get_by_text("The index has no image to show.").wait_for()


def test_one_is_not_written_as_many(site: StandIn, visit: Open, collection: Collection) -> None:
    names = [row["label"] for row in collection.rows]
    site.collection = subset(collection, [names.index(label) for label in collection.labels[:9]])
    opened = visit(f"{site.url}/#/map")
    opened.find(".legend").get_by_text("1 other class", exact=True).wait_for()
    sizes = "async (path) => { const { fileSize } = await import(path); return [0, 1, 2].map(fileSize); }"
    assert opened.page.evaluate(sizes, opened.module("text.js")) == ["0 bytes", "1 byte", "2 bytes"]


# --- exports and focus ------------------------------------------------------------------------------------------------


def test_the_menu_says_what_is_exported(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    note = opened.find(".menu-body .muted")
    opened.find(".menu summary").click()
    assert note.inner_text() == "No image is selected: all images that match are saved."
    with opened.page.expect_download():
        opened.button("Table (CSV)").click()
    assert focused(opened) == "Export"
    opened.tiles().first.locator(".tile-picture").click()  # a search, of which only a part is loaded
    opened.find(".query:visible").wait_for()
    opened.find(".menu summary").click()
    assert note.inner_text() == "No image is selected: the images shown are saved."


def test_the_focus_follows_a_search(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = gallery(visit, site)
    second = str(collection.rows[1]["key"]).rsplit("/", 1)[-1]
    opened.tiles().nth(1).locator(".tile-picture").focus()
    opened.page.keyboard.press("Enter")
    opened.find(".query h2").get_by_text(second).wait_for()
    settled(opened)
    assert focused(opened) == second
    opened.page.keyboard.press("Tab")
    assert focused(opened) == "Show all images"
    opened.page.keyboard.press("Enter")
    opened.find(".query:visible").wait_for(state="detached")
    settled(opened)
    assert focused(opened) == "All images"
    opened.page.get_by_role("link", name="Classify").click()
    opened.add_files(CAT)
    opened.button("Find similar").click()
    settled(opened)
    assert focused(opened) == "cat.jpg"
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn]").wait_for()
    opened.find(".overlay").focus()
    opened.page.keyboard.press("Enter")
    opened.find(".query:visible").wait_for()
    assert focused(opened) == opened.find(".query h2").inner_text()


def test_the_focus_stays_when_filters_are_removed(site: StandIn, visit: Open) -> None:
    opened = gallery(visit, site)
    opened.page.get_by_label("Largest width in pixels").fill("1")
    opened.find(".message").get_by_role("button", name="Clear filters").click()
    assert focused(opened) == "Images that match" or focused(opened) == "All images"
    opened.find("tessella-filters .labels input").first.check()
    opened.find("tessella-filters").get_by_role("button", name="Clear filters").click()
    assert focused(opened) == "Predicted classes"
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn]").wait_for()
    opened.button("Select view").click()
    opened.find(".region").get_by_role("button", name="Remove the region").click()
    assert focused(opened).startswith("Map of ")


def test_escape_ends_the_lasso(site: StandIn, visit: Open) -> None:
    opened = visit(f"{site.url}/#/map")
    opened.find("tessella-map[data-drawn]").wait_for()
    for place in ("button", ".overlay"):
        opened.button("Lasso").click()
        assert opened.button("Lasso").get_attribute("aria-pressed") == "true"
        if place == ".overlay":
            opened.find(place).focus()
        opened.page.keyboard.press("Escape")
        assert opened.button("Lasso").get_attribute("aria-pressed") == "false"
