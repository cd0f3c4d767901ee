/** The dialog "Why?": which parts of an image support a class, with figures that say how far the map can be trusted. */

import { button, icon, make } from "./dom.js";
import { makeDialog, makeRequestButton, openDialog } from "./requests.js";
import { state } from "./state.js";
import { explanationError, methodName, percent, measureText, shortLabel, signed, verdictText } from "./text.js";

const OTHER_CLASS = "other";

/** Explain an image that was classified. entry: of the view Classify; `record`, `model` and `url` are set. */
export function showWhy(entry) {
  const why = document.createElement("tessella-why");
  const dialog = makeDialog(make("bdi", { dir: "ltr" }, `Explain ${entry.file.name}`), why);
  dialog.classList.add("wide");
  dialog.addEventListener("close", () => why.stop());
  openDialog(dialog);
  why.start(entry);
}

/** <tessella-why>: the image with its map, the choice of class and method, and the scores. */
class Why extends HTMLElement {
  start(entry) {
    this.entry = entry;
    this.methods = [];
    const { file, url, record } = entry;
    this.picture = make("img", { src: url, alt: file.name });
    this.overlay = make("img", { class: "why-overlay", alt: "", hidden: true });
    this.stage = make("div", { class: "why-stage" }, this.picture, this.overlay);
    this.stage.style.aspectRatio = `${record.width} / ${record.height}`;
    this.stage.style.maxWidth = `calc((100dvh - 320px) * ${record.width / record.height})`;
    this.outside = make("span", { class: "hint", hidden: true }, "The dark parts are not seen by the model.");
    this.against = make("span");
    this.lines = make("span", { class: "hint" });
    this.#explainColors(null);
    this.shown = make("input", {
      type: "checkbox",
      id: "why-shown",
      checked: true,
      disabled: true,
      onchange: () => this.#showOverlay(),
    });
    this.status = make("div", { class: "why-status", role: "status" });
    this.facts = make("div", { class: "why-facts" });
    this.request = makeRequestButton();
    this.replaceChildren(
      make(
        "figure",
        { class: "why-figure" },
        this.stage,
        make(
          "figcaption",
          {},
          make("label", { class: "control", for: "why-shown" }, this.shown, "Show the map"),
          legend(this.against, this.lines, this.outside),
        ),
      ),
      make("div", { class: "why-text" }, this.#controls(record.top), this.status, this.facts, this.request),
    );
    this.#explain();
  }

  stop() {
    this.controller?.abort();
  }

  // --- what is asked for ------------------------------------------------------------------------------------------

  #controls(top) {
    const option = ({ index, label, probability }) =>
      make("option", { value: `index:${index}` }, `${shortLabel(label)} (${percent(probability)})`);
    const ask = () => this.#explain();
    this.target = make(
      "select",
      { id: "why-class", onchange: () => this.#chooseClass() },
      top.map(option),
      make("option", { value: OTHER_CLASS }, "Another class…"),
    );
    this.versus = make(
      "select",
      { id: "why-versus", onchange: ask },
      make("option", { value: "" }, "Nothing"),
      top.map(option),
    );
    this.method = make("select", { id: "why-method", onchange: ask }, make("option", { value: "auto" }, "Best for this model"));
    this.name = make("input", { id: "why-name", autocomplete: "off", maxlength: "1000", required: true });
    this.nameForm = make(
      "form",
      {
        class: "why-name",
        hidden: true,
        onsubmit: (event) => {
          event.preventDefault();
          this.#explain();
        },
      },
      make("label", { for: "why-name" }, "Name or index of the class"),
      this.name,
      make("button", { class: "button small" }, "Explain"),
    );
    const field = (label, control) => make("div", {}, make("label", { for: control.id }, label), control);
    return make(
      "div",
      { class: "why-controls" },
      field("Class", this.target),
      field("Compared with", this.versus),
      field("Method", this.method),
      this.nameForm,
    );
  }

  #chooseClass() {
    const isOther = this.target.value === OTHER_CLASS;
    this.nameForm.hidden = !isOther;
    if (isOther) this.name.focus();
    else this.#explain();
  }

