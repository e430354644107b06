"use strict";
const at = (id) => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const unpack = (text) => new Uint16Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const xs = unpack(data.x), ys = unpack(data.y);
const classes = new Map(data.classes.map((entry) => [entry.cluster, entry]));
const number = new Intl.NumberFormat("en");
const titleOf = (cluster) => `class ${cluster}` + (classes.get(cluster)?.name ? `, ${classes.get(cluster).name}` : "");

// ---- The map. A view is a centre and a scale; positions are on a grid of 0..65535 with y upwards.
const canvas = at("canvas"), brush = canvas.getContext("2d"), tip = at("tip");
const GRID = 65535, NEAR = 12, QUIET = "#95a0b3", POINTS_FROM_ZOOM = 3;
const home = framed();
const view = { ...home.centre, zoom: 1 };
// The class pointed at goes before the one that is held; where a filter hides classes, `visible` has the others.
let width = 0, height = 0, hovered = null, held = null, visible = null, marked = -1, drawing = 0;
const chosen = () => hovered ?? held;

// Galaxies outside the classes are by far the most: they are painted anew only when the view moves.
const bulk = document.createElement("canvas");
let bulkIsStale = true;
const density = data.density && Object.assign(new Image(), { src: data.density.image });
density?.addEventListener("load", () => moved());

// The whole map less its few most distant galaxies, which would make the rest small; they can be reached by dragging.
function framed() {
  const range = (values) => {
    const sorted = values.slice().sort(), end = sorted.length - 1, cut = Math.floor(sorted.length / 500);
    return end < 0 ? [0, GRID] : [sorted[cut], sorted[end - cut]];
  };
  const [left, right] = range(xs), [low, high] = range(ys);
  return { centre: { x: (left + right) / 2, y: (low + high) / 2 }, across: Math.max(right - left, 1), up: Math.max(high - low, 1) };
}
const scale = () => Math.min((width - 60) / home.across, (height - 60) / home.up) * view.zoom;
const toScreen = (x, y) => [width / 2 + (x - view.x) * scale(), height / 2 - (y - view.y) * scale()];

function draw() {
  drawing = 0;
  const ratio = devicePixelRatio || 1;
  if (bulkIsStale) paintBulk(ratio);
  brush.setTransform(1, 0, 0, 1, 0, 0);
  brush.clearRect(0, 0, canvas.width, canvas.height);
  if (canvas.width && canvas.height) brush.drawImage(bulk, 0, 0);
  brush.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawMembers(scale());
  drawLabels();
  if (marked >= 0) ring(...toScreen(xs[marked], ys[marked]));
}

function paintBulk(ratio) {
  bulkIsStale = false;
  bulk.width = canvas.width;
  bulk.height = canvas.height;
  const layer = bulk.getContext("2d"), s = scale();
  layer.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (density?.complete) {
    const [left, top] = toScreen(data.density.left, data.density.high), [right, low] = toScreen(data.density.right, data.density.low);
    layer.drawImage(density, left, top, right - left, low - top);
  }
  if (density && view.zoom < POINTS_FROM_ZOOM) return;
  const many = data.n_bulk > 15000, dot = many && !density ? 1.3 : 1.9;
  layer.fillStyle = many ? "rgba(165,178,200,0.4)" : "rgba(165,178,200,0.6)";
  for (let i = 0; i < data.n_bulk; i++) {
    layer.fillRect(width / 2 + (xs[i] - view.x) * s, height / 2 - (ys[i] - view.y) * s, dot, dot);
  }
}

const opacity = (cluster, faint) => {
  if (chosen() !== null) return chosen() === cluster ? 0.95 : faint;
  return visible === null || visible.has(cluster) ? 0.95 : faint;
};

function drawMembers(s) {
  const side = Math.min(6, (data.n_members > 8000 ? 2.2 : 3.4) * Math.sqrt(Math.max(1, view.zoom)));
  let before = null;
  for (let i = 0; i < data.n_members; i++) {
    const cluster = data.members.cluster[i], k = data.n_bulk + i;
    if (cluster !== before) {
      brush.globalAlpha = opacity(cluster, 0.16);
      brush.fillStyle = classes.get(cluster)?.colour ?? QUIET;
      before = cluster;
    }
    brush.fillRect(width / 2 + (xs[k] - view.x) * s - side / 2, height / 2 - (ys[k] - view.y) * s - side / 2, side, side);
  }
  brush.globalAlpha = 1;
}

// Numbers and names stand above the medoids, the chosen class first, then by size; one that would cover another is left out.
function drawLabels() {
  const taken = [];
  brush.font = "600 12px system-ui, sans-serif";
  brush.textAlign = "center";
  brush.textBaseline = "middle";
  brush.lineWidth = 3.5;
  brush.strokeStyle = "rgba(7,9,15,0.9)";
  const first = chosen() === null ? [] : [classes.get(chosen())].filter(Boolean);
  for (const entry of [...first, ...data.classes]) {
    const text = `${entry.cluster} ${entry.name ?? ""}`.trim();
    const [x, medoid] = toScreen(entry.x, entry.y), y = medoid - 14, half = 4 + brush.measureText(text).width / 2;
    if (taken.some(([a, b, w]) => Math.abs(a - x) < w + half && Math.abs(b - y) < 15)) continue;
    taken.push([x, y, half]);
    brush.globalAlpha = opacity(entry.cluster, 0.3);
    brush.strokeText(text, x, y);
    brush.fillStyle = "#ffffff";
    brush.fillText(text, x, y);
  }
  brush.globalAlpha = 1;
}

