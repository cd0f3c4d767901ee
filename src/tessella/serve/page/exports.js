/** The menu that saves images as a CSV file or a list of files. */

import { button, icon, make, saveFile, toast } from "./dom.js";
import { state } from "./state.js";
import { images } from "./text.js";

const IN_ARCHIVES = "Images inside archives have no files to list. Export a table instead.";

/** Make the menu. rows(): what is saved, as {rows} or {filter}. */
export function exportMenu(rows) {
  const summary = make("summary", { class: "button" }, icon("download"), make("span", {}, "Export"));
  const note = make("p", { class: "muted" });
  const clear = button({ text: "Clear the selection", kind: "link", onclick: () => state.clearSelection() });
  const save = async (format, name, type) => {
    menu.open = false;
    summary.focus();
    try {
      const blob = await state.backend.exportRows({ ...rows(), format });
      saveFile(new Blob([blob], { type }), name);
    } catch (error) {
      toast(error.code === "special_file" ? IN_ARCHIVES : error.message);
    }
  };
  const menu = make(
    "details",
    { class: "menu" },
    summary,
    make(
      "div",
      { class: "menu-body" },
      note,
      button({ text: "Table (CSV)", kind: "item", onclick: () => save("csv", "images.csv", "text/csv") }),
      button({ text: "List of files", kind: "item", onclick: () => save("list", "images.txt", "text/plain") }),
      clear,
    ),
  );
  const show = () => {
    const { size } = state.selection;
    summary.querySelector("span").textContent = size ? `Export ${images(size)}` : "Export";
    const all = state.query ? "the images shown are saved." : "all images that match are saved.";
    note.textContent = size ? `${images(size)} selected` : `No image is selected: ${all}`;
    clear.hidden = !size;
  };
  for (const part of ["selection", "query"]) state.watch(part, show);
  show();
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    summary.focus();
  });
  menu.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
  });
  return menu;
}
