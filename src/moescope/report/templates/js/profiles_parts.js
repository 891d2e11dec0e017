"use strict";
// Parts of a profile that are numbers: how often, domains, parts of speech, partners, weights.
(function () {
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
  const absent = (title, reason) => M.part(title, null, M.absent(`Absent: ${reason}.`));
  M.absentPart = absent;
  const percents = (low, high) => (low === null || high === null ? null : `${M.fmt.percent(low).replace(" %", "")}–${M.fmt.percent(high)}`);
  const lifts = (low, high) => (low === null ? "" : ` [${M.fmt.lift(low)}, ${high === null ? "∞" : M.fmt.lift(high)}]`);

  M.parts = {};
  M.parts.facts = function (p) {
    const fact = (value, label, sub) => M.h("div", {}, M.h("b", {}, value), M.h("span", {}, label), sub ? M.h("i", {}, sub) : null);
    const l = p.load;
    const facts = [
      fact(M.fmt.percent(l.rate), "of tokens choose it", `${percents(l.rateLow, l.rateHigh) || "no interval"}, chance ${M.fmt.percent(l.chance)}`),
      fact(M.fmt.percent(l.load), "of the layer's load", `even share ${M.fmt.percent(l.even)}`),
      fact(M.fmt.mass(l.mass), "gate mass per token", l.massLow === null ? "no interval" : `${M.fmt.mass(l.massLow)}–${M.fmt.mass(l.massHigh)}`),
      fact(M.fmt.percent(l.first), "of tokens choose it first", `${M.fmt.count(l.count)} assignments, ${M.fmt.count(l.documents)} documents`),
    ];
    const a = p.contribution;
    if (!M.missing(a)) {
      facts.push(
        fact(M.fmt.two(a.mean), "mean contribution ‖w·E(x)‖ (REAP)", a.low === null ? "no interval" : `${M.fmt.two(a.low)}–${M.fmt.two(a.high)}`),
        fact(M.fmt.percent(a.share), "of the layer's contribution", `${M.fmt.percent(a.loadShare)} of its assignments`),
        fact(M.fmt.two(a.activation), "mean ‖E(x)‖ (EAN)", `mean weight ${M.fmt.three(a.weight)}`),
        fact(`${M.fmt.lift(a.peakRatio)}×`, "peak output over the median expert's", `largest component ${M.fmt.lift(a.peak)}`));
    }
    const host = M.h("div", { class: "facts" }, facts);
    return M.missing(a) ? [host, M.absent(`Contribution is absent: ${a}.`)] : [host];
  };

  M.parts.domains = function (p) {
    const d = p.domains;
    if (M.missing(d)) return absent("Domains", d);
    const rows = d.rows;
    const chance = p.load.chance;
    const top = d3.max(rows, (r) => Math.max(r.rate || 0, r.high || 0, chance)) || 1;
    const x = (v) => (100 * v) / (top * 1.02);
    const measured = rows.some((r) => r.contribution !== null);
    const cells = d3.sort(rows, (r) => -(r.rate || 0)).flatMap((r) => {
      const passes = r.q !== null && r.q < 0.05;
      const name = M.data.domains[r.domain];
      return [
        M.h("span", { class: `name${passes ? " strong" : ""}`, title: name }, name),
        M.h("span", { title: `${M.fmt.percent(r.rate)} of its tokens (95 %: ${percents(r.low, r.high) || "no interval"}); red: chance ${M.fmt.percent(chance)}; others ${M.fmt.percent(r.others)}` },
          M.range(x, { bars: [{ from: 0, to: r.rate, color: M.domainInk(r.domain) }], whisker: [r.low, r.high], marks: [chance] })),
        cell("num", M.fmt.percent(r.rate)),
        cell(`num wide${passes ? " strong" : ""}`, r.lift === null ? "–" : `${M.fmt.lift(r.lift)}×`, M.h("span", { class: "soft" }, lifts(r.liftLow, r.liftHigh))),
        cell(`num${passes ? " strong" : " soft"}`, r.q === null ? "not tested" : `q ${r.q < 0.001 ? "< 0.001" : `= ${M.fmt.three(r.q)}`}`),
        M.h("span", { class: "num wide", title: r.massLow === null ? "no interval" : `95 %: ${M.fmt.mass(r.massLow)} to ${M.fmt.mass(r.massHigh)}` }, M.fmt.mass(r.mass), M.h("span", { class: "soft" }, r.massLow === null ? "" : ` ±${M.fmt.mass((r.massHigh - r.massLow) / 2)}`)),
        cell("num wide soft", `${M.fmt.percent(r.byToken)}`), measured ? cell("num wide soft extra", M.fmt.two(r.contribution)) : null,
      ];
    });
    const notes = [`Share of each domain's tokens that choose it, with 95 % intervals over documents; the red line is chance, ${M.fmt.percent(chance)}. Bold: q < 0.05.`];
    if (rows.length < d.all) notes.push(` The ${rows.length} of ${d.all} domains that stand out most.`);
    return M.part("Domains", notes.join(""), M.h("div", { class: `rows domains-rows${measured ? " measured" : ""}` },
      head([["domain"], ["rate"], ["", "num"], ["lift over others", "num wide"], ["", "num"], ["gate mass", "num wide"], ["by words", "num wide"], ...(measured ? [["‖w·E(x)‖", "num wide extra"]] : [])]), cells));
  };

  M.parts.speech = function (p) {
    const s = p.speech;
    if (M.missing(s)) return absent("Parts of speech", s);
    if (!s.rows.length) return null;
    const top = d3.max(s.rows, (r) => Math.max(r.high || r.share, r.text)) || 1;
    const cells = s.rows.flatMap((r) => [
      cell("name", r.tag),
      M.range((v) => (100 * v) / (top * 1.02), { bars: [{ from: 0, to: r.share }], whisker: [r.low, r.high], marks: [r.text] }),
      cell("num", M.fmt.percent(r.share)), cell("num soft", M.fmt.percent(r.text)), cell("num soft", r.text ? `${M.fmt.lift(r.share / r.text)}×` : "–"),
    ]);
    return M.part("Parts of speech", `Of ${M.fmt.count(s.of)} sampled assignments, tagged by ${s.by}; the red line is the share in the text. A pipeline for one language says little about another.`,
      M.h("div", { class: "rows speech-rows" }, head([["tag"], ["share"], ["", "num"], ["text", "num"], ["lift", "num"]]), cells));
  };

  const link = (name) => (M.indexOf.has(name) && M.size > 1 ? M.h("a", { href: `#${name}` }, name) : M.h("b", {}, name));
  function partners(title, list, how) {
    if (M.missing(list)) return M.h("div", {}, M.h("h5", {}, title), M.absent(`Absent: ${list}.`));
    if (!list.rows.length) return M.h("div", {}, M.h("h5", {}, title), M.absent(`None met it on ${list.min} tokens or more with a lift above 1.`));
    const top = d3.max(list.rows, (r) => r.high || r.lift);
    const cells = list.rows.flatMap((r) => [
      link(r.expert),
      M.h("span", { title: `${M.fmt.count(r.count)} tokens together; ${M.fmt.percent(r.given)} of its tokens` }, M.range((v) => (100 * v) / top, { bars: [{ from: 0, to: r.lift, class: "faint" }], whisker: [r.low, r.high], marks: [list.chance] })),
      cell("num", `${M.fmt.lift(r.lift)}×`), cell("num soft", M.fmt.percent(r.given)),
    ]);
    return M.h("div", {}, M.h("h5", {}, title), M.h("div", { class: "rows partner-rows", title: how }, cells));
  }
  M.parts.partners = (p) => M.part("Partners", "Experts on the same tokens: lift with its 95 % interval, and the share of its tokens that they meet on. The red line is even random routing.",
    M.h("div", { class: "columns three" }, partners("in the layer before", p.before), partners("in the same layer", p.together), partners("in the next layer", p.after)));

  M.parts.similar = function (p) {
    const s = p.similar;
    if (M.missing(s)) return absent("Most similar experts", s);
    const cells = s.rows.flatMap((r) => [
      link(r.expert),
      M.range((v) => 50 + 50 * v, { bars: [{ from: 0, to: r.cosine, class: "faint" }], dots: [r.a, r.b], zero: 0 }),
      cell("num", M.fmt.two(r.cosine)), cell("num soft", `${M.fmt.two(r.a)} · ${M.fmt.two(r.b)}`),
    ]);
    return M.part("Most similar experts", `Mean cosine of outputs on ${M.fmt.count(s.of)} inputs that every expert of the layer was given, from −1 to 1; beside it, each half of the documents.`, M.h("div", { class: "rows partner-rows" }, cells));
  };

  M.parts.weights = function (p) {
    const w = p.weights;
    if (M.missing(w)) return absent("Weights", w);
    return M.part("Weights", "Frobenius norms beside the layer's mean; z is the distance from it in standard deviations of the layer's experts.",
      M.table([{ key: "tensor", label: "tensor", mono: true }, { key: "norm", label: "norm", format: M.fmt.two }, { key: "mean", label: "layer mean", format: M.fmt.two }, { key: "z", label: "z", format: (v) => (v === null ? "–" : M.fmt.two(v)) }], w, { fixed: true, label: "Norms of its weights" }));
  };
})();
