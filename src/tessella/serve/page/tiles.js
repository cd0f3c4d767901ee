/** A grid of indexed images: justified rows, lazy thumbnails, and the keys that work on the focused image. */

import { icon, make } from "./dom.js";
import { state } from "./state.js";
import { baseName, number, percent, printable, score, shortLabel } from "./text.js";
import { whenNear } from "./thumbnails.js";

const UNKNOWN_IMAGE = "Unlike the images that the model knows; its class is probably wrong";
const HEIGHT = 150; // of an image in the grid, before rows are stretched

/**
 * <tessella-tile>: one image. Events that bubble: "tile-search", "tile-yes", "tile-no", with the item as detail.
 *
 * teaching: show the buttons yes and no instead of the selection.
 */
class Tile extends HTMLElement {
  show(item, { teaching = false, mark = null } = {}) {
    this.item = item;
    this.teaching = teaching;
    const ratio = Math.min(Math.max(item.width / item.height || 1, 0.7), 2);
    this.style.flexGrow = ratio;
    this.style.flexBasis = `${ratio * HEIGHT}px`;
    this.setAttribute("role", "listitem");
    const name = baseName(item.key);
    const picture = make("img", { alt: "", decoding: "async" });
    this.picture = make(
      "button",
      {
        type: "button",
        class: "tile-picture",
        "aria-label": `Search by ${name}, ${item.unknown ? "unknown, perhaps " : ""}${shortLabel(item.label)}${scoreText(item)}`,
        title: [printable(item.key), `${item.width} × ${item.height}`, ...assessmentLines(item), "Search by this image"].join("\n"),
        onclick: () => this.#send("tile-search"),
      },
      picture,
    );
    this.picture.style.aspectRatio = ratio;
    const likelihood = item.probability === null || item.unknown ? "" : percent(item.probability);
    this.replaceChildren(
      this.picture,
      ...(teaching ? [this.#marks(name)] : [this.#checkbox(name), this.#copies()]).filter(Boolean),
      make(
        "div",
        { class: "tile-line" },
        item.unknown && make("span", { class: "badge unknown", title: UNKNOWN_IMAGE }, "Unknown"),
        make("bdi", { class: "tile-label", title: item.label ?? "" }, shortLabel(item.label)),
        item.score === undefined
          ? make("span", { class: "tile-score", title: "Probability of the class" }, likelihood)
          : make("span", { class: "tile-score strong", title: teaching ? "Score" : "Similarity" }, score(item.score)),
      ),
      make("bdi", { class: "tile-name", dir: "ltr", title: item.key }, name),
    );
    this.setMark(mark);
    whenNear(picture, () => this.#load(picture));
  }

  /** Load the thumbnail again if that has failed. */
  retry() {
    if (!this.picture.classList.contains("missing")) return;
    const picture = make("img", { alt: "", decoding: "async" });
    this.picture.replaceChildren(picture);
    this.picture.classList.remove("missing");
    whenNear(picture, () => this.#load(picture));
  }

  setMark(mark) {
    this.toggleAttribute("yes", mark === "yes");
    this.toggleAttribute("no", mark === "no");
    for (const side of ["yes", "no"]) this[side]?.setAttribute("aria-pressed", String(mark === side));
  }

  setSelected(on) {
    this.toggleAttribute("selected", on);
    if (this.checkbox) this.checkbox.checked = on;
  }

  /** Keys of the grid: X selects, Y and N mark. Returns whether the key was used. */
  pressed(key) {
    if (key === "x" && this.checkbox) this.checkbox.click();
    else if (key === "y" && this.teaching) this.yes.click();
    else if (key === "n" && this.teaching) this.no.click();
    else return false;
    return true;
  }

  #send(name) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail: this.item }));
  }

  async #load(picture) {
    try {
      const address = await state.thumbnails.address(this.item.row, 256, () => picture.isConnected);
      if (address === null) return whenNear(picture, () => this.#load(picture));
      picture.src = address;
      picture.addEventListener("load", () => picture.classList.add("loaded"), { once: true });
    } catch {
      this.picture.replaceChildren(icon("image"));
      this.picture.classList.add("missing");
    }
    return undefined;
  }

  #checkbox(name) {
    this.checkbox = make("input", {
      type: "checkbox",
      "aria-label": `Select ${name}`,
      checked: state.selection.has(this.item.row),
      onchange: () => state.select(this.item, this.checkbox.checked),
    });
    this.toggleAttribute("selected", this.checkbox.checked);
    return make("label", { class: "tile-check", title: "Select (X)" }, this.checkbox);
  }

  #copies() {
    const count = this.item.duplicates?.length ?? 0;
    if (!count) return null;
    return make(
      "button",
      {
        type: "button",
        class: "tile-copies",
        "aria-label": `Show ${number(count)} near-duplicate${count === 1 ? "" : "s"} of ${baseName(this.item.key)}`,
        title: "Near-duplicates",
        onclick: () => this.#send("tile-copies"),
      },
      `+${number(count)}`,
    );
  }

  #marks(name) {
    const mark = (side, symbol, key) =>
      make(
        "button",
        {
          type: "button",
          class: `mark ${side}`,
          "aria-label": `${side === "yes" ? "Yes" : "No"}: ${name}`,
          title: `${side === "yes" ? "Yes" : "No"} (${key})`,
          onclick: () => this.#send(`tile-${side}`),
        },
        icon(symbol),
      );
    this.yes = mark("yes", "check", "Y");
    this.no = mark("no", "close", "N");
    return make("div", { class: "tile-marks" }, this.yes, this.no);
  }
}

