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
    link.textContent = titleOf(cluster);
    found.append(link);
  }
  hold(cluster);
  point(near);
});

// ---- Cards: order, groups, filter, and the class they stand for shown on the map.
const cards = at("cards"), boxes = new Map([...document.querySelectorAll(".group")].map((box) => [box.dataset.group, box]));
const allCards = () => [...document.querySelectorAll(".card")];
const orderedClusters = () => allCards().filter((card) => !card.hidden).map((card) => Number(card.dataset.cluster));
for (const [group, box] of boxes) for (const card of box.querySelectorAll(".card")) card.dataset.group = group;

// Each kind of order as a number or a text that grows from the first card to the last.
const ranks = {
  cluster: (card) => Number(card.dataset.cluster),
  grade: (card) => "ABCD".indexOf(card.dataset.grade || "?") >>> 0,
  name: (card) => card.dataset.name || "\uffff",
};
const descending = (key) => (card) => (card.dataset[key] ? -Number(card.dataset[key]) : Infinity);
const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a === b ? 0 : a - b);

// A group stands at the place of its first card.
function arrange() {
  const key = at("sort").value, rank = ranks[key] ?? descending(key), together = at("together")?.checked;
  const ordered = allCards().sort((a, b) =>
    compare(rank(a), rank(b)) || a.dataset.cluster - b.dataset.cluster);
  for (const box of boxes.values()) box.remove();
  for (const card of ordered) {
    const box = together ? boxes.get(card.dataset.group) : undefined;
    if (box && !box.isConnected) cards.append(box);
    (box ?? cards).append(card);
  }
}

const textOf = new Map(allCards().map((card) => {
  const parts = [...card.querySelectorAll("h3, .note, .tag, .apart, .foot code")].map((part) => part.textContent);
  return [card, [...parts, card.dataset.group ? `group ${card.dataset.group}` : ""].join(" ").toLowerCase()];
}));
const classOfId = (wanted) => new Set(data.members.cluster.filter((_, i) => data.ids[data.n_bulk + i].toLowerCase().includes(wanted)));
function filterCards() {
  const wanted = at("filter").value.trim().toLowerCase();
  const withId = wanted ? classOfId(wanted) : new Set();
  visible = wanted ? new Set() : null;
  for (const [card, text] of textOf) {
    const cluster = Number(card.dataset.cluster);
    card.hidden = !text.includes(wanted) && !withId.has(cluster);
    if (!card.hidden) visible?.add(cluster);
  }
  for (const box of boxes.values()) box.hidden = ![...box.querySelectorAll(".card")].some((card) => !card.hidden);
  for (const link of document.querySelectorAll("#legend a")) link.parentElement.hidden = visible !== null && !visible.has(Number(link.dataset.cluster));
  at("counted").textContent = wanted ? `${number.format(visible.size)} of ${number.format(textOf.size)} classes` : "";
  redraw();
}
at("sort")?.addEventListener("change", arrange);
at("together")?.addEventListener("change", () => { arrange(); filterCards(); });
at("filter")?.addEventListener("input", filterCards);
// A browser that goes back to the page fills in what was chosen before.
if (cards.querySelector(".card")) { arrange(); filterCards(); }

function goTo(cluster) {
  const card = at(`class-${cluster}`);
  if (!card) return;
  if (card.hidden) { at("filter").value = ""; filterCards(); }
  card.scrollIntoView({ block: "start" });
  card.focus({ preventScroll: true });
}
// Links to a class work also where the filter hides its card.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#class-"]');
  if (link && at(link.hash.slice(1))?.hidden) { at("filter").value = ""; filterCards(); }
});
for (const name of ["pointerover", "focusin"]) {
  cards.addEventListener(name, (event) => {
    const card = event.target.closest(".card");
    if (card) hover(Number(card.dataset.cluster));
  });
}
cards.addEventListener("pointerleave", () => hover(null));

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
  at("zoomed-title").textContent = `${titleOf(cluster).replace(/^c/, "C")}: ${number.format(card.dataset.size)} galaxies`;
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
  const card = event.target.closest(".card");
  if (event.target.closest(".enlarge")) enlarge(Number(card.dataset.cluster));
  if (event.target.closest(".locate")) {
    hold(Number(card.dataset.cluster));
    at("map").scrollIntoView({ block: "start" });
    at("members-close").focus({ preventScroll: true });
  }
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
