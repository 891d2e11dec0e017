"use strict";
// Domain or token: four panels of bits by layer; and the thirds of depth side by side.
(function () {
  const PARTS = [
    { key: "expert_token", title: "about the token", note: "I(E;X)", color: "d0" },
    { key: "expert_domain", title: "about the domain", note: "I(E;D)", color: "d1" },
    { key: "expert_domain_given_token", title: "about the domain beyond the current token", note: "I(E;D|X)", color: "d2" },
    { key: "expert_domain_given_pair", title: "about it beyond the current and the previous token", note: "I(E;D|X, previous X)", color: "d3" },
  ];

  function panel(part, rows, width) {
    const points = rows.map((r) => ({
      layer: r.layer, bits: r[`i_${part.key}_bits`], low: r[`i_${part.key}_low`], high: r[`i_${part.key}_high`],
      raw: r[`i_${part.key}_raw`], null: r[`i_${part.key}_null`], p: r[`i_${part.key}_p`], max: r[`i_${part.key}_most`],
    }));
    const passes = (p) => p.p !== null && p.p < M.data.level;
    const between = points.filter((p) => p.low !== null && p.high !== null);
    const low = Math.min(0, d3.min(points, (p) => p.bits) || 0, d3.min(between, (p) => p.low) || 0);
    const high = Math.max(d3.max(points, (p) => p.bits) || 0, d3.max(between, (p) => p.high) || 0, 1e-4);
    const color = M.css(part.color);
    const plot = Plot.plot({
      width, height: 190, marginLeft: 52, marginRight: 12, marginBottom: 36, marginTop: 12,
      style: M.style, ariaLabel: `Bits ${part.title} by layer`,
      x: { type: "point", domain: points.map((p) => p.layer), label: "layer →", labelArrow: "none", ticks: M.layerTicks(width), tickSize: 0 },
      y: { domain: [low, high * 1.08], grid: true, ticks: 4, tickSize: 0, label: "bits", labelAnchor: "top", labelArrow: "none" },
      marks: [
        between.length > 1 ? Plot.areaY(between, { x: "layer", y1: "low", y2: "high", fill: M.css("grey"), fillOpacity: 0.28 }) : Plot.ruleX(between, { x: "layer", y1: "low", y2: "high", stroke: M.css("grey"), strokeWidth: 8, strokeOpacity: 0.4 }),
        Plot.ruleY([0], { stroke: "currentColor", strokeOpacity: 0.6 }),
        Plot.line(points, { x: "layer", y: "bits", stroke: color, strokeWidth: 2 }),
        Plot.dot(points, { x: "layer", y: "bits", r: 4, stroke: color, strokeWidth: 2, fill: (p) => (passes(p) ? color : M.css("panel")) }),
        Plot.tip(points, Plot.pointerX({ x: "layer", y: "bits", title: (p) => `layer ${p.layer}: ${M.fmt.bits(p.bits)} bits ${part.title}\n95 %: ${M.fmt.bits(p.low)} to ${M.fmt.bits(p.high)}\nas counted ${M.fmt.bits(p.raw)}, shuffled ${M.fmt.bits(p.null)}\np ${M.fmt.p(p.p)} · at most ${M.fmt.bits(p.max)}` })),
      ],
    });
    const mean = d3.mean(points, (p) => p.bits);
    const passed = points.filter(passes).length;
    return M.h("div", { class: "panel" }, M.h("h4", {}, mean === undefined ? `not measured: ${part.title}` : `${M.fmt.bits(mean)} bits ${part.title}`),
      M.h("p", {}, `${part.note}, mean of layers · p < 0.05 in ${passed} of ${points.length}`), M.h("div", { class: "scroll" }, plot));
  }

  function draw() {
    const rows = M.rows(M.view().information);
    const host = M.id("plot-information");
    const meaning = M.id("meaning-information");
    meaning.hidden = true;
    if (M.missing("information", "tokens")) return;
    M.title("information", M.view().titles.information, rows.length ? `from ${M.fmt.count(rows[0].tokens)} sampled tokens of ${M.fmt.count(rows[0].documents)} documents; at most ${M.fmt.bits(d3.mean(rows, (r) => r.max_bits))} bits are possible` : null);
    meaning.hidden = !M.view().meaning;
    if (!rows.length) {
      M.fill(host, M.absent("Absent: this run kept sums only, and these figures need single tokens. Trace with --keep sample."));
      return;
    }
    const total = M.width("information");
    const columns = Math.max(1, Math.min(4, Math.floor(total / 250)));
    const width = Math.floor((total - 22 * (columns - 1)) / columns);
    M.fill(host, M.h("div", { class: "panels" }, PARTS.map((part) => panel(part, rows, width))), M.legend([
      { color: M.css("grey"), style: { opacity: 0.4 }, label: "95 % interval over documents" }]),
      M.h("p", { class: "small" }, "● p < 0.05   ○ not"));
    M.fill(meaning, M.view().meaning);
    M.asTable("information", COLUMNS, () => rows);
  }
  const COLUMNS = [
    { key: "layer", label: "layer" },
    ...PARTS.flatMap((part) => [
      { key: `i_${part.key}_bits`, label: `${part.note} bits`, format: M.fmt.bits },
      { key: `i_${part.key}_low`, label: "from", format: M.fmt.bits }, { key: `i_${part.key}_high`, label: "to", format: M.fmt.bits }, { key: `i_${part.key}_raw`, label: "as counted", format: M.fmt.bits },
      { key: `i_${part.key}_null`, label: "shuffled", format: M.fmt.bits }, { key: `i_${part.key}_p`, label: "p", format: M.fmt.p }]),
    { key: "max_bits", label: "at most", format: M.fmt.bits },
  ];
  M.section("information", ["phase"], draw);

  const MEASURES = [
    { key: "specialized_share", label: "specialised cells (q < 0.05)", format: M.fmt.percent },
    { key: "mean_abs_gap", label: "mean gap between domains, in units of chance", format: M.fmt.two },
    { key: "i_expert_token_bits", label: "bits about the token", format: M.fmt.bits },
    { key: "i_expert_domain_bits", label: "bits about the domain", format: M.fmt.bits },
    { key: "i_expert_domain_given_token_bits", label: "bits about the domain, token known", format: M.fmt.bits },
    { key: "cv", label: "unevenness of load (CV)", format: M.fmt.two },
    { key: "router_entropy", label: "router entropy (1 = undecided)", format: M.fmt.three },
    { key: "topk_mass", label: "probability of the chosen", format: M.fmt.percent },
    { key: "first", label: "neighbours with the same first choice", format: M.fmt.percent },
    { key: "committee", label: "committee members per layer", format: M.fmt.two },
  ];

  function drawBands() {
    const bands = M.rows(M.view().bands);
    M.title("bands", M.view().titles.bands);
    const rows = MEASURES.map((m) => {
      const values = bands.map((b) => b[m.key]);
      const known = values.filter((v) => v !== null);
      const base = Math.min(0, d3.min(known) || 0);
      const span = (d3.max(known) || 0) - base || 1;
      return { measure: m.label, values, parts: values.map((v) => (v === null ? 0 : (v - base) / span)), format: m.format, dim: !known.length };
    });
    M.fill(M.id("plot-bands"), M.table([
      { key: "measure", label: "", text: true },
      ...bands.map((b, i) => ({ key: b.band, label: `${b.band} (${b.layers})`, text: true, render: (r) => (r.values[i] === null ? "absent" : M.meter(r.parts[i], r.format(r.values[i]), `var(--d${[0, 2, 3][i]})`)) })),
    ], rows, { fixed: true, label: "Early, middle and late layers" }));
    M.id("table-bands").hidden = true;
  }
  M.section("bands", ["phase"], drawBands);
})();
