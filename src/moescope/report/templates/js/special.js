"use strict";
// Specialised cells: lift with its interval beside what words alone predict, then the numbers.
(function () {
  const SHOWN = 20;

  function drawSpecial() {
    const special = M.view().special;
    const host = M.id("plot-special");
    const rows = M.rows(special.top);
    const passed = special.passed > 0;
    M.title("special", M.view().titles.special,
      !special.tested ? null : passed ? "the clearest first: those used more, then those used less" : "shown instead: the cells closest to passing, which is what chance leaves behind");
    if (!rows.length) {
      M.fill(host, M.absent("No cell was tested: this takes two domains with at least five documents each."));
      return;
    }
    const floor = 0.02;
    const usable = rows.filter((r) => r.lift_over_others !== null && r.lift_over_others > 0 && (!passed || r.q < M.data.level)).slice(0, passed ? SHOWN : 10);
    const points = usable.map((r) => ({
      ...r, key: `${r.name} · ${r.domain}`, low: Math.max(floor, r.lift_low || floor), high: r.lift_high,
      words: r.by_token !== null && r.on_shared > 0 ? Math.max(floor, (r.lift_over_others * r.by_token) / r.on_shared) : null, passes: r.q !== null && r.q < M.data.level,
    }));
    if (!points.length) {
      M.fill(host, M.absent("The passing cells have no finite lift: these experts are never chosen elsewhere. See the table."));
      return;
    }
    const width = M.width("special");
    const room = width < 560 ? 132 : 250;
    const ends = points.flatMap((p) => [p.low, p.high, p.words, p.lift_over_others, 1]).filter((v) => v);
    const plot = Plot.plot({
      width, height: points.length * 22 + 62, marginLeft: room, marginRight: 14, marginTop: 8,
      style: M.style, ariaLabel: "Lift of the top cells with 95 % intervals",
      x: { type: "log", domain: [Math.max(floor, d3.min(ends) * 0.92), d3.max(ends) * 1.08], label: "lift over the other domains (log scale) →", labelArrow: "none", grid: true, ticks: width < 560 ? 4 : 8, tickFormat: (v) => `${+v.toPrecision(2)}` },
      y: { domain: points.map((p) => p.key), label: null, tickSize: 0, tickFormat: (k) => M.shorten(k, width < 560 ? 20 : 40) },
      marks: [
        Plot.ruleX([1], { stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.ruleY(points.filter((p) => p.high), { y: "key", x1: "low", x2: "high", stroke: (p) => M.domainColor(M.view().domains.indexOf(p.domain)), strokeWidth: 2 }),
        Plot.dot(points.filter((p) => p.words), { x: "words", y: "key", symbol: "times", stroke: "currentColor", strokeWidth: 1.6, r: 4 }),
        Plot.dot(points, { x: "lift_over_others", y: "key", r: 4.5, fill: (p) => (p.passes ? M.domainColor(M.view().domains.indexOf(p.domain)) : M.css("panel")), stroke: (p) => M.domainColor(M.view().domains.indexOf(p.domain)), strokeWidth: 2 }),
        Plot.tip(points, Plot.pointer({ x: "lift_over_others", y: "key", title: tipText })),
      ],
    });
    M.fill(host, plot, M.h("div", { class: "legend" }, M.h("span", {}, "● passes q < 0.05"), M.h("span", {}, "○ does not"), M.h("span", {}, "× what the words alone predict"), M.h("span", {}, "line: 95 % interval"), M.h("span", {}, "dashed: no difference")));
    M.asTable("special", COLUMNS, () => points);
  }
  const tipText = (p) =>
    `${p.name} · ${p.domain}\nlift ${M.fmt.lift(p.lift_over_others)} (95 %: ${M.fmt.lift(p.lift_low)} to ${M.fmt.lift(p.lift_high)})\n${M.fmt.percent(p.value)} here, ${M.fmt.percent(p.others)} elsewhere, chance ${M.fmt.percent(p.chance)}\nover shared tokens ${M.fmt.percent(p.on_shared)}, by words ${M.fmt.percent(p.by_token)}\nq ${M.fmt.p(p.q)}`;

  const COLUMNS = [
    { key: "name", label: "expert", name: true },
    { key: "domain", label: "domain", text: true },
    { key: "value", label: "rate", format: M.fmt.percent, title: "activation rate in the domain" },
    { key: "ci_low", label: "95 % interval", render: (r) => M.interval(r.ci_low, r.ci_high, M.fmt.percent) },
    { key: "chance", label: "chance", format: M.fmt.percent, title: "K/E" },
    { key: "others", label: "elsewhere", format: M.fmt.percent, title: "activation rate in all other domains" },
    { key: "lift_over_others", label: "lift", format: M.fmt.lift, title: "rate over the rate elsewhere; 1 is no difference" },
    { key: "lift_low", label: "95 % interval", render: (r) => M.interval(r.lift_low, r.lift_high, M.fmt.lift) },
    { key: "q", label: "q", format: M.fmt.p, title: "false discovery rate" },
    { key: "p_max", label: "p of the largest", format: M.fmt.p, title: "chance that the largest of all cells is as far out, for a cell chosen because it is large" },
    { key: "on_shared", label: "on shared tokens", format: M.fmt.percent, title: "rate over the tokens whose id other domains use too" },
    { key: "by_token", label: "by words", format: M.fmt.percent, title: "rate that the same token ids alone predict" },
    { key: "beyond_token", label: "beyond", format: M.fmt.points, title: "measured minus predicted, over shared token ids" },
  ];

  function drawCells() {
    const special = M.view().special;
    const rows = M.rows(special.top).map((r) => ({ ...r, dim: r.q === null || r.q >= M.data.level }));
    if (!rows.length) {
      M.fill(M.id("plot-cells"), M.absent("Nothing to list."));
      return;
    }
    const lead = special.passed
      ? `${M.fmt.count(special.passed)} of ${M.fmt.count(special.tested)} tested cells pass; grey rows do not.`
      : `None of ${M.fmt.count(special.tested)} tested cells passes; the rows are the closest and are shown in grey. Do not read them as findings.`;
    M.fill(M.id("plot-cells"), M.h("p", { class: "small" }, lead, special.cells > special.tested ? ` ${M.fmt.count(special.cells - special.tested)} cells were not tested (never chosen, or too few documents).` : ""),
      M.table(COLUMNS, rows, { label: "Top cells with all numbers" }));
  }

  M.section("special", ["phase"], drawSpecial);
  M.section("cells", ["phase"], drawCells);
})();
