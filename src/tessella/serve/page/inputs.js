/** Images from a person: chosen, photographed, dropped (folders too) and pasted. */

import { button, make } from "./dom.js";

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
    take(await droppedFiles(event.dataTransfer));
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || isCovered()) return;
    event.preventDefault();
    take(files);
  });
}

/** The files of a drop, with those in dropped folders. */
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return files;
}

async function collect(entry, files) {
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return;
    for (const child of part) await collect(child, files);
  }
}
