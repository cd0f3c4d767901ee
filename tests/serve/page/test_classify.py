"""The view Classify in a real browser: every way to give images, their results, and every kind of failure."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .browser import Visit
from .conftest import ROOT
from .stand_in import StandIn

Open = Callable[..., Visit]
CAT, COFFEE, ROCKET = (ROOT / "examples" / f"{name}.jpg" for name in ("cat", "coffee", "rocket"))
DROP = """
([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const give = (type, init) => document.body.dispatchEvent(new DragEvent(type, { bubbles: true, ...init }));
  give("dragover", { dataTransfer: transfer, cancelable: true });
  window.veilShown = !document.querySelector(".veil").hidden;
  give("drop", { dataTransfer: transfer, cancelable: true });
}
"""
DROP_FOLDER = """
(data) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const refuse = (resolve, reject) => reject(new DOMException("no permission", "NotReadableError"));
  const image = (name) => new File([bytes], name, { type: "image/jpeg" });
  const file = (name) => ({ isFile: true, file: (resolve) => resolve(image(name)) });
  const folder = (...children) => {
    const parts = [children, []];
    return { isDirectory: true, createReader: () => ({ readEntries: (resolve) => resolve(parts.shift()) }) };
  };
  const unreadable = { isFile: true, file: refuse };
  const closed = { isDirectory: true, createReader: () => ({ readEntries: refuse }) };
  const dropped = folder(unreadable, file("first.jpg"), folder(closed, file("second.jpg")));
  DataTransferItem.prototype.webkitGetAsEntry = () => dropped;
  const transfer = new DataTransfer();
  transfer.items.add(new File([], "folder"));
  document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
}
"""
PASTE = """
([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
}
"""


def file(name: str, data: bytes) -> dict[str, Any]:
    return dict(name=name, mimeType="image/jpeg", buffer=data)


def card(visit: Visit, name: str, status: str = "done") -> Any:
    """Return the card of a file once it has a status."""
    found = visit.find(f"tessella-card[data-status={status}]").filter(has_text=name)
    found.first.wait_for()
    return found


def test_nothing_is_dropped_or_pasted_behind_a_dialog(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(CAT)
    card(opened, "cat.jpg")
    data = base64.b64encode(COFFEE.read_bytes()).decode()
    opened.button("Show the request for cat.jpg").click()
    opened.page.get_by_role("dialog").wait_for()
    opened.page.evaluate(PASTE, ["pasted.jpg", data])
    opened.page.evaluate(DROP, ["dropped.jpg", data])
    assert opened.page.evaluate("window.veilShown") is False
    opened.page.keyboard.press("Escape")
    opened.page.evaluate(PASTE, ["after.jpg", data])
    card(opened, "after.jpg")
    assert opened.find("tessella-card").count() == 2
    assert opened.find(".summary").inner_text().startswith("2 images")


def test_images_are_classified_and_each_has_its_own_status(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.page.get_by_role("heading", name="Classify images").wait_for()
    opened.add_files(CAT, COFFEE, file("broken.jpg", CAT.read_bytes()[:5000]), file("empty.jpg", b""))
    first = card(opened, "cat.jpg")
    assert first.locator(".bars li").count() == 5
    assert first.locator(".bars li").first.inner_text().split("\n") == ["Egyptian cat", "68 %"]
    assert "451 × 300" in first.inner_text()
    values = [float(bar.evaluate("node => node.style.width").rstrip("%")) for bar in first.locator(".bar-fill").all()]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(68, abs=1)
    assert "damaged or incomplete" in card(opened, "broken.jpg", "failed").inner_text()
    assert "The file is empty" in card(opened, "empty.jpg", "failed").inner_text()
    card(opened, "coffee.jpg").get_by_text("espresso").wait_for()
    assert opened.find(".summary").inner_text().startswith("4 images · 2 failed · last one in 13 ms (decoding 2.1 ms")
    assert sorted(body["top"] for body in site.sent_to("/v1/classify")) == ["5"] * 4


def test_an_unsure_image_says_so_and_why(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(ROOT / "examples" / "astronaut.jpg", COFFEE)
    badge = card(opened, "astronaut.jpg").locator(".badge")
    assert badge.inner_text().startswith("Unsure")
    badge.focus()
    opened.page.get_by_text("less than 50 % or leads the second by less than 15 points").wait_for()
    assert card(opened, "coffee.jpg").locator(".badge").count() == 0
    assert "1 unsure" in opened.find(".summary").inner_text()


def test_the_rule_for_unsure(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    cases = {(0.9, 0.05): False, (0.49, 0.01): True, (0.5, 0.36): True, (0.5, 0.3): False, (1.0,): False, (): True}
    records: list[dict[str, Any]] = [
        dict(top=[dict(label="a", probability=value) for value in values]) for values in cases
    ]
    records += [dict(records[0], set_size=2), dict(records[1], set_size=1), {}]  # a prediction set decides
    module = opened.module("text.js")
    found = opened.page.evaluate(f"records => import('{module}').then((text) => records.map(text.isUnsure))", records)
    assert found == [*cases.values(), True, False, True]


def test_images_can_be_dropped_and_pasted(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    data = base64.b64encode(CAT.read_bytes()).decode()
    opened.page.evaluate(DROP, ["dropped.jpg", data])
    card(opened, "dropped.jpg")
    assert opened.page.evaluate("window.veilShown")
    assert not opened.find(".veil").is_visible()
    opened.page.evaluate(PASTE, ["pasted.jpg", data])
    card(opened, "pasted.jpg")


def test_what_cannot_be_read_in_a_dropped_folder_is_left_out(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.page.evaluate(DROP_FOLDER, base64.b64encode(CAT.read_bytes()).decode())
    opened.page.get_by_text("2 dropped items could not be read").first.wait_for()
    card(opened, "first.jpg")
    card(opened, "second.jpg")


def test_a_phone_offers_its_camera(site: StandIn, visit: Open) -> None:
    phone = visit(site.url, viewport=dict(width=375, height=700), has_touch=True, is_mobile=True)
    with phone.page.expect_file_chooser() as chooser:
        phone.button("Take a photo").tap()
    chooser.value.set_files(str(CAT))
    assert phone.find("input.photograph").get_attribute("capture") == "environment"
    card(phone, "cat.jpg")
    assert not visit(site.url).button("Take a photo").is_visible()


# notes whether an image ever waited, however soon it was sent
WATCH_WAITING = """() => new MutationObserver(() => {
    window.waited ||= document.querySelector("tessella-card[data-status=waiting]") !== null;
}).observe(document.body, { subtree: true, childList: true, attributes: true })"""


def test_many_images_are_sent_a_few_at_a_time(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    data = sorted((ROOT / "clothing" / "hat").iterdir())[0].read_bytes()
    opened.page.evaluate(WATCH_WAITING)
    opened.add_files(*(file(f"{i}.jpg", data) for i in range(30)))
    opened.find(".summary").get_by_text(re.compile("^30 images · ")).wait_for()
    assert opened.page.evaluate("window.waited")
    assert opened.find("tessella-card[data-status=done]").count() == 30
    opened.button("Remove all").click()
    assert opened.find("tessella-card").count() == 0
    opened.page.get_by_role("heading", name="Classify images").wait_for()


def test_another_model_classifies_the_images_again(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(CAT)
    card(opened, "cat.jpg")
    with opened.page.expect_response("**/v1/classify"):
        opened.page.get_by_label("Model").select_option("convmixer_384_8_ks5_p8.photographs")
    models = [body["model"] for body in site.sent_to("/v1/classify")]
    assert models == ["convmixer_256_8_ks3_p4.cifar10", "convmixer_384_8_ks5_p8.photographs"]


def test_an_image_is_removed(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(CAT, COFFEE)
    card(opened, "coffee.jpg")
    opened.button("Remove cat.jpg").click()
    assert opened.find("tessella-card h2").all_inner_texts() == ["coffee.jpg"]
    assert opened.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove coffee.jpg"


def test_a_classified_image_can_be_searched_for(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(CAT)
    card(opened, "cat.jpg").get_by_role("button", name="Find similar").click()
    opened.tiles().first.wait_for()
    assert opened.keys_of_tiles()[0] == "cat.jpg"
    assert opened.find(".query h2").inner_text() == "cat.jpg"
    assert opened.find("tessella-tile .tile-score").first.inner_text() == "1.000"
    opened.page.go_back()
    opened.find("tessella-card").wait_for()


# --- the request ------------------------------------------------------------------------------------------------------

HOSTILE = 'it\'s a "test"; $(touch pwned) `touch pwned` -F, {cat}.jpg'


def test_the_request_runs_as_curl_and_as_python(site: StandIn, visit: Open, tmp_path: Path) -> None:
    opened = visit(site.url)
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.add_files(file(HOSTILE, CAT.read_bytes()))
    shown = card(opened, "it's a")
    shown.get_by_role("button", name="Show the request").click()
    dialog = opened.page.get_by_role("dialog")
    texts = {}
    for tab in ("curl", "Python", "Answer (JSON)"):
        dialog.get_by_role("tab", name=tab).click()
        texts[tab] = dialog.get_by_role("tabpanel").inner_text()
    answer = json.loads(texts["Answer (JSON)"])
    assert answer["results"][0]["top"][0]["label"].startswith("Egyptian cat")
    assert "in the browser, of which 13 ms" in dialog.inner_text()
    dialog.get_by_role("tab", name="curl").click()
    dialog.get_by_role("button", name="Copy").click()
    assert opened.page.evaluate("navigator.clipboard.readText()") == texts["curl"]
    (tmp_path / HOSTILE).write_bytes(CAT.read_bytes())
    printed = subprocess.run(["bash", "-c", texts["curl"]], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert json.loads(printed.stdout) == answer
    printed = subprocess.run(
        [sys.executable, "-c", texts["Python"]], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert printed.stdout.strip() == repr(answer)
    assert os.listdir(tmp_path) == [HOSTILE]  # noqa: PTH208 - names only
    opened.page.keyboard.press("Escape")
    assert opened.page.get_by_role("dialog").count() == 0
    assert opened.page.evaluate("document.activeElement.textContent") == "API"


def test_the_tabs_of_the_request_follow_the_arrow_keys(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(CAT)
    card(opened, "cat.jpg").get_by_role("button", name="Show the request").click()
    opened.page.get_by_role("tab", name="curl").focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.get_by_role("tab", selected=True).inner_text() == "Python"
    opened.page.keyboard.press("ArrowLeft")
    opened.page.keyboard.press("ArrowLeft")
    assert opened.page.get_by_role("tab", selected=True).inner_text() == "Answer (JSON)"


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 429")
    site.fail("/v1/classify", 429, "overloaded", times=2, retry_after="0")
    opened.add_files(CAT)
    card(opened, "cat.jpg")
    assert len(site.sent_to("/v1/classify")) == 3


def test_a_server_that_stays_busy_is_not_asked_forever(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 429")
    site.fail("/v1/classify", 429, "overloaded", times=4, retry_after="0")
    opened.add_files(CAT)
    failed = card(opened, "cat.jpg", "failed")
    assert "The server is busy" in failed.inner_text()
    failed.get_by_role("button", name="Try again").click()
    card(opened, "cat.jpg")
    assert len(site.sent_to("/v1/classify")) == 5


def test_a_failed_request_says_why(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of [45]")
    for status, code, text in (
        (503, "draining", "shutting down or restarting"),
        (504, "deadline_exceeded", "too busy to answer in time"),
        (413, "body_too_large", "The upload is too large"),
        (500, "internal_error", "The server failed"),
        (418, "a_code_of_the_future", "Something went wrong"),
    ):
        site.fail("/v1/classify", status, code, retry_after="3600")
        opened.add_files(file(f"{code}.jpg", CAT.read_bytes()))
        assert text in card(opened, code, "failed").inner_text()
    opened.add_files(COFFEE)
    card(opened, "coffee.jpg")  # other images are not affected


def answer(status: int, body: dict[str, Any]) -> Callable[[Any], None]:
    def fulfill(route: Any) -> None:
        route.fulfill(status=status, body=json.dumps(body))

    return fulfill


def test_a_limit_is_stated_with_what_exceeds_it(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 413")
    too_large = "the image has 8,000 x 7,000 pixels (width x height), the limit is 50,000,000 pixels"
    rows = dict(model="m", timing_ms={}, results=[dict(key="a", status="too_many_pixels", message=too_large)])
    detail = "The body has 70,000,000 bytes, the limit is 67,108,864."
    problem = dict(code="body_too_large", title="the body of the request is too large", status=413, detail=detail)
    for name, status, body, text in (
        ("pixels", 200, rows, "The image has 8,000 × 7,000 pixels, the limit is 50,000,000 pixels. Save a smaller"),
        (
            "bytes",
            413,
            problem,
            "The upload has 70,000,000 bytes, the limit is 67,108,864. Save a smaller version of the image.",
        ),
    ):
        opened.page.route("**/v1/classify", answer(status, body), times=1)
        opened.add_files(file(f"{name}.jpg", CAT.read_bytes()))
        assert text in card(opened, name, "failed").inner_text()


def test_a_server_that_is_gone_is_named(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("ERR_INTERNET_DISCONNECTED")
    opened.context.set_offline(True)
    opened.add_files(CAT)
    assert "cannot be reached" in card(opened, "cat.jpg", "failed").inner_text()
    opened.context.set_offline(False)
    card(opened, "cat.jpg", "failed").get_by_role("button", name="Try again").click()
    card(opened, "cat.jpg")


def test_a_token_is_asked_for_and_kept_for_the_tab_only(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 401")
    site.token = "a long secret"
    opened.add_files(CAT, COFFEE)
    opened.page.get_by_role("textbox", name="Token").fill("wrong")
    opened.page.keyboard.press("Enter")
    opened.page.get_by_text("did not accept this token").wait_for()
    opened.page.get_by_role("textbox", name="Token").fill("a long secret")
    opened.button("Continue").click()
    card(opened, "cat.jpg").get_by_role("button", name="Show the request").click()
    shown = opened.page.get_by_role("tabpanel").inner_text()
    assert 'Authorization: Bearer $TESSELLA_TOKEN"' in shown
    assert "secret" not in shown
    assert opened.page.evaluate("Object.values(sessionStorage)") == ["a long secret"]
    assert "a long secret" not in opened.page.evaluate("JSON.stringify(localStorage) + document.cookie")
    opened.page.reload()
    opened.find("tessella-app[data-ready]").wait_for()
    assert opened.page.get_by_role("dialog").count() == 0


def test_without_a_token_the_images_fail_in_words(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 401")
    site.token = "a long secret"
    opened.add_files(CAT)
    opened.page.get_by_role("dialog").wait_for()
    opened.page.keyboard.press("Escape")
    assert "needs a valid token" in card(opened, "cat.jpg", "failed").inner_text()


def test_the_page_begins_with_a_token_if_the_server_has_one(site: StandIn, visit: Open, browser: Any) -> None:
    site.token = "secret"
    context = browser.new_context()
    page = context.new_page()
    page.goto(site.url)
    page.get_by_role("textbox", name="Token").fill("secret")
    page.keyboard.press("Enter")
    page.locator("tessella-app[data-ready]").wait_for()
    page.goto(f"{site.url}/#/gallery")
    page.locator("tessella-tile img.loaded").first.wait_for()  # thumbnails need the token, too
    context.close()
