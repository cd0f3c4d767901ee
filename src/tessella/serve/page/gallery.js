/** <tessella-gallery>: browse the index, search by an image, filter, select and export. */

import { announce, button, debounce, emptyState, failure, make, noImages, toast } from "./dom.js";
import { exportMenu } from "./exports.js";
import { makeDialog, makeRequestButton, openDialog } from "./requests.js";
import { NO_FILTER, filterJson, isFiltered, state } from "./state.js";
import { baseName, fileSize, number, percent, printable, shortLabel, timingText } from "./text.js";
import "./filters.js";
import "./tiles.js";

const PAGE = 60; // images per request

class Gallery extends HTMLElement {
  connectedCallback() {
    if (!this.grid) this.#build();
    this.stops = ["filter", "query"].map((part) => state.watch(part, () => this.refresh()));
    this.refresh();
  }

  disconnectedCallback() {
    for (const stop of this.stops) stop();
    this.controller?.abort();
  }

  #build() {
    this.filters = document.createElement("tessella-filters");
    this.grid = document.createElement("tessella-grid");
    this.grid.setAttribute("aria-label", "Images");
    this.grid.addEventListener("tile-search", ({ detail }) => state.setQuery({ row: detail.row, item: detail }));
    this.grid.addEventListener("tile-copies", (event) => this.#showCopies(event.target, event.detail));
    this.query = make("div", { class: "query", hidden: true });
    this.heading = make("h1", { class: "small-heading", tabindex: "-1" });
    this.changed = make(
      "p",
      { class: "toolbar", role: "status", hidden: true },
      "The collection has changed since this page was opened.",
      button({ text: "Reload the page", kind: "small", onclick: () => location.reload() }),
    );
    this.message = make("div", { class: "message" });
    this.more = button({ text: "Show more", kind: "wide", hidden: true, onclick: () => this.#load(true) });
    this.timing = make("span", { class: "muted timing" });
    this.requestButton = makeRequestButton();
    this.#buildSearchControls();
    this.menu = exportMenu(() => this.#exported());
    this.replaceChildren(
      make("aside", { class: "side", "aria-label": "Filters" }, this.filters),
      make(
        "section",
        { class: "content", "aria-label": "Results" },
        this.query,
        make(
          "div",
          { class: "toolbar" },
          this.heading,
          this.searchControls,
          make("span", { class: "spring" }),
          this.timing,
          this.requestButton,
          this.menu,
        ),
        this.changed,
        this.message,
        this.grid,
        this.more,
      ),
    );
  }

  #buildSearchControls() {
    const refresh = debounce(() => this.refresh(), 150);
    this.scoreText = make("output", { for: "least-score" }, "any");
    this.least = make("input", {
      type: "range",
      id: "least-score",
      min: "0",
      max: "1",
      step: "0.01",
      value: "0",
      oninput: () => {
        this.scoreText.textContent = Number(this.least.value) ? Number(this.least.value).toFixed(2) : "any";
        this.setAttribute("aria-busy", "true");
        refresh();
      },
    });
    this.copies = make(
      "select",
      { id: "copies", onchange: () => this.refresh() },
      [
        ["group", "Group"],
        ["hide", "Hide"],
        ["show", "Show all"],
      ].map(([value, text]) => make("option", { value }, text)),
    );
    this.searchControls = make(
      "div",
      { class: "controls" },
      make(
        "div",
        { class: "control" },
        make("label", { for: "least-score" }, "Least similarity"),
        this.least,
        this.scoreText,
      ),
      make("div", { class: "control" }, make("label", { for: "copies" }, "Near-duplicates"), this.copies),
    );
  }

  /** Load the first images anew. */
  refresh() {
    this.#showQuery();
    this.searchControls.hidden = !state.query;
    return this.#load(false);
  }

  async #load(isMore) {
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    const shown = isMore ? this.items.length : 0;
    this.setAttribute("aria-busy", "true");
    this.more.disabled = true;
    try {
      const { answer, request } = await (state.query
        ? this.#search(shown, signal)
        : state.backend.select(filterJson(state.filter), shown, PAGE, { signal }));
      this.#show(answer, request, shown);
    } catch (error) {
      if (signal.aborted) return;
      this.#fail(error);
    }
    this.more.disabled = false;
    this.removeAttribute("aria-busy");
  }

  #search(start, signal) {
    const { row, file } = state.query;
    const options = {
      ...(file ? {} : { queries: [{ row }] }),
      start,
      top: PAGE,
      min_score: Number(this.least.value) || null,
      filter: filterJson(state.filter),
      group_duplicates: this.copies.value !== "show",
    };
    return state.backend.search(options, { file, signal });
  }

