/** The frame of the page: navigation, model, theme, and the views. */

import { announce, button, emptyState, icon, make, toast } from "./dom.js";
import { receive } from "./inputs.js";
import { state } from "./state.js";
import { printable } from "./text.js";
import { Thumbnails } from "./thumbnails.js";
import "./classify.js";
import "./gallery.js";
import "./map.js";
import "./teach.js";

const THEME = "tessella-theme";
const THEMES = { auto: "Theme of the system", light: "Light theme", dark: "Dark theme" };
const VIEWS = [
  ["classify", "Classify", "image"],
  ["gallery", "Gallery", "grid"],
  ["map", "Map", "map"],
  ["teach", "Teach", "check"],
];

/** <tessella-app>: the whole page. */
class App extends HTMLElement {
  views = new Map();

  async run(backend) {
    state.backend = backend;
    state.thumbnails = new Thumbnails((row, size) => backend.thumbnail(row, size));
    this.#build();
    this.#setTheme(storedTheme());
    backend.onaccess = () => this.#resume();
    const models = backend.can.classify ? this.#loadModels() : null; // with the index, so that a token is asked for once
    await this.#loadIndex();
    window.addEventListener("hashchange", () => this.#route());
    state.watch("query", () => this.#showQuery());
    this.addEventListener("search-file", ({ detail }) => this.#searchFile(detail.file));
    if (backend.can.classify) {
      receive((files) => this.#take(files));
      await models;
    }
    await this.#route();
    this.dataset.ready = "";
  }

  #build() {
    const shown = VIEWS.filter(([name]) => state.backend.can[name] ?? (name === "gallery" || name === "map"));
    this.links = shown.map(([name, title, symbol]) =>
      make("a", { href: `#/${name}`, class: "nav-link", "data-view": name }, icon(symbol), make("span", {}, title)),
    );
    this.first = shown[0][0];
    this.model = make("select", {
      id: "model",
      class: "model",
      onchange: () => this.views.get("classify")?.setModel(this.model.value),
    });
    this.modelField = make(
      "div",
      { class: "control", hidden: true },
      make("label", { class: "wide-only", for: "model" }, "Model"),
      this.model,
    );
    this.theme = button({ label: "Theme", symbol: "auto", kind: "quiet", onclick: () => this.#nextTheme() });
    this.collection = make("bdi", { class: "muted collection", hidden: true });
    this.main = make("main", { id: "main", tabindex: "-1" });
    const mark = make(
      "span",
      { class: "mosaic", "aria-hidden": "true" },
      [1, 2, 3, 4].map(() => make("i", {})),
    );
    const skip = make(
      "a",
      { class: "skip", href: "#main", onclick: (event) => (event.preventDefault(), this.main.focus()) },
      "Skip to the content",
    );
    this.replaceChildren(
      skip,
      make(
        "header",
        { class: "top" },
        make("a", { href: `#/${this.first}`, class: "brand" }, mark, make("span", {}, "Tessella")),
        make("nav", { "aria-label": "Views" }, this.links),
        this.collection,
        make("span", { class: "spring" }),
        this.modelField,
        this.theme,
      ),
      this.main,
      make("div", { id: "announcements", class: "hidden-text", role: "status", "aria-live": "polite" }),
      make("div", { id: "toasts", "aria-hidden": "true" }),
    );
  }

  async #loadIndex() {
    try {
      state.index = await state.backend.index();
      state.indexError = null;
    } catch (error) {
      state.indexError = error.message;
    }
    this.collection.textContent = printable(state.index?.title ?? "");
    this.collection.hidden = !state.index?.title;
  }

  /** Load what has failed without a token, now that the server has accepted one. */
  async #resume() {
    const models = this.hasModels === undefined ? this.#loadModels() : null;
    if (state.indexError) await this.#loadIndex();
    await models;
    state.grantAccess();
    if (this.dataset.ready !== undefined) await this.#route();
  }

  async #loadModels() {
    try {
      const { answer } = await state.backend.models();
      if (state.backend.can.explain) {
        state.explainable = new Set(answer.data.filter((model) => model.can_explain).map(({ id }) => id));
      }
      const classifiers = answer.data.filter(({ num_classes: classes }) => classes !== 0);
      this.model.replaceChildren(...classifiers.map(({ id }) => make("option", { value: id }, id)));
      const preferred = classifiers.find(({ default_for: uses }) => uses?.includes("classify")) ?? classifiers[0];
      if (preferred) this.model.value = preferred.id;
      this.#view("classify").setModel(this.model.value || null);
      this.hasModels = classifiers.length > 0;
    } catch (error) {
      toast(error.message);
    }
  }

  // --- views --------------------------------------------------------------------------------------------------------

  async #route() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const [path, parameters] = location.hash.replace(/^#\//, "").split("?");
    const name = this.links.some(({ dataset }) => dataset.view === path) ? path : this.first;
    for (const link of this.links) {
      if (link.dataset.view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.dataset.view = name;
    const title = VIEWS.find(([view]) => view === name)[1];
    document.title = `${title} · Tessella`;
    if (name === "gallery" && state.index) await this.#readQuery(new URLSearchParams(parameters));
    if (turn !== this.turn) return; // another view was opened meanwhile
    const view = this.#view(name);
    this.modelField.hidden = name !== "classify" || !this.hasModels;
    if (this.main.firstElementChild !== view) {
      this.main.replaceChildren(view);
      announce(title);
    }
    if (this.mustFocus) view.querySelector(".query:not([hidden]) h2, h1")?.focus({ preventScroll: true });
    this.mustFocus = false;
  }

  #view(name) {
    if (name !== "classify" && !state.index) return this.#noIndex();
    if (!this.views.has(name)) this.views.set(name, document.createElement(`tessella-${name}`));
    return this.views.get(name);
  }

  #noIndex() {
    if (state.indexError) {
      const action = button({ text: "Try again", kind: "primary", onclick: () => location.reload() });
      return emptyState({
        symbol: "warning",
        heading: "h1",
        title: "The index cannot be shown",
        text: state.indexError,
        action,
      });
    }
    return emptyState({
      symbol: "grid",
      heading: "h1",
      title: "No collection is open",
      text: "Start the server with the folder of a run to browse, search and map its images here.",
      command: "tessella serve --index RUN",
    });
  }

  // --- the query, which is part of the address so that the browser's back button works ------------------------------

  /** Put the query into the address, which shows the gallery. */
  #showQuery() {
    const { query } = state;
    const address = query ? `#/gallery?${query.file ? `image=${query.number}` : `row=${query.row}`}` : "#/gallery";
    if (location.hash !== address) {
      this.mustFocus = this.main.contains(document.activeElement); // on what is about to disappear
      location.hash = address;
    }
    if (query) window.scrollTo(0, 0);
  }

