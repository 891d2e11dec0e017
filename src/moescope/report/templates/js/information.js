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
      width, height: 204, marginLeft: 52, marginRight: 12, marginBottom: 38, marginTop: 26,
      style: M.style, ariaLabel: `Bits ${part.title} by layer`,
      x: { type: "point", domain: points.map((p) => p.layer), label: "layer →", labelArrow: "none", ticks: M.layerTicks(width), tickSize: 0 },
      y: { domain: [low, high * 1.08], ...M.yAxis("bits", 140) },
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
    const columns = total >= 1000 ? 4 : total >= 500 ? 2 : 1;
    const width = Math.floor((total - 22 * (columns - 1)) / columns);
    M.fill(host, M.h("div", { class: "panels", style: { gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))` } }, PARTS.map((part) => panel(part, rows, width))), M.legend([
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
    { key: "used_more_share", label: "cells used more (q < 0.05)", format: M.fmt.percent },
    { key: "used_less_share", label: "cells used less (q < 0.05)", format: M.fmt.percent },
    { key: "mean_abs_gap", label: "mean gap to the other domains, in units of K/E", format: M.fmt.two, known: true },
    { key: "i_expert_token_bits", label: "bits about the token", format: M.fmt.bits },
    { key: "i_expert_domain_bits", label: "bits about the domain", format: M.fmt.bits },
    { key: "i_expert_domain_given_token_bits", label: "bits about the domain, token known", format: M.fmt.bits },
    { key: "cv", label: "unevenness of load (CV)", format: M.fmt.two },
    { key: "router_entropy", label: "router entropy (1 = undecided)", format: M.fmt.three },
    { key: "topk_mass", label: "probability of the chosen", format: M.fmt.percent },
    { key: "first", label: "neighbours with the same first choice", format: M.fmt.percent },
    { key: "committee", label: "committee members per layer", format: M.fmt.two },
  ];
  M.state.bandDomain = "all";

  // The interval over documents and what chance gives, where the table has them.
  function limits(band, m) {
    const [low, high, chance] = ["low", "high", "chance"].map((end) => band[`${m.key}_${end}`]);
    const parts = [low === null ? null : `95 %: ${M.interval(low, high, m.format)}`, chance === null ? null : `by chance ${m.format(chance)}`];
    return M.h("span", { class: "small" }, parts.filter(Boolean).join("; "));
  }

  function drawBands() {
    const bands = M.rows(M.view().bands).filter((b) => b.domain === M.state.bandDomain);
    const all = M.state.bandDomain === "all";
    M.title("bands", all ? M.view().titles.bands : `Early, middle and late layers on ${M.state.bandDomain}`);
    const rows = MEASURES.map((m) => {
      const values = bands.map((b) => b[m.key]);
      const known = values.filter((v) => v !== null);
      const base = Math.min(0, d3.min(known) || 0);
      const span = (d3.max(known) || 0) - base || 1;
      return { m, measure: m.label, values, parts: values.map((v) => (v === null ? 0 : (v - base) / span)), dim: !known.length };
    }).filter((r) => all || !r.dim);
    const cell = (r, i) => (r.values[i] === null ? "absent" : [M.meter(r.parts[i], r.m.format(r.values[i]), `var(--d${[0, 2, 3][i]})`), r.m.known ? limits(bands[i], r.m) : null]);
    M.fill(M.id("plot-bands"), M.table([
      { key: "measure", label: "", text: true },
      ...bands.map((b, i) => ({ key: b.band, label: `${b.band} (${b.layers.replace("–", "\u2060–\u2060")})`, text: true, render: (r) => cell(r, i) })),
    ], rows, { fixed: true, label: "Early, middle and late layers" }));
    M.asTable("bands", [{ key: "domain", label: "domain", text: true }, { key: "band", label: "third", name: true }, ...MEASURES.flatMap((m) => [
      { key: m.key, label: m.label, format: m.format },
      ...(m.known ? ["low", "high", "chance"].map((end) => ({ key: `${m.key}_${end}`, label: { low: "95 % from", high: "to", chance: "by chance" }[end], format: m.format })) : [])])],
      () => M.rows(M.view().bands));
  }
  M.section("bands", ["phase", "bandDomain"], drawBands, () => {
    const names = M.data.views[M.data.phases[0]].domains;
    if (names.length > 1) M.id("controls-bands").append(M.choice("Domain", "bandDomain", [{ value: "all", label: "all text" }, ...names.map((n) => ({ value: n, label: n }))]));
  });
})();
