// Tables of class "sortable": headings sort by their column, and runs that differ in the seed alone open and close.
// Without this script every row is shown.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const button = (content) => {
    const made = document.createElement("button");
    made.type = "button";
    made.append(...content);
    return made;
  };
  const sort = (column) => {
    const ascending = headings[column].getAttribute("aria-sort") !== "ascending";
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const compare = (one, other) => {
      const [a, b] = [one, other].map((body) => body.rows[0].cells[column]);
      if (a.dataset.value === undefined || b.dataset.value === undefined)  // what has no number comes last
        return (b.dataset.value !== undefined) - (a.dataset.value !== undefined)
          || a.textContent.trim().localeCompare(b.textContent.trim()) * (ascending ? 1 : -1);
      return (a.dataset.value - b.dataset.value) * (ascending ? 1 : -1);
    };
    table.append(...[...table.tBodies].sort(compare));
  };
  const how = document.createElement("span");
  how.className = "how";
  how.textContent = " Choose a heading to sort by it.";
  table.caption.append(how);
  headings.forEach((heading, column) => {
    heading.append(button(heading.childNodes));
    heading.lastChild.addEventListener("click", () => sort(column));
  });
  for (const body of table.tBodies) {
    const [summary, ...members] = body.rows;
    if (!members.length) continue;
    const toggle = button(summary.cells[0].childNodes);
    const show = (open) => {
      toggle.setAttribute("aria-expanded", open);
      members.forEach((row) => (row.hidden = !open));
    };
    summary.cells[0].append(toggle);
    toggle.addEventListener("click", () => show(toggle.getAttribute("aria-expanded") === "false"));
    show(false);
  }
}
