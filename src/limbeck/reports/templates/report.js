// Makes every table sortable: its headings become buttons. Without this script they are plain text.
"use strict";
(() => {
  const said = document.getElementById("said");

  const key = (row, place, kind) => {
    const value = row.cells[place].dataset.value;
    if (value === undefined) return null;
    return kind === "number" ? Number(value) : value;
  };

  const compare = (a, b) =>
    typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });

  const sort = (table, heading, place) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const sign = ascending ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, place, heading.dataset.kind), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // nothing comes last
      return sign * compare(a, b);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const name = heading.querySelector("button").textContent;
    said.textContent = `Sorted by ${name}, ${ascending ? "ascending" : "descending"}.`;
  };

  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((heading, place) => {
      const text = heading.querySelector(".heading");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "heading";
      button.textContent = text.textContent;
      button.addEventListener("click", () => sort(table, heading, place));
      text.replaceWith(button);
    });
  }

  // On paper nothing can be unfolded.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
