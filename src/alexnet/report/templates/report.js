// Lets a reader sort the table of classes. Without scripts the table stays as it is, worst class first.
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
    return text === "" ? -1 : Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  [...table.tHead.rows[0].cells].forEach((head, column, heads) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sorted = [...rows.rows].sort((a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column)));
      rows.append(...sorted);
    });
  });
}
