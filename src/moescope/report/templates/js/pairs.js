"use strict";
// Co-activation in the chosen layer: lift of pairs as a map, and the pairs furthest above chance.
(function () {
  function draw() {
    if (M.missing("pairs", "tokens")) return;
    const made = M.view().pairs[M.state.layer];
    const layer = M.layers[M.state.layer].layer;
    if (!made || !made.experts.length || M.layers[M.state.layer].top_k < 2) {
      M.title("pairs", `Layer ${layer}`);
      M.fill(M.id("plot-pairs"), M.absent("No pairs: one expert serves each token here, or no token was counted."));
      return;
    }
    const n = made.experts.length;
    const at = (i, j) => {
      if (i === j) return null;
      const [a, b] = i < j ? [i, j] : [j, i];
      return made.lift[a * n - (a * (a + 1)) / 2 + (b - a - 1)];
    };
    const size = (v) => Math.log2(Math.max(v, 1) / 100 / made.chance);
    const color = M.diverging(2);
    const name = (i) => M.name(M.state.layer, made.experts[i]);
    const top = M.rows(made.top).map((r) => ({ ...r, pair: `${M.name(M.state.layer, r.a)} + ${M.name(M.state.layer, r.b)}` }));
    M.title("pairs", top.length ? `Layer ${layer}: the closest pair is ${top[0].pair}, with a lift of ${M.fmt.lift(top[0].lift)}` : `Layer ${layer}: too few tokens to rank pairs`,
      `${n < made.all_experts ? `the ${n} busiest of ${made.all_experts} experts · ` : ""}even random routing gives ${M.fmt.two(made.chance)}, as a token's experts must differ`);
    const map = M.heatmap({
      rows: n, cols: n, width: Math.min(M.width("pairs"), 44 + n * (n <= 16 ? 26 : 13) + 6), square: true, label: `Lift of expert pairs in layer ${layer}`,
      rowLabel: (i) => String(made.experts[i]), colLabel: (i) => String(made.experts[i]), yTitle: "expert", xTitle: `expert of layer ${layer} →`,
      color: (i, j) => { const v = at(i, j); return v === null || v === undefined ? null : color(size(v)); },
      describe: (i, j) => { const v = at(i, j); return i !== j && [`${name(i)} + ${name(j)}`, v === null || v === undefined ? "one of them was never chosen" : `lift ${M.fmt.lift(v / 100)} (even random routing: ${M.fmt.two(made.chance)})`]; },
    });
    const best = top.length ? M.table([
      { key: "pair", label: "pair", name: true }, { key: "lift", label: "lift", format: M.fmt.lift },
      { key: "count", label: "together", format: M.fmt.count }, { key: "expected", label: "by chance", format: (v) => M.fmt.count(Math.round(v)) },
      { key: "b_given_a", label: "2nd if 1st", format: M.fmt.percent }, { key: "a_given_b", label: "1st if 2nd", format: M.fmt.percent },
    ], top, { label: `Top pairs of layer ${layer}`, dense: true }) : null;
    M.fill(M.id("plot-pairs"), M.scaleLegend(color, -2, 2, [[0, `${M.fmt.two(made.chance / 4)} or less`], [0.5, M.fmt.two(made.chance)], [1, `${M.fmt.two(made.chance * 4)} or more`]], "lift, neutral at chance"),
      M.h("div", { class: M.width("pairs") - n * (n <= 16 ? 26 : 13) > 440 ? "pairs wide" : "pairs" }, map, best));
    M.asTable("pairs", [{ key: "pair", label: "pair", name: true }, { key: "lift", label: "lift", format: M.fmt.lift }],
      () => d3.range(n).flatMap((i) => d3.range(i + 1, n).map((j) => ({ pair: `${name(i)} + ${name(j)}`, lift: at(i, j) === null ? null : at(i, j) / 100 }))).sort((a, b) => d3.descending(a.lift, b.lift)));
  }
  M.section("pairs", ["phase", "layer"], draw, () => M.id("controls-pairs").append(M.layerControl()));
})();
