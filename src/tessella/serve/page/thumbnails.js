/** Thumbnails of indexed images: a few requests at a time, the most recent first, and a limited number in memory. */

const DOWNLOADS_AT_ONCE = 6;
const KEPT = 600;

export class Thumbnails {
  #load;
  #kept = new Map(); // "row/size": {promise of an address, wanted: isWanted of all who wait for it}, in order of use
  #waiting = [];
  #running = 0;

  /** load(row, size): resolves to an address for an <img>. */
  constructor(load) {
    this.#load = load;
  }

  /**
   * Return the address of a thumbnail. isWanted: asked before it is requested; if everyone who waits for this thumbnail
   * says no, the result is null.
   */
  address(row, size, isWanted) {
    const key = `${row}/${size}`;
    const known = this.#kept.get(key);
    if (known) {
      this.#kept.delete(key);
      this.#kept.set(key, known);
      known.wanted?.push(isWanted);
      return known.promise;
    }
    const entry = { wanted: [isWanted] };
    const promise = new Promise((resolve, reject) => {
      this.#waiting.push({ row, size, key, entry, resolve, reject });
    });
    entry.promise = promise;
    this.#kept.set(key, entry);
    promise.catch(() => this.#kept.delete(key));
    this.#trim();
    this.#next();
    return promise;
  }

  #next() {
    while (this.#running < DOWNLOADS_AT_ONCE && this.#waiting.length) {
      const task = this.#waiting.pop();
      const { wanted } = task.entry;
      task.entry.wanted = null; // from here on it is requested, or forgotten
      if (!wanted.some((isWanted) => isWanted())) {
        this.#kept.delete(task.key);
        task.resolve(null);
        continue;
      }
      this.#running++;
      this.#load(task.row, task.size)
        .then(task.resolve, task.reject)
        .finally(() => {
          this.#running--;
          this.#next();
        });
    }
  }

  #trim() {
    for (const [key, { promise }] of this.#kept) {
      if (this.#kept.size <= KEPT) return;
      this.#kept.delete(key);
      promise.then(
        (address) => address?.startsWith("blob:") && URL.revokeObjectURL(address),
        () => {},
      );
    }
  }
}

let observer = null;
const starts = new WeakMap();

/** Call `start` once when an element is about to come into view. */
export function whenNear(element, start) {
  observer ??= new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        starts.get(target)?.();
        starts.delete(target);
      }
    },
    { rootMargin: "300px" },
  );
  starts.set(element, start);
  observer.observe(element);
}
