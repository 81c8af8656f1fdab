// The page's frames: a slider, images with overlay and points, and a cloud to turn. No library, no network.
"use strict";

const byId = (id) => document.getElementById(id);
const spec = JSON.parse(byId("spec").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const rgba = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // as a canvas stores it
const FAR = 60; // metres, where the colours of distance end
const UNSEEN = 255;

// From blue over green to yellow, even in brightness: viridis at five places.
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function ramp(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (RAMP.length - 1), low = Math.floor(at);
  return RAMP[low].map((c, i) => Math.round(c + (at - low) * (RAMP[low + 1][i] - c)));
}

/** A cloud on a canvas: drag to turn, wheel or two fingers to zoom, Shift and drag to move, arrow keys and + −. */
class Cloud {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = new Float32Array(0);
    this.colors = new Uint32Array(0);
    this.fingers = new Map();
    this.home = [0, 0, 0]; // the middle of the points
    this.reset(false);
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); this.fingers.set(e.pointerId, [e.clientX, e.clientY]); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => this.fingers.delete(e.pointerId));
    canvas.addEventListener("pointermove", (e) => this.move(e));
    canvas.addEventListener("wheel", (e) => { e.preventDefault(); this.zoom(Math.exp(-e.deltaY / 500)); }, { passive: false });
    canvas.addEventListener("keydown", (e) => {
      const turns = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
      if (turns[e.key]) this.turn(...turns[e.key]);
      else if (e.key === "+" || e.key === "-") this.zoom(e.key === "+" ? 1.2 : 1 / 1.2);
      else return;
      e.preventDefault();
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  reset(above) {
    Object.assign(this, { yaw: above ? 0 : 0.5, pitch: above ? Math.PI / 2 : 0.55, scale: above ? 1.1 : 1.6, center: [...this.home] });
    this.draw();
  }

  move(event) {
    const last = this.fingers.get(event.pointerId);
    if (!last) return this.tell(event);
    const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
    if (this.fingers.size === 2) {
      const other = [...this.fingers].find(([id]) => id !== event.pointerId)[1];
      const length = (x, y) => Math.hypot(x - other[0], y - other[1]) || 1;
      this.zoom(length(event.clientX, event.clientY) / length(...last));
    } else if (event.shiftKey || event.buttons === 2) {
      const metre = 100 / (this.scale * this.canvas.clientWidth);
      const [c, s] = [Math.cos(this.yaw), Math.sin(this.yaw)];
      this.center[0] -= (c * dx + s * dy) * metre;
      this.center[1] -= (s * dx - c * dy) * metre;
      this.draw();
    } else this.turn(-dx / 150, dy / 150);
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
  }

  look(points) {
    const count = points.length / 3 || 1, sum = [0, 0, 0];
    points.forEach((value, i) => { sum[i % 3] += value; });
    this.home = sum.map((value) => value / count);
    this.reset(false);
  }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.min(Math.PI / 2, Math.max(0.02, this.pitch + pitch));
    this.draw();
  }

  zoom(factor) {
    this.scale = Math.min(40, Math.max(0.3, this.scale * factor));
    this.draw();
  }

  /** Draw every point with a colour (0: hidden), the nearest in front. */
  draw() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const width = Math.round(this.canvas.clientWidth * ratio), height = Math.round(this.canvas.clientHeight * ratio);
    if (!width || !height) return;
    Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d"), image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer).fill(rgba(spec.background));
    const depth = new Float32Array(width * height).fill(Infinity);
    this.owner = new Int32Array(width * height).fill(-1);
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    const away = 120 / this.scale, focus = (width * 1.2), size = Math.max(2, Math.round(width / 450));
    const [px, py, pz] = this.center;
    this.drawn = 0;
    for (let i = 0; i < this.colors.length; i++) {
      if (!this.colors[i]) continue;
      const x = this.points[3 * i] - px, y = this.points[3 * i + 1] - py, z = this.points[3 * i + 2] - pz;
      const right = cy * x + sy * y, front = cy * y - sy * x;
      const far = away + cp * front - sp * z, up = sp * front + cp * z;
      if (far < 0.5) continue;
      const u = Math.round(width / 2 + (focus * right) / far), v = Math.round(height / 2 - (focus * up) / far);
      if (u < 0 || v < 0 || u >= width - size || v >= height - size) continue;
      this.drawn++;
      for (let row = 0; row < size; row++)
        for (let at = (v + row) * width + u, stop = at + size; at < stop; at++)
          if (far < depth[at]) { depth[at] = far; pixels[at] = this.colors[i]; this.owner[at] = i; }
    }
    context.putImageData(image, 0, 0);
  }

  /** Say which point is under the pointer. */
  tell(event) {
    const ratio = this.canvas.width / this.canvas.clientWidth;
    const box = this.canvas.getBoundingClientRect();
    const at = Math.round((event.clientY - box.top) * ratio) * this.canvas.width + Math.round((event.clientX - box.left) * ratio);
    byId("readout").textContent = this.owner && this.owner[at] >= 0 ? describe(this.owner[at]) : "";
  }
}

