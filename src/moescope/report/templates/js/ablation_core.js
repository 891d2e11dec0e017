"use strict";
// What both kinds of the page share: measures, number formats, and rows of dots with intervals.
(function () {
  const digits = (v) => (Math.abs(v) >= 0.0995 || v === 0 ? 3 : Math.abs(v) >= 0.00095 ? 4 : 5);
  M.fmt.nats = M.known((v) => `${v > 0 ? "+" : ""}${v.toFixed(digits(v))}`);
  M.fmt.plain = M.known(d3.format(".3~g"));
  M.measures = {
    ce_change: { label: "ΔCE", long: "Change of cross-entropy", unit: "nats per token", format: M.fmt.nats },
    kl: { label: "KL", long: "KL from the plain model", unit: "nats per token", format: M.fmt.nats },
    flips: { label: "top-1 flips", long: "Tokens with another first guess", unit: "share of tokens", format: M.fmt.percent },
  };
  M.axisOf = (key) => (key === "flips" ? M.ticks(" %", 100) : M.ticks());
  M.state.measure = "ce_change";
  M.measureControl = () => M.choice("Measure", "measure", Object.entries(M.measures).map(([value, m]) => ({ value, label: m.label })));
  M.span = (row, key, format) => (row[`${key}_low`] === null ? "no interval" : `${format(row[`${key}_low`])} to ${format(row[`${key}_high`])}`);
  M.groupName = (g) => (g.scope === "all" ? "all text" : g.scope === "domain" ? g.domain : `${g.scope.replace("-", " ")}: ${g.domain}`);

  // Rows of dots with intervals: [{name, value, low, high, color, title}]; marks: what lies behind.
  M.dotRows = function (rows, spec) {
    const longest = d3.max(rows, (r) => r.name.length) || 4;
    const most = spec.width < 520 ? 17 : 30;
    const marginLeft = Math.min(most, longest) * 6.4 + 14;
    const shown = new Map(rows.map((r) => [r.key, M.shorten(r.name, most)]));
    return Plot.plot({
      width: spec.width, height: rows.length * (spec.step || 24) + 58, marginLeft, marginRight: 16, marginTop: 8, marginBottom: 40,
      style: M.style, ariaLabel: spec.label,
      x: { label: `${spec.unit} →`, labelAnchor: "right", labelArrow: "none", grid: true, ticks: Math.max(3, Math.floor((spec.width - marginLeft) / 85)), tickFormat: spec.tick || M.ticks(), tickSize: 0, domain: spec.domain, nice: !spec.domain },
      y: { type: "band", domain: rows.map((r) => r.key), label: null, tickFormat: (k) => shown.get(k), tickSize: 0, padding: 0.15 },
      marks: [
        Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.6 }),
        ...(spec.marks || []),
        Plot.link(rows.filter((r) => r.low !== null && r.low !== undefined), { x1: "low", x2: "high", y: "key", stroke: (r) => r.color, strokeWidth: 2 }),
        Plot.dot(rows.filter((r) => r.value !== null), { x: "value", y: "key", fill: (r) => r.color, r: 4.2, stroke: "var(--panel)", strokeWidth: 1 }),
        Plot.tip(rows.filter((r) => r.value !== null), Plot.pointerY({ x: "value", y: "key", title: "title", maxRadius: 60 })),
      ],
    });
  };
})();
