/** <tessella-teach>: mark images as yes or no for a class of one's own; the server fits a head and ranks all images. */

import { announce, button, copyText, debounce, failure, make, noImages, toast } from "./dom.js";
import { makeDialog, makeRequestButton, openDialog } from "./requests.js";
import { state } from "./state.js";
import { baseName, images, milliseconds, number } from "./text.js";
import "./tiles.js";

const RANKED = 60; // images that are shown
const SAMPLED = 6; // adjacent images of a sample of the collection
const NAME = /^[\p{L}\p{N}](?:[\p{L}\p{M}\p{N} _.+&'-]*[\p{L}\p{M}\p{N}])?$/u;

class Teach extends HTMLElement {
  marks = new Map(); // row: {side: "yes" | "no", item}
  history = []; // earlier states of `marks`
  offset = 0; // of the sample that is shown first
  saves = 0; // heads that were saved here

  connectedCallback() {
    if (!this.grid) this.#build();
    const whenVisible = () => document.visibilityState === "visible" && this.#refreshHeads();
    document.addEventListener("visibilitychange", whenVisible);
    this.stops = [
      state.watch("selection", () => this.#showSelected()),
      () => document.removeEventListener("visibilitychange", whenVisible),
    ];
    this.#showSelected();
    this.refresh();
    this.#refreshHeads();
  }

  disconnectedCallback() {
    for (const stop of this.stops) stop();
    this.controller?.abort();
  }

  #build() {
    this.grid = document.createElement("tessella-grid");
    this.grid.setAttribute("aria-label", "Images to mark");
    for (const side of ["yes", "no"])
      this.grid.addEventListener(`tile-${side}`, ({ detail }) => this.mark(detail, side));
    this.grid.addEventListener("tile-search", ({ detail }) => state.setQuery({ row: detail.row, item: detail }));
    const refit = debounce(() => this.refresh(), 120);
    this.refit = () => {
      this.setAttribute("aria-busy", "true"); // the images shown no longer match the marks
      refit();
    };
    this.trays = Object.fromEntries(["yes", "no"].map((side) => [side, this.#tray(side)]));
    this.status = make("p", { class: "muted", role: "status" });
    this.others = button({ text: "Other images", onclick: () => this.#showOthers() });
    this.useSelected = button({ kind: "primary", text: "Mark", onclick: () => this.#markSelected() });
    this.undo = button({ text: "Undo", symbol: "undo", onclick: () => this.#undo() });
    this.requestButton = makeRequestButton();
    this.name = make("input", {
      id: "head-name",
      placeholder: "Such as: red shoes",
      autocomplete: "off",
      maxlength: "64",
    });
    this.save = make("button", { class: "button primary", "aria-describedby": "head-needs" }, "Save head");
    this.needs = make("p", { class: "hint", id: "head-needs" }, "First mark at least one image as yes and one as no.");
    this.saved = make("div", { class: "saved" });
    this.missing = make("p", { class: "hint", role: "status" });
    const form = make(
      "form",
      { class: "save", onsubmit: (event) => (event.preventDefault(), this.#save(false)) },
      make("label", { for: "head-name" }, "Name of the class"),
      make("div", { class: "field" }, this.name, this.save),
      this.needs,
    );
    this.message = make("div", { class: "message" });
    this.addEventListener("keydown", (event) => {
      const isUndo = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey);
      if (!isUndo || event.target === this.name) return;
      event.preventDefault();
      this.#undo();
    });
    this.replaceChildren(
      make(
        "aside",
        { class: "side", "aria-label": "Your class" },
        make("h1", {}, "Teach a class"),
        make("p", { class: "muted" }, "Mark a few images as yes and a few as no. The ranking follows at once."),
        this.trays.yes.section,
        this.trays.no.section,
        form,
        this.saved,
        this.missing,
      ),
      make(
        "section",
        { class: "content", "aria-label": "Images" },
        make(
          "div",
          { class: "toolbar" },
          this.status,
          make("span", { class: "spring" }),
          this.requestButton,
          this.useSelected,
          this.others,
          this.undo,
        ),
        this.message,
        this.grid,
      ),
    );
    this.#showHeads();
  }

  #tray(side) {
    const count = make("span", { class: "muted" });
    const list = make("ul", { class: "tray" });
    const section = make(
      "section",
      { class: `marked ${side}` },
      make("h2", {}, side === "yes" ? "Yes " : "No ", count),
      list,
    );
    return { section, count, list };
  }

  rows(side) {
    return [...this.marks].filter(([, mark]) => mark.side === side).map(([row]) => row);
  }

  #isFitted() {
    return this.rows("yes").length > 0 && this.rows("no").length > 0;
  }

  /** Mark an image; marking it again in the same way removes the mark. */
  mark(item, side) {
    this.history.push(new Map(this.marks));
    if (this.marks.get(item.row)?.side === side) this.marks.delete(item.row);
    else this.marks.set(item.row, { side, item });
    this.#showMarks();
    this.refit();
  }

  /** Mark the images that are selected in the gallery as yes. */
  #markSelected() {
    this.history.push(new Map(this.marks));
    for (const [row, item] of state.selection) this.marks.set(row, { side: "yes", item });
    state.clearSelection();
    this.refresh();
  }

  #showSelected() {
    const { size } = state.selection;
    this.useSelected.hidden = !size;
    this.useSelected.querySelector("span").textContent = `Mark ${number(size)} selected as yes`;
  }

  #showOthers() {
    this.offset += SAMPLED;
    this.refresh();
  }

  /** Some images from everywhere in the collection: those in a run are in the order of their folders. */
  async #sample(signal) {
    const { rows } = state.index;
    const parts = Math.min(Math.ceil(rows / SAMPLED), RANKED / SAMPLED);
    const step = Math.max(Math.floor(rows / Math.max(parts, 1)), SAMPLED);
    const starts = Array.from({ length: parts }, (_, k) => k * step + (this.offset % Math.max(step - SAMPLED, 1)));
    const found = await Promise.all(starts.map((start) => state.backend.select({}, start, SAMPLED, { signal })));
    return found.flatMap(({ answer }) => answer.rows);
  }

  #undo() {
    if (!this.history.length) return;
    this.marks = this.history.pop();
    this.#showMarks();
    this.refit();
    announce("Undone");
  }

  #showMarks() {
    for (const tile of this.grid.tiles()) tile.setMark(this.marks.get(tile.item.row)?.side ?? null);
    for (const side of ["yes", "no"]) {
      const { count, list } = this.trays[side];
      const rows = this.rows(side);
      count.textContent = number(rows.length);
      list.replaceChildren(...rows.map((row) => this.#thumbnail(row, side)));
      if (!rows.length) list.append(make("li", { class: "hint" }, "None yet"));
    }
    this.undo.disabled = !this.history.length;
    this.save.disabled = !this.#isFitted();
    this.needs.hidden = this.#isFitted();
    this.others.hidden = this.rows("yes").length > 0 || state.index.rows <= RANKED;
  }

  #thumbnail(row, side) {
    const { item } = this.marks.get(row);
    const picture = make("img", { alt: "" });
    state.thumbnails
      .address(row, 96, () => true)
      .then(
        (address) => (picture.src = address),
        () => {},
      );
    const name = `Remove the mark of ${baseName(item.key)}`;
    return make(
      "li",
      {},
      make(
        "button",
        { type: "button", "aria-label": name, title: name, onclick: () => this.mark(item, side) },
        picture,
      ),
    );
  }

  /** Rank the images: by the head if there are marks of both kinds, by similarity to the yes images, or not at all. */
  async refresh() {
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    this.#showMarks();
    const [yes, no] = [this.rows("yes"), this.rows("no")];
    this.setAttribute("aria-busy", "true");
    try {
      if (yes.length && no.length) {
        const { answer, request } = await state.backend.teach(yes, no, RANKED, { signal });
        this.#showTiles(answer.ranked, request);
        const overlap = answer.separable ? "" : " Some images marked no still score higher than some marked yes.";
        this.status.textContent = `Fitted to ${images(yes.length + no.length)} in ${milliseconds(answer.train_ms)}.${overlap}`;
      } else if (yes.length && state.index.rows > 1) {
        const options = { queries: yes.slice(0, 64).map((row) => ({ row })), top: RANKED, group_duplicates: true };
        const { answer, request } = await state.backend.search(options, { signal });
        this.#showTiles(answer.neighbors, request);
        this.status.textContent = answer.neighbors.length
          ? "These are similar. Now mark at least one as no."
          : "All images are marked as yes. Remove the mark of one that does not show your class, then mark it as no.";
      } else {
        this.#showTiles(await this.#sample(signal), null);
        this.status.textContent = this.#firstStep(no.length);
      }
      this.message.replaceChildren(...(state.index.rows ? [] : [noImages()]));
    } catch (error) {
      if (signal.aborted) return;
      this.#fail(error);
    }
    this.removeAttribute("aria-busy");
  }

  /** What to do before any image is marked as yes. */
  #firstStep(negatives) {
    if (state.index.rows === 1) {
      return "The collection has one image. Teaching needs at least two: one that shows your class and one that does not.";
    }
    return negatives ? "Now mark at least one as yes." : "Mark an image that belongs to your class as yes.";
  }

  #showTiles(items, request) {
    this.requestButton.setRequest(request);
    const focused = document.activeElement?.closest("tessella-tile");
    const isInside = focused && this.grid.contains(focused);
    const place = isInside ? this.grid.tiles().indexOf(focused) : -1;
    this.grid.show(items, { teaching: true, markOf: (row) => this.marks.get(row)?.side ?? null });
    if (isInside) this.grid.tiles()[Math.min(place, items.length - 1)]?.picture.focus();
  }

  #fail(error) {
    this.grid.show([]);
    this.message.replaceChildren(failure(error, () => this.refresh()));
    this.status.textContent = "";
  }

  async #save(replace) {
    const name = this.name.value.trim();
    if (!name) {
      this.name.focus();
      toast("Give the class a name first");
      return;
    }
    if (!NAME.test(name)) {
      this.name.focus();
      toast("Use letters, digits and spaces for the name, such as: red shoes");
      return;
    }
    try {
      await state.backend.saveHead(name, this.rows("yes"), this.rows("no"), replace);
      this.saves++;
      state.index.heads = [...new Set([...state.index.heads, name])];
      this.missing.textContent = "";
      this.#showHeads(name);
      toast(`Saved “${name}”`);
    } catch (error) {
      if (error.code === "exists" && !replace) this.#askReplace(name);
      else toast(error.message);
    }
  }

  #askReplace(name) {
    const replace = () => {
      dialog.close();
      this.#save(true);
    };
    const dialog = makeDialog(
      "Replace the head?",
      make("p", {}, "A head with the name ", make("bdi", { class: "strong" }, name), " exists."),
      make(
        "div",
        { class: "dialog-actions" },
        button({ text: "Keep it", onclick: () => dialog.close() }),
        button({ text: "Replace", kind: "primary", onclick: replace }),
      ),
    );
    openDialog(dialog);
  }

  /** List the heads again: another tab may have saved some, and their files may have been deleted. */
  async #refreshHeads() {
    const { saves } = this;
    try {
      const heads = await state.backend.heads();
      if (saves !== this.saves) return; // a head was saved meanwhile, which this answer may not contain
      const missing = state.index.heads.filter((name) => !heads.includes(name));
      if (!missing.length && heads.length === state.index.heads.length) return; // the list and the focus stay as they are
      state.index.heads = heads;
      this.#showHeads();
      if (missing.length) this.missing.textContent = missingText(missing);
    } catch {
      // the list stays as it is; requests that a person makes report what is wrong
    }
  }

  #showHeads(last = null) {
    const { heads } = state.index;
    this.saved.replaceChildren();
    if (!heads.length) return;
    this.saved.append(
      make("h2", {}, "Saved heads"),
      make(
        "ul",
        {},
        heads.map((name) =>
          make(
            "li",
            { class: name === last ? "new" : null },
            make("bdi", {}, name),
            button({
              label: `Copy the command that classifies with ${name}`,
              symbol: "copy",
              kind: "quiet small",
              onclick: () => copyText(commandOf(name)),
            }),
          ),
        ),
      ),
      make("p", { class: "muted" }, "Use one with ", make("code", {}, "tessella classify --head RUN:NAME"), "."),
    );
  }
}

/** What to do about heads that can no longer be used. */
function missingText(names) {
  const list = names.map((name) => `“${name}”`).join(", ");
  const reason = "because the file was deleted or is damaged";
  return `No longer available, ${reason}: ${list}. To use a head again, mark images and save it under the same name.`;
}

/** The command that classifies with a saved head. */
function commandOf(name) {
  const quoted = /^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", String.raw`'\''`)}'`;
  return `tessella classify --head RUN:${quoted} IMAGE`;
}

customElements.define("tessella-teach", Teach);