const state = { frame: null, mode: null, hidden: {} };
const cloud = new Cloud(byId("cloud"));

/** A frame's arrays, decoded when it is first shown. */
const frames = spec.frames.map(() => null);
function frameAt(number) {
  if (frames[number]) return frames[number];
  const plain = JSON.parse(byId(`frame-${number}`).textContent);
  const raw = new Int16Array(bytes(plain.points).buffer);
  const points = Float32Array.from(raw, (v) => v / 100); // centimetres
  const values = Object.fromEntries(Object.entries(plain.values).map(([key, text]) => [key, bytes(text)]));
  values.distance = Uint8Array.from({ length: points.length / 3 }, (_, i) =>
    Math.min(255, (255 / FAR) * Math.hypot(points[3 * i], points[3 * i + 1], points[3 * i + 2])));
  const cameras = plain.cameras.map((c) => ({ ...c, point: new Uint32Array(bytes(c.point).buffer), uv: new Uint16Array(bytes(c.uv).buffer) }));
  return (frames[number] = { ...plain, points, values, cameras });
}

const modesOf = (frame) => spec.modes.filter((mode) => frame.values[mode.key]);
const nameOf = (mode, value) =>
  value === UNSEEN && mode.names ? "seen by no camera"
  : mode.names ? mode.names[value]
  : mode.key === "distance" ? `${((value * FAR) / 255).toFixed(0)} m` : `${Math.round(value / 2.55)} %`;

function describe(i) {
  const parts = modesOf(state.frame).map((mode) => `${mode.name}: ${nameOf(mode, state.frame.values[mode.key][i])}`);
  return parts.join(" · ");
}

/** The colour of each point, 0 where its class is switched off. */
function colorsOf(frame, mode) {
  const hidden = state.hidden[mode.key];
  const table = Array.from({ length: 256 }, (_, value) =>
    hidden.has(value) ? 0 : rgba(mode.colors ? (value === UNSEEN ? spec.unseen : mode.colors[value] || spec.unseen) : ramp(value / 255)));
  return Uint32Array.from(frame.values[mode.key], (value) => table[value]);
}

function paint() {
  const { frame, mode } = state;
  const colors = mode ? colorsOf(frame, mode) : new Uint32Array(0);
  Object.assign(cloud, { points: frame.points, colors });
  cloud.draw();
  const css = (c) => `rgb(${c & 255} ${(c >> 8) & 255} ${(c >> 16) & 255})`;
  document.querySelectorAll("#images figure").forEach((figure, k) => {
    const camera = frame.cameras[k], canvas = figure.querySelector("canvas");
    Object.assign(canvas, { width: camera.width, height: camera.height });
    figure.querySelector(".overlay").style.opacity = byId("overlay").checked ? byId("opacity").value / 100 : 0;
    figure.querySelector(".photo").style.opacity = byId("points").checked ? 0.7 : 1; // so that points stand out
    if (!byId("points").checked) return;
    const context = canvas.getContext("2d"), size = Math.min(3, Math.max(2, camera.width / 450));
    for (let i = 0; i < camera.point.length; i++) {
      const color = colors[camera.point[i]];
      if (!color) continue;
      context.fillStyle = css(color);
      context.fillRect(camera.uv[2 * i] / 16 - size / 2, camera.uv[2 * i + 1] / 16 - size / 2, size, size);
    }
  });
}

