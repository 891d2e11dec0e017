"use strict";
// Every expert of a layer on its own: the ranking, and where in the text each of them matters.
(function () {
  if (M.data.kind !== "each") return;
  const groups = M.data.groups;
  M.state.group = 0;

  // The experts of the chosen layer with the figures of one group, in the order of the experts.
  M.layerExperts = function (group) {
    const number = M.layers[M.state.layer].layer;
    const values = groups[group].values;
    return M.data.experts.map((e, i) => ({
      ...e, ...Object.fromEntries(Object.entries(values).map(([name, column]) => [name, column[i]])),
    })).filter((e) => e.layer === number);
  };
  // Every expert has its number: upright where they would touch.
  const upright = (width, order) => (width / order.length < 7 * String(d3.max(order)).length + 4 ? -90 : 0);
  const clear = (e, key) => e[`${key}_low`] !== null && e[`${key}_low`] > 0;
  M.expertColor = (e, key) => (key !== "ce_change" || clear(e, key) ? M.css("d1") : M.css("grey"));

  M.section("ranking", ["measure", "layer", "group"], () => {
    const key = M.state.measure;
    const m = M.measures[key];
    const group = groups[M.state.group];
    const rows = d3.sort(M.layerExperts(M.state.group), (e) => -e[key]);
    const shown = rows.filter((e) => clear(e, "ce_change")).length;
    const layer = M.layers[M.state.layer].layer;
    M.title("ranking", key === "ce_change" ? `Layer ${layer}: for ${shown} of ${rows.length} experts, taken away one at a time, the interval lies above 0` : `${m.long} without each expert of layer ${layer}`,
      `${m.unit} · ${M.groupName(group)}, ${M.fmt.count(group.tokens)} tokens of ${M.fmt.count(group.documents)} documents · experts ${M.data.edit}${key === "ce_change" ? ` · intervals not corrected for ${rows.length} experts` : ""}`);
    const width = Math.max(M.width("ranking"), rows.length * 12 + 80);
    const order = rows.map((e) => e.expert);
    M.fill(M.id("plot-ranking"), M.h("div", { class: "scroll" }, Plot.plot({
      width, height: 320, marginLeft: 58, marginRight: 8, marginBottom: 54, style: M.style, ariaLabel: `${m.long} by expert of layer ${layer}`,
      x: { type: "point", domain: order, label: `expert of layer ${layer}, the most harmful to lose first →`, labelAnchor: "left", labelArrow: "none", labelOffset: 46, tickSize: 0, tickRotate: upright(width - 66, order), padding: 0.6 },
      y: { label: m.unit, insetTop: 14, labelArrow: "none", grid: true, ticks: 6, tickSize: 0, nice: true, tickFormat: M.axisOf(key) },
      marks: [
        Plot.ruleY([0], { strokeOpacity: 0.6 }),
        Plot.link(rows.filter((e) => e[`${key}_low`] !== null), { x: "expert", y1: `${key}_low`, y2: `${key}_high`, stroke: (e) => M.expertColor(e, key), strokeWidth: 1.6 }),
        Plot.dot(rows, { x: "expert", y: key, fill: (e) => M.expertColor(e, key), r: 3.6 }),
        Plot.tip(rows, Plot.pointerX({ x: "expert", y: key, maxRadius: 60,
          title: (e) => `${e.name}: ${m.format(e[key])}\n95 %: ${M.span(e, key, m.format)}\nload ${M.fmt.percent(e.load)}${e.chosen ? "" : "\nnever chosen on this text"}` })),
      ],
    })), M.legend([{ color: M.css("d1"), label: key === "ce_change" ? "the interval lies above 0" : "an expert, with its 95 % interval" }, ...(key === "ce_change" ? [{ color: M.css("grey"), label: "no harm is shown" }] : [])]));
    M.asTable("ranking", [
      M.expertColumn("name"), { key, label: m.label, format: m.format }, { key: "span", label: "95 %", name: true },
      ...Object.keys(M.data.scores).map((s) => ({ key: s, label: M.data.score_names[s], format: M.fmt.plain })),
    ], () => rows.map((e) => ({ ...e, span: M.span(e, key, m.format) })));
  }, () => {
    M.id("controls-ranking").append(M.layers.length > 1 ? M.layerControl() : "", M.measureControl());
    if (groups.length > 1) M.id("controls-ranking").append(M.choice("Text", "group", groups.map((g, i) => ({ value: i, label: M.groupName(g) })), 3));
  });

  if (!M.id("plot-domains")) return;
  M.section("domains", ["measure", "layer"], () => {
    const key = M.state.measure;
    const m = M.measures[key];
    const layer = M.layers[M.state.layer].layer;
    const order = d3.sort(d3.range(M.layers[M.state.layer].experts), (i) => -M.layerExperts(0)[i][key]);
    const rows = groups.map((g, i) => ({ ...g, cells: M.layerExperts(i) })).filter((g) => g.scope === "domain");
    const values = rows.flatMap((g) => g.cells.map((e) => e[key]));
    const limit = d3.max(values, Math.abs) || 1;
    const color = M.diverging(limit);
    const best = d3.greatest(rows.flatMap((g) => g.cells.map((e) => ({ ...e, domain: g.domain }))), (e) => e[key]);
    M.title("domains", `Layer ${layer}: the largest single effect is ${best.name} on ${best.domain}, ${m.format(best[key])}`,
      `${m.long}, ${m.unit} · a column for each expert, in the order of the ranking on all text`);
    M.fill(M.id("plot-domains"),
      M.scaleLegend(color, -limit, limit, [[0, m.format(-limit)], [0.5, "0"], [1, m.format(limit)]], m.unit),
      M.h("div", { class: "scroll" }, domainMap(rows, order, color, key, m)));
    M.asTable("domains", [
      { key: "domain", label: "domain", text: true }, M.expertColumn("name"), { key, label: m.label, format: m.format },
      { key: "span", label: "95 %", name: true },
    ], () => d3.sort(rows.flatMap((g) => g.cells.map((e) => ({ ...e, domain: g.domain, span: M.span(e, key, m.format) }))), (e) => -Math.abs(e[key])));
  });
  function domainMap(rows, order, color, key, m) {
    const width = M.width("domains");
    const most = width < 520 ? 13 : 24;
    const marginLeft = Math.min(most, d3.max(rows, (g) => g.domain.length)) * 6.4 + 14;
    const across = Math.max(width, marginLeft + order.length * 12);
    const cells = rows.flatMap((g) => order.map((i) => ({ ...g.cells[i], domain: g.domain })));
    return Plot.plot({
      width: across, height: rows.length * 22 + 66, marginLeft, marginRight: 6, marginTop: 6, marginBottom: 54, style: M.style, ariaLabel: "Effect of each expert on each domain",
      x: { type: "band", domain: order, label: "expert, in the order of the ranking on all text →", labelAnchor: "left", labelArrow: "none", labelOffset: 46, tickSize: 0, tickRotate: upright(across - marginLeft, order), padding: 0.06 },
      y: { type: "band", domain: rows.map((g) => g.domain), label: null, tickFormat: (d) => M.shorten(d, most), tickSize: 0, padding: 0.06 },
      marks: [
        Plot.cell(cells, { x: "expert", y: "domain", fill: (e) => color(e[key]) }),
        Plot.tip(cells, Plot.pointer({ x: "expert", y: "domain", title: (e) => `${e.name} on ${e.domain}: ${m.format(e[key])}\n95 %: ${M.span(e, key, m.format)}`, maxRadius: 30 })),
      ],
    });
  }
})();
