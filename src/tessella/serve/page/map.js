/** <tessella-map>: all images as points; zoomed in, as thumbnails. A lasso selects the images of a region. */

import { channels, resolved } from "./colors.js";
import { announce, button, emptyState, make, noImages, toast } from "./dom.js";
import { MapGestures } from "./gestures.js";
import { PointGrid, PointRenderer } from "./points.js";
import { makeRequestButton } from "./requests.js";
import { filterJson, state, toggled } from "./state.js";
import { baseName, images, number, percent, shortLabel } from "./text.js";
import "./tiles.js";

const COLORED = 8; // classes with a color of their own: as many as can be told apart
const THUMBNAILS_FROM = 600; // points in view: if there are more, none is drawn as a thumbnail
const SHOWN_OF_REGION = 60; // images of a region beside the map
const SLOW = 30; // milliseconds between frames from which fewer points are drawn during a movement
const FEWEST = 40_000; // points that are drawn during a movement
const AT_FIRST = 200_000; // points of the first frames, before the speed is known
const OUTSIDE = 1e6; // the place of a row that is not in the index: never in view
const STILL = 140; // milliseconds after which a movement has ended, and all points are drawn
const KEYS = "Arrow keys move, plus and minus zoom, 0 shows all, Enter searches by the image in the middle.";
const REST = 60; // milliseconds that the pointer rests on a point before it is described
const PALE = 22; // opacity of a point that the label filter excludes, of 255
const COVER = 0.94; // of the canvas, when all points are in view

class ImageMap extends HTMLElement {
  view = { x: 0, y: 0, scale: 1 }; // center in map coordinates, CSS pixels per unit
  pictures = new Map(); // row: image, or null while it is loading
  share = 1; // of the points that are drawn during a movement, as the speed of the machine allows

  async connectedCallback() {
    if (this.isBuilt) {
      this.#resume();
      return;
    }
    this.isBuilt = true;
    if (!state.index.rows) {
      this.replaceChildren(noImages("h1"));
      return;
    }
    if (!state.index.has_map) {
      this.replaceChildren(
        emptyState({
          symbol: "map",
          heading: "h1",
          title: "This index has no map yet",
          text: "A map places similar images side by side. It is computed once; afterwards, reload this page.",
          command: "tessella index RUN --map",
        }),
      );
      return;
    }
    this.#build();
    await this.#load();
  }

  disconnectedCallback() {
    for (const stop of this.stops ?? []) stop();
    this.stops = [];
  }

