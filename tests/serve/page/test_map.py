"""The view Map in a real browser: points, thumbnails, pan and zoom, regions, keys, and large collections."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.responses import Response

from .browser import Visit
from .stand_in import Collection, StandIn, is_inside

Open = Callable[..., Visit]
VIEW = "({...document.querySelector('tessella-map').view})"
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def open_map(visit: Open, site: StandIn, **options: Any) -> Visit:
    opened = visit(f"{site.url}/#/map", **options)
    opened.find("tessella-map[data-drawn]").wait_for(timeout=60_000)
    opened.page.evaluate(FRAME)
    return opened


def view(opened: Visit) -> dict[str, float]:
    found: dict[str, float] = opened.page.evaluate(VIEW)
    return found


def place_of(opened: Visit, point: list[float]) -> tuple[float, float]:
    """Return where a point of the map is on the screen."""
    box = opened.find(".overlay").bounding_box()
    at = opened.page.evaluate("([x, y]) => document.querySelector('tessella-map').toScreen(x, y)", point)
    return box["x"] + at["left"], box["y"] + at["top"]


def colored_pixels(opened: Visit) -> int:
    """Return the number of pixels of the map that are not its background."""
    pixels = np.asarray(Image.open(io.BytesIO(opened.find(".stage").screenshot())).convert("RGB")).astype(int)
    middle = pixels[120:-280, 260:]  # without tools and legend
    return int((np.abs(middle - middle[0, -1]).max(-1) > 24).sum())


@pytest.mark.parametrize("renderer", ["webgl", "2d"])
def test_all_images_are_points(site: StandIn, visit: Open, renderer: str, browser: Any) -> None:
    opened = visit(site.url)
    if renderer == "2d":
        opened.page.evaluate(
            """() => {
              const original = HTMLCanvasElement.prototype.getContext;
              HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
                return kind === "webgl" ? null : original.call(this, kind, ...rest);
              };
            }"""
        )
    opened.page.get_by_role("link", name="Map").click()
    opened.find("tessella-map[data-drawn]").wait_for()
    opened.page.evaluate(FRAME)
    assert opened.find("tessella-map").get_attribute("data-renderer") == renderer
    assert colored_pixels(opened) > 500
    # a class that is chosen in the legend stays bright, the others become pale
    before = colored_pixels(opened)
    opened.find(".legend button").first.click()
    assert opened.find(".legend button").first.get_attribute("aria-pressed") == "true"
    opened.page.evaluate(FRAME)
    assert 0 < colored_pixels(opened) < 0.8 * before


def test_the_map_pans_and_zooms(site: StandIn, visit: Open) -> None:
    opened = open_map(visit, site)
    start = view(opened)
    box = opened.find(".overlay").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.move(*middle)
    opened.page.mouse.down()
    opened.page.mouse.move(middle[0] + 100, middle[1] - 50, steps=4)
    opened.page.mouse.up()
    moved = view(opened)
    assert (start["x"] - moved["x"]) * start["scale"] == pytest.approx(100, abs=1)
    assert (start["y"] - moved["y"]) * start["scale"] == pytest.approx(50, abs=1)
    at = [[(middle[0] - box["x"]) + 30, (middle[1] - box["y"]) + 40]]
    here = "([left, top]) => document.querySelector('tessella-map').toMap(left, top)"
    before = opened.page.evaluate(here, at[0])
    opened.page.mouse.move(middle[0] + 30, middle[1] + 40)
    opened.page.mouse.wheel(0, -400)
    opened.until(f"{VIEW}.scale > {start['scale']}")
    assert view(opened)["scale"] == pytest.approx(start["scale"] * np.e, rel=0.01)
    assert opened.page.evaluate(here, at[0]) == pytest.approx(before, abs=0.01)  # what is under the pointer stays
    opened.button("Fit").click()
    assert view(opened) == pytest.approx(start)


def test_zoomed_in_the_points_are_thumbnails(site: StandIn, visit: Open) -> None:
    opened = open_map(visit, site)
    for _ in range(4):
        opened.button("Zoom in").click()
    opened.find("tessella-map:not([data-thumbnails='0'])").wait_for()
    assert any(path.startswith("/v1/index/image/") for _, path, _ in site.requests)


def test_a_lasso_opens_the_images_of_its_region(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = open_map(visit, site)
    center = np.median(collection.points, axis=0)
    corners = [
        place_of(opened, [center[0] + 0.4 * np.cos(angle), center[1] + 0.4 * np.sin(angle)])
        for angle in np.linspace(0, 6.2, 40)
    ]
    opened.button("Lasso").click()
    opened.page.mouse.move(*corners[0])
    opened.page.mouse.down()
    for corner in corners[1:]:
        opened.page.mouse.move(*corner)
    with opened.page.expect_response("**/v1/index/select") as answered:
        opened.page.mouse.up()
    polygon = answered.value.request.post_data_json["filter"]["polygon"]
    expected = [
        row for row, point in zip(collection.rows, collection.points.tolist(), strict=True) if is_inside(point, polygon)
    ]
    assert 3 < len(expected) < len(collection.rows)
    total = len(collection.rows)
    opened.find(".region .count").get_by_text(f"of {total} images").wait_for()
    assert opened.find(".region .count").inner_text() == f"{len(expected)} of {total} images"
    assert opened.button("Lasso").get_attribute("aria-pressed") == "false"
    opened.button("Show the request").click()
    assert f'"polygon":[[{polygon[0][0]}' in opened.page.get_by_role("tabpanel").inner_text()
    opened.page.keyboard.press("Escape")
    opened.button("Open in gallery").click()
    opened.find("tessella-gallery tessella-tile").first.wait_for()
    assert opened.keys_of_tiles() == [row["key"].rsplit("/", 1)[-1] for row in expected][:60]
    assert opened.find("tessella-filters .count").inner_text() == f"{len(expected)} of {total} images"
    opened.page.get_by_label("Filters").get_by_role("button", name="Remove the region").click()
    opened.page.get_by_text(f"{total} images", exact=True).wait_for()


def test_a_point_shows_its_image_and_opens_a_search(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = open_map(visit, site)
    distances = np.linalg.norm(collection.points[:, None] - collection.points[None], axis=-1)
    np.fill_diagonal(distances, 9)
    alone = int(distances.min(1).argmax())  # an outlier, so that no other point is near the pointer
    where = place_of(opened, collection.points[alone].tolist())
    name = collection.rows[alone]["key"].rsplit("/", 1)[-1]
    opened.page.mouse.move(*where)
    opened.find(".map-tip").get_by_text(name).wait_for()
    opened.page.mouse.click(*where)
    opened.find(".query h2").get_by_text(name).wait_for()


def test_the_map_works_with_the_keyboard_alone(site: StandIn, visit: Open, collection: Collection) -> None:
    opened = open_map(visit, site)
    opened.find(".overlay").focus()
    start = view(opened)
    for key, change in (
        ("ArrowRight", ("x", 1)),
        ("ArrowLeft", ("x", -1)),
        ("ArrowUp", ("y", 1)),
        ("+", ("scale", 1)),
        ("-", ("scale", -1)),
    ):
        before = view(opened)
        opened.page.keyboard.press(key)
        assert np.sign(view(opened)[change[0]] - before[change[0]]) == change[1]
    opened.page.keyboard.press("0")
    assert view(opened) == pytest.approx(start)
    opened.button("Select view").focus()
    opened.page.keyboard.press("Enter")
    opened.find(".region .count").get_by_text(f"of {len(collection.rows)} images").wait_for()
    opened.find(".overlay").focus()
    opened.page.keyboard.press("Enter")
    opened.find(".query:visible").wait_for()


def test_two_fingers_zoom(site: StandIn, visit: Open) -> None:
    opened = open_map(visit, site)
    before = view(opened)["scale"]
    opened.page.evaluate(
        """() => {
          const canvas = document.querySelector(".overlay");
          canvas.setPointerCapture = () => {};
          const send = (type, id, x, y) => canvas.dispatchEvent(new PointerEvent(type, {
            pointerId: id, clientX: x, clientY: y, button: 0, pointerType: "touch", bubbles: true }));
          send("pointerdown", 1, 500, 400);
          send("pointerdown", 2, 600, 400);
          send("pointermove", 2, 700, 400);
          send("pointerup", 1, 500, 400);
          send("pointerup", 2, 700, 400);
        }"""
    )
    assert view(opened)["scale"] == pytest.approx(2 * before, rel=0.01)


def test_an_index_without_a_map_says_how_to_make_one(site: StandIn, visit: Open) -> None:
    site.has_map = False
    opened = visit(f"{site.url}/#/map")
    opened.page.get_by_text("This index has no map yet").wait_for()
    opened.page.get_by_text("tessella index RUN --map").wait_for()


def test_a_map_that_cannot_be_loaded_can_be_asked_for_again(site: StandIn, visit: Open) -> None:
    site.fail("/v1/index/map", 500, "internal_error")
    opened = visit(f"{site.url}/#/map")
    opened.expect_messages("status of 500")
    opened.page.get_by_text("The server failed on this request").first.wait_for()
    opened.button("Try again").click()
    opened.find("tessella-map[data-drawn]").wait_for()


class Large(StandIn):
    """A server with 100,000 points and no images."""

    count = 100_000

    def answer_index(self, images: object) -> dict[str, object]:
        """GET /v1/index."""
        labels = [dict(label=f"class {i}", count=self.count // 20) for i in range(20)]
        sizes = dict(width_range=[1, 9], height_range=[1, 9])
        return dict(
            rows=self.count,
            listed=self.count,
            model="m",
            fingerprint="0",
            has_map=True,
            labels=labels,
            heads=[],
            **sizes,
        )

    def answer_index_map(self, images: object) -> Response:
        """GET /v1/index/map."""
        random = np.random.default_rng(0)
        return Response(np.clip(random.normal(size=(self.count, 2)) / 3, -1, 1).astype("<f4").tobytes())

    def answer_index_labels_bin(self, images: object) -> Response:
        """GET /v1/index/labels.bin."""
        return Response((np.arange(self.count) % 20).astype("<u2").tobytes())

    def answer_index_rows(self, images: object, start: str, count: str) -> dict[str, object]:
        """GET /v1/index/rows."""
        rows = range(int(start), min(int(start) + int(count), self.count))
        return dict(
            rows=[dict(row=i, key=f"{i}.jpg", label="class 1", probability=0.5, width=4, height=3) for i in rows]
        )


@pytest.mark.quiet
def test_a_hundred_thousand_points_pan_smoothly(visit: Open) -> None:
    """A browser without a graphics card is the slowest: still, frames come fast, and at rest every point is drawn."""
    empty = Collection([], np.zeros((0, 1), np.float32), np.zeros((0, 2), np.float32), [])
    server = Large(empty).start()
    try:
        opened = open_map(visit, server)
        opened.expect_messages("status of 404")  # it has no thumbnails
        intervals = opened.page.evaluate(
            """async () => {
              const map = document.querySelector("tessella-map");
              const times = [];
              for (let i = 0; i < 40; i++) {
                const begun = performance.now();
                map.move(i % 2 ? 5 : -5, 2);
                await new Promise(requestAnimationFrame);
                await new Promise((done) => setTimeout(done));
                times.push(performance.now() - begun);
              }
              return times.slice(10).sort((a, b) => a - b);
            }"""
        )
        assert intervals[len(intervals) // 2] < 150  # about 35 on two idle cores
        moving = colored_pixels(opened)
        opened.find(".overlay").hover(position=dict(x=640, y=300))
        opened.find(".map-tip").get_by_text(re.compile(r"\d+\.jpg")).wait_for()
        opened.find("tessella-map[data-drawn=all]").wait_for()
        opened.page.mouse.move(0, 0)  # the description of a point covers other points
        opened.find(".map-tip").wait_for(state="hidden")
        assert colored_pixels(opened) >= moving
    finally:
        server.stop()