function ring(x, y) {
  brush.strokeStyle = "#ffffff";
  brush.lineWidth = 2;
  brush.beginPath();
  brush.arc(x, y, 9, 0, 2 * Math.PI);
  brush.stroke();
}

const redraw = () => { drawing = drawing || requestAnimationFrame(draw); };
const moved = () => { bulkIsStale = true; redraw(); };

function resize() {
  const ratio = devicePixelRatio || 1;
  width = canvas.clientWidth;
  height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  if (!tip.hidden) showTip(marked);
  moved();
}

// Nearest drawn galaxy within reach: a class member wins over the bulk, and there one that can be seen over one that cannot.
function nearest(px, py) {
  const s = scale();
  const search = (from, to, reach) => {
    let best = -1, least = reach * reach;
    for (let i = from; i < to; i++) {
      const dx = width / 2 + (xs[i] - view.x) * s - px, dy = height / 2 - (ys[i] - view.y) * s - py;
      const distance = dx * dx + dy * dy;
      if (distance < least) { least = distance; best = i; }
    }
    return best;
  };
  const ranges = [[data.n_bulk, xs.length, NEAR], [0, data.bulk_tiles, NEAR], [data.bulk_tiles, data.n_bulk, NEAR / 2]];
  for (const range of ranges) {
    const found = search(...range);
    if (found >= 0) return found;
  }
  return -1;
}

const clusterOf = (index) => (index < data.n_bulk ? null : data.members.cluster[index - data.n_bulk]);

function describe(index) {
  const lines = [data.ids[index]], cluster = clusterOf(index);
  if (cluster === null) return [...lines, "in no class"].join("\n");
  const i = index - data.n_bulk, { probability, ra, dec } = data.members;
  lines.push(titleOf(cluster) + (probability[i] === null ? "" : `, probability ${probability[i].toFixed(2)}`));
  if (ra[i] !== null && dec[i] !== null) lines.push(`${ra[i].toFixed(4)}° ${dec[i] < 0 ? "−" : "+"}${Math.abs(dec[i]).toFixed(4)}°`);
  return lines.join("\n");
}

// Shows a galaxy's thumbnail as the background of an element; false where it has none.
function showThumbnail(element, index, side) {
  const cluster = clusterOf(index);
  const sheet = cluster === null ? data.bulk_sheet : classes.get(cluster)?.sheet;
  const tile = cluster === null ? (index < data.bulk_tiles ? index : -1) : data.members.tile[index - data.n_bulk];
  if (tile < 0 || !sheet) return false;
  const column = tile % data.columns, row = Math.floor(tile / data.columns);
  element.style.backgroundImage = `url("${sheet}")`;
  element.style.backgroundSize = `${side * data.columns}px auto`;
  element.style.backgroundPosition = `${-side * column}px ${-side * row}px`;
  return true;
}

function showTip(index) {
  tip.hidden = index < 0;
  if (index < 0) return;
  at("tip-text").textContent = describe(index);
  at("tip-image").hidden = !showThumbnail(at("tip-image"), index, 96);
  const [x, y] = toScreen(xs[index], ys[index]);
  const left = x + 16 + tip.offsetWidth > width ? x - 16 - tip.offsetWidth : x + 16;
  const top = Math.min(Math.max(6, y - tip.offsetHeight / 2), height - tip.offsetHeight - 6);
  tip.style.transform = `translate(${Math.round(Math.max(6, left))}px, ${Math.round(top)}px)`;
}

function hover(cluster) {
  if (hovered === cluster) return;
  hovered = cluster;
  redraw();
}

// Point at the galaxy and, where the map is enlarged so far that it is out of sight, bring it into view.
function point(index) {
  marked = index;
  const [x, y] = toScreen(xs[index], ys[index]);
  if (x < 0 || y < 0 || x > width || y > height) { view.x = xs[index]; view.y = ys[index]; bulkIsStale = true; }
  showTip(index);
  redraw();
}

function letGo() {
  marked = -1;
  showTip(-1);
  hovered = null;
  redraw();
}

function zoomBy(factor, px = width / 2, py = height / 2) {
  const before = scale(), zoom = Math.min(60, Math.max(1, view.zoom * factor));
  const x = view.x + (px - width / 2) / before, y = view.y - (py - height / 2) / before;
  view.zoom = zoom;
  view.x = zoom === 1 ? home.centre.x : x - (px - width / 2) / scale();
  view.y = zoom === 1 ? home.centre.y : y + (py - height / 2) / scale();
  showTip(-1);
  moved();
}

