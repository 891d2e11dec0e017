"use strict";
// What the figures of a similarity share: methods, matrices, colours, and the colours' scale.
(function () {
  const data = M.data;
  M.methodName = (key) => {
    const found = data.methods.find((m) => m.key === key);
    return found ? found.name : key === "coactivation_lift" ? "co-activation lift" : key;
  };
  M.short = { cosine: "cosine", cka: "CKA", weights: "weights", router: "router", coactivation_lift: "co-activation" };
  M.beside = { cosine: "on tokens given to one of them", cka: "debiased", weights: "centred", router: "centred" };
  M.reads = (method) => method === "cosine" || method === "cka";

  // The cell (i, j) among the shown experts of a layer; what: value, beside, low, high.
  M.pair = function (method, layer, what, i, j) {
    const made = data.matrices[method][layer];
    if (!made || !made[what] || i === j) return null;
    const n = data.shown[layer].length;
    const [a, b] = i < j ? [i, j] : [j, i];
    const value = made[what][a * n - (a * (a + 1)) / 2 + (b - a - 1)];
    return value === null ? null : value / 1000;
  };
  M.allPairs = function (method, layer) {
    const n = data.shown[layer].length;
    return d3.range(n).flatMap((i) => d3.range(i + 1, n).map((j) => ({
      i, j, a: data.shown[layer][i], b: data.shown[layer][j], value: M.pair(method, layer, "value", i, j),
    })));
  };

  // One colour scale for all layers of a method. CKA runs from its least to its largest value, the
  // cosines are neutral at 0.
  const scales = new Map();
  M.similarityScale = function (method) {
    if (!scales.has(method)) {
      const all = data.matrices[method].filter(Boolean).flatMap((m) => m.value).filter((v) => v !== null).sort(d3.ascending);
      const at = (q) => (all.length ? d3.quantile(all, q) / 1000 : 0);
      scales.set(method, { low: at(0.002), high: at(0.998), least: at(0), most: at(1) });
    }
    const s = scales.get(method);
    if (method === "cka") {
      const ramp = M.sequential(1);
      const gap = s.high - s.low || 1;
      return { ...s, from: s.low, to: s.high, color: (v) => ramp((v - s.low) / gap) };
    }
    const limit = Math.max(Math.abs(s.low), Math.abs(s.high)) || 1;
    return { ...s, from: -limit, to: limit, color: M.diverging(limit) };
  };
  M.similarityLegend = function (method) {
    const s = M.similarityScale(method);
    const ticks = method === "cka"
      ? [[0, M.fmt.two(s.from)], [0.5, M.fmt.two((s.from + s.to) / 2)], [1, M.fmt.two(s.to)]]
      : [[0, M.fmt.two(s.from)], [0.5, "0"], [1, M.fmt.two(s.to)]];
    return M.scaleLegend(s.color, s.from, s.to, ticks, M.methodName(method));
  };
  M.range = (low, high, format = M.fmt.three) => (low === null || low === undefined ? null : `${format(low)} to ${format(high)}`);
})();
