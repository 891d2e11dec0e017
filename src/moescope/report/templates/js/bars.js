"use strict";
// Activation rates of one layer: a row of bars for each domain.
(function () {
  const MAX_AT_ONCE = 4;
  M.state.barDomains = M.data.views[M.data.phases[0]].domains.slice(0, MAX_AT_ONCE);
  M.state.barSort = "index";
  M.WAYS = { more: "used more than by the other domains, q < 0.05", less: "used less, q < 0.05", "": "no difference shown" };

  // Is a cell used more or less by a group of `rates` (0: all text)?
  M.wayOf = function (group, cell) {
    const marks = group > 0 ? M.view().special.marks[group - 1] : null;
    if (!marks) return "";
    marks.ways ||= new Map(["more", "less"].flatMap((way) => marks[way].map((c) => [c, way])));
    return marks.ways.get(cell) || "";
  };
  // Rows for the chosen layer and the given groups.
  M.layerCells = function (names) {
    const view = M.view();
    const layer = M.layers[M.state.layer];
    return names.flatMap((name) => {
      const group = view.rates.groups.indexOf(name);
      if (group < 0) return [];
      return d3.range(layer.experts).map((expert) => {
        const cell = M.cell(M.state.layer, expert);
        return {
          domain: name, expert, name: M.name(M.state.layer, expert), group: group - 1, used: M.wayOf(group, cell),
          rate: M.share("rate", group, cell), low: M.share("low", group, cell), high: M.share("high", group, cell),
          chance: layer.top_k / layer.experts,
        };
      });
    });
  };

  function draw() {
    const layer = M.layers[M.state.layer];
    const chance = layer.top_k / layer.experts;
    const chosen = M.state.barDomains.filter((n) => M.view().domains.includes(n));
    const names = chosen.length ? chosen : ["all"];
    const rows = M.layerCells(names);
    const best = d3.greatest(rows, (r) => r.rate);
    M.title("bars", `Layer ${layer.layer}: the busiest is ${best.name}, with ${M.fmt.percent(best.rate)} of the tokens${best.domain === "all" ? "" : ` of ${best.domain}`}`,
      `chance ${M.fmt.percent(chance)} · ${layer.top_k} of ${layer.experts} experts serve each token`);
    let order = d3.range(layer.experts);
    if (M.state.barSort === "rate") {
      const total = new Map(M.layerCells(["all"]).map((r) => [r.expert, r.rate]));
      order = d3.sort(order, (e) => -total.get(e));
    }
    const width = Math.max(M.width("bars"), order.length * 5 + 70);
    const step = M.step(order.length, (width - 60) / order.length, 7 * String(order.length).length + 6);
    const top = d3.max(rows, (r) => Math.max(r.rate, r.high || 0));
    const color = (r) => M.domainColor(r.group);
    const bar = (way, look) => Plot.barY(rows.filter((r) => (r.group < 0 ? "more" : r.used) === way), { x: "expert", y: (r) => r.rate * 100, fy: "domain", href: (r) => `#${r.name}`, ...look });
    const plot = Plot.plot({
      width, height: names.length * 118 + 52, marginLeft: 46, marginRight: 8, marginTop: 26, marginBottom: 44,
      ariaLabel: `Activation rate of the experts of layer ${layer.layer} by domain`,
      style: M.style,
      x: { type: "band", domain: order, label: `expert of layer ${layer.layer}${M.state.barSort === "rate" ? ", busiest over all text first" : ""} →`, labelAnchor: "left", labelArrow: "none", ticks: order.filter((_, i) => i % step === 0), tickSize: 0, padding: 0.22 },
      y: { domain: [0, top * 100 || 1], ...M.yAxis(null, 90, " %") },
      fy: { axis: null, domain: names, padding: 0.26 },
      marks: [
        bar("more", { fill: color }), bar("", { fill: color, fillOpacity: 0.35 }),
        bar("less", { fill: M.css("panel"), stroke: color, strokeWidth: 1.3, inset: 0.6 }),
        Plot.ruleX(rows.filter((r) => r.low !== null), { x: "expert", y1: (r) => r.low * 100, y2: (r) => r.high * 100, fy: "domain", stroke: "currentColor", strokeWidth: 1.1, strokeOpacity: 0.75 }),
        Plot.ruleY([chance * 100], { strokeDasharray: "4 3", stroke: "currentColor", strokeOpacity: 0.8 }),
        Plot.text(names, { fy: (n) => n, text: (n) => M.shorten(n === "all" ? "all text" : n, 60), frameAnchor: "top-left", dy: -15, fontWeight: 600, fontSize: 12 }),
        Plot.tip(rows, Plot.pointer({ x: "expert", y: (r) => r.rate * 100, fy: "domain", title: tipText, maxRadius: 30 })),
      ],
    });
    M.fill(M.id("plot-bars"), M.h("div", { class: "scroll" }, plot), chosen.length ? M.legend([
      { color: "currentColor", label: M.WAYS.more }, { color: "none", style: { border: "1.5px solid currentColor" }, label: M.WAYS.less },
      { color: "currentColor", style: { opacity: 0.35 }, label: M.WAYS[""] },
    ]) : null, M.view().rates.low ? null : M.absent("Intervals are left out here for size; the table “load” has them."));
    M.asTable("bars", COLUMNS, () => rows);
  }

  const COLUMNS = [
    { key: "name", label: "expert", name: true, render: (r) => M.cellLink(r.name) }, { key: "domain", label: "domain", text: true },
    { key: "rate", label: "rate", format: M.fmt.percent }, { key: "low", label: "95 % from", format: M.fmt.percent },
    { key: "high", label: "to", format: M.fmt.percent }, { key: "chance", label: "chance", format: M.fmt.percent },
    { key: "used", label: "used (q < 0.05)", text: true },
  ];
  const tipText = (r) =>
    `${r.name} · ${r.domain}\n${M.fmt.percent(r.rate)} of tokens${r.low === null ? "" : ` (95 %: ${M.fmt.percent(r.low)} to ${M.fmt.percent(r.high)})`}\nchance ${M.fmt.percent(r.chance)}${r.group < 0 ? "" : `\n${M.WAYS[r.used]}`}`;

  M.section("bars", ["phase", "layer", "barDomains", "barSort"], draw, () => {
    M.id("controls-bars").append(...[
      M.layerControl(),
      M.choice("Order", "barSort", [{ value: "index", label: "by number" }, { value: "rate", label: "by use" }]),
      M.domainChips("barDomains"),
    ].filter(Boolean));
  });
})();