// ---- The class that is held: its members' thumbnails beside the map.
const indicesOf = (cluster) => {
  const found = [];
  data.members.cluster.forEach((other, i) => { if (other === cluster) found.push(data.n_bulk + i); });
  return found;
};
const medoidIndex = (cluster) => {
  const { x, y } = classes.get(cluster), off = (k) => (xs[k] - x) ** 2 + (ys[k] - y) ** 2;
  return indicesOf(cluster).reduce((best, k) => (best < 0 || off(k) < off(best) ? k : best), -1);
};

function hold(cluster) {
  held = cluster !== null && classes.has(cluster) ? cluster : null;
  for (const link of document.querySelectorAll("#legend a")) {
    if (Number(link.dataset.cluster) === held) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  at("members").hidden = held === null;
  if (held !== null) showMembers(held);
  redraw();
}

function showMembers(cluster) {
  const { size, colour } = classes.get(cluster);
  const tiles = [];
  for (const index of indicesOf(cluster)) {
    const tile = document.createElement("button");
    tile.type = "button";
    tile.title = data.ids[index];
    tile.setAttribute("aria-label", data.ids[index]);
    tile.dataset.index = index;
    if (showThumbnail(tile, index, data.thumbnail)) tiles.push([data.members.tile[index - data.n_bulk], tile]);
  }
  tiles.sort(([a], [b]) => a - b);
  at("members").style.setProperty("--colour", colour);
  at("members-title").textContent = titleOf(cluster).replace(/^c/, "C");
  const link = document.createElement("a");
  link.href = `#class-${cluster}`;
  link.textContent = "its card";
  const shown = tiles.length < size ? `${number.format(tiles.length)} of ${number.format(size)} galaxies, surest first; ` : `${number.format(size)} galaxies, surest first; `;
  at("members-text").replaceChildren(tiles.length ? shown : "No images to show; ", link);
  at("members-tiles").replaceChildren(...tiles.map(([, tile]) => tile));
}
for (const name of ["pointerover", "focusin", "click"]) {
  at("members-tiles").addEventListener(name, (event) => {
    if (event.target.dataset.index) point(Number(event.target.dataset.index));
  });
}
at("members-tiles").addEventListener("pointerleave", letGo);
at("members-close").addEventListener("click", () => { hold(null); canvas.focus(); });
at("legend")?.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || !classes.has(Number(link.dataset.cluster))) return;
  event.preventDefault();
  hold(Number(link.dataset.cluster) === held ? null : Number(link.dataset.cluster));
});
at("legend")?.addEventListener("pointerover", (event) => {
  const link = event.target.closest("a");
  hover(link ? Number(link.dataset.cluster) : null);
});
at("legend")?.addEventListener("pointerleave", () => hover(null));

// ---- Pointer and keys on the map.
let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  drag = { x: event.offsetX, y: event.offsetY, moved: false };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (drag && (drag.moved || Math.hypot(event.offsetX - drag.x, event.offsetY - drag.y) > 4)) {
    view.x -= (event.offsetX - drag.x) / scale();
    view.y += (event.offsetY - drag.y) / scale();
    drag = { x: event.offsetX, y: event.offsetY, moved: true };
    showTip(-1);
    return moved();
  }
  const found = nearest(event.offsetX, event.offsetY);
  if (found === marked) return;
  marked = found;
  canvas.style.cursor = marked >= 0 && clusterOf(marked) !== null ? "pointer" : "crosshair";
  showTip(marked);
  hover(marked < 0 ? null : clusterOf(marked));
  redraw();
});
canvas.addEventListener("pointerup", (event) => {
  const dragged = drag?.moved;
  drag = null;
  if (dragged) return;
  const found = nearest(event.offsetX, event.offsetY);
  if (found < 0) { letGo(); return hold(null); }
  point(found);
  if (clusterOf(found) !== null) hold(clusterOf(found));
});
canvas.addEventListener("pointercancel", () => { drag = null; });
// A finger leaves the map as soon as it is lifted: what it pointed at stays.
canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") letGo(); });
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("dblclick", (event) => zoomBy(2, event.offsetX, event.offsetY));
at("closer").addEventListener("click", () => zoomBy(1.6));
at("farther").addEventListener("click", () => zoomBy(1 / 1.6));
at("all").addEventListener("click", () => zoomBy(1e-9));
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const order = orderedClusters().filter((cluster) => classes.has(cluster));
  if (event.key in steps && order.length) {
    const here = order.indexOf(held), step = steps[event.key];
    const next = order[here < 0 ? (step > 0 ? 0 : order.length - 1) : (here + step + order.length) % order.length];
    hold(next);
    const index = medoidIndex(next);
    if (index >= 0) point(index);
  } else if (event.key === "Enter" && held !== null) goTo(held);
  else if (event.key === "+" || event.key === "=") zoomBy(1.6);
  else if (event.key === "-") zoomBy(1 / 1.6);
  else if (event.key === "0") zoomBy(1e-9);
  else if (event.key === "Escape") { letGo(); hold(null); }
  else return;
  event.preventDefault();
});
