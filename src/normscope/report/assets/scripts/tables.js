// Tables that fold where they are too wide, whose columns sort, and links that open what they lead to.

// numbers by what the cell holds, texts as they read; what is unknown stays last either way
function sortRows(table, column, descending) {
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent;
    const value = Number(cell.dataset.value);
    return Number.isFinite(value) ? value : null;
  };
  const order = (a, b) => {
    if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null);
    const step = typeof a[0] === "number" ? a[0] - b[0] : a[0].localeCompare(b[0], undefined, { numeric: true });
    return descending ? -step : step;
  };
  body.append(...[...body.rows].map((row) => [key(row), row]).sort(order).map(([, row]) => row));
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = html("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortRows(table, column, descending);
    });
  });
}

// a link to a closed part opens it
function openTarget(link) {
  link.addEventListener("click", (event) => {
    const target = document.getElementById(link.getAttribute("href").slice(1));
    if (!target || target.tagName !== "DETAILS") return;
    event.preventDefault(); // the address holds the settings
    for (let box = target; box; box = box.parentElement.closest("details")) box.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  });
}

// a table wider than its box is set closer, or else folded: each row is a block, each value stands behind its head
function foldable(box) {
  const table = box.querySelector("table");
  const roles = { thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell", "th[scope=col]": "columnheader", "th[scope=row]": "rowheader" };
  let width = 0;
  const fit = () => {
    width = box.checkVisibility() ? box.clientWidth : 0;
    if (!width) return; // in a closed part; fitted when that opens
    box.classList.remove("folded", "tight");
    const wide = () => table.scrollWidth > width + 1;
    if (wide()) box.classList.add("tight");
    const folded = wide();
    box.classList.toggle("folded", folded);
    if (!folded) return;
    table.setAttribute("role", "table"); // what is no longer laid out as one stays one
    for (const [part, role] of Object.entries(roles)) {
      for (const element of table.querySelectorAll(part)) element.setAttribute("role", role);
    }
    const names = [...table.tHead.rows[0].cells].map((head) => head.textContent);
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, i) => (cell.dataset.label = names[i]));
    }
  };
  const refit = () => box.clientWidth === width || fit();
  new ResizeObserver(refit).observe(box);
  for (let part = box.closest("details"); part; part = part.parentElement.closest("details")) {
    part.addEventListener("toggle", refit);
  }
  new MutationObserver(fit).observe(table.tBodies[0], { childList: true });
  onLanguage(fit);
}
