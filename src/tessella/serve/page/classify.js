/** <tessella-classify>: classify images of one's own; each has its own status. */

import { announce, button, icon, make } from "./dom.js";
import { showWhy } from "./explain.js";
import { pickers } from "./inputs.js";
import { showRequest } from "./requests.js";
import { state } from "./state.js";
import {
  UNKNOWN_REASON,
  UNSURE_REASON,
  coverageText,
  fileSize,
  images,
  isUnsure,
  messageFor,
  number,
  percent,
  setText,
  shortLabel,
  timingText,
} from "./text.js";

const UPLOADS_AT_ONCE = 4; // requests; the server forms batches of them

/** <tessella-card>: one image with its status and classes. */
class Card extends HTMLElement {
  /** handlers: {search(entry), retry(entry), remove(entry)}. */
  show(entry, handlers) {
    this.entry = entry;
    this.handlers = handlers;
    this.setAttribute("role", "listitem");
    const { file } = entry;
    entry.url = URL.createObjectURL(file);
    const picture = make("img", { src: entry.url, alt: "", decoding: "async", loading: "lazy" });
    const frame = make("div", { class: "card-picture" }, picture);
    picture.addEventListener("error", () => frame.replaceChildren(icon("image")), { once: true });
    this.facts = make("span", { class: "muted" }, fileSize(file.size));
    this.body = make("div", { class: "card-body", "aria-live": "off" });
    this.replaceChildren(
      frame,
      make(
        "div",
        { class: "card-text" },
        make(
          "div",
          { class: "card-head" },
          make("h2", {}, make("bdi", { dir: "ltr", title: file.name }, file.name)),
          button({
            label: `Remove ${file.name}`,
            symbol: "close",
            kind: "quiet small",
            onclick: () => handlers.remove(entry),
          }),
        ),
        this.facts,
        this.body,
      ),
    );
    this.update();
  }

  update() {
    const { status } = this.entry;
    this.dataset.status = status;
    if (status === "waiting") this.body.replaceChildren(statusLine("Waiting"));
    else if (status === "running") this.body.replaceChildren(statusLine("Classifying", true));
    else if (status === "busy") this.body.replaceChildren(statusLine("The server is busy; trying again", true));
    else if (status === "failed") this.#fail();
    else this.#succeed();
  }

  #fail() {
    const { handlers, entry } = this;
    this.body.replaceChildren(
      make("p", { class: "error" }, icon("warning"), messageFor(entry.code, entry.detail)),
      make(
        "div",
        { class: "card-actions" },
        (entry.isRetriable || entry.code === "worker_failed") &&
          button({ text: "Try again", kind: "small", onclick: () => handlers.retry(entry) }),
        this.#requestButton(),
      ),
    );
  }

  #succeed() {
    const { entry, handlers } = this;
    const { record } = entry;
    const { top = [], width, height } = record;
    if (width) this.facts.textContent = `${width} × ${height} · ${fileSize(entry.file.size)}`;
    this.body.replaceChildren(
      ...assessment(entry),
      make(
        "ol",
        { class: "bars" },
        top.map((prediction, place) => bar(prediction, isLikely(record, prediction, place))),
      ),
      make(
        "div",
        { class: "card-actions" },
        top.length > 0 &&
          state.explainable.has(entry.model) &&
          button({
            text: "Why?",
            symbol: "why",
            kind: "small",
            label: `Why? Explain the class of ${entry.file.name}`,
            onclick: () => showWhy(entry),
          }),
        state.index &&
          button({ text: "Find similar", symbol: "search", kind: "small", onclick: () => handlers.search(entry) }),
        this.#requestButton(),
      ),
    );
  }

  #requestButton() {
    const { request, file } = this.entry;
    if (!request) return null;
    return button({
      text: "API",
      symbol: "code",
      kind: "quiet small",
      label: `Show the request for ${file.name}`,
      onclick: () => showRequest(request),
    });
  }
}

function statusLine(text, isActive = false) {
  return make("p", { class: isActive ? "status active" : "status" }, text);
}

/** What the model says about its own answer: nothing if it is sure. */
function assessment({ record, calibration }) {
  if (record.unknown) return [notice("Unknown", "unknown", UNKNOWN_REASON)];
  if (!isUnsure(record)) return [];
  if (!calibration) return [unsureBadge()];
  return [notice("Unsure", "", make("strong", {}, make("bdi", {}, setText(record))), ` ${coverageText(calibration)}`)];
}

function notice(title, kind, ...text) {
  const badge = make("span", { class: `badge ${kind}`.trim() }, title);
  return make("p", { class: "notice" }, badge, " ", make("span", {}, text));
}

/** Whether a class can well be the right one: it is in the prediction set or, without a calibration, the first one. */
function isLikely({ prediction_set: classes, unknown }, { index }, place) {
  if (unknown) return false;
  return classes ? classes.some((other) => other.index === index) : place === 0;
}

/** A badge whose explanation is read by screen readers and shown on hover and focus. */
function unsureBadge() {
  return make(
    "span",
    { class: "badge", tabindex: "0", role: "note", "aria-label": `Unsure. ${UNSURE_REASON}` },
    "Unsure",
    make("span", { class: "tip", "aria-hidden": "true" }, UNSURE_REASON),
  );
}

function bar({ label, probability }, isAccented) {
  const fill = make("span", { class: isAccented ? "bar-fill likely" : "bar-fill" });
  fill.style.width = `${100 * probability}%`;
  return make(
    "li",
    {},
    make("bdi", { class: "bar-label", title: label }, shortLabel(label)),
    make("span", { class: "bar-value" }, percent(probability)),
    make("span", { class: "bar", "aria-hidden": "true" }, fill),
  );
}