function legend() {
  const list = byId("legend"), mode = state.mode;
  list.replaceChildren();
  byId("ramp").hidden = !mode || Boolean(mode.names);
  if (!mode) return;
  if (!mode.names) {
    byId("ramp-low").textContent = nameOf(mode, 0);
    byId("ramp-high").textContent = nameOf(mode, 255);
    return;
  }
  const count = new Uint32Array(256);
  for (const value of state.frame.values[mode.key]) count[value]++;
  for (let value = 0; value < 256; value++) {
    if (!count[value]) continue;
    const item = document.createElement("label"), box = document.createElement("input"), swatch = document.createElement("i");
    const [r, g, b] = value === UNSEEN ? spec.unseen : mode.colors[value];
    Object.assign(box, { type: "checkbox", checked: !state.hidden[mode.key].has(value) });
    swatch.style.background = `rgb(${r} ${g} ${b})`;
    box.addEventListener("change", () => { state.hidden[mode.key][box.checked ? "delete" : "add"](value); paint(); });
    item.append(box, swatch, `${nameOf(mode, value)} `, Object.assign(document.createElement("small"), { textContent: count[value].toLocaleString("en") }));
    list.append(item);
  }
}

function choose(key) {
  state.mode = modesOf(state.frame).find((mode) => mode.key === key) || modesOf(state.frame)[0] || null;
  if (state.mode) state.hidden[state.mode.key] ??= new Set();
  legend();
  paint();
}

function show(number) {
  const frame = (state.frame = frameAt(number));
  byId("slider").value = number + 1;
  byId("caption").textContent = `Frame ${number + 1} of ${spec.frames.length}: ${frame.scene}, ${frame.token}. ${frame.note}`;
  byId("scene3d").hidden = !frame.points.length;
  if (!state.mode) cloud.look(frame.points);
  byId("images").replaceChildren(...frame.cameras.map((camera) => {
    const figure = document.createElement("figure"), view = document.createElement("div");
    const image = (kind, source, alt) => Object.assign(document.createElement("img"), { className: kind, src: source, alt });
    view.append(image("photo", camera.image, `${camera.name}: camera image of ${frame.token}`), image("overlay", camera.overlay || camera.image, ""), document.createElement("canvas"));
    view.lastChild.setAttribute("aria-hidden", "true");
    view.style.aspectRatio = `${camera.width} / ${camera.height}`;
    if (!camera.overlay) view.querySelector(".overlay").hidden = true;
    figure.append(view, Object.assign(document.createElement("figcaption"), { textContent: camera.name }));
    return figure;
  }));
  const select = byId("mode"), wanted = state.mode && state.mode.key;
  select.replaceChildren(...modesOf(frame).map((mode) => new Option(mode.name, mode.key, false, mode.key === wanted)));
  choose(wanted || spec.first);
  if (state.mode) select.value = state.mode.key;
}

byId("slider").addEventListener("input", (e) => show(e.target.value - 1));
byId("previous").addEventListener("click", () => show(Math.max(0, byId("slider").value - 2)));
byId("next").addEventListener("click", () => show(Math.min(spec.frames.length - 1, +byId("slider").value)));
byId("mode").addEventListener("change", (e) => choose(e.target.value));
for (const id of ["overlay", "points", "opacity"]) byId(id).addEventListener("input", paint);
for (const [id, off] of [["all", false], ["none", true]])
  byId(id).addEventListener("click", () => {
    if (!state.mode) return;
    state.hidden[state.mode.key] = new Set(off ? Array.from({ length: 256 }, (_, i) => i) : []);
    legend();
    paint();
  });
byId("reset").addEventListener("click", () => cloud.reset(false));
byId("above").addEventListener("click", () => cloud.reset(true));
show(0);
