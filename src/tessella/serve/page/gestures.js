/** Mouse, touch and keys on the map: pan, zoom, lasso, hover and open. */

const STEP = 60; // pixels per press of an arrow key
const CLICK = 5; // pixels: a pointer that moved less has clicked
const GAP = 4; // pixels between the corners of a lasso
const CORNERS = 256; // of a polygon that is sent to the server

export class MapGestures {
  lasso = null; // corners on the screen while it is drawn
  #pointers = new Map();
  #moved = 0;

  constructor(map, canvas) {
    this.map = map;
    this.canvas = canvas;
    for (const kind of [
      "pointerdown",
      "pointermove",
      "pointerup",
      "pointercancel",
      "pointerleave",
      "wheel",
      "keydown",
      "dblclick",
    ]) {
      canvas.addEventListener(kind, (event) => this[kind](event), { passive: false });
    }
  }

  pointerdown(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, this.#place(event));
    this.#moved = 0;
    if (this.map.isLasso) this.lasso = [this.#place(event)];
    this.map.hover(-1);
  }

  pointermove(event) {
    const place = this.#place(event);
    const last = this.#pointers.get(event.pointerId);
    if (!last) {
      if (event.pointerType === "mouse") this.map.hover(this.map.pointAt(place.left, place.top), place.left, place.top);
      return;
    }
    this.#moved += Math.hypot(place.left - last.left, place.top - last.top);
    if (this.lasso) this.#extend(place);
    else if (this.#pointers.size === 2) this.#pinch(event.pointerId, last, place);
    else this.map.move(last.left - place.left, place.top - last.top);
    this.#pointers.set(event.pointerId, place);
  }

  pointerup(event) {
    if (!this.#pointers.delete(event.pointerId)) return;
    if (this.lasso) {
      const corners = thinned(this.lasso).map(({ left, top }) => this.map.toMap(left, top));
      this.lasso = null;
      this.map.choose(corners.map(({ x, y }) => [x, y]));
    } else if (this.#moved < CLICK) {
      const { left, top } = this.#place(event);
      this.map.open(this.map.pointAt(left, top, event.pointerType === "mouse" ? 12 : 22));
    }
  }

  pointercancel(event) {
    this.#pointers.delete(event.pointerId);
    this.lasso = null;
    this.map.draw();
  }

  pointerleave() {
    this.map.hover(-1);
  }

  wheel(event) {
    event.preventDefault();
    const { left, top } = this.#place(event);
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.map.zoom(Math.exp((-event.deltaY * lines) / (event.ctrlKey ? 120 : 400)), left, top);
  }

  dblclick(event) {
    const { left, top } = this.#place(event);
    this.map.zoom(2, left, top);
  }

  keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.map.size();
    const work = {
      ArrowLeft: () => this.map.move(-STEP, 0),
      ArrowRight: () => this.map.move(STEP, 0),
      ArrowUp: () => this.map.move(0, STEP),
      ArrowDown: () => this.map.move(0, -STEP),
      "+": () => this.map.zoom(1.6),
      "=": () => this.map.zoom(1.6),
      "-": () => this.map.zoom(1 / 1.6),
      0: () => this.map.fit(),
      Enter: () => this.map.open(this.map.pointAt(width / 2, height / 2, Math.min(width, height) / 2)),
      Escape: () => this.pointercancel(event),
    }[event.key];
    if (!work) return;
    event.preventDefault();
    work();
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { left: event.clientX - box.left, top: event.clientY - box.top };
  }

  #extend(place) {
    const last = this.lasso.at(-1);
    if (Math.hypot(place.left - last.left, place.top - last.top) < GAP) return;
    this.lasso.push(place);
    this.map.draw();
  }

  #pinch(id, last, place) {
    const [other] = [...this.#pointers].filter(([key]) => key !== id).map(([, value]) => value);
    const distance = ({ left, top }) => Math.hypot(left - other.left, top - other.top) || 1;
    this.map.zoom(distance(place) / distance(last), (place.left + other.left) / 2, (place.top + other.top) / 2);
    this.map.move((last.left - place.left) / 2, (place.top - last.top) / 2);
  }
}

/** At most CORNERS corners of a lasso. */
function thinned(corners) {
  const step = Math.ceil(corners.length / CORNERS);
  return corners.filter((_, i) => i % step === 0);
}
