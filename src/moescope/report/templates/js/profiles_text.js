"use strict";
// Parts of a profile that are text: tokens in, contexts, what it pushes towards and away from.
(function () {
  const { cellOf: cell, headOf: head } = M;
  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  const token = (text) => M.h("span", { class: "token", title: visible(text) }, visible(text).replace(/^ +| +$/g, (s) => "␣".repeat(s.length)) || "∅");

  M.parts.tokens = function (p) {
    const t = p.tokens;
    if (M.missing(t)) return M.absentPart("Tokens in", t);
    const v = p.vocabulary;
    const notes = [`Token ids that it serves beyond its overall rate, at least ${t.min} times; of ${M.fmt.count(t.of)} assignments.`];
    if (t.overlap !== null) notes.push(` Two halves of the documents share ${M.fmt.percent(t.overlap)} of the list.`);
    if (!M.missing(v)) notes.push(` Vocabulary excess ${M.fmt.two(v.excess)}${v.halfA === null ? "" : ` (halves ${M.fmt.two(v.halfA)}, ${M.fmt.two(v.halfB)})`}: half of its assignments are ${v.half === 1 ? "a single token id" : `${M.fmt.count(v.half)} token ids`}, half of the text is ${M.fmt.count(v.text)}.`);
    if (!t.rows.length) return M.part("Tokens in", notes.join(""), M.absent("No token id stands out."));
    const top = d3.max(t.rows, (r) => r.share) || 1;
    const cells = t.rows.flatMap((r) => [
      cell("name", token(M.tokenText(r.id))), M.range((x) => (100 * x) / top, { bars: [{ from: 0, to: r.share }] }),
      cell("num", M.fmt.percent(r.share)), cell("num", `${M.fmt.lift(r.lift)}×`), cell("num soft wide", M.fmt.count(r.count)), cell("num soft wide", r.documents === null ? "–" : M.fmt.count(r.documents)),
    ]);
    return M.part("Tokens in", notes.join(""), M.h("div", { class: "rows token-rows" }, head([["token"], ["of its assignments"], ["", "num"], ["lift", "num"], ["times", "num wide"], ["sampled docs", "num wide"]]), cells));
  };

  function pushed(rows, kind, x) {
    const cells = rows.flatMap((r) => [
      cell("name", token(M.tokenText(r.id))),
      M.h("span", { title: `own ${M.fmt.three(r.own)}, the layer's others ${M.fmt.three(r.others)}; halves ${M.fmt.three(r.a)} and ${M.fmt.three(r.b)}` }, M.range(x, { bars: [{ from: 0, to: r.beyond, class: kind }], dots: [r.a, r.b], zero: 0 })),
      cell("num", M.fmt.three(r.beyond)), cell("num soft wide", M.fmt.three(r.others)),
    ]);
    return M.h("div", { class: "rows push-rows" }, head([["token"], ["beyond the others"], ["Δlogit", "num"], ["others", "num wide"]]), cells);
  }
  M.parts.pushes = function (p) {
    const g = p.pushes;
    if (M.missing(g)) return M.absentPart("Pushes towards and away from", g);
    const size = d3.max([...g.up, ...g.down], (r) => Math.max(Math.abs(r.beyond), Math.abs(r.a || 0), Math.abs(r.b || 0))) || 1;
    const notes = [
      `Mean change of a token's logit by what it adds, minus the mean over the vocabulary; ranked by what goes beyond the layer's other experts. Ticks: each half of the documents. ${M.fmt.count(g.of)} measured assignments; halves agree with a rank correlation of ${M.fmt.two(g.agreement)} over the vocabulary, and share ${M.fmt.percent(g.overlap[0])} of the promoted and ${M.fmt.percent(g.overlap[1])} of the suppressed top 20.`,
    ];
    if (g.factor !== 1) notes.push(` The experts' output enters the stream times ${g.factor}.`);
    if (g.note) notes.push(` Note: ${g.note}.`);
    return M.part("Pushes towards and away from", notes.join(""), M.h("div", { class: "columns" },
      M.h("div", {}, M.h("h5", {}, "towards"), pushed(g.up, "", (v) => (100 * v) / size)),
      M.h("div", {}, M.h("h5", {}, "away from"), pushed(g.down, "down", (v) => (100 * -v) / size))));
  };

  M.parts.contexts = function (p) {
    const rows = p.contexts;
    if (M.missing(rows)) return M.absentPart("Where it contributes most", rows);
    if (!rows.length) return null;
    const items = rows.map((c) => M.h("li", {},
      M.h("span", { class: "of" }, M.h("span", {}, M.h("b", {}, M.fmt.two(c.contribution))), M.h("span", { title: `${c.doc}, position ${c.pos}` }, c.domain >= 0 ? [M.h("span", { class: "swatch", style: { background: M.domainInk(c.domain), marginRight: ".35rem" } }), M.data.domains[c.domain]] : c.doc)),
      M.h("p", {}, c.before.replace(/^\s+/, ""), M.h("mark", {}, c.token === "" ? "∅" : c.token.replace(/\n/g, "⏎\n")), c.after)));
    return M.part("Where it contributes most", "The tokens with the largest ‖w·E(x)‖ in their text; the same token between the same neighbours is shown once, a document at most twice.", M.h("ol", { class: "contexts" }, items));
  };
})();
