"use strict";
const root = document.documentElement, light = document.querySelector(".switch");
const name = () => { light.textContent = root.dataset.light === "dark" ? "Light colors" : "Dark colors"; };
name();
light.addEventListener("click", () => {
  root.dataset.light = root.dataset.light === "dark" ? "light" : "dark";
  try { localStorage.setItem("light", root.dataset.light); } catch { /* a browser that keeps nothing for files */ }
  name();
});
const value = (row, column) => {
  const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
  return [text === "" ? NaN : Number(text), text];
};
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), column = head.cellIndex;
    const up = head.getAttribute("aria-sort") === "descending" ? 1 : head.hasAttribute("aria-sort") ? -1 : head.classList.contains("n") ? -1 : 1;
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, s] = value(a, column), [y, t] = value(b, column);
      if (s === "" || t === "") return (s === "") - (t === "");
      return up * (Number.isNaN(x) || Number.isNaN(y) ? s.localeCompare(t) : x - y);
    });
    table.tBodies[0].append(...rows);
  });
}
