"use strict";
// Layer × expert maps: rates by domain, and the difference of two domains.
(function () {
  const domains = M.data.views[M.data.phases[0]].domains;
  const cells = d3.sum(M.layers, (l) => l.experts);
  M.state.mapDomains = domains.slice(0, cells > 3000 ? 1 : 4);
  M.state.domainA = domains[0];
  M.state.domainB = domains[1];
  const widest = d3.max(M.layers, (l) => l.experts);

  const frame = (width) => ({
    rows: M.layers.length, cols: widest, width,
    rowLabel: (i) => String(M.layers[i].layer), colLabel: String, yTitle: "layer", xTitle: "expert →",
  });
  const inside = (i, j) => j < M.layers[i].experts;
  const href = (i, j) => (inside(i, j) ? `#${M.name(i, j)}` : null);

  function interval(group, cell) {
    const low = M.share("low", group, cell);
    return low === null ? "" : ` (95 %: ${M.fmt.percent(low)} to ${M.fmt.percent(M.share("high", group, cell))})`;
  }

  function drawMaps() {
    const view = M.view();
    const chosen = M.state.mapDomains.filter((n) => view.domains.includes(n));
    const names = chosen.length ? chosen : ["all"];
    const groups = names.map((n) => view.rates.groups.indexOf(n));
    const every = groups.flatMap((g) => view.rates.rate[g]).filter((v) => v !== null).map((v) => v / 10000).sort(d3.ascending);
    const chances = d3.extent(M.layers, (l) => l.top_k / l.experts);
    const top = Math.max(d3.quantile(every, 0.995) || 0, chances[1] * 1.5);
    const color = M.sequential(top);
    const total = M.width("maps");
    const wide = names.length > 1 && total >= 760 && widest * 3.4 + 60 < total / 2;
    const width = wide ? Math.floor((total - 24) / 2) - 4 : total;
    const panels = names.map((name, p) => {
      const group = groups[p];
      const map = M.heatmap({
        ...frame(width), label: `Activation rates of ${name} by layer and expert`,
        color: (i, j) => (inside(i, j) ? color(M.share("rate", group, M.cell(i, j))) : undefined),
        mark: (i, j) => inside(i, j) && M.wayOf(group, M.cell(i, j)) === "more", href,
        describe: (i, j) => inside(i, j) && [
          `${M.name(i, j)} · ${name}`, ...(group > 0 ? [M.WAYS[M.wayOf(group, M.cell(i, j))]] : []), `${M.fmt.percent(M.share("rate", group, M.cell(i, j)))} of tokens${interval(group, M.cell(i, j))}`,
          `chance ${M.fmt.percent(M.layers[i].top_k / M.layers[i].experts)}`],
      });
      return M.h("div", { class: "panel" }, M.h("h4", {}, name === "all" ? "all text" : name), map);
    });
    M.title("maps", "Activation rate by layer and expert", "share of the domain's tokens that an expert serves; ● used more than by the other domains, q < 0.05");
    const ticks = [[0, "0"], [chances[0] / top, `chance ${M.fmt.percent(chances[0])}`], [1, `${M.fmt.percent(top)} or more`]];
    M.fill(M.id("plot-maps"), M.scaleLegend(color, 0, top, ticks, "rate"), M.h("div", { class: wide ? "panels wide" : "panels one" , style: wide ? {} : { gridTemplateColumns: "minmax(0, 1fr)" } }, panels));
    M.asTable("maps", TABLE, () => names.flatMap((name, p) => M.layers.flatMap((l, i) => d3.range(l.experts).map((j) => ({
      name: M.name(i, j), domain: name, rate: M.share("rate", groups[p], M.cell(i, j)), chance: l.top_k / l.experts })))));
  }
  const TABLE = [
    { key: "name", label: "expert", name: true, render: (r) => M.cellLink(r.name) }, { key: "domain", label: "domain", text: true },
    { key: "rate", label: "rate", format: M.fmt.percent }, { key: "chance", label: "chance", format: M.fmt.percent },
  ];

  M.section("maps", ["phase", "mapDomains"], drawMaps, () => {
    const chips = M.domainChips("mapDomains");
    if (chips) M.id("controls-maps").append(chips);
  });

  function drawDifference() {
    const host = M.id("plot-difference");
    const view = M.view();
    const [a, b] = [M.state.domainA, M.state.domainB].map((n) => view.rates.groups.indexOf(n));
    if (domains.length < 2 || a < 0 || b < 0) {
      M.title("difference", "Difference of two domains");
      M.fill(host, M.absent("There are no two domains to compare."));
      return;
    }
    const gap = (i, j) => M.share("rate", a, M.cell(i, j)) - M.share("rate", b, M.cell(i, j));
    const rows = M.layers.flatMap((l, i) => d3.range(l.experts).map((j) => ({ i, j, name: M.name(i, j), gap: gap(i, j), a: M.share("rate", a, M.cell(i, j)), b: M.share("rate", b, M.cell(i, j)) })));
    const sizes = rows.map((r) => Math.abs(r.gap)).sort(d3.ascending);
    const limit = Math.max(d3.quantile(sizes, 0.995) || 0, 0.01);
    const color = M.diverging(limit);
    const marks = new Set([a, b].map((g) => view.special.marks[g - 1]).flatMap((m) => [...m.more, ...m.less]));
    const most = d3.greatest(rows, (r) => Math.abs(r.gap));
    M.title("difference", a === b ? "The same domain twice" : `Largest gap: ${most.name}, ${M.fmt.percent(most.a)} in ${view.rates.groups[a]} against ${M.fmt.percent(most.b)} in ${view.rates.groups[b]}`,
      `${marks.size} of ${M.fmt.count(rows.length)} cells marked (q < 0.05 for either domain against all others)`);
    const map = M.heatmap({
      ...frame(M.width("difference")), label: `Difference in activation rate, ${view.rates.groups[a]} minus ${view.rates.groups[b]}`,
      color: (i, j) => (inside(i, j) ? color(gap(i, j)) : undefined),
      mark: (i, j) => inside(i, j) && marks.has(M.cell(i, j)), href,
      describe: (i, j) => inside(i, j) && [
        M.name(i, j), `${view.rates.groups[a]}: ${M.fmt.percent(M.share("rate", a, M.cell(i, j)))}${interval(a, M.cell(i, j))}`,
        `${view.rates.groups[b]}: ${M.fmt.percent(M.share("rate", b, M.cell(i, j)))}${interval(b, M.cell(i, j))}`,
        `difference ${M.fmt.points(gap(i, j))} points`, ...[a, b].map((g) => `${view.rates.groups[g]}: ${M.WAYS[M.wayOf(g, M.cell(i, j))]}`)],
    });
    const beyond = d3.max(sizes) > limit; // the ramp ends before the largest gap
    const ticks = [[0, `${M.fmt.points(-limit)}${beyond ? " or less" : ""}`], [0.5, "0"], [1, `${M.fmt.points(limit)} points${beyond ? " or more" : ""}`]];
    M.fill(host, M.scaleLegend(color, -limit, limit, ticks, "difference"),
      M.h("p", { class: "small" }, "orange: more in ", M.h("b", {}, view.rates.groups[a]), " · blue: more in ", M.h("b", {}, view.rates.groups[b])), map);
    M.asTable("difference", [
      { key: "name", label: "expert", name: true, render: (r) => M.cellLink(r.name) }, { key: "a", label: M.shorten(view.rates.groups[a], 24), format: M.fmt.percent },
      { key: "b", label: M.shorten(view.rates.groups[b], 24), format: M.fmt.percent }, { key: "gap", label: "difference, points", format: M.fmt.points },
    ], () => d3.sort(rows, (r) => -Math.abs(r.gap)));
  }

  M.section("difference", ["phase", "domainA", "domainB"], drawDifference, () => {
    if (domains.length < 2) return;
    const options = domains.map((n) => ({ value: n, label: n }));
    M.id("controls-difference").append(M.choice("Domain", "domainA", options, 1), M.choice("minus", "domainB", options, 1));
  });
})();
