"use strict";
// From layer to layer: the pairs of experts that more tokens pass than independence gives, and whole routes.
(function () {
  const ROW = 21;
  const MOST_LAYERS = 16;

  // The steps that are drawn; of very many layers those around the chosen one.
  function window_(steps) {
    const size = MOST_LAYERS - 1;
    const start = Math.max(0, Math.min(steps.length - size, M.state.layer - Math.floor(size / 2)));
    return steps.slice(start, start + size);
  }
  // Columns of experts by layer, each near those that it is linked with in the layer before.
  function columns(steps) {
    const layers = [...steps.map((s) => s.layer), steps[steps.length - 1].next];
    const places = layers.map(() => new Map());
    layers.forEach((_, c) => {
      const own = new Set([...(steps[c] ? steps[c].links.map((l) => l.expert) : []), ...(c ? steps[c - 1].links.map((l) => l.next_expert) : [])]);
      const before = (e) => (c ? d3.mean(steps[c - 1].links.filter((l) => l.next_expert === e), (l) => places[c - 1].get(l.expert)) : e);
      d3.sort(own, (e) => before(e) ?? own.size, (e) => e).forEach((e, i) => places[c].set(e, i));
    });
    return { layers, places };
  }

  function draw() {
    if (M.missing("flow", "tokens")) return;
    const host = M.id("plot-flow");
    const steps = M.view().flow.map((s) => ({ ...s, links: M.rows(s.top).map((l) => ({ ...l, layer: s.layer, next: s.next, gain: l.share - l.expected })) }));
    const links = steps.flatMap((s) => s.links);
    if (!links.length) {
      M.title("flow", "Paths from layer to layer");
      M.fill(host, M.absent("There are no two layers here with tokens that pass both."));
      return;
    }
    const name = (l) => `L${l.layer}E${l.expert} → L${l.next}E${l.next_expert}`;
    const best = d3.greatest(links, (l) => l.gain);
    const shown = window_(steps).map((s) => ({ ...s, links: s.links.slice(0, steps.length > 6 ? 6 : 10) }));
    M.title("flow", `${name(best)}: ${M.fmt.percent(best.share)} of the tokens, where independent layers give ${M.fmt.percent(best.expected)}`,
      `the strongest ${shown[0].links.length} of each step${shown.length < steps.length ? `, layers ${shown[0].layer} to ${shown[shown.length - 1].next}` : ""}`);
    M.fill(host, M.h("div", { class: "scroll" }, figure(shown, best.gain, name)));
    M.asTable("flow", [
      { key: "from", label: "from", name: true, render: (l) => M.cellLink(l.from) }, { key: "to", label: "to", name: true, render: (l) => M.cellLink(l.to) },
      { key: "share", label: "of the tokens", format: M.fmt.percent }, { key: "expected", label: "if independent", format: M.fmt.percent }, { key: "lift", label: "ratio", format: M.fmt.lift },
      { key: "moved", label: "pairs of the step that would have to change", format: M.fmt.percent }, { key: "noise", label: "by noise", format: M.fmt.percent },
    ], () => steps.flatMap((s) => s.links.map((l) => ({ ...l, from: `L${l.layer}E${l.expert}`, to: `L${l.next}E${l.next_expert}`, lift: l.share / l.expected, moved: s.moved, noise: s.moved_chance }))));
  }

  function figure(steps, most, name) {
    const { layers, places } = columns(steps);
    const gap = Math.max(92, Math.min(220, (M.width("flow") - 60) / (layers.length - 1)));
    const [width, rows] = [gap * (layers.length - 1) + 60, d3.max(places, (p) => p.size)];
    const height = 30 + rows * ROW + 44;
    const x = (c) => 30 + c * gap;
    const y = (c, e) => 34 + (places[c].get(e) + (rows - places[c].size) / 2 + 0.5) * ROW;
    const svg = d3.create("svg").attr("width", width).attr("height", height).attr("viewBox", `0 0 ${width} ${height}`).attr("font-size", 11).attr("fill", "currentColor")
      .attr("role", "img").attr("aria-label", "Pairs of experts in neighbouring layers that more tokens pass than independence gives; the table below has the numbers");
    const text = (at, top, words, anchor = "middle") => svg.append("text").attr("x", at).attr("y", top).attr("text-anchor", anchor).text(words);
    steps.forEach((s, c) => {
      for (const l of s.links) {
        const [x1, y1, x2, y2] = [x(c) + 16, y(c, l.expert) - 4, x(c + 1) - 16, y(c + 1, l.next_expert) - 4];
        svg.append("path").attr("d", `M${x1},${y1}C${x1 + gap / 3},${y1} ${x2 - gap / 3},${y2} ${x2},${y2}`).attr("fill", "none")
          .attr("stroke", M.css("d0")).attr("stroke-opacity", 0.55).attr("stroke-width", 0.8 + (7 * l.gain) / most)
          .on("pointermove", (event) => M.tip.show(event.clientX, event.clientY, M.h("b", {}, name(l)), M.h("div", {}, `${M.fmt.percent(l.share)} of the tokens; independent layers: ${M.fmt.percent(l.expected)}`)))
          .on("pointerleave", () => M.tip.hide());
      }
      text((x(c) + x(c + 1)) / 2, height - 24, M.fmt.percent(s.moved));
      text((x(c) + x(c + 1)) / 2, height - 8, `noise ${M.fmt.percent(s.moved_chance)}`).attr("fill", M.css("soft"));
    });
    layers.forEach((layer, c) => {
      text(x(c), 14, `layer ${layer}`).attr("fill", M.css("soft"));
      for (const e of places[c].keys()) {
        svg.append("a").attr("href", `#L${layer}E${e}`).append("text").attr("x", x(c)).attr("y", y(c, e)).attr("text-anchor", "middle").text(`E${e}`);
      }
    });
    return svg.node();
  }

  function drawRoutes() {
    const host = M.id("plot-routes");
    const made = M.view().routes;
    if (!made || !made.count.length) {
      M.fill(host, M.absent(made ? "No route was taken twice." : "Absent: no single tokens with their first choices were kept in this part of the run."));
      return;
    }
    const paths = M.rows(M.view().paths).find((p) => p.domain === "all");
    const rows = M.rows({ experts: made.experts, count: made.count, expected: made.expected, id: made.id, of_id: made.of_id });
    M.fill(host, M.h("p", { class: "small" }, `First choices through all layers: ${M.fmt.count(made.distinct)} different routes among ${M.fmt.count(made.tokens)} sampled tokens`,
      paths ? `; in the whole text ${M.fmt.count(paths.distinct)} among ${M.fmt.count(paths.tokens)}, ${M.fmt.two(paths.entropy_bits)} bits of at most ${M.fmt.two(paths.max_bits)}.` : "."),
    M.table([
      { key: "experts", label: `route, layers ${M.layers[0].layer} to ${M.layers[M.layers.length - 1].layer}`, [M.layers.length > 8 ? "text" : "name"]: true, render: (r) => r.experts.map((e, i) => [i ? " → " : "", M.cellLink(M.name(i, e), `E${e}`)]) },
      { key: "count", label: "tokens", format: M.fmt.count },
      { key: "expected", label: "if independent", format: (v) => (v < 0.01 ? "< 0.01" : M.fmt.two(v)), title: "tokens that would take it if the layers chose independently" },
      { key: "id", label: "commonest token", mono: true, render: (r) => M.tokenShown(M.tokenText(r.id)) },
      { key: "of_id", label: "of these", format: M.fmt.count },
    ], rows, { label: "The routes that most tokens take" }));
  }

  M.section("flow", ["phase", ...(M.layers.length > MOST_LAYERS ? ["layer"] : [])], draw, () => M.layers.length > MOST_LAYERS && M.id("controls-flow").append(M.layerControl()));
  M.section("routes", ["phase"], drawRoutes);
})();
