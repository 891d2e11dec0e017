"use strict";
// Rank correlation of two measures over the pairs of experts, by layer.
(function () {
  const rows = M.data.agreement.filter((r) => r.rho !== null).map((r) => ({ ...r, pair: `${M.short[r.a]} and ${M.short[r.b]}` }));
  if (!M.data.agreement.length) return;

  const two = (v) => M.fmt.two(Math.abs(v) < 0.005 ? 0 : v); // no −0.00

  function draw() {
    if (!rows.length) {
      M.title("agreement", "No two measures can be compared");
      M.fill(M.id("plot-agreement"), M.absent("There are too few pairs of experts, or a measure gives all of them one value."));
      M.asTable("agreement", [], () => []);
      return;
    }
    const names = [...new Set(rows.map((r) => r.pair))];
    const layers = M.layers.map((l) => l.layer);
    const left = 158;
    const width = Math.max(M.width("agreement"), left + layers.length * (layers.length > 24 ? 15 : 30) + 12);
    const room = (width - left - 12) / layers.length;
    const every = M.step(layers.length, room, 24);
    const color = M.diverging(1);
    // what is written on a cell: the one of the two colours of text that stands out from it
    const light = (c) => d3.lab(c).l > 58;
    const on = (rho) => M.css(light(color(rho)) === light(M.css("ink")) ? "bg" : "ink");
    const passed = rows.filter((r) => r.q !== null && r.q < M.data.level);
    const best = d3.greatest(passed, (r) => Math.abs(r.rho));
    M.title("agreement", passed.length ? `The strongest link: ${best.pair} in layer ${best.layer}, ρ = ${two(best.rho)}` : "No two measures agree beyond chance",
      `${passed.length} of ${rows.length} at q < 0.05 · over ${span(rows.map((r) => r.pairs))} pairs of experts each`);
    const plot = Plot.plot({
      width, height: names.length * 27 + 44, marginLeft: left, marginRight: 12, marginTop: 4, marginBottom: 38,
      style: { background: "transparent", fontSize: "11.5px", fontFamily: "inherit" }, ariaLabel: "Rank correlation of two measures, by layer",
      x: { type: "band", domain: layers, label: "layer →", labelArrow: "none", ticks: layers.filter((_, i) => i % every === 0), tickSize: 0, padding: 0.06 },
      y: { type: "band", domain: names, label: null, tickSize: 0, padding: 0.08 },
      color: { type: "identity" },
      marks: [
        Plot.cell(rows, { x: "layer", y: "pair", fill: (r) => color(r.rho) }),
        ...(room >= 38 ? [Plot.text(rows, { x: "layer", y: "pair", text: (r) => two(r.rho), fill: (r) => on(r.rho), dx: room >= 52 ? -4 : 0 })] : []),
        Plot.dot(passed, { x: "layer", y: "pair", r: 2.1, fill: (r) => on(r.rho), dx: room >= 52 ? 21 : 0, dy: room >= 52 || room < 38 ? 0 : 9 }),
        Plot.tip(rows, Plot.pointer({ x: "layer", y: "pair", maxRadius: 60, title: (r) => `layer ${r.layer}: ${r.pair}\nρ = ${two(r.rho)} over ${M.fmt.count(r.pairs)} pairs of ${r.experts} experts\np ${M.fmt.p(r.p)}, q ${M.fmt.p(r.q)}` })),
      ],
    });
    M.fill(M.id("plot-agreement"), M.scaleLegend(color, -1, 1, [[0, "−1"], [0.5, "0"], [1, "1"]], "ρ"), M.h("div", { class: "scroll" }, plot),
      M.h("p", { class: "small" }, "● q < 0.05"));
    M.asTable("agreement", [
      { key: "layer", label: "layer" }, { key: "pair", label: "measures", name: true }, { key: "rho", label: "ρ", format: M.fmt.three },
      { key: "pairs", label: "pairs", format: M.fmt.count }, { key: "experts", label: "experts", format: M.fmt.count },
      { key: "p", label: "p", format: M.fmt.p }, { key: "q", label: "q", format: M.fmt.p },
    ], () => rows);
  }
  function span(values) {
    const [low, high] = d3.extent(values);
    return low === high ? M.fmt.count(low) : `${M.fmt.count(low)} to ${M.fmt.count(high)}`;
  }
  M.section("agreement", [], draw);
})();
