"use strict";
// The matrix of one layer and method, its closest pairs, and every expert's nearest neighbour.
(function () {
  const data = M.data;
  if (!data.methods.length) return;
  M.state.method = (data.methods.find((m) => m.key === "cka") || data.methods[0]).key;
  M.state.order = M.state.method;
  const TOP = 12;
  const summary = (layer, method) => data.summary.find((r) => r.layer === layer && r.method === method);

  // Places of the shown experts, from first to last row.
  function order(layer) {
    const known = data.orders[layer][M.state.order];
    return known || d3.range(data.shown[layer].length);
  }
  function title(layer, method, best) {
    const number = data.layers[layer].layer;
    const about = summary(number, method);
    if (!best) return M.title("pairs", `Layer ${number}, ${M.methodName(method)}: no pair has a value`);
    const low = M.pair(method, layer, "low", best.i, best.j);
    const interval = low === null ? "" : ` (95 %: ${M.range(low, M.pair(method, layer, "high", best.i, best.j))})`;
    const reference = about.reference === null || about.reference === undefined ? "" : ` · shuffled experts ${M.fmt.three(about.reference)}`;
    return M.title("pairs", `Layer ${number}, ${M.methodName(method)}: closest are ${M.name(layer, best.a)} and ${M.name(layer, best.b)}, ${M.fmt.three(best.value)}${interval}`,
      `mean of ${M.fmt.count(about.pairs)} pairs ${M.fmt.three(about.mean)} · chance ${M.fmt.three(about.chance)}${reference}`);
  }

  function describe(layer, method, i, j) {
    if (i === j) return null;
    const shown = data.shown[layer];
    const value = M.pair(method, layer, "value", i, j);
    const lines = [`${M.name(layer, shown[i])} and ${M.name(layer, shown[j])}`];
    if (value === null) {
      const lost = data.matrices[method][layer].undefined;
      const which = [shown[i], shown[j]].find((e) => lost[e] !== undefined);
      return [...lines, which === undefined ? "no value" : `${M.name(layer, which)}: ${lost[which]}`];
    }
    const low = M.pair(method, layer, "low", i, j);
    const range = low === null ? "" : ` (95 %: ${M.range(low, M.pair(method, layer, "high", i, j))})`;
    lines.push(`${M.short[method]} ${M.fmt.three(value)}${range}`);
    const beside = M.pair(method, layer, "beside", i, j);
    if (beside !== null) lines.push(`${M.beside[method]}: ${M.fmt.three(beside)}`);
    data.methods.filter((m) => m.key !== method && data.matrices[m.key][layer]).forEach((m) => {
      lines.push(`${M.short[m.key]} ${M.fmt.three(M.pair(m.key, layer, "value", i, j))}`);
    });
    return lines;
  }

  function draw() {
    const { layer, method } = M.state;
    const number = data.layers[layer].layer;
    const shown = data.shown[layer];
    if (!data.matrices[method][layer] || shown.length < 2) {
      M.title("pairs", `Layer ${number}, ${M.methodName(method)}`);
      M.fill(M.id("plot-pairs"), M.absent("This could not be computed for this layer; the notes at the head of the page say why."));
      M.asTable("pairs", [], () => []);
      return;
    }
    const pairs = M.allPairs(method, layer).filter((p) => p.value !== null).sort((p, q) => d3.descending(p.value, q.value));
    const rank = order(layer);
    const scale = M.similarityScale(method);
    const n = shown.length;
    const side = n <= 16 ? 26 : 13;
    title(layer, method, pairs[0]);
    const map = M.heatmap({
      rows: n, cols: n, width: Math.min(M.width("pairs"), 44 + n * side + 6), square: true, label: `${M.methodName(method)} of expert pairs in layer ${number}`,
      rowLabel: (i) => String(shown[rank[i]]), colLabel: (i) => String(shown[rank[i]]), yTitle: "expert", xTitle: `expert of layer ${number} →`,
      href: (i, j) => (i === j ? M.profileOf(M.name(layer, shown[rank[i]])) : null),
      color: (i, j) => { const v = M.pair(method, layer, "value", rank[i], rank[j]); return v === null ? null : scale.color(v); },
      describe: (i, j) => describe(layer, method, rank[i], rank[j]),
    });
    const columns = [
      { key: "pair", label: "pair", name: true }, { key: "value", label: M.short[method], format: M.fmt.three },
      ...(M.reads(method) && data.matrices[method][layer].low ? [{ key: "interval", label: "95 %", name: true }] : []),
      { key: "beside", label: { cosine: "given", cka: "debiased" }[method] || "centred", format: M.fmt.three, title: M.beside[method] },
    ];
    const row = (p) => ({
      pair: `E${p.a} + E${p.b}`, value: p.value, beside: M.pair(method, layer, "beside", p.i, p.j),
      interval: M.range(M.pair(method, layer, "low", p.i, p.j), M.pair(method, layer, "high", p.i, p.j)) || "–",
    });
    M.fill(M.id("plot-pairs"), M.similarityLegend(method),
      M.h("div", { class: M.width("pairs") - n * side > 420 ? "pairs wide" : "pairs" }, map,
        M.table(columns, pairs.slice(0, TOP).map(row), { label: `Closest pairs of layer ${number}`, dense: true })));
    M.asTable("pairs", columns, () => pairs.map(row));
  }

  function nearest(layer, method, i) {
    const others = d3.range(data.shown[layer].length).filter((j) => j !== i);
    const j = d3.greatest(others, (a, b) => d3.ascending(M.pair(method, layer, "value", i, a) ?? -9, M.pair(method, layer, "value", i, b) ?? -9));
    const value = j === undefined ? null : M.pair(method, layer, "value", i, j);
    return value === null ? null : { j, value };
  }

  function drawNearest() {
    const { layer } = M.state;
    const number = data.layers[layer].layer;
    const methods = data.methods.map((m) => m.key).filter((m) => data.matrices[m][layer]);
    const all = new Map(methods.map((m) => [m, d3.range(data.shown[layer].length).map((i) => nearest(layer, m, i))]));
    const rows = data.shown[layer].map((expert, i) => {
      const row = { expert: M.name(layer, expert), number: expert };
      const named = methods.map((m) => all.get(m)[i]).filter(Boolean).map((f) => f.j);
      row.same = named.length - new Set(named).size;
      methods.forEach((m) => {
        const found = all.get(m)[i];
        row[m] = found ? found.value : null;
        row[`${m}_who`] = found ? `E${data.shown[layer][found.j]}${mutual(all.get(m), i) ? " ↔" : ""}` : "–";
      });
      return row;
    });
    const agree = rows.filter((r) => r.same > 0).length;
    M.title("nearest", `Layer ${number}: nearest neighbours`,
      methods.length > 1 ? `${agree} of ${rows.length} experts have the same neighbour by at least two methods · ↔: each is the other's nearest` : "↔: each is the other's nearest");
    const columns = [{ key: "number", label: "expert", name: true, render: (r) => M.expert(r.expert) }, ...methods.flatMap((m) => [
      { key: `${m}_who`, label: `by ${M.short[m]}`, name: true }, { key: m, label: "value", format: M.fmt.three },
    ])];
    M.fill(M.id("plot-nearest"), M.table(columns, rows, { label: `Nearest neighbours in layer ${number}`, dense: true }));
    M.asTable("nearest", columns, () => rows);
    M.id("table-nearest").hidden = true; // the figure is a table already
  }
  const mutual = (found, i) => found[found[i].j] && found[found[i].j].j === i;

  const orders = [...data.methods.map((m) => ({ value: m.key, label: `clusters by ${M.short[m.key]}` })), { value: "number", label: "by number" }];
  M.section("pairs", ["layer", "method", "order"], draw, () => M.id("controls-pairs").append(
    M.layerControl(),
    M.choice("Method", "method", data.methods.map((m) => ({ value: m.key, label: M.short[m.key] }))),
    M.choice("Order", "order", orders, 3)));
  M.section("nearest", ["layer"], drawNearest);
})();
