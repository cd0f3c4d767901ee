/** The functions of `api.js` for a page that holds the data itself. Vectors have 8 bits per number. */

import { messageOf } from "./text.js";

const NO_LABEL = 65_535;
const FORMULA = /^[=+\-@\t\r]/; // a spreadsheet runs text that begins with one of these

export class FileBackend {
  can = { classify: false, explain: false, teach: false, requests: false, enlarge: false };

  constructor(data) {
    this.data = data;
    this.size = data.keys.length;
    this.points = new Float32Array(bytesOf(data.points).buffer);
    this.vectors = new Int8Array(bytesOf(data.vectors).buffer);
    this.width = this.size ? this.vectors.length / this.size : 0;
    this.lengths = Float32Array.from({ length: this.size }, (_, i) => Math.sqrt(this.#dot(i, i)) || 1);
    this.places = new Map(data.labels.map(({ label }, place) => [label, place]));
  }

  async index() {
    const range = (values) => [
      values.reduce((a, b) => Math.min(a, b), Infinity),
      values.reduce((a, b) => Math.max(a, b), 0),
    ];
    return {
      rows: this.size,
      listed: this.size,
      title: this.data.title,
      model: this.data.model,
      has_map: this.size > 0,
      labels: this.data.labels,
      unknown: this.data.unknown ? this.data.unknown.filter(Boolean).length : null,
      width_range: this.size ? range(this.data.width) : [0, 0],
      height_range: this.size ? range(this.data.height) : [0, 0],
      heads: [],
    };
  }

  async row(i) {
    if (!(Number.isInteger(i) && i >= 0 && i < this.size)) throw new Error(messageOf("not_found"));
    return this.#item(i);
  }

  async map() {
    return this.points;
  }

  async labels() {
    return Uint16Array.from(this.data.label, (place) => place ?? NO_LABEL);
  }

  async thumbnail(row) {
    const picture = this.data.pictures[row];
    if (picture === null) throw new Error(messageOf("not_found"));
    return `data:image/jpeg;base64,${picture}`;
  }

  async select(filter, start, count) {
    const found = this.#matching(filter);
    const rows = found.slice(start, start + count).map((i) => this.#item(i));
    return { answer: { matching: found.length, rows }, request: null };
  }

  async search({ queries, top, start, min_score: least, filter, group_duplicates: isGrouped }) {
    const begun = performance.now();
    const [{ row: query }] = queries;
    const found = this.#matching(filter);
    const scores = new Float32Array(this.size);
    for (const i of found) scores[i] = this.#cosine(query, i);
    const order = found.filter((i) => i !== query && scores[i] >= (least ?? -1)).sort((a, b) => scores[b] - scores[a]);
    const neighbors = [];
    for (const i of order) {
      if (neighbors.length === start + top) break;
      const same = isGrouped && neighbors.find(({ row }) => this.#cosine(row, i) >= this.data.threshold);
      if (same) same.duplicates.push(i);
      else neighbors.push({ ...this.#item(i), score: scores[i], duplicates: [] });
    }
    const timing = { total: performance.now() - begun };
    neighbors.splice(0, start);
    return { answer: { neighbors, matching: found.length, rows: this.size, timing_ms: timing }, request: null };
  }

  async exportRows({ rows, filter, format }) {
    const items = (rows ?? this.#matching(filter)).map((i) => this.#item(i));
    if (format === "list") return new Blob(items.map(({ key }) => `${key}\n`));
    const assessed = this.data.unknown ? ["unknown", "set_size"] : [];
    const columns = ["row", "key", "label", "probability", "width", "height", ...assessed];
    const lines = items.map((item) => columns.map((name) => csvCell(item[name])));
    return new Blob([columns, ...lines].map((cells) => `${cells.join(",")}\n`));
  }

  #item(i) {
    const { keys, label, labels, probability, width, height, unknown, set_size: sizes } = this.data;
    const name = label[i] === null ? null : labels[label[i]].label;
    const item = { row: i, key: keys[i], label: name, probability: probability[i], width: width[i], height: height[i] };
    return unknown ? { ...item, unknown: unknown[i], set_size: sizes[i] } : item;
  }

  #dot(i, j) {
    const { vectors, width } = this;
    let sum = 0;
    for (let k = 0, a = i * width, b = j * width; k < width; k++) sum += vectors[a + k] * vectors[b + k];
    return sum;
  }

  #cosine(i, j) {
    return this.#dot(i, j) / (this.lengths[i] * this.lengths[j]);
  }

  #matching(filter) {
    const { label, width, height, unknown } = this.data;
    const labels = filter.label && new Set(filter.label.map((name) => this.places.get(name)));
    const isWithin = (value, least, most) => value >= (least ?? 0) && value <= (most ?? Infinity);
    const found = [];
    for (let i = 0; i < this.size; i++) {
      if (labels && !labels.has(label[i])) continue;
      if (typeof filter.unknown === "boolean" && unknown?.[i] !== filter.unknown) continue;
      if (!isWithin(width[i], filter.min_width, filter.max_width)) continue;
      if (!isWithin(height[i], filter.min_height, filter.max_height)) continue;
      if (filter.polygon && !isInside(this.points[2 * i], this.points[2 * i + 1], filter.polygon)) continue;
      found.push(i);
    }
    return found;
  }
}

function bytesOf(base64) {
  const text = atob(base64);
  return Uint8Array.from({ length: text.length }, (_, i) => text.charCodeAt(i));
}

function csvCell(value) {
  if (value === null) return "";
  if (typeof value === "number") return String(value);
  if (typeof value === "boolean") return value ? "True" : "False"; // as in the table that the server writes
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[,"\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Whether a point is inside a polygon: a line to its right crosses an odd number of edges. */
function isInside(x, y, polygon) {
  let isIn = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[ax, ay], [bx, by]] = [polygon[i], polygon[j]];
    if (ay > y !== by > y && x < ax + ((y - ay) / (by - ay)) * (bx - ax)) isIn = !isIn;
  }
  return isIn;
}
