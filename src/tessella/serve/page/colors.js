/** Colors of the style sheet as a canvas needs them. */

import { make } from "./dom.js";

const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

/** A color as the canvas writes it; CSS functions such as light-dark() are resolved by an element first. */
export function resolved(color) {
  const node = make("span", { hidden: true });
  node.style.color = color;
  document.body.append(node);
  const value = getComputedStyle(node).color;
  node.remove();
  return value;
}

/** The channels red, green, blue and opacity of a color, 0 to 255. */
export function channels(color) {
  probe.clearRect(0, 0, 1, 1);
  probe.fillStyle = color;
  probe.fillRect(0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data;
}