  async #load() {
    this.isBuilt = true;
    this.note.textContent = "Loading the map…";
    try {
      const [positions, labels] = await Promise.all([state.backend.map(), state.backend.labels()]);
      for (let k = 0; k < positions.length; k++) if (Number.isNaN(positions[k])) positions[k] = OUTSIDE;
      this.positions = positions;
      this.labels = labels;
      this.grid = new PointGrid(positions);
      this.share = Math.min(AT_FIRST / (positions.length / 2), 1);
      this.renderer.setPoints(positions);
      this.note.textContent = "";
      this.#buildLegend();
      this.#resume();
      this.fit();
    } catch (error) {
      this.isBuilt = false; // so that it is loaded again when the view is opened again
      const again = button({ text: "Try again", kind: "primary", onclick: () => (again.remove(), this.#load()) });
      this.note.replaceChildren(error.message, " ", again);
    }
  }

  #resume() {
    if (!this.grid) return;
    this.disconnectedCallback();
    const recolor = () => this.#color();
    const sizes = new ResizeObserver(() => this.draw());
    sizes.observe(this.stage);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", recolor);
    document.addEventListener("themechange", recolor);
    this.stops = [
      state.watch("filter", () => (this.#color(), this.#showRegion())),
      () => sizes.disconnect(),
      () => dark.removeEventListener("change", recolor),
      () => document.removeEventListener("themechange", recolor),
    ];
    recolor();
    this.#showRegion();
  }

  #build() {
    this.points = make("canvas", { class: "points", "aria-hidden": "true" });
    this.overlay = make("canvas", {
      class: "overlay",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "map",
      "aria-label": `Map of ${images(state.index.rows)}. ${KEYS}`,
    });
    this.tip = make("div", { class: "map-tip", hidden: true });
    this.note = make("div", { class: "map-note", role: "status" });
    this.lassoButton = button({
      text: "Lasso",
      symbol: "lasso",
      "aria-pressed": "false",
      title: "Draw around images",
      onclick: () => this.setLasso(!this.isLasso),
    });
    const tools = make(
      "div",
      { class: "map-tools", role: "toolbar", "aria-label": "Map" },
      this.lassoButton,
      button({
        text: "Select view",
        symbol: "fit",
        title: "Select the images in view",
        onclick: () => this.#selectView(),
      }),
      button({ label: "Zoom in", symbol: "plus", onclick: () => this.zoom(1.6) }),
      button({ label: "Zoom out", symbol: "minus", onclick: () => this.zoom(1 / 1.6) }),
      button({ text: "Fit", title: "Show all images", onclick: () => this.fit() }),
    );
    this.legend = make("ul", { class: "legend", "aria-label": "Most frequent classes" });
    const heading = make("h1", { class: "hidden-text" }, "Map");
    this.stage = make(
      "div",
      { class: "stage" },
      heading,
      this.points,
      this.overlay,
      tools,
      this.legend,
      this.note,
      this.tip,
    );
    this.count = make("p", { class: "count", role: "status" });
    this.list = document.createElement("tessella-grid");
    this.list.setAttribute("aria-label", "Images of the region");
    this.list.addEventListener("tile-search", ({ detail }) => this.#search(detail));
    const open = button({
      text: "Open in gallery",
      symbol: "grid",
      kind: "primary",
      onclick: () => state.setQuery(null),
    });
    this.requestButton = makeRequestButton();
    const clear = button({
      text: "Remove the region",
      kind: "quiet",
      onclick: () => (state.setFilter({ polygon: null }), this.overlay.focus()),
    });
    this.region = make(
      "aside",
      { class: "region", "aria-label": "Region", hidden: true },
      make("div", { class: "region-head" }, this.count, open, clear, this.requestButton),
      this.list,
    );
    this.replaceChildren(this.stage, this.region);
    this.renderer = new PointRenderer(this.points);
    this.dataset.renderer = this.renderer.kind;
    this.points.addEventListener("redraw", () => this.draw());
    this.gestures = new MapGestures(this, this.overlay);
    this.stage.addEventListener("keydown", ({ key }) => key === "Escape" && this.isLasso && this.setLasso(false));
  }

  // --- the view -----------------------------------------------------------------------------------------------------

  /** Show all points. */
  fit() {
    const { width, height } = this.size();
    this.view = { x: 0, y: 0, scale: (COVER * Math.min(width, height)) / 2 };
    this.draw();
  }

  move(right, up) {
    this.view.x = clamp(this.view.x + right / this.view.scale, -1.2, 1.2);
    this.view.y = clamp(this.view.y + up / this.view.scale, -1.2, 1.2);
    this.#drawMoving();
  }

  /** Zoom by a factor around a place on the screen, by default the middle. */
  zoom(factor, left = this.size().width / 2, top = this.size().height / 2) {
    const least = (0.4 * Math.min(this.size().width, this.size().height)) / 2;
    const before = this.toMap(left, top);
    this.view.scale = clamp(this.view.scale * factor, least, 1e6);
    const after = this.toMap(left, top);
    this.view.x += before.x - after.x;
    this.view.y += before.y - after.y;
    this.#drawMoving();
  }

  /** Draw during a movement: if frames take long, draw only an even sample of the points until it has ended. */
  #drawMoving() {
    clearTimeout(this.rest);
    this.rest = setTimeout(() => {
      this.lastFrame = null;
      this.isMoving = false;
      this.draw();
    }, STILL);
    this.isMoving = true;
    this.draw();
  }

  #adaptShare() {
    const now = performance.now();
    const least = Math.min(FEWEST / (this.positions.length / 2 + 1), 1);
    if (this.isMoving && this.lastFrame) {
      this.share = clamp(this.share * (now - this.lastFrame > SLOW ? 0.6 : 1.15), least, 1);
    }
    this.lastFrame = this.isMoving ? now : null;
    return this.isMoving ? this.share : 1;
  }

  size() {
    return { width: this.stage.clientWidth || 1, height: this.stage.clientHeight || 1 };
  }

  toMap(left, top) {
    const { width, height } = this.size();
    return {
      x: this.view.x + (left - width / 2) / this.view.scale,
      y: this.view.y - (top - height / 2) / this.view.scale,
    };
  }

  toScreen(x, y) {
    const { width, height } = this.size();
    return {
      left: width / 2 + (x - this.view.x) * this.view.scale,
      top: height / 2 - (y - this.view.y) * this.view.scale,
    };
  }

  /** Draw once before the next frame, however often it is called. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.isConnected && this.grid) this.#draw();
    });
  }

  #draw() {
    const { width, height } = this.size();
    const ratio = Math.min(devicePixelRatio, 2);
    for (const canvas of [this.points, this.overlay]) {
      const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
      if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    }
    const { x, y, scale } = this.view;
    const spread = Math.sqrt((scale * scale * 4) / (this.positions.length / 2 + 1)); // pixels between neighbors
    const share = this.#adaptShare();
    this.renderer.draw({ x, y, scale: scale * ratio, size: ratio * clamp(0.45 * spread, 2.5, 9), share });
    const context = this.overlay.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    this.#drawPictures(context);
    this.#drawRegion(context);
    this.dataset.drawn = share === 1 ? "all" : "sample";
  }

  #drawPictures(context) {
    const { width, height } = this.size();
    const [a, b] = [this.toMap(0, height), this.toMap(width, 0)];
    const found = this.grid.within({ left: a.x, right: b.x, bottom: a.y, top: b.y }, THUMBNAILS_FROM);
    this.dataset.thumbnails = "0";
    if (!found || this.view.scale < 0.6 * Math.min(width, height)) return;
    const side = clamp(0.9 * Math.sqrt((width * height) / (found.length + 1)), 44, 110);
    const placed = new Map(); // centers of thumbnails by cell of the screen, so that none covers another
    let drawn = 0;
    for (const i of found) {
      const { left, top } = this.toScreen(this.positions[2 * i], this.positions[2 * i + 1]);
      if (!place(placed, left, top, side)) continue;
      const picture = this.#picture(i);
      if (!picture) continue;
      const shrink = (side - 6) / Math.max(picture.width, picture.height);
      const [wide, high] = [picture.width * shrink, picture.height * shrink];
      context.globalAlpha = this.#isBright(i) ? 1 : 0.25;
      context.fillStyle = this.colors?.paper ?? "#fff";
      context.fillRect(left - wide / 2 - 2, top - high / 2 - 2, wide + 4, high + 4);
      context.drawImage(picture, left - wide / 2, top - high / 2, wide, high);
      drawn++;
    }
    context.globalAlpha = 1;
    this.dataset.thumbnails = String(drawn);
  }

  /** Return the thumbnail of a point, or null until it is loaded. */
  #picture(i) {
    if (!this.pictures.has(i)) {
      if (this.pictures.size > 2000) this.pictures.clear();
      this.pictures.set(i, null);
      this.#loadPicture(i).catch(() => {});
    }
    return this.pictures.get(i);
  }

