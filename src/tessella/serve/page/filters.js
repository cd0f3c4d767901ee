/** <tessella-filters>: narrow the images by predicted class, size and region of the map. */

import { button, debounce, make } from "./dom.js";
import { NO_FILTER, isFiltered, state, toggled } from "./state.js";
import { images, number, shortLabel } from "./text.js";

const SHOWN_LABELS = 100; // of many classes; the field above the list finds the others
const LARGEST = 1e6; // pixels: no image is larger, and the server refuses larger numbers
const SIZES = [
  ["min_width", "Width from"],
  ["max_width", "to"],
  ["min_height", "Height from"],
  ["max_height", "to"],
];

class Filters extends HTMLElement {
  connectedCallback() {
    if (!this.list) this.#build();
    this.stop = state.watch("filter", () => this.#show());
    this.#show();
  }

  disconnectedCallback() {
    this.stop?.();
  }

  /** Show how many images pass the filter, such as "47 of 412". isPartial: there may be more. */
  setCount(matching, rows, isPartial = false) {
    const isAll = matching === rows;
    this.count.replaceChildren(
      isPartial ? "At least " : "",
      make("strong", {}, number(matching)),
      isAll ? (rows === 1 ? " image" : " images") : ` of ${images(rows)}`,
    );
    const counts = `${isPartial ? "at least " : ""}${number(matching)} of ${number(rows)}`;
    this.summary.textContent = isAll ? "Filters" : `Filters: ${counts}`;
  }

  #build() {
    const widths = state.index.width_range ?? ["", ""];
    const heights = state.index.height_range ?? ["", ""];
    this.labels = [...state.index.labels].sort((a, b) => b.count - a.count);
    this.count = make("p", { class: "count", role: "status" });
    this.summary = make("span", {}, "Filters");
    this.find = make("input", {
      type: "search",
      placeholder: "Find a class",
      "aria-label": "Find a class",
      oninput: () => this.#showLabels(),
    });
    this.list = make("ul", { class: "labels", tabindex: "0", "aria-label": "Predicted classes" });
    const ranges = { min_width: widths, max_width: widths, min_height: heights, max_height: heights };
    const apply = debounce(() => this.#applySizes(), 250);
    this.sizes = SIZES.map(([name, text]) => {
      const placeholder = ranges[name][name.startsWith("min") ? 0 : 1];
      const input = make("input", {
        type: "number",
        name,
        min: "0",
        inputmode: "numeric",
        placeholder: String(placeholder),
        "aria-label": `${name.startsWith("min") ? "Smallest" : "Largest"} ${name.slice(4)} in pixels`,
        oninput: apply,
      });
      return { input, field: make("label", { class: "size" }, make("span", {}, text), input) };
    });
    this.unknown = this.#unknownChoice();
    this.region = make(
      "div",
      { class: "chip", hidden: true },
      make("span", {}, "Region of the map"),
      button({
        label: "Remove the region",
        symbol: "close",
        kind: "quiet small",
        onclick: () => this.#reset({ polygon: null }),
      }),
    );
    this.clear = button({ text: "Clear filters", kind: "link", onclick: () => this.#reset({ ...NO_FILTER }) });
    const details = make(
      "details",
      { class: "filters", open: matchMedia("(min-width: 760px)").matches },
      make("summary", {}, this.summary),
      make(
        "div",
        { class: "filters-body" },
        this.region,
        this.unknown &&
          make(
            "div",
            { class: "field" },
            make("label", { for: this.unknown.id }, "Unknown images"),
            this.unknown,
            make("span", { class: "hint" }, "They are unlike those that the model knows."),
          ),
        make("fieldset", {}, make("legend", {}, "Predicted class"), this.labels.length > 12 && this.find, this.list),
        make(
          "fieldset",
          {},
          make("legend", {}, "Size in pixels"),
          make(
            "div",
            { class: "sizes" },
            this.sizes.map(({ field }) => field),
          ),
        ),
        this.clear,
      ),
    );
    this.replaceChildren(this.count, details);
  }

  /** Make the choice of unknown images; null if the run was made without a calibration. */
  #unknownChoice() {
    const { unknown, rows } = state.index;
    if (typeof unknown !== "number") return null;
    const choices = [
      ["", `Show (${number(rows)})`],
      ["false", `Hide (${number(rows - unknown)})`],
      ["true", `Show only these (${number(unknown)})`],
    ];
    return make(
      "select",
      {
        id: "unknown-images",
        onchange: ({ target: { value } }) => state.setFilter({ unknown: value === "" ? null : value === "true" }),
      },
      choices.map(([value, text]) => make("option", { value }, text)),
    );
  }

  #applySizes() {
    const changes = {};
    for (const { input } of this.sizes) {
      const value = Math.min(Math.trunc(Number(input.value)), LARGEST);
      changes[input.name] = input.value !== "" && value >= 0 ? value : null;
    }
    state.setFilter(changes);
  }

  #show() {
    for (const { input } of this.sizes) {
      const value = state.filter[input.name];
      if (document.activeElement !== input) input.value = value ?? "";
    }
    if (this.unknown) this.unknown.value = String(state.filter.unknown ?? "");
    this.region.hidden = !state.filter.polygon;
    this.clear.hidden = !isFiltered(state.filter);
    this.#showLabels();
  }

  /** Change the filter by a button that disappears with it: the focus moves to the list of classes. */
  #reset(changes) {
    state.setFilter(changes);
    this.list.focus();
  }

  #showLabels() {
    const chosen = state.filter.label;
    const text = this.find.value.trim().toLowerCase();
    const found = this.labels.filter(({ label }) => !text || label.toLowerCase().includes(text));
    const isChosen = ({ label }) => chosen.includes(label);
    const shown = [...found.filter(isChosen), ...found.filter((entry) => !isChosen(entry))].slice(0, SHOWN_LABELS);
    const focused = document.activeElement?.closest("li")?.dataset.label;
    this.list.replaceChildren(...shown.map((entry) => this.#label(entry, isChosen(entry))));
    if (found.length > shown.length) {
      this.list.append(make("li", { class: "hint" }, `${number(found.length - shown.length)} more: type to find them`));
    }
    if (!found.length) this.list.append(make("li", { class: "hint" }, text ? "No class has this name" : "No classes"));
    if (focused === undefined) return;
    [...this.list.children]
      .find((entry) => entry.dataset.label === focused)
      ?.querySelector("input")
      .focus();
  }

  #label({ label, count }, isChosen) {
    const box = make("input", {
      type: "checkbox",
      checked: isChosen,
      onchange: () => state.setFilter({ label: toggled(state.filter.label, label) }),
    });
    const name = make("bdi", { class: "label-name", title: label }, shortLabel(label));
    const entry = make("li", {}, make("label", {}, box, name, make("span", { class: "muted" }, number(count))));
    entry.dataset.label = label;
    return entry;
  }
}

customElements.define("tessella-filters", Filters);