  /** Take the query from the address. */
  async #readQuery(parameters) {
    const row = parameters.get("row");
    const image = this.files?.get(parameters.get("image"));
    if (image && state.query !== image) state.setQuery(image);
    else if (row !== null && String(state.query?.row) !== row) {
      try {
        const item = await state.backend.row(Number(row));
        state.setQuery({ row: item.row, item });
      } catch (error) {
        toast(error.message);
        location.hash = "#/gallery";
      }
    } else if (row === null && !image && state.query) state.setQuery(null);
  }

  #searchFile(file) {
    this.files ??= new Map();
    const query = { file, url: URL.createObjectURL(file), number: this.files.size + 1 };
    this.files.set(String(query.number), query);
    state.setQuery(query);
  }

  /** Images that were dropped or pasted: in the gallery a query, elsewhere to be classified. */
  #take(files) {
    if (!files.length) return;
    if (this.dataset.view === "gallery" && state.index && files.length === 1) {
      this.#searchFile(files[0]);
      return;
    }
    location.hash = "#/classify";
    this.#view("classify").add(files);
  }

  // --- theme --------------------------------------------------------------------------------------------------------

  #nextTheme() {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    storeTheme(next);
    this.#setTheme(next);
    announce(THEMES[next]);
  }

  #setTheme(name) {
    const theme = Object.hasOwn(THEMES, name) ? name : "auto";
    document.documentElement.dataset.theme = theme;
    const symbol = { auto: "auto", light: "sun", dark: "moon" }[theme];
    this.theme.replaceChildren(icon(symbol));
    this.theme.title = THEMES[theme];
    this.theme.setAttribute("aria-label", `${THEMES[theme]}; change`);
    document.dispatchEvent(new Event("themechange"));
  }
}

/** The theme that was chosen here before; a page from a file may have no storage. */
function storedTheme() {
  try {
    return localStorage.getItem(THEME) ?? "auto";
  } catch {
    return "auto";
  }
}

function storeTheme(name) {
  try {
    localStorage.setItem(THEME, name);
  } catch {
    // it holds until the page is closed
  }
}

customElements.define("tessella-app", App);
