"""The dialog "Why?": the map over the image with its scores, the choice of class and method, errors, the keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from .browser import Visit
from .conftest import ROOT
from .stand_in import StandIn
from .test_access import focused, press_until, violations
from .test_classify import card

Open = Callable[..., Visit]
CAT = ROOT / "examples" / "cat.jpg"
WHY = "Why? Explain the class of cat.jpg"


def ask_why(opened: Visit, verdict: bool = True) -> Any:
    """Classify a photograph, ask why, and return the dialog; with its answer, unless that is an error."""
    opened.add_files(CAT)
    card(opened, "cat.jpg")
    opened.button(WHY).click()
    dialog = opened.page.get_by_role("dialog", name="Explain cat.jpg")
    dialog.wait_for()
    dialog.locator(".why-verdict" if verdict else ".error").wait_for()
    return dialog


def asked(site: StandIn) -> dict[str, Any]:
    """The fields of the last request."""
    fields: dict[str, Any] = site.sent_to("/v1/explain")[-1]
    return fields


def test_the_map_has_its_number_beside_it(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    dialog = ask_why(opened)
    text = dialog.inner_text()
    assert "Why Egyptian cat (68 %)" in text
    assert "Faithful for this image" in text
    assert "better than 97.5 % of random maps" in text
    assert "Method: exact contributions (it scored best). The map sums to 5.25, the score of the class." in text
    rows = [row.split("\t") for row in dialog.get_by_role("row").all_inner_texts()]
    assert [cells[1:] for cells in rows[1:]] == [
        ["−1.50", "2.50 to 4.00", "better"],
        ["5.00", "2.00 to 4.50", "better"],
        ["0.05", "−0.25 to 0.25", "not better"],
    ]
    assert asked(site)["model"] == "convmixer_256_8_ks3_p4.cifar10"


def test_the_map_lies_over_what_the_model_sees(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    dialog = ask_why(opened)
    overlay = dialog.get_by_role("img", name=re.compile("^Map for Egyptian cat"))
    overlay.evaluate("node => node.decode()")
    assert "the strongest support is at the top right of what the model sees" in overlay.get_attribute("alt")
    boxes = [locator.bounding_box() for locator in (overlay, dialog.get_by_role("img", name="cat.jpg", exact=True))]
    over, image = boxes
    scale = image["width"] / 451
    assert over["width"] == pytest.approx(300 * scale, abs=1)
    assert over["height"] == pytest.approx(image["height"], abs=1)
    assert over["x"] - image["x"] == pytest.approx(75.5 * scale, abs=1)
    assert image["height"] / image["width"] == pytest.approx(300 / 451, abs=0.01)
    assert dialog.get_by_text("The dark parts are not seen by the model.").is_visible()
    dialog.get_by_label("Show the map").uncheck()
    assert not overlay.is_visible()
    dialog.get_by_label("Show the map").check()
    assert overlay.is_visible()


def test_a_map_that_is_not_better_than_random_says_so(site: StandIn, visit: Open) -> None:
    site.explanation.update(faithful=False, verdict="not faithful here", verdict_reason="not better than random maps")
    dialog = ask_why(visit(site.url))
    assert "Not faithful for this image" in dialog.inner_text()
    assert dialog.locator(".badge.good").count() == 0


def test_another_class_is_explained(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    dialog = ask_why(opened)
    dialog.get_by_label("Class", exact=True).select_option(index=1)
    dialog.get_by_role("heading", name=re.compile("^Why tabby")).wait_for()
    assert asked(site)["class"] == "index:281"
    dialog.get_by_label("Class", exact=True).select_option("Another class…")
    name = dialog.get_by_label("Name or index of the class")
    assert focused(opened) == "why-name"
    count = len(site.sent_to("/v1/explain"))
    opened.page.keyboard.press("Enter")  # an empty name is not sent
    name.fill("  ")
    opened.page.keyboard.press("Enter")  # and neither are spaces
    dialog.get_by_label("Method").select_option(index=1)  # nor another method without a name
    dialog.get_by_label("Method").select_option(index=0)
    name.fill("espresso")
    opened.page.keyboard.press("Enter")
    dialog.get_by_role("heading", name="Why espresso (0.1 %)").wait_for()
    assert asked(site)["class"] == "espresso"
    assert len(site.sent_to("/v1/explain")) == count + 1


def test_two_classes_are_compared(site: StandIn, visit: Open) -> None:
    dialog = ask_why(visit(site.url))
    dialog.get_by_label("Compared with").select_option(index=2)
    dialog.get_by_role("heading", name="Why Egyptian cat (68 %), and not tabby (18 %)").wait_for()
    assert asked(site)["versus"] == "index:281"
    dialog.get_by_text("the difference between the scores of the two classes.").wait_for()
    legend = dialog.locator(".why-legend")
    assert "supports tabby" in legend.inner_text()
    assert "dashed lines the strongest support for the other class." in legend.inner_text()
    assert "contradicts" not in legend.inner_text()
    dialog.get_by_label("Compared with").select_option("Nothing")
    dialog.get_by_role("heading", name="Why Egyptian cat (68 %)", exact=True).wait_for()
    assert "versus" not in asked(site)
    assert "contradicts" in legend.inner_text()
    assert "dashed lines what contradicts the class most." in legend.inner_text()
    assert "tabby" not in legend.inner_text()


def test_a_method_is_chosen_from_those_that_apply(site: StandIn, visit: Open) -> None:
    dialog = ask_why(visit(site.url))
    method = dialog.get_by_label("Method")
    assert method.locator("option").all_inner_texts() == ["Best for this model", "exact contributions", "Grad-CAM"]
    method.select_option("grad-cam")
    dialog.get_by_text("Method: Grad-CAM (requested).").wait_for()
    assert asked(site)["method"] == "grad-cam"
    assert method.locator("option").count() == 3


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (501, "missing_dependency", "it lacks an optional package"),
        (504, "deadline_exceeded", "took too long"),
        (500, "internal_error", "The server failed on this request"),
    ],
)
def test_errors_are_in_plain_words_and_can_be_repeated(
    site: StandIn, visit: Open, status: int, code: str, words: str
) -> None:
    opened = visit(site.url)
    opened.expect_messages(f"status of {status}")
    site.fail("/v1/explain", status, code)
    dialog = ask_why(opened, verdict=False)
    assert words in dialog.locator(".error").inner_text()
    assert dialog.get_by_label("Show the map").is_disabled()
    dialog.get_by_role("button", name="Try again").click()
    dialog.get_by_text("Faithful for this image").wait_for()
    assert dialog.locator(".error").count() == 0


def test_explanations_that_are_switched_off_are_not_waited_for(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 503")
    site.fail("/v1/explain", 503, "explain_off", retry_after="500")
    dialog = ask_why(opened, verdict=False)
    assert "switched off for a while" in dialog.locator(".error").inner_text()


def test_a_busy_server_is_asked_again(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 429")
    site.fail("/v1/explain", 429, "overloaded", retry_after="1")
    assert "Faithful" in ask_why(opened).inner_text()
    assert len(site.sent_to("/v1/explain")) == 2


def test_an_image_without_an_explanation_has_its_reason(site: StandIn, visit: Open) -> None:
    site.explanation.update(status="non_finite")
    dialog = ask_why(visit(site.url), verdict=False)
    assert "The model gave no usable result" in dialog.locator(".error").inner_text()


def test_the_request_can_be_copied(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    dialog = ask_why(opened)
    dialog.get_by_role("button", name="Show the request").click()
    request = opened.page.get_by_role("dialog", name="Request")
    assert "/v1/explain" in request.get_by_role("tabpanel").inner_text()
    assert "starting 2,900 ms" in request.inner_text()
    opened.page.get_by_role("tab", name="Answer (JSON)").click()
    assert len(request.get_by_role("tabpanel").inner_text()) < 4000  # without the picture
    opened.page.keyboard.press("Escape")
    assert dialog.is_visible()


def test_closing_the_dialog_ends_the_request(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.expect_messages("status of 429")
    opened.add_files(CAT)
    card(opened, "cat.jpg")
    site.fail("/v1/explain", 429, "overloaded", times=5, retry_after="2")
    opened.button(WHY).click()
    opened.page.get_by_text("The server is busy").wait_for()
    opened.page.keyboard.press("Escape")
    assert opened.page.get_by_role("dialog").count() == 0
    opened.page.wait_for_timeout(3000)
    assert len(site.sent_to("/v1/explain")) == 1


def test_a_server_that_cannot_explain_has_no_button(site: StandIn, visit: Open) -> None:
    site.can_explain = False
    opened = visit(site.url)
    opened.add_files(CAT)
    card(opened, "cat.jpg")
    assert opened.button(WHY).count() == 0
    opened.button("Show the request for cat.jpg").wait_for()


def test_the_keyboard_is_enough(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    opened.add_files(CAT)
    card(opened, "cat.jpg")
    keys = opened.page.keyboard
    press_until(opened, WHY)
    keys.press("Enter")
    opened.find(".why-verdict").wait_for()
    press_until(opened, "why-shown")
    keys.press("Space")
    assert not opened.find(".why-overlay").is_visible()
    opened.page.get_by_label("Class", exact=True).focus()
    keys.press("ArrowDown")
    opened.page.get_by_role("heading", name=re.compile("^Why tabby")).wait_for()
    keys.press("Escape")
    assert focused(opened) == WHY


def test_screen_readers_are_told_the_result(site: StandIn, visit: Open) -> None:
    dialog = ask_why(visit(site.url))
    status = dialog.get_by_role("status").inner_text()
    assert "Why Egyptian cat (68 %)" in status
    assert "Faithful for this image" in status
    assert dialog.get_by_role("table", name="How faithful this map is, beside random maps").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(site: StandIn, visit: Open, scheme: str) -> None:
    opened = visit(site.url, color_scheme=scheme)
    ask_why(opened)
    assert violations(opened, "explanation") == []
    site.explanation.update(faithful=False)
    opened.page.get_by_label("Compared with").select_option(index=2)
    opened.page.get_by_text("Not faithful for this image").wait_for()
    opened.expect_messages("status of 504")
    assert violations(opened, "not faithful") == []
    site.fail("/v1/explain", 504, "deadline_exceeded")
    opened.page.get_by_label("Compared with").select_option(index=1)
    opened.find("tessella-why .error").wait_for()
    assert violations(opened, "error") == []