  async #loadPicture(i) {
    const address = await state.thumbnails.address(i, 96, () => this.isConnected);
    if (address === null) return void this.pictures.delete(i);
    const picture = new Image();
    picture.src = address;
    await picture.decode();
    this.pictures.set(i, picture);
    this.draw();
  }

  #drawRegion(context) {
    const corners =
      this.gestures.lasso?.map(({ left, top }) => [left, top]) ??
      (state.filter.polygon ?? []).map(([x, y]) => Object.values(this.toScreen(x, y)));
    if (corners.length < 2) return;
    context.beginPath();
    for (const [left, top] of corners) context.lineTo(left, top);
    context.closePath();
    context.fillStyle = this.colors.wash;
    context.strokeStyle = this.colors.accent;
    context.lineWidth = 2;
    context.fill();
    context.stroke();
  }

  // --- classes ------------------------------------------------------------------------------------------------------

  #buildLegend() {
    const names = state.index.labels.map(({ label }) => label);
    const byCount = [...state.index.labels].sort((a, b) => b.count - a.count);
    this.frequent = byCount.slice(0, COLORED).map(({ label }) => label);
    this.places = new Map(names.map((name, place) => [name, place]));
    this.legend.replaceChildren(
      ...this.frequent.map((label, place) =>
        make(
          "li",
          {},
          make(
            "button",
            {
              type: "button",
              class: `legend-item color-${place + 1}`,
              "aria-pressed": "false",
              title: label,
              "data-place": place,
              onclick: () => state.setFilter({ label: toggled(state.filter.label, label) }),
            },
            make("span", { class: "dot" }),
            make("bdi", {}, shortLabel(label)),
          ),
        ),
      ),
    );
    const others = names.length - COLORED;
    const text = `${number(others)} other ${others === 1 ? "class" : "classes"}`;
    if (others > 0) this.legend.append(make("li", { class: "hint" }, text));
  }

  #isBright(i) {
    return !this.chosen?.size || this.chosen.has(this.labels[i]);
  }

  #color() {
    const style = getComputedStyle(this);
    const read = (name) => style.getPropertyValue(name).trim();
    this.colors = {
      accent: resolved(read("--accent")),
      paper: resolved(read("--surface")),
      wash: resolved(read("--wash")),
    };
    const count = this.labels.length;
    const opacity = count > 50_000 ? 150 : 210;
    const packed = (color, alpha) =>
      new Uint32Array(Uint8Array.of(...channels(resolved(color)).slice(0, 3), alpha).buffer)[0];
    const shades = (color) => ({ bright: packed(color, opacity), pale: packed(color, PALE) });
    const other = shades(read("--color-other"));
    const byPlace = new Map(
      this.frequent.map((label, k) => [this.places.get(label), shades(read(`--color-${k + 1}`))]),
    );
    this.chosen = new Set(state.filter.label.map((label) => this.places.get(label)));
    const colors = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      const shade = byPlace.get(this.labels[i]) ?? other;
      colors[i] = this.#isBright(i) ? shade.bright : shade.pale;
    }
    this.renderer.setColors(colors);
    for (const item of this.legend.querySelectorAll("button")) {
      item.setAttribute("aria-pressed", String(state.filter.label.includes(this.frequent[Number(item.dataset.place)])));
    }
    this.draw();
  }

  // --- regions ------------------------------------------------------------------------------------------------------

  setLasso(on) {
    this.isLasso = on;
    this.lassoButton.setAttribute("aria-pressed", String(on));
    this.stage.classList.toggle("drawing", on);
    if (on) announce("Draw around images, or use Select view with the keyboard");
  }

  /** Filter by a polygon in map coordinates. */
  choose(polygon) {
    this.setLasso(false);
    if (polygon.length >= 3) state.setFilter({ polygon });
    else this.draw();
  }

  #selectView() {
    const { width, height } = this.size();
    const corners = [this.toMap(0, 0), this.toMap(width, 0), this.toMap(width, height), this.toMap(0, height)];
    this.choose(corners.map(({ x, y }) => [x, y]));
  }

  async #showRegion() {
    this.controller?.abort();
    this.region.hidden = !state.filter.polygon;
    this.draw();
    if (!state.filter.polygon) return;
    const { signal } = (this.controller = new AbortController());
    try {
      const { answer, request } = await state.backend.select(filterJson(state.filter), 0, SHOWN_OF_REGION, { signal });
      this.requestButton.setRequest(request);
      this.count.replaceChildren(make("strong", {}, number(answer.matching)), ` of ${images(state.index.rows)}`);
      this.list.show(answer.rows);
    } catch (error) {
      if (!signal.aborted) this.count.textContent = error.message;
    }
  }

  // --- single points ------------------------------------------------------------------------------------------------

  /** Return the point near a place on the screen, or -1. */
  pointAt(left, top, radius = 12) {
    const { x, y } = this.toMap(left, top);
    return this.grid ? this.grid.nearest(x, y, radius / this.view.scale) : -1;
  }

  /** Show what is under the pointer; -1 for nothing. */
  hover(i, left = 0, top = 0) {
    this.tip.style.left = `${clamp(left + 14, 0, Math.max(this.size().width - 220, 0))}px`;
    this.tip.style.top = `${clamp(top + 14, 0, Math.max(this.size().height - 110, 0))}px`;
    if (i === this.hovered) return;
    this.hovered = i;
    this.tip.hidden = true;
    clearTimeout(this.pause);
    if (i >= 0) this.pause = setTimeout(() => this.#describe(i).catch(() => {}), REST);
  }

  async #describe(i) {
    const item = await state.backend.row(i);
    if (this.hovered !== i) return;
    const picture = make("img", { alt: "" });
    const text = [make("bdi", { class: "strong" }, shortLabel(item.label)), ` ${percent(item.probability)}${item.unknown ? " · unknown" : ""}`];
    this.tip.replaceChildren(picture, make("div", {}, text, make("bdi", { class: "tile-name", dir: "ltr" }, baseName(item.key))));
    this.tip.hidden = false;
    const address = await state.thumbnails.address(i, 96, () => this.hovered === i);
    if (address) picture.src = address;
  }

  async open(i) {
    try {
      if (i >= 0) this.#search(await state.backend.row(i));
    } catch (error) {
      toast(error.message);
    }
  }

  #search(item) {
    state.setQuery({ row: item.row, item });
  }
}

/** Reserve a square for a thumbnail; returns whether it was free. placed: centers by cell, such as "2,-1". */
function place(placed, left, top, side) {
  const [column, row] = [Math.floor(left / side), Math.floor(top / side)];
  for (let x = column - 1; x <= column + 1; x++) {
    for (let y = row - 1; y <= row + 1; y++) {
      const other = placed.get(`${x},${y}`);
      if (other && Math.abs(other[0] - left) < side && Math.abs(other[1] - top) < side) return false;
    }
  }
  placed.set(`${column},${row}`, [left, top]);
  return true;
}

function clamp(value, least, most) {
  return Math.min(Math.max(value, least), most);
}

customElements.define("tessella-map", ImageMap);
