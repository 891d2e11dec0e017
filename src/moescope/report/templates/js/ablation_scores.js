"use strict";
// Which score would have told: rank correlations, and each score against measured importance.
(function () {
  if (M.data.kind !== "each") return;
  const names = Object.keys(M.data.scores);
  const said = (name) => M.data.score_names[name];
  const first = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  M.state.basis = "layer";
  M.state.against = "ce_change";

  const chosen = () => M.data.correlations.filter((r) => r.importance === M.state.against && r.basis === M.state.basis
    && (r.layer === null || r.layer === M.layers[M.state.layer].layer));
  const best = d3.greatest(M.data.correlations.filter((r) => r.basis === "layer" && r.importance === "ce_change" && r.layer === M.layers[0].layer && r.rho !== null), (r) => r.rho);
  M.state.score = best ? best.score : names[0];

  M.section("rho", ["layer", "basis", "against"], () => {
    const rows = d3.sort(chosen(), (r) => (r.rho === null ? Infinity : -r.rho));
    const known = rows.filter((r) => r.rho !== null);
    const where = { layer: `layer ${M.layers[M.state.layer].layer}`, "within layers": "mean within layers", pooled: "all layers as one list" }[M.state.basis];
    const self = M.state.basis === "layer" && M.state.against === "ce_change" ? M.data.repeatability[M.layers[M.state.layer].layer] : null;
    if (!known.length) {
      M.title("rho", "Too few experts were chosen to correlate anything");
      return M.fill(M.id("plot-rho"), M.absent("No correlation is known."));
    }
    const clear = known[0].low > 0 && known[0].q <= M.data.level;
    M.title("rho", `${clear ? first(said(known[0].score)) : `No score is shown to follow importance; the closest: ${said(known[0].score)}`}${clear ? " follows measured importance most closely:" : ","} ρ = ${M.fmt.two(known[0].rho)}`,
      `Spearman's ρ with ${M.measures[M.state.against].label}, ${where} · ${known[0].experts} experts${self === null || self === undefined ? "" : ` · dashed: importance between halves of the documents, ${M.fmt.two(self)}`}`);
    const dots = known.map((r) => ({
      ...r, key: r.score, name: said(r.score), value: r.rho, color: r.low > 0 || r.high < 0 ? M.css("d0") : M.css("grey"),
      title: `${said(r.score)}: ρ = ${M.fmt.two(r.rho)}\n95 %: ${M.fmt.two(r.low)} to ${M.fmt.two(r.high)}\np = ${M.fmt.p(r.p)}, q = ${M.fmt.p(r.q)}`,
    }));
    M.fill(M.id("plot-rho"), M.h("div", { class: "scroll" }, M.dotRows(dots, {
      width: Math.min(M.width("rho"), 820), label: "Rank correlation of each score with measured importance", unit: "Spearman's ρ",
      domain: [Math.min(-0.3, (d3.min(dots, (d) => d.low) || 0) - 0.02), 1],
      marks: self === null || self === undefined ? [] : [Plot.ruleX([self], { stroke: M.css("d1"), strokeDasharray: "4 3", strokeWidth: 1.5 })],
    })), M.legend([{ color: M.css("d0"), label: "the interval leaves 0 out" }, { color: M.css("grey"), label: "no link is shown" }]));
    M.asTable("rho", [
      { key: "score", label: "score", name: true, format: said }, { key: "rho", label: "ρ", format: M.fmt.two }, { key: "span", label: "95 %", name: true },
      { key: "p", label: "p", format: M.fmt.p }, { key: "q", label: "q", format: M.fmt.p }, { key: "experts", label: "experts", format: M.fmt.count },
    ], () => rows.map((r) => ({ ...r, span: r.low === null ? "–" : `${M.fmt.two(r.low)} to ${M.fmt.two(r.high)}` })));
    return undefined;
  }, () => {
    const host = M.id("controls-rho");
    if (M.layers.length > 1) {
      host.append(M.choice("Over", "basis", ["layer", "within layers", "pooled"].map((v) => ({ value: v, label: v === "layer" ? "one layer" : v }))), M.layerControl());
    }
    host.append(M.choice("Importance", "against", ["ce_change", "kl"].map((v) => ({ value: v, label: M.measures[v].label }))));
  });

  M.section("scatter", ["layer", "score", "against"], () => {
    const key = M.state.against;
    const m = M.measures[key];
    const rows = M.layerExperts(0).filter((e) => e.chosen && e[M.state.score] !== null);
    const layer = M.layers[M.state.layer].layer;
    const found = M.data.correlations.find((r) => r.basis === "layer" && r.layer === layer && r.importance === key && r.score === M.state.score);
    M.title("scatter", `${first(said(M.state.score))} and ${m.label} in layer ${layer}${found && found.rho !== null ? `: ρ = ${M.fmt.two(found.rho)}` : ""}`, `${M.data.scores[M.state.score]} · importance in ${m.unit}`);
    if (!rows.length) return M.fill(M.id("plot-scatter"), M.absent("This model has no such score."));
    const named = d3.sort(rows, (e) => -e[key]).slice(0, 3);
    M.fill(M.id("plot-scatter"), M.h("div", { class: "scroll" }, Plot.plot({
      width: Math.min(M.width("scatter"), 720), height: 380, marginLeft: 58, marginRight: 34, marginBottom: 40, style: M.style, ariaLabel: `${said(M.state.score)} against ${m.label}`,
      x: { label: `${said(M.state.score)} →`, labelArrow: "none", grid: true, ticks: 6, tickSize: 0, nice: true, tickFormat: M.ticks() },
      y: { label: `${m.label}, ${m.unit}`, insetTop: 14, labelArrow: "none", grid: true, ticks: 6, tickSize: 0, nice: true, tickFormat: M.axisOf(key) },
      marks: [
        Plot.ruleY([0], { strokeOpacity: 0.5 }),
        Plot.link(rows.filter((e) => e[`${key}_low`] !== null), { x: M.state.score, y1: `${key}_low`, y2: `${key}_high`, stroke: M.css("d0"), strokeOpacity: 0.35 }),
        Plot.dot(rows, { x: M.state.score, y: key, fill: M.css("d0"), r: 4, stroke: "var(--panel)" }),
        Plot.text(named, { x: M.state.score, y: key, text: "name", dx: 7, textAnchor: "start", fill: "currentColor" }),
        Plot.tip(rows, Plot.pointer({ x: M.state.score, y: key, maxRadius: 40, title: (e) => `${e.name}\n${said(M.state.score)} ${M.fmt.plain(e[M.state.score])}\n${m.label} ${m.format(e[key])}\n95 %: ${M.span(e, key, m.format)}` })),
      ],
    })));
    M.asTable("scatter", [
      M.expertColumn("name"), { key: M.state.score, label: said(M.state.score), format: M.fmt.plain }, { key, label: m.label, format: m.format }, { key: "span", label: "95 %", name: true },
    ], () => d3.sort(rows, (e) => -e[key]).map((e) => ({ ...e, span: M.span(e, key, m.format) })));
    return undefined;
  }, () => M.id("controls-scatter").append(M.choice("Score", "score", names.map((n) => ({ value: n, label: said(n) })), 4),
    ...(M.layers.length > 1 ? [M.layerControl()] : [])));
})();
