/** What the views share: the source of data, the filters, the query, the selected images and the marks of Teach. */

export const NO_FILTER = {
  label: [],
  unknown: null,
  min_width: null,
  max_width: null,
  min_height: null,
  max_height: null,
  polygon: null,
};

class State extends EventTarget {
  backend = null;
  index = null; // facts of the index; null if there is none
  indexError = null;
  explainable = new Set(); // names of the models whose classes the server can explain
  filter = { ...NO_FILTER };
  query = null; // {row, item} or {file, url}
  selection = new Map(); // rows that are selected for an export
  thumbnails = null;

  setFilter(changes) {
    this.filter = { ...this.filter, ...changes };
    this.#changed("filter");
  }

  setQuery(query) {
    this.query = query;
    this.#changed("query");
  }

  select(item, on) {
    if (on) this.selection.set(item.row, item);
    else this.selection.delete(item.row);
    this.#changed("selection");
  }

  clearSelection() {
    this.selection.clear();
    this.#changed("selection");
  }

  /** Call `work` now and whenever a part changes; the returned function ends that. */
  watch(part, work) {
    this.addEventListener(part, work);
    return () => this.removeEventListener(part, work);
  }

  /** The server has accepted a token: views load again what has failed without it. */
  grantAccess() {
    this.#changed("access");
  }

  #changed(part) {
    this.dispatchEvent(new Event(part));
  }
}

export const state = new State();

/** The filter as the server reads it: without the conditions that are not set. */
export function filterJson(filter) {
  const set = ([, value]) => value !== null && !(Array.isArray(value) && value.length === 0);
  return Object.fromEntries(Object.entries(filter).filter(set));
}

export function isFiltered(filter) {
  return Object.keys(filterJson(filter)).length > 0;
}

/** Whether the same labels are chosen after a click on one of them. */
export function toggled(labels, label) {
  return labels.includes(label) ? labels.filter((other) => other !== label) : [...labels, label];
}
