/** Images from a person: chosen, photographed, dropped (folders too) and pasted. */

import { button, make, toast } from "./dom.js";
import { number } from "./text.js";

/** Make the buttons that choose or photograph images. take(files) receives them. */
export function pickers(take) {
  const input = (properties) =>
    make("input", {
      type: "file",
      hidden: true,
      accept: "image/*",
      onchange: (event) => {
        take([...event.target.files]);
        event.target.value = "";
      },
      ...properties,
    });
  const many = input({ multiple: true, class: "choose" });
  const camera = input({ capture: "environment", class: "photograph" });
  return [
    many,
    camera,
    button({ text: "Choose images", symbol: "upload", kind: "primary", onclick: () => many.click() }),
    button({ text: "Take a photo", symbol: "camera", kind: "touch-only", onclick: () => camera.click() }),
  ];
}

/** Receive images that are dropped anywhere on the page or pasted, except while a dialog covers the page. */
export function receive(take) {
  const veil = make("div", { class: "veil", hidden: true }, make("p", {}, "Drop the images here"));
  document.body.append(veil);
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const isCovered = () => document.querySelector("dialog[open]") !== null;
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    if (isCovered()) event.dataTransfer.dropEffect = "none";
    veil.hidden = isCovered();
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) veil.hidden = true;
  });
  document.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil.hidden = true;
    if (isCovered()) return;
    const { files, unreadable } = await droppedFiles(event.dataTransfer);
    take(files);
    if (unreadable) toast(`${number(unreadable)} dropped ${unreadable === 1 ? "item" : "items"} could not be read`);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || isCovered()) return;
    event.preventDefault();
    take(files);
  });
}

/** The files of a drop, with those in dropped folders, and how many files and folders could not be read. */
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return { files: [...transfer.files], unreadable: 0 };
  const found = { files: [], unreadable: 0 };
  for (const entry of entries) await collect(entry, found);
  return found;
}

async function collect(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file) found.files.push(file);
    else found.unreadable += 1;
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const part = await new Promise((resolve) => reader.readEntries(resolve, () => resolve(null)));
    if (!part) found.unreadable += 1;
    if (!part?.length) return;
    for (const child of part) await collect(child, found);
  }
}
