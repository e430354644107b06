"use strict";
const at = (id) => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const unpack = (text) => new Uint16Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const xs = unpack(data.x), ys = unpack(data.y);
const classes = new Map(data.classes.map((entry) => [entry.cluster, entry]));
const number = new Intl.NumberFormat("en");

// ---- The map. A view is a centre and a scale; positions are on a grid of 0..65535 with y upwards.
const canvas = at("canvas"), brush = canvas.getContext("2d"), tip = at("tip");
const GRID = 65535, NEAR = 12;
const home = framed();
const view = { ...home.centre, zoom: 1 };
let width = 0, height = 0, chosen = null, marked = -1, drawing = 0;

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
  const ratio = devicePixelRatio || 1, s = scale();
  brush.setTransform(ratio, 0, 0, ratio, 0, 0);
  brush.clearRect(0, 0, width, height);
  const dot = data.n_bulk > 15000 ? 1.3 : 1.9;
  brush.fillStyle = data.n_bulk > 15000 ? "rgba(165,178,200,0.4)" : "rgba(165,178,200,0.6)";
  for (let i = 0; i < data.n_bulk; i++) {
    brush.fillRect(width / 2 + (xs[i] - view.x) * s, height / 2 - (ys[i] - view.y) * s, dot, dot);
  }
  drawMembers(s);
  drawLabels();
  if (marked >= 0) ring(...toScreen(xs[marked], ys[marked]));
}

function drawMembers(s) {
  const side = Math.min(6, (data.n_members > 8000 ? 2.2 : 3.4) * Math.sqrt(Math.max(1, view.zoom)));
  for (let i = 0; i < data.n_members; i++) {
    const cluster = data.members.cluster[i], k = data.n_bulk + i;
    brush.globalAlpha = chosen === null || chosen === cluster ? 0.95 : 0.16;
    brush.fillStyle = classes.get(cluster)?.colour ?? "#95a0b3";
    brush.fillRect(width / 2 + (xs[k] - view.x) * s - side / 2, height / 2 - (ys[k] - view.y) * s - side / 2, side, side);
  }
  brush.globalAlpha = 1;
}

