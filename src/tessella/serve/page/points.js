/** Drawing and finding many points: WebGL where there is one, else a canvas; a grid finds the points of a region. */

const VERTEX = `
attribute vec2 position;
attribute vec4 color;
uniform vec2 center;
uniform vec2 scale;
uniform float size;
varying vec4 shade;
void main() {
  gl_Position = vec4((position - center) * scale, 0.0, 1.0);
  gl_PointSize = size;
  shade = color;
}`;
const FRAGMENT = `
precision mediump float;
varying vec4 shade;
void main() {
  float edge = length(gl_PointCoord - 0.5);
  float cover = shade.a * smoothstep(0.5, 0.38, edge);
  gl_FragColor = vec4(shade.rgb * cover, cover);
}`;

/** Draw points in colors, in a strided order, so the first n points are always an even sample. */
export class PointRenderer {
  #gl;
  #flat;
  #count = 0;
  #stride = 1;
  #positions = new Float32Array(); // in the order of drawing
  #colors = new Uint8Array();
  #uniforms = {};
  #buffers = {};

  constructor(canvas) {
    this.canvas = canvas;
    this.#gl = canvas.getContext("webgl", { antialias: false, premultipliedAlpha: true });
    if (this.#gl) this.#prepare();
    else this.#flat = canvas.getContext("2d");
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.#prepare();
      this.#upload("position", this.#positions);
      this.#upload("color", this.#colors);
      canvas.dispatchEvent(new Event("redraw"));
    });
  }

  get kind() {
    return this.#gl ? "webgl" : "2d";
  }

  setPoints(positions) {
    this.#count = positions.length / 2;
    this.#stride = strideOf(this.#count);
    this.#positions = new Float32Array(positions.length);
    for (let k = 0; k < this.#count; k++) {
      const i = this.#drawnAs(k);
      this.#positions[2 * k] = positions[2 * i];
      this.#positions[2 * k + 1] = positions[2 * i + 1];
    }
    this.#upload("position", this.#positions);
  }

  /** colors: one number per point, as its four bytes are in memory. */
  setColors(colors) {
    const ordered = new Uint32Array(this.#count);
    for (let k = 0; k < this.#count; k++) ordered[k] = colors[this.#drawnAs(k)];
    this.#colors = new Uint8Array(ordered.buffer);
    this.#upload("color", this.#colors);
  }

  /**
   * center: in map coordinates. scale: pixels of the canvas per unit. size: of a point, in pixels of the canvas.
   * share: of the points that are drawn, 0 to 1.
   */
  draw({ x, y, scale, size, share }) {
    const { width, height } = this.canvas;
    const count = Math.ceil(this.#count * share);
    if (this.#flat) return this.#drawFlat({ x, y, scale, size, count });
    const gl = this.#gl;
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.#uniforms.center, x, y);
    gl.uniform2f(this.#uniforms.scale, (2 * scale) / width, (2 * scale) / height);
    gl.uniform1f(this.#uniforms.size, size);
    gl.drawArrays(gl.POINTS, 0, count);
    return undefined;
  }

  /** The point that is drawn as number k. */
  #drawnAs(k) {
    return (k * this.#stride) % this.#count;
  }

  #prepare() {
    const gl = this.#gl;
    const program = gl.createProgram();
    for (const [type, source] of [
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, FRAGMENT],
    ]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    for (const name of ["center", "scale", "size"]) this.#uniforms[name] = gl.getUniformLocation(program, name);
    for (const [name, count, type, isNormalized] of [
      ["position", 2, gl.FLOAT, false],
      ["color", 4, gl.UNSIGNED_BYTE, true],
    ]) {
      this.#buffers[name] = gl.createBuffer();
      const place = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.#buffers[name]);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, count, type, isNormalized, 0, 0);
    }
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  #upload(name, data) {
    const gl = this.#gl;
    if (!gl) return;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.#buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
  }

  #drawFlat({ x, y, scale, size, count }) {
    const { width, height } = this.canvas;
    const [points, colors, context] = [this.#positions, this.#colors, this.#flat];
    context.clearRect(0, 0, width, height);
    let last = "";
    for (let i = 0; i < count; i++) {
      const left = width / 2 + (points[2 * i] - x) * scale;
      const top = height / 2 - (points[2 * i + 1] - y) * scale;
      if (left < -size || top < -size || left > width + size || top > height + size) continue;
      const color = `rgba(${colors[4 * i]},${colors[4 * i + 1]},${colors[4 * i + 2]},${colors[4 * i + 3] / 255})`;
      if (color !== last) context.fillStyle = last = color;
      context.fillRect(left - size / 2, top - size / 2, size, size);
    }
  }
}

/** A step without a common divisor with `count`, near the golden section, which spreads every beginning evenly. */
function strideOf(count) {
  const divisor = (a, b) => (b ? divisor(b, a % b) : a);
  let stride = Math.max(Math.round(count * 0.618), 1);
  while (divisor(stride, count) > 1) stride++;
  return stride;
}

const CELLS = 256; // per side

/** Points sorted into the cells of a grid over [-1, 1] x [-1, 1]. */
export class PointGrid {
  constructor(positions) {
    const count = positions.length / 2;
    this.positions = positions;
    this.starts = new Uint32Array(CELLS * CELLS + 1);
    this.order = new Uint32Array(count);
    const cells = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      cells[i] = CELLS * cellOf(positions[2 * i + 1]) + cellOf(positions[2 * i]);
      this.starts[cells[i] + 1]++;
    }
    for (let cell = 0; cell < CELLS * CELLS; cell++) this.starts[cell + 1] += this.starts[cell];
    const next = this.starts.slice();
    for (let i = 0; i < count; i++) this.order[next[cells[i]]++] = i;
  }

  /** Return the points in a rectangle, or null if there are more than `limit`. */
  within({ left, right, bottom, top }, limit) {
    const found = [];
    const { positions } = this;
    for (let row = cellOf(bottom); row <= cellOf(top); row++) {
      // cells of a row are adjacent, and so are their points
      const end = this.starts[CELLS * row + cellOf(right) + 1];
      for (let k = this.starts[CELLS * row + cellOf(left)]; k < end; k++) {
        const i = this.order[k];
        const [x, y] = [positions[2 * i], positions[2 * i + 1]];
        if (x < left || x > right || y < bottom || y > top) continue;
        if (found.length === limit) return null;
        found.push(i);
      }
    }
    return found;
  }

  /** Return the point nearest to a position, at most `radius` away; -1 if there is none. */
  nearest(x, y, radius) {
    let best = -1;
    let least = radius * radius;
    const box = { left: x - radius, right: x + radius, bottom: y - radius, top: y + radius };
    for (const i of this.within(box, Infinity)) {
      const distance = (this.positions[2 * i] - x) ** 2 + (this.positions[2 * i + 1] - y) ** 2;
      if (distance <= least) [best, least] = [i, distance];
    }
    return best;
  }
}

function cellOf(value) {
  return Math.min(Math.max(Math.floor(((value + 1) / 2) * CELLS), 0), CELLS - 1);
}