  #wanted() {
    return this.target.value === OTHER_CLASS ? this.name.value.trim() : this.target.value;
  }

  async #explain() {
    if (this.target.value === OTHER_CLASS && !this.#wanted()) {
      this.name.focus(); // nothing would be the most probable class
      return;
    }
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    const say = (...children) => {
      if (!signal.aborted) this.status.replaceChildren(...children);
    };
    this.setAttribute("aria-busy", "true");
    const wait = "Explaining. The first explanation after a pause takes a few seconds longer.";
    say(make("p", { class: "status active" }, wait));
    try {
      const { answer, request } = await state.backend.explain(this.entry.file, {
        model: this.entry.model,
        wanted: this.#wanted(),
        versus: this.versus.value,
        method: this.method.value,
        signal,
        onwait: () => say(make("p", { class: "status active" }, "The server is busy; trying again")),
      });
      if (signal.aborted) return;
      const [result] = answer.results;
      this.request.setRequest(request);
      if (result.status === "ok") this.#show(result);
      else this.#fail({ code: result.status, detail: result.message });
    } catch (error) {
      if (signal.aborted) return;
      this.#fail(error);
    }
    this.removeAttribute("aria-busy");
  }

  // --- what is shown ----------------------------------------------------------------------------------------------

  #fail(error) {
    this.overlay.hidden = true;
    this.shown.disabled = true;
    this.facts.replaceChildren();
    this.status.replaceChildren(
      make("p", { class: "error" }, icon("warning"), make("span", {}, explanationError(error))),
      button({ text: "Try again", kind: "small", onclick: () => this.#explain() }),
    );
  }

  #show(result) {
    this.#offerMethods(result);
    this.#place(result);
    this.#explainColors(result.versus);
    const { faithful, target, versus, scores = {}, total } = result;
    const nameOf = ({ label, probability }) => [make("bdi", {}, shortLabel(label)), ` (${percent(probability)})`];
    const rest = versus ? [", and not ", ...nameOf(versus)] : [];
    this.status.replaceChildren(
      make("h3", {}, "Why ", ...nameOf(target), ...rest),
      make(
        "p",
        { class: "why-verdict" },
        make("span", { class: faithful ? "badge good" : "badge" }, verdictText(result)),
        make("span", { class: "muted" }, result.verdict_reason ?? ""),
      ),
    );
    const what = versus ? "difference between the scores of the two classes" : "score of the class";
    const sum = total === null || total === undefined ? "" : ` The map sums to ${signed(total)}, the ${what}.`;
    this.facts.replaceChildren(
      ...(Object.keys(scores).length ? [scoreTable(scores)] : []),
      make("p", { class: "muted" }, `Method: ${methodName(result.method)} (${result.reason}).${sum}`),
    );
  }

  /** Say in the legend what the negative values of the map mean. */
  #explainColors(versus) {
    this.against.replaceChildren(...(versus ? ["supports ", make("bdi", {}, shortLabel(versus.label))] : ["contradicts"]));
    const dashed = versus ? "the strongest support for the other class" : "what contradicts the class most";
    this.lines.textContent = `Solid lines enclose the strongest support, dashed lines ${dashed}.`;
  }

  /** List the methods that apply to the model, once they are known. */
  #offerMethods({ methods }) {
    if (this.methods.length) return;
    this.methods = methods;
    this.method.append(...methods.map((name) => make("option", { value: name }, methodName(name))));
  }

  /** Lay the map over the part of the image that the model sees. */
  #place({ overlay, box: [left, top, right, bottom], width, height, map, target }) {
    const { style } = this.overlay;
    style.left = `${(100 * left) / width}%`;
    style.top = `${(100 * top) / height}%`;
    style.width = `${(100 * (right - left)) / width}%`;
    style.height = `${(100 * (bottom - top)) / height}%`;
    this.outside.hidden = left < 1 && top < 1 && width - right < 1 && height - bottom < 1;
    this.overlay.src = overlay;
    const place = strongest(map);
    this.overlay.alt = `Map for ${shortLabel(target.label)}: the strongest support is ${place} of what the model sees`;
    this.shown.disabled = false;
    this.#showOverlay();
  }

  #showOverlay() {
    this.overlay.hidden = !this.shown.checked;
  }
}

/** Where a map has its largest value, in words. */
function strongest(map) {
  const rows = map.map((values) => Math.max(...values));
  const row = rows.indexOf(Math.max(...rows));
  const column = map[row].indexOf(rows[row]);
  const third = (place, count, names) => names[Math.min(Math.floor((3 * (place + 0.5)) / count), 2)];
  const vertical = third(row, map.length, ["at the top", "in the middle", "at the bottom"]);
  const horizontal = third(column, map[0].length, ["left", "", "right"]);
  return horizontal ? `${vertical} ${horizontal}` : vertical;
}

function scoreTable(scores) {
  const row = ([name, { value, random, is_better: isBetter }]) => {
    const { title, hint, digits } = measureText(name);
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, title, make("span", { class: "hint" }, hint)),
      make("td", { class: isBetter ? "strong" : null }, signed(value, digits)),
      make("td", {}, `${signed(random[0], digits)} to ${signed(random[1], digits)}`),
      make("td", {}, isBetter ? "better" : "not better"),
    );
  };
  const heads = ["Score", "This map", "95 % of random maps", "Result"];
  return make(
    "table",
    { class: "scores" },
    make("caption", {}, "How faithful this map is, beside random maps"),
    make("thead", {}, make("tr", {}, heads.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, Object.entries(scores).map(row)),
  );
}

function legend(against, ...notes) {
  return make(
    "div",
    { class: "why-legend" },
    against,
    make("span", { class: "why-scale", "aria-hidden": "true" }),
    make("span", {}, "supports"),
    notes,
  );
}

customElements.define("tessella-why", Why);
