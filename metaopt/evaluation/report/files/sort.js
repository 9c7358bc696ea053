
/** Headers of sortable tables sort by their column; what has no number comes last, both ways. */
{
  const number = (cell) => parseFloat(cell.dataset.key);
  const byNumber = (a, b, sign) =>
    isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b);
  const byText = (a, b, sign) => sign * a.localeCompare(b, "en", { numeric: true });

  const sort = (table, headers, header) => {
    const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const column = headers.indexOf(header);
    const text = header.dataset.sort === "text";
    const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column], row]);
    rows.sort(([a], [b]) => text
      ? byText(a.dataset.key, b.dataset.key, sign)
      : byNumber(number(a), number(b), sign));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    headers.forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", order);
    say(`Sorted by ${header.textContent}, ${order}.`);
  };

  for (const table of document.querySelectorAll(".sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    for (const header of headers) {
      const button = header.querySelector("button");
      button.disabled = false;
      button.addEventListener("click", () => sort(table, headers, header));
      header.setAttribute("aria-sort", "none");
    }
  }
}