  #show(answer, request, shown) {
    const isSearch = Boolean(answer.neighbors);
    const items = isSearch ? answer.neighbors : answer.rows;
    this.requestButton.setRequest(request);
    this.timing.textContent = timingText(answer.timing_ms);
    this.items = [...(shown ? this.items : []), ...items];
    const tiles = this.copies.value === "hide" ? items.map((item) => ({ ...item, duplicates: [] })) : items;
    if (shown) this.grid.add(tiles);
    else this.grid.show(tiles);
    const rows = isSearch ? answer.rows : isFiltered(state.filter) ? state.index.rows : answer.matching;
    this.changed.hidden = rows === state.index.rows;
    this.more.hidden = items.length < PAGE || (!isSearch && this.items.length >= answer.matching);
    if (isSearch && Number(this.least.value)) this.filters.setCount(this.#listed(), rows, !this.more.hidden);
    else this.filters.setCount(answer.matching, rows);
    this.message.replaceChildren();
    if (!this.items.length) this.message.append(this.#nothing());
    const what = isSearch ? "similar images, best first" : `of ${number(answer.matching)} images`;
    announce(`${number(this.items.length)} ${what}`);
  }

  /** The number of images in the list; near-duplicates that are grouped under another image are included. */
  #listed() {
    if (this.copies.value === "hide") return this.items.length;
    return this.items.reduce((sum, { duplicates }) => sum + 1 + duplicates.length, 0);
  }

  #nothing() {
    if (state.query && Number(this.least.value)) {
      return emptyState({
        symbol: "search",
        title: "Nothing is that similar",
        text: "Lower the least similarity to see more images.",
      });
    }
    if (isFiltered(state.filter)) {
      const clear = () => (state.setFilter({ ...NO_FILTER }), this.heading.focus());
      const action = button({ text: "Clear filters", onclick: clear });
      return emptyState({
        symbol: "grid",
        title: "No image matches",
        text: `No ${state.query ? "other " : ""}image passes all filters together.`,
        action,
      });
    }
    if (!state.query || state.query.file) return noImages();
    const text = "The index has no other image to compare this one with.";
    return emptyState({ symbol: "search", title: "There are no other images", text });
  }

  #fail(error) {
    this.grid.show([]);
    this.items = [];
    this.more.hidden = true;
    this.message.replaceChildren(failure(error, () => this.refresh()));
    announce(error.message);
  }

  #showQuery() {
    const { query } = state;
    this.query.hidden = !query;
    this.heading.textContent = query ? "Similar images" : isFiltered(state.filter) ? "Images that match" : "All images";
    this.heading.classList.toggle("hidden-text", Boolean(query));
    if (!query) return;
    const picture = make("img", { alt: "", class: "query-picture" });
    const frame = state.backend.can.enlarge
      ? make(
          "button",
          {
            type: "button",
            class: "query-open",
            "aria-label": "Enlarge the image",
            title: "Enlarge",
            onclick: () => this.#enlarge(query),
          },
          picture,
        )
      : picture;
    if (query.file) picture.src = query.url;
    else
      state.thumbnails
        .address(query.row, 256, () => true)
        .then(
          (address) => (picture.src = address),
          () => {},
        );
    const { item, file } = query;
    const name = file ? printable(file.name) : baseName(item.key);
    const facts = file
      ? [fileSize(file.size)]
      : [
          item.unknown && "unknown",
          item.label && [make("bdi", {}, shortLabel(item.label)), ` ${percent(item.probability)}`],
          `${item.width} × ${item.height} pixels`,
        ];
    this.query.replaceChildren(
      frame,
      make(
        "div",
        { class: "query-text" },
        make("span", { class: "muted" }, "Similar to"),
        make("h2", { tabindex: "-1" }, make("bdi", { dir: "ltr" }, name)),
        make(
          "span",
          { class: "muted" },
          facts.filter(Boolean).flatMap((fact, place) => (place ? [" · ", fact] : [fact]).flat()),
        ),
        item && printable(item.key) !== name && make("bdi", { class: "muted path", dir: "ltr" }, item.key),
      ),
      button({ text: "Show all images", symbol: "close", kind: "quiet", onclick: () => state.setQuery(null) }),
    );
  }

  /** Show the image of the query in its full size. */
  async #enlarge({ row, item, file, url }) {
    try {
      const picture = make("img", { class: "enlarged", alt: "" });
      picture.src = file ? url : await state.backend.thumbnail(row, 0);
      const name = file ? file.name : baseName(item.key);
      const dialog = makeDialog(make("bdi", { dir: "ltr" }, name), picture);
      dialog.classList.add("wide");
      if (!file) dialog.addEventListener("close", () => URL.revokeObjectURL(picture.src));
      openDialog(dialog);
    } catch (error) {
      toast(error.message);
    }
  }

  /** Insert the near-duplicates of a tile after it, or remove them again. */
  async #showCopies(tile, item) {
    const opened = this.grid.tiles().filter((other) => other.copyOf === item.row);
    if (opened.length) {
      for (const copy of opened) copy.remove();
      return;
    }
    try {
      const copies = await Promise.all(item.duplicates.slice(0, PAGE).map((row) => state.backend.row(row)));
      for (const copy of copies.reverse()) {
        const node = document.createElement("tessella-tile");
        node.show(copy);
        node.copyOf = item.row;
        node.classList.add("copy");
        tile.after(node);
      }
    } catch (error) {
      toast(error.message);
    }
  }

  /** What an export contains: the selected rows, the results of the search, or all that pass the filter. */
  #exported() {
    if (state.selection.size) return { rows: [...state.selection.keys()] };
    if (state.query) return { rows: this.items.map(({ row }) => row) };
    return { filter: filterJson(state.filter) };
  }
}

customElements.define("tessella-gallery", Gallery);
