"""The page for everybody: axe-core on every view, the keyboard alone, a phone, reduced motion, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .browser import Visit
from .conftest import ROOT
from .stand_in import StandIn

Open = Callable[..., Visit]
EXAMPLES = [ROOT / "examples" / f"{name}.jpg" for name in ("astronaut", "cat")]
PHONE = dict(viewport=dict(width=375, height=760), has_touch=True, is_mobile=True)


def violations(opened: Visit, view: str, *rules: str) -> list[str]:
    """Return what axe-core finds: the view, the rule, and the element. rules: only these; without any, all."""
    from axe_playwright_python.sync_playwright import Axe

    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = list(rules)
    found = Axe().run(opened.page, options=options).response["violations"]
    return [f"{view}: {rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


def walk(opened: Visit, site: StandIn, look: Callable[[str], None]) -> None:
    """Go through every view and dialog, and call `look` with the name of each."""
    page = opened.page
    look("classify, empty")
    opened.add_files(*EXAMPLES, dict(name="broken.jpg", mimeType="image/jpeg", buffer=b"\xff\xd8\xff"))
    opened.find("tessella-card[data-status=done]").nth(1).wait_for()
    opened.find("tessella-card[data-status=failed]").wait_for()
    look("classify")
    opened.button("Show the request for cat.jpg").click()
    look("request")
    page.keyboard.press("Escape")
    opened.button("Why? Explain the class of cat.jpg").click()
    opened.find(".why-verdict").wait_for()
    page.get_by_label("Class", exact=True).select_option("Another class…")
    look("explanation")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Gallery").click()
    opened.find("tessella-tile img.loaded").first.wait_for()
    opened.tiles().first.locator("input").check()
    opened.find(".menu summary").click()
    look("gallery with menu")
    opened.find(".menu summary").click()
    opened.button("Show more").click()
    page.get_by_role("button", name="Search by coffee.jpg").click()
    opened.find(".tile-copies").first.wait_for()
    look("search")
    page.get_by_label("Least similarity").fill("1")
    page.get_by_text("Nothing is that similar").wait_for()
    look("nothing found")
    page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn]").wait_for()
    look("map")
    opened.button("Select view").click()
    opened.find(".region tessella-tile").first.wait_for()
    look("map with region")
    opened.button("Remove the region").click()
    page.get_by_role("link", name="Teach").click()
    opened.find("tessella-teach .mark.yes").first.click()
    page.get_by_text("Now mark at least one as no").wait_for()
    opened.find("tessella-teach .mark.no").last.click()
    page.get_by_text("Fitted to 2 images").wait_for()
    page.get_by_label("Name of the class").fill("mine")
    opened.button("Save head").click()
    opened.find(".saved li").wait_for()
    look("teach")
    site.token = "secret"
    opened.find("tessella-teach .mark.no").nth(3).click()
    page.get_by_role("textbox", name="Token").wait_for()
    look("token")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_breaks_a_rule_of_accessibility(site: StandIn, visit: Open, scheme: str) -> None:
    opened = visit(site.url, color_scheme=scheme)
    opened.expect_messages("status of 401")
    found: list[str] = []
    rules = [] if scheme == "light" else ["color-contrast"]  # only colors differ
    walk(opened, site, lambda view: found.extend(violations(opened, view, *rules)))
    assert found == []


def test_empty_views_break_no_rule_of_accessibility(site: StandIn, visit: Open) -> None:
    site.has_map = False
    opened = visit(f"{site.url}/#/map")
    assert violations(opened, "no map") == []
    site.collection = None
    opened.page.reload()
    opened.page.get_by_text("No collection is open").wait_for()
    opened.expect_messages("status of 404")
    assert violations(opened, "no index") == []


def test_every_view_fits_a_phone(site: StandIn, visit: Open) -> None:
    opened = visit(site.url, **PHONE)
    opened.expect_messages("status of 401")
    sizes = """() => {
      const small = [...document.querySelectorAll("button, summary, select, input, a")]
        .filter((node) => !node.matches(".skip"))
        .filter((node) => node.checkVisibility({ opacityProperty: true, visibilityProperty: true }))
        .map((node) => [node, (node.closest("label") ?? node).getBoundingClientRect()])
        .filter(([, box]) => box.width > 0 && (box.width < 24 || box.height < 24))
        .map(([node]) => node.outerHTML.slice(0, 120));
      return [document.documentElement.scrollWidth, small];
    }"""
    found: dict[str, Any] = {}

    def look(view: str) -> None:
        found[view] = opened.page.evaluate(sizes)

    walk_on_phone(opened, site, look)
    assert {view: value for view, value in found.items() if value != [375, []]} == {}


def walk_on_phone(opened: Visit, site: StandIn, look: Callable[[str], None]) -> None:
    """Go through the views as `walk`, after opening the filters, which a phone hides."""
    opened.page.get_by_role("link", name="Gallery").click()
    opened.find(".filters summary").click()
    look("filters")
    opened.page.get_by_role("link", name="Classify").click()
    walk(opened, site, look)


def focused(opened: Visit) -> str:
    """Return the accessible text of the element that has the focus."""
    text: str = opened.page.evaluate(
        """(({ ariaLabel, innerText, placeholder, id }) =>
          ariaLabel || innerText || placeholder || id)(document.activeElement)"""
    )
    return text.strip()


def press_until(opened: Visit, name: str, key: str = "Tab") -> None:
    """Press a key until the element with this text has the focus."""
    seen = []
    for _ in range(60):
        opened.page.keyboard.press(key)
        seen.append(focused(opened))
        if seen[-1].startswith(name):
            return
    raise AssertionError(f"{name!r} is not among {seen}")


def test_everything_works_with_the_keyboard_alone(site: StandIn, visit: Open) -> None:
    opened = visit(site.url)
    keys = opened.page.keyboard
    keys.press("Tab")
    assert focused(opened) == "Skip to the content"
    keys.press("Enter")
    with opened.page.expect_file_chooser() as chooser:
        press_until(opened, "Choose images")
        keys.press("Enter")
    chooser.value.set_files([str(path) for path in EXAMPLES])
    opened.find("tessella-card[data-status=done]").nth(1).wait_for()
    press_until(opened, "Unsure")
    assert opened.find(".tip").evaluate("node => getComputedStyle(node).visibility") == "visible"
    press_until(opened, "Show the request for cat.jpg")
    keys.press("Enter")
    opened.page.get_by_role("dialog").wait_for()
    keys.press("Escape")
    assert focused(opened) == "API" or focused(opened).startswith("Show the request")
    press_until(opened, "Gallery", "Shift+Tab")
    keys.press("Enter")
    opened.tiles().first.wait_for()
    press_until(opened, "Search by")
    first = focused(opened)
    keys.press("ArrowRight")
    second = focused(opened)
    keys.press("ArrowDown")
    third = focused(opened)
    assert len({first, second, third}) == 3
    keys.press("x")
    opened.page.get_by_text("Export 1 image").wait_for()
    keys.press("ArrowUp")
    assert focused(opened) == second
    keys.press("End")
    keys.press("Home")
    assert focused(opened) == first
    keys.press("Enter")
    opened.find(".query:visible").wait_for()
    press_until(opened, "Show all images")
    keys.press("Enter")
    opened.find(".query:visible").wait_for(state="detached")
    press_until(opened, "Export 1 image")
    keys.press("Enter")
    press_until(opened, "Table (CSV)")
    keys.press("Escape")
    assert focused(opened) == "Export 1 image"
    with opened.page.expect_download():
        keys.press("Enter")
        press_until(opened, "List of files")
        keys.press("Enter")


def test_the_focus_is_always_visible(site: StandIn, visit: Open) -> None:
    opened = visit(f"{site.url}/#/gallery")
    opened.tiles().first.wait_for()
    for _ in range(30):
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", focused(opened)


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_motion_is_reduced_on_request(site: StandIn, visit: Open, motion: str, moves: bool) -> None:
    opened = visit(f"{site.url}/#/classify", reduced_motion=motion)
    opened.add_files(EXAMPLES[0])
    opened.find("tessella-card[data-status=done]").wait_for()
    durations = opened.page.evaluate(
        """[...document.querySelectorAll("*")].flatMap((node) => {
          const style = getComputedStyle(node);
          return [style.transitionDuration, style.animationName];
        })"""
    )
    assert any(value not in ("0s", "none") for value in durations) is moves


def test_the_theme_follows_the_system_or_the_person(site: StandIn, visit: Open) -> None:
    opened = visit(site.url, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = opened.page.evaluate(background)
    opened.button("Theme of the system; change").click()
    light = opened.page.evaluate(background)
    assert light != dark
    opened.page.reload()
    opened.find("tessella-app[data-ready]").wait_for()
    assert opened.page.evaluate(background) == light
    opened.button("Light theme; change").click()
    assert opened.page.evaluate(background) == dark
    opened.page.emulate_media(color_scheme="light")
    assert opened.page.evaluate(background) == dark
    opened.button("Dark theme; change").click()
    assert opened.page.evaluate(background) == light
