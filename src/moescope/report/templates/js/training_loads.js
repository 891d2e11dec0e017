"use strict";
// The load of every expert: at the last logged step, and along the steps.
(function () {
  if (!M.data.loads) return;
  const ordered = (row) => (M.state.order === "load" ? d3.sort(d3.range(row.length), (j) => -row[j]) : d3.range(row.length));
  const legend = (color, limit) => M.scaleLegend(color, -limit, limit, [[0, `${{ 1: "½ ×", 2: "¼ ×", 3: "⅛ ×" }[limit]} or less`], [0.5, "even"], [1, `${2 ** limit} × or more`]], "load");

  M.keepOne("order", ["number", "load"]);
  M.figure("loads", ["order"], () => {
    const { layers, load, step } = M.data.loads;
    const cols = d3.max(load, (row) => row.length) || 0;
    const share = load.map((row) => row.map((v) => (v || 0) / (d3.sum(row) || 1)));
    const order = share.map(ordered);
    const times = (i, j) => share[i][order[i][j]] * share[i].length;
    const logs = share.flatMap((row) => row.map((v) => Math.abs(Math.log2(Math.max(v * row.length, 1e-9))))).sort(d3.ascending);
    const limit = Math.max(1, Math.min(3, Math.ceil(d3.quantile(logs, 0.97) || 1)));
    const color = M.diverging(limit);
    const unused = (i, j) => share[i][order[i][j]] === 0;
    const count = d3.sum(share.flatMap((row) => row.map((v) => (v === 0 ? 1 : 0))));
    const busiest = d3.greatest(share.flatMap((row, i) => row.map((v, j) => ({ i, j, times: v * row.length }))), (c) => c.times);
    M.title("loads", `Load of every expert at step ${M.fmt.count(step)}, relative to an even load`,
      M.sub(`share of the layer's assignments × E · even: 1 ×, that is 1/E = ${M.fmt.percent(1 / cols)}`, busiest ? `busiest: L${layers[busiest.i]}E${busiest.j} with ${M.fmt.two(busiest.times)} ×` : null, `chosen by no token: ${count} of ${M.fmt.count(d3.sum(share, (r) => r.length))}`));
    const map = M.heatmap({
      rows: layers.length, cols, width: M.width("loads"), rowLabel: (i) => String(layers[i]), colLabel: String, yTitle: "layer",
      xTitle: M.state.order === "load" ? "experts of the layer, busiest first →" : "expert →", label: "Load by layer and expert, relative to an even load",
      color: (i, j) => (j < share[i].length ? color(Math.log2(Math.max(times(i, j), 1e-9))) : undefined),
      mark: (i, j) => j < share[i].length && unused(i, j),
      describe: (i, j) => j < share[i].length && [`L${layers[i]}E${order[i][j]}`, `${M.fmt.percent(share[i][order[i][j]])} of the layer's assignments`, `${M.fmt.two(times(i, j))} × an even load`],
    });
    M.fill(M.id("plot-loads"), legend(color, limit), map,
      count ? M.h("p", { class: "small" }, "● chosen by no token of this step") : null);
    M.asTable("loads", [
      { key: "name", label: "expert", name: true, format: M.fmt.text }, { key: "share", label: "load", format: M.fmt.percent }, { key: "times", label: "× even", format: M.fmt.two },
    ], () => share.flatMap((row, i) => order[i].map((j) => ({ name: `L${layers[i]}E${j}`, share: row[j], times: row[j] * row.length }))));
  }, () => M.id("controls-loads").append(M.choice("Experts", "order", [{ value: "number", label: "by number" }, { value: "load", label: "busiest first" }])));

  // Rows are experts, columns blocks of logged steps; black is a block in which no token chose the expert.
  const LIMIT = 2;
  const MOST = 6; // layers side by side; of more, one is chosen
  M.keep("layer", 0, (v) => Number.isInteger(v) && v >= 0 && v < M.data.loads.layers.length);
  M.figure("history", ["order", "layer"], () => {
    const { layers, load, steps, each, history } = M.data.loads;
    const color = M.diverging(LIMIT);
    const shown = layers.length <= MOST ? d3.range(layers.length) : [M.state.layer];
    M.title("history", "Load of every expert over the steps", M.sub("share of the layer's assignments × E · even: 1 ×", each > 1 ? `each column is a mean over ${each} logged steps` : "each column is one logged step"));
    const one = (i) => (width) => {
      const order = ordered(load[i]);
      const at = (r, t) => history[t][i][order[r]];
      return M.heatmap({
        rows: order.length, cols: steps.length, width, rowLabel: (r) => String(order[r]), colLabel: (t) => M.fmt.count(Math.round(steps[t])), yTitle: "expert", xTitle: "step →",
        label: `Load of the experts of layer ${layers[i]} by step`,
        color: (r, t) => (at(r, t) === null ? null : at(r, t) === 0 ? M.css("ink") : color(Math.log2(at(r, t)))),
        describe: (r, t) => [`L${layers[i]}E${order[r]} · step ${M.fmt.count(Math.round(steps[t]))}`, `${M.fmt.two(at(r, t))} × an even load`],
      });
    };
    M.fill(M.id("plot-history"), legend(color, LIMIT), M.legend([{ color: M.css("ink"), label: "chosen by no token" }]),
      M.panels("history", shown.map((i) => ({ title: `layer ${layers[i]}`, chart: one(i) }))));
    const last = steps.length - 1;
    const moments = [...new Set([0, Math.round(last / 4), Math.round(last / 2), last])];
    M.asTable("history", [{ key: "name", label: "expert", name: true, format: M.fmt.text },
      ...moments.map((t) => ({ key: t, label: `× even at step ${M.fmt.count(Math.round(steps[t]))}`, format: M.fmt.two }))],
    () => shown.flatMap((i) => load[i].map((_, j) => ({ name: `L${layers[i]}E${j}`, ...Object.fromEntries(moments.map((t) => [t, history[t][i][j]])) }))));
  }, () => {
    M.id("controls-history").append(M.choice("Experts", "order", [{ value: "number", label: "by number" }, { value: "load", label: "busiest last step first" }]));
    if (M.data.loads.layers.length > MOST) M.id("controls-history").append(M.layerControl());
  });
})();
