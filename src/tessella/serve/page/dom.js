/**
 * Building the page. Every label, file name and message becomes a text node or an attribute without a meaning for
 * scripts; nothing is ever parsed as markup, which the Content Security Policy (Trusted Types) enforces as well.
 */

import { printable } from "./text.js";

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "textContent", "files", "indeterminate"]);

const SHOWN = new Set(["title", "alt", "aria-label", "placeholder"]); // attributes that people read

/** Text from anywhere as it is shown: hidden characters as their codes, except for line breaks. */
function shown(text) {
  return text.split("\n").map(printable).join("\n");
}

/** Make an element; properties named `on...` are event listeners; children are nodes or text, null is left out. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) node[name] = value;
    else if (value !== false) node.setAttribute(name, value === true ? "" : SHOWN.has(name) ? shown(String(value)) : String(value));
  }
  const present = children.flat().filter((child) => child !== undefined && child !== null && child !== false);
  node.append(...present.map((child) => (typeof child === "string" ? shown(child) : child)));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  auto: ["M12 3a9 9 0 1 0 0 18Z M12 3a9 9 0 0 1 0 18"],
  camera: ["M4 8h3l2-3h6l2 3h3v11H4Z", "M12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7Z"],
  check: ["M5 12.5 10 17 19 7"],
  close: ["M6 6l12 12M18 6 6 18"],
  code: ["M8 7l-5 5 5 5M16 7l5 5-5 5"],
  copy: ["M9 9h11v11H9Z", "M5 15H4V4h11v1"],
  download: ["M12 4v11M7 11l5 5 5-5M5 20h14"],
  fit: ["M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5"],
  grid: ["M4 4h7v7H4ZM13 4h7v7h-7ZM4 13h7v7H4ZM13 13h7v7h-7Z"],
  image: ["M4 5h16v14H4Z", "M4 16l5-5 4 4 3-3 4 4", "M15.5 9.5h.01"],
  lasso: ["M12 4c5 0 8 2.5 8 6s-3 6-8 6-8-2.5-8-6 3-6 8-6Z", "M8 15.5c-1.500 1.500-1 4 1 4.500"],
  map: ["M6 7h.01M10 12h.01M16 6h.01M18 13h.01M7 18h.01M14 17h.01M12 8h.01M18 18h.01"],
  minus: ["M6 12h12"],
  moon: ["M19 14.500A7.500 7.500 0 0 1 9.500 5 7.500 7.500 0 1 0 19 14.500Z"],
  move: ["M12 3v18M3 12h18M9 6l3-3 3 3M9 18l3 3 3-3M6 9l-3 3 3 3M18 9l3 3-3 3"],
  plus: ["M12 6v12M6 12h12"],
  save: ["M6 4h12v16l-6-4-6 4Z"],
  search: ["M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12Z", "M15.500 15.500 20 20"],
  sun: [
    "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Z",
    "M12 3v1.500M12 19.500V21M3 12h1.500M19.500 12H21M5.600 5.600l1 1M17.400 17.400l1 1M5.600 18.400l1-1M17.400 6.600l1-1",
  ],
  undo: ["M9 7 5 11l4 4M5 11h9a5 5 0 0 1 0 10h-2"],
  upload: ["M12 16V5M7 9l5-5 5 5M5 20h14"],
  why: ["M9 9a3 3 0 1 1 4.500 2.600c-1 .600-1.500 1.200-1.500 2.400", "M12 17.500h.01", "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Z"],
  warning: ["M12 4 21 19H3Z", "M12 10v4M12 16.500h.01"],
};

/** Make an icon; it is decoration, so the control that contains it needs a name of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  for (const data of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", data);
    svg.append(path);
  }
  return svg;
}

/** Make a button with an optional icon. `label` is its name for screen readers if it shows no text. */
export function button({ text = "", label, symbol, kind = "", ...properties }) {
  return make(
    "button",
    { type: "button", class: `button ${kind}`.trim(), "aria-label": label, title: text ? null : label, ...properties },
    symbol && icon(symbol),
    text && make("span", {}, text),
  );
}

/** Tell a change to screen readers without moving the focus. */
export function announce(text) {
  const region = document.getElementById("announcements");
  if (region) region.textContent = shown(text);
}

/** Show a short message that disappears by itself. */
export function toast(text) {
  const node = make("div", { class: "toast" }, text);
  document.getElementById("toasts")?.append(node);
  announce(text);
  setTimeout(() => node.remove(), 4000);
}

/** Return a function that calls `work` once no further call has come for `delay` milliseconds. */
export function debounce(work, delay) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), delay);
  };
}

/** Copy text, and say so. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("The browser does not allow copying here; select the text instead");
  }
}

/** Offer a blob to the user as a file download. */
export function saveFile(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * An empty state: what would be here, and what to do so that it is. command: shown with a button to copy it. heading: the
 * element of the title, h1 if nothing else is on the page.
 */
export function emptyState({ symbol, title, text, command, action, heading = "h2" }) {
  return make(
    "div",
    { class: "empty" },
    make("div", { class: "empty-symbol" }, icon(symbol)),
    make(heading, {}, title),
    make("p", {}, text),
    command &&
      make(
        "div",
        { class: "command" },
        make("code", {}, command),
        button({ label: "Copy the command", symbol: "copy", kind: "quiet", onclick: () => copyText(command) }),
      ),
    action,
  );
}

/** What is shown if the index has no image. heading: as for `emptyState`. */
export function noImages(heading = "h2") {
  const text = "The index has no image to show.";
  return emptyState({ symbol: "grid", heading, title: "There are no images", text });
}

/** What is shown instead of results if a request failed. again(): sends it again. */
export function failure(error, again) {
  const action = button({ text: "Try again", kind: "primary", onclick: again });
  return emptyState({ symbol: "warning", title: "This did not work", text: error.message, action });
}
