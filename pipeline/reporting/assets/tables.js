// Tables of class "sortable": headings sort by their column, and rows that summarize seeds expand and collapse.
// Without this script, every row is visible.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const makeButton = (content) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...content);
    return button;
  };
  const sort = (column) => {
    const ascending = headings[column].getAttribute("aria-sort") !== "ascending";
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const compare = (one, other) => {
      const [a, b] = [one, other].map((body) => body.rows[0].cells[column]);
      if (a.dataset.value === undefined || b.dataset.value === undefined)  // cells without a number come last
        return (b.dataset.value !== undefined) - (a.dataset.value !== undefined)
          || a.textContent.trim().localeCompare(b.textContent.trim()) * (ascending ? 1 : -1);
      return (a.dataset.value - b.dataset.value) * (ascending ? 1 : -1);
    };
    table.append(...[...table.tBodies].sort(compare));
  };
  const hint = document.createElement("span");
  hint.className = "hint";
  hint.textContent = " Click a heading to sort.";
  table.caption.append(hint);
  headings.forEach((heading, column) => {
    heading.append(makeButton(heading.childNodes));
    heading.lastChild.addEventListener("click", () => sort(column));
  });
  for (const body of table.tBodies) {
    const [summary, ...members] = body.rows;
    if (!members.length) continue;
    const toggle = makeButton(summary.cells[0].childNodes);
    const expand = (expanded) => {
      toggle.setAttribute("aria-expanded", expanded);
      members.forEach((row) => (row.hidden = !expanded));
    };
    summary.cells[0].append(toggle);
    toggle.addEventListener("click", () => expand(toggle.getAttribute("aria-expanded") === "false"));
    expand(false);
  }
}
