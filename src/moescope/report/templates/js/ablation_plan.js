"use strict";
// A plan beside its controls: damage by domain, load against damage, and the experts themselves.
(function () {
  if (M.data.kind !== "plan") return;
  const groups = M.data.groups;
  const count = M.data.controls.plans.length;
  const orange = () => M.css("d1");
  const like = M.data.controls.matched ? "of the same size and similar load" : "of the same size";

  function ordered(key) {
    const domains = d3.sort(groups.filter((g) => g.scope === "domain"), (g) => -g[key]);
    return [...groups.filter((g) => g.scope !== "domain"), ...domains];
  }
  M.section("damage", ["measure"], () => {
    const key = M.state.measure;
    const m = M.measures[key];
    const rows = ordered(key).map((g) => ({
      ...g, key: `${g.scope} ${g.domain}`, name: M.groupName(g), value: g[key], low: g[`${key}_low`], high: g[`${key}_high`], color: orange(),
      title: [
        `${M.groupName(g)}: ${m.format(g[key])}`, `95 %: ${M.span(g, key, m.format)}`,
        count ? `controls ${m.format(g[`${key}_controls_min`])} to ${m.format(g[`${key}_controls_max`])}, p_overlap = ${M.fmt.three(g[`${key}_p_overlap`])}` : null,
        `${M.fmt.count(g.tokens)} tokens of ${M.fmt.count(g.documents)} documents`,
      ].filter(Boolean).join("\n"),
    }));
    const controls = rows.flatMap((r) => r.controls[key].map((value) => ({ key: r.key, value })));
    const chance = (r) => (key === "ce_change" ? r.ce_change_q : r[`${key}_p_overlap`]);
    const shown = rows.filter((r) => count && r.scope === "domain" && chance(r) <= M.data.level && r.low > 0).length;
    const domains = rows.filter((r) => r.scope === "domain").length;
    M.title("damage", count && domains ? `${m.long}: in ${shown || "none"} of ${domains} domains shown to be more than with random plans` : m.long,
      `${m.unit} · experts ${M.data.edit}${count ? ` · ${count} random plans ${like}` : ""}`);
    const plot = M.dotRows(rows, {
      width: M.width("damage"), label: `${m.long} by domain, the plan and its controls`, unit: m.unit, tick: M.axisOf(key),
      marks: [Plot.tickX(controls, { x: "value", y: "key", stroke: M.css("grey"), strokeWidth: 1.5, strokeOpacity: 0.75, insetTop: 3, insetBottom: 3 })],
    });
    M.fill(M.id("plot-damage"), M.legend([
      { color: orange(), label: "the plan, with its 95 % interval" },
      ...(count ? [{ color: M.css("grey"), label: `a control (${count} in each row)` }] : []),
    ]), M.h("div", { class: "scroll" }, plot));
    M.asTable("damage", [
      { key: "name", label: "text", text: true }, { key: "value", label: m.label, format: m.format }, { key: "span", label: "95 %", name: true },
      ...(count ? [{ key: "others", label: "controls", name: true }, { key: "p", label: "p_overlap", format: M.fmt.p }] : []),
      ...(count && key === "ce_change" ? [{ key: "ce_change_q", label: "q", format: M.fmt.p }] : []),
      ...(key === "ce_change" ? [{ key: "detectable", label: "detectable", format: M.fmt.nats }] : []),
      { key: "ce", label: "plain CE", format: M.fmt.three }, { key: "load", label: "load", format: M.fmt.percent },
      { key: "tokens", label: "tokens", format: M.fmt.count }, { key: "documents", label: "documents", format: M.fmt.count },
    ], () => rows.map((r) => ({ ...r, span: M.span(r, key, m.format), p: r[`${key}_p_overlap`],
      others: `${m.format(r[`${key}_controls_min`])} to ${m.format(r[`${key}_controls_max`])}` })));
  }, () => M.id("controls-damage").append(M.measureControl()));

  M.section("loads", [], () => {
    if (!count) return;
    const all = groups[0];
    const dots = M.data.controls.plans.map((p, i) => ({
      x: 1 / p.load_ratio, y: all.controls.ce_change[i], name: p.experts.join(" "),
    }));
    const own = { x: 1, y: all.ce_change };
    const width = Math.min(M.width("loads"), 720);
    M.title("loads", M.data.controls.matched ? "Every control serves about as many tokens as the plan" : "Not every control serves about as many tokens as the plan",
      "one mark for each control, on all text · band: within a factor of 1.25 of the plan's load");
    const [low, high] = d3.extent([...dots.map((d) => d.x), 0.78, 1.28]);
    M.fill(M.id("plot-loads"), M.h("div", { class: "scroll" }, Plot.plot({
      width, height: 300, marginLeft: 58, marginBottom: 40, style: M.style, ariaLabel: "Load and damage of the controls",
      x: { type: "log", domain: [low / 1.03, high * 1.03], label: "load, as a multiple of the plan's (log scale) →", labelArrow: "none", ticks: [0.25, 0.5, 0.8, 1, 1.25, 2, 4].filter((t) => t >= low / 1.03 && t <= high * 1.03), tickFormat: String, tickSize: 3 },
      y: { label: "ΔCE, nats per token", insetTop: 14, labelArrow: "none", grid: true, ticks: 5, tickSize: 0, tickFormat: M.ticks(), nice: true },
      marks: [
        Plot.rectX([1], { x1: 0.8, x2: 1.25, fill: M.css("band"), fillOpacity: 0.6 }), Plot.ruleY([0], { strokeOpacity: 0.5 }),
        Plot.dot(dots, { x: "x", y: "y", fill: M.css("grey"), r: 4 }), Plot.dot([own], { x: "x", y: "y", fill: orange(), r: 5.5 }),
        Plot.tip([...dots, own], Plot.pointer({ x: "x", y: "y", title: (d) => `${d.name || "the plan"}\nload × ${d.x.toFixed(2)}\nΔCE ${M.fmt.nats(d.y)}`, maxRadius: 40 })),
      ],
    })), M.legend([{ color: orange(), label: "the plan" }, { color: M.css("grey"), label: "a control" }]));
    M.asTable("loads", [
      { key: "experts", label: "experts", mono: true }, { key: "ratio", label: "plan's load / its load", format: M.fmt.two },
      { key: "worst", label: "in its worst layer", format: M.fmt.two }, { key: "change", label: "ΔCE on all text", format: M.fmt.nats },
    ], () => M.data.controls.plans.map((p, i) => ({ experts: p.experts.join(" "), ratio: p.load_ratio, worst: p.worst_layer, change: all.controls.ce_change[i] })));
  });

  M.section("experts", [], () => M.fill(M.id("plot-experts"), M.table([
    M.expertColumn("expert"), { key: "reason", label: "reason", text: true }, { key: "score", label: "score", format: M.fmt.plain },
    { key: "share", label: "load of the plan in its layer", format: M.fmt.percent },
  ], M.data.experts.map((e) => ({ ...e, share: M.data.layer_loads[e.layer] })), { label: "Experts of the plan" })));
})();