// Numbers stand above the medoids, the chosen class first, then by size; one that would cover another is left out.
function drawLabels() {
  const taken = [];
  brush.font = "600 12px system-ui, sans-serif";
  brush.textAlign = "center";
  brush.textBaseline = "middle";
  brush.lineWidth = 3.5;
  brush.strokeStyle = "rgba(7,9,15,0.9)";
  const first = chosen === null ? [] : [classes.get(chosen)].filter(Boolean);
  for (const entry of [...first, ...data.classes]) {
    const [x, medoid] = toScreen(entry.x, entry.y), y = medoid - 14, half = 4 + 3.6 * String(entry.cluster).length;
    if (taken.some(([a, b, w]) => Math.abs(a - x) < w + half && Math.abs(b - y) < 15)) continue;
    taken.push([x, y, half]);
    brush.globalAlpha = chosen === null || chosen === entry.cluster ? 1 : 0.3;
    brush.strokeText(entry.cluster, x, y);
    brush.fillStyle = "#ffffff";
    brush.fillText(entry.cluster, x, y);
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

function resize() {
  const ratio = devicePixelRatio || 1;
  width = canvas.clientWidth;
  height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  if (!tip.hidden) showTip(marked);
  redraw();
}

// Nearest drawn galaxy within reach; a class member wins over the bulk.
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
  const member = search(data.n_bulk, xs.length, NEAR);
  return member >= 0 ? member : search(0, data.n_bulk, NEAR / 2);
}

const clusterOf = (index) => (index < data.n_bulk ? null : data.members.cluster[index - data.n_bulk]);

function describe(index) {
  const lines = [data.ids[index]], cluster = clusterOf(index);
  if (cluster === null) return [...lines, "in no class"].join("\n");
  const i = index - data.n_bulk, { probability, ra, dec } = data.members;
  lines.push(`class ${cluster}` + (probability[i] === null ? "" : `, probability ${probability[i].toFixed(2)}`));
  if (ra[i] !== null && dec[i] !== null) lines.push(`${ra[i].toFixed(4)}° ${dec[i] < 0 ? "−" : "+"}${Math.abs(dec[i]).toFixed(4)}°`);
  return lines.join("\n");
}

function showThumbnail(index) {
  const image = at("tip-image"), cluster = clusterOf(index);
  const tile = cluster === null ? -1 : data.members.tile[index - data.n_bulk];
  const sheet = classes.get(cluster)?.sheet;
  image.hidden = tile < 0 || !sheet;
  if (image.hidden) return;
  const side = 96, column = tile % data.columns, row = Math.floor(tile / data.columns);
  image.style.backgroundImage = `url("${sheet}")`;
  image.style.backgroundSize = `${side * data.columns}px auto`;
  image.style.backgroundPosition = `${-side * column}px ${-side * row}px`;
}

function showTip(index) {
  tip.hidden = index < 0;
  if (index < 0) return;
  at("tip-text").textContent = describe(index);
  showThumbnail(index);
  const [x, y] = toScreen(xs[index], ys[index]);
  const left = x + 16 + tip.offsetWidth > width ? x - 16 - tip.offsetWidth : x + 16;
  const top = Math.min(Math.max(6, y - tip.offsetHeight / 2), height - tip.offsetHeight - 6);
  tip.style.transform = `translate(${Math.round(Math.max(6, left))}px, ${Math.round(top)}px)`;
}

function choose(cluster) {
  if (chosen === cluster) return;
  chosen = cluster;
  redraw();
}

function goTo(cluster) {
  const card = at(`class-${cluster}`);
  if (!card) return;
  card.scrollIntoView({ block: "start" });
  card.focus({ preventScroll: true });
}

function zoomBy(factor, px = width / 2, py = height / 2) {
  const before = scale(), zoom = Math.min(60, Math.max(1, view.zoom * factor));
  const x = view.x + (px - width / 2) / before, y = view.y - (py - height / 2) / before;
  view.zoom = zoom;
  view.x = zoom === 1 ? home.centre.x : x - (px - width / 2) / scale();
  view.y = zoom === 1 ? home.centre.y : y + (py - height / 2) / scale();
  showTip(-1);
  redraw();
}

let held = null;
canvas.addEventListener("pointerdown", (event) => {
  held = { x: event.offsetX, y: event.offsetY, moved: false };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (held && (held.moved || Math.hypot(event.offsetX - held.x, event.offsetY - held.y) > 4)) {
    view.x -= (event.offsetX - held.x) / scale();
    view.y += (event.offsetY - held.y) / scale();
    held = { x: event.offsetX, y: event.offsetY, moved: true };
    showTip(-1);
    return redraw();
  }
  marked = nearest(event.offsetX, event.offsetY);
  canvas.style.cursor = marked >= 0 && clusterOf(marked) !== null ? "pointer" : "crosshair";
  showTip(marked);
  choose(marked < 0 ? null : clusterOf(marked));
  redraw();
});
canvas.addEventListener("pointerup", (event) => {
  const moved = held?.moved;
  held = null;
  const cluster = moved ? null : clusterOf(nearest(event.offsetX, event.offsetY));
  if (cluster !== null && cluster !== undefined) goTo(cluster);
});
canvas.addEventListener("pointercancel", () => { held = null; });
canvas.addEventListener("pointerleave", () => { marked = -1; showTip(-1); choose(null); redraw(); });
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("dblclick", (event) => zoomBy(2, event.offsetX, event.offsetY));
at("closer").addEventListener("click", () => zoomBy(1.6));
at("farther").addEventListener("click", () => zoomBy(1 / 1.6));
at("all").addEventListener("click", () => zoomBy(1e-9));

// Point at the galaxy and, where the map is enlarged so far that it is out of sight, bring it into view.
function point(index) {
  marked = index;
  const [x, y] = toScreen(xs[index], ys[index]);
  if (x < 0 || y < 0 || x > width || y > height) { view.x = xs[index]; view.y = ys[index]; }
  choose(clusterOf(index));
  showTip(index);
  redraw();
}

const orderedClusters = () => [...document.querySelectorAll(".card")].map((card) => Number(card.dataset.cluster));
const medoidIndex = (cluster) => {
  const { x, y } = classes.get(cluster);
  let best = -1, least = Infinity;
  data.members.cluster.forEach((other, i) => {
    const k = data.n_bulk + i, distance = (xs[k] - x) ** 2 + (ys[k] - y) ** 2;
    if (other === cluster && distance < least) { least = distance; best = k; }
  });
  return best;
};
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const order = orderedClusters().filter((cluster) => classes.has(cluster));
  if (event.key in steps && order.length) {
    const here = order.indexOf(chosen), step = steps[event.key];
    const next = here < 0 ? (step > 0 ? 0 : order.length - 1) : (here + step + order.length) % order.length;
    choose(order[next]);
    const index = medoidIndex(order[next]);
    if (index >= 0) point(index);
  } else if (event.key === "Enter" && chosen !== null) goTo(chosen);
  else if (event.key === "+" || event.key === "=") zoomBy(1.6);
  else if (event.key === "-") zoomBy(1 / 1.6);
  else if (event.key === "0") zoomBy(1e-9);
  else if (event.key === "Escape") { marked = -1; showTip(-1); choose(null); }
  else return;
  event.preventDefault();
});

