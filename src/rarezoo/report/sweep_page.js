"use strict";
// A click on a heading sorts the searches by it, the second one the other way round; missing values stay last.
const table = document.getElementById("table");
const headings = [...table.tHead.rows[0].cells];

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.number !== undefined) return Number(cell.dataset.number);
  return cell.textContent === "–" ? null : cell.textContent;
}

function compare(first, second, sign) {
  if (first === null || second === null) return (first === null) - (second === null);
  if (typeof first === "number" && typeof second === "number") return sign * (first - second);
  return sign * String(first).localeCompare(String(second), undefined, { numeric: true });
}

headings.forEach((heading, column) => {
  heading.querySelector("button").addEventListener("click", () => {
    const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows];
    rows.sort((first, second) => compare(valueOf(first, column), valueOf(second, column), sign));
    table.tBodies[0].append(...rows);
  });
});
