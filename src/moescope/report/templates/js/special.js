"use strict";
// Specialised cells of a domain, used more and used less apart: lift with its interval beside what words
// alone predict, then the numbers.
(function () {
  const SHOWN = 10;
  const FLOOR = 0.02;
  const domains = M.data.views[M.data.phases[0]].domains;
  M.state.specialDomain = domains[0];

  const own = () => M.rows(M.view().special.top).filter((r) => M.state.specialDomain === null || r.domain === M.state.specialDomain);
  const label = () => M.state.specialDomain || "every domain";

  function drawSpecial() {
    const special = M.view().special;
    const host = M.id("plot-special");
    M.id("table-special").hidden = true; // the numbers stand below, with a filter
    if (!special.tested) {
      M.title("special", M.view().titles.special);
      M.fill(host, M.absent("No cell was tested: this takes two domains with at least five documents each."));
      return;
    }
    const at = M.view().domains.indexOf(M.state.specialDomain);
    const counts = at < 0 ? [special.over, special.under] : [special.more[at], special.less[at]];
    M.title("special", at < 0 ? M.view().titles.special : `${label()}: ${M.fmt.count(counts[0])} experts used more, ${M.fmt.count(counts[1])} used less`,
      counts[0] + counts[1] ? `of each the ${SHOWN} clearest, by the end of the interval that lies nearer to 1` : "shown instead: the cells closest to passing, which is what chance leaves behind");
    const rows = own();
    const some = { more: rows.filter((r) => r.used === "more"), less: rows.filter((r) => r.used === "less") };
    const words = { more: `Used more by ${label()}`, less: `Used less by ${label()}` };
    const parts = Object.keys(some).map((way) => [words[way], some[way], `no expert is shown to be used ${way} here`]);
    if (!some.more.length && !some.less.length) parts.splice(0, 2, ["The closest to passing", rows, "nothing to show"]);
    const total = M.width("special");
    const wide = total >= 760 && parts.length > 1;
    const width = wide ? Math.floor((total - 24) / 2) : total;
    M.fill(host, M.h("div", { class: wide ? "panels wide" : "panels one" }, parts.map(([title, found, none]) => M.h("div", { class: "panel" }, M.h("h4", {}, title), forest(title, found, none, width)))),
      M.h("div", { class: "legend" }, M.h("span", {}, "● q < 0.05"), M.h("span", {}, "○ not"), M.h("span", {}, "× what the words alone predict"), M.h("span", {}, "line: 95 % interval"), M.h("span", {}, "dashed: no difference"),
        Object.values(some).flat().some((r) => r.lift_over_others > 0 && r.lift_over_others < FLOOR) ? M.h("span", {}, `a lift below ${FLOOR} is drawn there`) : null));
  }

  function forest(title, found, none, width) {
    const points = found.filter((r) => r.lift_over_others > 0).slice(0, SHOWN).map((r) => ({
      ...r, key: M.state.specialDomain ? r.name : `${r.name} · ${r.domain}`, low: Math.max(FLOOR, r.lift_low || FLOOR), high: r.lift_high && Math.max(FLOOR, r.lift_high),
      words: r.by_token !== null && r.on_shared > 0 ? Math.max(FLOOR, (r.lift_over_others * r.by_token) / r.on_shared) : null,
    }));
    if (!points.length) return M.absent(found.length ? "These experts are never chosen here, or never elsewhere, so there is no lift; see the table." : `None: ${none}.`);
    // An interval may end at any height; one that would press all others together goes on beyond the figure.
    const roof = 20 * d3.max(points.flatMap((p) => [p.lift_over_others, p.words, 1]));
    points.forEach((p) => (p.high = p.high && Math.min(p.high, roof)));
    const room = M.state.specialDomain ? 58 : Math.min(170, width / 3);
    const ends = points.flatMap((p) => [p.low, p.high, p.words, Math.max(FLOOR, p.lift_over_others), 1]).filter((v) => v);
    const color = (p) => M.domainColor(M.view().domains.indexOf(p.domain));
    const axis = M.logAxis("lift over the other domains (log scale) →", Math.max(FLOOR, d3.min(ends) * 0.92), d3.max(ends) * 1.08, width - room - 16);
    return Plot.plot({
      width, height: points.length * 22 + 56, marginLeft: room, marginRight: 16, marginTop: 8, marginBottom: 42,
      style: M.style, ariaLabel: `${title}: lift with 95 % intervals`,
      x: axis.scale,
      y: { domain: points.map((p) => p.key), axis: null },
      marks: [
        ...axis.marks,
        Plot.text(points, { y: "key", text: (p) => M.shorten(p.key, Math.floor(room / 6)), href: (p) => `#${p.name}`, frameAnchor: "left", textAnchor: "end", dx: -8 }),
        Plot.ruleX([1], { stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.ruleY(points.filter((p) => p.high), { y: "key", x1: "low", x2: "high", stroke: color, strokeWidth: 2 }),
        Plot.dot(points.filter((p) => p.words), { x: "words", y: "key", symbol: "times", stroke: "currentColor", strokeWidth: 1.6, r: 4 }),
        Plot.dot(points, { x: (p) => Math.max(FLOOR, p.lift_over_others), y: "key", r: 4.5, href: (p) => `#${p.name}`, fill: (p) => (p.used ? color(p) : M.css("panel")), stroke: color, strokeWidth: 2 }),
        Plot.tip(points, Plot.pointer({ x: (p) => Math.max(FLOOR, p.lift_over_others), y: "key", title: tipText })),
      ],
    });
  }
  const tipText = (p) =>
    `${p.name} · ${p.domain}\nlift ${M.fmt.lift(p.lift_over_others)} (95 %: ${M.fmt.lift(p.lift_low)} to ${M.fmt.lift(p.lift_high)})\n${M.fmt.percent(p.value)} here, ${M.fmt.percent(p.others)} elsewhere, chance ${M.fmt.percent(p.chance)}\nover shared tokens ${M.fmt.percent(p.on_shared)}, by words ${M.fmt.percent(p.by_token)}\nq ${M.fmt.p(p.q)}`;

  const COLUMNS = [
    { key: "name", label: "expert", name: true, render: (r) => M.cellLink(r.name) },
    { key: "domain", label: "domain", text: true },
    { key: "used", label: "used", name: true, title: "more or less than by the other domains, q < 0.05" },
    { key: "value", label: "rate", format: M.fmt.percent, title: "activation rate in the domain" },
    { key: "ci_low", label: "95 % interval", render: (r) => M.interval(r.ci_low, r.ci_high, M.fmt.percent) },
    { key: "chance", label: "chance", format: M.fmt.percent, title: "K/E" },
    { key: "others", label: "elsewhere", format: M.fmt.percent, title: "activation rate in all other domains" },
    { key: "lift_over_others", label: "lift", format: M.fmt.lift, title: "rate over the rate elsewhere; 1 is no difference" },
    { key: "lift_low", label: "95 % interval", render: (r) => M.interval(r.lift_low, r.lift_high, M.fmt.lift) },
    { key: "q", label: "q", format: M.fmt.p, title: "false discovery rate" },
    { key: "p_max", label: "p of the largest", format: M.fmt.p, title: "chance that the largest of all cells is as far out, for a cell chosen because it is large" },
    { key: "on_shared", label: "on shared tokens", format: M.fmt.percent, title: "rate over the tokens whose id other domains use too" },
    { key: "by_token", label: "by words", format: M.fmt.percent, title: "rate that the same token ids alone predict" },
    { key: "beyond_token", label: "beyond", format: M.fmt.points, title: "measured minus predicted, over shared token ids" },
  ];

  function drawCells() {
    const special = M.view().special;
    const rows = own().map((r) => ({ ...r, used: r.used || "–", dim: !r.used }));
    if (!rows.length) {
      M.fill(M.id("plot-cells"), M.absent("Nothing to list."));
      return;
    }
    const lead = special.passed
      ? `${M.fmt.count(special.passed)} of ${M.fmt.count(special.tested)} tested cells pass; grey rows do not. Here are up to ${special.each} used more and ${special.each} used less of each domain, and the ${SHOWN} next; the table “domain_specialization” has all.`
      : `None of ${M.fmt.count(special.tested)} tested cells passes; the rows are the closest and are shown in grey. Do not read them as findings.`;
    M.fill(M.id("plot-cells"), M.h("p", { class: "small" }, lead, special.cells > special.tested ? ` ${M.fmt.count(special.cells - special.tested)} cells were not tested (never chosen, or too few documents).` : ""),
      M.table(COLUMNS.filter((c) => M.state.specialDomain === null || c.key !== "domain"), rows, { label: `Cells of ${label()} with all numbers` }));
  }

  const choice = () => M.choice("Domain", "specialDomain", [...domains.map((n) => ({ value: n, label: n })), { value: null, label: "every domain" }], 5);
  const setup = (name) => () => domains.length > 1 && M.id(`controls-${name}`).append(choice());
  M.section("special", ["phase", "specialDomain"], drawSpecial, setup("special"));
  M.section("cells", ["phase", "specialDomain"], drawCells, setup("cells"));
})();
