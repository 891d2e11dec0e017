"use strict";
// Quantities by layer: balance, decisiveness, repetition, vocabulary; and histograms of one layer.
(function () {
  M.layerTicks = function (width) {
    const step = M.step(M.layers.length, (width - 70) / M.layers.length, 24);
    return M.layers.filter((_, i) => i % step === 0).map((l) => l.layer);
  };

  // spec: name, rows [{layer, series, value, low, high}], series [{name, label, color, mark}], refs [{rows, dash, label}],
  //       unit, format, zero; rows of series that are not named are drawn thin and grey
  M.linesByLayer = function (spec) {
    const width = M.width(spec.name);
    const values = [...spec.rows, ...spec.refs.flatMap((r) => r.rows)].flatMap((r) => [r.value, r.low, r.high]).filter((v) => v !== null && v !== undefined);
    const [low, high] = d3.extent(values);
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    const of = new Map(spec.series.map((s) => [s.name, s]));
    const color = (r) => of.get(r.series).color;
    const rows = spec.rows.filter((r) => of.has(r.series));
    const marked = rows.filter((r) => of.get(r.series).mark !== undefined);
    const percent = spec.format === M.fmt.percent;
    const plot = Plot.plot({
      width, height: 260, marginLeft: 56, marginRight: 14, marginBottom: 38, marginTop: 26,
      style: M.style, ariaLabel: spec.label,
      x: { type: "point", domain: M.layers.map((l) => l.layer), label: "layer →", labelArrow: "none", ticks: M.layerTicks(width), tickSize: 0, padding: 0.3 },
      y: { domain: spec.zero ? [Math.min(0, low), high + pad] : [low - pad, high + pad], ...M.yAxis(spec.unit, 196, percent ? " %" : "", percent ? 100 : 1) },
      symbol: { type: "identity" },
      marks: [
        Plot.line(spec.rows.filter((r) => !of.has(r.series)), { x: "layer", y: "value", z: "series", stroke: M.css("grey"), strokeWidth: 0.9, strokeOpacity: 0.55 }),
        ...spec.refs.map((ref) => Plot.line(ref.rows, { x: "layer", y: "value", z: ref.by || null, stroke: ref.color || "currentColor", strokeOpacity: 0.75, strokeDasharray: ref.dash, strokeWidth: 1.4 })),
        ...spec.refs.filter((ref) => M.layers.length === 1).map((ref) => Plot.tickY(ref.rows, { x: "layer", y: "value", strokeDasharray: ref.dash })),
        Plot.ruleX(rows.filter((r) => r.low !== null && r.low !== undefined), { x: "layer", y1: "low", y2: "high", stroke: color, strokeWidth: 1.2, strokeOpacity: 0.6 }),
        Plot.line(rows, { x: "layer", y: "value", z: "series", stroke: color, strokeWidth: (r) => (of.get(r.series).mark === undefined ? 2.6 : 1.6) }),
        Plot.dot(marked, { x: "layer", y: "value", fill: color, symbol: (r) => M.domainSymbol(of.get(r.series).mark), r: 3.6 }),
        Plot.tip(spec.rows, Plot.pointer({ x: "layer", y: "value", title: (r) => `layer ${r.layer} · ${r.series}\n${spec.format(r.value)}${r.low === null || r.low === undefined ? "" : ` (95 %: ${spec.format(r.low)} to ${spec.format(r.high)})`}${r.extra ? `\n${r.extra}` : ""}` })),
      ],
    });
    const line = (color) => M.h("span", { class: "stroke", style: { background: color } });
    const behind = new Set(spec.rows.filter((r) => !of.has(r.series)).map((r) => r.series)).size;
    const legend = M.h("div", { class: "legend" },
      spec.series.map((s) => M.h("span", {}, s.mark === undefined ? line(s.color) : M.domainMark(s.mark, s.color), s.label || s.name)),
      behind ? M.h("span", {}, line(M.css("grey")), `${behind} other domain${behind > 1 ? "s" : ""}: choose them above`) : null,
      spec.refs.map((ref) => M.h("span", {}, M.h("span", {}, ref.dash === "1 4" ? "····" : "– – –"), M.h("span", {}, ref.label))));
    M.fill(M.id(`plot-${spec.name}`), plot, legend);
  };

  const domains = M.data.views[M.data.phases[0]].domains;
  M.state.lineDomains = domains.slice(0, 6);
  const series = () => ["all", ...M.state.lineDomains].map((n) => (n === "all" ? { name: n, label: "all text", color: M.css("ink") } : { name: n, label: n, color: M.domainColor(domains.indexOf(n)), mark: domains.indexOf(n) }));
  const chips = (name, ...more) => M.id(`controls-${name}`).append(...[...more, M.domainChips("lineDomains")].filter(Boolean));

  M.state.balance = "cv";
  const BALANCE = {
    cv: { label: "CV", unit: "CV of load", format: M.fmt.two },
    max_over_mean: { label: "busiest / mean", unit: "load of the busiest over the mean", format: M.fmt.two },
    cold_share: { label: "cold", unit: "share of cold experts", format: M.fmt.percent },
    dead_share: { label: "dead", unit: "share of dead experts", format: M.fmt.percent },
  };
  M.section("balance", ["phase", "balance", "lineDomains"], () => {
    const measure = BALANCE[M.state.balance];
    const table = M.rows(M.view().balance);
    const rows = table.map((r) => ({ layer: r.layer, series: r.domain, value: r[M.state.balance], extra: `${M.fmt.count(r.tokens)} tokens` }));
    M.title("balance", M.view().titles.balance, "fewer tokens leave more experts cold by accident");
    const chance = table.filter((r) => r.domain === "all").map((r) => ({ layer: r.layer, value: r.cv_chance }));
    M.linesByLayer({ name: "balance", rows, series: series(), unit: measure.unit, format: measure.format, zero: true, label: `${measure.unit} by layer`,
      refs: M.state.balance === "cv" ? [{ rows: chance, dash: "4 3", label: "even random routing, all text" }] : [] });
    M.asTable("balance", [
      { key: "layer", label: "layer" }, { key: "domain", label: "domain", text: true }, { key: "tokens", label: "tokens", format: M.fmt.count },
      { key: "cv", label: "CV", format: M.fmt.two }, { key: "cv_chance", label: "CV by chance", format: M.fmt.three }, { key: "gini", label: "Gini", format: M.fmt.two },
      { key: "max_over_mean", label: "busiest / mean", format: M.fmt.two }, { key: "cold_share", label: "cold", format: M.fmt.percent }, { key: "dead_share", label: "dead", format: M.fmt.percent },
    ], () => table);
  }, () => chips("balance", M.choice("Show", "balance", Object.entries(BALANCE).map(([value, m]) => ({ value, label: m.label })))));

  M.state.decisive = "router_entropy";
  const DECISIVE = {
    router_entropy: "router entropy", topk_entropy: "top-k entropy", topk_mass: "top-k mass", margin_first: "first margin", margin_kth: "last margin",
  };
  M.section("decisive", ["phase", "decisive", "lineDomains"], () => {
    M.title("decisive", M.view().titles.decisiveness);
    if (M.missing("decisive", "weights")) return;
    const key = M.state.decisive;
    const table = M.rows(M.view().decisiveness);
    const rows = table.map((r) => ({ layer: r.layer, series: r.domain, value: r[key], low: r[`${key}_low`], high: r[`${key}_high`] }));
    const chance = table.filter((r) => r.domain === "all").map((r) => ({ layer: r.layer, value: r.topk_mass_chance }));
    M.linesByLayer({ name: "decisive", rows, series: series(), unit: DECISIVE[key], format: M.fmt.three, label: `${DECISIVE[key]} by layer and domain`,
      refs: key === "topk_mass" ? [{ rows: chance, dash: "4 3", label: "chance K/E" }] : [] });
    M.asTable("decisive", [
      { key: "layer", label: "layer" }, { key: "domain", label: "domain", text: true },
      ...Object.entries(DECISIVE).flatMap(([k, label]) => [{ key: k, label, format: M.fmt.three }, { key: `${k}_low`, label: "95 % from", format: M.fmt.three }, { key: `${k}_high`, label: "to", format: M.fmt.three }]),
    ], () => table);
  }, () => chips("decisive", M.choice("Show", "decisive", Object.entries(DECISIVE).map(([value, label]) => ({ value, label })))));

  M.state.hist = "logit";
  const HIST = { logit: "router logits", probability: "router probabilities", topk_weight: "weights of the chosen, as shares" };
  M.section("hist", ["phase", "layer", "hist"], () => {
    if (M.missing("hist", "weights")) return M.title("hist", "Distributions");
    const made = M.view().histograms[M.state.hist];
    if (!made) return M.fill(M.id("plot-hist"), M.absent("No histogram was kept."));
    const counts = made.counts[M.state.layer];
    const total = d3.sum(counts) || 1;
    const log = M.state.hist === "probability";
    const rows = counts.map((count, i) => ({ low: made.low[i], high: made.high[i], count, share: count / total })).filter((r) => r.count > 0);
    const start = log ? 10 ** -6.4 : d3.min(rows, (r) => (r.low === null ? r.high - 0.5 : r.low));
    const stop = log ? 1 : d3.max(rows, (r) => (r.high === null ? r.low + 0.5 : r.high));
    const boxes = rows.map((r) => ({ ...r, x1: r.low === null || (log && r.low <= 0) ? start : r.low, x2: r.high === null ? stop : r.high }));
    const label = `${HIST[M.state.hist]} →`;
    const axis = log ? M.logAxis(label, start, stop, M.width("hist") - 70) : { scale: { domain: [start, stop], label, labelArrow: "none", ticks: 6, tickFormat: M.ticks() }, marks: [] };
    M.title("hist", `Layer ${M.layers[M.state.layer].layer}: ${HIST[M.state.hist]}`, "all text; the outermost bins are open");
    M.fill(M.id("plot-hist"), Plot.plot({
      width: M.width("hist"), height: 220, marginLeft: 56, marginBottom: 38, marginTop: 26, style: M.style,
      ariaLabel: `Histogram of ${HIST[M.state.hist]} in layer ${M.layers[M.state.layer].layer}`,
      x: axis.scale,
      y: M.yAxis("share of values", 156, " %", 100),
      marks: [...axis.marks, Plot.rectY(boxes, { x1: "x1", x2: "x2", y: "share", fill: M.css("d0"), inset: 0.4 }), Plot.ruleY([0])],
    }));
    M.asTable("hist", [
      { key: "low", label: "from", format: M.fmt.number }, { key: "high", label: "to", format: M.fmt.number }, { key: "count", label: "values", format: M.fmt.count }, { key: "share", label: "share", format: M.fmt.percent },
    ], () => rows);
    return undefined;
  }, () => M.id("controls-hist").append(M.layerControl(), M.choice("Of", "hist", Object.keys(HIST).map((k) => ({ value: k, label: k.replace("topk_weight", "chosen weight") })))));

  const ordered = !M.data.absent.order;
  M.state.repeat = ordered ? "first" : "any";
  M.section("repetition", ["phase", "repeat", "lineDomains"], () => {
    if (M.missing("repetition", "tokens")) return;
    const key = M.state.repeat;
    const table = M.rows(M.view().repetition);
    if (!table.length) {
      M.title("repetition", "Repetition");
      M.fill(M.id("plot-repetition"), M.absent("No neighbouring tokens were counted in this part of the run."));
      return;
    }
    const rows = table.map((r) => ({ layer: r.layer, series: r.domain, value: r[key], low: r[`${key}_low`], high: r[`${key}_high`] }));
    const all = table.filter((r) => r.domain === "all");
    M.title("repetition", M.view().titles.repetition);
    const refs = [{ rows: all.map((r) => ({ layer: r.layer, value: r[`${key}_chance`] })), dash: "4 3", label: "even chance" }];
    if (key === "first") refs.push({ rows: all.map((r) => ({ layer: r.layer, value: r.first_by_load })), dash: "1 4", label: "from uneven load alone" });
    M.linesByLayer({ name: "repetition", rows, series: series(), refs, unit: "share of neighbouring pairs", format: M.fmt.percent, zero: true, label: "Repetition by layer" });
    M.asTable("repetition", [
      { key: "layer", label: "layer" }, { key: "domain", label: "domain", text: true }, { key: "pairs", label: "pairs", format: M.fmt.count },
      { key: "first", label: "same first", format: M.fmt.percent }, { key: "first_low", label: "95 % from", format: M.fmt.percent }, { key: "first_high", label: "to", format: M.fmt.percent },
      { key: "first_chance", label: "even chance", format: M.fmt.percent }, { key: "first_by_load", label: "by load", format: M.fmt.percent },
      { key: "any", label: "any in common", format: M.fmt.percent }, { key: "any_chance", label: "even chance", format: M.fmt.percent },
    ].filter((c) => ordered || !c.key.startsWith("first")), () => table);
  }, () => chips("repetition", ordered ? M.choice("Neighbours with", "repeat", [{ value: "first", label: "the same first choice" }, { value: "any", label: "any expert in common" }]) : null));
})();
