"use strict";
// Auxiliary losses, the optimizer, and the speed: one line each.
(function () {
  const known = (columns) => Object.keys(columns).filter((k) => M.data.steps && M.data.steps[k]);
  const table = (name, columns) => M.asTable(name, [
    { key: "when", label: "steps", name: true, format: M.fmt.text }, ...known(columns).map((k) => ({ key: k, label: columns[k].title.toLowerCase(), format: M.fmt.any })),
  ], () => M.stepRows(known(columns)[0]).map((r) => ({ when: M.when(r), ...Object.fromEntries(known(columns).map((k) => [k, M.data.steps[k][r.index]])) })).reverse());

  const AUX = {
    load_balancing_loss: { title: "Load-balancing loss", note: "E · Σ f·P over the experts · even: 1", even: 1, color: "d0" },
    router_z_loss: { title: "Router z-loss", note: "mean squared log-sum-exp of the router's logits · all logits 0: log² E", color: "d2" },
    importance_loss: { title: "Importance loss", note: "CV² of the experts' summed weights · even: 0", even: 0, color: "d3" },
    load_loss: { title: "Load loss", note: "CV² of the smooth load · even: 0", even: 0, color: "d4" },
  };
  M.figure("aux", [], () => {
    M.title("aux", "Auxiliary losses", M.sub("before their weights, mean of the layers", M.pointsAre(), M.lineIs(M.stepRows(known(AUX)[0]))));
    const zero = M.data.experts ? Math.log(M.data.experts) ** 2 : null;
    const panels = known(AUX).map((key) => ({
      title: AUX[key].title, note: key === "router_z_loss" && zero ? `${AUX[key].note} = ${M.fmt.two(zero)}` : AUX[key].note,
      chart: (width) => M.stepLine(key, { width, color: M.css(AUX[key].color), refs: [{ value: key === "router_z_loss" ? zero : AUX[key].even, free: key === "router_z_loss" }], unit: null, label: `${AUX[key].title} by step` }),
    }));
    M.fill(M.id("plot-aux"), M.panels("aux", panels));
    table("aux", AUX);
  });

  const OPTIMIZER = {
    learning_rate: { title: "Learning rate", note: "of the optimizer's step", color: "d0" },
    gradient_norm: { title: "Gradient norm", note: "of all gradients together, before clipping; line: running median", color: "d1" },
  };
  M.figure("optimizer", [], () => {
    M.title("optimizer", "Learning rate and gradient norm", M.sub(M.pointsAre(), M.data.steps.gradient_norm_max ? "the palest line of the norm is the highest among them" : null));
    const panels = known(OPTIMIZER).map((key) => {
      const { title, note, color } = OPTIMIZER[key];
      if (key === "learning_rate") return { title, note, chart: (width) => M.stepLine(key, { width, color: M.css(color), plain: true, zero: true, unit: null, label: `${title} by step` }) };
      // spikes would press everything else to the floor of a linear scale
      const highest = M.stepRows("gradient_norm_max");
      const values = [...M.stepRows(key), ...highest].map((r) => r.value).filter((v) => v !== null).sort(d3.ascending);
      const log = values[0] > 0 && values[values.length - 1] > 8 * d3.quantile(values, 0.5);
      return { title, note: log ? `${note} · log scale` : note, chart: (width) => M.stepLine(key, { width, color: M.css(color), of: d3.median, log, zero: !log, unit: null, label: `${title} by step`,
        behind: [{ rows: highest, color: M.css(color), width: 1, opacity: 0.15 }] }) };
    });
    M.fill(M.id("plot-optimizer"), M.panels("optimizer", panels));
    table("optimizer", OPTIMIZER);
  });

  const SPEED = { tokens_per_second: { title: "Tokens per second" } };
  M.figure("throughput", [], () => {
    M.title("throughput", "Speed of the training", M.sub("tokens per second", M.pointsAre(), M.lineIs(M.stepRows("tokens_per_second"), "median")));
    M.fill(M.id("plot-throughput"), M.stepLine("tokens_per_second", { width: M.width("throughput"), color: M.css("d2"), of: d3.median, zero: true, unit: "tokens per second", label: "Tokens per second by step" }));
    table("throughput", SPEED);
  });
})();
