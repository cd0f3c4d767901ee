/** Dialogs: the request behind a result, and the token of a protected server. */

import { button, copyText, icon, make } from "./dom.js";
import { curlCommand, jsonText, pythonProgram } from "./snippets.js";
import { milliseconds, timingText } from "./text.js";

const TABS = [
  ["curl", "curl", curlCommand],
  ["python", "Python", pythonProgram],
  ["json", "Answer (JSON)", (request) => jsonText(request.answer, shortened, 2)],
];

const TOKEN_TEXT = /^[ -~]+$/; // others are in no header that a browser can send, and the server has none

/** Long lists of numbers, such as embeddings, and pictures are cut in the view of the answer. */
function shortened(key, value) {
  if (typeof value === "string" && value.length > 2000) return `${value.slice(0, 60)}… ${value.length - 60} more`;
  const isLong = Array.isArray(value) && value.length > 64 && typeof value[0] === "number";
  return isLong ? [...value.slice(0, 8), `… ${value.length - 8} more`] : value;
}

/** Show a request as a curl command, a Python program and its answer, each with a button to copy it. */
export function showRequest(request) {
  const code = make("pre", {
    class: "code",
    tabindex: "0",
    role: "tabpanel",
    id: "request-text",
    "aria-label": "Text",
  });
  const tabs = TABS.map(([name, title, write]) =>
    make(
      "button",
      {
        type: "button",
        role: "tab",
        class: "tab",
        id: `request-${name}`,
        "aria-controls": "request-text",
        onclick: () => choose(name, write),
      },
      title,
    ),
  );
  function choose(name, write) {
    code.textContent = write(request);
    code.setAttribute("aria-labelledby", `request-${name}`);
    for (const tab of tabs) {
      const isChosen = tab.id === `request-${name}`;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
    }
  }
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "Form of the request" }, tabs);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.click();
    next.focus();
  });
  const inServer = timingText(request.answer.timing_ms);
  const times = [`${milliseconds(request.elapsed)} in the browser`, inServer && `${inServer} in the server`];
  const dialog = makeDialog(
    "Request",
    make("p", { class: "muted" }, times.filter(Boolean).join(", of which ")),
    list,
    code,
    make(
      "div",
      { class: "dialog-actions" },
      button({ text: "Copy", symbol: "copy", kind: "primary", onclick: () => copyText(code.textContent) }),
    ),
  );
  choose(TABS[0][0], TABS[0][2]);
  openDialog(dialog);
}

/** Make the button that shows the request behind what is in view; it is hidden until `setRequest` gives it one. */
export function makeRequestButton() {
  let request = null;
  const node = button({
    text: "API",
    symbol: "code",
    kind: "quiet",
    label: "Show the request",
    title: "This request as curl or Python, and its answer",
    hidden: true,
    onclick: () => showRequest(request),
  });
  node.setRequest = (value) => {
    request = value;
    node.hidden = !value;
  };
  return node;
}

/** Ask for the server's token; resolves to null if the person cancels. */
export function askToken(isRejected) {
  return new Promise((resolve) => {
    let token = null;
    const input = make("input", { type: "password", id: "token", autocomplete: "off", required: true });
    const refusal = make(
      "p",
      { class: "error", role: "alert", hidden: !isRejected },
      icon("warning"),
      "The server did not accept this token.",
    );
    const form = make(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          const text = input.value.trim();
          if (!text) return;
          if (TOKEN_TEXT.test(text)) {
            token = text;
            dialog.close();
          } else {
            refusal.replaceChildren(icon("warning"), "A token has no such characters. Copy it again.");
            refusal.hidden = false;
            input.select();
          }
        },
      },
      make("p", {}, "The person who runs the server can give it to you. It is kept until you close this tab."),
      refusal,
      make("label", { for: "token" }, "Token"),
      input,
      make("div", { class: "dialog-actions" }, make("button", { class: "button primary" }, "Continue")),
    );
    const dialog = makeDialog("This server needs a token", form);
    dialog.addEventListener("close", () => resolve(token || null));
    openDialog(dialog);
    input.focus();
  });
}

/** Make a modal dialog with a title and a button that closes it. */
export function makeDialog(title, ...children) {
  const heading = make("h2", { id: `dialog-${crypto.getRandomValues(new Uint32Array(1))[0]}` }, title);
  const close = button({ label: "Close", symbol: "close", kind: "quiet", onclick: () => dialog.close() });
  const dialog = make(
    "dialog",
    { "aria-labelledby": heading.id },
    make("div", { class: "dialog-head" }, heading, close),
    ...children,
  );
  return dialog;
}

/** Open a dialog, and remove it when it is closed; the focus returns to where it was. */
export function openDialog(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // on the backdrop
  dialog.showModal();
}
