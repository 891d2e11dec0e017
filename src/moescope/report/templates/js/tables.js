"use strict";
// Tables: sortable, scrollable by keyboard, and built for each figure only when opened.
(function () {
  const LIMIT = 400;
  const naturally = new Intl.Collator("en", { numeric: true }).compare; // L2E3 before L10E1
  const compared = (x, y) => (typeof x === "string" && typeof y === "string" ? naturally(x, y) : d3.ascending(x, y));

  // The button of a column's head; sort(key) is called with it.
  const headButton = (text, sort) => M.h("button", { type: "button", onclick: sort }, text);
  function tellOrder(heads, at, down) {
    heads.forEach((head, i) => (i === at ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
  }

  // A table that is in the page without scripts too: its rows are put in order by what they show.
  function sortable(table) {
    const heads = [...table.querySelectorAll("thead th")];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const value = (row, i) => {
      const text = row.cells[i].textContent.trim();
      const number = parseFloat(text.replace("−", "-").replace(/,/g, ""));
      return text === "–" ? null : heads[i].classList.contains("num") && !Number.isNaN(number) ? number : text;
    };
    let last = { at: -1, down: false };
    heads.forEach((head, i) => head.replaceChildren(headButton(head.textContent, () => {
      last = { at: i, down: last.at === i ? !last.down : head.classList.contains("num") };
      body.append(...sortedBy(rows, (r) => value(r, i), last.down));
      tellOrder(heads, i, last.down);
    })));
  }
  function sortedBy(rows, value, down) {
    return [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
      return (down ? -1 : 1) * compared(x, y);
    });
  }
  document.querySelectorAll("table.sortable").forEach(sortable);

  // columns: [{key, label, format, title}] and one of: text (may wrap), name (may not), mono; else a number
  M.table = function (columns, rows, options = {}) {
    const body = M.h("tbody");
    let order = { key: options.sort || null, down: options.down !== false };
    const shown = M.h("p", { class: "small" });
    const heads = columns.map((c) =>
      M.h("th", { scope: "col", class: c.name ? "name" : c.text || c.mono ? null : "num", title: c.title || null },
        options.fixed ? c.label : headButton(c.label, () => {
          order = { key: c.key, down: order.key === c.key ? !order.down : !(c.text || c.mono || c.name) };
          draw();
        })));
    const sorted = () => (order.key ? sortedBy(rows, (r) => r[order.key] ?? null, order.down) : rows);
    function draw() {
      M.fill(body, sorted().slice(0, LIMIT).map((r) =>
        M.h("tr", { class: r.own ? "own" : r.dim ? "dim" : null }, columns.map((c) => {
          const content = c.render ? c.render(r) : (c.format || M.fmt.text)(r[c.key]);
          return M.h("td", { class: c.mono ? "mono" : c.name ? "name" : c.text ? "text" : "num" }, content);
        }))));
      tellOrder(heads, columns.findIndex((c) => c.key === order.key), order.down);
      shown.textContent = rows.length > LIMIT ? `The first ${LIMIT} of ${M.fmt.count(rows.length)} rows; the tables in the run folder have all.` : "";
    }
    draw();
    const wrap = M.h("div", { class: rows.length <= 16 ? "table-wrap whole" : "table-wrap", tabindex: 0, role: "region", "aria-label": options.label || "table" },
      M.h("table", { class: columns.length > 9 || options.dense ? "dense" : null }, M.h("thead", {}, M.h("tr", {}, heads)), body));
    return M.h("div", {}, wrap, shown);
  };

  // The table behind a figure: made when the reader opens it, renewed while it is open.
  M.asTable = function (name, columns, rows) {
    const details = M.id(`table-${name}`);
    const host = details.querySelector(".table-host");
    const build = () => {
      if (details.open) M.fill(host, M.table(columns, rows(), { label: `Figures of: ${M.id(`title-${name}`).textContent}` }));
    };
    details.ontoggle = build;
    build();
  };
})();