/** What the calibration of the run says about an image. */
function assessmentLines({ unknown, set_size: size }) {
  if (unknown) return [UNKNOWN_IMAGE];
  return size > 1 ? [`One of ${number(size)} classes`] : [];
}

function scoreText(item) {
  return item.score === undefined ? "" : `, score ${score(item.score)}`;
}

/** <tessella-grid>: a list of tiles. Arrow keys, Home and End move between images. */
class Grid extends HTMLElement {
  connectedCallback() {
    if (this.stop) return;
    this.setAttribute("role", "list");
    this.addEventListener("keydown", (event) => this.#pressed(event));
    this.stop = state.watch("selection", () => {
      for (const tile of this.tiles()) tile.setSelected(state.selection.has(tile.item.row));
    });
    state.watch("access", () => {
      for (const tile of this.tiles()) tile.retry();
    });
  }

  tiles() {
    return [...this.querySelectorAll("tessella-tile")];
  }

  show(items, options) {
    this.replaceChildren();
    this.add(items, options);
  }

  add(items, options = {}) {
    for (const item of items) {
      const tile = document.createElement("tessella-tile");
      tile.show(item, { ...options, mark: options.markOf?.(item.row) });
      this.append(tile);
    }
  }

  #pressed(event) {
    const tile = event.target.closest("tessella-tile");
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const isUsed = this.#move(tile, event.key) || tile.pressed(event.key.toLowerCase());
    if (isUsed) event.preventDefault();
  }

  #move(tile, key) {
    const tiles = this.tiles();
    const place = tiles.indexOf(tile);
    const box = tile.getBoundingClientRect();
    const middle = box.left + box.width / 2;
    const row = (top, isBetter) => {
      // the nearest row above or below, and in it the tile whose middle is nearest
      const others = tiles.filter((other) => isBetter(other.getBoundingClientRect().top, top));
      const tops = others.map((other) => other.getBoundingClientRect().top);
      const edge = key === "ArrowUp" ? Math.max(...tops) : Math.min(...tops);
      const distance = (other) => {
        const { left, width } = other.getBoundingClientRect();
        return Math.abs(left + width / 2 - middle);
      };
      return others
        .filter((other) => Math.abs(other.getBoundingClientRect().top - edge) < 2)
        .sort((a, b) => distance(a) - distance(b))[0];
    };
    const next = {
      ArrowLeft: () => tiles[place - 1],
      ArrowRight: () => tiles[place + 1],
      ArrowUp: () => row(box.top, (top, own) => top < own - 2),
      ArrowDown: () => row(box.top, (top, own) => top > own + 2),
      Home: () => tiles[0],
      End: () => tiles.at(-1),
    }[key];
    if (!next) return false;
    next()?.picture.focus();
    return true;
  }
}

customElements.define("tessella-tile", Tile);
customElements.define("tessella-grid", Grid);
