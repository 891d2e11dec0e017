"use strict";
// Tables: sortable, scrollable by keyboard, and built for each figure only when opened.
(function () {
  const LIMIT = 400;

  // columns: [{key, label, format, title}] and one of: text (may wrap), name (may not), mono; else a number
  M.table = function (columns, rows, options = {}) {
    const body = M.h("tbody");
    let order = { key: options.sort || null, down: options.down !== false };
    const shown = M.h("p", { class: "small" });
    const heads = columns.map((c) =>
      M.h("th", { scope: "col", class: c.text || c.mono || c.name ? null : "num", title: c.title || null },
        options.fixed ? c.label : M.h("button", {
          type: "button",
          onclick: () => {
            order = { key: c.key, down: order.key === c.key ? !order.down : !(c.text || c.mono || c.name) };
            draw();
          },
        }, c.label)));
    function sorted() {
      if (!order.key) return rows;
      const value = (r) => (r[order.key] === undefined ? null : r[order.key]);
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return (order.down ? -1 : 1) * d3.ascending(x, y);
      };
      return [...rows].sort(compare);
    }
    function draw() {
      M.fill(body, sorted().slice(0, LIMIT).map((r) =>
        M.h("tr", { class: r.dim ? "dim" : null }, columns.map((c) => {
          const content = c.render ? c.render(r) : (c.format || M.fmt.text)(r[c.key]);
          return M.h("td", { class: c.mono ? "mono" : c.name ? "name" : c.text ? "text" : "num" }, content);
        }))));
      columns.forEach((c, i) => {
        if (order.key === c.key) heads[i].setAttribute("aria-sort", order.down ? "descending" : "ascending");
        else heads[i].removeAttribute("aria-sort");
      });
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
