"use strict";
// Experts by the size of their difference: a dot with its interval, and what token ids alone give.
(function () {
  const MOST = 40;
  const rows = M.data.rows;
  M.section("differences", [], () => {
    const shown = rows.slice(0, MOST).map((r) => ({
      key: r.name, name: r.name, value: 100 * r.delta, token: r.by_token === null ? null : 100 * r.by_token,
      low: r.ci_low === null ? null : 100 * r.ci_low, high: r.ci_high === null ? null : 100 * r.ci_high,
      color: r.q !== null && r.q < 0.05 ? M.css("d1") : M.css("grey"),
      title: `${r.name}\nΔ ${M.fmt.points(r.delta)} points (with ${M.fmt.percent(r.rate_with)}, without ${M.fmt.percent(r.rate_without)})\nq ${M.fmt.p(r.q)}\nover tokens of both sides: Δ ${M.fmt.points(r.delta_shared)}, by token alone ${M.fmt.points(r.by_token)}`,
    }));
    M.title("differences", `The ${shown.length} largest differences, over all texts`, "share of tokens that chose the expert: with minus without, in percentage points");
    M.fill(M.id("plot-differences"), M.dotRows(shown, {
      width: M.width("differences"), step: 20, unit: "percentage points", label: "Difference of rates by expert, with intervals",
      marks: [Plot.tickX(shown.filter((r) => r.token !== null), { x: "token", y: "key", stroke: "currentColor", strokeOpacity: 0.55, strokeWidth: 2 })],
    }), M.legend([{ color: M.css("d1"), label: "q < 0.05 over all experts" }, { color: M.css("grey"), label: "not" }]),
    M.h("p", { class: "small" }, "The short upright line is what the token ids alone would give, over tokens whose id occurs on both sides."));
    M.asTable("differences", [
      M.expertColumn("name"), { key: "rate_with", label: "with", format: M.fmt.percent }, { key: "rate_without", label: "without", format: M.fmt.percent },
      { key: "delta", label: "Δ", format: M.fmt.points }, { key: "ci_low", label: "low", format: M.fmt.points }, { key: "ci_high", label: "high", format: M.fmt.points },
      { key: "q", label: "q", format: M.fmt.p }, { key: "delta_shared", label: "Δ shared", format: M.fmt.points }, { key: "by_token", label: "by token", format: M.fmt.points },
    ], () => rows);
  });
})();