class Classify extends HTMLElement {
  entries = [];
  running = 0;
  model = null;

  constructor() {
    super();
    state.watch("access", () => this.#resume()); // also while another view is shown
  }

  connectedCallback() {
    if (this.list) return;
    this.drop = make(
      "div",
      { class: "drop" },
      make("div", { class: "empty-symbol" }, icon("image")),
      make("h1", {}, "Classify images"),
      make("p", {}, "Drop images or folders here, paste an image, or choose files. They go to this server only."),
      make(
        "div",
        { class: "drop-actions" },
        pickers((files) => this.add(files)),
      ),
    );
    this.summary = make("p", { class: "summary", role: "status" });
    this.clear = button({ text: "Remove all", kind: "quiet", onclick: () => this.#removeAll() });
    this.bar = make(
      "div",
      { class: "toolbar", hidden: true },
      this.summary,
      make("span", { class: "spring" }),
      this.clear,
    );
    this.list = make("div", { class: "cards", role: "list", "aria-label": "Images", hidden: true });
    this.replaceChildren(this.drop, this.bar, this.list);
  }

  add(files) {
    for (const file of files) {
      const entry = { file, status: "waiting" };
      entry.card = document.createElement("tessella-card");
      entry.card.show(entry, {
        search: () => this.dispatchEvent(new CustomEvent("search-file", { bubbles: true, detail: entry })),
        retry: () => this.#queue(entry),
        remove: () => this.#remove(entry),
      });
      this.entries.push(entry);
      this.list.append(entry.card);
    }
    this.#next();
  }

  /** Classify with another model; images that are done are classified again. */
  setModel(model) {
    if (model === this.model) return;
    const isFirst = this.model === null;
    this.model = model;
    if (!isFirst) for (const entry of this.entries) this.#queue(entry);
  }

  /** The server has accepted a token: classify what has failed without it, and show what is possible now. */
  #resume() {
    for (const entry of this.entries) {
      if (entry.status === "failed" && entry.code === "unauthorized") this.#queue(entry);
      else if (entry.status === "done") entry.card.update();
    }
  }

  #queue(entry) {
    entry.controller?.abort();
    entry.status = "waiting";
    entry.card.update();
    this.#next();
  }

  #next() {
    this.#showSummary();
    while (this.running < UPLOADS_AT_ONCE) {
      const entry = this.entries.find(({ status }) => status === "waiting");
      if (!entry) return;
      this.running++;
      this.#classify(entry).finally(() => {
        this.running--;
        this.#next();
      });
    }
  }

  async #classify(entry) {
    const { signal } = (entry.controller = new AbortController());
    const set = (status) => {
      if (signal.aborted) return;
      entry.status = status;
      entry.card.update();
    };
    set("running");
    try {
      const { answer, request } = await state.backend.classify(entry.file, {
        model: this.model,
        signal,
        onwait: () => set("busy"),
      });
      if (signal.aborted) return;
      const [record] = answer.results;
      Object.assign(entry, { record, request, model: answer.model, calibration: answer.calibration });
      Object.assign(entry, { timing: answer.timing_ms, code: record.status, detail: record.message, isRetriable: false });
      set(record.status === "ok" ? "done" : "failed");
    } catch (error) {
      if (signal.aborted) return;
      const code = error.code ?? "internal_error";
      Object.assign(entry, { code, detail: error.detail, isRetriable: true, request: null });
      set("failed");
      if (entry.code === "unauthorized") this.#failWaiting(entry.code); // the person gave no token: do not ask again
    }
  }

  #failWaiting(code) {
    for (const entry of this.entries.filter(({ status }) => status === "waiting")) {
      Object.assign(entry, { status: "failed", code, isRetriable: true, request: null });
      entry.card.update();
    }
  }

  #remove(entry) {
    entry.controller?.abort();
    const place = this.entries.indexOf(entry);
    this.entries.splice(place, 1);
    URL.revokeObjectURL(entry.url);
    entry.card.remove();
    const near = this.entries[Math.min(place, this.entries.length - 1)];
    (near?.card.querySelector(".card-head button") ?? this.drop.querySelector("button")).focus();
    this.#showSummary();
  }

  #removeAll() {
    for (const entry of this.entries) {
      entry.controller?.abort();
      URL.revokeObjectURL(entry.url);
    }
    this.entries = [];
    this.list.replaceChildren();
    this.drop.querySelector("button").focus();
    this.#showSummary();
    announce("All images are removed");
  }

  #showSummary() {
    const count = (...kinds) => this.entries.filter(({ status }) => kinds.includes(status)).length;
    const [done, failed, open] = [count("done"), count("failed"), count("waiting", "running", "busy")];
    const total = this.entries.length;
    this.classList.toggle("has-images", total > 0);
    this.bar.hidden = this.list.hidden = total === 0;
    const records = this.entries.filter(({ status }) => status === "done").map(({ record }) => record);
    const unknown = records.filter((record) => record.unknown).length;
    const unsure = records.filter((record) => !record.unknown && isUnsure(record)).length;
    const last = this.entries.findLast(({ status }) => status === "done");
    const parts = [
      open ? `${number(total - open)} of ${images(total)}` : images(total),
      unknown && `${number(unknown)} unknown`,
      unsure && `${number(unsure)} unsure`,
      failed && `${number(failed)} failed`,
      !open && done && last && `last one in ${timingText(last.timing)}`,
    ];
    this.summary.textContent = parts.filter(Boolean).join(" · ");
    if (open || !total) return;
    const counts = [`${images(done)} classified`, unknown && `${number(unknown)} unknown`, failed && `${number(failed)} failed`];
    announce(counts.filter(Boolean).join(", "));
  }
}

customElements.define("tessella-card", Card);
customElements.define("tessella-classify", Classify);
