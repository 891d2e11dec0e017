"use strict";
// Parts of a profile that are numbers: how often, domains, parts of speech, partners, weights.
M.start(function () {
  const SVG = "http://www.w3.org/2000/svg";
  function shape(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  // A bar with an interval and marks, as wide as its place. x: value → 0 … 100.
  // bars: [{from, to, class}], whisker: [low, high], marks: [value], dots: [value]
  M.range = function (x, spec) {
    const svg = shape("svg", { class: "range", viewBox: "0 0 100 18", preserveAspectRatio: "none", "aria-hidden": "true" });
    const at = (v) => Math.max(0, Math.min(100, x(v)));
    svg.append(shape("rect", { class: "track", x: 0, y: 4, width: 100, height: 10 }));
    for (const b of spec.bars || []) {
      const [a, c] = d3.sort([at(b.from), at(b.to)]);
      const bar = shape("rect", { class: `bar ${b.class || ""}`, x: a, y: 4, width: Math.max(0.4, c - a), height: 10 });
      if (b.color) bar.style.fill = b.color;
      svg.append(bar);
    }
    const line = (kind, x1, y1, x2, y2) => svg.append(shape("line", { class: kind, x1, y1, x2, y2, "vector-effect": "non-scaling-stroke" }));
    for (const v of spec.marks || []) if (v !== null) line("mark", at(v), 1, at(v), 17);
    if (spec.zero !== undefined) line("zero", at(spec.zero), 1, at(spec.zero), 17);
    if (spec.whisker && spec.whisker[0] !== null && spec.whisker[1] !== null) {
      const [a, c] = spec.whisker.map(at);
      line("whisker", a, 9, c, 9);
      line("whisker", a, 6, a, 12);
      line("whisker", c, 6, c, 12);
    }
    for (const v of spec.dots || []) if (v !== null) line("whisker", at(v), 5, at(v), 13);
    return svg;
  };
  M.fmt.mass = (v) => (v === null ? "–" : v < 0.01 ? v.toFixed(4) : v.toFixed(3));
  const cell = (kind, ...content) => M.h("span", { class: kind }, content);
  M.cellOf = cell;
  const head = (names) => [names.map(([text, kind]) => cell(`head ${kind || ""}`, text)), cell("line")];
  M.headOf = head;
  M.part = (title, note, ...content) => [M.h("h4", {}, title), note ? M.h("p", { class: "small" }, note) : null, content];
  // A part: the reason where it is absent, else what build(its rows) gives.
  M.partOf = (title, p, part, build, rows = p.lists[part]) => (p.absent[part] ? M.part(title, null, M.absent(`Absent: ${p.absent[part]}.`)) : build(rows));
  const percents = (low, high) => (low === null || high === null ? null : `${M.fmt.percent(low).replace(" %", "")}–${M.fmt.percent(high)}`);
  const lifts = (low, high) => (low === null ? "" : ` [${M.fmt.lift(low)}, ${high === null ? "∞" : M.fmt.lift(high)}]`);

  M.parts = {};
  M.parts.facts = function (p) {
    const fact = (value, label, sub) => M.h("div", {}, M.h("b", {}, value), M.h("span", {}, label), sub ? M.h("i", {}, sub) : null);
    const facts = [
      fact(M.fmt.percent(p.rate), "of tokens choose it", `${percents(p.rate_low, p.rate_high) || "no interval"}, chance ${M.fmt.percent(p.rate_chance)}`),
      fact(M.fmt.percent(p.load), "of the layer's load", `even share ${M.fmt.percent(p.even)}`),
      fact(M.fmt.mass(p.gate_mass), "gate mass per token", p.gate_low === null ? "no interval" : `${M.fmt.mass(p.gate_low)}–${M.fmt.mass(p.gate_high)}`),
      fact(M.fmt.percent(p.first_share), "of tokens choose it first", `${M.fmt.count(p.count)} assignments, ${M.fmt.count(p.documents)} documents`),
    ];
    const why = p.absent.contribution;
    if (!why) {
      facts.push(
        fact(M.fmt.two(p.contribution_mean), "mean contribution ‖w·E(x)‖ (REAP)", p.contribution_low === null ? "no interval" : `${M.fmt.two(p.contribution_low)}–${M.fmt.two(p.contribution_high)}`),
        fact(M.fmt.percent(p.contribution_share), "of the layer's contribution", `${M.fmt.percent(p.contribution_load_share)} of its assignments`),
        fact(M.fmt.two(p.contribution_activation), "mean ‖E(x)‖ (EAN)", `mean weight ${M.fmt.three(p.contribution_weight)}`),
        fact(`${M.fmt.lift(p.contribution_peak_ratio)}×`, "peak output over the median expert's", `largest component ${M.fmt.lift(p.contribution_peak)}`));
    }
    const host = M.h("div", { class: "facts" }, facts);
    return why ? [host, M.absent(`Contribution is absent: ${why}.`)] : [host];
  };

  M.parts.domains = (p) => M.partOf("Domains", p, "domains", (rows) => {
    const chance = p.rate_chance;
    const top = d3.max(rows, (r) => Math.max(r.rate || 0, r.high || 0, chance)) || 1;
    const x = (v) => (100 * v) / (top * 1.02);
    const measured = rows.some((r) => r.contribution !== null);
    const cells = d3.sort(rows, (r) => -(r.rate || 0)).flatMap((r) => {
      const passes = M.standsOut(r);
      const name = r.domain;
      return [
        M.h("span", { class: `name${passes ? " strong" : ""}`, title: name }, name),
        M.h("span", { title: `${M.fmt.percent(r.rate)} of its tokens (95 %: ${percents(r.low, r.high) || "no interval"}); red: chance ${M.fmt.percent(chance)}; others ${M.fmt.percent(r.others)}` },
          M.range(x, { bars: [{ from: 0, to: r.rate, color: M.domainColor(M.domainIndex.get(name)) }], whisker: [r.low, r.high], marks: [chance] })),
        cell("num", M.fmt.percent(r.rate)),
        cell(`num wide${passes ? " strong" : ""}`, r.lift === null ? "–" : `${M.fmt.lift(r.lift)}×`, M.h("span", { class: "soft" }, lifts(r.lift_low, r.lift_high))),
        cell(`num${passes ? " strong" : " soft"}`, r.q === null ? "not tested" : `q ${r.q < 0.001 ? "< 0.001" : `= ${M.fmt.three(r.q)}`}`),
        M.h("span", { class: "num wide", title: r.gate_low === null ? "no interval" : `95 %: ${M.fmt.mass(r.gate_low)} to ${M.fmt.mass(r.gate_high)}` }, M.fmt.mass(r.gate_mass), M.h("span", { class: "soft" }, r.gate_low === null ? "" : ` ±${M.fmt.mass((r.gate_high - r.gate_low) / 2)}`)),
        cell("num wide soft", `${M.fmt.percent(r.by_token)}`), measured ? cell("num wide soft extra", M.fmt.two(r.contribution)) : null,
      ];
    });
    const notes = [`Share of each domain's tokens that choose it, with 95 % intervals over documents; the red line is chance, ${M.fmt.percent(chance)}. Bold: q < ${M.data.level}.`];
    if (rows.length < M.data.compared) notes.push(` The ${rows.length} of ${M.data.compared} domains that stand out most.`);
    return M.part("Domains", notes.join(""), M.h("div", { class: `rows domains-rows${measured ? " measured" : ""}` },
      head([["domain"], ["rate"], ["", "num"], ["lift over others", "num wide"], ["", "num"], ["gate mass", "num wide"], ["by words", "num wide"], ...(measured ? [["‖w·E(x)‖", "num wide extra"]] : [])]), cells));
  });

  M.parts.speech = (p) => M.partOf("Parts of speech", p, "parts_of_speech", (rows) => {
    if (!rows.length) return null;
    const top = d3.max(rows, (r) => Math.max(r.high || r.share, r.text_share)) || 1;
    const cells = rows.flatMap((r) => [
      cell("name", r.tag),
      M.range((v) => (100 * v) / (top * 1.02), { bars: [{ from: 0, to: r.share }], whisker: [r.low, r.high], marks: [r.text_share] }),
      cell("num", M.fmt.percent(r.share)), cell("num soft", M.fmt.percent(r.text_share)), cell("num soft", r.lift === null ? "–" : `${M.fmt.lift(r.lift)}×`),
    ]);
    return M.part("Parts of speech", `Of ${M.fmt.count(p.parts_of_speech_assignments)} sampled assignments, tagged by ${p.parts_of_speech_pipeline}; the red line is the share in the text. A pipeline for one language says little about another.`,
      M.h("div", { class: "rows speech-rows" }, head([["tag"], ["share"], ["", "num"], ["text", "num"], ["lift", "num"]]), cells));
  }, p.lists.speech);

  const link = (name) => (M.indexOf.has(name) && M.size > 1 ? M.h("a", { href: `#${name}` }, name) : M.h("b", {}, name));
  function partners(title, p, where) {
    const rows = p.lists[where];
    if (p.absent[where]) return M.h("div", {}, M.h("h5", {}, title), M.absent(`Absent: ${p.absent[where]}.`));
    if (!rows.length) return M.h("div", {}, M.h("h5", {}, title), M.absent(`None met it on ${M.data.constants[where].min_count} tokens or more with a lift above 1.`));
    const top = d3.max(rows, (r) => r.high || r.lift);
    const cells = rows.flatMap((r) => [
      link(r.partner),
      M.h("span", { title: `${M.fmt.count(r.count)} tokens together; ${M.fmt.percent(r.given)} of its tokens` }, M.range((v) => (100 * v) / top, { bars: [{ from: 0, to: r.lift, class: "faint" }], whisker: [r.low, r.high], marks: [p[`${where}_chance`]] })),
      cell("num", `${M.fmt.lift(r.lift)}×`), cell("num soft", M.fmt.percent(r.given)),
    ]);
    return M.h("div", {}, M.h("h5", {}, title), M.h("div", { class: "rows partner-rows" }, cells));
  }
  M.parts.partners = (p) => M.part("Partners", "Experts on the same tokens: lift with its 95 % interval, and the share of its tokens that they meet on. The red line is even random routing.",
    M.h("div", { class: "columns three" }, partners("in the layer before", p, "previous"), partners("in the same layer", p, "coactivated"), partners("in the next layer", p, "following")));

  M.parts.similar = (p) => M.partOf("Most similar experts", p, "similar", (rows) => {
    const cells = rows.flatMap((r) => [
      link(r.partner),
      M.range((v) => 50 + 50 * v, { bars: [{ from: 0, to: r.cosine, class: "faint" }], dots: [r.half_a, r.half_b], zero: 0 }),
      cell("num", M.fmt.two(r.cosine)), cell("num soft", `${M.fmt.two(r.half_a)} · ${M.fmt.two(r.half_b)}`),
    ]);
    return M.part("Most similar experts", `Mean cosine of outputs on ${M.fmt.count(p.similar_tokens)} inputs that every expert of the layer was given, from −1 to 1; beside it, each half of the documents.`, M.h("div", { class: "rows partner-rows" }, cells));
  });

  M.parts.weights = (p) => M.partOf("Weights", p, "weights", (rows) =>
    M.part("Weights", "Frobenius norms beside the layer's mean; z is the distance from it in standard deviations of the layer's experts.",
      M.table([{ key: "tensor", label: "tensor", mono: true }, { key: "norm", label: "norm", format: M.fmt.two }, { key: "layer_mean", label: "layer mean", format: M.fmt.two }, { key: "z", label: "z", format: M.fmt.two }], rows, { fixed: true, label: "Norms of its weights" })));
});
