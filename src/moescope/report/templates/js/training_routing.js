"use strict";
// How the load is spread: measures by layer and step, the noise, what is dropped.
(function () {
  const routing = M.data.routing;
  const E = M.data.experts;
  const K = M.data.top_k;
  const of = (value) => (value === null || value === undefined ? null : value);
  const each = (text, value, format) => (of(value) === null ? null : `${text} ${format(value)}`);
  const chance = E && K ? K / E : null;
  const evenCv = E && K ? Math.sqrt(E / K - 1) : null;
  const MEASURES = {
    cv: { label: "CV", line: routing && routing.cv_chance ? "even random routing" : null, title: "Unevenness of the load (CV) by layer", unit: "CV of the load", even: routing && routing.cv_chance ? routing.cv_chance : 0, zero: true, format: M.fmt.two, worst: d3.maxIndex,
      sub: ["standard deviation over mean of the experts' assignments in a step", "even: 0", each(`even, drawn at random for ${routing && M.fmt.count(routing.tokens)} tokens:`, routing && routing.cv_chance, M.fmt.three), each("at most", evenCv, M.fmt.two)],
      read: "At 0 every expert of the layer gets as many tokens; 1 means that experts typically differ from the mean by as much as the mean itself. A line that rises shows a layer that is collapsing onto few experts." },
    max_violation: { label: "MaxVio", title: "Excess of the busiest expert (MaxVio) by layer", unit: "MaxVio", even: 0, zero: true, format: M.fmt.two, worst: d3.maxIndex,
      sub: ["largest load over mean load, minus 1", "even: 0", each("at most", E && K ? E / K - 1 : null, M.fmt.two)],
      read: "At 1 the busiest expert has twice an even load. It decides how much capacity a layer needs, and how long the others wait for it." },
    load_entropy: { label: "load entropy", title: "Entropy of the load by layer", unit: "H(load) / log E", even: 1, format: M.fmt.three, worst: d3.minIndex,
      sub: ["H(load) / log E", "even: 1", "a single expert: 0"],
      read: "Close to 1 the load is nearly even. It moves little for small unevenness, so read it with the CV: a drop here means that many tokens go to few experts." },
    router_entropy: { label: "router entropy", title: "How undecided the router is, by layer", unit: "H(p) / log E", even: 1, format: M.fmt.three, worst: d3.maxIndex,
      line: "a router that tells no token from another", sub: ["mean over tokens of H(p) / log E", "all experts equally probable: 1", "certain: 0"],
      read: "It starts near 1 and falls as the router learns to tell tokens apart; a layer that stays at 1 routes by accident, one that drops to 0 early has stopped exploring." },
    dead_share: { label: "dead", title: "Dead experts by layer", unit: "share of the experts", even: 0, zero: true, format: M.fmt.percent, percent: true, worst: d3.maxIndex,
      line: "no dead expert", sub: ["share of a layer's experts that no token of the step chose", "even: 0"],
      read: "An expert that no token chooses gets no gradient and seldom comes back by itself. In a small batch one can be passed over by accident; a share that stays above 0 is capacity that the model pays for and does not use." },
    dropped_share: { label: "dropped", title: "Dropped assignments by layer", unit: "share of assignments", even: 0, zero: true, format: M.fmt.percent, percent: true, worst: d3.maxIndex,
      line: "nothing dropped", sub: ["share of a layer's assignments beyond an expert's capacity", "nothing dropped: 0"],
      read: "Where a layer's load is uneven, its busy experts overflow; in a layer that drops much, tokens pass with fewer experts than K." },
    saturation: { label: "saturation", title: "Agreement of the routing with the evaluation before (saturation), by layer", unit: "share of a token's experts", even: chance, zero: true, top: 1, format: M.fmt.percent, percent: true, worst: d3.minIndex,
      line: "chance", sub: ["mean share of a held-out token's K experts that the model chose at the evaluation before too", each("chance K/E:", chance, M.fmt.percent), "settled: 100 %"],
      read: "At chance the routing of the two models has nothing in common; near 100 % it has settled. Settled routing does not mean that the experts have stopped learning." },
  };

  if (routing) {
    const offered = Object.keys(MEASURES).filter((k) => routing.measures[k]);
    M.keepOne("routing", offered.length ? offered : ["cv"]);
    M.keepOne("layout", routing.layers.length > 24 ? ["apart", "together"] : ["together", "apart"]);
    const ramp = () => d3.piecewise(d3.interpolateRgb, [M.css("d0"), M.css("d3"), M.css("d1")]);
    const color = (i) => ramp()(routing.layers.length > 1 ? i / (routing.layers.length - 1) : 0);
    const tick = (measure) => (measure.percent ? M.tickPercent : M.fmt.any);

    const sparse = (rows) => rows.length <= 24;
    const linesOf = (key, measure) => routing.layers.map((layer, i) => ({ layer, color: color(i), rows: routing.step.map((step, t) => ({ step, value: routing.measures[key][t][i] })).filter((r) => r.value !== null)
      .map((r) => ({ ...r, title: `layer ${layer} · step ${M.fmt.count(Math.round(r.step))}\n${measure.label} ${measure.format(r.value)}` })) }));
    const allLayers = (name, lines, spec) => M.stepChart({
      width: M.width(name), height: 340, room: 74, lines, ...spec,
      dots: lines.filter((l) => sparse(l.rows)).map((l) => ({ rows: l.rows, color: l.color })),
      labels: lines.map((l) => ({ value: l.rows.length ? l.rows[l.rows.length - 1].value : null, text: `layer ${l.layer}`, color: l.color })), tips: lines.flatMap((l) => l.rows),
    });

    M.figure("noise", [], () => {
      const start = Math.log(2) + 0.01;
      M.title("noise", "Scale of the noise by layer", M.sub("standard deviation of the noise on the router's logits, mean of tokens and experts", `at the start softplus(0) + 0.01 = ${M.fmt.two(start)} (dashed)`, routing.each > 1 ? `each point is a mean over ${routing.each} logged steps` : null));
      const lines = linesOf("noise_scale", { label: "noise", format: M.fmt.three });
      M.fill(M.id("plot-noise"), allLayers("noise", lines, { height: 260, unit: "standard deviation", zero: true, refs: [{ value: start }], label: "Scale of the noise by layer and step" }));
      M.asTable("noise", [{ key: "step", label: "step", format: (v) => M.fmt.count(Math.round(v)) }, { key: "layer", label: "layer" }, { key: "value", label: "scale of the noise", format: M.fmt.three }],
        () => lines.flatMap((l) => l.rows.map((r) => ({ ...r, layer: l.layer }))).reverse());
    });

    M.figure("routing", ["routing", "layout"], () => {
      const key = M.state.routing;
      const measure = MEASURES[key];
      const matrix = routing.measures[key];
      if (!matrix) return M.fill(M.id("plot-routing"), M.absent("Nothing is known of the routing yet."));
      const now = routing.last[key];
      const at = measure.worst(now.values, (v) => (v === null ? NaN : v));
      const lines = linesOf(key, measure);
      M.title("routing", measure.title, M.sub(...measure.sub, routing.each > 1 ? `each point is a mean over ${routing.each} logged steps` : null));
      M.fill(M.id("read-routing"), M.h("strong", {}, "How to read it."), ` ${measure.read}`);
      const common = { unit: measure.unit, tick: tick(measure), zero: measure.zero, top: measure.top, refs: [{ value: measure.even }] };
      const together = M.state.layout === "together";
      const chart = together
        ? allLayers("routing", lines, { ...common, label: `${measure.title} and step` })
        : M.panels("routing", lines.map((l) => ({ title: `layer ${l.layer}`, chart: (width) => M.stepChart({ ...common, ...shared(lines), width, height: 170, label: `${measure.label} of layer ${l.layer} by step`,
          unit: null, lines: [{ ...l, width: 1.6 }], dots: sparse(l.rows) ? [{ rows: l.rows, color: l.color, r: 2.6 }] : [], tips: l.rows }) })), 230);
      M.fill(M.id("plot-routing"), chart,
        M.h("p", { class: "small" }, `At step ${M.fmt.count(now.step)}: ${measure.worst === d3.maxIndex ? "largest" : "smallest"} in layer ${routing.layers[at]} (${measure.format(now.values[at])}), mean of the layers ${measure.format(d3.mean(now.values))}. `,
        of(measure.even) === null ? "" : `The dashed line is ${measure.line || "an even load"}.`));
      M.asTable("routing", [
        { key: "step", label: "step", format: (v) => M.fmt.count(Math.round(v)) }, { key: "layer", label: "layer" },
        ...offered.map((k) => ({ key: k, label: MEASURES[k].label, format: MEASURES[k].format })),
      ], () => routing.step.flatMap((step, t) => routing.layers.map((layer, i) => ({ step, layer, ...Object.fromEntries(offered.map((k) => [k, routing.measures[k][t][i]])) }))).reverse());
      return undefined;
    }, () => M.id("controls-routing").append(
      M.choice("Show", "routing", offered.map((value) => ({ value, label: MEASURES[value].label })), 8),
      ...(routing.layers.length > 1 ? [M.choice("Layers", "layout", [{ value: "together", label: "in one chart" }, { value: "apart", label: "one by one" }])] : []),
      ...M.axisControls()));
    // panels share their heights, or they could not be compared
    const shared = (lines) => {
      const [low, high] = M.stepDomain();
      const values = lines.flatMap((l) => l.rows).filter((r) => r.step >= low && r.step <= high).map((r) => r.value);
      return values.length ? { extent: d3.extent(values) } : {};
    };
  }

  M.figure("dropped", [], () => {
    const rows = M.stepRows("dropped_share");
    M.title("dropped", "Dropped in training, all layers", M.sub("share of assignments beyond an expert's capacity", "nothing dropped: 0", M.pointsAre(), M.lineIs(rows)));
    M.fill(M.id("plot-dropped"), rows.every((r) => !r.value) ? M.absent("Nothing has been dropped.")
      : M.stepLine("dropped_share", { width: M.width("dropped"), color: M.css("d3"), zero: true, unit: "share of assignments", tick: M.tickPercent, format: M.fmt.percent, label: "Dropped share by step" }));
    M.asTable("dropped", [{ key: "when", label: "steps", name: true, format: M.fmt.text }, { key: "value", label: "dropped", format: M.fmt.percent }], () => rows.map((r) => ({ ...r, when: M.when(r) })).reverse());
  });

  M.figure("drops", [], () => {
    const { positions, share } = M.data.drops;
    const rows = positions.map((position, i) => ({ position: String(position), share: of(share[i]) })).filter((r) => r.share !== null);
    const mean = d3.mean(rows, (r) => r.share);
    const width = M.width("drops");
    const step = M.step(rows.length, (width - 70) / Math.max(1, rows.length), 7 * (d3.max(rows, (r) => r.position.length) || 1));
    M.title("drops", "Dropped in training, by position in the sequence", `share of a position's assignments · if all positions lost alike: ${M.fmt.percent(mean)} (dashed)`);
    M.fill(M.id("plot-drops"), rows.length ? Plot.plot({
      width, height: 220, marginLeft: 56, marginBottom: 36, marginTop: 22, style: M.style, ariaLabel: "Dropped share by position in the sequence",
      x: { type: "band", domain: rows.map((r) => r.position), label: "position →", labelArrow: "none", tickSize: 0, padding: 0.15, ticks: rows.filter((_, i) => i % step === 0).map((r) => r.position) },
      y: { grid: true, ticks: 4, tickSize: 0, zero: true, label: "share of assignments", labelArrow: "none", tickFormat: M.tickPercent },
      marks: [Plot.barY(rows, { x: "position", y: "share", fill: M.css("d3") }), Plot.ruleY([0]), Plot.ruleY([mean], { strokeDasharray: "4 3" }),
        Plot.tip(rows, Plot.pointerX({ x: "position", y: "share", title: (r) => `positions ${r.position}\n${M.fmt.percent(r.share)} dropped` }))],
    }) : M.absent("Nothing is known by position."));
    M.asTable("drops", [{ key: "position", label: "positions", name: true, format: M.fmt.text }, { key: "share", label: "dropped", format: M.fmt.percent }], () => rows);
  });
})();
