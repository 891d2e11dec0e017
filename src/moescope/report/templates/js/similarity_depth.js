"use strict";
// The mean similarity of a pair by layer, one panel for each method, with chance and reference.
(function () {
  const rows = M.data.summary.filter((r) => r.mean !== null);

  function panel(method, index, width) {
    const own = rows.filter((r) => r.method === method);
    const color = M.css(`d${index}`);
    const wide = M.layers.length;
    const every = M.step(wide, (width - 70) / wide, 24);
    const ticks = M.layers.filter((_, i) => i % every === 0).map((l) => l.layer);
    const refs = own.filter((r) => r.reference !== null && r.reference !== undefined);
    const values = own.flatMap((r) => [r.mean, r.mean_low, r.mean_high, r.chance, r.reference]).filter((v) => v !== null && v !== undefined);
    const [low, high] = d3.extent([0, ...values]);
    const pad = (high - low || 1) * 0.08;
    const tell = (r) => [
      `layer ${r.layer}: mean ${M.fmt.three(r.mean)}${M.range(r.mean_low, r.mean_high) ? ` (95 %: ${M.range(r.mean_low, r.mean_high)})` : ""}`,
      `chance ${M.fmt.three(r.chance)}${r.reference === null || r.reference === undefined ? "" : `, shuffled experts ${M.fmt.three(r.reference)}`}`,
      `from ${M.fmt.three(r.min)} to ${M.fmt.three(r.max)} over ${M.fmt.count(r.pairs)} pairs`,
    ].join("\n");
    const line = { x: "layer", fy: null };
    const plot = Plot.plot({
      width, height: 210, marginLeft: 62, marginRight: 12, marginBottom: 36, marginTop: 12,
      style: M.style, ariaLabel: `${M.methodName(method)} by layer`,
      x: { type: "point", domain: M.layers.map((l) => l.layer), label: "layer →", labelArrow: "none", ticks, tickSize: 0, padding: 0.4 },
      y: { domain: [low - pad, high + pad], grid: true, ticks: 5, tickSize: 0, tickFormat: M.ticks(), label: null },
      marks: [
        Plot.ruleY([0], { stroke: "currentColor", strokeOpacity: 0.35 }),
        Plot.line(own, { ...line, y: "chance", stroke: "currentColor", strokeOpacity: 0.8, strokeDasharray: "1 4", strokeWidth: 1.6 }),
        Plot.line(refs, { ...line, y: "reference", stroke: "currentColor", strokeOpacity: 0.8, strokeDasharray: "5 3", strokeWidth: 1.3 }),
        ...(wide === 1 ? [Plot.tickY(own, { ...line, y: "chance", strokeDasharray: "1 4" }), Plot.tickY(refs, { ...line, y: "reference", strokeDasharray: "5 3" })] : []),
        Plot.ruleX(own.filter((r) => M.range(r.mean_low, r.mean_high)), { ...line, y1: "mean_low", y2: "mean_high", stroke: color, strokeWidth: 1.6, strokeOpacity: 0.7 }),
        Plot.line(own, { ...line, y: "mean", stroke: color, strokeWidth: 1.8 }),
        Plot.dot(own, { ...line, y: "mean", fill: color, r: 3.4 }),
        Plot.tip(own, Plot.pointer({ ...line, y: "mean", title: tell })),
      ],
    });
    return M.h("div", { class: "panel" }, M.h("h4", {}, M.methodName(method)), M.h("div", { class: "scroll" }, plot));
  }

  function draw() {
    const total = M.width("depth");
    const side = total >= 640 && M.data.methods.length > 1;
    const width = Math.max(260, side ? Math.floor((total - 24) / 2) : total);
    M.title("depth", "Mean similarity of a pair of experts, by layer", "every panel has its own scale");
    const legend = M.h("div", { class: "legend" },
      M.h("span", {}, M.h("span", { style: { color: M.css("d0") } }, "●"), "the layer's own experts, 95 % interval over documents"),
      M.h("span", {}, "····", " chance"),
      rows.some((r) => r.reference !== null && r.reference !== undefined) ? M.h("span", {}, "– – –", " experts with shuffled weights, same inputs") : null);
    M.fill(M.id("plot-depth"), M.h("div", { class: side ? "panels wide" : "panels" }, M.data.methods.map((m, i) => panel(m.key, i, width))), legend);
    M.asTable("depth", [
      { key: "layer", label: "layer" }, { key: "name", label: "method", name: true }, { key: "mean", label: "mean", format: M.fmt.three },
      { key: "interval", label: "95 %", name: true }, { key: "chance", label: "chance", format: M.fmt.three }, { key: "reference", label: "shuffled", format: M.fmt.three },
      { key: "debiased", label: "debiased", format: M.fmt.three, title: "mean of CKA without its bias from a finite number of tokens" },
      { key: "max", label: "largest", format: M.fmt.three }, { key: "best", label: "pair", name: true }, { key: "min", label: "least", format: M.fmt.three },
      { key: "halves_rank_correlation", label: "halves agree", format: M.fmt.two, title: "rank correlation of all pairs between two halves of the documents" },
    ], () => rows.map((r) => ({
      ...r, name: M.short[r.method], interval: M.range(r.mean_low, r.mean_high) || "–", best: `E${r.max_pair[0]} + E${r.max_pair[1]}`,
      debiased: r.mean_debiased ?? null,
      reference: r.reference === undefined ? null : r.reference, halves_rank_correlation: r.halves_rank_correlation === undefined ? null : r.halves_rank_correlation,
    })));
  }
  if (M.data.methods.length) M.section("depth", [], draw);
})();