// ---- Search by id: an exact one first, else the first that contains the text.
at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("query").value.trim(), found = at("found");
  if (!text) { found.textContent = ""; return; }
  const lower = text.toLowerCase(), ids = data.ids;
  const exact = ids.indexOf(text);
  const near = exact >= 0 ? exact : ids.findIndex((id) => id.toLowerCase().includes(lower));
  found.replaceChildren();
  if (near < 0) {
    const partial = data.n_bulk < data.all_bulk || data.n_members < data.all_members;
    found.textContent = "not found" + (partial ? " among the galaxies drawn here; galaxies.parquet lists all" : "");
    return;
  }
  const cluster = clusterOf(near);
  found.append(`${ids[near]}: ${cluster === null ? "in no class" : ""}`);
  if (cluster !== null) {
    const link = document.createElement("a");
    link.href = `#class-${cluster}`;
    link.textContent = `class ${cluster}`;
    found.append(link);
  }
  point(near);
});

// ---- Cards: order, and the class they stand for shown on the map.
const cards = at("cards");
function sortCards(key) {
  const value = (card) => (card.dataset[key] === "" ? -Infinity : Number(card.dataset[key]));
  const direction = key === "cluster" ? 1 : -1;
  const ordered = [...cards.querySelectorAll(".card")].sort(
    (a, b) => direction * (value(a) - value(b)) || a.dataset.cluster - b.dataset.cluster);
  cards.append(...ordered);
}
at("sort")?.addEventListener("change", (event) => sortCards(event.target.value));
for (const name of ["pointerover", "focusin"]) {
  cards.addEventListener(name, (event) => {
    const card = event.target.closest(".card");
    if (card) choose(Number(card.dataset.cluster));
  });
}
cards.addEventListener("pointerleave", () => choose(null));

// ---- The enlarged montage.
const dialog = at("zoomed"), big = at("zoomed-image"), pointed = at("pointed");
let open = null;
function enlarge(cluster) {
  const card = at(`class-${cluster}`), small = card?.querySelector(".enlarge img");
  if (!small) return;
  open = { cluster, ids: JSON.parse(small.dataset.ids), columns: Number(small.dataset.columns), side: Number(small.dataset.thumbnail), small };
  big.src = small.src;
  big.alt = small.alt;
  big.width = small.getAttribute("width");
  big.height = small.getAttribute("height");
  big.parentElement.style.setProperty("--ratio", big.width / big.height);
  at("zoomed-title").textContent = `Class ${cluster}, ${number.format(card.dataset.size)} galaxies`;
  at("zoomed-ids").textContent = open.ids.join("\n");
  at("pointed-id").textContent = "";
  pointed.hidden = true;
  if (!dialog.open) dialog.showModal();
}
function neighbour(step) {
  const order = orderedClusters().filter((cluster) => at(`class-${cluster}`).querySelector(".enlarge"));
  enlarge(order[(order.indexOf(open.cluster) + step + order.length) % order.length]);
}
big.addEventListener("pointermove", (event) => {
  const grow = big.clientWidth / open.small.getAttribute("width"), step = open.side + data.montage_gap;
  const column = Math.floor(event.offsetX / grow / step), row = Math.floor(event.offsetY / grow / step);
  const id = column < open.columns ? open.ids[row * open.columns + column] : undefined;
  pointed.hidden = id === undefined;
  at("pointed-id").textContent = id ?? "";
  const edges = { left: data.montage_gap + column * step, top: data.montage_gap + row * step, width: open.side, height: open.side };
  for (const [edge, pixels] of Object.entries(edges)) pointed.style[edge] = `${pixels * grow}px`;
});
cards.addEventListener("click", (event) => {
  const card = event.target.closest(".enlarge")?.closest(".card");
  if (card) enlarge(Number(card.dataset.cluster));
});
at("previous").addEventListener("click", () => neighbour(-1));
at("next").addEventListener("click", () => neighbour(1));
at("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") neighbour(-1);
  if (event.key === "ArrowRight") neighbour(1);
});
dialog.addEventListener("close", () => at(`class-${open.cluster}`).querySelector(".enlarge").focus());

new ResizeObserver(resize).observe(canvas);
resize();
